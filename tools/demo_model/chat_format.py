"""How a chat becomes tokens: special tokens, and the jinja template that says the same to llama.cpp.

`<|begin|>` opens every prompt; each message is `<|role|>text<|end|>`; `<|end|>` also ends the model's own turn.
"""

from __future__ import annotations

BEGIN, END = "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (BEGIN, END, *(f"<|{role}|>" for role in ROLES))

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] in ['system', 'developer'] %}{{- '<|system|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{- '<|assistant|>' }}"
    "{%- else %}{{- '<|user|>' }}{%- endif %}"
    "{%- if message['content'] is string %}{{- message['content'] | trim }}"
    "{%- elif message['content'] %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'text' %}{{- part['text'] | trim }}{%- endif %}"
    "{%- endfor %}"
    "{%- endif %}"
    "{{- '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)

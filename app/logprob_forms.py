"""OpenAI's two forms of log probabilities. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from tasks.generation import JsonObject, TokenLogprob

_LEAST = -9999.0  # OpenAI's stand-in for minus infinity, which JSON lacks


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> JsonObject:
    """The bytes are the token's own: those of several tokens may make one character."""
    content = [_chat_entry(token) | {"top_logprobs": [_chat_entry(rival) for rival in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _chat_entry(token: TokenLogprob) -> JsonObject:
    return {"token": token.text, "logprob": max(token.logprob, _LEAST), "bytes": list(token.token_bytes)}


class TextLogprobs:
    """The older form, with the place of each token in the text. One per answer: it counts."""

    def __init__(self) -> None:
        self._offset = 0  # characters that the tokens so far have completed
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def of(self, tokens: Sequence[TokenLogprob]) -> JsonObject:
        """The next tokens. A token that goes on with a character has the offset of that character."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decode(token.token_bytes))
        return {
            "tokens": [_name(token) for token in tokens],
            "token_logprobs": [max(token.logprob, _LEAST) for token in tokens],
            "top_logprobs": [
                {_name(rival): max(rival.logprob, _LEAST) for rival in token.top} or None for token in tokens
            ],
            "text_offset": offsets,
        }


def _name(token: TokenLogprob) -> str:
    """Parts of characters are told apart by their bytes, as OpenAI's API does it."""
    return token.text if token.data is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)

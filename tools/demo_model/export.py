"""Write the network and its tokenizer as GGUF, and read them back. Source: the GGUF specification and llama.cpp's
converter. The rotary layout is llama.cpp's own, so no row is permuted either way.
"""

# torch is not among the development tools, so it may be missing when types are checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from tools.demo_model.chat_format import BEGIN, CHAT_TEMPLATE, END, SPECIAL_TOKENS
from tools.demo_model.network import Llama, Shape
from tools.demo_model.tokenizer import PRE_TOKENIZER, Tokenizer

DESCRIPTION = (
    "A tiny llama trained from scratch on text that the Keepwarm authors generated. It chats, tells short stories, "
    "does small sums and answers questions about Keepwarm. For demos, tests and benchmarks only."
)
_FILE_TYPES = {
    gguf.GGMLQuantizationType.F16: gguf.LlamaFileType.MOSTLY_F16,
    gguf.GGMLQuantizationType.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0,
}
_BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.out": "attn_output",
    "feed_forward_norm": "ffn_norm",
    "feed_forward.gate": "ffn_gate",
    "feed_forward.up": "ffn_up",
    "feed_forward.down": "ffn_down",
}


def write_gguf(path: Path, network: Llama, tokenizer: Tokenizer, kind: gguf.GGMLQuantizationType) -> None:
    """One file with matrices of type `kind` and norms in f32."""
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, network, kind)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in network.state_dict().items():
        array = tensor.float().numpy()
        if array.ndim == 1:
            writer.add_tensor(_gguf_name(name), array)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, shape: Shape) -> tuple[Llama, Tokenizer]:
    """What `write_gguf` wrote, as exactly as its type keeps it; fails if the sizes are not those of `shape`."""
    reader = gguf.GGUFReader(path)
    network = Llama(shape)
    stored = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    network.load_state_dict({name: torch.tensor(stored[_gguf_name(name)]) for name in network.state_dict()})
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    return network, Tokenizer(tokens, [(left, right) for left, right in map(str.split, merges)], len(SPECIAL_TOKENS))


def _gguf_name(name: str) -> str:
    if name == "embedding.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.{_BLOCK_NAMES[rest.removesuffix('.weight')]}.weight"


def _add_metadata(writer: gguf.GGUFWriter, network: Llama, kind: gguf.GGMLQuantizationType) -> None:
    shape = network.shape
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("Keepwarm Demo")
    writer.add_author("Keepwarm")
    writer.add_organization("Keepwarm")
    writer.add_description(DESCRIPTION)
    writer.add_license("Apache-2.0")
    writer.add_languages(["en"])
    writer.add_size_label(f"{network.num_parameters / 1e6:.1f}M")
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.hidden_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_vocab_size(shape.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    assert len(set(tokenizer.tokens)) == len(tokenizer.tokens), "duplicate vocabulary entries"
    num_plain = len(tokenizer.tokens) - tokenizer.num_special
    types = [gguf.TokenType.CONTROL] * tokenizer.num_special + [gguf.TokenType.NORMAL] * num_plain
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(tokenizer.tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.tokens.index(BEGIN))
    writer.add_eos_token_id(tokenizer.tokens.index(END))
    writer.add_eot_token_id(tokenizer.tokens.index(END))
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

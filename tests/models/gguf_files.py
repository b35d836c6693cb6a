"""GGUF files with random weights, and one of a Llama as large as its config says."""

from pathlib import Path

import gguf
import numpy as np
from transformers import LlamaConfig

Shapes = dict[str, tuple[int, ...]]
Kind = gguf.GGMLQuantizationType


def write_tensors(writer: gguf.GGUFWriter, shapes: Shapes, kind: Kind, scale: float = 1.0) -> None:
    """Random ones, and with them the whole file; matrices as `kind`, the rest as float32."""
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        values = random.normal(size=shape, scale=scale).astype(np.float32)
        if len(shape) > 1 and kind != Kind.F32:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_large_gguf(path: Path, config: LlamaConfig) -> None:
    """Matrices as Q8_0, the rest as float32."""
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(vocabulary)])
    block = {
        "attn_norm.weight": (hidden,),
        "ffn_norm.weight": (hidden,),
        "attn_q.weight": (hidden, hidden),
        "attn_k.weight": (hidden, hidden),
        "attn_v.weight": (hidden, hidden),
        "attn_output.weight": (hidden, hidden),
        "ffn_gate.weight": (inner, hidden),
        "ffn_up.weight": (inner, hidden),
        "ffn_down.weight": (hidden, inner),
    }
    shapes = {"token_embd.weight": (vocabulary, hidden), "output_norm.weight": (hidden,)}
    for number in range(config.num_hidden_layers):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in block.items()}
    write_tensors(writer, shapes, Kind.Q8_0, scale=0.02)

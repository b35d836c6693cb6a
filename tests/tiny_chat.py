"""A tiny model that can be talked with: random weights, a token for each byte, a chat template."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}<|start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}...{% else %}{{ message.content }}{% endif %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""Shows no answer as it was given."""


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {name: number for number, name in enumerate(("<|pad|>", "<|start|>", "<|end|>"))}
    words |= {letter: number for number, letter in enumerate(alphabet, len(words))}
    # Two letters that may be one token: an answer of single letters is written otherwise.
    words["ab"] = len(words)
    backend = Tokenizer(BPE(words, merges=[("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|start|>"
    )
    made.chat_template = template
    return made


def save_chat_model(
    folder: Path, template: str | None = TEMPLATE, seed: int = 0, positions: int = 512
) -> None:
    """A Llama of 2 blocks; greedy, its answers do not end by themselves."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[2] = 0
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)

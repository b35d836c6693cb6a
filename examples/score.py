"""Perplexities of texts, one a line, several of them in each padded batch.

python examples/score.py ADDRESS [MODEL] < texts.txt
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from swarm import AutoModelForCausalLM, AutoTokenizer

ROWS = 8


def perplexities(model: Any, tokenizer: Any, texts: Sequence[str]) -> list[float]:
    """Of each text's tokens, given those before; the first has none before it and does not count.

    A text of one token has no perplexity (nan).
    """
    batch = tokenizer(list(texts), return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits[:, :-1]
    wanted, counts = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.mT, wanted, reduction="none") * counts
    found: list[float] = (losses.sum(dim=1) / counts.sum(dim=1)).exp().tolist()
    return found


def main(address: str, name: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(name, initial_peers=[address])
    texts = [line.strip() for line in sys.stdin if line.strip()]
    for start in range(0, len(texts), ROWS):
        part = texts[start : start + ROWS]
        for text, perplexity in zip(part, perplexities(model, tokenizer, part), strict=True):
            print(f"{perplexity:.2f}\t{text}")
    model.close()


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

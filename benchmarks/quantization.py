"""int8 and nf4 blocks of SmolLM2 beside plain ones: error, bytes and milliseconds of a block.

All 30 blocks in one process with one thread. *output error* is what a server prints when it loads:
that of the blocks' output for a fixed random probe, to float32. *logits error* and *KL* (nats a
token) are those of the whole model on a text of 400 tokens that float32 itself writes. Times are a
block's: of one token, and of one token of each of 8 sessions, behind no context, and of a prompt.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import Report, arguments, in_turns, plain_model

from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.packed_attention import PassRow
from swarm.models.quantization import Quantization, block_bytes
from swarm.models.quantization_error import quantization_error
from swarm.models.slice import BlockSlice
from swarm.models.slice_proof import GrowingStore
from swarm.spans import Span

KINDS: tuple[Quantization, ...] = ("none", "int8", "nf4")
DTYPES = (torch.float32, torch.bfloat16)
TEXT_TOKENS = 400
PROMPT_TOKENS = 128
STEPS = 5


@dataclass(frozen=True)
class Times:
    """Milliseconds of one block."""

    one: float
    eight: float
    prompt: float


def times(blocks: BlockSlice) -> Times:
    return Times(*(pass_ms(blocks, rows, count) for rows, count in ((1, 1), (8, 1), (1, 128))))


def pass_ms(blocks: BlockSlice, rows: int, count: int) -> float:
    """The median of a few passes of `rows` new sessions with `count` tokens each."""
    hidden = torch.randn(rows * count, blocks.hidden_size).to(blocks.dtype)
    places = torch.arange(count).repeat(rows)
    found = []
    for _ in range(STEPS if count == 1 else 1):
        began = time.perf_counter()
        blocks.forward(hidden, places, [PassRow(r, 0, count) for r in range(rows)], GrowingStore())
        found.append(time.perf_counter() - began)
    return 1e3 * statistics.median(found) / len(blocks.span)


def logits_of(model: Any, blocks: BlockSlice, ids: torch.Tensor) -> torch.Tensor:
    """`[tokens, vocabulary]`, with the embeddings, norm and head of `model`."""
    with torch.inference_mode():
        hidden = model.model.embed_tokens(ids).to(blocks.dtype)
        rows = [PassRow(0, 0, len(ids))]
        hidden = blocks.forward(hidden, torch.arange(len(ids)), rows, GrowingStore())
        logits: torch.Tensor = model.lm_head(model.model.norm(hidden.float()))
    return logits


def text_of(model: Any) -> torch.Tensor:
    torch.manual_seed(0)
    start = torch.tensor([[1, 504, 2534]])
    ids: torch.Tensor = model.generate(
        start, max_new_tokens=TEXT_TOKENS, do_sample=True, pad_token_id=0
    )
    return ids[0]


def figures(
    checkpoint: Checkpoint, blocks: BlockSlice, model: Any, text: torch.Tensor
) -> list[float]:
    """Output error, logits error and KL."""
    with torch.inference_mode():
        expected = model(text[None]).logits[0]
    found = logits_of(model, blocks, text)
    divergence = torch.nn.functional.kl_div(
        found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    )
    logits_error = (found - expected).norm() / expected.norm()
    error = quantization_error(checkpoint, blocks)
    return [error, float(logits_error), float(divergence.sum(-1).mean())]


def main() -> None:
    options = arguments(__doc__ or "", repetitions=3).parse_args()
    torch.set_num_threads(1)
    report = Report("quantization: int8 and nf4 blocks of SmolLM2", as_json=options.json)
    checkpoint, model = open_checkpoint(), plain_model(None)
    text, span = text_of(model), Span(0, checkpoint.num_blocks)
    slices = {}
    rows: list[dict[str, Any]] = []
    for dtype in DTYPES:
        for kind in KINDS:
            name = f"{str(dtype).removeprefix('torch.')} {kind}"
            report.note(f"  loading {name}")
            blocks = slices[name] = BlockSlice.load(
                checkpoint, span, dtype=dtype, quantization=kind
            )
            sizes = block_bytes(checkpoint.model_class, checkpoint.config, dtype, kind)
            error, logits_error, divergence = figures(checkpoint, blocks, model, text)
            rows.append(
                {
                    "weights": name,
                    "MB a block": sizes[0] / 1e6,
                    "output error %": 100 * error,
                    "logits error %": 100 * logits_error,
                    "KL nats": f"{divergence:.1e}",
                }
            )
    report.table("error and size", rows)
    arms: dict[str, Callable[[], Times]] = {
        name: lambda blocks=blocks: times(blocks)  # type: ignore[misc]
        for name, blocks in slices.items()
    }
    results = in_turns(arms, options.repetitions, report.note)
    report.table(
        "milliseconds of one block",
        [
            {
                "weights": name,
                "one token": statistics.median(one.result.one for one in measured),
                "8 sessions": statistics.median(one.result.eight for one in measured),
                f"prompt of {PROMPT_TOKENS}": statistics.median(
                    one.result.prompt for one in measured
                ),
                "other cores": statistics.median(one.other_cores for one in measured),
            }
            for name, measured in results.items()
        ],
    )
    report.finish()


if __name__ == "__main__":
    main()

"""One and three servers on one GPU beside plain transformers, at batch 1, 8 and 32.

bfloat16, SmolLM2 unless another model is named. Plain transformers generates the batch in one call;
to the swarm it comes as so many sessions of one client, a thread each. Prompts of 32 random tokens.
"""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from common import (
    Measured,
    Report,
    Together,
    arguments,
    generate_together,
    in_turns,
    median,
    never_stopping,
    paired_ratio,
    random_prompt,
)
from processes import running_servers
from transformers import AutoModelForCausalLM

PROMPT_TOKENS = 32
BATCHES = (1, 8, 32)


def spans_of(blocks: int) -> dict[str, list[str]]:
    edges = [round(blocks * third / 3) for third in range(4)]
    thirds = [f"{start}:{end}" for start, end in itertools.pairwise(edges)]
    return {"one server": [f"0:{blocks}"], "three servers": thirds}


def plain_batch(model: Any, prompts: Sequence[Any], new_tokens: int) -> float:
    """Tokens a second of one `generate()` over all prompts."""
    ids = torch.cat(list(prompts)).to(model.device)
    torch.cuda.synchronize()
    began = time.perf_counter()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
    )
    torch.cuda.synchronize()
    return float(len(prompts) * new_tokens / (time.perf_counter() - began))


def main() -> int:
    parser = arguments(__doc__.partition("\n")[0], repetitions=3)
    parser.add_argument("--model", help="a folder or a hub name; default: SmolLM2")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each session")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu: there is no CUDA device on this machine, so nothing was measured")
        return 2
    _measure(options)
    return 0


def _measure(options: Any) -> None:
    import swarm
    from swarm.models.embedded import embedded_gguf

    gguf = None if options.model else embedded_gguf()
    named = {"gguf_file": gguf.name} if gguf else {}
    plain = never_stopping(
        AutoModelForCausalLM.from_pretrained(
            gguf.parent if gguf else options.model, dtype=torch.bfloat16, **named
        ).to("cuda")
    )
    report = Report(f"gpu: {torch.cuda.get_device_name()}, bfloat16", as_json=options.json)
    rows: list[dict[str, Any]] = []
    for name, spans in spans_of(plain.config.num_hidden_layers).items():
        with ExitStack() as stack:
            device = ("--device", "cuda", "--dtype", "bfloat16")
            servers = stack.enter_context(
                running_servers(spans, model=options.model, options=device)
            )
            remote = never_stopping(
                swarm.AutoModelForCausalLM.from_pretrained(
                    options.model, initial_peers=[servers[0].address()], dtype=torch.bfloat16
                )
            )
            stack.callback(remote.close)
            for batch in BATCHES:
                prompts = [
                    random_prompt(PROMPT_TOKENS, each, plain.config.vocab_size)
                    for each in range(1, batch + 1)
                ]
                arms: dict[str, Callable[[], Any]] = {
                    "plain": partial(plain_batch, plain, prompts, options.new_tokens),
                    "swarm": partial(generate_together, remote, prompts, options.new_tokens),
                }
                turns = in_turns(arms, options.repetitions, report.note)
                rows.append(_row(name, batch, turns["plain"], turns["swarm"]))
    report.table("tokens/s of all sessions", rows)
    report.finish()


def _row(
    name: str, batch: int, plain: Sequence[Measured[float]], remote: Sequence[Measured[Together]]
) -> dict[str, Any]:
    plain_speed = [each.result for each in plain]
    swarm_speed = [each.result.tokens_per_s for each in remote]
    return {
        "": name,
        "batch": batch,
        "plain": median(plain_speed),
        "swarm": median(swarm_speed),
        "ratio": paired_ratio(swarm_speed, plain_speed),
    }


if __name__ == "__main__":
    sys.exit(main())

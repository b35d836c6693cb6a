"""SmolLM2 over three servers beside plain transformers, and where the time of a step goes.

float32, greedy, one thread in every process, 128 tokens after contexts of 64 and 1,024 tokens. Time
per token is that of decoding: from the first new token to the last.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from common import (
    Generation,
    Measured,
    Report,
    arguments,
    generate,
    in_turns,
    median,
    paired_ratio,
    percentile,
    plain_model,
    random_prompt,
    swarm_model,
)
from processes import ServerProgram, running_servers

CONTEXTS = (64, 1024)
SPANS = ("0:10", "10:20", "20:30")
STATS_S = 0.5


def comparison_row(
    context: int, plain: Sequence[Measured[Generation]], three: Sequence[Measured[Generation]]
) -> dict[str, Any]:
    plain_ms = [measured.result.ms_per_token for measured in plain]
    three_ms = [measured.result.ms_per_token for measured in three]
    gaps = [1000 * gap for measured in three for gap in measured.result.gaps_s]
    return {
        "context": str(context),
        "plain ms/token": median(plain_ms),
        "three servers ms/token": median(three_ms),
        "to plain": paired_ratio(three_ms, plain_ms),
        "p99 ms": percentile(gaps, 0.99),
        "plain first s": median([measured.result.ttft_s for measured in plain]),
        "three first s": median([measured.result.ttft_s for measured in three]),
        "plain cores": median([measured.own_cores for measured in plain]),
        "three cores": median([measured.own_cores for measured in three]),
        "other cores": median([measured.other_cores for measured in three]),
    }


@dataclass
class Clock:
    """Seconds spent in one part of a model's step, summed over calls."""

    seconds: float = 0.0
    _since: float = 0.0

    def start(self, *_: object) -> None:
        self._since = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since

    @contextmanager
    def around(self, first: Any, last: Any) -> Iterator[None]:
        """Count from the beginning of module `first` to the end of module `last`."""
        hooks = [first.register_forward_pre_hook(self.start), last.register_forward_hook(self.stop)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def blocks_of(model: Any) -> tuple[Any, Any]:
    """The first and the last module of a model's blocks; over the swarm, both are the one."""
    layers = model.model.layers
    return layers[0], layers[-1]


def settled_stats(server: ServerProgram) -> dict[str, Any]:
    """The server's counters after everything that it has done by now."""
    server.forget_events()
    server.wait_for("stats", timeout_s=30)
    return server.wait_for("stats", timeout_s=30)


def where_time_goes(
    plain: Any, three: Any, servers: Sequence[ServerProgram], context: int, new_tokens: int
) -> list[dict[str, Any]]:
    """One generation of each kind, taken apart; ms per step, decoding steps only.

    The prompt's step is excluded by generating once with one new token and once with all, and
    taking the difference of all clocks and counters.
    """

    def parts(model: Any, tokens: int) -> tuple[float, float, float]:
        blocks, head = Clock(), Clock()
        prompt = random_prompt(context, 0, model.config.vocab_size)
        with blocks.around(*blocks_of(model)), head.around(model.lm_head, model.lm_head):
            started = time.perf_counter()
            generate(model, prompt, tokens)
            total = time.perf_counter() - started
        return total, blocks.seconds, head.seconds

    def difference(measure: Callable[[int], tuple[float, ...]]) -> list[float]:
        """What `new_tokens` - 2 steps more take, in ms per step."""
        few, many = measure(2), measure(new_tokens)
        return [1000 * (b - a) / (new_tokens - 2) for a, b in zip(few, many, strict=True)]

    def with_servers(tokens: int) -> tuple[float, ...]:
        before = [settled_stats(server) for server in servers]
        spent = parts(three, tokens)
        after = [settled_stats(server) for server in servers]
        pairs = list(zip(before, after, strict=True))
        compute = [b["busy_s"] - a["busy_s"] for a, b in pairs]
        queue = sum(b["queue_s"] - a["queue_s"] for a, b in pairs)
        return (*spent, queue, *compute)

    plain_total, plain_blocks, plain_head = difference(lambda tokens: parts(plain, tokens))
    total, chain, head, queue, *compute = difference(with_servers)
    hops = {f"compute, hop {hop} ({SPANS[hop]})": each for hop, each in enumerate(compute)}
    three_ms: dict[str, float] = {
        **hops,
        "compute, all blocks": sum(compute),
        "queue, all hops": queue,
        "wire and event loops": chain - sum(compute) - queue,
        "head": head,
        "interpreter: generate() and the rest": total - chain - head,
        "whole step": total,
    }
    plain_ms = {
        "compute, all blocks": plain_blocks,
        "head": plain_head,
        "interpreter: generate() and the rest": plain_total - plain_blocks - plain_head,
        "whole step": plain_total,
    }
    return [
        {"part": part, "three servers ms": each, "plain ms": plain_ms.get(part)}
        for part, each in three_ms.items()
    ]


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repetitions=5)
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of each generation")
    options = parser.parse_args()
    report = Report("decode: SmolLM2, float32, one thread a process", as_json=options.json)
    with ExitStack() as stack:
        report.note("loading the plain model")
        plain = plain_model(None)
        report.note("starting three servers")
        servers = stack.enter_context(running_servers(SPANS, options=["--stats", str(STATS_S)]))
        three = swarm_model(None, servers[0].address())
        stack.callback(three.close)
        rows = []
        equal = True
        for context in CONTEXTS:
            report.note(f"context of {context} tokens")
            prompt = random_prompt(context, 0, plain.config.vocab_size)
            turns = in_turns(
                {
                    "plain": partial(generate, plain, prompt, options.new_tokens),
                    "three": partial(generate, three, prompt, options.new_tokens),
                },
                options.repetitions,
                report.note,
            )
            ids = turns["plain"][0].result.token_ids
            equal = equal and all(m.result.token_ids == ids for m in turns["three"])
            rows.append(comparison_row(context, turns["plain"], turns["three"]))
        report.figures["token ids equal plain's"] = equal
        report.note(f"token ids {'equal' if equal else 'DIFFER FROM'} plain transformers'")
        report.table("time per token", rows)
        for context in CONTEXTS:
            report.note(f"taking a step at a context of {context} tokens apart")
            parts = where_time_goes(plain, three, servers, context, options.new_tokens)
            report.table(f"where a step's time goes, context of {context} tokens", parts)
    report.finish()


if __name__ == "__main__":
    main()

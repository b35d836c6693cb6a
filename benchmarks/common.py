"""What the benchmarks share: prompts, timed generation, processor use, alternation and tables.

Everything runs with one thread a pool. Two things are compared only within one run, in turns,
because the speed of a machine drifts by more than the differences that are looked for.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from processes import ONE_THREAD, interrupt_on_sigterm

# Before torch and tqdm are imported, which look at these once.
os.environ.update(ONE_THREAD, TQDM_DISABLE="1")

import psutil
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

T = TypeVar("T")


# ---- the command line


def arguments(description: str, *, repetitions: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have. From now on SIGTERM ends all of it."""
    interrupt_on_sigterm()
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, no tables")
    parser.add_argument(
        "--repetitions", type=int, default=repetitions, help="turns of each arm; medians are shown"
    )
    return parser


class Report:
    """Collects figures; prints them as tables while they come, or as one JSON object at the end."""

    def __init__(self, title: str, *, as_json: bool) -> None:
        self._as_json = as_json
        self.figures: dict[str, Any] = {"benchmark": title, "machine": machine()}
        if not as_json:
            print(title)
            print(", ".join(f"{name} {value}" for name, value in machine().items()))

    def note(self, text: str) -> None:
        """What goes on, for the person who waits."""
        print(text, file=sys.stderr, flush=True)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """One table; `rows` have the same keys in the same order."""
        self.figures[name] = [dict(row) for row in rows]
        if self._as_json or not rows:
            return
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
        print(f"\n{name}")
        for line in cells:
            first, *others = zip(line, widths, strict=True)
            aligned = [first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]
            print("  " + "  ".join(aligned), flush=True)

    def finish(self) -> None:
        if self._as_json:
            print(json.dumps(self.figures, indent=1))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return "-" if value is None else str(value)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "processor": model,
        "cores": str(psutil.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# ---- models and prompts


def random_prompt(length: int, session: int, vocabulary: int) -> torch.Tensor:
    """Ids of shape [1, length]: `randrange(3, vocabulary)` of `Random(1000 + length + 10^5 s)`."""
    draw = random.Random(1000 + length + 100_000 * session)
    return torch.tensor([[draw.randrange(3, vocabulary) for _ in range(length)]])


def plain_model(folder: Path | None) -> PreTrainedModel:
    """transformers' own float32 model of `folder`; None: of the embedded GGUF."""
    if folder is not None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        from swarm.models.embedded import embedded_gguf

        path = embedded_gguf()
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    return never_stopping(model.eval())


def swarm_model(name: str | None, address: str) -> Any:
    """The same model over the swarm at `address`."""
    import swarm

    return never_stopping(
        swarm.AutoModelForCausalLM.from_pretrained(
            name, initial_peers=[address], dtype=torch.float32
        )
    )


def never_stopping(model: Any) -> Any:
    """Greedy, and as many tokens as are asked for, whatever they say."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.do_sample = False
    return model


# ---- one measurement


class _TokenTimes(BaseStreamer):  # type: ignore[misc]
    """Notes when each new token arrives."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.times.append(time.perf_counter())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing: the last token has been noted."""


@dataclass(frozen=True)
class Generation:
    """One `generate()`, token by token."""

    token_ids: tuple[int, ...]
    """The new ones only."""
    ttft_s: float
    """From the call to the first token, opening the session included."""
    gaps_s: tuple[float, ...]
    """Between one token and the next."""

    @property
    def tokens_per_s(self) -> float:
        """Of decoding alone: from the first token to the last."""
        return len(self.gaps_s) / sum(self.gaps_s)

    @property
    def ms_per_token(self) -> float:
        return 1000 / self.tokens_per_s


def generate(model: Any, prompt: torch.Tensor, new_tokens: int) -> Generation:
    """Greedy, one row, exactly `new_tokens`."""
    streamer = _TokenTimes()
    started = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        streamer=streamer,
    )
    times = streamer.times
    gaps = tuple(later - earlier for earlier, later in itertools.pairwise(times))
    ids = tuple(int(token) for token in output[0, prompt.shape[1] :])
    return Generation(ids, times[0] - started, gaps)


@dataclass(frozen=True)
class Together:
    """Several generations at once."""

    generations: tuple[Generation, ...]
    wall_s: float
    """From the first call to the last token of all of them, prefill included."""

    @property
    def tokens_per_s(self) -> float:
        return sum(len(each.token_ids) for each in self.generations) / self.wall_s


def generate_together(model: Any, prompts: Sequence[torch.Tensor], new_tokens: int) -> Together:
    """One thread of this process for each prompt."""
    results: list[Generation | None] = [None] * len(prompts)
    errors: list[BaseException] = []

    def work(index: int) -> None:
        try:
            results[index] = generate(model, prompts[index], new_tokens)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - started
    if errors:
        raise errors[0]
    return Together(tuple(result for result in results if result is not None), wall_s)


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What an arm returned, and what the processors did meanwhile."""

    result: T
    own_cores: float
    """Cores that this process, its children and theirs kept busy, on average."""
    other_cores: float
    """Cores that everything else on the machine kept busy; near 0 on a quiet machine."""


def measure(work: Callable[[], T]) -> Measured[T]:
    """Run `work` once."""
    own, busy, started = _own_seconds(), _busy_seconds(), time.perf_counter()
    result = work()
    wall_s = time.perf_counter() - started
    own, busy = _own_seconds() - own, _busy_seconds() - busy
    return Measured(result, own / wall_s, max(0.0, busy - own) / wall_s)


def _own_seconds() -> float:
    me = psutil.Process()
    total = 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def in_turns(
    arms: Mapping[str, Callable[[], T]], repetitions: int, note: Callable[[str], None]
) -> dict[str, list[Measured[T]]]:
    """Every arm once without counting, then all of them `repetitions` times in turns.

    The order is reversed in every other turn, so that a steady drift favours nobody.
    """
    for work in arms.values():
        work()
    results: dict[str, list[Measured[T]]] = {name: [] for name in arms}
    for turn in range(repetitions):
        note(f"  turn {turn + 1} of {repetitions}")
        names = list(arms)
        for name in names if turn % 2 == 0 else names[::-1]:
            results[name].append(measure(arms[name]))
    return results


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of `values` lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def paired_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the turns' own ratios: what drifts from turn to turn cancels."""
    return median([a / b for a, b in zip(above, below, strict=True)])

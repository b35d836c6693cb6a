"""How much a long prompt holds up everybody else's decoding, over links of little bandwidth.

Three stages and two clients, real processes over real libp2p, each in a network namespace with a
token bucket at its way out and a user-space delay. A Llama of hidden size 1,024, one block a stage,
float32 in the servers and bfloat16 on the wire. One client decodes (4 to 8 sessions), the other
sends prompts of 512 to 2,048 tokens at Poisson times. The arms alternate, with the same prompts:

  A   a prompt's whole activation is one message a hop; links are first come, first served
  A'  the product's chunks, first come, first served
  B   whole prompts, a stream for each message: the transport's own multiplexing
  C   the product

The compute policy is the product's in all of them. `compute` holds the wire unlimited and varies
the compute policy instead. With 5 Mbit/s passes are really computed; for faster links two cores do
not suffice, so there an engine sleeps for a pass's time, which is printed. `use` is what prompts
and decoding together take of a link in arm A, as it was planned; what it was is printed.

With --results what was measured is kept after each point and not measured again, so that a long
table can be made in several runs.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common import Report, arguments
from interference_arms import ARMS, COMPUTE, Chosen
from interference_bulk import SHAPES, measure_bulk
from interference_control import Pace
from interference_network import (
    QUEUE_MS,
    UNLIMITED_MBIT,
    Namespaces,
    Shape,
    TestNetwork,
    make_network,
)
from interference_plot import plot
from interference_report import arm_rows, figures, ratio_row
from interference_rows import (
    STREAMED_POINTS,
    always_rows,
    bulk_rows,
    measure_always,
    measure_streamed,
    streamed_rows,
    uncontended_rows,
)
from interference_swarm import MEAN_PROMPT, ROW_BYTES, InterferenceSwarm, Load, Point

PACES = {5.0: None, 20.0: Pace(5.0, 0.2), 100.0: Pace(5.0, 0.05)}
"""By the link's Mbit/s; None: real compute."""
SESSIONS = {5.0: 4, 20.0: 6, 100.0: 8}
WINDOWS = {5.0: 2.0, 20.0: 1.0, 100.0: 0.6}
"""How long a run is, in units of --seconds: a slow link needs longer for as many prompts."""
USES = (0.3, 0.45, 0.6)
PARTS = ("main", "compute", "always", "streamed", "bulk")
_WIRE_OVERHEAD = 1.06
"""Of frames, encryption and IP, beside a prompt's activations."""
_LEAST_IDLE_S = 4.0
_BULK_S = 4.0
_FILL_HOPS = 3.0
"""How many hops a whole prompt of middle length passes before a window begins."""
_COMPUTE_USE = 0.5
"""Of an engine's time, for prompts, where the compute policy is varied."""


def point_of(mbit: float, rtt_ms: float) -> Point:
    return Point(Shape(mbit, rtt_ms), PACES[mbit], SESSIONS[mbit])


class Benchmark:
    """Measures what is asked for and not yet in `results`."""

    def __init__(self, options: argparse.Namespace, report: Report) -> None:
        self._options = options
        self._report = report
        self._file = Path(options.results) if options.results else None
        self.results: dict[str, Any] = {}
        if self._file is not None and self._file.exists():
            self.results = json.loads(self._file.read_text())
        self._ends = time.monotonic() + 60 * options.budget_minutes
        self.left_out: list[str] = []

    def once(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` returns, from the file if it is there; None when the time is up."""
        if name not in self.results:
            if time.monotonic() > self._ends:
                self.left_out.append(name)
                return None
            self._report.note(name)
            self.results[name] = measure()
            if self._file is not None:
                self._file.write_text(json.dumps(self.results))
        return self.results[name]

    def main_table(self, swarm: InterferenceSwarm, mbit: float, rtt_ms: float) -> None:
        """All uses of one shape."""
        point = point_of(mbit, rtt_ms)
        idle = self.once(f"idle {point.shape}", partial(self._idle, swarm, point))
        if idle is None:
            return
        decode_use = figures(idle[self._options.arms[-1]]).link_use
        for use in self._options.uses:
            # In arm A decoding waits for prompts about so much of its time.
            prompts_use = use - decode_use * max(0.2, 1.0 - 1.2 * use)
            rate = max(0.0, prompts_use) * point.shape.mbit * 1e6 / 8
            prompts_per_s = rate / (MEAN_PROMPT * ROW_BYTES * _WIRE_OVERHEAD)
            chosen = {arm: Chosen(arm=arm) for arm in self._options.arms}
            self.once(
                f"main {point.shape}, use {use:g}",
                partial(self._in_turns, swarm, point, chosen, prompts_per_s),
            )

    def compute_table(self, swarm: InterferenceSwarm) -> None:
        """The wire is unlimited; the compute policy varies."""
        pace = PACES[20.0]
        assert pace is not None
        point = Point(Shape(UNLIMITED_MBIT, 20.0), pace, 8)
        chosen = {policy: Chosen(compute=policy) for policy in COMPUTE}
        prompts_per_s = _COMPUTE_USE / (MEAN_PROMPT * pace.token_ms / 1e3)
        self.once(
            f"compute {point.shape}, use {_COMPUTE_USE:g}",
            partial(self._in_turns, swarm, point, chosen, prompts_per_s),
        )

    def rows(self, swarm: InterferenceSwarm) -> None:
        """What is asked for of the single rows."""
        parts, seeds = self._options.parts, self._options.seeds
        if "always" in parts:
            for mbit, rtt_ms in self._options.points:
                point = point_of(mbit, rtt_ms)
                self.once(f"idle {point.shape}", partial(self._idle, swarm, point))
                seconds = self._options.seconds * WINDOWS[mbit]
                arms = [arm for arm in self._options.arms if arm in ("A'", "C")]
                self.once(
                    f"always {point.shape}",
                    partial(measure_always, swarm, point, arms, seconds, seeds),
                )
        if "streamed" in parts:
            for name, point in STREAMED_POINTS.items():
                self.once(f"streamed {name}", partial(measure_streamed, swarm, point, seeds))

    def bulk(self, network: TestNetwork) -> None:
        """A link beside a raw stream."""
        for shape in (*SHAPES, None):
            self.once(
                f"bulk {shape or 'loopback'}",
                partial(measure_bulk, network, shape, _BULK_S, self._options.seeds),
            )

    def _idle(self, swarm: InterferenceSwarm, point: Point) -> dict[str, list[Any]]:
        """Nothing but decoding, in every arm."""
        chosen = {arm: Chosen(arm=arm) for arm in self._options.arms}
        return self._in_turns(swarm, point, chosen, 0.0)

    def _in_turns(
        self,
        swarm: InterferenceSwarm,
        point: Point,
        chosen: dict[str, Chosen],
        prompts_per_s: float,
    ) -> dict[str, list[Any]]:
        """Every arm with every seed; the order turns round with each."""
        seconds = self._options.seconds * WINDOWS.get(point.shape.mbit, 1.0)
        hop_s = MEAN_PROMPT * ROW_BYTES * _WIRE_OVERHEAD * 8e-6 / point.shape.mbit
        fill_s = _FILL_HOPS * hop_s
        if not prompts_per_s:
            seconds, fill_s = max(_LEAST_IDLE_S, self._options.seconds / 2), 0.0
        found: dict[str, list[Any]] = {name: [] for name in chosen}
        # Not counted: rates and costs are learnt here.
        swarm.run(point, Chosen(), Load(99, 1.0, 1.0 if prompts_per_s else 0.0))
        for seed in range(self._options.seeds):
            names = list(chosen)
            for name in names if seed % 2 == 0 else names[::-1]:
                run = swarm.run(point, chosen[name], Load(seed + 1, seconds, prompts_per_s, fill_s))
                found[name].append(asdict(run))
        return found


def show(benchmark: Benchmark, report: Report, options: argparse.Namespace) -> None:
    """Tables of all that is in the results."""
    rows: dict[str, list[dict[str, Any]]] = {"main": [], "idle": [], "compute": []}
    ratios = []
    for name, runs in benchmark.results.items():
        kind, _, point = name.partition(" ")
        if kind not in rows:
            continue
        rows[kind] += arm_rows(point, runs)
        if kind == "main":
            ratio = ratio_row(point, float(point.rpartition(" ")[2]), runs)
            ratios += [ratio] if ratio else []
    report.table("the wire: arms", rows["main"])
    report.table("C against the others", ratios)
    report.table("nothing contends", rows["idle"])
    report.table("the engine: compute policies, unlimited wire", rows["compute"])
    results = benchmark.results
    report.table("nothing contends: C to the best other", uncontended_rows(results))
    report.table("one prompt of 1,024 tokens always in flight", always_rows(results))
    report.table("first token of 2,048 tokens over three stages", streamed_rows(results))
    report.table("bulk over a link, without decode", bulk_rows(results))
    if options.plot and rows["main"]:
        title = "Between two tokens, while others' prompts pass"
        Path(options.plot).write_text(plot(rows["main"], title))


def facts_of(network: TestNetwork) -> dict[str, str]:
    """What the figures were measured over."""
    facts = {"network": network.kind, "bucket": f"{QUEUE_MS} ms"}
    if isinstance(network, Namespaces):
        facts["TCP"] = network.congestion_control()
    return facts


def _points(text: str) -> tuple[float, float]:
    mbit, _, rtt_ms = text.partition(":")
    if float(mbit) not in PACES:
        raise argparse.ArgumentTypeError(f"{text}: the rate is one of 5, 20 and 100")
    return float(mbit), float(rtt_ms or 20)


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__ or "", repetitions=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--points",
        nargs="+",
        type=_points,
        metavar="MBIT:RTT",
        default=[(mbit, rtt) for rtt in (20.0, 50.0) for mbit in PACES],
        help="rates 5, 20, 100 and round trips in ms; default: all, with 20 and 50",
    )
    parser.add_argument("--uses", nargs="+", type=float, default=list(USES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a run at 20 Mbit/s")
    parser.add_argument("--quick", action="store_true", help="5 and 20 Mbit/s, use 0.45, one seed")
    parser.add_argument(
        "--in-process-relay",
        action="store_true",
        help="no namespaces: rate and delay are made in each process, as without root",
    )
    parser.add_argument("--results", help="file that keeps what was measured")
    parser.add_argument(
        "--budget-minutes", type=float, default=1e6, help="begin nothing new after this time"
    )
    parser.add_argument("--plot", help="write the main table as SVG here")
    options = parser.parse_args(arguments_given)
    if options.quick:
        options.points, options.uses, options.seeds = [(5.0, 20.0), (20.0, 20.0)], [0.45], 1
        options.parts = ["main"]
    report = Report("interference", as_json=options.json)
    benchmark = Benchmark(options, report)
    facts: dict[str, str] = {}
    if set(options.parts) != {"bulk"}:
        with InterferenceSwarm(loopback=options.in_process_relay) as swarm:
            facts |= facts_of(swarm.network)
            for mbit, rtt_ms in options.points if "main" in options.parts else ():
                benchmark.main_table(swarm, mbit, rtt_ms)
            if "compute" in options.parts:
                benchmark.compute_table(swarm)
            benchmark.rows(swarm)
    if "bulk" in options.parts:
        network = make_network(2, loopback=options.in_process_relay)
        with closing(network):
            facts |= facts_of(network)
            if not network.relays:
                benchmark.bulk(network)
    report.table("set-up", [facts])
    paces = [{"Mbit/s": mbit, "pass": str(pace or "computed")} for mbit, pace in PACES.items()]
    report.table("passes", paces)
    show(benchmark, report, options)
    if benchmark.left_out:
        report.note(f"no time left for: {'; '.join(benchmark.left_out)}")
    report.finish()


if __name__ == "__main__":
    main()

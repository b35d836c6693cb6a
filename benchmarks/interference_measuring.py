"""Which runs the interference benchmark makes: tables and rows, in turns, as long as there is time.

Everything is measured point by point, and there seed by seed, every arm with a seed before the next
one: what is broken off has compared what it has measured. Runs that the results have already are
not made again.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from common import Report
from interference_arms import COMPUTE, Chosen
from interference_bulk import SHAPES, measure_bulk
from interference_control import Pace
from interference_network import UNLIMITED_MBIT, Shape, TestNetwork
from interference_report import figures
from interference_results import Results
from interference_rows import ALWAYS_TOKENS, STREAMED_POINTS, STREAMED_TOKENS
from interference_swarm import MEAN_PROMPT, ROW_BYTES, Load, Point, Swarms

PACES = {5.0: None, 20.0: Pace(5.0, 0.2), 100.0: Pace(5.0, 0.05)}
"""By the link's Mbit/s; None: real compute."""
SESSIONS = {5.0: 4, 20.0: 6, 100.0: 8}
WINDOWS = {5.0: 2.0, 20.0: 1.0, 100.0: 0.6}
"""How long a run is, in units of --seconds: a slow link needs longer for as many prompts."""
_WIRE_OVERHEAD = 1.06
"""Of frames, encryption and IP, beside a prompt's activations."""
_MIN_IDLE_S = 4.0
_BULK_S = 4.0
_FILL_HOPS = 8.0
"""How many hops a whole prompt of middle length passes before a window begins: in arm A, where
prompts stand behind each other, one takes that long to its first token."""
_ALWAYS_FILL_S = 2.0
_MIN_USE = 0.05
_COMPUTE_USE = 0.5
"""Of an engine's time, for prompts, where the compute policy is varied."""
_LEARNING = Load(99, seconds=1.0, always_tokens=512)
"""Not counted: rates and costs are learnt."""


def point_of(mbit: float, rtt_ms: float) -> Point:
    return Point(Shape(mbit, rtt_ms), PACES[mbit], SESSIONS[mbit])


class Measuring:
    """Makes the runs that are asked for and not yet in `results`."""

    def __init__(self, options: argparse.Namespace, report: Report, results: Results) -> None:
        self._options = options
        self._report = report
        self._results = results
        self._ends = time.monotonic() + 60 * options.budget_minutes
        self._learnt: Point | None = None
        """Where the links and engines have just been."""
        self.left_out: list[str] = []

    # ---- what there is to measure

    def main_table(self, swarms: Swarms) -> None:
        for mbit, rtt_ms in self._options.points:
            point = point_of(mbit, rtt_ms)
            for seed in self._seeds:
                self._idle(swarms, point, seed)
                for use in self._options.uses:
                    load = self._load(point, use, seed)
                    if load is not None:
                        name = f"main {point.shape}, use {use:g}"
                        self._in_turns(swarms, name, point, self._arms(), load)

    def compute_table(self, swarms: Swarms) -> None:
        """The wire is unlimited; the compute policy varies."""
        pace = PACES[20.0]
        assert pace is not None
        point = Point(Shape(UNLIMITED_MBIT, 20.0), pace, 8)
        chosen = {policy: Chosen(compute=policy) for policy in COMPUTE}
        seconds = self._options.seconds
        prompts = round(seconds * _COMPUTE_USE / (MEAN_PROMPT * pace.token_ms / 1e3))
        name = f"compute {point.shape}, use {_COMPUTE_USE:g}"
        for seed in self._seeds:
            self._in_turns(swarms, name, point, chosen, Load(seed, seconds, prompts, fill_s=1.0))

    def always(self, swarms: Swarms) -> None:
        """Decoding beside one prompt of 1,024 tokens that is always in flight."""
        chosen = self._arms("A'", "C")
        for mbit, rtt_ms in self._options.points:
            point = point_of(mbit, rtt_ms)
            for seed in self._seeds:
                self._idle(swarms, point, seed)
                load = Load(
                    seed,
                    self._options.seconds * WINDOWS[mbit],
                    fill_s=_ALWAYS_FILL_S,
                    always_tokens=ALWAYS_TOKENS,
                )
                self._in_turns(swarms, f"always {point.shape}", point, chosen, load)

    def streamed(self, swarms: Swarms) -> None:
        """A lone prompt in chunks and as a whole; the links are the product's in both."""
        ways = {"streamed": Chosen(), "whole": Chosen(whole_prompts=True)}
        for name, point in STREAMED_POINTS.items():
            for seed in self._seeds:
                for way in self._missing(f"streamed {name}", list(ways), seed):
                    swarm = swarms.at(point.shape)
                    if self._learnt != point:
                        swarm.one_prompt(point, Chosen(), STREAMED_TOKENS, 99)
                        self._learnt = point
                    ttft_s = swarm.one_prompt(point, ways[way], STREAMED_TOKENS, seed)
                    run = {"ttft_s": round(ttft_s, 4)}
                    self._results.add(f"streamed {name}", way, seed, run)

    def bulk(self, network: TestNetwork) -> None:
        """A link beside a raw stream; all turns of a path together."""
        for shape in (*SHAPES, None):
            name = f"bulk {shape or 'loopback'}"
            missing = [seed for seed in self._seeds if self._missing(name, ["raw", "link"], seed)]
            if not missing:
                continue
            found = measure_bulk(network, shape, _BULK_S, len(missing))
            for way, runs in found.items():
                for seed, run in zip(missing, runs, strict=True):
                    self._results.add(name, way, seed, run)

    # ---- how

    @property
    def _seeds(self) -> range:
        return range(1, self._options.seeds + 1)

    def _arms(self, *some: str) -> dict[str, Chosen]:
        """Those of `some` that are asked for; of all, without any."""
        return {arm: Chosen(arm=arm) for arm in self._options.arms if not some or arm in some}

    def _missing(self, name: str, arms: Sequence[str], seed: int) -> list[str]:
        """Which have no such run yet, in this seed's order; none when the time is up."""
        missing = [arm for arm in arms if not self._results.has(name, arm, seed)]
        if not missing:
            return []
        if time.monotonic() > self._ends:
            self.left_out.append(f"{name}, seed {seed}")
            return []
        self._report.note(f"{name}, seed {seed}: {', '.join(missing)}")
        return missing if seed % 2 else missing[::-1]

    def _idle(self, swarms: Swarms, point: Point, seed: int) -> None:
        """Nothing but decoding, in every arm."""
        load = Load(seed, max(_MIN_IDLE_S, self._options.seconds / 3))
        self._in_turns(swarms, f"idle {point.shape}", point, self._arms(), load)

    def _load(self, point: Point, use: float, seed: int) -> Load | None:
        """So that prompts and decoding together take `use` of a link in arm A; None: what decoding
        takes alone was not measured."""
        idle = self._results.complete(f"idle {point.shape}")
        if not idle:
            return None
        # Always of the same run, so that a point that is gone on with has the same windows.
        decode_use = figures(next(iter(idle.values()))[:1]).link_use
        # In arm A decoding waits for prompts about so much of its time.
        prompts_use = max(_MIN_USE, use - decode_use * max(0.2, 1.0 - 1.2 * use))
        prompt_s = MEAN_PROMPT * ROW_BYTES * _WIRE_OVERHEAD * 8e-6 / point.shape.mbit
        seconds = self._options.seconds * WINDOWS[point.shape.mbit]
        count = max(1, round(seconds * prompts_use / prompt_s))
        # The window is as long as makes whole prompts the use.
        return Load(seed, count * prompt_s / prompts_use, count, fill_s=_FILL_HOPS * prompt_s)

    def _in_turns(
        self,
        swarms: Swarms,
        name: str,
        point: Point,
        chosen: Mapping[str, Chosen],
        load: Load,
    ) -> None:
        """Every arm with one seed; the order turns round with each."""
        for arm in self._missing(name, list(chosen), load.seed):
            swarm = swarms.at(point.shape)
            if self._learnt != point:
                swarm.run(point, Chosen(), _LEARNING)
                self._learnt = point
            run = swarm.run(point, chosen[arm], load)
            self._results.add(name, arm, load.seed, asdict(run))

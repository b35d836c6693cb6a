"""Eight clients generate over six servers while servers are killed, frozen and cut off.

Two servers of each third of the model. Every few seconds something happens to one of them, never to
both of a third; what was killed is started again. At the end both servers of a third are killed and
one comes back. All ids are compared with plain transformers'; ties of the two best logits are
counted. Every process has one thread.
"""

import random
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import Report, arguments, percentile, plain_model, random_prompt
from faults import FROM_OUTSIDE, Fault, inflict, thaw
from processes import ProgramFailedError, ServerProgram
from transformers import StoppingCriteria

from swarm import AutoModelForCausalLM, ClientSettings
from swarm.client.membership import Membership
from swarm.client.status import best_status

FROZEN_S = 7.0
"""How long a frozen server or daemon stays so."""
TIE = 1e-3


class Times(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token came."""

    def __init__(self) -> None:
        self.at = [time.monotonic()]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.at.append(time.monotonic())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@dataclass
class Results:
    """What all clients found."""

    exact: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    worst_gaps_s: list[float] = field(default_factory=list)
    """The longest of each generation."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def generations(self) -> int:
        return self.exact + self.ties + len(self.wrong) + len(self.failed)


class Swarm:
    """Six servers, and who is in what trouble."""

    def __init__(self, model: str | None, spans: list[str]) -> None:
        self._model = model
        self._stack = ExitStack()
        first = self._start(spans[0])
        self.servers = [first]
        for span in [*spans[1:], *spans]:
            self.servers.append(self._start(span, first.address()))
        for server in self.servers:
            server.wait_online(300)
        self._frozen: dict[ServerProgram, float] = {}
        self._starting: set[ServerProgram] = set()

    def _start(self, span: str, *peers: str) -> ServerProgram:
        server = ServerProgram(blocks=span, model=self._model, peers=peers)
        return self._stack.enter_context(server)

    def close(self) -> None:
        for server in self.servers:
            thaw(server)
        self._stack.close()

    @property
    def address(self) -> str:
        return self._sound()[0].address()

    def look(self) -> None:
        """Thaws what was frozen for long enough; notes who is online again."""
        now = time.monotonic()
        for server in [one for one, until in self._frozen.items() if until < now]:
            thaw(server)
            del self._frozen[server]
        for server in list(self._starting):
            if any(event.get("event") == "online" for event in server.events):
                self._starting.discard(server)
            elif server.process.poll() is not None:
                raise ProgramFailedError(f"{server.name} ended: {server.last_words()}")

    def _sound(self) -> list[ServerProgram]:
        return [
            one for one in self.servers if one not in self._frozen | dict.fromkeys(self._starting)
        ]

    @property
    def in_trouble(self) -> bool:
        return bool(self._frozen or self._starting)

    def pairs(self) -> list[tuple[ServerProgram, ServerProgram]]:
        """Both servers of each span where both are sound."""
        sound, half = self._sound(), len(self.servers) // 2
        pairs = zip(self.servers[:half], self.servers[half:], strict=True)
        return [pair for pair in pairs if pair[0] in sound and pair[1] in sound]

    def inflict(self, server: ServerProgram, fault: Fault) -> None:
        inflict(server, fault)
        if fault is Fault.KILL:
            self.replace(server)
        elif fault is not Fault.KILL_DAEMON:
            self._frozen[server] = time.monotonic() + FROZEN_S

    def replace(self, server: ServerProgram) -> None:
        index = self.servers.index(server)
        others = [one for one in self._sound() if one is not server]
        # Any of them may be lost while it joins.
        fresh = self._start(server.blocks or "", *(one.address() for one in others))
        self.servers[index] = fresh
        self._starting.add(fresh)


class Client(threading.Thread):
    """Generates until it is told to stop."""

    def __init__(
        self,
        number: int,
        model: Any,
        work: list[tuple[torch.Tensor, torch.Tensor]],
        results: Results,
        tokens: int,
        stop: threading.Event,
        plain: Any,
    ) -> None:
        super().__init__(name=f"client {number}")
        self._number, self._model, self._work = number, model, work
        self._results, self._tokens, self._stop_asked, self._plain = results, tokens, stop, plain

    def run(self) -> None:
        turn = self._number
        while not self._stop_asked.is_set():
            ids, expected = self._work[turn % len(self._work)]
            turn += 1
            times = Times()
            try:
                found = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self._tokens,
                    min_new_tokens=self._tokens,
                    do_sample=False,
                    stopping_criteria=[times],
                )
            except Exception as error:
                with self._results.lock:
                    self._results.failed.append(f"{type(error).__name__}: {error}")
                continue
            self._note(expected, found[0], times)

    def _note(self, expected: torch.Tensor, found: torch.Tensor, times: Times) -> None:
        results = self._results
        gaps = [b - a for a, b in zip(times.at, times.at[1:], strict=False)]
        different = (expected != found).nonzero()
        tie = False
        if len(different):
            with results.lock, torch.no_grad():
                best = self._plain(expected[None, : int(different[0])]).logits[0, -1].topk(2).values
            tie = bool(best[0] - best[1] < TIE)
        with results.lock:
            results.gaps_s += gaps[1:]
            results.worst_gaps_s.append(max(gaps[1:]))
            if not len(different):
                results.exact += 1
            elif tie:
                results.ties += 1
            else:
                results.wrong.append(f"{self.name} at {int(different[0])}")


def statuses(address: str) -> list[dict[str, Any]]:
    membership = Membership([address], ClientSettings())
    try:
        runtime, swarm = membership.get()

        async def ask() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await best_status(swarm, await swarm.models(), 10.0))[
                "servers"
            ]
            return found

        return runtime.run(ask(), 60.0)
    finally:
        membership.close()


def rest_s(rng: random.Random, period_s: float) -> float:
    return period_s * rng.uniform(0.9, 1.1)


def disturb(
    swarm: Swarm, options: Any, results: Results, report: Report, rng: random.Random
) -> list[str]:
    """One fault after the other; what was done."""
    done: list[str] = []
    ends = time.monotonic() + options.limit_s
    due = time.monotonic() + rest_s(rng, options.period_s)
    while time.monotonic() < ends:
        if len(done) >= options.faults and results.generations >= options.generations:
            break
        time.sleep(0.1)
        swarm.look()
        pairs = swarm.pairs()
        if time.monotonic() < due or not pairs:
            continue
        fault = FROM_OUTSIDE[len(done) % len(FROM_OUTSIDE)]
        victim = rng.choice(rng.choice(pairs))
        report.note(f"{fault} {victim.blocks} ({results.generations} generations)")
        swarm.inflict(victim, fault)
        done.append(str(fault))
        due = time.monotonic() + rest_s(rng, options.period_s)
    return done


def both_replicas(swarm: Swarm, report: Report) -> None:
    """A third of the model is gone for as long as a server takes to start."""
    while not swarm.pairs():
        time.sleep(0.1)
        swarm.look()
    one, other = swarm.pairs()[0]
    report.note(f"both servers of {one.blocks} are killed")
    inflict(one, Fault.KILL)
    inflict(other, Fault.KILL)
    swarm.replace(one)
    swarm.replace(other)


def main() -> None:
    parser = arguments(__doc__ or "", repetitions=1)
    parser.add_argument("--model", help="a model folder; default: the embedded one")
    parser.add_argument("--spans", nargs=3, default=["0:10", "10:20", "20:30"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--faults", type=int, default=35)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--period-s", type=float, default=8.0, help="between two faults")
    parser.add_argument("--limit-s", type=float, default=900.0, help="of the disturbed part")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("churn", as_json=options.json)
    rng = random.Random(5)
    plain = plain_model(Path(options.model) if options.model else None)
    work = []
    for number in range(8):
        ids = random_prompt(32 + 8 * number, number, plain.config.vocab_size)
        with torch.no_grad():
            full = plain.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                do_sample=False,
            )
        work.append((ids, full[0]))
    swarm = Swarm(options.model, options.spans)
    results, stop = Results(), threading.Event()
    models = []
    try:
        for number in range(options.clients):
            # Settings of its own make each client a peer of its own.
            settings = ClientSettings(window=4 + number, repair_timeout_s=120.0)
            models.append(
                AutoModelForCausalLM.from_pretrained(
                    options.model, initial_peers=[swarm.address], settings=settings
                )
            )
        clients = [
            Client(number, model, work, results, options.tokens, stop, plain)
            for number, model in enumerate(models)
        ]
        began = time.monotonic()
        for client in clients:
            client.start()
        try:
            done = disturb(swarm, options, results, report, rng)
            disturbed_s = time.monotonic() - began
            both_replicas(swarm, report)
            # Each client ends what it does, over the servers that came back.
        finally:
            stop.set()
            for client in clients:
                while client.is_alive():
                    client.join(0.2)
                    swarm.look()
        while swarm.in_trouble:
            time.sleep(0.2)
            swarm.look()
        for model in models:
            model.close()
        time.sleep(15)
        left = statuses(swarm.address)
    finally:
        stop.set()
        swarm.close()
    report.table("faults", [{"fault": str(f), "times": done.count(str(f))} for f in FROM_OUTSIDE])
    report.table(
        "generations",
        [
            {
                "seconds": disturbed_s,
                "faults": len(done),
                "generations": results.generations,
                "exact": results.exact,
                "ties": results.ties,
                "wrong": len(results.wrong),
                "failed": len(results.failed),
            }
        ],
    )
    report.table(
        "seconds between two tokens",
        [
            {
                "p50": percentile(results.gaps_s, 0.5),
                "p99": percentile(results.gaps_s, 0.99),
                "max": max(results.gaps_s),
                "p50 of the worst of each generation": percentile(results.worst_gaps_s, 0.5),
                "p99 of the worst": percentile(results.worst_gaps_s, 0.99),
            }
        ],
    )
    keys = ("blocks", "state", "sessions", "streams", "tasks", "open_files", "backup_evictions")
    rows = [
        {
            **{key: row.get(key) for key in keys},
            "cache in use": (row["cache_tokens_total"] or 0) - (row["cache_tokens_free"] or 0),
        }
        for row in left
    ]
    report.table("servers at the end", rows)
    for text in [*results.wrong, *results.failed]:
        report.note(text)
    report.finish()


if __name__ == "__main__":
    main()

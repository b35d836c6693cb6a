"""How long a generation stands still when a server is lost, and what being ready for that costs.

SmolLM2 over two halves with two servers each, float32, greedy, one thread a process. A server of
the route is killed, frozen or asked to leave after some tokens; the stall is the longest pause
between two tokens, less the median one. Its parts: until another way is looked for, until the
session is open there, until the new server holds what the old one held, and the step itself. The
ids of every disturbed generation are compared with those of an undisturbed one.
"""

import contextlib
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from common import (
    Report,
    arguments,
    generate,
    in_turns,
    median,
    paired_ratio,
    random_prompt,
    swarm_model,
)
from faults import Fault, inflict, thaw
from processes import ServerProgram, running_servers
from transformers import StoppingCriteria

from swarm.client.remote_session import RemoteSession
from swarm.sessions.client import ClientSession

SPANS = ("0:15", "15:30")
CONTEXTS = (64, 1024)
BEFORE, AFTER = 12, 12
"""Tokens before and after the fault."""
LEAVE = "leave"


class Clock:
    """When a repair reached which point; noted by the client's own methods."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self._wrap(RemoteSession, "_mend", "noticed")
        self._wrap(RemoteSession, "_reroute", "opened")
        self._wrap_end()

    def _wrap(self, owner: type, name: str, mark: str) -> None:
        method, marks = getattr(owner, name), self.marks

        def wrapped(*arguments: Any) -> Any:
            marks.setdefault(mark, time.monotonic())
            return method(*arguments)

        setattr(owner, name, wrapped)

    def _wrap_end(self) -> None:
        method, marks = ClientSession._after_repair, self.marks

        def wrapped(session: Any, *arguments: Any) -> Any:
            result = method(session, *arguments)
            if session._rerouting is None and "opened" in marks:
                marks.setdefault("held", time.monotonic())
            return result

        setattr(ClientSession, "_after_repair", wrapped)  # noqa: B010


class Event(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token came, and does something after `BEFORE` of them."""

    def __init__(self, action: Callable[[], None]) -> None:
        self.at: list[float] = []
        self._action = action

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.at.append(time.monotonic())
        if len(self.at) == BEFORE:
            self._action()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


class Servers:
    """Two servers of each half."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.all = stack.enter_context(running_servers([*SPANS, *SPANS]))

    def hop(self, model: Any, index: int) -> ServerProgram:
        peer = model.route[index].peer
        return next(one for one in self.all if one.wait_online()["peer"] == peer)

    def make_whole(self) -> None:
        for index, server in enumerate(self.all):
            thaw(server)
            if server.process.poll() is not None:
                other = next(one for one in self.all if one.process.poll() is None)
                fresh = ServerProgram(blocks=server.blocks, peers=[other.address()])
                self.all[index] = self._stack.enter_context(fresh)
        for server in self.all:
            server.wait_online()


def disturbed(
    model: Any, servers: Servers, clock: Clock, prompt: torch.Tensor, fault: str, expected: Any
) -> dict[str, float]:
    began = 0.0

    def action() -> None:
        nonlocal began
        clock.marks.clear()
        victim = servers.hop(model, 1)
        began = time.monotonic()
        if fault == LEAVE:
            victim.process.send_signal(signal.SIGTERM)
        else:
            inflict(victim, Fault(fault))

    event = Event(action)
    tokens = BEFORE + AFTER if fault != LEAVE else 4 * (BEFORE + AFTER)
    found = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        stopping_criteria=[event],
    )
    assert torch.equal(found, expected[:, : found.shape[1]]), "other ids than undisturbed"
    gaps = [b - a for a, b in zip(event.at, event.at[1:], strict=False)]
    marks = clock.marks
    answered = min((t for t in event.at if t > marks["held"]), default=event.at[-1])
    return {
        "stall": max(gaps) - median(gaps),
        "noticed": marks["noticed"] - began,
        "opened": marks["opened"] - marks["noticed"],
        "held": marks["held"] - marks["opened"],
        "step": answered - marks["held"],
    }


def stalls(report: Report, repetitions: int) -> None:
    with ExitStack() as stack:
        servers, clock = Servers(stack), Clock()
        model = stack.enter_context(contextlib.closing(_model(servers)))
        prompts = {c: random_prompt(c, 0, model.config.vocab_size) for c in CONTEXTS}
        most = 4 * (BEFORE + AFTER)
        expected = {
            c: model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=most,
                min_new_tokens=most,
                do_sample=False,
            )
            for c, prompt in prompts.items()
        }
        rows = []
        for fault in (str(Fault.KILL), str(Fault.FREEZE), LEAVE):
            for context, prompt in prompts.items():
                found = []
                for turn in range(repetitions):
                    report.note(f"{fault}, context {context}, turn {turn + 1}")
                    found.append(disturbed(model, servers, clock, prompt, fault, expected[context]))
                    servers.make_whole()
                row: dict[str, Any] = {"fault": fault, "context": str(context)}
                row |= {f"{key} s": median([one[key] for one in found]) for key in found[0]}
                row["worst stall s"] = max(one["stall"] for one in found)
                rows.append(row)
        report.table("stalls", rows)


def _model(servers: Servers) -> Any:
    return swarm_model(None, servers.all[0].address())


def readiness(report: Report, repetitions: int) -> None:
    """The same generations over servers that keep backups and over servers that do not."""
    with ExitStack() as stack:
        models = {}
        for name, options in (("without", ["--backup-memory", "0"]), ("with", [])):
            servers = stack.enter_context(running_servers(SPANS, options=options))
            model = swarm_model(None, servers[0].address())
            models[name] = stack.enter_context(contextlib.closing(model))
        prompt = random_prompt(256, 1, models["with"].config.vocab_size)
        works = {name: partial(generate, model, prompt, 64) for name, model in models.items()}
        found = in_turns(works, repetitions, report.note)
        ms = {name: [one.result.ms_per_token for one in found[name]] for name in models}
        report.table(
            "what being ready costs",
            [
                {
                    "with backups ms/token": median(ms["with"]),
                    "without": median(ms["without"]),
                    "to without": paired_ratio(ms["with"], ms["without"]),
                }
            ],
        )


def main() -> None:
    parser = arguments(__doc__ or "", repetitions=3)
    parser.add_argument("--only", choices=["stalls", "readiness"], help="one part of it")
    options = parser.parse_args()
    report = Report("stall", as_json=options.json)
    if options.only != "readiness":
        stalls(report, options.repetitions)
    if options.only != "stalls":
        readiness(report, options.repetitions)
    report.finish()


if __name__ == "__main__":
    main()

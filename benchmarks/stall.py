"""How long a generation stands still when a server is lost, and what being ready for that costs.

SmolLM2 over two halves with two servers each, float32, greedy, one thread a process. A server of
the second half is killed, frozen, cut off silently (its daemon is frozen) or asked to leave in the
middle of a generation. The stall is the longest pause between two tokens, less the median one. Its
parts: until another way is looked for, until the session is open there, until all servers have
said what they hold, the replay, and the step itself. The replay is compared with the tokens so far
divided by the new server's own prompt speed, which is what its passes of an undisturbed prompt of
that length took. Afterwards, while the fault lasts, the same client's next generation and that of a
fresh client are timed to their first token. The ids of every disturbed generation are compared with
those of an undisturbed one.

Everything takes some seven minutes on two cores; the tables alone go to the standard output:

    (echo '$ benchmarks/stall.py'; python benchmarks/stall.py) > docs/measurements/stall.txt
"""

import contextlib
import signal
import threading
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
    never_stopping,
    paired_ratio,
    random_prompt,
    swarm_model,
)
from faults import Fault, inflict, thaw
from processes import ServerProgram, running_servers
from repair_clock import RepairClock
from transformers import StoppingCriteria

from swarm import AutoModelForCausalLM, ClientSettings

SPANS = ("0:15", "15:30")
CONTEXTS = (64, 1024)
BEFORE, AFTER = 12, 12
"""Tokens before and after the fault."""
SESSIONS = 8
LEAVING_TOKENS = 60
FAULTS = {"kill": Fault.KILL, "freeze": Fault.FREEZE, "cut": Fault.FREEZE_DAEMON}
BARS_S = {"kill": 1.5, "freeze": 5.0, "cut": 5.0}
"""Most of a stall without its replay."""
LEAVING_BAR_S = 1.0
"""Most between two tokens while a server leaves."""
PARTS = [*FAULTS, "leave", "readiness"]


class Event(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token came, and does something after `BEFORE` of them."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.at: list[float] = []
        self._action = action

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.at.append(time.monotonic())
        if len(self.at) == BEFORE:
            self._action()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.at, self.at[1:], strict=False)]


class Servers:
    """Two servers of each half."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.all = stack.enter_context(running_servers([*SPANS, *SPANS]))

    def hop(self, model: Any, index: int) -> ServerProgram:
        peer = model.route[index].peer
        return next(one for one in self.all if one.wait_online()["peer"] == peer)

    def living(self, but: ServerProgram | None = None) -> ServerProgram:
        return next(one for one in self.all if one is not but and one.process.poll() is None)

    def make_whole(self) -> None:
        for index, server in enumerate(self.all):
            thaw(server)
            if server.process.poll() is not None:
                fresh = ServerProgram(blocks=server.blocks, peers=[self.living().address()])
                self.all[index] = self._stack.enter_context(fresh)
        for server in self.all:
            server.wait_online()


def ids_of(model: Any, prompt: torch.Tensor, tokens: int, event: Event | None = None) -> Any:
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        stopping_criteria=[event or Event(lambda: None)],
    )


def fresh_client(server: ServerProgram) -> Any:
    """A client that is a peer of its own, and has never seen these servers."""
    settings = ClientSettings(directory_refresh_s=9.0)
    model = AutoModelForCausalLM.from_pretrained(
        initial_peers=[server.address()], dtype=torch.float32, settings=settings
    )
    return contextlib.closing(never_stopping(model))


def first_token_s(model: Any) -> float:
    return generate(model, random_prompt(16, 9, model.config.vocab_size), 2).ttft_s


def disturbed(
    model: Any,
    servers: Servers,
    clock: RepairClock,
    prompt: torch.Tensor,
    fault: str,
    expected: Any,
) -> dict[str, float]:
    began, victims = 0.0, []

    def action() -> None:
        nonlocal began
        clock.marks.clear()
        victims.append(servers.hop(model, 1))
        began = time.monotonic()
        inflict(victims[0], FAULTS[fault])

    event = Event(action)
    found = ids_of(model, prompt, BEFORE + AFTER, event)
    assert torch.equal(found, expected), "other ids than undisturbed"
    usual_s = median(event.gaps)
    marks = clock.marks
    answered = min((t for t in event.at if t > marks["replayed"]), default=event.at[-1])
    parts = {
        "stall": max(event.gaps) - usual_s,
        "noticed": marks["noticed"] - began,
        "opened": marks["opened"] - marks["noticed"],
        "fenced": marks["fenced"] - marks["opened"],
        "replay": marks["replayed"] - marks["fenced"],
        "step": answered - marks["replayed"],
        "next, same client": first_token_s(model),
    }
    with fresh_client(servers.living(victims[0])) as fresh:
        parts["next, fresh client"] = first_token_s(fresh)
    return parts


def stalls(report: Report, faults: list[str], contexts: list[int], repetitions: int) -> None:
    with ExitStack() as stack:
        servers, clock = Servers(stack), RepairClock()
        model = stack.enter_context(contextlib.closing(swarm_model(None, servers.all[0].address())))
        model.generation_config.do_sample = False
        prompts = {c: random_prompt(c, 0, model.config.vocab_size) for c in contexts}
        expected, prompt_s = {}, {}
        for context, prompt in prompts.items():
            ids_of(model, prompt, 2)
            clock.compute_s = 0.0
            ids_of(model, prompt, 1)
            prompt_s[context] = clock.compute_s
            expected[context] = ids_of(model, prompt, BEFORE + AFTER)
        with fresh_client(servers.all[0]) as fresh:
            calm = {"same client": first_token_s(model), "fresh client": first_token_s(fresh)}
        report.table("seconds to the first token, undisturbed", [calm])
        rows = []
        for fault in faults:
            for context, prompt in prompts.items():
                found = []
                for turn in range(repetitions):
                    report.note(f"{fault}, context {context}, turn {turn + 1}")
                    found.append(disturbed(model, servers, clock, prompt, fault, expected[context]))
                    servers.make_whole()
                worst = max(one["stall"] - one["replay"] for one in found)
                replay_s = median([one["replay"] for one in found])
                row: dict[str, Any] = {"fault": fault, "context": str(context)}
                row |= {key: median([one[key] for one in found]) for key in found[0]}
                row |= {
                    "worst stall less replay": worst,
                    "bar": BARS_S[fault],
                    "replay to prompt": replay_s * context / (context + BEFORE) / prompt_s[context],
                }
                rows.append(row)
        names = ["fault", "context", "stall", "noticed", "opened", "fenced", "replay", "step"]
        report.table(
            "seconds without a token, medians", [{n: row[n] for n in names} for row in rows]
        )
        report.table("and", [{n: v for n, v in row.items() if n not in names[2:]} for row in rows])


def leaving(report: Report, repetitions: int) -> None:
    """A server is asked to leave while eight sessions run."""
    with ExitStack() as stack:
        servers = Servers(stack)
        model = stack.enter_context(contextlib.closing(swarm_model(None, servers.all[0].address())))
        model.generation_config.do_sample = False
        prompts = [random_prompt(64 + n, n, model.config.vocab_size) for n in range(SESSIONS)]
        expected = [ids_of(model, prompt, LEAVING_TOKENS) for prompt in prompts]
        rows = []
        for turn in range(repetitions):
            report.note(f"leave, turn {turn + 1}")
            rows.append(_left(model, servers, prompts, expected))
            servers.make_whole()
        report.table("a server leaves while eight sessions run", rows)


def _left(model: Any, servers: Servers, prompts: list[Any], expected: list[Any]) -> dict[str, Any]:
    all_run = threading.Barrier(SESSIONS + 1)
    events = [Event(all_run.wait) for _ in prompts]
    found: dict[int, torch.Tensor] = {}

    def work(index: int) -> None:
        found[index] = ids_of(model, prompts[index], LEAVING_TOKENS, events[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(SESSIONS)]
    for thread in threads:
        thread.start()
    all_run.wait(120)
    time.sleep(1.0)
    victim = servers.hop(model, 1)
    asked = time.monotonic()
    victim.process.send_signal(signal.SIGTERM)
    victim.process.wait(60)
    took_s = time.monotonic() - asked
    for thread in threads:
        thread.join(120)
    gaps = [
        b - a
        for event in events
        for a, b in zip(event.at[BEFORE:], event.at[BEFORE + 1 :], strict=False)
    ]
    exact = sum(torch.equal(found[n], ids) for n, ids in enumerate(expected) if n in found)
    return {
        "gone after s": took_s,
        "longest gap s": max(gaps),
        "bar": LEAVING_BAR_S,
        "median gap s": median(gaps),
        "failed": SESSIONS - len(found),
        "exact": exact,
        "exit code": victim.process.returncode,
    }


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
                    "other cores": max(one.other_cores for one in found["with"]),
                }
            ],
        )


def main() -> None:
    parser = arguments(__doc__ or "", repetitions=3)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts of it")
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    options = parser.parse_args()
    report = Report("stall", as_json=options.json)
    faults = [fault for fault in FAULTS if fault in options.only]
    if faults:
        stalls(report, faults, options.contexts, options.repetitions)
    if "leave" in options.only:
        leaving(report, options.repetitions)
    if "readiness" in options.only:
        readiness(report, options.repetitions)
    report.finish()


if __name__ == "__main__":
    main()

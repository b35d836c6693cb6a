"""The simulator against real servers: what it predicts for swarms that it was not calibrated on.

    python benchmarks/reality.py --parameters FILE --results FILE

Calibration starts one server alone, with one session, for a model of 2 and of 8 blocks of the same
shape (`two_servers.py`'s llama-small), and times the client's own part of a token in this process.
From these: seconds of a block and of a block's prompt token, and what a hop costs beside. They are
written to the file of `--parameters`; if it is there already, it is taken as it is. Then for each
of three swarms of two, three and four real servers, and 1, 3 and 6 clients that begin together,
each a process with one thread on this machine's cores: first what the simulator says for the same
scenario, made from that file alone, then what is measured. What further rows add to a pass cannot
be seen with one session; it is `ROW_SHARE`, as for every router. Each of the nine cells is kept in
the file of `--results` (JSON lines) as soon as it is measured, and is not measured again.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import Report, arguments, generate, median, random_prompt, swarm_model
from processes import Program, running_servers
from two_servers import VOCABULARY

from swarm.routing.inventory import HostedModel, Inventory, Machine
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import HopOverhead, ServerSpeed
from swarm.routing.router import ROW_SHARE
from swarm.simulator.scenario import HostCores, Scenario, Timing, Traffic
from swarm.simulator.simulation import simulate
from swarm.spans import PeerId, Span

BLOCKS, HIDDEN = 8, 1024
SWARMS = (("0:4", "4:8"), ("0:3", "3:6", "6:8"), ("0:2", "2:4", "4:6", "6:8"))
SESSIONS = (1, 3, 6)
PROMPT_TOKENS, LONG_PROMPT, NEW_TOKENS = 64, 256, 32
_TURNS = 5
Times = tuple[float, float]


@dataclass(frozen=True)
class Parameters:
    """All that the simulator is told; seconds."""

    block_s: float
    prompt_token_s: float
    """Of one block."""
    hop_s: float
    """Of a decoded token beside its blocks: pass, codecs, frames, daemons, there and back."""
    prompt_hop_s: float
    """Of a prompt beside its tokens and the opening of the session."""
    client_s: float
    cores: float


def write_model(folder: Path, blocks: int) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_hidden_layers=blocks,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
    )
    torch.manual_seed(1234)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def alone(folder: str, blocks: int) -> tuple[float, float, float]:
    """One server, one session: seconds of a token, and to the first one of both prompts."""
    with running_servers([f"0:{blocks}"], model=folder) as servers:
        model = swarm_model(folder, servers[0].address())
        try:
            generate(model, random_prompt(PROMPT_TOKENS, 0, VOCABULARY), NEW_TOKENS)
            runs = [
                generate(model, random_prompt(PROMPT_TOKENS, turn, VOCABULARY), NEW_TOKENS)
                for turn in range(_TURNS)
            ]
            long = [
                generate(model, random_prompt(LONG_PROMPT, turn, VOCABULARY), 2)
                for turn in range(_TURNS)
            ]
        finally:
            model.close()
    return (
        median([run.ms_per_token / 1e3 for run in runs]),
        median([run.ttft_s for run in runs]),
        median([run.ttft_s for run in long]),
    )


def client_s(folder: str) -> float:
    """Norm and head of one row, by a client whose only server is idle."""
    with running_servers(["0:2"], model=folder) as servers:
        model = swarm_model(folder, servers[0].address())
        try:
            import torch

            row = torch.randn(1, 1, HIDDEN)
            times = []
            with torch.inference_mode():
                for _ in range(50):
                    began = time.perf_counter()
                    model.lm_head(model.model.norm(row)).argmax()
                    times.append(time.perf_counter() - began)
            return median(times)
        finally:
            model.close()


def calibrate() -> Parameters:
    with tempfile.TemporaryDirectory(prefix="llama-small-") as small:
        folder = write_model(Path(small), 2)
        head_s = client_s(folder)
        two = alone(folder, 2)
    with tempfile.TemporaryDirectory(prefix="llama-small-") as whole:
        eight = alone(write_model(Path(whole), BLOCKS), BLOCKS)
    block_s = (eight[0] - two[0]) / (BLOCKS - 2)
    token_s = ((eight[2] - eight[1]) - (two[2] - two[1])) / (
        (LONG_PROMPT - PROMPT_TOKENS) * (BLOCKS - 2)
    )
    fixed = eight[1] - head_s - PROMPT_TOKENS * BLOCKS * token_s
    return Parameters(
        block_s=block_s,
        prompt_token_s=token_s,
        hop_s=max(0.0, eight[0] - head_s - BLOCKS * block_s),
        prompt_hop_s=max(0.0, fixed),
        client_s=head_s,
        cores=float(os.cpu_count() or 1),
    )


def predicted(known: Parameters, spans: tuple[str, ...], sessions: int) -> Times:
    """Mean time to first token and per output token."""
    machines, layout = [], {}
    for number, text in enumerate(spans):
        peer = PeerId(f"server-{number}")
        start, end = map(int, text.split(":"))
        speed = ServerSpeed(
            0.0,
            known.block_s,
            extra_row_s=ROW_SHARE * known.block_s,
            prefill_token_s=known.prompt_token_s,
        )
        machines.append(Machine(peer, 1e12, speed))
        layout[peer] = Span(start, end)
    clients = tuple(PeerId(f"client-{number}") for number in range(sessions))
    peers = [*layout, *clients]
    network = MatrixNetwork(peers, np.zeros((len(peers), len(peers))))
    model = HostedModel("llama-small", BLOCKS, 1.0, 1.0, 4.0 * HIDDEN)
    overhead = HopOverhead(known.hop_s, known.prompt_hop_s / len(spans))
    inventory = Inventory(model, tuple(machines), clients, network, overhead=overhead)
    traffic = Traffic(1.0, sessions, PROMPT_TOKENS, NEW_TOKENS, at_once=True)
    scenario = Scenario(
        inventory,
        Layout(BLOCKS, layout),
        traffic,
        timing=Timing(announce_s=1.0, view_age_s=1.0),
        hosts=(HostCores(known.cores, tuple(peers)),),
        client_token_s=known.client_s,
    )
    found = simulate(scenario, "two-choices").summary()
    return found["ttft_s"]["mean"], found["tpot_s"]["mean"]


class Clients:
    """Real clients of one swarm, each a process; those that are not asked are idle."""

    def __init__(self, stack: ExitStack, folder: str, address: str, count: int) -> None:
        script = str(Path(__file__).with_name("client_process.py"))
        self._programs = []
        for session in range(count):
            command = [sys.executable, script, "--model", folder, "--peers", address]
            command += ["--session", str(session), "--prompt-tokens", str(PROMPT_TOKENS)]
            command += ["--new-tokens", str(NEW_TOKENS)]
            self._programs.append(stack.enter_context(Program(f"client {session}", command)))
        for program in self._programs:
            program.wait_for("ready", timeout_s=120)

    def measured(self, sessions: int) -> tuple[float, float]:
        """Mean time to first token and per output token of so many that begin together, after one
        generation that does not count."""
        programs = self._programs[:sessions]
        first_s: list[float] = []
        token_s: list[float] = []
        for turn in range(1 + _TURNS):
            for program in programs:
                program.send_line("go")
            done = [program.wait_for("done", timeout_s=120) for program in programs]
            if turn:
                first_s += [float(each["ttft_s"]) for each in done]
                token_s += [float(np.mean(each["gaps_s"])) for each in done]
        return float(np.mean(first_s)), float(np.mean(token_s))


def cell(spans: tuple[str, ...], sessions: int, said: Times, was: Times) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"swarm": " ".join(spans), "sessions": sessions}
    for name, one, other in zip(("first", "token"), said, was, strict=True):
        row[f"{name} predicted ms"] = 1e3 * one
        row[f"{name} measured ms"] = 1e3 * other
        row[f"{name} error %"] = 100 * (one / other - 1)
    return row


def compare(
    known: Parameters, spans: tuple[str, ...], sessions: list[int], results: Path
) -> list[dict[str, Any]]:
    """The cells of one swarm, each predicted before it is measured."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llama-small-") as path, ExitStack() as stack:
        folder = write_model(Path(path), BLOCKS)
        servers = stack.enter_context(running_servers(list(spans), model=folder))
        clients = Clients(stack, folder, servers[0].address(), max(sessions))
        for count in sessions:
            said = predicted(known, spans, count)
            rows.append(cell(spans, count, said, clients.measured(count)))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    return rows


def main() -> None:
    options = arguments(__doc__, repetitions=1)
    options.add_argument("--parameters", type=Path, required=True)
    options.add_argument("--results", type=Path, required=True)
    options.add_argument("--cells", type=int, default=9, help="stop after so many new ones")
    chosen = options.parse_args()
    report = Report("the simulator against reality", as_json=chosen.json)
    if not chosen.parameters.exists():
        chosen.parameters.write_text(json.dumps(asdict(calibrate())))
    known = Parameters(**json.loads(chosen.parameters.read_text()))
    report.table("calibrated, seconds", [asdict(known)])
    rows = []
    if chosen.results.exists():
        rows = [json.loads(line) for line in chosen.results.read_text().splitlines()]
    there = {(row["swarm"], row["sessions"]) for row in rows}
    left = chosen.cells
    for spans in SWARMS:
        wanted = [count for count in SESSIONS if (" ".join(spans), count) not in there][:left]
        if wanted:
            rows += compare(known, spans, wanted, chosen.results)
            left -= len(wanted)
    report.table("cells", rows)
    errors = [abs(row[f"{name} error %"]) for row in rows for name in ("first", "token")]
    if errors:
        summary = {"cells": len(rows), "median": median(errors), "worst": max(errors)}
        report.table("errors, %", [summary])
    report.finish()


if __name__ == "__main__":
    main()

"""The simulator against real servers: what it predicts for swarms that it was not calibrated on.

    python benchmarks/reality.py --parameters FILE --results FILE

Calibration starts one server alone, with one session, for a model of 2 and of 8 blocks of the same
shape (`two_servers.py`'s llama-small). First short and longer prompts with one token out, so that
nobody decodes and each prompt is one pass; then decoding. From the times come the seconds of a
block, of a block's pass over a prompt and of each of its tokens, and what is left beside; from this
process's own processor time, how much of that is the client's, for a request and for a token. The
rest is the hop's. They are written to the file of `--parameters`; if it is there already, it is
taken as it is. Then for each of three swarms of two, three and four real servers, and 1, 3 and 6
clients that begin together, each a process with one thread on this machine's cores: first what the
simulator says for the same scenario, made from that file alone, then what is measured. Both begin
together `_TURNS` times, after one time that does not count. What further rows add to a pass cannot
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
from common import Generation, Report, arguments, generate, median, random_prompt, swarm_model
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
PROMPT_TOKENS, NEW_TOKENS = 64, 32
ALONE_PROMPTS = (32, 96)
"""The longer one is a single pass of an idle server, which takes half a second at most."""
_TURNS, _TURNS_ALONE = 5, 9
Times = tuple[float, float]


@dataclass(frozen=True)
class Parameters:
    """All that the simulator is told; times in seconds."""

    block_s: float
    """Of a pass over one decode row."""
    prompt_token_s: float
    """Of one block."""
    hop_s: float
    """Of a step at a hop beside its blocks and the client: pass, codecs, frames, daemons."""
    prompt_hop_s: float
    """Of a session at a hop beside its steps: opening it."""
    client_s: float
    """Of the client, for a token."""
    cores: float
    prompt_block_s: float = 0.0
    """Of one block in a pass over a prompt, beside its tokens."""
    request_s: float = 0.0
    """Of the client, for a request beside its tokens."""


@dataclass(frozen=True)
class Alone:
    """One server, one session; medians, seconds."""

    first_s: dict[int, float]
    """To the first token, by tokens of the prompt."""
    first_client_s: float
    """Processor time of the client until then, for the shortest prompt."""
    token_s: float
    token_client_s: float
    """Processor time of the client for a token."""


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


def timed(model: Any, tokens: int, turn: int, new_tokens: int) -> tuple[Generation, float]:
    """One generation, and the processor time of this process, which is the client's."""
    began_s = time.process_time()
    done = generate(model, random_prompt(tokens, turn, VOCABULARY), new_tokens)
    return done, time.process_time() - began_s


def alone(blocks: int) -> Alone:
    """Prompts before any decoding: later the server keeps its passes short for who decodes."""
    with ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory(prefix="llama-small-"))
        folder = write_model(Path(path), blocks)
        (server,) = stack.enter_context(running_servers([f"0:{blocks}"], model=folder))
        model = swarm_model(folder, server.address())
        stack.callback(model.close)
        for tokens in ALONE_PROMPTS:
            timed(model, tokens, 0, 1)
        first = {
            tokens: [timed(model, tokens, turn, 1) for turn in range(_TURNS_ALONE)]
            for tokens in ALONE_PROMPTS
        }
        short = ALONE_PROMPTS[0]
        timed(model, short, 0, NEW_TOKENS)
        decoding = [timed(model, short, turn, NEW_TOKENS) for turn in range(_TURNS_ALONE)]
    first_client_s = median([client for _, client in first[short]])
    return Alone(
        {tokens: median([done.ttft_s for done, _ in runs]) for tokens, runs in first.items()},
        first_client_s,
        median([done.ms_per_token / 1e3 for done, _ in decoding]),
        (median([client for _, client in decoding]) - first_client_s) / (NEW_TOKENS - 1),
    )


def calibrate() -> Parameters:
    """From what two servers take alone; nothing is less than zero."""
    return solved(2, alone(2), BLOCKS, alone(BLOCKS), float(os.cpu_count() or 1))


def solved(few: int, small: Alone, many: int, large: Alone, cores: float) -> Parameters:
    """A token of `n` blocks takes `client + hop + n * block`, the first one of a prompt of `t`
    tokens `request + opening + hop + n * (prompt_block + t * prompt_token) + client`."""
    short, long = ALONE_PROMPTS
    per_block = {
        tokens: max(0.0, large.first_s[tokens] - small.first_s[tokens]) / (many - few)
        for tokens in ALONE_PROMPTS
    }
    block_s = max(0.0, large.token_s - small.token_s) / (many - few)
    prompt_token_s = max(0.0, per_block[long] - per_block[short]) / (long - short)
    prompt_block_s = max(0.0, per_block[short] - short * prompt_token_s)
    beside_s = max(0.0, small.token_s - few * block_s)
    client_s = min(beside_s, (small.token_client_s + large.token_client_s) / 2)
    hop_s = beside_s - client_s
    first_s = small.first_s[short] - few * (prompt_block_s + short * prompt_token_s)
    opening_s = max(0.0, first_s - beside_s)
    first_client_s = (small.first_client_s + large.first_client_s) / 2
    request_s = min(opening_s, max(0.0, first_client_s - client_s))
    return Parameters(
        block_s=block_s,
        prompt_token_s=prompt_token_s,
        hop_s=hop_s,
        prompt_hop_s=opening_s - request_s,
        client_s=client_s,
        cores=cores,
        prompt_block_s=prompt_block_s,
        request_s=request_s,
    )


def predicted(known: Parameters, spans: tuple[str, ...], sessions: int) -> Times:
    """Mean time to first token and per output token, of all turns but the first."""
    machines, layout = [], {}
    for number, text in enumerate(spans):
        peer = PeerId(f"server-{number}")
        start, end = map(int, text.split(":"))
        speed = ServerSpeed(
            0.0,
            known.block_s,
            extra_row_s=ROW_SHARE * known.block_s,
            prefill_block_s=known.prompt_block_s,
            prefill_token_s=known.prompt_token_s,
        )
        machines.append(Machine(peer, 1e12, speed))
        layout[peer] = Span(start, end)
    clients = tuple(PeerId(f"client-{number}") for number in range(sessions))
    peers = [*layout, *clients]
    network = MatrixNetwork(peers, np.zeros((len(peers), len(peers))))
    model = HostedModel("llama-small", BLOCKS, 1.0, 1.0, 4.0 * HIDDEN)
    overhead = HopOverhead(known.hop_s, known.hop_s)
    inventory = Inventory(model, tuple(machines), clients, network, overhead=overhead)
    requests = sessions * (1 + _TURNS)
    traffic = Traffic(1.0, requests, PROMPT_TOKENS, NEW_TOKENS, at_once=True, together=True)
    scenario = Scenario(
        inventory,
        Layout(BLOCKS, layout),
        traffic,
        timing=Timing(announce_s=1.0, view_age_s=1.0),
        hosts=(HostCores(known.cores, tuple(peers)),),
        client_request_s=known.request_s,
        hop_open_s=known.prompt_hop_s,
        client_token_s=known.client_s,
    )
    counted = simulate(scenario, "two-choices").requests[sessions:]
    return (
        float(np.mean([one.ttft_s for one in counted])),
        float(np.mean([one.tpot_s for one in counted])),
    )


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

"""The swarm of the interference benchmark: three stages and two clients, each on a host of its own.

One client decodes all the time, the other sends prompts, so that nothing but the stages and the
links between them is shared. A swarm is of one shape of the network: a connection that has seen a
shorter way, or a wider one, takes the first packets of another for lost, and is slow for long.
Arms, compute policies and paces are switched between runs, while nothing is on its way.
"""

import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from interference_arms import Chosen
from interference_control import Pace, choose_line, paced
from interference_network import USUAL_TCP, Namespaces, Shape, TestNetwork, make_network
from processes import Program
from transformers import LlamaConfig, LlamaForCausalLM

STAGES = 3
DECODER, PROMPTER = STAGES, STAGES + 1
"""Their hosts."""
HIDDEN_SIZE = 1024
ROW_BYTES = 2 * HIDDEN_SIZE
"""Of one token between two stages, in bfloat16."""
MIN_PROMPT, MAX_PROMPT = 512, 2048
MEAN_PROMPT = (MIN_PROMPT + MAX_PROMPT) / 2
_HERE = Path(__file__).parent
_REST_S = 0.5
"""Between two runs."""
_WARM_S = 1.5
"""Of decoding before the window begins."""


@dataclass(frozen=True)
class Point:
    """Where a run is made."""

    shape: Shape
    pace: Pace | None
    sessions: int


@dataclass(frozen=True)
class Load:
    """Prompts of one run: the same in every arm."""

    seed: int
    seconds: float
    """Of the window."""
    prompts: int = 0
    """That arrive in the window."""
    fill_s: float = 0.0
    """Prompts come for so long before the window begins, so that it sees the links as loaded as
    they will be."""
    always_tokens: int | None = None
    """Instead: one prompt of so many tokens is in flight all the time."""

    def arrivals(self) -> list[tuple[float, int]]:
        """`(seconds, tokens)`, from the window's beginning: a Poisson process, given how many
        arrive, so that short windows are loaded as they should be. Lengths are uniform, one from
        each of as many equal parts of the range. Before the window comes what comes at its end, as
        if it went round: so what began before it is as much as what is not over at its end."""
        draw = random.Random(self.seed)
        times = sorted(draw.uniform(0.0, self.seconds) for _ in range(self.prompts))
        spread = (MAX_PROMPT - MIN_PROMPT) / max(1, self.prompts)
        tokens = [MIN_PROMPT + int(spread * (part + draw.random())) for part in range(self.prompts)]
        draw.shuffle(tokens)
        window = list(zip(times, tokens, strict=True))
        rounds = range(-math.ceil(self.fill_s / self.seconds), 0)
        before = [(at + turn * self.seconds, each) for turn in rounds for at, each in window]
        return [arrival for arrival in before if arrival[0] >= -self.fill_s] + window


@dataclass(frozen=True)
class Run:
    """What one run of one arm has shown."""

    gaps_ms: tuple[tuple[float, ...], ...]
    """Of each decoding session, from token to token, those that began in the window."""
    prompts: tuple[dict[str, float], ...]
    """`tokens` and `ttft_s` of those that arrived in the window."""
    link_use: float
    """Of the rate of the first two stages' uploads, on average."""
    stage_cores: tuple[float, ...]
    """What each stage kept busy, its daemon included."""
    all_cores: float
    """All processes of the benchmark together."""
    links: tuple[dict[str, float], ...]
    """Of each stage to the next, what the sender believed at the end of the window."""


def build_model(folder: Path) -> None:
    """A Llama of hidden size 1,024 with one small block for each stage."""
    torch.manual_seed(1234)
    config = LlamaConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2048,
        num_attention_heads=16,
        num_key_value_heads=4,
        num_hidden_layers=STAGES,
        vocab_size=512,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


class InterferenceSwarm:
    """Everything that it started is gone after `close`."""

    def __init__(
        self,
        shape: Shape,
        *,
        loopback: bool = False,
        tcp: str = USUAL_TCP,
        on_network: Callable[[TestNetwork], None] = lambda network: None,
    ) -> None:
        """`loopback`: no namespaces, also where they could be made. `on_network`: is shown the
        network before anything runs on it."""
        self.shape = shape
        self._stack = ExitStack()
        try:
            folder = Path(
                self._stack.enter_context(tempfile.TemporaryDirectory(prefix="interference-"))
            )
            build_model(folder / "model")
            self.network = make_network(STAGES + 2, loopback=loopback, tcp=tcp)
            self._stack.callback(self.network.close)
            on_network(self.network)
            self.network.shape(shape)
            self._relay = ["--relay"] if self.network.relays else []
            self._start(folder)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        for program in self._programs:
            program.ask_to_stop()
        self._stack.close()

    def _start(self, folder: Path) -> None:
        model = str(folder / "model")
        self._programs: list[Program] = []
        self._peers: list[str] = []
        """Of the stages."""
        peers: list[str] = []
        for stage in range(STAGES):
            server = self._program(
                f"stage {stage + 1}",
                stage,
                "interference_server.py",
                *(model, "--blocks", f"{stage}:{stage + 1}", "--threads", "1", "--json-logs"),
                *("--listen", f"/ip4/{self.network.address(stage)}/tcp/0"),
                *("--identity", str(folder / f"identity{stage}"), "--cache-tokens", "98304"),
                *peers,
            )
            address = str(server.wait_for("listening")["address"])
            peers = peers or ["--peers", address]
            self._peers.append(address.rpartition("/")[2])
        for server in self._programs:
            server.wait_for("online")
        for host, name in ((DECODER, "decoding client"), (PROMPTER, "prompting client")):
            self._program(name, host, "interference_client.py", "--model", model, *peers)
        for program in self._programs[STAGES:]:
            program.wait_for("ready")
        self._processes = [psutil.Process(program.pid) for program in self._programs]
        if isinstance(self.network, Namespaces):
            self._processes.append(psutil.Process(self.network.hub_pid))

    def _program(self, name: str, host: int, script: str, *arguments: str) -> Program:
        command = [sys.executable, str(_HERE / script), *self._relay, *arguments]
        program = self._stack.enter_context(Program(name, self.network.command(host, command)))
        self._programs.append(program)
        return program

    def choose(self, point: Point, chosen: Chosen) -> None:
        """From now on; nothing is on its way."""
        assert point.shape == self.shape
        line = choose_line(
            paced(chosen, point.pace),
            mbit=point.shape.mbit,
            delay_s=point.shape.rtt_ms / 2000,
        )
        for program in self._programs:
            program.send_line(line)
        for program in self._programs:
            program.wait_for("chosen", 10)

    def run(self, point: Point, chosen: Chosen, load: Load) -> Run:
        """Decodes beside the prompts of `load`; returns when all prompts are answered."""
        self.choose(point, chosen)
        decoder, prompter = self._programs[DECODER], self._programs[PROMPTER]
        self._tell(decoder, "decode", sessions=point.sessions, seed=load.seed)
        self._check(decoder.wait_for("decoding", 60))
        time.sleep(_WARM_S)
        began = time.monotonic() + load.fill_s
        if load.always_tokens is not None:
            tokens = load.always_tokens
            seconds = load.fill_s + load.seconds
            self._tell(prompter, "always", tokens=tokens, seconds=seconds, seed=load.seed)
        else:
            arrivals = load.arrivals()
            self._tell(prompter, "prompts", arrivals=arrivals, began=began, seed=load.seed)
        time.sleep(load.fill_s)
        sent, cpu = self._sent_bytes(), self._cpu_s()
        time.sleep(max(0.0, began + load.seconds - time.monotonic()))
        ended = time.monotonic()
        lasted = ended - began
        cores = [
            round((after - before) / lasted, 3)
            for after, before in zip(self._cpu_s(), cpu, strict=True)
        ]
        use = self._link_use(sent, lasted, point.shape)
        links = self._links_of_stages()
        answered = self._check(prompter.wait_for("prompted", 600))
        self._tell(decoder, "stop")
        decoded = self._check(decoder.wait_for("decoded", 120))
        time.sleep(_REST_S)
        gaps = tuple(
            tuple(
                round(1e3 * (b - a), 1) for a, b in itertools.pairwise(times) if began <= a < ended
            )
            for times in decoded["times"]
        )
        prompts = tuple(
            {"tokens": one["tokens"], "ttft_s": round(one["ttft_s"], 3)}
            for one in answered["prompts"]
            if began <= one["due"] < ended
        )
        return Run(gaps, prompts, use, tuple(cores[:STAGES]), round(sum(cores), 3), links)

    def one_prompt(self, point: Point, chosen: Chosen, tokens: int, seed: int) -> float:
        """Seconds to the first token of a prompt that is alone in the swarm."""
        self.choose(point, chosen)
        prompter = self._programs[PROMPTER]
        began = time.monotonic()
        self._tell(prompter, "prompts", arrivals=[(0.0, tokens)], began=began, seed=seed)
        answered = self._check(prompter.wait_for("prompted", 120))
        time.sleep(_REST_S)
        return float(answered["prompts"][0]["ttft_s"])

    def _tell(self, program: Program, do: str, **fields: object) -> None:
        program.send_line(json.dumps({"do": do, **fields}))

    def _check(self, event: dict[str, Any]) -> dict[str, Any]:
        if event["failures"]:
            raise RuntimeError("; ".join(event["failures"]))
        return event

    def _ask_links(self, program: Program) -> dict[str, Any]:
        self._tell(program, "links")
        return program.wait_for("links", 10)

    def _links_of_stages(self) -> tuple[dict[str, float], ...]:
        found = []
        for stage in range(STAGES - 1):
            links = self._ask_links(self._programs[stage])["links"]
            for link in links:
                rate = link["rate_bytes_per_s"]
                if link["peer"] == self._peers[stage + 1] and rate is not None:
                    found.append(
                        {
                            "mbit": round(8e-6 * rate, 2),
                            "least_rtt_ms": round(1e3 * (link["min_rtt_s"] or 0.0), 1),
                            "window_bytes": link["window_bytes"],
                            "fragment_bytes": link["fragment_bytes"],
                        }
                    )
        return tuple(found)

    def _sent_bytes(self) -> list[int]:
        """By each stage; where processes delay what they send, they count it, without headers."""
        if self.network.relays:
            return [self._ask_links(program)["uplink_bytes"] for program in self._programs[:STAGES]]
        return self.network.sent_bytes()[:STAGES]

    def _link_use(self, before: list[int], seconds: float, shape: Shape) -> float:
        between = STAGES - 1
        after = self._sent_bytes()
        sent = sum(b - a for a, b in zip(before[:between], after[:between], strict=True))
        return round(8 * sent / between / seconds / (shape.mbit * 1e6), 4)

    def _cpu_s(self) -> list[float]:
        """Of each process so far, with its daemon."""
        found = []
        for process in self._processes:
            times = [one.cpu_times() for one in [process, *process.children(recursive=True)]]
            found.append(sum(one.user + one.system for one in times))
        return found


class Swarms:
    """Use in a `with`: one swarm at a time, of the shape that was asked for last."""

    def __init__(self, **named: Any) -> None:
        """What `InterferenceSwarm` takes besides its shape."""
        self._named = named
        self._swarm: InterferenceSwarm | None = None

    def __enter__(self) -> "Swarms":
        return self

    def __exit__(self, *_: object) -> None:
        if self._swarm is not None:
            self._swarm.close()

    def at(self, shape: Shape) -> InterferenceSwarm:
        """A new one if the last was of another shape; that one is gone then."""
        if self._swarm is None or self._swarm.shape != shape:
            if self._swarm is not None:
                self._swarm.close()
            self._swarm = None
            self._swarm = InterferenceSwarm(shape, **self._named)
        return self._swarm

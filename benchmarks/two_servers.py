"""A small Llama over two servers beside plain transformers with one thread, in turns.

The workload: hidden size 1024, 8 blocks, random weights of torch seed 1234; prompts of 32, 512 and
1,024 random ids; greedy, one row, 64 new tokens, float32. Two servers host four blocks each.
Decoding speed is 63 divided by the time from the first to the 64th token; for sessions together it
is all their tokens over the wall time with prefill. Time to first token contains the opening of
the session.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    Generation,
    Measured,
    Report,
    Together,
    arguments,
    generate,
    generate_together,
    in_turns,
    median,
    paired_ratio,
    percentile,
    plain_model,
    random_prompt,
    swarm_model,
)
from processes import Program, running_servers

WEIGHTS_SHA256 = "9365b4c5937c5ed0a354d59735b308926e782d99bc3142ba3eff0a79a7af026c"
FIRST_TOKENS = (18557, 1110, 1110, 1110, 1110, *[27562] * 7)
"""What plain transformers answers to the short prompt."""
VOCABULARY = 32000
NEW_TOKENS = 64
SHORT_PROMPT = 32
SESSIONS = 8
SPANS = {1: ["0:8"], 2: ["0:4", "4:8"], 4: ["0:2", "2:4", "4:6", "6:8"]}


def build_model(folder: Path) -> str:
    """Write llama-small into `folder`; returns the SHA-256 of its weights' file."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_hidden_layers=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(1234)
    LlamaForCausalLM(config).save_pretrained(folder)
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


class ClientProcesses:
    """Eight clients, each in a process of its own, that start together."""

    def __init__(self, stack: ExitStack, folder: Path, address: str) -> None:
        script = str(Path(__file__).with_name("client_process.py"))
        self.programs = []
        for session in range(1, SESSIONS + 1):
            command = [sys.executable, script, "--model", str(folder), "--peers", address]
            command += ["--session", str(session), "--prompt-tokens", str(SHORT_PROMPT)]
            command += ["--new-tokens", str(NEW_TOKENS)]
            self.programs.append(stack.enter_context(Program(f"client {session}", command)))
        for program in self.programs:
            program.wait_for("ready")

    def generate(self) -> Together:
        started = time.time()
        for program in self.programs:
            program.send_line("go")
        done = [program.wait_for("done", timeout_s=300) for program in self.programs]
        generations = tuple(
            Generation(tuple(each["token_ids"]), each["ttft_s"], tuple(each["gaps_s"]))
            for each in done
        )
        return Together(generations, max(float(each["ended"]) for each in done) - started)


def decoding_rows(
    results: dict[str, list[Measured[Generation]]], baseline: str
) -> list[dict[str, Any]]:
    rows = []
    speeds = {name: [m.result.tokens_per_s for m in turns] for name, turns in results.items()}
    for name, turns in results.items():
        gaps = [1000 * gap for measured in turns for gap in measured.result.gaps_s]
        rows.append(
            {
                "": name,
                "tokens/s": median(speeds[name]),
                "to plain": paired_ratio(speeds[name], speeds[baseline]),
                "step p50 ms": median(gaps),
                "p99 ms": percentile(gaps, 0.99),
                "first token s": median([m.result.ttft_s for m in turns]),
                "own cores": median([m.own_cores for m in turns]),
                "other cores": median([m.other_cores for m in turns]),
            }
        )
    return rows


def server_cost_rows(results: dict[str, list[Measured[Generation]]]) -> list[dict[str, Any]]:
    """What each further server costs per token, against one server."""
    per_token = {
        count: [m.result.ms_per_token for m in results[label(count)]] for count in sorted(SPANS)
    }
    rows = []
    for count, times in per_token.items():
        more = [a - b for a, b in zip(times, per_token[1], strict=True)]
        rows.append(
            {
                "servers": str(count),
                "ms per token": median(times),
                "each further server, ms": median(more) / (count - 1) if count > 1 else None,
            }
        )
    return rows


def together_rows(
    results: dict[str, list[Measured[Together]]], plain: Sequence[Measured[Generation]]
) -> list[dict[str, Any]]:
    single = median([measured.result.tokens_per_s for measured in plain])
    rows = []
    for name, turns in results.items():
        speed = median([measured.result.tokens_per_s for measured in turns])
        gaps = [1000 * gap for m in turns for each in m.result.generations for gap in each.gaps_s]
        rows.append(
            {
                "": name,
                "tokens/s": speed,
                "to plain, one stream": speed / single,
                "step p50 ms": median(gaps),
                "p99 ms": percentile(gaps, 0.99),
                "own cores": median([m.own_cores for m in turns]),
                "other cores": median([m.other_cores for m in turns]),
            }
        )
    return rows


def label(servers: int) -> str:
    return f"{servers} server{'s' if servers > 1 else ''}"


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repetitions=7)
    parser.add_argument("--prompt-repetitions", type=int, default=5, help="turns of long prompts")
    parser.add_argument("--together-repetitions", type=int, default=5, help="turns of 8 sessions")
    options = parser.parse_args()
    report = Report("two_servers: llama-small, float32, one thread a process", as_json=options.json)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llama-small-")))
        report.note("building the model")
        digest = build_model(folder)
        same = digest == WEIGHTS_SHA256
        report.figures["weights"] = {"sha256": digest, "as expected": same}
        report.note(f"weights {digest}: {'as expected' if same else 'NOT the expected ones'}")

        models: dict[str, Any] = {"plain": plain_model(folder)}
        report.note("starting seven servers in three swarms")
        addresses = {}
        for count, spans in SPANS.items():
            servers = stack.enter_context(running_servers(spans, model=str(folder)))
            addresses[count] = servers[0].address()
            models[label(count)] = swarm_model(str(folder), addresses[count])
            stack.callback(models[label(count)].close)

        def decode(name: str, tokens: int, new: int) -> Generation:
            return generate(models[name], random_prompt(tokens, 0, VOCABULARY), new)

        report.note("one session")
        one = in_turns(
            {name: partial(decode, name, SHORT_PROMPT, NEW_TOKENS) for name in models},
            options.repetitions,
            report.note,
        )
        expected = one["plain"][0].result.token_ids
        known = expected[:12] == FIRST_TOKENS
        report.figures["first tokens as expected"] = known
        report.note(f"plain transformers' first tokens are {'' if known else 'NOT '}as expected")
        equal = all(m.result.token_ids == expected for turns in one.values() for m in turns)
        report.figures["token ids equal plain's"] = equal
        report.note(f"token ids {'equal' if equal else 'DIFFER FROM'} plain transformers'")
        report.table("one session", decoding_rows(one, "plain"))
        report.table("what each further server costs", server_cost_rows(one))

        report.note("long prompts")
        rows = []
        for tokens in (512, 1024):
            turns = in_turns(
                {
                    "plain": partial(decode, "plain", tokens, 2),
                    "two": partial(decode, label(2), tokens, 2),
                },
                options.prompt_repetitions,
                report.note,
            )
            seconds = {name: [m.result.ttft_s for m in each] for name, each in turns.items()}
            rows.append(
                {
                    "prompt tokens": str(tokens),
                    "plain s": median(seconds["plain"]),
                    "two servers s": median(seconds["two"]),
                    "to plain": paired_ratio(seconds["two"], seconds["plain"]),
                    "other cores": median([m.other_cores for m in turns["two"]]),
                }
            )
        report.table("time to first token", rows)

        report.note(f"{SESSIONS} sessions together: starting the clients")
        prompts = [random_prompt(SHORT_PROMPT, s, VOCABULARY) for s in range(1, SESSIONS + 1)]
        clients = ClientProcesses(stack, folder, addresses[2])
        together: dict[str, list[Measured[Together]]]
        together = in_turns(
            {
                "one client, 8 threads": partial(
                    generate_together, models[label(2)], prompts, NEW_TOKENS
                ),
                "eight clients": clients.generate,
                "plain": partial(generate_together, models["plain"], prompts[:1], NEW_TOKENS),
            },
            options.together_repetitions,
            report.note,
        )
        alone = together.pop("plain")
        plain = [Measured(m.result.generations[0], m.own_cores, m.other_cores) for m in alone]
        report.table("8 sessions over two servers", together_rows(together, plain))
    report.finish()


if __name__ == "__main__":
    main()

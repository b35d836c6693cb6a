"""SmolLM2 with 1 and 8 sessions, on one server and on three, with packed passes and without.

float32, one thread in every process, all sessions from one client, one thread each. Prompts of 32
random tokens, 64 new tokens; tokens of all sessions over the wall time with prefill.
"""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    Measured,
    Report,
    Together,
    arguments,
    generate_together,
    in_turns,
    median,
    paired_ratio,
    percentile,
    random_prompt,
    swarm_model,
)
from processes import running_servers

SWARMS = {"one server": ["0:30"], "three servers": ["0:10", "10:20", "20:30"]}
UNPACKED = [sys.executable, str(Path(__file__).with_name("unpacked_server.py"))]
SESSIONS = 8
PROMPT_TOKENS = 32


def row(swarm: str, one: Sequence[Measured[Together]], many: Sequence[Measured[Together]]) -> Any:
    one_speed = [measured.result.tokens_per_s for measured in one]
    many_speed = [measured.result.tokens_per_s for measured in many]
    gaps = [1000 * gap for m in many for each in m.result.generations for gap in each.gaps_s]
    return {
        "": swarm,
        "1 session tokens/s": median(one_speed),
        f"{SESSIONS} sessions tokens/s": median(many_speed),
        "ratio": paired_ratio(many_speed, one_speed),
        "step p50 ms": median(gaps),
        "p99 ms": percentile(gaps, 0.99),
        "own cores": median([measured.own_cores for measured in many]),
        "other cores": median([measured.other_cores for measured in many]),
    }


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], repetitions=3)
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens of each session")
    options = parser.parse_args()
    report = Report("batching: SmolLM2, float32, one thread a process", as_json=options.json)
    for packing, program in (("on", None), ("off", UNPACKED)):
        rows = []
        for swarm, spans in SWARMS.items():
            with ExitStack() as stack:
                report.note(f"packing {packing}: starting {swarm}")
                servers = stack.enter_context(running_servers(spans, program=program))
                model = swarm_model(None, servers[0].address())
                stack.callback(model.close)
                vocabulary = model.config.vocab_size
                prompts = [
                    random_prompt(PROMPT_TOKENS, session, vocabulary)
                    for session in range(1, SESSIONS + 1)
                ]
                turns = in_turns(
                    {
                        "one": partial(generate_together, model, prompts[:1], options.new_tokens),
                        "many": partial(generate_together, model, prompts, options.new_tokens),
                    },
                    options.repetitions,
                    report.note,
                )
                alone = turns["one"][0].result.generations[0].token_ids
                same = all(m.result.generations[0].token_ids == alone for m in turns["many"])
                report.note(f"a session's ids among {SESSIONS} {'equal' if same else 'DIFFER'}")
                rows.append({**row(swarm, turns["one"], turns["many"]), "same ids": str(same)})
        report.table(f"packing {packing}", rows)
    report.finish()


if __name__ == "__main__":
    main()

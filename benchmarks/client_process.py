"""One client in a process of its own, for benchmarks that need several: reads lines, writes JSON.

Says `ready` when the model is loaded. Each line on standard input starts one generation, which
ends with a `done` line; the end of input ends the process.
"""

import argparse
import json
import sys
import time

from common import generate, random_prompt, swarm_model


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of the model; absent: the embedded one")
    parser.add_argument("--peers", required=True, help="address of a server")
    parser.add_argument("--session", type=int, required=True, help="number of the prompt")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    options = parser.parse_args()
    model = swarm_model(options.model, options.peers)
    prompt = random_prompt(options.prompt_tokens, options.session, model.config.vocab_size)
    say("ready")
    for _ in sys.stdin:
        result = generate(model, prompt, options.new_tokens)
        say(
            "done",
            ended=time.time(),
            token_ids=result.token_ids,
            ttft_s=result.ttft_s,
            gaps_s=result.gaps_s,
        )
    model.close()


if __name__ == "__main__":
    main()

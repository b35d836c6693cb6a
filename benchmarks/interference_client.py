"""A client of the interference benchmark: long generations, or prompts at given times.

Reads JSON lines, one command each; says `ready` when the model is loaded. All random ids come from
the command's seed, so that all arms get the same.
"""

import argparse
import contextlib
import gc
import json
import random
import sys
import threading
import time
from typing import Any
from unittest.mock import patch

import torch
from common import never_stopping
from interference_arms import PATIENCE_S, patched_product
from interference_control import obey, say
from interference_streams import UPLINK, ArmLinks
from transformers import StoppingCriteria

from swarm import AutoModelForCausalLM, ClientSettings

DECODE_PROMPT_TOKENS = 32
MAX_NEW_TOKENS = 4000


class Clock(StoppingCriteria):  # type: ignore[misc]
    """Notes when each token came; ends the generation when it is told to."""

    def __init__(self, stop: threading.Event) -> None:
        self.times: list[float] = []
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.monotonic())
        return torch.full((input_ids.shape[0],), self._stop.is_set(), dtype=torch.bool)


class Client:
    """What the commands do. Times are of the machine's monotonic clock, which all processes see."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._clocks: list[Clock] = []
        self._prompts: list[dict[str, float]] = []
        self._failures: list[str] = []

    def decode(self, sessions: int, seed: int) -> None:
        """Begins so many generations, one after the other; says `decoding` when all have tokens."""
        self._stop.clear()
        draw = random.Random(seed)
        self._clocks = [Clock(self._stop) for _ in range(sessions)]
        for number, clock in enumerate(self._clocks):
            self._begin(self._generate, 1000 * seed + number, DECODE_PROMPT_TOKENS, clock)
            time.sleep(draw.uniform(0.02, 0.1))
        while any(len(clock.times) < 4 for clock in self._clocks) and not self._failures:
            time.sleep(0.02)
        say("decoding", failures=self._failures)

    def stop(self) -> None:
        """Ends them; says when each token came."""
        self._stop.set()
        self._join()
        say("decoded", times=[clock.times for clock in self._clocks], failures=self._failures)
        self._failures = []

    def prompts(self, arrivals: list[tuple[float, int]], began: float, seed: int) -> None:
        """`arrivals`: seconds after `began` and tokens; says `prompted` when all were answered."""
        for number, (after_s, tokens) in enumerate(arrivals):
            time.sleep(max(0.0, began + after_s - time.monotonic()))
            self._begin(self._prompt, 1000 * seed + 500 + number, tokens, began + after_s)
        self._say_prompted()

    def always(self, tokens: int, seconds: float, seed: int) -> None:
        """One prompt of so many tokens behind the other; says `prompted` after so many seconds."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends and not self._failures:
            self._prompt(seed, tokens, time.monotonic())
            seed += 1
        self._say_prompted()

    def _say_prompted(self) -> None:
        self._join()
        say("prompted", prompts=self._prompts, failures=self._failures)
        self._prompts, self._failures = [], []

    def _begin(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(work, *arguments), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guarded(self, work: Any, *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            self._failures.append(f"{type(error).__name__}: {error}")

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._threads.clear()

    def _generate(self, seed: int, tokens: int, clock: Clock) -> None:
        self._run(seed, tokens, MAX_NEW_TOKENS, clock)

    def _prompt(self, seed: int, tokens: int, due: float) -> None:
        clock = Clock(threading.Event())
        self._run(seed, tokens, 1, clock)
        ttft_s = clock.times[0] - due
        self._prompts.append({"tokens": tokens, "due": due, "ttft_s": ttft_s})

    def _run(self, seed: int, tokens: int, most: int, clock: Clock) -> None:
        draw = random.Random(seed)
        ids = torch.tensor([[draw.randrange(3, 500) for _ in range(tokens)]])
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            stopping_criteria=[clock],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--relay", action="store_true", help="rate and delay are made here")
    options = parser.parse_args()
    UPLINK.enabled = options.relay
    torch.set_num_threads(1)
    settings = ClientSettings(
        open_timeout_s=PATIENCE_S, step_timeout_s=PATIENCE_S, repair_timeout_s=PATIENCE_S
    )
    with patched_product(server=False), patch("swarm.client.swarm.Links", ArmLinks):
        model = AutoModelForCausalLM.from_pretrained(
            options.model,
            initial_peers=[options.peers],
            dtype=torch.bfloat16,
            settings=settings,
        )
        with contextlib.closing(never_stopping(model)):
            client = Client(model)
            gc.freeze()  # as `swarm-client` does: a full collection would take 0.3 s and more
            say("ready")
            for line in sys.stdin:
                command = json.loads(line)
                if obey(command):
                    continue
                work = getattr(client, command.pop("do"))
                work(**command)


if __name__ == "__main__":
    main()

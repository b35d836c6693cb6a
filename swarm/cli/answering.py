"""One answer of a model: its tokens, its text as it comes, and how long that took."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from swarm.cli.terminal import checked_text
from swarm.cli.text_stream import TextStream, cut_at_stop
from swarm.errors import UsageError

if TYPE_CHECKING:
    from swarm.client.session import Session

MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """The options that say how tokens are chosen, and how many."""

    max_new_tokens: int = 64
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for what torch and transformers would stumble over."""
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if value is not None and not isfinite(value):
                raise UsageError(
                    f"{name} {value} is not a number to sample with; give one like 0.8"
                )
        for stop in self.stop:
            checked_text(stop, "the text to stop at")
        if self.seed is not None and self.seed > MAX_SEED:
            raise UsageError(f"seed {self.seed} is too large; give one up to {MAX_SEED}")

    def options(self) -> dict[str, Any]:
        """For `generate()`: greedy unless something asks for sampling."""
        chosen: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": False,
        }
        asked = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        given = {name: value for name, value in asked.items() if value is not None}
        if given and self.temperature != 0:
            chosen |= {"do_sample": True, **given}
        return chosen

    def random(self) -> AbstractContextManager[object]:
        """Within it, what is sampled follows from the seed, if there is one."""
        if self.seed is None:
            return nullcontext()
        from swarm.client.seeding import OwnRandom

        return OwnRandom(self.seed)


@dataclass(frozen=True)
class Answer:
    """What `generate()` gave beyond the prompt."""

    ids: list[int]
    text: str
    """Without special tokens, up to the first stop text."""
    first_s: float
    """Until the first token came."""
    tokens_per_s: float


class Answering:
    """One call of `generate()`, and what has come of it so far."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        sampling: Sampling,
        *,
        on_text: Callable[[str], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """`on_text` gets new text as soon as it is certain (not with beams); `stopped` is asked
        after each token and ends the answer there."""
        self.ids: list[int] = []
        """The new tokens so far (not with beams)."""
        self._model, self._tokenizer = model, tokenizer
        self._sampling = sampling
        self._on_text = on_text
        self._stopped = stopped
        self._clock = _Clock()
        self._stream = TextStream(self._decode, sampling.stop)
        # A token has at least one byte, so that many tokens hold every stop text that just ended.
        self._tail = max((len(stop.encode()) for stop in sampling.stop), default=0) + 8

    def run(self, prompt: Sequence[int], session: "Session | None" = None) -> Answer:
        """Continues the ids of `prompt`, in `session` if one is given. Raises SwarmError."""
        import torch
        import transformers

        ids = torch.tensor([list(prompt)])
        streams = self._on_text if self._sampling.num_beams == 1 else None
        try:
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                pad_token_id=self._padding(),
                stopping_criteria=transformers.StoppingCriteriaList([self._criterion(len(prompt))]),
                **({} if session is None else {"session": session}),
                **self._sampling.options(),
            )
        finally:
            if streams is not None:
                streams(self._stream.end())
        self._clock.end()
        self.ids = output[0, len(prompt) :].tolist()
        text = cut_at_stop(self._decode(self.ids), self._sampling.stop)[0]
        speed = self._clock.tokens_per_s(len(self.ids))
        return Answer(self.ids, text, self._clock.first_s, speed)

    def _criterion(self, length: int) -> Callable[..., Any]:
        def stop_or_go_on(input_ids: Any, scores: Any, **_: Any) -> Any:
            self._clock.token()
            if self._sampling.num_beams == 1:
                self.ids.append(int(input_ids[0, -1]))
                if self._on_text is not None:
                    self._on_text(self._stream.put(self.ids[-1:]))
            if self._stopped():
                return input_ids.new_ones(len(input_ids)).bool()
            ends = input_ids[:, length:][:, -self._tail :] if self._sampling.stop else ()
            stops = [cut_at_stop(self._decode(row), self._sampling.stop)[1] for row in ends]
            return input_ids.new_tensor(stops or [False] * len(input_ids)).bool()

        return stop_or_go_on

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def _padding(self) -> Any:
        if self._tokenizer.pad_token_id is not None:
            return self._tokenizer.pad_token_id
        end_of_text = self._model.generation_config.eos_token_id
        return end_of_text[0] if isinstance(end_of_text, list) else end_of_text


class _Clock:
    """When the first and the last token came, in seconds after the beginning."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.first_s = 0.0
        self._last_s = 0.0

    def token(self) -> None:
        self._last_s = time.perf_counter() - self._began
        self.first_s = self.first_s or self._last_s

    def end(self) -> None:
        if not self.first_s:
            self.token()

    def tokens_per_s(self, tokens: int) -> float:
        """After the first token; of a single one, with the prompt."""
        if tokens > 1 and self._last_s > self.first_s:
            return (tokens - 1) / (self._last_s - self.first_s)
        return tokens / self.first_s if self.first_s else 0.0

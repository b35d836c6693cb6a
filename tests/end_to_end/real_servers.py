"""Real servers of the embedded model, several of each span, and generations that they disturb."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import cache
from typing import Any, Self

import torch
from faults import thaw
from generations import generate
from processes import ServerProgram
from same_ids import assert_same_ids
from transformers import AutoModelForCausalLM as PlainAutoModel

from swarm import AutoModelForCausalLM, ClientSettings
from swarm.models.embedded import embedded_gguf

PROMPT = torch.arange(500, 540)[None]
LONG_PROMPT = torch.arange(500, 1500)[None]
"""Ids of the embedded model; what they mean does not matter."""


class Servers:
    """Servers of each span; those that were lost are replaced by `make_whole`."""

    def __init__(
        self, *spans: str, copies: int = 2, kind: Callable[..., Any] = ServerProgram
    ) -> None:
        """`kind`: `ServerProgram`, or what else takes `blocks` and `peers`."""
        self._stack = ExitStack()
        self._kind = kind
        first = self._start(spans[0])
        self.all = [first]
        self.all += [self._start(span, first.address()) for span in (spans * copies)[1:]]
        for server in self.all:
            server.wait_online()

    def _start(self, span: str, *peers: str) -> Any:
        return self._stack.enter_context(self._kind(blocks=span, peers=peers))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.all:
            thaw(server)
        self._stack.close()

    def hop(self, model: Any, index: int) -> Any:
        peer = model.route[index].peer
        return next(one for one in self.all if one.wait_online()["peer"] == peer)

    def living(self) -> list[Any]:
        return [one for one in self.all if one.process.poll() is None]

    def add(self, span: str) -> Any:
        """One more, which is not online yet."""
        self.all.append(self._start(span, self.living()[0].address()))
        return self.all[-1]

    def make_whole(self) -> None:
        living = self.living()
        for server in self.all:
            thaw(server)
        self.all = [
            one if one in living else self._start(one.blocks or "", living[0].address())
            for one in self.all
        ]
        for server in self.all:
            server.wait_online()

    def model(
        self, by: str | None = None, on_prefill: Any = None, **settings: Any
    ) -> "closing[Any]":
        """`by`: the address to join by; `settings`: fields of `ClientSettings`."""
        return closing(
            AutoModelForCausalLM.from_pretrained(
                initial_peers=[by or self.living()[-1].address()],
                settings=ClientSettings(**settings),
                on_prefill=on_prefill,
            )
        )


@cache
def plain_embedded() -> Any:
    """The same model in plain transformers."""
    path = embedded_gguf()
    return PlainAutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@cache
def expected_ids(ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """What plain transformers generates greedily; `ids` is one of the prompts above."""
    found: torch.Tensor = plain_embedded().generate(
        ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    return found


def check(model: Any, ids: torch.Tensor, events: dict[int, Any], tokens: int) -> None:
    """A generation with `events` as in `generate` has the ids of an undisturbed one."""
    found = generate(model, ids, tokens, events)
    assert_same_ids(plain_embedded(), expected_ids(ids, tokens), found)

"""The model's head for several threads at once: whoever waits is computed together.

A head reads all its weights for each call, so on a CPU eight tokens in one call cost little more
than one token does. Nobody waits for company: who comes while a call runs joins the next one.
"""

import os
import threading
from collections.abc import Callable

import torch
from torch import nn

from swarm.client.packed_head import PackedHead

Forward = Callable[[torch.Tensor], torch.Tensor]

MAX_TOKENS = 16
"""Of one caller; longer inputs fill a call by themselves."""


class _Request:
    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden
        self.logits: torch.Tensor | None = None
        self.computes = False
        """Nobody else does, so it computes for all that wait."""
        self.turn = threading.Event()
        """Set when there is an answer, or when this caller is to compute for all that wait."""


class SharedHead:
    """Calls `forward` for `[..., hidden_size]` of many threads, one call at a time.

    If a call fails, each of its callers computes alone and meets its own error.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: list[_Request] = []

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden[..., 0].numel() > MAX_TOKENS or hidden.requires_grad:
            return self._forward(hidden)
        if self._pid != os.getpid():  # a fork: the threads that called are not here
            self._begin()
        request = _Request(hidden)
        try:
            with self._lock:
                self._waiting.append(request)
                request.computes, self._busy = not self._busy, True
            if not request.computes:
                request.turn.wait()
            if request.logits is None:
                self._compute_for_all(request)
        except BaseException:
            # Interrupted, wherever that was: nobody may wait for it.
            self._leave(request)
            raise
        return self._forward(hidden) if request.logits is None else request.logits

    def _compute_for_all(self, mine: _Request) -> None:
        batch: list[_Request] = []
        try:
            with self._lock:
                if mine not in self._waiting:  # it was part of a call that failed
                    return
                batch, self._waiting = self._waiting, []
            self._compute(batch)
        finally:
            if batch:
                with self._lock:
                    self._pass_on()
                for request in batch:
                    request.turn.set()

    def _compute(self, batch: list[_Request]) -> None:
        if len(batch) == 1:
            batch[0].logits = self._forward(batch[0].hidden)
            return
        flat = [request.hidden.reshape(-1, request.hidden.shape[-1]) for request in batch]
        # One caller's inference mode must not reach the others' tensors.
        with torch.inference_mode(False), torch.no_grad():
            try:
                logits = self._forward(torch.cat(flat))
            except RuntimeError:
                return
            parts = torch.split(logits, [len(part) for part in flat])
            for request, part in zip(batch, parts, strict=True):
                request.logits = part.reshape(*request.hidden.shape[:-1], -1).clone()

    def _leave(self, request: _Request) -> None:
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
                if request.computes or request.turn.is_set():
                    self._pass_on()

    def _pass_on(self) -> None:
        """The next who waits computes for all that do."""
        self._busy = bool(self._waiting)
        if self._waiting:
            self._waiting[0].turn.set()


def share_head(model: nn.Module) -> None:
    """Let the threads that use `model` share the calls of its head, where that pays."""
    get_head = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    if isinstance(head, nn.Linear) and head.weight.device.type == "cpu":
        head.forward = SharedHead(PackedHead(head))  # type: ignore[method-assign, assignment]

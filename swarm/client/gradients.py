"""Gradients end at the swarm; who asks for them is told so."""

from typing import Any

import torch

from swarm.errors import NotServedError


class _NoBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotServedError(
            "gradients through the swarm are not served: loss.backward() has nothing to train; "
            "use the loss as a number, under torch.no_grad()"
        )


def without_backward(loss: torch.Tensor) -> torch.Tensor:
    """The same loss; its `backward()` raises NotServedError."""
    # Only what follows from something that requires gradients has a backward at all.
    result: torch.Tensor = _NoBackward.apply(  # type: ignore[no-untyped-call]
        loss, torch.zeros((), requires_grad=True)
    )
    return result

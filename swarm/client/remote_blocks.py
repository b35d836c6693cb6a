"""The module in place of a model's layers."""

from typing import Any

import torch
from torch import nn

from swarm.client.calls import current_call
from swarm.errors import NotServedError


class RemoteBlocks(nn.Module):
    """Sends hidden states through the swarm and returns what the last block gives.

    It takes what any decoder layer takes and ignores masks, position embeddings and the like: the
    servers make their own from the position ids.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """`[rows, columns, hidden_size]` to the same shape, dtype and device.

        Raises NotServedError outside a call of the model's own `forward()` or `generate()`, and
        for gradients; and what a session raises.
        """
        call = current_call.get()
        if call is None:
            raise NotServedError(
                "call the model itself, or its generate(); its inner modules have no session"
            )
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise NotServedError(
                "gradients through the swarm are not served; use torch.no_grad(), or inputs and "
                "parameters that do not require gradients"
            )
        if position_ids is None or position_ids.dim() != 2:
            position_ids = call.position_ids
        return call.cache.step(
            hidden_states,
            position_ids=position_ids,
            valid=call.valid,
            input_ids=call.input_ids,
            keep=call.keep,
        )

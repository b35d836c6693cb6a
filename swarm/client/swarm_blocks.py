"""What stands behind a model's blocks when the swarm runs them."""

import torch
from torch import nn

from swarm.client.cache import RemoteCache
from swarm.client.calls import current_call
from swarm.errors import NotServedError


class SwarmBlocks(nn.Module):
    """Sends hidden states through the servers; called by `swarm.models.remote_blocks`."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past_key_values: object,
        use_cache: bool,
    ) -> torch.Tensor:
        """`[rows, columns, hidden_size]` to the same shape, dtype and device.

        Padding, and which answers are needed, come from the call of the model's own `forward()`.
        Raises NotServedError outside such a call, for another cache than its own, and for
        gradients; and what a session raises.
        """
        call = current_call.get()
        if call is None:
            raise NotServedError(
                "call the model itself, or its generate(); its inner modules have no session"
            )
        if isinstance(past_key_values, RemoteCache) and past_key_values is not call.cache:
            raise NotServedError("two caches in one call; give the model one of its own")
        if torch.is_grad_enabled() and hidden_states.requires_grad:
            raise NotServedError(
                "gradients through the swarm are not served; use torch.no_grad(), or inputs and "
                "parameters that do not require gradients"
            )
        return call.cache.step(
            hidden_states,
            position_ids=position_ids,
            valid=call.valid,
            input_ids=call.input_ids,
            keep=call.keep,
        )

"""`AutoModelForCausalLM`: a transformers model whose blocks run in the swarm."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from swarm.client.chain import Chain, OnPrefill
from swarm.client.generation import Remote, attach
from swarm.client.membership import Membership
from swarm.client.opening import open_session
from swarm.client.remote_session import RemoteSession
from swarm.client.settings import ClientSettings
from swarm.client.swarm_blocks import SwarmBlocks
from swarm.client.target import Target
from swarm.errors import NotServedError, UsageError
from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.models.dtypes import auto_dtype
from swarm.models.shell import load_shell
from swarm.wire.codecs import DTYPES, dtype_name


class AutoModelForCausalLM:
    """Loads models; in place of transformers' class of this name."""

    def __init__(self) -> None:
        raise TypeError("use AutoModelForCausalLM.from_pretrained(name, initial_peers=[...])")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        initial_peers: Sequence[str],
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        settings: ClientSettings | None = None,
        on_prefill: OnPrefill | None = None,
        **unserved: Any,
    ) -> Any:
        """The checkpoint's own transformers class, with its blocks in the swarm.

        The name is a folder, a GGUF file, a hub name, or None for SmolLM2-135M-Instruct;
        `initial_peers` are addresses of any members of the swarm. Embeddings, norm and head are
        loaded here, in `dtype` (None or "auto": float32 on a CPU, else the checkpoint's own), onto
        `device` (None: the CPU); activations travel in `dtype` too. `on_prefill` is told, in
        another thread, `(tokens done, tokens)` while a long prompt is computed.

        Joins the swarm, but needs no server yet: that a block is missing shows with the first
        call. `model.close()` leaves the swarm. Raises ModelNotFoundError, CheckpointError,
        NotServedError, UnreachablePeerError, AddressError or DaemonError.
        """
        if unserved:
            raise NotServedError(
                f"{', '.join(sorted(unserved))}: not served; from_pretrained() takes "
                "initial_peers, dtype, device, revision, settings and on_prefill"
            )
        settings = settings or ClientSettings()
        place = torch.device(device or "cpu")
        name = pretrained_model_name_or_path
        checkpoint = open_checkpoint(None if name is None else str(name), revision)
        chosen = _dtype(dtype, place, checkpoint.config)
        membership = Membership(initial_peers, settings)
        try:
            return _connect(checkpoint, chosen, place, membership, on_prefill)
        except BaseException:  # also interrupted: nobody else knows the membership
            membership.close()
            raise


def _connect(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    membership: Membership,
    on_prefill: OnPrefill | None,
) -> PreTrainedModel:
    model = load_shell(checkpoint, dtype, lambda config: SwarmBlocks()).to(device)
    target = Target(
        name=checkpoint.name,
        checkpoint=checkpoint.identity,
        num_blocks=checkpoint.num_blocks,
        hidden_size=model.config.hidden_size,
        dtype=dtype_name(dtype),
    )

    def open_chain(rows: int, length: int, least: int) -> Chain:
        runtime, swarm = membership.get()
        opening = open_session(runtime, swarm, target, rows, length, least, on_prefill)
        return runtime.run(opening, discard=RemoteSession.close)

    remote = Remote(
        open_chain,
        checkpoint.num_blocks,
        membership.close,
        continuation_tokens=membership.settings.continuation_tokens,
    )
    attach(model, remote)
    # The collector may run this in any thread; what it misses is closed when the program ends.
    weakref.finalize(model, membership.close_soon).atexit = False
    return model


def _dtype(
    asked: torch.dtype | str | None, device: torch.device, config: PretrainedConfig
) -> torch.dtype:
    if asked is None or asked == "auto":
        return auto_dtype(config, device)
    found = DTYPES.get(asked) if isinstance(asked, str) else asked
    if found is None or found not in DTYPES.values():
        raise UsageError(f"dtype {asked}: use auto, {', '.join(DTYPES)}")
    return found

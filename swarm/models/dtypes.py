"""Which dtype `auto` means, for servers and clients alike."""

import torch
from transformers import PretrainedConfig

from swarm.wire.codecs import DTYPES


def auto_dtype(config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """float32 on a CPU, else the checkpoint's own, if activations travel in it."""
    own = getattr(config, "dtype", None)
    if device.type == "cpu" or not isinstance(own, torch.dtype) or own not in DTYPES.values():
        return torch.float32
    return own

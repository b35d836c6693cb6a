"""Which dtype `auto` means, for servers and clients alike."""

import torch
from transformers import PretrainedConfig

SERVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def auto_dtype(config: PretrainedConfig, device: torch.device) -> torch.dtype:
    """float32 on a CPU, else the checkpoint's own, if that is one of `SERVED_DTYPES`."""
    own = getattr(config, "dtype", None)
    if device.type == "cpu" or not isinstance(own, torch.dtype) or own not in SERVED_DTYPES:
        return torch.float32
    return own

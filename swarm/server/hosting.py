"""What this machine will host: device, dtype, and which blocks of the model fit where."""

from math import prod

import torch

from swarm.errors import MemoryShortError, NotServedError, UsageError
from swarm.models.checkpoint import Checkpoint
from swarm.models.dtypes import auto_dtype
from swarm.models.quantization import Quantization, block_bytes, check_library
from swarm.server.config import DTypeName, ServerConfig
from swarm.server.memory import Budget, MemoryNeeds
from swarm.spans import Span
from swarm.wire.codecs import DTYPES


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; `auto`: the first GPU if there is one. UsageError."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: torch knows no such device; use cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no GPU here; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name} is not served; use cpu or cuda")
    return device


def pick_dtype(name: DTypeName, device: torch.device, checkpoint: Checkpoint) -> torch.dtype:
    """The dtype of weights and cache; `auto`: float32 on a CPU, else the checkpoint's own."""
    if name != "auto":
        return DTYPES[name]
    return auto_dtype(checkpoint.config, device)


def memory_needs(
    checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization = "none"
) -> MemoryNeeds:
    """What each block of `checkpoint` takes in `dtype`, from the headers of its files alone."""
    if quantization != "none":
        return _quantized_needs(checkpoint, dtype, quantization)
    sizes = []
    for block in range(checkpoint.num_blocks):
        stored = checkpoint.block_tensors(Span(block, block + 1)).values()
        items = sum(prod(checkpoint.tensors[name].shape) for name in stored)
        sizes.append(items * dtype.itemsize)
    return MemoryNeeds(tuple(sizes), _token_bytes_per_block(checkpoint, dtype))


def _quantized_needs(
    checkpoint: Checkpoint, dtype: torch.dtype, quantization: Quantization
) -> MemoryNeeds:
    check_library(quantization)
    sizes = block_bytes(checkpoint.model_class, checkpoint.config, dtype, quantization)
    # A block in float32, and its linear layers again while they are read and put in order.
    compared = max(memory_needs(checkpoint, torch.float32).block_bytes) * 3 // 2
    return MemoryNeeds(tuple(sizes), _token_bytes_per_block(checkpoint, dtype), compared)


def _token_bytes_per_block(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """From the config, before anything is loaded; the loaded slice knows better."""
    config = checkpoint.config
    attended = getattr(config, "num_attention_heads", None)
    if not attended:
        raise NotServedError(
            f"{checkpoint.name} has no attention ({config.model_type}); only decoders are served "
            "of which some blocks at least have it"
        )
    heads = getattr(config, "num_key_value_heads", None) or attended
    width = getattr(config, "head_dim", None) or config.hidden_size // attended
    return int(2 * heads * width) * dtype.itemsize


def check_memory(
    config: ServerConfig, checkpoint: Checkpoint, needs: MemoryNeeds, budget: Budget
) -> int:
    """How many blocks will be hosted. BadSpanError, or MemoryShortError with what would fit."""
    if config.blocks is not None:
        checkpoint.check_span(config.blocks)
        needs.check(config.blocks, budget, config.cache_tokens)
        return len(config.blocks)
    count = needs.blocks_that_fit(budget.usable_bytes, config.cache_tokens)
    if not count:
        needs.check(Span(0, 1), budget, config.cache_tokens)
        raise MemoryShortError(
            f"not one block of {checkpoint.name} fits into {budget.in_words}; use a machine with"
            " more memory"
        )
    return count

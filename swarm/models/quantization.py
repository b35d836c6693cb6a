"""Weights in fewer bits: int8 by torchao, nf4 by bitsandbytes, both through transformers' loading.

Only the weights of linear layers change; activations, norms and the cache keep the served dtype.
int8 has one scale for each output (torchao's `Int8WeightOnlyConfig`); nf4 has 4-bit normal floats
in groups of 64 with one float32 scale each (Dettmers et al. 2023, section 3). Neither needs data.
"""

import importlib.util
import logging
from collections.abc import Mapping
from math import prod
from typing import Any, Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from swarm.errors import UsageError
from swarm.models.building import building_model
from swarm.models.layer_list import find_layers

Quantization = Literal["none", "int8", "nf4"]

LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}
INSTALL = {
    "torchao": "pip install 'torchao>=0.18'",
    "bitsandbytes": "pip install 'bitsandbytes>=0.50'",
}
_NF4_GROUP = 64
_NF4_PACKED_OUTPUTS = 32
_INT8_BYTES_PER_OUTPUT = 5
"""A float32 scale and a zero point."""


def check_library(kind: Quantization) -> None:
    """Raises UsageError in one line if what `kind` needs is not installed."""
    library = LIBRARIES.get(kind)
    if library is not None and importlib.util.find_spec(library) is None:
        raise UsageError(
            f"--quantization {kind} needs {library}, which is not here; run: {INSTALL[library]}"
        )


def loading_options(kind: Quantization, dtype: torch.dtype) -> Mapping[str, Any]:
    """What `from_pretrained` has to be told. Raises UsageError."""
    if kind == "none":
        return {}
    check_library(kind)
    if kind == "int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        chosen = TorchAoConfig(Int8WeightOnlyConfig())
    else:
        from transformers import BitsAndBytesConfig

        # It tells of kernels that it would fetch from the hub if it could; it need not.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        chosen = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    return {"quantization_config": chosen}


def keep_odd_layers_plain(model: nn.Module) -> None:
    """Leave nf4 layers whose width is no multiple of a group in their usual order.

    On processors with AVX512-BF16 bitsandbytes puts weights in another order at the first pass, and
    fails for such widths (0.50, `_convert_weight_packed_for_cpu`).
    """
    module: Any
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False) and (
            module.in_features % _NF4_GROUP or module.out_features % _NF4_PACKED_OUTPUTS
        ):
            module.support_avx512bf16_for_cpu = False


def products_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype with the fewest bits in which products of `model` may be rounded.

    bitsandbytes multiplies nf4 weights in bfloat16 where the processor can, whatever dtype it is
    given.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        return torch.bfloat16
    dtype: torch.dtype = model.dtype
    return dtype


def block_bytes(
    model_class: type[Any], config: PretrainedConfig, dtype: torch.dtype, kind: Quantization
) -> list[int]:
    """What the weights of each block take when they are quantized, from the model's shape alone.

    At most: for some processors bitsandbytes packs nf4 weights again, with scales of half the size.
    """
    with building_model(), torch.device("meta"):
        model = model_class(config)
    _, layers = find_layers(model, config.num_hidden_layers)
    return [
        sum(_module_bytes(module, dtype, kind) for module in layer.modules()) for layer in layers
    ]


def _module_bytes(module: nn.Module, dtype: torch.dtype, kind: Quantization) -> int:
    """Of the parameters of this module, without those of its children."""
    shapes = {name: one.shape for name, one in module.named_parameters(recurse=False)}
    plain = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    if kind == "none" or type(module) is not nn.Linear:
        return plain
    outputs, inputs = shapes["weight"]
    items = outputs * inputs
    if kind == "int8":
        return plain - items * dtype.itemsize + items + outputs * _INT8_BYTES_PER_OUTPUT
    groups = -(-items // _NF4_GROUP)
    return plain - items * dtype.itemsize + -(-items // 2) + groups * torch.float32.itemsize

"""Linear layers whose weights lie in the order in which oneDNN's kernels read them.

Measured with one thread, float32, on shapes of 576 to 5,632, as a share of the time of
`torch.nn.Linear`: one token 0.6 to 1.1, eight tokens about 0.5 (AVX2: 0.7 to 0.9), a prompt of 256
about 0.9. With AVX-512 four tokens take less time than one alone, so passes are padded to four
there. The first pass of a new size costs half a millisecond more for each shape of layer.
"""

import torch
from torch import nn

from swarm.models.weights_memory import give_back_freed

_DTYPES = (torch.float32, torch.bfloat16)


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN has kernels for packed weights of this dtype on this machine."""
    if device.type != "cpu" or dtype not in _DTYPES or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def least_pass_tokens(dtype: torch.dtype) -> int:
    """How many tokens a pass over packed layers should have at least."""
    capability = torch.backends.cpu.get_cpu_capability()
    return 4 if dtype == torch.float32 and capability == "AVX512" else 1


class PackedLinear(nn.Module):
    """Computes what `linear` computes, up to rounding, and takes over its memory.

    Inference only. `weight` is opaque: it has a shape and a dtype, and only `forward` reads it.
    """

    def __init__(self, linear: nn.Module) -> None:
        assert isinstance(linear, nn.Linear)
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self.weight, self.bias, "none", [], ""
        )
        return result

    def unpack(self) -> nn.Linear:
        """A plain layer with the same weights."""
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def pack_linears(module: nn.Module) -> None:
    """Replace every plain `nn.Linear` inside `module`, holding only one twice at any time."""
    for parent in module.modules():
        names = [name for name, child in parent.named_children() if type(child) is nn.Linear]
        for name in names:
            setattr(parent, name, PackedLinear(parent.get_submodule(name)))
            give_back_freed()


def unpack_linears(module: nn.Module) -> None:
    """Undo `pack_linears`."""
    for parent in module.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, PackedLinear):
                setattr(parent, name, child.unpack())

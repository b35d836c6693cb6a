"""What a machine can do by its data sheet, where nothing was measured: the roofline."""

from dataclasses import dataclass

from swarm.errors import UsageError
from swarm.routing.model_shape import ModelShape, bytes_per_weight
from swarm.routing.performance import ServerSpeed

PASS_S = 0.001
"""Launching a pass (`t_o` of Sun et al., arXiv 2604.14993)."""


@dataclass(frozen=True)
class Hardware:
    """One kind of machine; a machine with several cards multiplies all three."""

    name: str
    memory_gb: float
    """1e9 bytes."""
    tflops: float
    """Dense, in 16 bits."""
    bandwidth_gb_per_s: float
    """Of its memory."""

    def __post_init__(self) -> None:
        for unit in ("memory_gb", "tflops", "bandwidth_gb_per_s"):
            value = getattr(self, unit)
            if not 0 < value < float("inf"):
                raise UsageError(f"{self.name}: {unit} = {value}; give a positive number")


HARDWARE = {
    one.name: one
    for one in (
        Hardware("h100-80gb", 80, 989, 3350),
        Hardware("a100-80gb", 80, 312, 2039),
        Hardware("a100-40gb", 40, 312, 1555),
        Hardware("a100-mig-3g", 40, 120, 1020),
        Hardware("a100-mig-2g", 20, 78, 510),
        Hardware("a100-mig-1g", 10, 39, 255),
        Hardware("l4-24gb", 24, 121, 300),
        Hardware("t4-16gb", 16, 65, 320),
        Hardware("rtx-5090", 32, 209, 1792),
        Hardware("rtx-4090", 24, 165, 1008),
        Hardware("rtx-3090", 24, 71, 936),
        Hardware("rtx-3060", 12, 25, 360),
        Hardware("apple-m2-max", 64, 27, 400),
        Hardware("cpu-8-cores", 32, 0.8, 50),
    )
}
"""Data sheets of the makers; the slices of an A100 as in Sun et al., arXiv 2604.14993."""


def hardware_named(name: str) -> Hardware:
    """Raises UsageError, with the names that are known."""
    found = HARDWARE.get(name.lower())
    if found is None:
        raise UsageError(
            f"no hardware is called {name!r}; give its figures, or take one of "
            f"{', '.join(sorted(HARDWARE))}"
        )
    return found


def roofline(
    hardware: Hardware, shape: ModelShape, dtype: str = "bfloat16", quantization: str = "none"
) -> ServerSpeed:
    """A block takes the longer of reading its weights and computing its rows.

    Sun et al., arXiv 2604.14993, section II: `t_o + F l_in / f + (s_m / b) (l_out - 1)`; with
    experts, one row reads only those that it wakes.
    """
    flops_per_s = hardware.tflops * 1e12
    bytes_per_s = hardware.bandwidth_gb_per_s * 1e9
    weight = bytes_per_weight(dtype, quantization)
    one, two = (shape.touched_parameters(rows) * weight / bytes_per_s for rows in (1, 2))
    row_s = shape.flops_per_token / flops_per_s
    return ServerSpeed(
        pass_s=PASS_S,
        block_s=one,
        row_s=row_s,
        extra_row_s=two - one,
        context_s=shape.cache_bytes_per_token(dtype) / bytes_per_s,
        prefill_block_s=0.0,
        prefill_token_s=row_s,
    )

from collections.abc import Callable

import pytest
import torch
from torch import nn

from swarm.client.packed_head import MAX_TOKENS, PackedHead
from swarm.models.packed_linear import can_pack

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="no packed kernels on this machine"
)


def _head(bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(32, 96, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2,), (1, 3), (3, 1), (8, 1), (2, 9), (MAX_TOKENS + 1,)])
def test_the_same_logits(shape: tuple[int, ...], bias: bool) -> None:
    head = _head(bias)
    hidden = torch.randn(*shape, 32)
    logits = PackedHead(head)(hidden)
    assert logits.shape == (*shape, 96)
    torch.testing.assert_close(logits, head(hidden))


def test_no_token_at_all() -> None:
    assert PackedHead(_head())(torch.empty(0, 32)).shape == (0, 96)


def _in_place(head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight.add_(1)


def _replaced(head: nn.Linear) -> None:
    head.weight = nn.Parameter(torch.randn(96, 32), requires_grad=False)


@pytest.mark.parametrize("change", [_in_place, _replaced])
def test_changed_weights_are_noticed(change: Callable[[nn.Linear], None]) -> None:
    head = _head()
    packed = PackedHead(head)
    hidden = torch.randn(1, 32)
    before = packed(hidden)
    change(head)
    torch.testing.assert_close(packed(hidden), head(hidden))
    assert not torch.allclose(packed(hidden), before)


def test_first_used_in_inference_mode_then_outside() -> None:
    head = _head()
    packed = PackedHead(head)
    with torch.inference_mode():
        packed(torch.randn(1, 32))
    hidden = torch.randn(1, 32)
    torch.testing.assert_close(packed(hidden), head(hidden))


def test_gradients_flow_through_the_plain_weights() -> None:
    packed = PackedHead(_head())
    hidden = torch.randn(1, 32, requires_grad=True)
    packed(hidden).sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None


def test_another_dtype_meets_torchs_own_error() -> None:
    with pytest.raises(RuntimeError, match="dtype"):
        PackedHead(_head())(torch.randn(1, 32, dtype=torch.float64))

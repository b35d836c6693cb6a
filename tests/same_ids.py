"""When ids that were computed on several servers count as equal to those of one process."""

from collections.abc import Sequence
from typing import Any

import torch

TIE = 1e-3
"""Where the two best logits are closer, the choice is a matter of the last bits."""


def assert_same_ids(
    plain: Any, expected: Sequence[torch.Tensor], got: Sequence[torch.Tensor]
) -> None:
    """Equal, or first different where plain's two best logits are nearly equal."""
    assert len(got) == len(expected)
    for want, have in zip(expected, got, strict=True):
        different = [i for i in range(min(len(want), len(have))) if want[i] != have[i]]
        if not different:
            assert len(want) == len(have)
            continue
        with torch.no_grad():
            best = plain(want[None, : different[0]]).logits[0, -1].topk(2).values
        assert best[0] - best[1] < TIE, f"different ids at {different[0]}"

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


def assert_greedy_ids(plain: Any, prompt: torch.Tensor, got: torch.Tensor, tokens: int) -> None:
    """`got` is `prompt` and what plain generates greedily after it, `tokens` of them or up to the
    end of the text; ties as above. One pass over all of it, where `generate` takes one a token."""
    length = prompt.shape[1]
    assert torch.equal(got[:, :length], prompt)
    new = got[0, length:]
    ends = torch.tensor(plain.generation_config.eos_token_id).flatten()
    assert len(new) == tokens or new[-1] in ends
    with torch.no_grad():
        best = plain(got).logits[0, length - 1 : -1].topk(2)
    for place, (token, ids, values) in enumerate(zip(new, best.indices, best.values, strict=True)):
        tie = values[0] - values[1] < TIE
        assert token == ids[0] or (tie and token == ids[1]), f"another id at {place}"

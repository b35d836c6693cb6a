"""What recurrent layers remember of a row, and the snapshots by which it is rewound.

K/V can be truncated; the state of a linear attention or a Mamba layer cannot. So copies of it are
kept, and a rewind goes back to the newest copy at or below its slot; what entered the blocks since
then is kept beside the K/V (see `SessionPasses`), and runs through them once more.
"""

from typing import Any

import torch

SNAPSHOT_TOKENS = 16
"""A row that grows token by token is copied this often."""
MAX_SNAPSHOTS = 4
"""Copies of a row's state. They lie the denser the nearer they are to its end, so that a rewind
runs few tokens again where that is usual (a rejected guess), and more where it is rare."""

LayerState = dict[str, Any]
"""Attributes of a layer of transformers' cache; its tensors are changed in place by passes."""
_BROKEN = -1


class RowState:
    """The live state of one row in all recurrent layers of a slice, and its snapshots."""

    def __init__(self) -> None:
        self.position = 0
        """How many slots the live state has seen; -1 while a pass changes it."""
        self.layers: dict[int, LayerState] = {}
        """By index of the layer; empty at the beginning of a row."""
        self._snapshots: list[tuple[int, dict[int, LayerState]]] = []
        """Ascending by position; never changed, so copies of a row share them."""

    @property
    def size_bytes(self) -> int:
        """Of the live state."""
        return sum(_size(state) for state in self.layers.values())

    @property
    def snapshots(self) -> tuple[int, ...]:
        """Slots to which the state can be rewound without running anything again; 0 always is."""
        return tuple(position for position, _ in self._snapshots)

    def copy(self) -> "RowState":
        """For a fork of the row."""
        made = RowState()
        made.position, made.layers = self.position, _cloned(self.layers)
        made._snapshots = list(self._snapshots)
        return made

    def rewind(self, slot: int) -> int:
        """Bring the live state to the nearest known position at or below `slot`; which that is."""
        while self._snapshots and self._snapshots[-1][0] > slot:
            self._snapshots.pop()
        if not 0 <= self.position <= slot:
            self.position, self.layers = 0, {}
            if self._snapshots:
                self.position, kept = self._snapshots[-1]
                self.layers = _cloned(kept)
        return self.position

    def before_pass(self, tokens: int) -> None:
        """Take a snapshot if it is time to, and mark the live state as changing.

        A pass of several tokens may be a guess of which a part will be rejected.
        """
        last = self._snapshots[-1][0] if self._snapshots else 0
        passed = self.position - last
        if passed >= SNAPSHOT_TOKENS or (passed and tokens > 1):
            self._snapshots.append((self.position, _cloned(self.layers)))
            if len(self._snapshots) > MAX_SNAPSHOTS:
                self._thin_out()
        self.position = _BROKEN

    def after_pass(self, position: int) -> None:
        self.position = position

    def _thin_out(self) -> None:
        """Drop the snapshot whose loss lengthens a rewind least, compared with how far it is."""
        places = [0, *self.snapshots]
        end = places[-1] + 1
        costs = [
            (places[index + 1] - places[index - 1]) / (end - places[index])
            for index in range(1, len(places) - 1)
        ]
        del self._snapshots[costs.index(min(costs))]


def _cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    return value


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(_size(item) for item in value.values()) if isinstance(value, dict) else 0

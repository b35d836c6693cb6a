"""Room for a number of peers, of which no group of them can take all. Pure.

Identities are free, so a limit on peers alone could be used up by one of them under many names.
A group (`ClientGroups.group_at`: a prefix of the network, a relay) gets no place while it has more
than a quarter of what is free. So one takes a fifth of all places at most, the next a fifth of what
it left, and 2,048 are taken by no fewer than 25. Whom the operator names may take what is left. (In
switches this is the dynamic threshold of Choudhury and Hahne, IEEE/ACM Transactions on Networking
6(2), 1998.)
"""

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

from swarm.scheduling.service_counters import KNOWN, Path

T = TypeVar("T", bound=Hashable)


class Places(Generic[T]):
    """Who has a place, and the groups of those."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._group_of: dict[T, Path] = {}
        self._taken_by: Counter[Path] = Counter()

    def __len__(self) -> int:
        return len(self._group_of)

    def has_room(self, group: Path) -> bool:
        """Whether one more of this group may take a place."""
        free = self.count - len(self._group_of)
        return free > 0 and (group[0] == KNOWN or self._taken_by[group] <= free // 4)

    def take(self, holder: T, group: Path) -> None:
        """Whether there is room or not."""
        self.give_back(holder)
        self._group_of[holder] = group
        self._taken_by[group] += 1

    def give_back(self, holder: T) -> None:
        """Whether it has one or not."""
        group = self._group_of.pop(holder, None)
        if group is not None:
            self._taken_by[group] -= 1
            if not self._taken_by[group]:
                del self._taken_by[group]

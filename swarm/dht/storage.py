"""What a DHT peer keeps for others, with limits. Imports hivemind; see `swarm.dht.node`.

hivemind's own storage has no limits, and lets an old copy of a record shorten the life of its
successor (`TimedStorage.store` replaces the entry of its expiration heap even when it refuses the
value), so that anybody could make a record vanish by replaying its predecessor.
"""

import heapq
from itertools import count
from typing import Any

from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.utils.timed_storage import ValueWithExpiration, get_dht_time

from swarm.dht.records import may_live

MAX_RECORDS_PER_KEY = 800
"""Four keys are asked for at once, and hivemind never answers with more than 4 MiB."""
MAX_RECORDS = 32768


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]  # hivemind has no types
    """Keeps records under (key, subkey) until they expire; refuses instead of evicting."""

    def __init__(self) -> None:
        super().__init__()
        self._expirations: dict[tuple[DHTID, Any], float] = {}
        self._soonest: list[tuple[float, int, tuple[DHTID, Any]]] = []
        """A heap; an entry whose record has been renewed since is skipped."""
        self._numbers = count()

    def store(
        self, key: DHTID, value: Any, expiration_time: float, subkey: Any | None = None
    ) -> bool:
        """Whether it is stored. A value without a subkey is refused: all of ours have one."""
        return subkey is not None and self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: DHTID, subkey: Any, value: bytes, expiration_time: float) -> bool:
        now = get_dht_time()
        if not may_live(expiration_time, now):
            return False
        found = self.get(key)
        dictionary = found.value if found is not None else DictionaryDHTValue()
        present = _present(dictionary, subkey, now)
        if present is not None and present.expiration_time >= expiration_time:
            return bool(present.value == value and present.expiration_time == expiration_time)
        if present is None and (
            len(dictionary) >= MAX_RECORDS_PER_KEY or self.num_records() >= MAX_RECORDS
        ):
            return False
        dictionary.store(subkey, value, expiration_time)
        self._expirations[key, subkey] = expiration_time
        heapq.heappush(self._soonest, (expiration_time, next(self._numbers), (key, subkey)))
        latest = dictionary.latest_expiration_time
        if found is None or latest > found.expiration_time:
            # The base of the base: DHTLocalStorage.store takes values without a subkey.
            super(DHTLocalStorage, self).store(key, dictionary, latest)
        return True

    def num_records(self) -> int:
        """How many records were stored here and have not expired; does not walk the keys.

        What our own searches merge into a dictionary counts from its next renewal on."""
        now = get_dht_time()
        while self._soonest and self._soonest[0][0] < now:
            expiration, _, place = heapq.heappop(self._soonest)
            if self._expirations.get(place) == expiration:
                del self._expirations[place]
        return len(self._expirations)


def _present(dictionary: DictionaryDHTValue, subkey: Any, now: float) -> Any:
    """What is kept under `subkey`; what was kept before our clock was set back is dropped: it would
    keep everything newer out for so long."""
    present = dictionary.get(subkey)
    if present is not None and not may_live(present.expiration_time, now):
        del dictionary[subkey]
        return None
    return present


def newer_than_stored(
    storage: DHTLocalStorage, key: DHTID, found: DictionaryDHTValue
) -> ValueWithExpiration | None:
    """What `found` adds to what is stored here; None: nothing.

    hivemind merges what it finds elsewhere into our own storage's dictionary, with the fault that
    is described above; so only newer records may reach it. The expiration is that of the records,
    not what the sender claims: a far one would end the search early.
    """
    here, now = storage.get(key), get_dht_time()
    for subkey, item in list(found.items()):
        present = _present(here.value, subkey, now) if here is not None else None
        known = present is not None and present.expiration_time >= item.expiration_time
        if known or not may_live(item.expiration_time, now):
            del found[subkey]
    expirations = [item.expiration_time for _, item in found.items()]
    if not expirations:
        return None
    found.latest_expiration_time = max(expirations)
    return ValueWithExpiration(found, max(expirations))

"""Our rules in hivemind's DHT protocol: limits on storing and asking, tolerance of what is bad."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from swarm.dht.source_limits import (
    HANDED_OVER_BYTES,
    HANDED_OVER_RECORDS,
    MAX_FIND_BYTES,
    MAX_FIND_KEYS,
    STORE_BURST_BYTES,
    records_in,
)
from swarm.errors import PeerError
from swarm.spans import PeerId

if TYPE_CHECKING:
    from hivemind.dht.protocol import DHTProtocol

logger = logging.getLogger(__name__)

_RECORD_OVERHEAD_BYTES = 128
"""The subkey, the expiration and the packing."""


def limited_store(
    handler: Callable[[bytes, Any], Awaitable[bytes]],
    protocol: "DHTProtocol",
    allow: Callable[[str, int, int, float], bool],
    me: PeerId,
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """`handler`, but what is over a source's limits is refused before anything is checked.

    `allow`: of `SourceLimits`; `me`: who refuses.
    """
    from hivemind.proto import dht_pb2

    async def limited(request: bytes, source: Any) -> bytes:
        if len(request) > STORE_BURST_BYTES:
            raise PeerError("you store too much at once", peer=me)
        wanted = dht_pb2.StoreRequest.FromString(request)
        records = sum(
            records_in(value) if tag == protocol.IS_DICTIONARY else 1
            for tag, value in zip(wanted.subkeys, wanted.values, strict=False)
        )
        if allow(str(source), len(request), records, time.monotonic()):
            return await handler(request, source)
        logger.info("%s stores too much here", source)
        refused = dht_pb2.StoreResponse(
            store_ok=[False] * len(wanted.keys), peer=protocol.node_info
        )
        return bytes(refused.SerializeToString())

    return limited


def limited_find(
    handler: Callable[[bytes, Any], Awaitable[bytes]],
    allow: Callable[[str, int, int, float], bool],
    me: PeerId,
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """`handler`, but a source that asks for too much gets no answer.

    An answer holds all records of every key that is named, however often it is named: a question
    of some kilobytes would buy gigabytes. Arguments as for `limited_store`.
    """
    from hivemind.proto import dht_pb2

    async def limited(request: bytes, source: Any) -> bytes:
        if len(request) > MAX_FIND_BYTES:
            raise PeerError("you ask for too much at once", peer=me)
        keys = dht_pb2.FindRequest.FromString(request).keys
        if len(keys) > MAX_FIND_KEYS or len(set(keys)) < len(keys):
            raise PeerError("you ask for too much at once", peer=me)
        if not allow(str(source), len(request), len(keys), time.monotonic()):
            logger.info("%s asks too much here", source)
            raise PeerError("you ask for too much", peer=me)
        return await handler(request, source)

    return limited


def skip_what_is_bad(protocol: Any) -> None:
    """Lets single bad records, and single holders that refuse, be skipped.

    hivemind drops all records of a key when one of them fails the validator, so a hostile holder
    could hide a whole shard with one forged record. And it counts a holder that refuses a record as
    one that has it.
    """
    from swarm.dht.storage import MAX_RECORDS_PER_KEY, newer_than_stored

    call_find, call_store = protocol.call_find, protocol.call_store
    is_sound = protocol._validate_record

    def drop_bad_records(key: bytes, dictionary: Any) -> bool:
        dropped = 0
        with dictionary.freeze():
            for number, (subkey, (value, expiration)) in enumerate(list(dictionary.items())):
                packed = protocol.serializer.dumps(subkey)
                # More than anybody keeps: each would cost a check of its signature.
                if number >= MAX_RECORDS_PER_KEY or not is_sound(key, packed, value, expiration):
                    del dictionary[subkey]
                    dropped += 1
        if dropped:
            logger.info("%d records of one key are not sound, or too many", dropped)
        return True

    async def find_newer(peer: Any, keys: Collection[Any]) -> Any:
        answer = await call_find(peer, keys)
        if answer is None:
            return None
        return {
            key: (
                newer_than_stored(protocol.storage, key, found.value) if found else None,
                nearest,
            )
            for key, (found, nearest) in answer.items()
        }

    async def store_or_go_on(
        peer: Any, keys: Any, values: Any, expiration_time: Any, **options: Any
    ) -> Any:
        answer = await call_store(peer, keys, few_enough(values), expiration_time, **options)
        return answer if answer and any(answer) else None

    protocol._validate_dictionary = drop_bad_records
    protocol.call_store = store_or_go_on
    protocol.call_find = find_newer


def few_enough(values: Sequence[Any]) -> list[Any]:
    """`values`, with so few records in their dictionaries that the peer will take them."""
    from hivemind.dht.storage import DictionaryDHTValue

    records_left, bytes_left = HANDED_OVER_RECORDS, HANDED_OVER_BYTES
    cut: list[Any] = []
    for value in values:
        if isinstance(value, DictionaryDHTValue):
            few = DictionaryDHTValue()
            for peer, item in value.items():
                records_left -= 1
                bytes_left -= len(item.value) + _RECORD_OVERHEAD_BYTES
                if records_left < 0 or bytes_left < 0:
                    break
                few.store(peer, item.value, item.expiration_time)
            cut.append(few)
        else:
            cut.append(value)
    return cut

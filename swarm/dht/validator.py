"""What a DHT peer checks of a record before it keeps it or passes it on.

Only size, signature, owner and protocol major: schema, plausibility and time are for the reader,
who skips single records. Imports hivemind; import it only where a node is made.
"""

import hashlib
import struct
from collections import OrderedDict
from typing import Any

import msgspec
from hivemind.dht.validation import DHTRecord, RecordValidatorBase

from swarm.dht.signing import MAX_VALUE_BYTES, check
from swarm.errors import RecordError

_MAX_PACKED_BYTES = MAX_VALUE_BYTES + 8
_MAX_SUBKEY_BYTES = 80
_REMEMBERED_VERDICTS = 16384
_text = msgspec.msgpack.Decoder(str)
_bytes = msgspec.msgpack.Decoder(bytes)


class SwarmRecordValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """Every value of this DHT belongs to a subkey that is its signer's peer id.

    The same record comes back with every reading, so verdicts are remembered.
    """

    def __init__(self) -> None:
        self._verdicts: OrderedDict[bytes, bool] = OrderedDict()

    def validate(self, record: DHTRecord) -> bool:
        if len(record.value) > _MAX_PACKED_BYTES or len(record.subkey) > _MAX_SUBKEY_BYTES:
            return False
        mark = hashlib.blake2b(
            struct.pack(">dHH", record.expiration_time, len(record.key), len(record.subkey))
            + record.key
            + record.subkey
            + record.value
        ).digest()
        verdict = self._verdicts.get(mark)
        if verdict is None:
            verdict = self._verdicts[mark] = _is_sound(record)
            if len(self._verdicts) > _REMEMBERED_VERDICTS:
                self._verdicts.popitem(last=False)
        return verdict

    def merge_with(self, other: Any) -> bool:
        return isinstance(other, SwarmRecordValidator)


def _is_sound(record: DHTRecord) -> bool:
    try:
        peer, value = _text.decode(record.subkey), _bytes.decode(record.value)
        check(record.key, peer, value, record.expiration_time)
    except (msgspec.DecodeError, UnicodeDecodeError, RecordError):
        return False
    return True

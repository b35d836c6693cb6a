"""Service classes, in the order in which they are served."""

from enum import IntEnum


class ServiceClass(IntEnum):
    """What a piece of work is for; lower values go first. The values are on the wire."""

    CONTROL = 0
    DECODE = 1
    REPAIR = 2
    PREFILL = 3
    BULK = 4

"""Amounts of memory and rates as people write and read them."""

import re

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?) ?(?:(?P<prefix>[kmgt])(?P<binary>i)?)?b?", re.I)
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """`8GiB` is 8 x 2^30 bytes, `8GB` and `8G` are 8 x 10^9, `8` is 8. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is not an amount of memory; write it as 8GiB, 500MB or 1000000000"
        )
    unit = 1024 if match["binary"] else 1000
    power = _POWER[match["prefix"].lower()] if match["prefix"] else 0
    return int(float(match["number"]) * unit**power)


def in_words(count: float) -> str:
    """Bytes as people write them: `1.5 GB`."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    if count >= 1e6:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e3:.0f} kB"


def mbit(bytes_per_s: float) -> str:
    """In Mbit/s, without the unit."""
    return f"{8e-6 * bytes_per_s:.2f}"

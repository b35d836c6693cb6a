"""Weights on huge pages: a processor that reads them all for every token misses its TLB less.

A decode step of one session reads each weight once and computes little with it; on pages of 4 KiB
the walks through the page tables are about a tenth of its time. Linux only, from 6.1 on; wherever
it is not possible nothing happens.
"""

import ctypes
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("swarm.server.huge_pages")

MIN_BYTES = 64 << 20
"""Less weights than that are not worth the time."""
_HUGE_BYTES = 2 << 20
_MIN_REGION_BYTES = 2 * _HUGE_BYTES
_MIN_RESIDENT = 0.9
"""Of a region: the holes of others would be filled with memory that nobody uses."""
_MADV_COLLAPSE = 25
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> int:
    """Put what this process has in memory on huge pages, region by region; takes about a second
    for each GiB, and up to one huge page of memory more while it runs.

    Answers the bytes of the regions that are on huge pages now; 0 where the system has none, or
    its administrator said `never`.
    """
    if sys.platform != "linux" or not _allowed():
        return 0
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    done = 0
    for start, end in list(_regions()):
        first, last = -(-start // _HUGE_BYTES) * _HUGE_BYTES, end // _HUGE_BYTES * _HUGE_BYTES
        if library.madvise(first, last - first, _MADV_COLLAPSE) == 0:
            done += last - first
        else:
            # An older kernel, or no huge page is free: the region stays as it is.
            logger.debug("no huge pages for %d bytes: errno %d", last - first, ctypes.get_errno())
    return done


def _allowed() -> bool:
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _regions() -> Iterator[tuple[int, int]]:
    """Large private memory of this process that is in use and not on huge pages yet."""
    start = end = 0
    facts: dict[str, int] = {}
    private = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name.endswith(":"):
            number, _, unit = rest.strip().partition(" ")
            if unit == "kB":
                facts[name] = int(number) * 1024
        else:
            first, _, last = name.partition("-")
            start, end, facts = int(first, 16), int(last, 16), {}
            fields = rest.split()
            private = fields[0] == "rw-p" and (len(fields) < 5 or fields[4] == "[heap]")
        if name != "VmFlags:" or not private or end - start < _MIN_REGION_BYTES:
            continue
        resident, huge = facts.get("Rss:", 0), facts.get("AnonHugePages:", 0)
        if resident >= _MIN_RESIDENT * (end - start) and huge < resident / 2:
            yield start, end

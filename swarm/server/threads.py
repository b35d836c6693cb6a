"""What the process asks of its machine: how many threads compute, decided before torch is imported,
and how many files may be open."""

import os
import resource
from contextlib import suppress

import psutil

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def pick_threads(wanted: int | None) -> int:
    """`wanted`, else what OMP_NUM_THREADS says, else one for each core that we may use, two
    hyperthreads counted as one core."""
    if wanted is not None:
        return wanted
    said = os.environ.get(_VARIABLES[0], "")
    if said.isdigit() and int(said):
        return int(said)
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def limit_threads(threads: int) -> None:
    """Every pool of this process gets `threads`; for programs, before they import torch.

    Three pools that spin on the same cores slow each other down.
    """
    for variable in _VARIABLES:
        os.environ[variable] = str(threads)


def raise_file_limit() -> None:
    """Each link takes file descriptors: as many as the system lets this process have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # The limit that there is will do.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

"""How much memory is free for hosting: on the machine, in its containers, on a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUP_ROOT = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""Limits above this are none; cgroup v1 writes a number of about 2^63."""


@dataclass(frozen=True)
class FreeMemory:
    """What can still be taken, and where."""

    size_bytes: int
    where: str
    """In words, to stand behind `free`: `on this machine`, `on cuda:0`."""


def free_memory(device: str) -> FreeMemory:
    """On `device`: a GPU's own memory, else the machine's or, if that is less, what the limits of
    the process's container (its cgroups) leave."""
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(torch.device(device))
        return FreeMemory(int(free), f"on {device}")
    machine = FreeMemory(int(psutil.virtual_memory().available), "on this machine")
    container = cgroup_free_bytes(_CGROUP_ROOT, _OWN_CGROUP)
    if container is None or container >= machine.size_bytes:
        return machine
    return FreeMemory(container, "under the memory limit of this container or service")


def cgroup_free_bytes(root: Path, own: Path) -> int | None:
    """What the limits on our cgroup and all above it leave, in bytes; None without a limit.

    `root` is where cgroups are mounted, `own` the file that names those of this process (`man 7
    cgroups`). Page cache is given back on demand, so what is inactive of it counts as free.
    """
    return min(_free_of_each(root, own), default=None)


def _free_of_each(root: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            yield from _walk(root, path, ("memory.max", "memory.high"), "memory.current", "")
        elif "memory" in controllers.split(","):
            limits = ("memory.limit_in_bytes",)
            yield from _walk(root / "memory", path, limits, "memory.usage_in_bytes", "total_")


def _walk(
    mount: Path, path: str, limits: tuple[str, ...], usage: str, prefix: str
) -> Iterator[int]:
    """From our cgroup upwards. In a container the path may be the host's and not exist here; the
    mount itself then is our cgroup."""
    folder = mount / path.lstrip("/")
    if not folder.is_relative_to(mount) or ".." in folder.parts:
        folder = mount
    for each in (folder, *folder.parents):
        free = _free_in(each, limits, usage, f"{prefix}inactive_file")
        if free is not None:
            yield free
        if each == mount:
            return


def _free_in(folder: Path, limits: tuple[str, ...], usage: str, reclaimable: str) -> int | None:
    allowed = [limit for name in limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / usage)
    if not allowed or used is None:
        return None
    return max(0, min(allowed) - used + _statistic(folder / "memory.stat", reclaimable))


def _number(file: Path) -> int | None:
    """None if there is no such file, or it says that there is no limit."""
    try:
        count = int(file.read_text())
    except (OSError, ValueError):
        return None
    return count if count < _UNLIMITED else None


def _statistic(file: Path, name: str) -> int:
    try:
        for line in file.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        return 0
    return 0

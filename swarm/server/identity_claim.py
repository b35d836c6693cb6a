"""Which key a server on this machine uses: its own, even when several run side by side."""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from swarm.errors import UsageError
from swarm.wire.identity import Identity

_MAX_SIBLINGS = 256


@dataclass
class ClaimedIdentity:
    """An identity that no other server on this machine uses until `release`."""

    identity: Identity
    path: Path
    sibling: int
    """1: the usual key; n: the n-th, because n - 1 servers already run here."""
    _lock: int

    def release(self) -> None:
        """Lets others use the identity; safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def default_identity_path(program: str) -> Path:
    """Where `program` keeps its key: in the user's data folder."""
    return platformdirs.user_data_path("swarm") / f"{program}.identity"


def claim_identity(path: Path | None, program: str = "server") -> ClaimedIdentity:
    """Takes the key at `path`, made if absent, and locks it against other processes.

    Without `path`, the usual key of `program`; if a running process has that one, the next free
    of its numbered siblings. Two peers with one id would steal each other's messages, so an
    explicit `path` that is in use raises `UsageError`, as does a file that cannot be written.
    """
    if path is not None:
        claimed = _try_claim(_without_tilde(path), sibling=1)
        if claimed is None:
            raise UsageError(
                f"the identity {path} is in use by another running server; stop that one, or give"
                " this server another --identity file"
            )
        return claimed
    usual = default_identity_path(program)
    for sibling in range(1, _MAX_SIBLINGS + 1):
        candidate = usual if sibling == 1 else usual.with_name(f"{usual.name}-{sibling}")
        claimed = _try_claim(candidate, sibling)
        if claimed is not None:
            return claimed
    raise UsageError(
        f"{_MAX_SIBLINGS} servers already run here with keys in {usual.parent}; use --identity"
    )


def _without_tilde(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(
            f"the identity {path} cannot be kept: nobody here has such a home; write --identity"
            " with the whole path"
        ) from None


def _try_claim(path: Path, sibling: int) -> ClaimedIdentity | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise UsageError(
            f"the identity {path} cannot be kept: {error.strerror}; use --identity FILE with a"
            " file in a folder that you may write to"
        ) from None
    try:
        if _is_ours(lock, path):
            return ClaimedIdentity(Identity.load_or_create(path), path, sibling, lock)
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None


def _is_ours(lock: int, path: Path) -> bool:
    """False: another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UsageError(
            f"the identity {path} cannot be locked: {error.strerror}; use --identity FILE with a"
            " file on a disk of this machine"
        ) from None
    return True

"""Starting and stopping one libp2p daemon (`p2pd`), which hivemind's wheel carries."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.errors import AddressError, DaemonError, UnreachablePeerError
from swarm.wire.daemon_folder import DaemonFolder
from swarm.wire.hivemind_setup import load_hivemind
from swarm.wire.identity import Identity

if TYPE_CHECKING:
    from hivemind.p2p import P2P

logger = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT_S = 3.0
_NEW_SESSION = "import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class DaemonConfig:
    """What a daemon is started with; ports in `listen` are fixed (not 0)."""

    listen: tuple[str, ...]
    announce: tuple[str, ...]
    client_only: bool
    startup_timeout_s: float


class Daemon:
    """A running daemon. Its folder holds the sockets, and goes with it."""

    def __init__(self, p2p: "P2P", folder: DaemonFolder) -> None:
        self.p2p = p2p
        self._folder = folder

    @property
    def folder(self) -> Path:
        return self._folder.path

    @property
    def pid(self) -> int:
        return int(self.p2p._child.pid)

    @property
    def control_path(self) -> str:
        """The daemon's own socket."""
        return str(self.p2p.daemon_listen_maddr["unix"])

    async def exited(self) -> int:
        """Waits until the daemon's process has ended, by itself or not; its exit code."""
        return int(await self.p2p._child.wait())

    def kill(self) -> None:
        """Ends a process that does not even hear that it should end."""
        with contextlib.suppress(ProcessLookupError):
            self.p2p._child.kill()

    async def stop(self) -> None:
        """Ends the process and removes the folder, whatever state they are in."""
        await _stop(self.p2p)
        self._folder.remove()  # a few small files; at the program's end no thread takes work


async def start_daemon(
    identity: Identity, config: DaemonConfig, initial_peers: Sequence[str]
) -> Daemon:
    """Starts a daemon with our identity; returns when it listens and has reached an initial peer.

    Raises AddressError (it cannot listen), UnreachablePeerError (no initial peer answers) or
    DaemonError; then nothing is left behind, also when the caller is cancelled.
    """
    await asyncio.to_thread(load_hivemind)
    try:
        folder = DaemonFolder(identity)  # not in a thread: a cancelled wait would lose it
    except OSError as error:
        raise DaemonError(
            f"no folder can be made for the libp2p daemon ({error.strerror or error}); free some "
            "space, or choose another place with TMPDIR"
        ) from error
    made: list[P2P] = []
    starting = asyncio.ensure_future(_create(made, folder, config, initial_peers))
    try:
        async with asyncio.timeout(config.startup_timeout_s + 2):
            p2p = await starting
        if str(p2p.peer_id) != identity.peer_id:
            raise DaemonError(
                f"the libp2p daemon started as {p2p.peer_id} instead of {identity.peer_id}"
            )
        _ignore_loss_of(p2p)
        folder.forget_key()
        return Daemon(p2p, folder)
    except BaseException as error:
        for p2p in made:
            await asyncio.shield(_stop(p2p))
        folder.remove()
        if isinstance(error, Exception) and not isinstance(error, DaemonError):
            raise _explained(error, config, initial_peers) from error
        raise


async def _create(
    made: list[Any], folder: DaemonFolder, config: DaemonConfig, initial_peers: Sequence[str]
) -> "P2P":
    from hivemind.p2p import P2P

    class OurP2P(P2P):  # type: ignore[misc]  # hivemind has no types
        """Puts its sockets into our folder, and lets the daemon survive Ctrl-C, which the terminal
        sends to all processes of a group: we end it ourselves, after we have said goodbye."""

        _UNIX_SOCKET_PREFIX = f"/unix{folder.path}/"

        def __init__(self) -> None:
            super().__init__()
            made.append(self)

        @staticmethod
        def _make_process_args(*args: Any, **kwargs: Any) -> list[str]:
            daemon: list[str] = P2P._make_process_args(*args, **kwargs)
            return [sys.executable, "-I", "-S", "-c", _NEW_SESSION, *daemon]

    return await OurP2P.create(
        initial_peers=list(initial_peers),
        announce_maddrs=list(config.announce) or None,
        host_maddrs=list(config.listen),
        no_listen=config.client_only,
        identity_path=str(folder.key_file),
        check_if_identity_free=False,
        dht_mode="client" if config.client_only else "server",
        auto_nat=False,
        nat_port_map=False,
        use_relay=False,
        use_auto_relay=False,
        idle_timeout=config.startup_timeout_s,
        startup_timeout=config.startup_timeout_s,
    )


async def _stop(p2p: "P2P") -> None:
    child = p2p._child
    p2p._terminate()
    _fail_pending_calls(p2p)
    if child is None:
        return
    try:
        async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        logger.warning("the libp2p daemon (pid %d) did not end; killing it", child.pid)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    finally:
        child._transport.close()  # its output pipe, which hivemind leaves to the collector


def _fail_pending_calls(p2p: "P2P") -> None:
    """Calls of the DHT that wait for an answer would otherwise wait for their deadlines."""
    if p2p._client is None:
        return
    from hivemind.p2p import P2PDaemonError

    for call in list(p2p._client.control._pending_calls.values()):
        if not call.done():
            call.set_exception(P2PDaemonError("the libp2p daemon was stopped"))
    for task in list(p2p._client.control._handler_tasks.values()):
        task.cancel()


def _ignore_loss_of(p2p: "P2P") -> None:
    """hivemind's tasks fail unseen when the daemon dies; the daemon's watcher tells that better."""
    for task in (p2p._client.control._read_task, p2p._client.control._write_task):
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _explained(
    error: Exception, config: DaemonConfig, initial_peers: Sequence[str]
) -> AddressError | UnreachablePeerError | DaemonError:
    text = str(error)
    reason = text.partition("Daemon failed to start: ")[2] or text or type(error).__name__
    if "bootstrap" in text:
        return UnreachablePeerError(
            f"cannot reach any of the peers {', '.join(initial_peers)}; is one of them running, "
            "and is the address complete and current?"
        )
    if "listen" in reason or "multiaddr" in reason:
        return AddressError(
            f"cannot listen on {', '.join(config.listen)}: {reason}; choose another address"
        )
    if isinstance(error, TimeoutError) or "Daemon failed to start in" in text:
        return DaemonError(
            f"the libp2p daemon did not start within {config.startup_timeout_s:.0f} s; is the "
            "machine overloaded? Try again"
        )
    return DaemonError(f"the libp2p daemon did not start: {reason}")

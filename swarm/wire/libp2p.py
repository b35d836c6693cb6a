"""The real network: libp2p through a daemon process of our own, which is watched and rebuilt."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from swarm.errors import AddressError, DaemonError, SwarmError, UnreachablePeerError
from swarm.printable import printable
from swarm.spans import PeerId
from swarm.wire.addresses import check_address, is_relayed, split_peer, with_fixed_port
from swarm.wire.daemon import Daemon, DaemonConfig, start_daemon
from swarm.wire.daemon_control import DaemonControl, DaemonRefusedError
from swarm.wire.identity import Identity, is_peer_id
from swarm.wire.known_peers import KnownPeers
from swarm.wire.network import ByteStream

if TYPE_CHECKING:
    from hivemind.p2p import P2P

logger = logging.getLogger(__name__)

DEFAULT_LISTEN = ("/ip4/127.0.0.1/tcp/0",)
CONTROL_TIMEOUT_S = 5.0
"""For answers of our own daemon."""
CONNECT_TIMEOUT_S = 4.0
"""For one peer at the addresses that we know."""
REMEMBER_EVERY_S = 10.0
MAX_UNANSWERED_CHECKS = 3
"""After so many in a row the daemon is killed and started again."""
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 15.0
DAEMON_FLUSH_S = 0.1
DAEMON_RETRY_S = 0.05
DIAL_RETRY_S = 0.5
_BACKOFF = "dial backoff"
"""What libp2p says while it does not try; for 5 s after a failure, then longer."""


class Libp2pNetwork:
    """Our place in the libp2p network; implements `swarm.wire.network.Network`.

    The daemon's death ends all streams. It is started again with the same identity and the same
    ports, reconnects to the initial peers and to those that were connected before, and then the
    callbacks in `on_rebuilt` are awaited in order. They must not wait for the daemon: it is not
    watched meanwhile.
    """

    def __init__(self, identity: Identity, config: DaemonConfig, initial_peers: list[str]) -> None:
        """Use `create`."""
        self.on_stream: Callable[[ByteStream], None] | None = None
        self.on_rebuilt: list[Callable[[], Awaitable[None]]] = []
        self.rebuilds = 0
        """How often the daemon had to be started again."""
        self._identity = identity
        self._config = config
        self._peers = KnownPeers(initial_peers)
        self._control: DaemonControl | None = None
        self._addresses: list[str] = []
        self._ready = asyncio.Event()
        self._closing = False
        self._watcher: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls,
        identity: Identity,
        *,
        listen: Sequence[str] = DEFAULT_LISTEN,
        initial_peers: Sequence[str] = (),
        announce: Sequence[str] = (),
        client_only: bool = False,
        startup_timeout_s: float = 30.0,
    ) -> "Libp2pNetwork":
        """Starts the daemon and joins the network of `initial_peers` (none: begins a new one).

        `listen`: multiaddresses of this machine, port 0 for any free port (kept from then on);
        `announce`: under which others see us, when it is not these; `client_only`: does not listen
        and serves nothing to others. Relays, hole punching and UPnP are not used.

        Raises AddressError, UnreachablePeerError or DaemonError.
        """
        bootstrap = [
            address for address in initial_peers if split_peer(address)[1] != identity.peer_id
        ]
        ports = [] if client_only else [with_fixed_port(address) for address in listen]
        config = DaemonConfig(
            listen=tuple(ports),
            announce=tuple(check_address(address) for address in announce),
            client_only=client_only,
            startup_timeout_s=startup_timeout_s,
        )
        network = cls(identity, config, bootstrap)
        try:
            await network._start(bootstrap)
        except BaseException:
            await network._stop_daemon()
            raise
        network._watcher = asyncio.create_task(network._watch(), name="libp2p watcher")
        return network

    # ---- Network

    @property
    def peer_id(self) -> PeerId:
        return self._identity.peer_id

    @property
    def addresses(self) -> list[str]:
        """Full multiaddresses, each ending with `/p2p/` and our id; empty for a client."""
        return list(self._addresses)

    async def dial(self, peer: PeerId, timeout_s: float) -> ByteStream:
        """Opens a stream to `peer`, at the addresses added for it or those that libp2p finds.

        Raises UnreachablePeerError, at the latest after `timeout_s`. While our own daemon is being
        started again it waits; and likewise while libp2p refuses to dial an address at which the
        peer was not found a few seconds ago.
        """
        if not is_peer_id(peer):  # strangers name the next hops of their sessions
            raise UnreachablePeerError(
                f"{printable(peer)} is not a peer of this swarm's kind", peer
            )
        failed: UnreachablePeerError | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._ready.wait()
                    try:
                        await self._connect(peer, timeout_s, self._peers.addresses(peer))
                        return await self._running().open_stream(peer, timeout_s)
                    except OSError:
                        await asyncio.sleep(DAEMON_RETRY_S)  # until the watcher has noticed, too
                    except DaemonRefusedError as error:
                        failed = self._unreachable(peer, str(error))
                        if _BACKOFF not in str(error):
                            raise failed from error
                        await asyncio.sleep(DIAL_RETRY_S)
        except TimeoutError as error:
            raise failed or self._unreachable(
                peer, f"no answer within {timeout_s:.1f} s"
            ) from error

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
        if self._control is not None and await self._control.flush():
            # What the daemon has taken into its connections it may still drop when it is ended.
            await asyncio.sleep(DAEMON_FLUSH_S)
        await self._stop_daemon()

    # ---- beyond Network

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def client_only(self) -> bool:
        return self._config.client_only

    @property
    def p2p(self) -> "P2P":
        """hivemind's handle of the present daemon; another one after a rebuild."""
        if self._control is None:
            raise DaemonError("the libp2p daemon is not running; it is being started again")
        return self._control.daemon.p2p

    @property
    def daemon_pid(self) -> int | None:
        return self._control.daemon.pid if self._control is not None else None

    def add_addresses(self, peer: PeerId, addresses: Iterable[str]) -> None:
        """Where `peer` may be found (with or without its id at the end), for later dials.

        Replaces what was added before. Malformed addresses are left out: they come from others.
        """
        self._peers.told(peer, addresses)

    async def connect(self, address: str, timeout_s: float) -> bool:
        """Whether there is a connection to the peer of a full address now.

        Raises AddressError when the address is malformed or names no peer.
        """
        where, peer = split_peer(address)
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
                return await self._connect(peer, timeout_s, [where])
        except (OSError, TimeoutError) as error:
            logger.info("%s is not at %s: %r", peer, where, error)
            return False

    def bootstrap_peers(self) -> list[str]:
        """Full addresses of the peers to join by: the initial ones and those met since."""
        return self._peers.bootstrap_peers()

    # ---- starting, watching, rebuilding

    async def _start(self, bootstrap: Sequence[str]) -> None:
        daemon = await start_daemon(self._identity, self._config, bootstrap)
        self._control = DaemonControl(daemon)
        try:
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                if not self._config.client_only:
                    await self._control.accept_streams(self._stream_came)
                await self._learn_addresses(daemon)
        except (OSError, EOFError) as error:  # TimeoutError is one of them
            raise DaemonError(
                f"the libp2p daemon started, but does not answer: {error!r}"
            ) from error
        self._ready.set()

    def _stream_came(self, stream: ByteStream) -> None:
        if self.on_stream is None or self._closing:
            stream.close()
        else:
            self.on_stream(stream)

    async def _learn_addresses(self, daemon: Daemon) -> None:
        _, found = await daemon.p2p._client.identify()
        here = [str(address) for address in found]
        self._addresses = [] if self.client_only else [f"{one}/p2p/{self.peer_id}" for one in here]
        if not self._config.announce:
            for wanted in self._config.listen:
                port = wanted.split("/")[4]
                if not any(f"/{port}" in address for address in here):
                    raise AddressError(f"cannot listen on {wanted}; choose another port")

    async def _watch(self) -> None:
        while True:
            try:
                await self._rebuild_when_it_ends()
            except Exception:
                logger.exception("watching our libp2p daemon failed; going on")
                await asyncio.sleep(FIRST_BACKOFF_S)

    async def _rebuild_when_it_ends(self) -> None:
        if self._control is not None:
            code = await self._remember_until_exit(self._control)
            logger.warning("our libp2p daemon ended (code %d); starting it again", code)
        await self._stop_daemon()
        await self._rebuild()
        self.rebuilds += 1
        logger.warning("our libp2p daemon runs again, at the same addresses")
        for callback in list(self.on_rebuilt):
            try:
                await callback()
            except Exception:
                logger.exception("a callback failed after the libp2p daemon was rebuilt")

    async def _remember_until_exit(self, control: DaemonControl) -> int:
        """Waits for the daemon's end; ends it when it does not answer. Its exit code."""
        daemon, unanswered = control.daemon, 0
        exited = asyncio.ensure_future(daemon.exited())
        try:
            while True:
                done, _ = await asyncio.wait([exited], timeout=REMEMBER_EVERY_S)
                if done:
                    return exited.result()
                try:
                    async with asyncio.timeout(CONTROL_TIMEOUT_S):
                        await control.check()
                    unanswered = 0
                    async with asyncio.timeout(CONTROL_TIMEOUT_S):
                        await self._remember_peers(daemon)
                        await self._learn_addresses(daemon)
                except OSError:  # TimeoutError is one of them
                    unanswered += 1
                    logger.warning("our libp2p daemon does not answer (%d in a row)", unanswered)
                    if unanswered >= MAX_UNANSWERED_CHECKS:
                        daemon.kill()
                except Exception:
                    logger.info("our libp2p daemon was asked in vain", exc_info=True)
        finally:
            exited.cancel()

    async def _remember_peers(self, daemon: Daemon) -> None:
        for found in await daemon.p2p.list_peers():
            peer = PeerId(str(found.peer_id))
            self._peers.met(peer, map(str, found.addrs))

    async def _rebuild(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        with_peers = True
        while True:
            try:
                await self._start(self._peers.initial_peers if with_peers else ())
                break
            except UnreachablePeerError:
                with_peers = False  # they may be gone for good; we are still one of the network
            except SwarmError as error:
                logger.warning("cannot start the libp2p daemon again: %s", error)
            except Exception:  # whatever hivemind raises when it is killed while it starts
                logger.exception("cannot start the libp2p daemon again")
            await self._stop_daemon()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        await asyncio.gather(*(self._reconnect(*each) for each in self._peers.met_peers()))

    async def _reconnect(self, peer: PeerId, addresses: Sequence[str]) -> None:
        try:
            await self._connect(peer, CONNECT_TIMEOUT_S, addresses)
        except (OSError, TimeoutError) as error:
            logger.info("%s was connected and is not any more: %s", peer, error)

    async def _stop_daemon(self) -> None:
        self._ready.clear()
        control, self._control = self._control, None
        if control is not None:
            control.break_off("our libp2p daemon ended")
            await control.daemon.stop()

    # ---- dialling

    async def _connect(self, peer: PeerId, timeout_s: float, addresses: Sequence[str]) -> bool:
        """Whether there is a connection at one of `addresses`.

        A failure is only logged: libp2p may find other addresses when a stream is opened.
        """
        direct = [address for address in addresses if not is_relayed(address)]
        if not direct:
            return False
        try:
            await self._running().connect(peer, direct, min(timeout_s, CONNECT_TIMEOUT_S))
        except DaemonRefusedError as error:
            logger.info("%s is not at %s: %s", peer, ", ".join(direct), error)
            return False
        return True

    def _running(self) -> DaemonControl:
        if self._control is None:
            raise ConnectionResetError("our libp2p daemon is being started again")
        return self._control

    def _unreachable(self, peer: PeerId, reason: str) -> UnreachablePeerError:
        where = ", ".join(self._peers.addresses(peer)) or "any address that libp2p knows"
        return UnreachablePeerError(
            f"cannot reach {peer} at {where}: {reason}; is it running?", peer=peer
        )

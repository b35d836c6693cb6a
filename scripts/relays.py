"""TCP relays on loopback that servers are reached through: ended, started again, and cut.

A server that announces only its relay's address is reached as one behind a router that forwards a
port, or at the end of a tunnel. `relays.py PORT TARGET_PORT` runs one relay: it says `listening`,
and `connected` for each connection, as JSON lines; its standard input takes `cut PID` (from now on
nothing passes on connections of that process, and nothing says so) and `heal` (what has waited
passes now).
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from faults import daemon_of
from processes import Program, ServerProgram

PIECE_BYTES = 64 * 1024


class Relay:
    """Passes bytes both ways between whoever connects to its port and one other port."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._port = 0
        self._cut: set[int] = set()
        """Processes whose connections carry nothing."""
        self._gates: dict[asyncio.Event, int] = {}
        """Of each connection whether bytes may pass, and the port of who opened it."""

    async def listen(self, port: int) -> int:
        """Its port; 0 takes a free one."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self._port = int(server.sockets[0].getsockname()[1])
        return self._port

    def cut(self, pid: int) -> None:
        self._cut.add(pid)
        ports = self._ports_of(pid)
        for gate, port in self._gates.items():
            if port in ports:
                gate.clear()

    def heal(self) -> None:
        self._cut.clear()
        for gate in self._gates:
            gate.set()

    def _ports_of(self, pid: int) -> set[int]:
        """From which the process has connected to us."""
        with contextlib.suppress(psutil.Error):
            return {
                one.laddr.port
                for one in psutil.Process(pid).net_connections("tcp4")
                if one.raddr and one.raddr.port == self._port
            }
        return set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = int(writer.get_extra_info("peername")[1])
        gate = asyncio.Event()
        self._gates[gate] = port
        if not any(port in self._ports_of(pid) for pid in self._cut):
            gate.set()
        _say(event="connected")
        try:
            await gate.wait()
            there, onward = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(_pass(reader, onward, gate), _pass(there, writer, gate))
        except OSError:
            writer.close()
        finally:
            del self._gates[gate]


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
) -> None:
    """One way, to its end; also the end is only told when bytes may pass."""
    with contextlib.suppress(OSError):
        while data := await reader.read(PIECE_BYTES):
            await gate.wait()
            writer.write(data)
            await writer.drain()
    await gate.wait()
    writer.close()


def _say(**event: object) -> None:
    print(json.dumps(event), flush=True)


async def _serve(port: int, target_port: int) -> None:
    relay = Relay(target_port)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    _say(event="listening", port=await relay.listen(port))
    async for line in commands:
        match line.decode().split():
            case ["cut", pid]:
                relay.cut(int(pid))
            case ["heal"]:
                relay.heal()
        _say(event="done")


class RelayProgram(Program):
    """A relay in a process of its own."""

    def __init__(self, target_port: int, port: int = 0) -> None:
        """Listens when it is made; `port` 0 takes a free one."""
        command = [sys.executable, str(Path(__file__).resolve()), str(port), str(target_port)]
        super().__init__("relay", command)
        self.target_port = target_port
        self.port = int(self.wait_for("listening")["port"])

    def cut(self, process: psutil.Process) -> None:
        """Silently: of this process nothing passes, neither old connections nor new ones."""
        self._order(f"cut {process.pid}")

    def heal(self) -> None:
        self._order("heal")

    def _order(self, command: str) -> None:
        self.send_line(command)
        self.wait_for("done")


class RelayedServer(ServerProgram):
    """A `swarm-server` that others reach through its relay only."""

    def __init__(
        self,
        *,
        blocks: str,
        model: str | None = None,
        peers: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        from swarm.wire.addresses import with_fixed_port

        here = with_fixed_port("/ip4/127.0.0.1/tcp/0")
        self.relay = RelayProgram(int(here.rpartition("/")[2]))
        there = f"/ip4/127.0.0.1/tcp/{self.relay.port}"
        super().__init__(
            blocks=blocks,
            model=model,
            peers=peers,
            options=[*options, "--listen", here, "--announce", there],
        )

    def end_relay(self) -> None:
        """At once: all connections through it break, and nobody can open others."""
        self.relay.process.kill()
        self.relay.stop()

    def start_relay(self) -> None:
        """Another one at the same place."""
        self.relay = RelayProgram(self.relay.target_port, self.relay.port)

    def cut_from(self, other: "RelayedServer") -> None:
        """`Fault.CUT_LINK`, until both relays `heal`."""
        self.relay.cut(daemon_of(other))
        other.relay.cut(daemon_of(self))

    def stop(self, timeout_s: float = 20.0) -> int:
        code = super().stop(timeout_s)
        self.relay.stop()
        return code


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2])))

"""Networks of hosts on this machine: namespaces with real rates and delays, or loopback without.

With root, each host is a network namespace whose only way out is a tun device with a token bucket
(`tc ... tbf`) of the rate, and a process (`interference_hub.py`) that keeps each packet for half
the round trip. The rate is that of each host's upload; downloads are not limited, as at most homes
the upload is the narrow side. TCP's congestion control is chosen by the hosts' routes. Without root
there is only loopback, and the programs that run on it delay what they write themselves
(`interference_relay.py`).
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from interference_hub import NETWORK
from processes import Program

QUEUE_MS = 200
"""What the token bucket keeps at most; more is lost."""
UNLIMITED_MBIT = 1000.0
USUAL_TCP = "cubic"
"""The congestion control that Linux, macOS and Windows come with. Linux' `bbr` (version 1) lets a
busy connection send four packets a round trip for 0.2 s of every 10, which hides what is compared
where links are fast."""
_BURST_S = 0.002
_TOGETHER = 0.9
"""Of the bucket's burst: what a TCP connection hands over at once, without the headers of all but
the first packet. More would be taken apart before the hub gets it (`open_tun`)."""
_MAX_TOGETHER_BYTES = 60_000
_MIN_BURST_BYTES = 4096


@dataclass(frozen=True)
class Shape:
    """Of every host's way to every other."""

    mbit: float
    rtt_ms: float

    def __str__(self) -> str:
        rate = f"{self.mbit:g} Mbit/s" if self.mbit < UNLIMITED_MBIT else "no limit"
        return f"{rate}, {self.rtt_ms:g} ms"


class TestNetwork(Protocol):
    """Hosts 0, 1, ... on which programs run."""

    kind: str
    """What it is, for the table."""
    relays: bool
    """Whether programs must delay what they write themselves."""
    tcp: str
    """Its congestion control."""

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """How `command` is started on this host."""

    def address(self, host: int) -> str:
        """The IP address to listen on there."""

    def shape(self, shape: Shape) -> None:
        """From now on; what is on its way is lost."""

    def sent_bytes(self) -> list[int]:
        """By each host since the beginning, with all headers; none: only the programs know."""

    def close(self) -> None: ...


class Namespaces:
    """A `TestNetwork` of network namespaces; gone with everything in it after `close`."""

    kind = "network namespaces, tc tbf, user-space delay"
    relays = False

    def __init__(self, hosts: int, tcp: str = USUAL_TCP) -> None:
        """Raises CalledProcessError if it cannot be made, as without `tcp` in this kernel."""
        self.tcp = tcp
        self._stack = ExitStack()
        self._names = [f"swarm{os.getpid() % 100_000}-{host}" for host in range(hosts)]
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        script = str(Path(__file__).with_name("interference_hub.py"))
        for name in self._names:
            _run("ip", "netns", "add", name)
            self._stack.callback(_run, "ip", "netns", "del", name, check=False)
        self._hub = self._stack.enter_context(
            Program("hub", [sys.executable, script, *self._names])
        )
        self._hub.wait_for("ready")
        for host, name in enumerate(self._names):
            _run("ip", "link", "set", name, "netns", name)
            within = ("ip", "netns", "exec", name)
            _run(*within, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
            _run(*within, "ip", "link", "set", "lo", "up")
            _run(*within, "ip", "address", "add", f"{self.address(host)}/24", "dev", name)
            _run(*within, "ip", "link", "set", name, "up", "mtu", "1500", "txqueuelen", "2000")
            route = ("ip", "route", "replace", f"{NETWORK}.0/24", "dev", name)
            _run(*within, *route, "src", self.address(host), "congctl", self.tcp)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def hub_pid(self) -> int:
        return self._hub.pid

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self._names[host], *command]

    def address(self, host: int) -> str:
        return f"{NETWORK}.{host + 1}"

    def shape(self, shape: Shape) -> None:
        rate = shape.mbit * 1e6
        burst = max(_MIN_BURST_BYTES, int(rate / 8 * _BURST_S))
        for name in self._names:
            bucket = ("rate", f"{rate:.0f}bit", "burst", str(burst), "latency", f"{QUEUE_MS}ms")
            within = ("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", name)
            _run(*within, "root", "tbf", *bucket)
            together = min(int(_TOGETHER * burst), _MAX_TOGETHER_BYTES)
            _run("ip", "-n", name, "link", "set", name, "gso_max_size", str(together))
        self._ask(f"delay {shape.rtt_ms / 2000:g}")

    def sent_bytes(self) -> list[int]:
        return list(self._ask("bytes")["sent"])

    def _ask(self, line: str) -> dict[str, Any]:
        self._hub.send_line(line)
        return self._hub.wait_for(line.split()[0], 10)

    def close(self) -> None:
        self._stack.close()


class Loopback:
    """A `TestNetwork` where everybody is on 127.0.0.1."""

    kind = "loopback; rate and delay are made in each process, without root"
    relays = True
    tcp = "this machine's"

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        return list(command)

    def address(self, host: int) -> str:
        return "127.0.0.1"

    def shape(self, shape: Shape) -> None:
        """The programs are told."""

    def sent_bytes(self) -> list[int]:
        return []

    def close(self) -> None: ...


def make_network(hosts: int, *, loopback: bool = False, tcp: str = USUAL_TCP) -> TestNetwork:
    """Namespaces where that is possible and `loopback` is not asked for."""
    if not loopback and os.geteuid() == 0 and Path("/dev/net/tun").exists():
        try:
            return Namespaces(hosts, tcp)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode(errors="replace").strip()
            print(f"no namespaces: {' '.join(error.cmd)}: {said}", file=sys.stderr)
        except OSError as error:
            print(f"no namespaces: {error}", file=sys.stderr)
    return Loopback()


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, timeout=20)

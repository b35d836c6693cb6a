"""The delay between the hosts of a test network: packets go in by one tun device, wait, and go out.

A process of its own: the devices named on the command line are made here and moved into their
namespaces by whoever started it. Reads lines on standard input (`delay SECONDS`, `bytes`), writes
JSON. Needs root, and nothing but the standard library.
"""

import fcntl
import json
import os
import select
import struct
import sys
import time
from collections import deque

NETWORK = "198.18.0"
"""Of 198.18.0.0/15, which RFC 2544 sets aside for measurements; host i has `.i+1`."""
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x1, 0x2
_OFFLOAD = struct.Struct("=BBHHHH")
"""What stands before each packet (`struct virtio_net_hdr`): flags, kind, bytes of the headers,
payload of each packet that it stands for, and two more; of a single packet, kind 0."""
_HOST = _OFFLOAD.size + 19
"""Where the last byte of an IPv4 packet's destination is."""
_MAX_PACKET = _OFFLOAD.size + 65536
_PACKETS_A_TURN = 64


def open_tun(name: str) -> int:
    """A new device, as a file that gives and takes IP packets. Several of a TCP connection come as
    one, as a network card takes them; each by itself would keep a third of a core busy at 100
    Mbit/s, which all else here would wait for."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", name.encode(), flags))
    fcntl.ioctl(tun, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    return tun


def wire_bytes(packet: bytes) -> int:
    """What a packet that was read from a device takes on the wire, with all headers."""
    fields: tuple[int, ...] = _OFFLOAD.unpack_from(packet)
    kind, headers, each = fields[1:4]
    size = len(packet) - _OFFLOAD.size
    packets = -(-(size - headers) // each) if kind and each else 1
    return size + (packets - 1) * headers


class Hub:
    """A star: every host is as far from every other."""

    def __init__(self, names: list[str]) -> None:
        self._tuns = [open_tun(name) for name in names]
        self._delay_s = 0.0
        self._sent_bytes = [0] * len(names)
        self._waiting: deque[tuple[float, int, bytes]] = deque()
        """When it is due, which device, the packet. One delay for all, so always in order."""

    def run(self) -> None:
        """Until standard input ends."""
        _say({"event": "ready"})
        while True:
            wait_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
            readable, _, _ = select.select([0, *self._tuns], [], [], wait_s)
            if 0 in readable:
                line = sys.stdin.readline()
                if not line:
                    return
                self._obey(line.split())
                readable.remove(0)
            for tun in readable:
                self._take(tun)
            self._give()

    def _obey(self, words: list[str]) -> None:
        if words[0] == "delay":
            self._delay_s = float(words[1])
        _say({"event": words[0], "sent": self._sent_bytes, "cpu_s": time.process_time()})

    def _take(self, tun: int) -> None:
        sender = self._tuns.index(tun)
        due = time.monotonic() + self._delay_s
        for _ in range(_PACKETS_A_TURN):
            try:
                packet = os.read(tun, _MAX_PACKET)
            except BlockingIOError:
                return
            self._sent_bytes[sender] += wire_bytes(packet)
            ipv4 = len(packet) > _HOST and packet[_OFFLOAD.size] >> 4 == 4
            host = packet[_HOST] - 1 if ipv4 else -1
            if 0 <= host < len(self._tuns):
                self._waiting.append((due, self._tuns[host], packet))

    def _give(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, tun, packet = self._waiting.popleft()
            try:
                os.write(tun, packet)
            except BlockingIOError:
                continue  # lost, as a real network loses


def _say(event: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    Hub(sys.argv[1:]).run()

"""The in-memory network does what its settings say, and virtual time passes only when it may."""

import asyncio

import pytest
from link_peers import ANNA, BERT

from swarm.errors import UnreachablePeerError
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.network import ByteStream
from swarm.wire.virtual_time import NothingScheduledError, run


class Reader:
    """Keeps what came, and when."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.pieces: list[tuple[float, bytes]] = []
        self.writable: list[float] = []
        self.ended: list[tuple[float, str]] = []
        stream.start(self)

    @staticmethod
    def _now() -> float:
        return round(asyncio.get_running_loop().time(), 6)

    def bytes_received(self, data: bytes) -> None:
        self.pieces.append((self._now(), data))

    def writable_again(self) -> None:
        self.writable.append(self._now())

    def stream_ended(self, reason: str) -> None:
        self.ended.append((self._now(), reason))

    def data(self) -> bytes:
        return b"".join(piece for _, piece in self.pieces)


async def both_ends(hub: MemoryNetworkHub) -> tuple[Reader, Reader]:
    accepted: list[Reader] = []
    bert = hub.network(BERT)
    bert.on_stream = lambda stream: accepted.append(Reader(stream))
    anna = Reader(await hub.network(ANNA).dial(BERT, 5))
    assert anna.stream.peer == BERT
    assert accepted[0].stream.peer == ANNA
    return anna, accepted[0]


def test_delay_and_bandwidth() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.5, bandwidth_bytes_per_s=1000))
        anna, bert = await both_ends(hub)
        assert asyncio.get_running_loop().time() == 1.0
        anna.stream.write(bytes(1000))
        anna.stream.write(bytes(500))
        bert.stream.write(bytes(100))
        await asyncio.sleep(10)
        assert [(when, len(piece)) for when, piece in bert.pieces] == [(2.5, 1000), (3.0, 500)]
        assert [when for when, _ in anna.pieces] == [1.6]

    run(main())


def test_back_pressure() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(bandwidth_bytes_per_s=1000, buffer_bytes=1000))
        anna, bert = await both_ends(hub)
        assert anna.stream.write(bytes(1000))
        assert not anna.stream.write(bytes(1000))
        await asyncio.sleep(10)
        assert anna.writable == [2.0]
        assert len(bert.data()) == 2000

    run(main())


def test_a_paused_stream_keeps_what_comes_and_its_writer_waits() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(buffer_bytes=1000))
        anna, bert = await both_ends(hub)
        bert.stream.pause_reading()
        anna.stream.write(bytes(600))
        assert not anna.stream.write(bytes(600))
        await asyncio.sleep(10)
        assert bert.data() == b"" and anna.writable == []
        bert.stream.resume_reading()
        assert bert.data() == b""
        await asyncio.sleep(10)
        assert len(bert.data()) == 1200 and len(anna.writable) == 1

    run(main())


def test_a_partition_holds_everything_until_it_heals() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.1))
        anna, bert = await both_ends(hub)
        hub.partition(ANNA, BERT)
        anna.stream.write(b"one")
        anna.stream.write(b"two")
        anna.stream.close()
        await asyncio.sleep(5)
        assert (bert.pieces, bert.ended) == ([], [])
        hub.heal(ANNA, BERT)
        await asyncio.sleep(1)
        assert bert.data() == b"onetwo"
        assert [reason for _, reason in bert.ended] == ["the peer closed the stream"]
        assert not bert.stream.write(b"late")

    run(main())


def test_dialling_through_a_partition() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        bert = hub.network(BERT)
        bert.on_stream = lambda stream: None
        anna = hub.network(ANNA)
        hub.partition(ANNA, BERT)
        with pytest.raises(UnreachablePeerError, match="3 s"):
            await anna.dial(BERT, 3)
        asyncio.get_running_loop().call_later(1, hub.heal, ANNA, BERT)
        await anna.dial(BERT, 3)
        assert hub.streams(ANNA, BERT) == 1
        await anna.close()
        assert hub.streams(ANNA, BERT) == 0

    run(main())


def test_a_stalled_direction_leaves_the_other() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(buffer_bytes=100))
        anna, bert = await both_ends(hub)
        hub.stall(ANNA, BERT)
        anna.stream.write(bytes(200))
        bert.stream.write(b"still here")
        await asyncio.sleep(1)
        assert (bert.pieces, anna.data(), anna.writable) == ([], b"still here", [])

    run(main())


def test_a_reset_loses_what_is_on_its_way() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(path=Path(delay_s=0.1))
        anna, bert = await both_ends(hub)
        anna.stream.write(b"lost")
        hub.reset(ANNA, BERT)
        await asyncio.sleep(1)
        assert bert.pieces == []
        assert len(anna.ended) == len(bert.ended) == 1
        assert hub.streams(ANNA, BERT) == 0

    run(main())


def test_losses_delay_and_pieces_keep_their_order() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub(5, Path(delay_s=0.01, loss=0.5, stall_s=1.0, shortest_piece=1))
        anna, bert = await both_ends(hub)
        data = bytes(range(256)) * 4
        for begin in range(0, len(data), 64):
            anna.stream.write(data[begin : begin + 64])
            await asyncio.sleep(0.1)
        await asyncio.sleep(5)
        assert bert.data() == data
        assert len(bert.pieces) > len(data) // 64
        assert bert.pieces[-1][0] > 0.01 + 15 * 0.1 + 0.02

    run(main())


def test_what_comes_before_the_reader_is_kept() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        accepted: list[ByteStream] = []
        hub.network(BERT).on_stream = accepted.append
        stream = await hub.network(ANNA).dial(BERT, 5)
        stream.write(b"early")
        stream.close()
        await asyncio.sleep(1)
        late = Reader(accepted[0])
        assert late.pieces == []
        await asyncio.sleep(1)
        assert (late.data(), len(late.ended)) == (b"early", 1)

    run(main())


def test_clients_cannot_be_dialled() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        client = hub.network(BERT, listens=False)
        assert client.addresses == []
        with pytest.raises(UnreachablePeerError, match=BERT):
            await hub.network(ANNA).dial(BERT, 5)
        with pytest.raises(ValueError, match=BERT):
            hub.network(BERT)

    run(main())


def test_hours_pass_at_once() -> None:
    async def main() -> float:
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return asyncio.get_running_loop().time()

    assert run(main()) == 7200


def test_what_can_never_end_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(NothingScheduledError):
        run(main())

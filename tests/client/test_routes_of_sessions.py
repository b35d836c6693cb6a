"""Opening a session against servers that hold, refuse, are down, or come back."""

import asyncio
from dataclasses import dataclass

import pytest
from fake_swarm import TARGET, FakeSwarm, NoRuntime, Server, open_on

from swarm.client.opening import open_session
from swarm.client.settings import ClientSettings
from swarm.errors import (
    CacheFullError,
    CheckpointError,
    MissingBlocksError,
    ProtocolVersionError,
)
from swarm.routing.view import ServerState
from swarm.sessions.messages import Close, Commit, Open, decode_grant
from swarm.wire.frames import PROTOCOL_VERSION


def test_every_hop_holds_and_is_told_to_keep():
    servers = [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(*servers)
    session = open_on(swarm, rows=3, length=50)
    assert [hop.peer for hop in session.route] == [server.peer for server in servers]
    assert [server.kinds for server in servers] == [["Open", "Commit"]] * 2
    grant = decode_grant(servers[0].messages[0].signed.grant)
    assert (grant.rows, grant.length, grant.dtype) == (3, 50, "float32")
    assert grant.client == swarm.identity.peer_id
    assert list(swarm.listeners.values()) == [session]


@pytest.mark.parametrize(
    "answer", ["down", "wrong_checkpoint", "wrong_span", "draining", "quota", "bad_grant"]
)
def test_another_route_is_taken(answer):
    bad, good = Server("0:4", answer), [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(bad, *good)
    session = open_on(swarm)
    assert {hop.peer for hop in session.route} <= {server.peer for server in good} | {bad.peer}
    assert bad.peer not in {hop.peer for hop in session.route}
    assert not any(isinstance(message, Commit) for message in bad.messages)
    assert len(swarm.listeners) == 1


def test_who_opens_is_told_of_a_mistake_of_our_own():
    servers = [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(*servers)
    swarm.known_servers = lambda checkpoint: 1 / 0
    with pytest.raises(ZeroDivisionError):
        open_on(swarm)
    assert swarm.listeners == {}
    assert [server.kinds[-1] for server in servers] == ["Close"] * 2


def test_no_other_route():
    swarm = FakeSwarm(Server("0:2"), Server("2:4", "down"))
    with pytest.raises(MissingBlocksError, match="2:4") as caught:
        open_on(swarm)
    assert caught.value.blocks == ("2:4",)
    assert "down" in str(caught.value)
    assert swarm.listeners == {}


def test_blocks_that_nobody_serves():
    swarm = FakeSwarm(Server("0:2"), Server("3:4"))
    with pytest.raises(MissingBlocksError) as caught:
        open_on(swarm)
    assert caught.value.blocks == ("2:3",)
    assert swarm.lookups > 1, "it was looked up again"


def test_a_server_that_comes_in_time():
    late = Server("2:4", state=ServerState.JOINING)
    swarm = FakeSwarm(Server("0:2"), late)

    def come():
        if swarm.lookups == 2:
            late.state = ServerState.ONLINE

    swarm.on_lookup = come
    swarm.settings = ClientSettings(missing_timeout_s=5.0)
    assert len(open_on(swarm).route) == 2


def test_a_server_that_announces_itself_again_is_tried_again():
    flaky = Server("0:4", "down")
    swarm = FakeSwarm(flaky)

    def recover():
        if swarm.lookups == 3:
            flaky.answer, flaky.sequence = "hold", 2

    swarm.on_lookup = recover
    swarm.settings = ClientSettings(missing_timeout_s=5.0)
    assert open_on(swarm).route[0].peer == flaky.peer


def test_servers_of_another_protocol_are_passed_over():
    other, good = Server("0:4"), [Server("0:2"), Server("2:4")]
    other.protocol = PROTOCOL_VERSION + 1
    session = open_on(FakeSwarm(other, *good))
    assert [hop.peer for hop in session.route] == [server.peer for server in good]
    with pytest.raises(ProtocolVersionError, match=r"version \d .* we speak \d; update this"):
        open_on(FakeSwarm(other))
    assert other.messages == []


def test_another_checkpoint_is_served():
    @dataclass
    class Entry:
        model: str
        checkpoint: str

    swarm = FakeSwarm(models=[Entry("other", "d" * 40)])
    with pytest.raises(CheckpointError, match="serves other"):
        open_on(swarm)
    # Anybody may write any number of models into the index.
    swarm = FakeSwarm(models=[Entry(f"m{number}", f"{number:040}") for number in range(5000)])
    with pytest.raises(CheckpointError, match=r"serves m0 .* and 4992 more, not tiny") as caught:
        open_on(swarm)
    assert len(str(caught.value)) < 500


def test_full_servers_are_waited_for_until_the_deadline():
    servers = [Server("0:2"), Server("2:4", "cache_full")]
    swarm = FakeSwarm(*servers)
    with pytest.raises(CacheFullError, match="1 rows x 10 tokens"):
        open_on(swarm)
    assert any(isinstance(message, Close) for message in servers[0].messages)
    assert not any(isinstance(message, Commit) for message in servers[0].messages)


def test_a_replica_is_asked_before_a_full_server_is_waited_for():
    full, free = Server("0:4", "cache_full"), [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(full, *free)
    session = open_on(swarm)
    assert [hop.peer for hop in session.route] == [server.peer for server in free]
    assert [message.wait_s for message in full.messages if isinstance(message, Open)] in ([], [0.0])


def test_when_every_replica_is_full_one_is_waited_for():
    servers = [Server("0:4", "cache_full"), Server("0:4", "cache_full")]
    swarm = FakeSwarm(*servers)
    with pytest.raises(CacheFullError, match="ask for fewer tokens"):
        open_on(swarm)
    first, second = sorted(servers, key=lambda server: len(server.messages))
    assert first.kinds == ["Open"]
    assert [message.wait_s > 0 for message in second.messages if isinstance(message, Open)] in (
        [False, True],
        [False, False, True],
    )


def test_giving_up_releases_what_is_held():
    servers = [Server("0:2"), Server("2:4", "silent")]
    swarm = FakeSwarm(*servers)

    async def interrupted():
        task = asyncio.ensure_future(open_session(NoRuntime(), swarm, TARGET, 1, 10))
        asked = asyncio.Event()
        swarm.on_silent = asked.set
        await asked.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert [server.kinds for server in servers] == [["Open", "Close"]] * 2
    assert swarm.listeners == {}


def test_less_room_where_there_is_no_more():
    servers = [Server("0:4", "small"), Server("0:4", "small")]
    session = asyncio.run(open_session(NoRuntime(), FakeSwarm(*servers), TARGET, 1, 500, 10))
    assert session.length == 10
    assert not any(m.wait_s for s in servers for m in s.messages if isinstance(m, Open))


def test_with_more_room_it_is_taken():
    swarm = FakeSwarm(Server("0:4"), Server("0:4", "cache_full"))
    session = asyncio.run(open_session(NoRuntime(), swarm, TARGET, 1, 500, 10))
    assert session.length == 500


def test_a_server_that_does_not_say_hello_is_not_waited_for():
    """Its record may outlive it for a minute."""
    frozen, good = Server("0:4", "frozen"), [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(frozen, *good)
    # Were it chosen, connecting to it would take all of the time.
    swarm.settings = ClientSettings(connect_timeout_s=60.0, open_timeout_s=60.0)
    session = open_on(swarm)
    assert [hop.peer for hop in session.route] == [server.peer for server in good]
    assert frozen.messages == []


def open_with_ticks(swarm):
    async def run():
        async def tick():
            while True:
                await asyncio.sleep(0.05)
                for listener in list(swarm.listeners.values()):
                    listener.tick(swarm.time)

        ticking = asyncio.ensure_future(tick())
        try:
            return await open_session(NoRuntime(), swarm, TARGET, 1, 10)
        finally:
            ticking.cancel()

    return asyncio.run(run())


def test_a_server_from_which_nothing_comes_any_more_is_not_waited_for():
    mute, good = Server("0:4", "mute"), [Server("0:2"), Server("2:4")]
    swarm = FakeSwarm(mute, *good)
    swarm.rtts = {server.peer: 0.0 for server in (mute,)}
    session = open_with_ticks(swarm)
    assert [hop.peer for hop in session.route] == [server.peer for server in good]
    assert mute.kinds == ["Open", "Close"]
    assert swarm.troubles.suspected(swarm.now, lambda peer: 100.0) == {mute.peer}


def test_the_only_server_is_waited_for_while_it_is_silent():
    mute = Server("0:4", "mute")
    swarm = FakeSwarm(mute)

    def on_open():
        if mute.kinds == ["Open", "Close", "Open"]:
            mute.answer = "hold"

    swarm.on_silent = on_open
    assert open_with_ticks(swarm).route[0].peer == mute.peer
    assert mute.kinds == ["Open", "Close", "Open", "Commit"]

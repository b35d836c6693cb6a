"""Servers that are cancelled, or fail, in the middle of something: nothing is kept or lost."""

import asyncio
import random
import time
from types import SimpleNamespace

import pytest
import torch

from swarm.errors import ModelNotFoundError, SwarmError
from swarm.routing.moving import Mover, MoveRules
from swarm.server import bootstrap as bootstrap_module
from swarm.server import server as server_module
from swarm.server.bootstrap import BootstrapPeer
from swarm.server.config import Listening, ServerConfig
from swarm.server.identity_claim import claim_identity
from swarm.server.mobility import Mobility, rules_for
from swarm.server.residence import Residence
from swarm.server.server import Server
from swarm.spans import PeerId
from swarm.wire.virtual_time import run


class SlowStay:
    """Takes a while to close."""

    def __init__(self, fails=False):
        self.closed = False
        self.fails = fails

    async def close(self):
        await asyncio.sleep(1)
        self.closed = True
        if self.fails:
            raise SwarmError("not in order")


def residence(stay):
    place = SimpleNamespace(plan=SimpleNamespace(device=torch.device("cpu")))
    made = Residence(place, None)
    made.stay = stay
    return made


def test_who_is_cancelled_while_it_leaves_its_blocks_has_left_them():
    """As when a server is stopped in the middle of a move: nothing else would end its engine."""

    async def story():
        stay = SlowStay()
        home = residence(stay)
        moving = asyncio.ensure_future(home.leave())
        await asyncio.sleep(0.1)
        moving.cancel()
        await asyncio.wait([moving])
        assert moving.cancelled()
        await home.leave()
        assert stay.closed

    run(story())


def test_leaving_that_fails_is_told_once():
    async def story():
        home = residence(SlowStay(fails=True))
        with pytest.raises(SwarmError):
            await home.leave()
        await home.leave()

    run(story())


@pytest.mark.parametrize("program", ["server", "dht"])
def test_who_is_cancelled_while_it_starts_keeps_no_identity(program, tmp_path, monkeypatch):
    path, asked = tmp_path / "identity", []

    def slow_claim(*args):
        asked.append(args)
        time.sleep(0.2)
        return claim_identity(*args)

    def made():
        if program == "dht":
            monkeypatch.setattr(bootstrap_module, "claim_identity", slow_claim)
            return BootstrapPeer(Listening(identity=path, listen=("/ip4/127.0.0.1/tcp/0",)))
        monkeypatch.setattr(server_module, "claim_identity", slow_claim)
        return Server(ServerConfig(model=str(tmp_path / "none"), identity=path))

    async def story():
        starting = asyncio.ensure_future(made().start())
        while not asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises((asyncio.CancelledError, ModelNotFoundError)):
            await starting

    asyncio.run(story())
    claim_identity(path).release()


def test_a_look_that_fails_ends_no_server():
    async def story():
        looks, now = 0, asyncio.get_running_loop().time()

        async def read():
            nonlocal looks
            looks += 1
            raise ZeroDivisionError("a mistake of our own")

        mover = Mover(PeerId("me"), rules_for(1.0), random.Random(0), now=now)
        mobility = Mobility(mover, None, read=read, mine=lambda: None, announce=None)
        watching = asyncio.ensure_future(mobility.watch())
        await asyncio.sleep(30)
        assert looks >= 10
        assert not watching.done()
        watching.cancel()
        await asyncio.wait([watching])

    run(story())


def test_the_pause_after_moves_that_failed_has_a_limit():
    rules = MoveRules()
    assert [rules.pause_s(failures) for failures in (1, 2, 3)] == [60.0, 120.0, 240.0]
    assert rules.pause_s(5) == rules.pause_s(100_000) == 600.0

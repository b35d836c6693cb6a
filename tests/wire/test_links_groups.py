"""Clients are grouped by where their links come from, and share other links by these groups."""

import asyncio
from collections import Counter

from link_peers import ANNA, BERT, Peer, content

from swarm.scheduling.classes import ServiceClass
from swarm.scheduling.client_groups import UNKNOWN, ClientGroups
from swarm.sessions.messages import StatusRequest
from swarm.spans import PeerId
from swarm.wire.memory import MemoryNetworkHub, Path
from swarm.wire.virtual_time import run


def test_a_crowd_behind_one_prefix_gets_one_groups_share_of_a_link() -> None:
    async def main() -> Counter[str]:
        hub = MemoryNetworkHub(0, Path(bandwidth_bytes_per_s=125_000.0))
        crowd = [PeerId(f"crowd-{number}") for number in range(8)]
        honest = PeerId("honest")
        groups = ClientGroups()
        async with Peer(hub, ANNA, groups=groups) as anna, Peer(hub, BERT) as bert:
            clients = [Peer(hub, each, listens=False) for each in (*crowd, honest)]
            for number, client in enumerate(clients[:-1]):
                hub.set_address(client.id, f"/ip4/198.51.100.{number}/tcp/4001")
            hub.set_address(honest, "/ip4/203.0.113.1/tcp/4001")
            for client in clients:
                await client.links.start()
                await client.links.connect(ANNA, 5.0)
            await anna.links.connect(BERT, 5.0)
            assert groups(crowd[3]) == ("198.51.100.0/24", crowd[3])
            for number in range(120):
                for index, client in enumerate(clients):
                    anna.links.send(
                        BERT,
                        StatusRequest(100 * number + index),
                        [content(100 * number + index, 2000)],
                        ServiceClass.PREFILL,
                        client.id.encode(),
                        client.id,
                    )
            # What went out at once, before the last of them had anything to send, does not count.
            await asyncio.sleep(1)
            before = len(bert.numbers())
            await asyncio.sleep(2.5)
            came = Counter(
                "honest" if number % 100 == len(crowd) else "crowd"
                for number in bert.numbers()[before:]
            )
            for client in clients:
                await client.links.close()
                await client.network.close()
            return came

    came = run(main())
    assert came.total() > 100
    # Each message goes as one fragment, and two siblings differ by at most twice the largest.
    assert abs(came["honest"] - came["crowd"]) <= 2


def test_a_peer_without_an_address_is_one_of_the_unknown() -> None:
    async def main() -> None:
        hub = MemoryNetworkHub()
        groups = ClientGroups()
        async with Peer(hub, ANNA) as anna, Peer(hub, BERT, groups=groups) as bert:
            anna.send(BERT, 1)
            await asyncio.sleep(1)
            assert bert.numbers() == [1]
            assert groups(ANNA) == (UNKNOWN, ANNA)

    run(main())

"""What a member of the DHT may ask another one."""

import time
from typing import Any

from hostile_members import hostile_member
from libp2p_peers import peers, run_in_peace

from swarm.dht.source_limits import FIND_BURST_KEYS, FIND_KEYS_PER_S, find_limits
from swarm.wire.hivemind_setup import load_hivemind


def test_a_question_that_would_buy_gigabytes_gets_no_answer(monkeypatch: Any) -> None:
    async def main() -> None:
        load_hivemind()
        from hivemind.dht.routing import DHTID

        async with peers() as started:
            node = await started.start_node()
            asker = await hostile_member(started, node)
            assert node._node is not None
            storage = node._node.protocol.storage
            named: set[object] = set()
            looked_up: list[object] = []
            get = storage.get

            def watched_get(key: Any) -> Any:
                # The node looks up keys of its own in the background.
                if key in named:
                    looked_up.append(key)
                return get(key)

            monkeypatch.setattr(storage, "get", watched_get)

            async def ask(*keys: Any) -> bool:
                named.update(keys)
                peer = node.network.p2p.peer_id
                return await asker.protocol.call_find(peer, keys) is not None

            key = DHTID.generate("key")
            assert await ask(key, DHTID.generate("other"))
            assert len(looked_up) == 2
            # One key many times, very many keys, and in the end anything at all.
            assert not await ask(*[key] * 60)
            assert not await ask(*map(DHTID.generate, range(150)))
            assert not await ask(*map(DHTID.generate, range(100_000)))
            assert len(looked_up) == 2
            node._find_limits.allow(str(asker.protocol.p2p.peer_id), 0, 1000, time.monotonic())
            assert not await ask(*map(DHTID.generate, range(60)))
            assert len(looked_up) == 2
            await asker.shutdown()

    run_in_peace(main())


def test_a_peer_that_looks_up_a_model_each_second_is_never_refused() -> None:
    """16 keys of a model, three times a second, after the index and a first look."""
    limits, now = find_limits(), 0.0
    assert limits.allow("peer", 2000, 32, now)
    for _ in range(600):
        now += 0.3
        assert limits.allow("peer", 1000, 16, now)
    assert not limits.allow("peer", 1000, FIND_BURST_KEYS + 1, now)
    assert limits.allow("peer", 1000, FIND_BURST_KEYS, now + FIND_BURST_KEYS / FIND_KEYS_PER_S)

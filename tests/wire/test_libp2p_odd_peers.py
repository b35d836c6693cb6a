"""What strangers call a peer, or its address, ends no dialling in a traceback."""

import logging

import pytest
from libp2p_peers import peers, run_in_peace

from swarm.errors import UnreachablePeerError
from swarm.spans import PeerId


def test_odd_names_and_addresses_are_out_of_reach(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with peers() as started:
            server = await started.start()
            server.on_stream = lambda stream: stream.close()
            client = await started.start(initial_peers=server.addresses, client_only=True)
            for odd in ("a-server-of-nobody", "12D3KooW\x1b[31m", "QmYyQSo1c1Ym7orWxLYvCrM2Em"):
                with pytest.raises(
                    UnreachablePeerError, match="is not a peer of this swarm's kind"
                ):
                    await client.dial(PeerId(odd), 5)
            # Kinds of addresses that the daemon's library does not know.
            client.add_addresses(server.peer_id, ["/memory/7", "/ip4/127.0.0.1/tcp/9/no-such"])
            assert (await client.dial(server.peer_id, 10)).peer == server.peer_id
            client.add_addresses(server.peer_id, ["/memory/7", *server.addresses])
            assert (await client.dial(server.peer_id, 10)).peer == server.peer_id

    with caplog.at_level(logging.INFO):
        run_in_peace(main())
    assert not any(record.exc_info for record in caplog.records)

"""Small swarms for the tests of the simulator."""

import numpy as np

from swarm.routing.inventory import HostedModel, Inventory, Machine
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead, ServerSpeed
from swarm.simulator.requests import Outcome
from swarm.simulator.results import Result
from swarm.simulator.scenario import Scenario, Timing, Traffic
from swarm.spans import PeerId, Span

SPEED = ServerSpeed(pass_s=0.001, block_s=0.002, extra_row_s=0.0005, prefill_token_s=0.0001)
HONEST_TIMING = Timing(announce_s=1.0, view_age_s=1.0)
TWO_HALVES = {"server-a": (0, 4), "server-b": (4, 8)}
TWICE = {**TWO_HALVES, "server-c": (0, 4), "server-d": (4, 8)}
THREE_PAIRS = {**TWICE, "server-e": (0, 4), "server-f": (4, 8)}


def chain(
    spans: dict[str, tuple[int, int]],
    *,
    clients: int = 1,
    delay_s: float = 0.01,
    memory: float = 1e6,
    speeds: dict[str, ServerSpeed] | None = None,
    mode: ChainMode = ChainMode.PUSH,
    bytes_per_s: float | None = None,
    **options: object,
) -> Scenario:
    """Servers with these spans; every two peers are `delay_s` apart, one way.

    A block weighs 1 byte and a cached token 1 byte in each block: 1e6 bytes are never too few.
    """
    machines = [Machine(PeerId(name), memory, (speeds or {}).get(name, SPEED)) for name in spans]
    names = [PeerId(f"client-{number}") for number in range(clients)]
    peers = [machine.peer for machine in machines] + names
    network = MatrixNetwork(
        peers,
        np.full((len(peers), len(peers)), delay_s),
        {} if bytes_per_s is None else dict.fromkeys(peers, bytes_per_s),
    )
    blocks = max(end for _, end in spans.values())
    model = HostedModel("of-the-tests", blocks, 1.0, 1.0, 1000.0)
    overhead = HopOverhead(0.0005, 0.001, 0.00001)
    inventory = Inventory(model, tuple(machines), tuple(names), network, mode, overhead)
    layout = Layout(blocks, {PeerId(name): Span(*span) for name, span in spans.items()})
    fields = {"traffic": traffic(), "timing": HONEST_TIMING, **options}
    return Scenario(inventory, layout, **fields)  # type: ignore[arg-type]


def traffic(requests: int = 1, rate_per_s: float = 1.0, **options: object) -> Traffic:
    fields = {"prompt_tokens": 20, "output_tokens": 16, **options}
    return Traffic(rate_per_s, requests, **fields)  # type: ignore[arg-type]


def tokens_are_whole(result: Result) -> None:
    """Every request that was done has exactly its tokens: none lost, none twice."""
    for request in result.requests:
        if request.outcome is Outcome.DONE:
            assert request.tokens == request.output_tokens
        else:
            assert request.tokens < request.output_tokens
            assert request.failure

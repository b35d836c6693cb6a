"""Small inventories for the tests of placements and routers."""

import numpy as np
from hypothesis import strategies as st

from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead, ServerSpeed
from swarm.spans import PeerId

NO_OVERHEAD = HopOverhead(0.0, 0.0, 0.0)
BLOOM = HostedModel("BLOOM-176B", 70, 2_466_437_120 * 4.25 / 8 * 1.01, 2 * 14336 * 2, 2 * 14336)
GPT_OSS_120B = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
}


def model(num_blocks: int, block_bytes: float = 1.0, cache_bytes: float = 0.0) -> HostedModel:
    return HostedModel("of-the-tests", num_blocks, block_bytes, cache_bytes)


def machine(name: str, memory: float, block_s: float = 0.001, **options: object) -> Machine:
    return Machine(PeerId(name), memory, ServerSpeed(0.0, block_s), **options)  # type: ignore[arg-type]


def inventory(
    hosted: HostedModel,
    *machines: Machine,
    rtt_s: dict[str, float] | float = 0.01,
    mode: ChainMode = ChainMode.RELAY,
    clients: int = 1,
    overhead: HopOverhead = NO_OVERHEAD,
) -> Inventory:
    """A star: `rtt_s` is between a machine and every client; two machines have the mean of both."""
    names = [one.peer for one in machines] + [PeerId(f"client-{n}") for n in range(clients)]
    own = [rtt_s if isinstance(rtt_s, float) else rtt_s[one.peer] for one in machines] + [
        0.0
    ] * clients
    delays = np.array([[max(a, b) if 0.0 in (a, b) else (a + b) / 2 for b in own] for a in own]) / 2
    network = MatrixNetwork(names, delays)
    return Inventory(
        hosted, tuple(machines), tuple(names[len(machines) :]), network, mode, overhead
    )


@st.composite
def pools(
    draw: st.DrawFn,
    *,
    max_machines: int = 5,
    max_blocks: int = 8,
    max_sessions: int = 4,
    clients: int = 1,
) -> tuple[Inventory, Workload]:
    """Machines of any size and speed; they may be too few."""
    blocks = draw(st.integers(1, max_blocks))
    count = draw(st.integers(1, max_machines))
    machines = [
        machine(
            f"machine-{number}",
            draw(st.floats(0.5, blocks + 4.0)),
            draw(st.sampled_from([0.001, 0.004, 0.02])),
        )
        for number in range(count)
    ]
    rtt = {one.peer: draw(st.sampled_from([0.0, 0.005, 0.05, 0.2])) for one in machines}
    workload = Workload(10, draw(st.integers(1, 90)), draw(st.integers(1, max_sessions)))
    hosted = model(blocks, 1.0, draw(st.sampled_from([0.0, 0.001, 0.004])))
    return inventory(hosted, *machines, rtt_s=rtt, clients=clients), workload


def bloom_machine(memory_gb: float, mig: bool = False) -> Machine:
    return Machine(
        PeerId(f"{'mig' if mig else 'a100'}-{memory_gb}"),
        memory_gb * 1e9,
        ServerSpeed(0.0, 0.0162 if mig else 0.0032),
        max_blocks=4 if mig else None,
    )

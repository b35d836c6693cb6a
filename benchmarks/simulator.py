"""What the simulator costs: requests a minute and events a second, on one core.

The bar is 5,000 requests a minute with 20 tokens in and 32 out over at least four hops, every pass
an event.
"""

import time
from random import Random

import numpy as np
from common import Report, arguments, median

from swarm.routing.inventory import HostedModel, Inventory, Machine
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ServerSpeed
from swarm.routing.policies import ROUTERS
from swarm.simulator.scenario import Churn, Scenario, Timing, Traffic
from swarm.simulator.simulation import simulate
from swarm.spans import PeerId, Span

BLOCKS = 80
BAR_REQUESTS_PER_MIN = 5000.0
CASES = ((8, 4, 4, 5.0), (40, 10, 4, 20.0), (200, 50, 4, 50.0), (64, 10, 8, 20.0))
"""Servers, clients, hops, requests a second."""


def scenario(servers: int, clients: int, hops: int, rate_per_s: float, requests: int) -> Scenario:
    """Every server holds one of `hops` equal parts of the model; none can be used in fewer hops."""
    draw = Random(f"{servers} {hops}")
    part = BLOCKS // hops
    machines, spans = [], {}
    for number in range(servers):
        peer = PeerId(f"server-{number:03}")
        block_s = draw.choice([0.0003, 0.0005, 0.001])
        speed = ServerSpeed(0.001, block_s, 0.0, 0.1 * block_s, 0.0, 0.0, 0.1 * block_s)
        machines.append(Machine(peer, 24e9, speed))
        start = number % hops * part
        spans[peer] = Span(start, start + part)
    names = [PeerId(f"client-{number:02}") for number in range(clients)]
    peers = [machine.peer for machine in machines] + names
    rtt_s = np.random.default_rng(servers).lognormal(np.log(0.08), 0.5, (len(peers), len(peers)))
    model = HostedModel("llama-3.1-70b in nf4", BLOCKS, 0.46e9, 4096.0, 16384.0)
    network = MatrixNetwork(peers, (rtt_s + rtt_s.T) / 4, dict.fromkeys(peers, 12.5e6))
    inventory = Inventory(model, tuple(machines), tuple(names), network)
    return Scenario(
        inventory,
        Layout(BLOCKS, spans),
        Traffic(rate_per_s, requests, 20, 32),
        Churn(),
        Timing(view_age_s=30.0),
    )


def main() -> None:
    options = arguments(__doc__, repetitions=3)
    options.add_argument("--requests", type=int, default=500, help="of each run")
    options.add_argument("--router", action="append", choices=ROUTERS, help="all by default")
    options.add_argument("--servers", type=int, action="append", help="cases; all by default")
    chosen = options.parse_args()
    report = Report("simulator: what it costs", as_json=chosen.json)
    rows = []
    for servers, clients, hops, rate_per_s in CASES:
        if chosen.servers and servers not in chosen.servers:
            continue
        case = scenario(servers, clients, hops, rate_per_s, chosen.requests)
        for router in chosen.router or ROUTERS:
            seconds = []
            for _ in range(chosen.repetitions):
                began = time.process_time()
                result = simulate(case, router)
                seconds.append(time.process_time() - began)
            found = result.summary()
            taken = median(seconds)
            rows.append(
                {
                    "servers": servers,
                    "clients": clients,
                    "hops": found["mean_hops"],
                    "router": router,
                    "done": found["done"],
                    "events": found["events"],
                    "events/s": round(found["events"] / taken),
                    "requests/min": round(60 * chosen.requests / taken),
                    "of the bar": 60 * chosen.requests / taken / BAR_REQUESTS_PER_MIN,
                }
            )
    report.table("processor time on one core; 20 tokens in, 32 out", rows)
    report.finish()


if __name__ == "__main__":
    main()

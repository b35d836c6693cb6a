"""What a planner knows: a model, machines, clients, and the network between them."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf

import numpy as np

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.fitting import fitting
from swarm.routing.model_shape import ModelShape
from swarm.routing.network import Floats, Network
from swarm.routing.performance import ChainMode, HopOverhead, ServerSpeed
from swarm.spans import PeerId


@dataclass(frozen=True)
class HostedModel:
    """A model as it is hosted: sizes in bytes."""

    name: str
    num_blocks: int
    block_bytes: float
    """`s_m`: weights of one block."""
    cache_bytes_per_token: float
    """K/V of one token in one block."""
    activation_bytes: float = 0.0
    """Of one token on the wire."""

    def __post_init__(self) -> None:
        if self.num_blocks < 1:
            raise UsageError(f"{self.name} has {self.num_blocks} blocks; a model has at least one")
        if not 0 < self.block_bytes < float("inf"):
            raise UsageError(f"{self.name}: a block of {self.block_bytes} bytes; it has weights")
        for name in ("cache_bytes_per_token", "activation_bytes"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{self.name}: {name} = {getattr(self, name)}; give bytes")

    @classmethod
    def of(
        cls, shape: ModelShape, dtype: str = "bfloat16", quantization: str = "none"
    ) -> "HostedModel":
        """By its shape; the cache and the wire carry `dtype`."""
        return cls(
            shape.name,
            shape.num_blocks,
            shape.block_bytes(dtype, quantization),
            shape.cache_bytes_per_token(dtype),
            shape.activation_bytes(dtype),
        )


@dataclass(frozen=True)
class Machine:
    """One volunteer's machine."""

    peer: PeerId
    memory_bytes: float
    """`M_j`: for blocks and cache together."""
    speed: ServerSpeed
    max_blocks: int | None = None
    """Its owner's limit."""
    relayed: bool = False
    """Reachable only through a relay."""
    flops_per_s: float = 0.0
    """Water-filling weighs machines by it; 0 (of one of them): by how fast a block decodes."""

    def __post_init__(self) -> None:
        if not 0 <= self.memory_bytes < float("inf"):
            raise UsageError(
                f"{self.peer} has {self.memory_bytes:g} bytes of memory; give a number from 0"
            )
        if self.max_blocks is not None and self.max_blocks < 0:
            raise UsageError(f"{self.peer} may hold {self.max_blocks} blocks; give 0 or more")


@dataclass(frozen=True)
class Workload:
    """What is asked of the swarm."""

    prompt_tokens: int
    output_tokens: int
    """Most that a request generates; the cache is reserved for them."""
    sessions: int = 0
    """`R`: requests at once that placements make room for; 0: by the rate, if it is known."""
    rate_per_s: float = 0.0
    """Arriving requests; 0: not known."""
    held_s: float = 0.0
    """How long a session holds its cache beside computing: opening it, idle between turns."""

    def __post_init__(self) -> None:
        if self.prompt_tokens < 0 or self.output_tokens < 1:
            raise UsageError(
                f"{self.prompt_tokens} tokens in, {self.output_tokens} out; a request has a prompt "
                "and at least one token out"
            )
        if self.sessions < 0 or not all(0 <= one < inf for one in (self.rate_per_s, self.held_s)):
            raise UsageError(
                f"{self.sessions} sessions, {self.rate_per_s:g} requests/s, held {self.held_s:g} s;"
                " none of them can be negative or infinite"
            )

    @property
    def at_once(self) -> int:
        """Sessions that there are at least."""
        return max(1, self.sessions)

    @property
    def session_tokens(self) -> int:
        """What a session reserves."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class Inventory:
    """Everything that a placement looks at."""

    model: HostedModel
    machines: tuple[Machine, ...]
    clients: tuple[PeerId, ...]
    network: Network
    mode: ChainMode = ChainMode.PUSH
    overhead: HopOverhead = field(default_factory=HopOverhead)

    def __post_init__(self) -> None:
        names = [machine.peer for machine in self.machines]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UsageError(f"machines are named twice: {', '.join(twice)}")
        if not self.clients:
            raise UsageError("nobody asks; an inventory has at least one client")

    def machine(self, peer: PeerId) -> Machine:
        """Raises UsageError for a machine that is not there."""
        if peer not in self._by_peer:
            raise UsageError(f"no machine is called {peer}")
        return self._by_peer[peer]

    @cached_property
    def _by_peer(self) -> dict[PeerId, Machine]:
        return {machine.peer: machine for machine in self.machines}

    def most_blocks(self, machine: Machine, cache_tokens: int) -> int:
        """Blocks that fit beside `cache_tokens` tokens of cache in each of them."""
        each = self.model.block_bytes + self.model.cache_bytes_per_token * cache_tokens
        limit = self.model.num_blocks
        if machine.max_blocks is not None:
            limit = min(limit, machine.max_blocks)
        return min(limit, int(fitting(machine.memory_bytes, 0.0, each)))

    def check_memory(self, workload: Workload, sessions: int) -> None:
        """Raises MemoryShortError, with how many GB are missing, if the blocks do not fit at all
        beside the caches of `sessions` sessions."""
        tokens = sessions * workload.session_tokens
        held = sum(self.most_blocks(machine, tokens) for machine in self.machines)
        lacking = self.model.num_blocks - held
        if lacking <= 0:
            return
        count, model = len(self.machines), self.model.name
        what = f"{count} machines hold {held} of the {self.model.num_blocks} blocks of {model}"
        unlimited = [replace(machine, max_blocks=None) for machine in self.machines]
        if sum(self.most_blocks(one, tokens) for one in unlimited) >= self.model.num_blocks:
            raise MemoryShortError(f"{what}, for their max_blocks allow no more; raise these")
        each = self.model.block_bytes + self.model.cache_bytes_per_token * tokens
        raise MemoryShortError(
            f"{what} beside the cache of {sessions} sessions of {workload.session_tokens} tokens: "
            f"the swarm needs {in_gb(lacking * each)} more ({in_gb(each)} a block), or fewer "
            "sessions"
        )


def in_gb(count: float) -> str:
    """Bytes as GB (10^9), for messages; never 0.0 for what is little."""
    gb = count / 1e9
    return f"{gb:,.1f} GB" if gb >= 1 else f"{gb:.2g} GB"


@dataclass(frozen=True)
class Tables:
    """The figures of the papers as arrays: `n` machines, `c` clients; seconds and bytes."""

    memory: Floats
    """`[n]`: `M_j`."""
    block_bytes: float
    """`s_m`."""
    cache_bytes: float
    """`s_c`: of one session in one block."""
    decode_block_s: Floats
    """`[n]`: `tau_j`."""
    prefill_block_s: Floats
    """`[n]`: `tau^I_j`, the whole prompt."""
    decode_hop_s: Floats
    """`[c, n]`: `t_cj` in a relay chain; in a push chain what a hop costs on average."""
    prefill_hop_s: Floats
    """`[c, n]`: `t^I_cj`, likewise."""

    def request_hop_s(self, output_tokens: int) -> Floats:
        """`[c, n]`: of a whole request, `t^I + (l - 1) t`."""
        return self.prefill_hop_s + (output_tokens - 1) * self.decode_hop_s

    def request_block_s(self, output_tokens: int) -> Floats:
        """`[n]`: of a whole request, `tau^I + (l - 1) tau`."""
        return self.prefill_block_s + (output_tokens - 1) * self.decode_block_s


def tables(inventory: Inventory, workload: Workload) -> Tables:
    """The inventory in the symbols of Sun et al., arXiv 2512.21884, section II.

    In a push chain a hop's delay depends on its neighbours. Placements that want one figure for a
    machine get the mean of two: the one-way delay to the client, and to its nearest quarter of the
    other machines.
    """
    peers = [machine.peer for machine in inventory.machines]
    links = inventory.network.links(peers)
    count = len(peers)
    to_client = np.array([links.from_peer_s(client) for client in inventory.clients])
    to_client = to_client.reshape(len(inventory.clients), count)
    per_byte = np.maximum(
        links.seconds_per_byte[None, :],
        np.array([[inventory.network.seconds_per_byte(client)] for client in inventory.clients]),
    )
    if inventory.mode is ChainMode.RELAY:
        delay, trips = 2 * to_client, 2
    else:
        everyone = np.arange(count)
        between = links.between_s(everyone, everyone)
        np.fill_diagonal(between, 0.0)
        between = np.sort(between, axis=1)
        near = between[:, 1 : 1 + max(1, count // 4)]
        nearest = near.mean(axis=1) if count > 1 else np.zeros(count)
        delay, trips = (to_client + nearest[None, :]) / 2, 1
    token_s = trips * inventory.model.activation_bytes * per_byte
    pass_s = np.array([machine.speed.pass_s for machine in inventory.machines])
    prompt = workload.prompt_tokens
    over = inventory.overhead
    return Tables(
        memory=np.array([machine.memory_bytes for machine in inventory.machines]),
        block_bytes=inventory.model.block_bytes,
        cache_bytes=inventory.model.cache_bytes_per_token * workload.session_tokens,
        decode_block_s=np.array([machine.speed.decode_s(1) for machine in inventory.machines])
        - pass_s,
        prefill_block_s=np.array(
            [machine.speed.prefill_per_block_s(prompt) for machine in inventory.machines]
        ),
        decode_hop_s=delay + token_s + over.decode_s + pass_s,
        prefill_hop_s=delay
        + prompt * token_s
        + over.prefill_s
        + over.prefill_token_s * prompt
        + pass_s,
    )

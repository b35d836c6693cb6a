"""The inventory of a swarm that runs now: what its servers announce, and how far they are."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.cli.logs import log_to_stderr
from swarm.cli.plan_models import model_shape
from swarm.cli.plan_placing import Plan
from swarm.client.membership import Membership
from swarm.client.settings import ClientSettings
from swarm.errors import CheckpointError, ModelNotFoundError, UsageError
from swarm.routing.inventory import HostedModel, Inventory, Machine, Workload
from swarm.routing.layout import Layout
from swarm.routing.network import KnownNetwork
from swarm.routing.performance import ServerSpeed
from swarm.routing.planned import expect
from swarm.routing.router import decode_block_s, prefill_block_s, row_block_s
from swarm.routing.view import ServerState, ServerView
from swarm.spans import PeerId

if TYPE_CHECKING:
    from swarm.client.swarm import Swarm
    from swarm.dht.directory import ModelEntry
    from swarm.dht.records import ServerRecord

ANSWER_S = 60.0
"""Longest time for everything; every single connection has its own deadline."""


def live_plan(peers: Sequence[str], model: str | None, workload: Workload) -> Plan:
    """The layout that a live swarm has now, of the model with most servers.

    Raises CheckpointError if nothing is served, ModelNotFoundError if neither `model` nor the name
    that the servers give says what its blocks are.
    """
    log_to_stderr()
    membership = Membership(peers, ClientSettings())
    try:
        runtime, swarm = membership.get()
        return runtime.run(_plan(swarm, model, workload), ANSWER_S)
    finally:
        membership.close()


async def _plan(swarm: "Swarm", model: str | None, workload: Workload) -> Plan:
    from swarm.dht.distances import coordinates, next_hops_s

    entry = _entry(await swarm.models())
    records = await swarm.servers(entry.checkpoint, 0.0)
    records = tuple(one for one in records if one.state is ServerState.ONLINE)
    if not records:
        raise CheckpointError(f"no server of {entry.model} is online now; nothing can be planned")
    await swarm.connect_all(records, swarm.settings.connect_timeout_s)
    rtt_s = swarm.rtt_s([record.peer for record in records])
    inventory = live_inventory(
        [record.view() for record in records],
        hosted_model(records, entry, model),
        KnownNetwork(
            swarm.identity.peer_id,
            rtt_s,
            next_hops_s=next_hops_s(records),
            coordinates=coordinates(records),
        ),
        swarm.identity.peer_id,
    )
    spans = {record.peer: record.span for record in records}
    layout = Layout(entry.num_blocks, spans)
    return Plan("now", inventory, workload, layout, expect(inventory, layout, workload))


def _entry(models: "Sequence[ModelEntry]") -> "ModelEntry":
    if not models:
        raise CheckpointError("this swarm serves no model now; nothing can be planned")
    return max(models, key=lambda one: one.servers)


def hosted_model(
    records: "Sequence[ServerRecord]", entry: "ModelEntry", model: str | None
) -> HostedModel:
    """Sizes by its config, in the dtype and quantization that most of its servers have."""
    try:
        shape = model_shape(model or entry.model)
    except ModelNotFoundError:
        if model is not None:
            raise
        raise ModelNotFoundError(
            f"the swarm serves {entry.model!r}, a name that is not known here; give its "
            "folder with --model"
        ) from None
    if shape.num_blocks != entry.num_blocks:
        raise UsageError(
            f"{shape.name} has {shape.num_blocks} blocks, and the swarm's {entry.model} has "
            f"{entry.num_blocks}; give the right --model"
        )
    numerics = Counter(record.numerics for record in records).most_common(1)[0][0]
    return HostedModel.of(shape, numerics.dtype, numerics.quantization)


def live_inventory(
    servers: Sequence[ServerView], model: HostedModel, network: KnownNetwork, client: PeerId
) -> Inventory:
    """Each server as a machine with the memory that its blocks and its cache take now."""
    machines = tuple(_machine(server, model) for server in servers)
    return Inventory(model, machines, (client,), network)


def _machine(server: ServerView, model: HostedModel) -> Machine:
    per_block = model.block_bytes + model.cache_bytes_per_token * server.cache_tokens_total
    speed = ServerSpeed(
        pass_s=server.decode_fixed_ms / 1e3,
        block_s=decode_block_s(server),
        extra_row_s=row_block_s(server),
        prefill_token_s=prefill_block_s(server, 1),
    )
    return Machine(server.peer, len(server.span) * per_block, speed)

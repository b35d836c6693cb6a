"""Parallax' phase 1 (arXiv 2509.26182): pipelines in each region, the rest where it is light."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from swarm.errors import MemoryShortError, UsageError
from swarm.routing.inventory import Inventory, Machine, Workload, in_gb
from swarm.routing.layout import Layout
from swarm.routing.network import Floats
from swarm.routing.pipelines import StageCapacity, plan_pipelines, stage_capacity, water_fill
from swarm.spans import PeerId, Span

WEIGHTS_SHARE = 0.65
"""Of its memory that a machine gives to weights (Parallax' command line)."""
MAX_VARIATION = 0.25
"""Of the load of layers, above which all is placed anew (Parallax' allocator)."""
_MIN_S = 1e-9
_CLEAR_GAP = 2.0
"""Clusters are apart if the way between them is this much longer than the ways within."""


def regions(rtt_s: Floats) -> list[list[int]]:
    """Clusters of machines that are near each other; `rtt_s`: `[n, n]`.

    Average linkage, cut at the largest relative step between two merges, if it is clear.
    """
    count = len(rtt_s)
    if count < 3:
        return [list(range(count))]
    tree = linkage(squareform((rtt_s + rtt_s.T) / 2, checks=False), method="average")
    heights = np.maximum(tree[:, 2], 1e-6)
    steps = heights[1:] / heights[:-1]
    # Merges of single near machines say nothing of regions: only steps above the median do.
    late = np.flatnonzero(heights[1:] > np.median(heights))
    if not len(late):
        return [list(range(count))]
    best = late[steps[late].argmax()]
    if steps[best] < _CLEAR_GAP:
        return [list(range(count))]
    labels = fcluster(tree, (heights[best] + heights[best + 1]) / 2, criterion="distance")
    return [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]


@dataclass(frozen=True)
class ParallaxPlacement:
    """Regions, dynamic program, water-filling; machines that no pipeline took join where the
    cache for a layer is least."""

    alpha: float = 2.0
    weights_share: float = WEIGHTS_SHARE
    most_variation: float = MAX_VARIATION

    def place(self, inventory: Inventory, workload: Workload) -> Layout:
        """Raises MemoryShortError when all machines together hold no pipeline."""
        layers = inventory.model.num_blocks
        capacities = [self._capacity(inventory, machine) for machine in inventory.machines]
        held = sum(capacity.inner for capacity in capacities)
        if held < layers:
            each = inventory.model.block_bytes / self.weights_share
            raise MemoryShortError(
                f"{len(capacities)} machines hold {held} of the {layers} blocks of "
                f"{inventory.model.name} in {self.weights_share:.0%} of their memory: the swarm "
                f"needs {in_gb((layers - held) * each)} more"
            )
        peers = [machine.peer for machine in inventory.machines]
        everyone = np.arange(len(peers))
        rtt_s = 2 * inventory.network.links(peers).between_s(everyone, everyone)
        spans: dict[PeerId, Span] = {}
        pipelines = 0
        for members in _viable(regions(rtt_s), rtt_s, capacities, layers):
            pipelines += self._fill(inventory, members, capacities, rtt_s, spans)
        self._join(inventory, spans)
        return Layout(layers, spans, notes={"pipelines": float(pipelines)}).check_covers()

    def adjust(self, inventory: Inventory, workload: Workload, now: Layout) -> Layout:
        """The layout after machines have come and gone: those that came join the lightest layers.

        All is placed anew where that leaves a layer without a host, or the loads of the layers with
        a coefficient of variation above `most_variation`. Raises MemoryShortError.
        """
        spans = {
            machine.peer: now.spans[machine.peer]
            for machine in inventory.machines
            if machine.peer in now.spans
        }
        self._join(inventory, spans)
        layout = Layout(now.num_blocks, spans)
        variation = load_variation(inventory, spans)
        if layout.missing() or variation > self.most_variation:
            return self.place(inventory, workload)
        return replace(layout, notes={"variation": variation})

    def _join(self, inventory: Inventory, spans: dict[PeerId, Span]) -> None:
        for machine in inventory.machines:
            count = self._capacity(inventory, machine).inner
            if machine.peer not in spans and count > 0:
                spans[machine.peer] = lightest_span(inventory, spans, count)

    def _capacity(self, inventory: Inventory, machine: Machine) -> StageCapacity:
        limit = inventory.model.num_blocks if machine.max_blocks is None else machine.max_blocks
        count = min(
            limit,
            stage_capacity(
                machine.memory_bytes * self.weights_share, inventory.model.block_bytes
            ).inner,
        )
        return StageCapacity(count, count, count, count)

    def _fill(
        self,
        inventory: Inventory,
        members: Sequence[int],
        capacities: Sequence[StageCapacity],
        rtt_s: Floats,
        spans: dict[PeerId, Span],
    ) -> int:
        """Place the pipelines of one region; returns how many there are."""
        layers = inventory.model.num_blocks
        own = [capacities[number] for number in members]
        block_s = float(
            np.mean([inventory.machines[number].speed.decode_s(1) for number in members])
        )
        within = rtt_s[np.ix_(members, members)]
        try:
            plan = plan_pipelines(
                own,
                layers,
                alpha=self.alpha,
                compute_s=layers * block_s,
                rtt_s=float(np.median(within[np.triu_indices(len(members), 1)]))
                if len(members) > 1
                else 0.0,
            )
        except UsageError:
            return 0
        for chain in plan.members:
            stages = water_fill(
                [own[at] for at in chain],
                _powers([inventory.machines[members[at]] for at in chain]),
                layers,
            )
            start = 0
            for at, count in stages:
                peer = inventory.machines[members[chain[at]]].peer
                spans[peer] = Span(start, start + count)
                start += count
        return len(plan.members)


def lightest_span(inventory: Inventory, spans: dict[PeerId, Span], count: int) -> Span:
    """Where a joining machine goes: from the layer whose hosts offer the least cache on."""
    loads = layer_loads(inventory, spans)
    start = int(np.argmin(loads))
    return Span(min(start, len(loads) - 1), min(start + count, len(loads)))


def layer_loads(inventory: Inventory, spans: dict[PeerId, Span]) -> Floats:
    """`[blocks]`: cache bytes that the hosts of each layer offer it; recomputed from those that are
    there, so that one that leaves takes its share along."""
    loads = np.zeros(inventory.model.num_blocks)
    for peer, span in spans.items():
        room = inventory.machine(peer).memory_bytes - inventory.model.block_bytes * len(span)
        loads[span.start : span.end] += max(0.0, room) / len(span)
    return loads


def load_variation(inventory: Inventory, spans: dict[PeerId, Span]) -> float:
    """Standard deviation of the layers' loads over their mean; 0 where there is no load at all."""
    loads = layer_loads(inventory, spans)
    mean = float(loads.mean())
    return float(loads.std()) / mean if mean > 0 else 0.0


def _viable(
    clusters: Sequence[Sequence[int]],
    rtt_s: Floats,
    capacities: Sequence[StageCapacity],
    layers: int,
) -> list[list[int]]:
    """Regions that hold a pipeline: one that does not joins its nearest."""
    merged = [list(cluster) for cluster in clusters]
    while len(merged) > 1:
        poor = min(merged, key=lambda one: sum(capacities[number].inner for number in one))
        if sum(capacities[number].inner for number in poor) >= layers:
            break
        merged.remove(poor)
        nearest = min(merged, key=lambda other: float(rtt_s[np.ix_(poor, other)].mean()))
        nearest.extend(poor)
    return [sorted(cluster) for cluster in merged]


def _powers(machines: Sequence[Machine]) -> list[float]:
    """In one unit: what they compute if that is known of all of them, else how fast a block
    decodes."""
    if all(machine.flops_per_s > 0 for machine in machines):
        return [machine.flops_per_s for machine in machines]
    return [1 / max(machine.speed.decode_s(1), _MIN_S) for machine in machines]

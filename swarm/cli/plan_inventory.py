"""Inventories as people write them: YAML, checked field by field, one line for each mistake."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Self

import numpy as np
import yaml
from pydantic import ValidationError, model_validator

from swarm.cli.plan_parts import (
    HostPart,
    MachinePart,
    ModelPart,
    NetworkPart,
    OverheadPart,
    Part,
    PeerPart,
    SimulationPart,
    WorkloadPart,
)
from swarm.errors import UsageError
from swarm.printable import printable
from swarm.routing.inventory import Inventory
from swarm.routing.layout import Layout
from swarm.routing.network import MatrixNetwork
from swarm.routing.performance import ChainMode, HopOverhead
from swarm.simulator.scenario import Churn, Fault, HostCores, Scenario, Timing, Traffic
from swarm.spans import PeerId


class PlanMistakesError(UsageError):
    """What is wrong with an inventory, one line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


class PlanFile(Part):
    """A whole inventory file."""

    model: ModelPart
    machines: tuple[MachinePart, ...]
    clients: tuple[PeerPart, ...] = (PeerPart(name="client"),)
    network: NetworkPart = NetworkPart()
    workload: WorkloadPart = WorkloadPart()
    overhead: OverheadPart = OverheadPart()
    hosts: tuple[HostPart, ...] = ()
    simulation: SimulationPart = SimulationPart()
    mode: ChainMode = ChainMode.PUSH
    seed: int = 0
    """Of what is drawn: the network's spread."""

    @model_validator(mode="before")
    @classmethod
    def _model_by_name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("model"), str):
            return {**value, "model": {"name": value["model"]}}
        return value

    @model_validator(mode="after")
    def _names(self) -> Self:
        if not self.machines or not self.clients:
            raise ValueError("there must be at least one machine and one client")
        names = [peer for part in (*self.machines, *self.clients) for peer in part.names()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"named twice: {', '.join(twice)}")
        hosts = {host.name for host in self.hosts}
        unknown = sorted({part.host for part in self.machines if part.host} - hosts)
        if unknown:
            raise ValueError(f"hosts lacks {', '.join(unknown)}, which machines name")
        return self

    def inventory(self) -> Inventory:
        """Raises UsageError for a model or hardware that nobody knows."""
        shape = self.model.shape()
        hosted = self.model.hosted(shape)
        machines = [one for part in self.machines for one in part.machines(shape, self.model)]
        clients = [peer for part in self.clients for peer in part.names()]
        return Inventory(
            hosted,
            tuple(machines),
            tuple(clients),
            self._network(),
            self.mode,
            HopOverhead(self.overhead.decode_ms / 1e3, self.overhead.prefill_ms / 1e3),
        )

    def scenario(
        self,
        inventory: Inventory,
        layout: Layout,
        *,
        requests: int | None = None,
        rate_per_s: float | None = None,
        seed: int = 0,
    ) -> Scenario:
        """What is given replaces what the file says.

        Without a rate, the workload's sessions: each client asks again when it has its answer.
        """
        part, work = self.simulation, self.workload
        rate = work.rate_per_s if rate_per_s is None else rate_per_s
        traffic = Traffic(
            rate,
            requests or part.requests,
            max(1, work.prompt_tokens),
            work.output_tokens,
            part.spread,
            at_once=not rate,
        )
        return Scenario(
            inventory,
            layout,
            traffic,
            Churn(part.median_stay_s, part.away_s, part.crash_share, part.load_s_per_block),
            Timing(announce_s=part.announce_s, view_age_s=part.view_age_s),
            tuple(
                Fault(
                    one.kind,
                    PeerId(one.machine),
                    one.at_s,
                    one.lasts_s,
                    one.factor,
                    None if one.other is None else PeerId(one.other),
                )
                for one in part.faults
            ),
            self.host_cores(),
            part.liars,
            part.lie,
            seed=seed,
        )

    def host_cores(self) -> tuple[HostCores, ...]:
        """Which machines share which cores."""
        return tuple(
            HostCores(
                host.cores,
                tuple(
                    peer
                    for part in self.machines
                    if part.host == host.name
                    for peer in part.names()
                ),
            )
            for host in self.hosts
        )

    def _network(self) -> MatrixNetwork:
        parts: list[PeerPart] = [*self.machines, *self.clients]
        peers = [(peer, part) for part in parts for peer in part.names()]
        draw = Random(f"network {self.seed}")
        one_way = np.zeros((len(peers), len(peers)))
        rates: dict[PeerId, float] = {}
        for number, (peer, part) in enumerate(peers):
            rate = part.bandwidth_mbit or self.network.bandwidth_mbit
            if rate is not None:
                rates[peer] = rate * 1e6 / 8
            for before in range(number):
                other = peers[before][1]
                rtt_ms = self.network.rtt_ms(part.region, other.region)
                if self.network.spread:
                    rtt_ms *= draw.lognormvariate(0.0, self.network.spread)
                rtt_ms += self._access_ms(part) + self._access_ms(other)
                one_way[number, before] = one_way[before, number] = rtt_ms / 2e3
        return MatrixNetwork([peer for peer, _ in peers], one_way, rates)

    def _access_ms(self, part: PeerPart) -> float:
        relayed = isinstance(part, MachinePart) and part.relayed
        return part.access_ms + (self.network.relay_ms if relayed else 0.0)


def read_plan(path: Path) -> PlanFile:
    """Raises PlanMistakesError with one line for each mistake; UsageError for what is no YAML."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is not an inventory: it has no 'model:' and no 'machines:'")
    try:
        return PlanFile.model_validate(value)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False)
        raise PlanMistakesError([_line(path, mistake) for mistake in mistakes]) from None


def _line(path: Path, mistake: Any) -> str:
    where = ""
    for part in mistake["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    said = mistake["msg"].removeprefix("Value error, ")
    said = {"Extra inputs are not permitted": "no such field"}.get(said, said)
    value = mistake["input"]
    given = f" (not {value!r})" if isinstance(value, int | float | str) else ""
    return printable(f"{path}: {where or 'the whole'}: {said[:1].lower()}{said[1:]}{given}")

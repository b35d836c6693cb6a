"""The parts of an inventory file, each checked for itself."""

from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from swarm.cli.plan_models import model_shape
from swarm.errors import UsageError
from swarm.routing.hardware import hardware_named, roofline
from swarm.routing.inventory import HostedModel, Machine, Workload
from swarm.routing.model_shape import ModelShape, bytes_per_weight
from swarm.routing.performance import ServerSpeed
from swarm.simulator.scenario import FaultKind
from swarm.spans import PeerId

USABLE_MEMORY = 0.9
"""Of a machine's memory by its data sheet; the rest goes to the driver and to activations."""

DEFAULT_SESSIONS = 8
"""At once, where an inventory says neither sessions nor a rate."""


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return value


Amount = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=10_000)]
Name = Annotated[str, Field(min_length=1, max_length=80)]


class Part(BaseModel):
    """Base of all: unknown fields are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelPart(Part):
    """`model:`; `name` alone, or the figures of a model that nobody knows."""

    name: Name = "the model"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    quantization: Literal["none", "int8", "fp8", "nf4", "int4"] = "none"
    blocks: Count | None = None
    block_gb: Positive | None = None
    cache_bytes_per_token: Amount = 0.0
    activation_bytes: Amount = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.blocks is None) != (self.block_gb is None):
            raise ValueError("blocks and block_gb go together")
        return self

    def shape(self) -> ModelShape:
        """Raises UsageError for a model that nobody knows."""
        if self.blocks is None or self.block_gb is None:
            return model_shape(self.name)
        weight = bytes_per_weight(self.dtype, self.quantization)
        return ModelShape(
            name=self.name,
            num_blocks=self.blocks,
            hidden_size=0,
            attention_parameters=round(self.block_gb * 1e9 / weight),
            expert_parameters=0,
            num_experts=1,
            active_experts=1,
            shared_parameters=0,
            cached_values=0,
        )

    def hosted(self, shape: ModelShape) -> HostedModel:
        """Its sizes in bytes."""
        if self.blocks is None:
            return HostedModel.of(shape, self.dtype, self.quantization)
        return HostedModel(
            self.name,
            shape.num_blocks,
            shape.block_bytes(self.dtype, self.quantization),
            self.cache_bytes_per_token,
            self.activation_bytes,
        )


class PeerPart(Part):
    """Where a peer is; `count` of them are alike."""

    name: Name
    count: Count = 1
    region: Name = "here"
    access_ms: Amount = 0.0
    """Added to every round trip of this peer."""
    bandwidth_mbit: Positive | None = None

    def names(self) -> list[PeerId]:
        """One for each."""
        if self.count == 1:
            return [PeerId(self.name)]
        return [PeerId(f"{self.name}-{number}") for number in range(1, self.count + 1)]


class MachinePart(PeerPart):
    """One of `machines:`; by its hardware's data sheet, what was measured goes before it."""

    hardware: Name | None = None
    memory_gb: Amount | None = None
    """For blocks and cache together."""
    decode_ms_per_block: Positive | None = None
    """Of a pass with one row."""
    row_ms_per_block: Amount | None = None
    """By which a further row lengthens it."""
    pass_ms: Amount | None = None
    prefill_ms_per_token: Amount | None = None
    """Of one prompt token in one block."""
    max_blocks: Annotated[int, BeforeValidator(_number), Field(ge=0)] | None = None
    relayed: bool = False
    host: Name | None = None
    """Machines of one host share its cores."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.hardware is not None:
            try:
                hardware_named(self.hardware)
            except UsageError as error:
                raise ValueError(str(error)) from error
        elif self.memory_gb is None or self.decode_ms_per_block is None:
            raise ValueError("give its hardware, or memory_gb and decode_ms_per_block")
        return self

    def machines(self, shape: ModelShape, model: ModelPart) -> list[Machine]:
        """One for each."""
        speed, memory_gb, flops = self._by_hardware(shape, model)
        given = {
            "block_s": self.decode_ms_per_block,
            "extra_row_s": self.row_ms_per_block,
            "pass_s": self.pass_ms,
            "prefill_token_s": self.prefill_ms_per_token,
        }
        measured = {name: value / 1e3 for name, value in given.items() if value is not None}
        if "extra_row_s" in measured:
            measured["row_s"] = 0.0
        speed = replace(speed, **measured)
        memory_gb = memory_gb if self.memory_gb is None else self.memory_gb
        return [
            Machine(peer, memory_gb * 1e9, speed, self.max_blocks, self.relayed, flops)
            for peer in self.names()
        ]

    def _by_hardware(self, shape: ModelShape, model: ModelPart) -> tuple[ServerSpeed, float, float]:
        if self.hardware is None:
            # A prompt's token costs what a decoded one does, until somebody measures it.
            block_s = (self.decode_ms_per_block or 0.0) / 1e3
            return ServerSpeed(0.0, block_s, row_s=block_s, prefill_token_s=block_s), 0.0, 0.0
        hardware = hardware_named(self.hardware)
        speed = roofline(hardware, shape, model.dtype, model.quantization)
        return speed, USABLE_MEMORY * hardware.memory_gb, hardware.tflops * 1e12


class RegionsPart(Part):
    """One of `network.between:`, the round trip between two regions."""

    regions: tuple[Name, Name]
    rtt_ms: Amount


class NetworkPart(Part):
    """`network:`; a round trip is that of the two regions, times a drawn factor, plus the access
    of both peers."""

    within_region_ms: Amount = 20.0
    between_regions_ms: Amount = 100.0
    between: tuple[RegionsPart, ...] = ()
    spread: Annotated[float, BeforeValidator(_number), Field(ge=0, le=2)] = 0.0
    """Sigma of the log-normal factor."""
    relay_ms: Amount = 60.0
    """Added to every round trip of a relayed machine."""
    bandwidth_mbit: Positive | None = None
    """Of peers that do not say."""

    def rtt_ms(self, one: str, other: str) -> float:
        """Of two regions."""
        for entry in self.between:
            if set(entry.regions) == {one, other}:
                return entry.rtt_ms
        return self.within_region_ms if one == other else self.between_regions_ms


class WorkloadPart(Part):
    """`workload:`."""

    prompt_tokens: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 128
    output_tokens: Count = 128
    sessions: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    rate_per_s: Amount = 0.0
    held_s: Amount = 0.0

    def workload(self, rate_per_s: float | None = None) -> Workload:
        """What placements take; a rate that is given replaces the file's rate and sessions."""
        rate = self.rate_per_s if rate_per_s is None else rate_per_s
        sessions = 0 if rate_per_s else self.sessions
        if not rate and not sessions:
            sessions = DEFAULT_SESSIONS
        return Workload(self.prompt_tokens, self.output_tokens, sessions, rate, self.held_s)


class HostPart(Part):
    """One of `hosts:`."""

    name: Name
    cores: Positive


class OverheadPart(Part):
    """`overhead:`, of each hop beside compute, delay and bytes."""

    decode_ms: Amount = 2.0
    prefill_ms: Amount = 2.0


class FaultPart(Part):
    """One of `simulation.faults:`."""

    kind: FaultKind
    machine: Name
    at_s: Amount
    lasts_s: Amount = 0.0
    factor: Annotated[float, BeforeValidator(_number), Field(ge=1, allow_inf_nan=False)] = 4.0
    other: Name | None = None
    """Of a link's fault: the machine at its other end."""


class SimulationPart(Part):
    """`simulation:`; what happens while the workload is served."""

    requests: Annotated[int, BeforeValidator(_number), Field(ge=1, le=10_000_000)] = 200
    spread: Annotated[float, BeforeValidator(_number), Field(ge=0, le=3)] = 0.0
    """Sigma of the log-normal lengths of prompts and outputs."""
    median_stay_s: Amount = 0.0
    """Of a machine; 0: nobody leaves."""
    away_s: Amount = 600.0
    crash_share: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] = 0.5
    load_s_per_block: Amount = 0.5
    liars: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] = 0.0
    """Share of the machines that announce themselves `lie` times as fast as they are."""
    lie: Annotated[float, BeforeValidator(_number), Field(ge=1, allow_inf_nan=False)] = 4.0
    view_age_s: Positive = 10.0
    """How often a client looks up the servers."""
    announce_s: Positive = 20.0
    faults: tuple[FaultPart, ...] = ()

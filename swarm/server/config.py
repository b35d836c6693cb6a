"""Everything that a volunteer can set, in one place: the options of `swarm-server`."""

from collections.abc import Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from swarm.errors import AddressError, UsageError
from swarm.server.reachability import check_dialable
from swarm.server.sizes import parse_bytes
from swarm.spans import Span
from swarm.wire.addresses import check_address, check_listening, is_in_memory, split_peer
from swarm.wire.identity import is_peer_id

Config = TypeVar("Config", bound="Listening")
PAGE_TOKENS = 64
"""The cache is given out in pages of so many tokens."""
MAX_NAME_BYTES = 60
"""Of the public name in UTF-8: it travels in a record of at most 1 KB."""
DTypeName = Literal["auto", "float32", "bfloat16", "float16"]
QuantizationName = Literal["none", "int8", "nf4"]


class Listening(BaseModel):
    """How a peer is in the network: who it is, where it listens, whom it joins."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    peers: tuple[str, ...] = ()
    """Addresses of any members of the swarm, `/ip4/../tcp/../p2p/ID`; empty: a new swarm."""
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    """Addresses to listen on; port 0 takes a free one."""
    announce: tuple[str, ...] = ()
    """Addresses that others are told, when they differ (port forwarding); empty: `listen`."""
    identity: Path | None = None
    """Key file of the peer id, made if absent; None: one in the user's data folder."""

    @field_validator("peers", "listen", "announce")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            check_address(address)
        return value

    @field_validator("peers")
    @classmethod
    def _check_peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            split_peer(address)
        return value

    @field_validator("announce")
    @classmethod
    def _check_announce(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            check_dialable(address)
        return value

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise AddressError("a server needs at least one address to listen on")
        for address in value:
            if not is_in_memory(address):
                check_listening(address)
        return value


class ServerConfig(Listening):
    """The settings of one server; every default works on a plain machine."""

    model: str | None = None
    """A folder, a GGUF file or a Hugging Face name; None: the embedded SmolLM2-135M-Instruct."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face name."""
    blocks: Span | None = None
    """The blocks to host; None: all that fit in memory, else where the swarm is weakest."""
    move_check_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60.0
    """Without `blocks`: about how often the server looks whether others need it more, and moves
    there; 0: it never moves."""
    dtype: DTypeName = "auto"
    """Of weights and cache. auto: float32 on a CPU, else the checkpoint's own."""
    quantization: QuantizationName = "none"
    """Of the weights of linear layers: int8 (torchao), nf4 (bitsandbytes); none: `dtype`."""
    device: str = "auto"
    """A torch device; auto: the first GPU if there is one, else the CPU."""
    cache_tokens: Annotated[int, Field(ge=PAGE_TOKENS)] | None = None
    """Tokens of K/V that all sessions share, at least a page, rounded up to whole pages; None: a
    part of the free memory."""
    max_memory: Annotated[int, Field(gt=0)] | None = None
    """Bytes that blocks and cache may take together, or text such as `8GiB`; None: what is free."""
    max_upload_mbit: Annotated[float, Field(ge=0.1, le=1e9, allow_inf_nan=False)] | None = None
    """Mbit/s that all links of the server together may send; None: as fast as they can."""
    sessions_per_client: Annotated[int, Field(ge=1)] = 256
    """Open or in line, of one peer id."""
    tokens_per_client: Annotated[int, Field(ge=PAGE_TOKENS)] | None = None
    """Cached tokens in all sessions of one peer id; None: as many as there are."""
    known_clients: tuple[str, ...] = ()
    """Peer ids, and networks such as `192.168.1.0/24`, that are served as groups of their own; all
    others together then get 20 to 50 % while these want service, too. Empty: all are alike."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads to compute with; None: as OMP_NUM_THREADS says, else one for each core."""
    name: str = ""
    """A name that people see in `swarm-client status`: at most 60 bytes, printable, one line."""
    stats_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Seconds between two `stats` events; None: none."""
    drain_timeout_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """How long a stopping server waits for its sessions to move to other servers, or to end."""
    backup_memory: Annotated[int, Field(ge=0)] | None = None
    """MiB for the backups of all sessions; None: an eighth of the cache, at least 64."""

    @field_validator("blocks", mode="before")
    @classmethod
    def _parse_blocks(cls, value: object) -> object:
        return Span.parse(value) if isinstance(value, str) else value

    @field_validator("max_memory", mode="before")
    @classmethod
    def _parse_memory(cls, value: object) -> object:
        return parse_bytes(value) if isinstance(value, str) else value

    @field_validator("known_clients")
    @classmethod
    def _check_known_clients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if "/" in name:
                ip_network(name)  # its ValueError says what is wrong
            else:
                _check_peer_id(name)
        return value

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        name = value.strip()
        if not name.isprintable():
            raise ValueError("a name has letters, digits, signs and spaces only")
        if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
            raise ValueError(
                f"{len(name.encode())} bytes; a name has at most {MAX_NAME_BYTES}, and letters"
                " beyond a to z may take several"
            )
        return name


def _check_peer_id(name: str) -> None:
    if not is_peer_id(name):
        raise ValueError(f"{name!r} is neither a peer id nor a network such as 192.168.1.0/24")


def make_config(kind: type[Config], **values: object) -> Config:
    """A config from outside values; a wrong one raises a `UsageError` of one line."""
    try:
        return kind.model_validate(values)
    except ValidationError as invalid:
        raise UsageError("; ".join(_explain(invalid.errors()))) from None


def _explain(errors: Sequence[object]) -> list[str]:
    lines = []
    for error in errors:
        assert isinstance(error, dict)
        name = ".".join(str(part) for part in error["loc"])
        field = "--" + name.removesuffix("_s").replace("_", "-")  # options leave the unit out
        cause = error.get("ctx", {}).get("error")
        text = str(cause or error["msg"])
        lines.append(f"{field}: {text}")
    return lines

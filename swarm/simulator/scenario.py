"""What happens in a simulation: requests, comings and goings, faults, and who tells untruths."""

from dataclasses import dataclass, field
from enum import StrEnum

from swarm.errors import UsageError
from swarm.routing.inventory import Inventory
from swarm.routing.layout import Layout
from swarm.routing.view import CacheUnit
from swarm.spans import PeerId


@dataclass(frozen=True)
class HostCores:
    """Servers that share the cores of one host."""

    cores: float
    """A pass takes one of them; with more passes than cores, all of them are slowed alike."""
    machines: tuple[PeerId, ...]
    """Also clients, which compute embeddings and head there."""


class FaultKind(StrEnum):
    """What may happen to a server or to the link of two: all words of `scripts/faults.py`, with
    which real ones are tried, and two more."""

    KILL = "kill"
    """It is gone at once, with all its sessions; its record stays until it expires."""
    FREEZE = "freeze"
    """It says and computes nothing for a while, then goes on."""
    FREEZE_DAEMON = "freeze_daemon"
    """Nothing reaches it and nothing leaves it for a while; it computes on."""
    FREEZE_BOTH = "freeze_both"
    """As `FREEZE`: to others it is the same whether connections are still taken."""
    KILL_DAEMON = "kill_daemon"
    """Its links break, which others notice soon, until the new daemon is there."""
    REFUSE = "refuse"
    """It takes no new session for a while."""
    CRASH_AT_STEP = "crash_at_step"
    """It is gone in the middle of the next pass that it begins."""
    WRONG_OUTPUT = "wrong_output"
    """What it computes for a while is no number, and it says so."""
    STALE_RECORD = "stale_record"
    """As `FREEZE`, but it still announces itself."""
    CUT_LINK = "cut_link"
    """Nothing passes between it and `other` for a while, and nothing says so."""
    SLOW_LINK = "slow_link"
    """What passes between them takes half a minute longer."""
    SLOW = "slow"
    """Its passes take longer for a while (`factor`), and it does not say so."""
    DRAIN = "drain"
    """It takes no new sessions, and leaves when its own have ended (or the time is over)."""


LINK_FAULTS = frozenset({FaultKind.CUT_LINK, FaultKind.SLOW_LINK})


@dataclass(frozen=True)
class Fault:
    """One fault of one server, or of its link to another."""

    kind: FaultKind
    machine: PeerId
    at_s: float
    lasts_s: float = 0.0
    """Until it is well again; of a kill, a crash and a drain: until it comes back. 0: never."""
    factor: float = 4.0
    """Of SLOW."""
    other: PeerId | None = None
    """The server at the other end of the link."""

    def __post_init__(self) -> None:
        if self.at_s < 0 or self.lasts_s < 0 or self.factor < 1:
            raise UsageError(
                f"{self.kind} of {self.machine} at {self.at_s:g} s for {self.lasts_s:g} s, factor "
                f"{self.factor:g}; times are at least 0 and the factor at least 1"
            )
        if (self.kind in LINK_FAULTS) != (self.other not in (None, self.machine)):
            raise UsageError(
                f"{self.kind} of {self.machine}, other: {self.other}; a link has two ends, and what"
                " happens to one machine has none"
            )


@dataclass(frozen=True)
class Traffic:
    """Requests as they come, a Poisson process over all clients together."""

    rate_per_s: float
    requests: int
    prompt_tokens: int
    output_tokens: int
    """The mean of what a request really generates."""
    spread: float = 0.0
    """Sigma of the log-normal lengths of prompts and outputs; 0: all alike."""
    expected_tokens: int | None = None
    """What clients expect and reserve of output; None: twice the mean with a spread, else it."""
    at_once: bool = False
    """Instead of a Poisson process, each client sends its next request when the last one ends."""
    together: bool = False
    """With `at_once`: when the last ones of all clients have ended."""

    def __post_init__(self) -> None:
        if self.requests < 1 or self.prompt_tokens < 1 or self.output_tokens < 1:
            raise UsageError(
                f"{self.requests} requests of {self.prompt_tokens} tokens in and "
                f"{self.output_tokens} out; all of them are at least 1"
            )
        if self.together and not self.at_once:
            raise UsageError("clients that begin together send their requests at once, not by rate")
        if not self.at_once and not self.rate_per_s > 0:
            raise UsageError(f"requests come at {self.rate_per_s:g} a second; give more than 0")
        if not 0 <= self.spread <= 3:
            raise UsageError(f"a spread of {self.spread:g}; give 0 to 3")

    @property
    def reserved_output(self) -> int:
        """Output tokens that a client makes room for."""
        if self.expected_tokens is not None:
            return self.expected_tokens
        return 2 * self.output_tokens if self.spread else self.output_tokens


@dataclass(frozen=True)
class Churn:
    """Comings and goings beside the faults that are named."""

    median_stay_s: float = 0.0
    """Stays are exponential; 0: nobody leaves."""
    away_s: float = 600.0
    """Mean time until a machine comes back."""
    crash_share: float = 0.5
    """Of those that leave, how many just vanish; the others drain."""
    load_s_per_block: float = 0.5
    """Reading a block's weights when a machine comes."""

    def __post_init__(self) -> None:
        if min(self.median_stay_s, self.away_s, self.load_s_per_block) < 0:
            raise UsageError("times of churn are at least 0")
        if not 0 <= self.crash_share <= 1:
            raise UsageError(f"a crash share of {self.crash_share:g}; give 0 to 1")


@dataclass(frozen=True)
class Timing:
    """How fast news travel and what clients do by the clock; seconds. The defaults are those of
    the programs."""

    announce_s: float = 20.0
    """How often a server announces itself."""
    view_age_s: float = 10.0
    """Age at which a client looks up the servers again."""
    notice_s: float = 0.2
    """Until a client knows of a broken link."""
    silence_s: float = 3.5
    """Until it knows of a server that says nothing."""
    open_timeout_s: float = 60.0
    """Longest wait in line for room."""
    repair_timeout_s: float = 30.0
    """How long a new route is looked for."""
    missing_timeout_s: float = 5.0
    """How long a client that has no session yet looks again when blocks have no server."""
    retry_s: float = 0.5
    """Between two looks, each at a new list of servers."""
    chunk_tokens: int | None = None
    """Prompts travel in pieces of so many tokens; None: as clients cut them."""
    window: int = 8
    """Most pieces on their way at once."""
    pass_tokens: int = 512
    """Most tokens of a kind in one pass."""


@dataclass(frozen=True)
class Scenario:
    """One simulation, whole; the same one and the same seed give the same result."""

    inventory: Inventory
    layout: Layout
    traffic: Traffic
    churn: Churn = field(default_factory=Churn)
    timing: Timing = field(default_factory=Timing)
    faults: tuple[Fault, ...] = ()
    hosts: tuple[HostCores, ...] = ()
    liars: float = 0.0
    """Share of the servers that announce themselves `lie` times as fast as they are."""
    lie: float = 4.0
    client_request_s: float = 0.0
    """What a client computes for a request before it asks for a route: ids, embeddings, grant."""
    hop_open_s: float = 0.0
    """What a server computes to open a session."""
    client_token_s: float = 0.0
    """What a client computes for each of its tokens: the head, and the next one's embedding."""
    cache_unit: CacheUnit = CacheUnit.SPAN
    seed: int = 0

    def __post_init__(self) -> None:
        self.layout.check_covers()
        if not 0 <= self.liars <= 1 or self.lie < 1:
            raise UsageError(
                f"{self.liars:g} of the servers claim to be {self.lie:g} times as fast; give a "
                "share from 0 to 1 and a factor from 1"
            )
        for name in ("client_request_s", "hop_open_s", "client_token_s"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} = {getattr(self, name):g}; give 0 or more seconds")
        known = {machine.peer for machine in self.inventory.machines} | {*self.inventory.clients}
        named = [fault.machine for fault in self.faults]
        named += [fault.other for fault in self.faults if fault.other is not None]
        named += [peer for host in self.hosts for peer in host.machines]
        for peer in named:
            if peer not in known:
                raise UsageError(f"no machine is called {peer}")
        sharing = [peer for host in self.hosts for peer in host.machines]
        if len(set(sharing)) != len(sharing):
            raise UsageError("a machine is on one host only")

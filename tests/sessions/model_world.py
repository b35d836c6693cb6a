"""The world of the model check: links, engines, faults and time, all drawn from one seed."""

import random
from collections import deque
from dataclasses import dataclass, field

from model_client import ModelClient, NoServersLeftError
from model_server import ModelServer
from model_wire import Sent

from swarm.errors import (
    CacheFullError,
    PeerTimeoutError,
    RefusedError,
    SessionLostError,
    SwarmError,
    UnreachablePeerError,
)
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Close, Held, Message, Open, Refused
from swarm.spans import PeerId

ACTION_S = 0.0005
MAX_ACTIONS = 60_000
BY_FAULTS = (PeerTimeoutError, UnreachablePeerError, SessionLostError, NoServersLeftError)
"""How a session may end when frames are lost; a hop that rejects a frame is a broken rule."""
Frame = tuple[Message, list[int]] | None
"""None: the link is lost."""


@dataclass(frozen=True)
class Faults:
    """How often, per action, the world does what."""

    duplicates: float = 0.0
    drops: float = 0.0
    cuts: float = 0.0
    kills: float = 0.0
    evictions: float = 0.0
    freezes: float = 0.0
    """A server does nothing for a while; if it is long, everybody gives up the link to it."""
    drains: float = 0.0
    """A server leaves: it asks for its sessions to be moved, and ends those that stay."""
    hedges: float = 0.0
    """A client fences its own route, as it does when a step is late."""

    @property
    def lossy(self) -> bool:
        return bool(self.drops or self.cuts or self.kills or self.freezes or self.drains)


@dataclass
class World:
    seed: int
    faults: Faults = field(default_factory=Faults)
    hop_class: type[HopSession] = HopSession
    strict: bool = True
    clients: int = 1
    servers: int = 4
    sessions_per_server: int = 100
    turns: int = 8
    can_reroute: bool = False

    def __post_init__(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.now = 0.0
        self.engine_speed = rng.choice((1.0, 0.3, 0.05))
        self.links: dict[tuple[PeerId, PeerId], deque[Frame]] = {}
        self.frozen: dict[PeerId, float] = {}
        self.leaving: dict[PeerId, float] = {}
        rows, length = rng.randint(1, 4), 120
        names = [PeerId(f"server-{number:04}") for number in range(self.servers)]
        self.alive = {
            name: ModelServer(
                name,
                capacity_tokens=rows * length * self.sessions_per_server,
                hop_class=self.hop_class,
                strict=self.strict,
                keep_backup=rng.random() < 0.7,
            )
            for name in names
        }
        self.users = {
            (name := PeerId(f"client-{number:04}")): ModelClient(
                name,
                random.Random(rng.random()),
                names,
                turns=self.turns,
                rows=rows,
                length=length,
                can_reroute=self.can_reroute,
            )
            for number in range(self.clients)
        }

    def run(self) -> None:
        """Until everybody is done and everything is free; AssertionError for anything wrong."""
        for name, user in self.users.items():
            self._send(name, user.start(self.now))
        for _ in range(MAX_ACTIONS):
            if not self._act():
                break
        else:
            raise AssertionError("it does not end")
        for name, server in self.alive.items():
            assert not server.running, f"{name} still has sessions"
            assert server.admission.free_tokens == server.admission.capacity_tokens
            assert not server.admission.line
        explained: tuple[type[SwarmError], ...] = BY_FAULTS if self.faults.lossy else ()
        if self.faults.drains:
            explained += (RefusedError,)
        if self.sessions_per_server < self.clients and (self.faults.lossy or self.can_reroute):
            # The word that a session has ended may be lost; and of two that move each may wait for
            # what the other holds, until one gives up.
            explained += (CacheFullError, NoServersLeftError)
        for user in self.users.values():
            assert user.done, "a client waits for ever"
            if user.error is not None and not isinstance(user.error, explained):
                raise AssertionError(f"no fault explains this: {user.error!r}")

    # ---- one thing happens

    def _act(self) -> bool:
        self.now += ACTION_S
        self._misbehave()
        self._end_troubles()
        actions: list[tuple[str, object]] = [
            ("link", pair)
            for pair, frames in self.links.items()
            if frames and pair[1] not in self.frozen
        ]
        actions += [
            ("engine", name)
            for name, server in self.alive.items()
            if server.passes and name not in self.frozen
        ]
        actions += [("user", name) for name, user in self.users.items() if user.may_act]
        if not actions:
            return self._wait()
        kind, what = self.rng.choice(actions)
        if kind == "link":
            self._deliver(what)  # type: ignore[arg-type]
        elif kind == "engine":
            if self.rng.random() < self.engine_speed:
                self._send(what, self.alive[what].compute(self.now))  # type: ignore[index, arg-type]
        else:
            self._send(what, self.users[what].act(self.now))  # type: ignore[index, arg-type]
        return True

    def _wait(self) -> bool:
        """Nothing can happen but time; False: not even that."""
        everyone = {**self.alive, **self.users}
        everyone = {name: peer for name, peer in everyone.items() if name not in self.frozen}
        deadlines = [d for peer in everyone.values() if (d := peer.deadline) is not None]
        deadlines += [*self.frozen.values(), *self.leaving.values()]
        if not deadlines:
            return any(not user.done for user in self.users.values()) and any(
                user.session is not None and not user.done for user in self.users.values()
            )
        self.now = max(self.now, min(deadlines))
        for name, peer in everyone.items():
            self._send(name, peer.tick(self.now))
        return True

    def _deliver(self, pair: tuple[PeerId, PeerId]) -> None:
        sender, receiver = pair
        frame = self.links[pair].popleft()
        peer = self.alive.get(receiver) or self.users.get(receiver)
        if peer is None:
            return
        if frame is None:
            self._send(receiver, peer.lose(sender, self.now))
            return
        message, payload = frame
        if self.rng.random() < self.faults.drops:
            return
        if self.rng.random() < self.faults.duplicates and not isinstance(
            message, Open | Close | Held | Refused
        ):
            frames = self.links[pair]
            frames.insert(self.rng.randint(0, len(frames)), frame)
        self._send(receiver, peer.receive(sender, message, payload, self.now))

    def _send(self, sender: PeerId, sent: list[Sent]) -> None:
        for receiver, message, payload in sent:
            if receiver in self.alive or receiver in self.users:
                self.links.setdefault((sender, receiver), deque()).append((message, payload))
            else:
                self.links.setdefault((receiver, sender), deque()).append(None)

    # ---- faults

    def _misbehave(self) -> None:
        rng, names = self.rng, list(self.alive)
        if rng.random() < self.faults.cuts:
            one, other = rng.sample([*names, *self.users], 2)
            self._cut(one, other)
        if rng.random() < self.faults.kills and len(names) > 1:
            dead = rng.choice(names)
            del self.alive[dead]
            names.remove(dead)
            self.frozen.pop(dead, None)
            self.leaving.pop(dead, None)
            for peer in [*self.alive, *self.users]:
                self._cut(dead, peer)
        if rng.random() < self.faults.freezes and names:
            self._freeze(rng.choice(names), rng.choice((0.01, 0.1, 1.0)))
        staying = [name for name in names if name not in self.leaving]
        if rng.random() < self.faults.drains and len(staying) > 1:
            name = rng.choice(staying)
            self.leaving[name] = self.now + rng.choice((0.02, 0.2, 2.0))
            self._send(name, self.alive[name].drain(self.now))
        if rng.random() < self.faults.hedges:
            name = rng.choice(list(self.users))
            self._send(name, self.users[name].fence(self.now))
        if rng.random() < self.faults.evictions and self.alive:
            for running in self.alive[rng.choice(list(self.alive))].running.values():
                running.session.evict_backup()

    def _freeze(self, name: PeerId, seconds: float) -> None:
        """Its links are given up by the others when it is silent for long; it learns so later."""
        self.frozen[name] = self.now + seconds
        if seconds >= 1.0:
            for peer in [*self.alive, *self.users]:
                if peer != name:
                    self._cut(name, peer)

    def _end_troubles(self) -> None:
        for name in [name for name, until in self.frozen.items() if until <= self.now]:
            del self.frozen[name]
        for name in [name for name, until in self.leaving.items() if until <= self.now]:
            del self.leaving[name]
            if name in self.alive:
                self._send(name, self.alive[name].stop(self.now))
                self._remove(name)

    def _remove(self, name: PeerId) -> None:
        """What it has sent still arrives, and then the end of its links."""
        del self.alive[name]
        self.frozen.pop(name, None)
        for peer in [*self.alive, *self.users]:
            self.links.setdefault((name, peer), deque()).append(None)
            self.links[peer, name] = deque()

    def _cut(self, one: PeerId, other: PeerId) -> None:
        """Everything under way is lost, and both sides are told."""
        for pair in ((one, other), (other, one)):
            self.links[pair] = deque([None])

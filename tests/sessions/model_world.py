"""The world of the model check: links, engines, faults and time, all drawn from one seed."""

import random
from collections import deque
from dataclasses import dataclass, field

from model_peers import ModelClient, ModelServer, NoServersLeftError, Sent

from swarm.errors import PeerTimeoutError, SessionLostError, UnreachablePeerError
from swarm.sessions.hop import HopSession
from swarm.sessions.messages import Close, Held, Message, Open, Refused
from swarm.spans import PeerId

ACTION_S = 0.0005
MOST_ACTIONS = 60_000
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

    @property
    def lossy(self) -> bool:
        return bool(self.drops or self.cuts or self.kills)


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
        for _ in range(MOST_ACTIONS):
            if not self._act():
                break
        else:
            raise AssertionError("it does not end")
        for name, server in self.alive.items():
            assert not server.running, f"{name} still has sessions"
            assert server.admission.free_tokens == server.admission.capacity_tokens
            assert not server.admission.line
        for user in self.users.values():
            assert user.done, "a client waits for ever"
            if user.error is not None and not (
                self.faults.lossy and isinstance(user.error, BY_FAULTS)
            ):
                raise AssertionError(f"no fault explains this: {user.error!r}")

    # ---- one thing happens

    def _act(self) -> bool:
        self.now += ACTION_S
        self._misbehave()
        actions: list[tuple[str, object]] = [
            ("link", pair) for pair, frames in self.links.items() if frames
        ]
        actions += [("engine", name) for name, server in self.alive.items() if server.passes]
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
        deadlines = [d for peer in everyone.values() if (d := peer.deadline) is not None]
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
            for peer in [*self.alive, *self.users]:
                self._cut(dead, peer)
        if rng.random() < self.faults.evictions:
            for running in self.alive[rng.choice(list(self.alive))].running.values():
                running.session.evict_backup()

    def _cut(self, one: PeerId, other: PeerId) -> None:
        """Everything under way is lost, and both sides are told."""
        for pair in ((one, other), (other, one)):
            self.links[pair] = deque([None])

"""Who is let in: grants checked, quotas kept, room given or waited for."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from swarm.scheduling.fair_queue import own_group
from swarm.scheduling.service_counters import Path
from swarm.sessions.admission import Admission, Decision
from swarm.sessions.grants import GRANT_CONTEXT, check_grant
from swarm.sessions.messages import (
    Grant,
    Open,
    Refused,
    RefuseKind,
    SignedGrant,
    decode_grant,
)
from swarm.spans import PeerId, SessionId, Span
from swarm.wire.identity import verify
from swarm.wire.places import Places

MAX_PLACES_PER_CLIENT = 4
"""Sessions of one client that may wait for room at once."""
MAX_IN_LINE = 1024
"""Sessions of all clients that may wait for room; of one group of them, a fifth (see `Places`)."""


@dataclass(frozen=True)
class Quotas:
    """What clients may ask of this server."""

    sessions_per_client: int
    """Open or in line."""
    tokens_per_client: int | None
    """Cached tokens in all sessions of a client; None: as many as there are."""
    group_of: Callable[[str], Path] = own_group
    """The group of a client, as for `FairQueue`."""


@dataclass(frozen=True)
class Guest:
    """A session that asks to be let in, or that has been."""

    grant: Grant
    hop: int
    tokens: int
    """Of cache, in whole pages."""
    attempt: int
    lease_ends: float
    """When its hold lapses unless it is committed (loop time)."""

    @property
    def session(self) -> SessionId:
        return SessionId(self.grant.session)

    @property
    def client(self) -> PeerId:
        return PeerId(self.grant.client)

    def refused(self, why: RefuseKind, detail: str, free_tokens: int) -> Refused:
        """Tells the client why it is not let in; of `detail`, the first 500 characters."""
        return Refused(
            session=self.grant.session,
            route=self.grant.route,
            why=why,
            detail=detail[:500],
            free_tokens=free_tokens,
            attempt=self.attempt,
        )


@dataclass
class Verdict:
    """What an `Open` leads to; all empty: it waits in line."""

    held: Guest | None = None
    refused: Refused | None = None


@dataclass
class Reception:
    """Decides about `Open` messages and keeps the waiting line. Pure but for the signature."""

    me: PeerId
    checkpoint: str
    span: Span
    admission: Admission
    lease_s: float
    quotas: Quotas
    verify_signature: Callable[[str, bytes, bytes], bool] = verify
    closed: bool = False
    """Draining: nobody is let in any more."""
    _inside: dict[SessionId, Guest] = field(default_factory=dict)
    _line: dict[SessionId, Guest] = field(default_factory=dict)
    _places: Places[SessionId] = field(default_factory=lambda: Places(MAX_IN_LINE))
    """In the line."""

    @property
    def waiting(self) -> int:
        return len(self._line)

    def read_grant(self, signed: SignedGrant) -> Grant | None:
        """The grant, if it is one and its client signed it."""
        try:
            grant = decode_grant(signed.grant)
        except msgspec.DecodeError:
            return None
        data = GRANT_CONTEXT + signed.grant
        return grant if self.verify_signature(grant.client, data, signed.signature) else None

    def ask(self, sender: PeerId, message: Open, now: float) -> Verdict:
        """What becomes of an `Open`. Bytes that hold no grant that the sender signed get no answer
        but a refusal of a session of zeros: nothing in them can be believed."""
        grant = self.read_grant(message.signed)
        if grant is None:
            nobody = Refused(
                session=bytes(16),
                route=0,
                why=RefuseKind.BAD_GRANT,
                detail="the grant cannot be read, or its signature is not its client's",
                free_tokens=self.admission.free_tokens,
                attempt=message.attempt,
            )
            return Verdict(refused=nobody)
        guest = Guest(
            grant,
            message.hop,
            self.admission.tokens_of(grant),
            message.attempt,
            now + message.wait_s + self.lease_s,
        )
        fault = self._fault(guest, sender)
        if fault is not None:
            return Verdict(refused=guest.refused(*fault, self.admission.free_tokens))
        return self._admit(guest, message.wait_s, now)

    def _fault(self, guest: Guest, sender: PeerId) -> tuple[RefuseKind, str] | None:
        fault = check_grant(guest.grant, guest.hop, self.me, self.span, self.checkpoint, sender)
        if fault is not None:
            return fault
        if self.closed:
            return RefuseKind.DRAINING, f"{self.me} is shutting down; choose another server"
        known = self._inside.get(guest.session) or self._line.get(guest.session)
        if known is not None:
            if known.grant == guest.grant and known.hop == guest.hop:
                return None
            return RefuseKind.BAD_GRANT, "the session is open here with another grant"
        return self._quota_fault(guest)

    def _quota_fault(self, guest: Guest) -> tuple[RefuseKind, str] | None:
        own = [
            other
            for other in (*self._inside.values(), *self._line.values())
            if other.client == guest.client
        ]
        if len(own) >= self.quotas.sessions_per_client:
            return RefuseKind.QUOTA, f"a client may have {self.quotas.sessions_per_client} sessions"
        most = self.quotas.tokens_per_client
        if most is not None and guest.tokens + sum(other.tokens for other in own) > most:
            return RefuseKind.QUOTA, f"a client may have {most} cached tokens"
        return None

    def _admit(self, guest: Guest, wait_s: float, now: float) -> Verdict:
        fault = self._waiting_fault(guest)
        answer = self.admission.request(
            guest.session,
            guest.tokens,
            0.0 if fault else wait_s,
            now,
            guest.client,
            repair=guest.grant.route > 0,
        )
        if answer is None:
            self._line[guest.session] = guest
            self._places.take(guest.session, self._group(guest))
            return Verdict()
        if not answer:
            if wait_s > 0 and fault and guest.tokens <= self.admission.capacity_tokens:
                free = self.admission.free_tokens
                return Verdict(refused=guest.refused(RefuseKind.QUOTA, fault, free))
            return Verdict(refused=self._full(guest))
        self._inside[guest.session] = guest
        return Verdict(held=guest)

    def _waiting_fault(self, guest: Guest) -> str:
        """Why it may not wait; empty: it may."""
        if guest.session in self._line:
            return ""
        places = sum(other.client == guest.client for other in self._line.values())
        if places >= MAX_PLACES_PER_CLIENT:
            return f"a client may have {places} places in line; wait for one of them"
        if not self._places.has_room(self._group(guest)):
            return f"{len(self._places)} sessions are in line, too many of them from your network"
        return ""

    def _group(self, guest: Guest) -> Path:
        """Without the client itself, unless it is a group of its own."""
        path = self.quotas.group_of(guest.client)
        return path[:-1] or path

    def _leave_line(self, session: SessionId) -> None:
        """Whether it is in it or not."""
        self._places.give_back(session)
        self._line.pop(session, None)

    def _full(self, guest: Guest) -> Refused:
        free, capacity = self.admission.free_tokens, self.admission.capacity_tokens
        detail = f"{guest.tokens} tokens of cache are needed, "
        if guest.tokens > capacity:
            detail += f"and its whole cache is {capacity} tokens"
        else:
            detail += f"{free} of {capacity} are free"
            if free >= guest.tokens:
                kept = self.admission.headroom_tokens
                detail += f", and {kept} of them are kept for sessions that lost another server"
        return guest.refused(RefuseKind.CACHE_FULL, detail, free)

    def leave(self, session: SessionId) -> list[Guest]:
        """The session gives up its room or its place; the guests who are let in because of it."""
        self._inside.pop(session, None)
        self._leave_line(session)
        held, _ = self._decided(self.admission.release(session))
        return held

    def is_in_line(self, session: SessionId, client: PeerId) -> bool:
        guest = self._line.get(session)
        return guest is not None and guest.client == client

    def lost(self, client: PeerId) -> list[Guest]:
        """Takes everybody out of the line who came with `client`; who is let in because of it."""
        gone = [session for session, guest in self._line.items() if guest.client == client]
        held = [guest for session in gone for guest in self.leave(session)]
        # One of its own may have been let in when the one before it left.
        return [guest for guest in held if guest.client != client]

    def tick(self, now: float) -> tuple[list[Guest], list[tuple[PeerId, Refused]]]:
        """Those let in, and the refusals of those who have waited in vain."""
        return self._decided(self.admission.tick(now))

    def close(self) -> list[tuple[PeerId, Refused]]:
        """Lets nobody in from now on; the refusals of those in line."""
        self.closed = True
        refusals = []
        for session, guest in list(self._line.items()):
            self.admission.release(session)
            why = f"{self.me} is shutting down; choose another server"
            refused = guest.refused(RefuseKind.DRAINING, why, self.admission.free_tokens)
            refusals.append((guest.client, refused))
            self._leave_line(session)
        return refusals

    def _decided(self, decision: Decision) -> tuple[list[Guest], list[tuple[PeerId, Refused]]]:
        held = []
        for session in decision.admitted:
            guest = self._inside[session] = self._line[session]
            self._leave_line(session)
            held.append(guest)
        refusals = []
        for session in decision.expired:
            guest = self._line[session]
            self._leave_line(session)
            refusals.append((guest.client, self._full(guest)))
        return held, refusals

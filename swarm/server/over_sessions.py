"""Sessions that are over: who still sends for one is told so once."""

from collections import OrderedDict
from collections.abc import Iterable

from swarm.sessions.events import Event, Forward, Instruction, Received
from swarm.sessions.messages import Close, Fail
from swarm.spans import SessionId

REMEMBERED = 4096


class OverSessions:
    """The last sessions of which their clients know that they are over here: no need to say it
    again for each frame that was under way."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[SessionId, None] = OrderedDict()

    def __contains__(self, session: SessionId) -> bool:
        return session in self._sessions

    def add(self, session: SessionId) -> None:
        """Its client knows that it is over, or is being told."""
        self._sessions[session] = None
        while len(self._sessions) > REMEMBERED:
            self._sessions.popitem(last=False)

    def forget(self, session: SessionId) -> None:
        """It is open here again."""
        self._sessions.pop(session, None)


def client_knows(instructions: Iterable[Instruction], cause: Event) -> bool:
    """Whether the client has ended the session itself, or is being told that it is over."""
    if isinstance(cause, Received) and isinstance(cause.message, Close):
        return True
    return any(isinstance(one, Forward) and isinstance(one.message, Fail) for one in instructions)

"""A session that outlives one call: `with model.session(max_length=...) as session:`."""

from contextvars import ContextVar

from swarm.client.cache import RemoteCache
from swarm.sessions.messages import Hop

_active: ContextVar[tuple["Session", ...]] = ContextVar("swarm_sessions", default=())


class Session:
    """Keeps the servers' cache over several calls of one model.

    Inside its `with` block, in the same thread, the model's `generate()` is given all ids, as
    transformers has it: what they share with the cache is kept, the rest is rolled back.
    `forward()` is given the new tokens only. Another thread passes `session=` to `generate()`.
    The servers are asked for room when the first tokens come.
    """

    def __init__(self, owner: object, cache: RemoteCache) -> None:
        self._owner = owner
        self.cache = cache

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops; empty before the first tokens."""
        return self.cache.route

    @property
    def position(self) -> int:
        """Columns of the cache: tokens and padding."""
        return self.cache.get_seq_length()

    def belongs_to(self, owner: object) -> bool:
        return self._owner is owner

    def close(self) -> None:
        """Free the servers; never waits."""
        self.cache.close("the session was closed")

    def __enter__(self) -> "Session":
        _active.set((*_active.get(), self))
        return self

    def __exit__(self, *exception: object) -> None:
        _active.set(tuple(session for session in _active.get() if session is not self))
        self.close()


def active_session(owner: object) -> Session | None:
    """The innermost session of this model whose `with` block we are in."""
    for session in reversed(_active.get()):
        if session.belongs_to(owner):
            return session
    return None

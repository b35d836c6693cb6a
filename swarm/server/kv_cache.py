"""The K/V of all sessions of a server, in pages.

A session reserves rows x length when it is opened and can never need more, whatever it forks or
rewinds: each row has a home run of pages. A run is physically contiguous whenever the free pages
allow it, so that attention reads a row's K/V as a view; rows that were forked share pages
copy-on-write and are gathered.

Not thread-safe: the engine's thread owns it, except for the counters.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from swarm.errors import CacheFullError, SessionFullError, SessionLostError, StepRejectedError
from swarm.models.packed_attention import PassRow
from swarm.models.row_state import RowState
from swarm.server.config import PAGE_TOKENS
from swarm.server.free_pages import FreePages
from swarm.spans import SessionId


@dataclass(slots=True, eq=False)
class CacheRow:
    """One row of a session: its slots lie in `pages`, in order."""

    session: "_Session"
    home: list[int]
    """The pages that this row prefers; they are the session's own."""
    pages: list[int] = field(default_factory=list)
    length: int = 0
    """Slots that are written."""
    contiguous: bool = True
    state: RowState = field(default_factory=RowState)
    """Of recurrent layers; a rewind is made good by the next pass."""


@dataclass(slots=True, eq=False)
class _Session:
    name: SessionId
    length: int
    """Most slots of each row."""
    free: set[int]
    """Pages of this session that no row uses."""
    users: dict[int, int] = field(default_factory=dict)
    """How many rows use each page that is not free."""
    rows: list[CacheRow] = field(default_factory=list)


class PagedCache:
    """K/V pages for all layers of a slice; a `KVStore`.

    `kv_shapes` holds `(heads, k_dim, v_dim)` of each layer. The memory for `capacity_tokens`
    (rounded down to whole pages) is allocated here; the operating system hands it out when it is
    first written. Keys of a layer lie as `[heads, slots, k_dim]`, values likewise. `row_bytes` is
    what a row takes beside its slots (recurrent state); slots worth as much are reserved with it.
    """

    def __init__(
        self,
        kv_shapes: Sequence[tuple[int, int, int]],
        capacity_tokens: int,
        *,
        row_bytes: int = 0,
        page_tokens: int = PAGE_TOKENS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.page_tokens = page_tokens
        slot_bytes = dtype.itemsize * sum(heads * (k + v) for heads, k, v in kv_shapes)
        self.row_tokens = -(-row_bytes // slot_bytes) if row_bytes else 0
        """What a row's state is worth in slots."""
        self.total_pages = capacity_tokens // page_tokens
        if self.total_pages < 1:
            raise CacheFullError(
                f"a cache of {capacity_tokens} tokens holds no page of {page_tokens}; give it more"
            )
        slots = self.total_pages * page_tokens
        self.keys = [
            torch.empty(heads, slots, k_dim, dtype=dtype, device=device)
            for heads, k_dim, _ in kv_shapes
        ]
        self.values = [
            torch.empty(heads, slots, v_dim, dtype=dtype, device=device)
            for heads, _, v_dim in kv_shapes
        ]
        self._free = FreePages(self.total_pages)
        self._sessions: dict[SessionId, _Session] = {}

    @property
    def total_tokens(self) -> int:
        return self.total_pages * self.page_tokens

    @property
    def free_tokens(self) -> int:
        """Tokens that no session has reserved."""
        return self._free.count * self.page_tokens

    def tokens_for(self, rows: int, length: int) -> int:
        """What a reservation of `rows` x `length` costs: each row has whole pages, also for its
        recurrent state."""
        return rows * self._pages_per_row(length) * self.page_tokens

    def _pages_per_row(self, length: int) -> int:
        return -(-(length + self.row_tokens) // self.page_tokens)

    def reserve(self, session: SessionId, rows: int, length: int) -> None:
        """Set room for `rows` x `length` slots aside. Raises `CacheFullError`."""
        if session in self._sessions:
            raise StepRejectedError("the session is open already", session=session)
        pages_per_row = self._pages_per_row(length)
        if rows * pages_per_row > self._free.count:
            raise CacheFullError(
                f"{rows} x {length} tokens need {self.tokens_for(rows, length)} of cache, "
                f"{self.free_tokens} of {self.total_tokens} are free; try again later or ask for "
                "fewer tokens",
                session=session,
            )
        opened = _Session(session, length, set())
        for _ in range(rows):
            home = self._free.take(pages_per_row)
            opened.free.update(home)
            opened.rows.append(CacheRow(opened, home))
        self._sessions[session] = opened

    def release(self, session: SessionId) -> bool:
        """Give the session's pages back; False if it is not known."""
        closed = self._sessions.pop(session, None)
        if closed is None:
            return False
        self._free.give_back(page for row in closed.rows for page in row.home)
        return True

    def row(self, session: SessionId, row: int) -> CacheRow:
        """Row `row` of a session, for a `PassRow`. Raises `SessionError`."""
        rows = self._known(session).rows
        if row >= len(rows):
            raise StepRejectedError(
                f"row {row} of a session that reserved {len(rows)} rows", session=session
            )
        return rows[row]

    def state(self, row: CacheRow) -> RowState:
        return row.state

    def held(self, session: SessionId) -> tuple[int, ...]:
        """Written slots of each reserved row."""
        return tuple(row.length for row in self._known(session).rows)

    def apply(
        self,
        session: SessionId,
        parents: Sequence[int] | None,
        truncate_to: Sequence[int] | None,
    ) -> None:
        """First fork: row r becomes a copy of old row `parents[r]`; then cut rows.

        Rows beyond `parents` become empty. Forks share pages until one of them writes. Raises
        `SessionError`, and then nothing has changed.
        """
        known = self._known(session)
        for what in (parents, truncate_to):
            if what is not None and len(what) > len(known.rows):
                raise StepRejectedError(
                    f"{len(what)} rows in a session that reserved {len(known.rows)}",
                    session=session,
                )
        if parents is not None and any(parent >= len(known.rows) for parent in parents):
            raise StepRejectedError("a fork of a row that does not exist", session=session)
        if parents is not None:
            self._fork(known, parents)
        if truncate_to is not None:
            for row, length in zip(known.rows, truncate_to, strict=False):
                if length < row.length:
                    self._cut(row, length)

    def _fork(self, known: _Session, parents: Sequence[int]) -> None:
        old = [(list(row.pages), row.length, row.contiguous) for row in known.rows]
        states = [row.state for row in known.rows]
        for pages, _, _ in (old[parent] for parent in parents):
            for page in pages:
                known.users[page] += 1
        for row in known.rows:
            self._drop_pages(row, 0)
            row.length, row.contiguous, row.state = 0, True, RowState()
        for index, (row, parent) in enumerate(zip(known.rows, parents, strict=False)):
            pages, row.length, row.contiguous = old[parent]
            row.pages = list(pages)
            first = parent not in parents[:index]
            row.state = states[parent] if first else states[parent].copy()

    def _cut(self, row: CacheRow, length: int) -> None:
        row.length = length
        self._drop_pages(row, -(-length // self.page_tokens))

    def _drop_pages(self, row: CacheRow, keep: int) -> None:
        users = row.session.users
        for page in row.pages[keep:]:
            users[page] -= 1
            if not users[page]:
                del users[page]
                row.session.free.add(page)
        if len(row.pages) > keep:
            del row.pages[keep:]
            row.contiguous = _is_run(row.pages)

    def _known(self, session: SessionId) -> _Session:
        known = self._sessions.get(session)
        if known is None:
            raise SessionLostError("this server has no cache for the session", session=session)
        return known

    # ---- a pass

    def begin(self, rows: Sequence[PassRow]) -> "PagedPass":
        """Make the slots of `rows` writable; a row may begin below its length (it is cut there).

        Raises `StepRejectedError` for a row that begins beyond what is held and
        `SessionFullError` for one that exceeds its reservation.
        """
        for part in rows:
            self._extend(part)
        return PagedPass(self, rows)

    def check(self, part: PassRow) -> None:
        """Raises `StepRejectedError` or `SessionFullError` if `begin` would refuse the row."""
        row = part.row
        assert isinstance(row, CacheRow)
        if part.start > row.length:
            raise StepRejectedError(
                f"tokens for slot {part.start} of a row that holds {row.length}",
                session=row.session.name,
            )
        end = part.start + part.count
        if end > row.session.length:
            raise SessionFullError(
                f"{end} tokens in a session that reserved {row.session.length} a row; open it "
                "longer",
                session=row.session.name,
            )

    def _extend(self, part: PassRow) -> None:
        self.check(part)
        row = part.row
        assert isinstance(row, CacheRow)
        known, end = row.session, part.start + part.count
        if part.start < row.length:
            self._cut(row, part.start)
        if not part.count:
            return
        partly, used = divmod(part.start, self.page_tokens)
        if used and known.users[row.pages[partly]] > 1:
            self._own(row, partly, used)
        before = len(row.pages)
        for index in range(before, -(-end // self.page_tokens)):
            page = self._new_page(row, index)
            known.users[page] = 1
            row.pages.append(page)
        if len(row.pages) > before:
            row.contiguous = _is_run(row.pages)
        row.length = end

    def _own(self, row: CacheRow, index: int, used: int) -> None:
        """Copy the first `used` slots of a shared page, before the row writes behind them."""
        shared = row.pages[index]
        row.session.users[shared] -= 1
        page = self._new_page(row, index)
        row.session.users[page] = 1
        row.pages[index] = page
        row.contiguous = _is_run(row.pages)
        source, target = shared * self.page_tokens, page * self.page_tokens
        for pool in (*self.keys, *self.values):
            pool[:, target : target + used] = pool[:, source : source + used]

    @staticmethod
    def _new_page(row: CacheRow, index: int) -> int:
        free = row.session.free
        page = row.home[index]
        if page in free:
            free.remove(page)
            return page
        return free.pop()

    def validate(self) -> None:
        """Check every invariant; for tests."""
        owned = [page for known in self._sessions.values() for r in known.rows for page in r.home]
        assert sorted([*owned, *self._free]) == list(range(self.total_pages))
        assert self._free.count == len(list(self._free))
        for known in self._sessions.values():
            users: dict[int, int] = {}
            for row in known.rows:
                assert row.length <= known.length
                assert len(row.pages) == -(-row.length // self.page_tokens)
                assert row.contiguous == _is_run(row.pages)
                for page in row.pages:
                    users[page] = users.get(page, 0) + 1
            assert users == known.users
            assert not known.free & users.keys()
            assert known.free | users.keys() == {p for row in known.rows for p in row.home}


class PagedPass:
    """The pages of one pass; a `KVPass`."""

    def __init__(self, cache: PagedCache, rows: Sequence[PassRow]) -> None:
        self._keys, self._values = cache.keys, cache.values
        self._page_tokens = cache.page_tokens
        self._where = [self._place(part) for part in rows]
        runs: list[tuple[int, int, int]] = []
        first = 0
        for part in rows:
            for slot, count in self._slots(part):
                runs.append((slot, first, count))
                first += count
        self._runs = runs
        self._tokens = first
        self._slot_index: torch.Tensor | None = None
        if len(runs) > 2 and len(runs) == first:
            slots = [slot for slot, _, _ in runs]
            self._slot_index = torch.tensor(slots, device=cache.keys[0].device)

    def _place(self, part: PassRow) -> tuple[int, int, torch.Tensor | None]:
        """(first slot, length, None), or the index of all slots of a row that is scattered."""
        row = part.row
        assert isinstance(row, CacheRow)
        length = part.start + part.count
        if row.contiguous:
            return (row.pages[0] * self._page_tokens if row.pages else 0, length, None)
        pages = torch.tensor(row.pages, device=self._keys[0].device)
        slots = pages[:, None] * self._page_tokens + torch.arange(
            self._page_tokens, device=pages.device
        )
        return 0, length, slots.view(-1)[:length]

    def _slots(self, part: PassRow) -> list[tuple[int, int]]:
        """Runs of physical slots `(first, count)` that take the row's new tokens."""
        row = part.row
        assert isinstance(row, CacheRow)
        size = self._page_tokens
        if row.contiguous:
            return [(row.pages[0] * size + part.start, part.count)] if part.count else []
        runs: list[tuple[int, int]] = []
        slot, end = part.start, part.start + part.count
        while slot < end:
            index, used = divmod(slot, size)
            count = min(size - used, end - slot)
            runs.append((row.pages[index] * size + used, count))
            slot += count
        return runs

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        keys, values = self._keys[layer], self._values[layer]
        if self._slot_index is not None:
            keys.index_copy_(1, self._slot_index, key[:, : self._tokens])
            values.index_copy_(1, self._slot_index, value[:, : self._tokens])
            return
        for slot, first, count in self._runs:
            keys.narrow(1, slot, count).copy_(key.narrow(1, first, count))
            values.narrow(1, slot, count).copy_(value.narrow(1, first, count))

    def read(self, layer: int, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        first, length, slots = self._where[index]
        keys, values = self._keys[layer], self._values[layer]
        if slots is not None:
            return keys.index_select(1, slots), values.index_select(1, slots)
        return keys.narrow(1, first, length), values.narrow(1, first, length)


def _is_run(pages: Sequence[int]) -> bool:
    return all(page == pages[0] + offset for offset, page in enumerate(pages))

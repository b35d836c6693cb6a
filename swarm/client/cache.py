"""transformers' cache, whose keys and values lie on the servers."""

import os
import threading
import weakref
from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from swarm.client.calls import current_generation
from swarm.client.chain import Chain, ChainStep, OpenChain
from swarm.client.columns import Columns
from swarm.client.kept_inputs import KeptInputs
from swarm.client.packing import Packing
from swarm.errors import NotServedError, SessionClosedError, SessionFullError
from swarm.sessions.messages import MAX_LENGTH, MAX_ROWS, Hop, RowOperation


class RemoteCache(Cache):  # type: ignore[misc]
    """Knows what the servers of one session hold, in the columns of transformers' batches.

    A column is a position of the padded batch; a slot is a token on the servers. Padding has
    columns but no slots. `reorder_cache`, `crop` and the like change nothing at once: they are
    gathered into one `RowOperation` that rides on the next step.

    The session is opened by the first step, with as many rows as that has (at least `rows`) and
    `length` slots for each (None: what the step needs), and `spare` more where there is room.
    `length` is the limit, but for candidates that `generate()` looks up beyond its end. With
    `grows` there is none: the cache keeps its inputs, and when its slots are used up it goes on in
    a longer session. Not for two threads at once: hold `lock` over a whole call.
    """

    def __init__(
        self,
        open_chain: OpenChain,
        *,
        length: int | None,
        spare: int = 0,
        grows: bool = False,
        rows: int = 1,
        blocks: int = 1,
    ) -> None:
        super().__init__(layers=[])
        self._lock, self._pid = threading.RLock(), os.getpid()
        self.length = length
        self._spare = spare
        self._lookahead = 0
        self._inputs = KeptInputs() if grows else None
        self._min_rows = rows
        self._max_rows = 0
        self._copies = 1
        self._blocks = blocks
        self._open_chain = open_chain
        self._chain: Chain | None = None
        self._closed: str | None = None
        self._rows = 0
        self._columns = Columns()
        self._held: tuple[int, ...] = ()
        """Slots of each row on the servers."""
        self._slots: tuple[int, ...] = ()
        """Slots of each row once the operation below has been applied."""
        self._parents: tuple[int, ...] | None = None

    @property
    def lock(self) -> "threading.RLock":
        """A fork has one of its own: whoever held ours is not there to release it."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    # ---- what transformers reads

    def __len__(self) -> int:
        return self._blocks

    def __repr__(self) -> str:
        return (
            f"RemoteCache(rows={self._rows}, columns={self._columns.count}, length={self.length})"
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._columns.count

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._columns.count + query_length, 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    @property
    def batch_size(self) -> int:
        return self._rows or -1

    @property
    def is_initialized(self) -> bool:
        return self._rows > 0

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return False

    # ---- what transformers does

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotServedError("this cache is for the swarm's model; its keys and values are remote")

    def reset(self) -> None:
        """Forget every token; the session and its room stay."""
        self.rewind(0)

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` columns."""
        if tokens_to_remove > 0:
            raise ValueError("crop() takes the number of tokens to remove, as a negative number")
        self.rewind(max(0, self._columns.count + tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row r continues what was row `beam_idx[r]`."""
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select(torch.arange(self._rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def activate_past_recording(self) -> None:
        """Nothing to do: any suffix can be dropped at any time."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise NotServedError("a cache of the swarm cannot be copied; open another session")

    # ---- what the swarm's model does

    @property
    def route(self) -> tuple[Hop, ...]:
        """The session's hops; empty before its first step."""
        return () if self._chain is None else self._chain.route

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    def rewind(self, columns: int) -> None:
        """Keep the first `columns` columns."""
        if columns >= self._columns.count:
            return
        self._columns.rewind(columns)
        self._slots = self._columns.tokens(self._rows)
        if self._inputs is not None:
            self._inputs.rewind(columns)

    def begin_anew(self) -> None:
        """For a call that brings all ids: if the servers have ended the session since its last
        step, nothing is held any more, and the next step opens another one."""
        if self._closed is None and self._chain is not None and self._chain.is_over:
            self._chain = None
            self._columns, self._rows = Columns(), 0
            self._held = self._slots = ()
            self._parents = None

    def leave_one(self, input_ids: torch.Tensor) -> None:
        """For a call that brings all ids: if all are held, the last is computed again."""
        if self._columns.holds(input_ids):
            self.rewind(input_ids.shape[1] - 1)

    def align(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        """Keep what `input_ids` [rows, columns] begins with, for a call that gives all ids.

        Each new row continues the row of the cache with which it shares most tokens, padding
        apart; everything else is rolled back. At least one column is left to compute.
        """
        kept = self._columns.align(input_ids, attention_mask)
        if kept is not None:
            self._take_parents(kept.parents)
            self._rows, self._slots = len(kept.parents), kept.slots

    def check_mask(self, attention_mask: torch.Tensor, new_columns: int) -> torch.Tensor:
        """The new columns of `attention_mask`, as bool [rows, new columns] on the CPU.

        Raises NotServedError for masks that are not [rows, all columns], or that change what was
        padding and what was not in columns that the servers hold.
        """
        return self._columns.new_of(attention_mask, new_columns, self._copies)

    @property
    def has_padding(self) -> bool:
        return self._columns.has_padding

    def expect_copies(self, copies: int) -> None:
        """The next step's rows are runs of `copies` equal ones (beams, returned sequences).

        They are computed once and forked.
        """
        self._copies = copies

    def expect_candidates(self, tokens: int) -> None:
        """This `generate()` may compute so many tokens beyond the last one that it takes."""
        self._lookahead = tokens

    def step(
        self,
        hidden: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        valid: torch.Tensor | None,
        input_ids: torch.Tensor | None,
        keep: int,
    ) -> torch.Tensor:
        """Run new columns through all blocks.

        `hidden`: [rows, columns, hidden_size]; `position_ids`: [1 or rows, columns]; `valid`: bool
        [rows, columns] or None; `keep`: how many of the last columns' answers are needed. Returns
        [rows, columns, hidden_size], zero where nothing was asked for.
        """
        rows, columns = hidden.shape[:2]
        copies, self._copies = self._copies, 1
        if copies > 1 and rows % copies == 0 and self._may_have(rows // copies):
            self._min_rows = max(self._min_rows, rows)
            if _are_copies(hidden, copies) and (valid is None or _are_copies(valid, copies)):
                one = position_ids if position_ids.shape[0] == 1 else position_ids[::copies]
                answers = self.step(
                    hidden[::copies],
                    position_ids=one,
                    valid=None if valid is None else valid[::copies],
                    input_ids=None if input_ids is None else input_ids[::copies],
                    keep=keep,
                )
                self.batch_repeat_interleave(copies)
                return answers.repeat_interleave(copies, dim=0)
            self.batch_repeat_interleave(copies)
        if self._rows != rows and self._may_have(rows) and self._rows:
            self._select(torch.zeros(rows, dtype=torch.long))
        packing = Packing.of(rows, columns, valid)
        self._start(rows, packing)
        starts = self._slots
        try:
            if not any(packing.counts):
                answers = hidden.new_zeros((0, hidden.shape[-1]))
            else:
                answers = self._run(packing, hidden, position_ids, keep)
                self._held = tuple(s + c for s, c in zip(starts, packing.counts, strict=True))
                self._slots, self._parents = self._held, None
            self._columns.append(packing, valid, input_ids)
            if self._inputs is not None:
                self._inputs.append(hidden, position_ids)
        except BaseException as error:
            self._end(error)
            raise
        return packing.scatter(answers.to(hidden.device), keep)

    def close(self, reason: str = "closed") -> None:
        """Free the servers; never waits."""
        if self._closed is None:
            self._closed = reason
        if self._chain is not None:
            self._chain.close()

    # ---- within

    def _may_have(self, rows: int) -> bool:
        """Whether a step may have so many rows: an empty cache takes any number."""
        return self._columns.count == 0 or self._rows == rows

    def _start(self, rows: int, packing: Packing) -> None:
        if self._closed is not None:
            raise SessionClosedError(
                f"the session is over ({self._closed}); begin another generate() or session"
            )
        if self._chain is None:
            self._max_rows = max(rows, self._min_rows)
        if self._rows and self._columns.count == 0 and self._rows != rows:
            self._select(torch.zeros(rows, dtype=torch.long))
        if self._rows == 0:
            self._rows, self._slots, self._held = rows, (0,) * rows, (0,) * rows
        if self._rows != rows:
            raise NotServedError(f"{rows} rows, but the cache has {self._rows}")
        self._make_room(packing)

    def _make_room(self, packing: Packing) -> None:
        """Open the session, or a longer one in its place; SessionFullError if neither helps."""
        if packing.rows > self._max_rows:
            raise SessionFullError(
                f"{packing.rows} rows in a session for {self._max_rows}; open it with "
                f"model.session(max_length=..., rows={packing.rows})"
            )
        needed = max(map(sum, zip(self._slots, packing.counts, strict=True)), default=0)
        if self._inputs is None:
            self._check_limit(needed)
        if self._chain is None:
            least = max(needed, self.length or 1)
            self._open(least + self._spare, least)
        elif needed > self._chain.length:
            self._move(needed)

    def _check_limit(self, needed: int) -> None:
        limit = self.length or 0
        if current_generation.get() is not None:
            limit += min(self._lookahead, self._spare)
        if self._chain is not None:
            limit = min(limit, self._chain.length)
        if needed > limit:
            raise SessionFullError(
                f"{needed} tokens in a session for {self.length}; open a longer one with "
                "model.session(max_length=...)"
            )

    def _open(self, length: int, least: int) -> None:
        if self._max_rows > MAX_ROWS or least > MAX_LENGTH:
            raise NotServedError(
                f"{self._max_rows} rows of {least} tokens; a session has at most {MAX_ROWS} rows "
                f"of {MAX_LENGTH:,} tokens, so ask for fewer at once"
            )
        # Longer than any session may be is not asked for, unless it is needed.
        length = max(min(length, MAX_LENGTH), least)
        self._chain = self._open_chain(self._max_rows, length, least)
        # The collector may run this in any thread, also in the loop's own: close() never waits.
        weakref.finalize(self, self._chain.close).atexit = False

    def _move(self, needed: int) -> None:
        """Go on in a longer session: what the old one held is computed again."""
        assert self._chain is not None and self._inputs is not None
        # First, because its room may be what the new one needs.
        self._chain.close()
        try:
            # Twice as long, so that no token is computed again more than once on average.
            self._open(max(2 * needed, needed + self._spare), needed)
            if any(self._slots):
                hidden, positions = self._inputs.read()
                packing = self._columns.packing(self._rows)
                self._parents, self._held = None, (0,) * self._rows
                wanted, self._slots = self._slots, self._held
                self._run(packing, hidden, positions, 1)
                self._slots = wanted
            self._parents, self._held = None, self._slots
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """Also interrupted: what the servers hold is not known any more, or not what we believe.
        They are freed at once."""
        self.close(f"{type(error).__name__}: {error}".removesuffix(": "))

    def _run(
        self, packing: Packing, hidden: torch.Tensor, position_ids: torch.Tensor, keep: int
    ) -> torch.Tensor:
        assert self._chain is not None
        positions = position_ids.expand(packing.rows, packing.columns)
        step = ChainStep(
            hidden=packing.gather(hidden.detach()).cpu(),
            starts=self._slots,
            counts=packing.counts,
            position_ids=packing.gather(positions.cpu()).tolist(),
            keep=keep,
            operation=self._operation(),
        )
        return self._chain.step(step)

    def _operation(self) -> RowOperation | None:
        forked = self._parents is not None
        if not forked and self._slots == self._held:
            return None
        inherited = self._held
        if self._parents is not None:
            inherited = tuple(self._held[parent] for parent in self._parents)
        truncated = self._slots != inherited
        return RowOperation(parents=self._parents, truncate_to=self._slots if truncated else None)

    def _select(self, indices: torch.Tensor) -> None:
        chosen = indices.detach().cpu()
        if chosen.dtype == torch.bool:
            chosen = chosen.nonzero().squeeze(1)
        parents = [int(parent) for parent in chosen.tolist()]
        if self._rows == 0 or parents == list(range(self._rows)):
            return
        self._slots = tuple(self._slots[parent] for parent in parents)
        self._take_parents(parents)
        self._rows = len(parents)
        self._columns.select(chosen)
        if self._inputs is not None:
            self._inputs.select(chosen)

    def _take_parents(self, parents: list[int]) -> None:
        before = self._parents or range(len(self._held))
        composed = tuple(before[parent] for parent in parents)
        self._parents = None if composed == tuple(range(len(self._held))) else composed


def _are_copies(batch: torch.Tensor, copies: int) -> bool:
    runs = batch.reshape(-1, copies, *batch.shape[1:])
    return torch.equal(runs, runs[:, :1].expand_as(runs))

"""Which slots are replayed, from where and to whom, so that every hop holds the same again."""

from dataclasses import dataclass

from swarm.errors import SessionLostError
from swarm.sessions.messages import MAX_ROWS, Holds, RowOperation
from swarm.sessions.rules import Lengths, applied, composed, forked, operation_fault

CLIENT = -1
"""As a source: the client's own inputs."""


@dataclass(frozen=True)
class Applied:
    """An operation that not every hop has confirmed: `truncate_to` is complete."""

    epoch: int
    operation: RowOperation


@dataclass(frozen=True)
class Refill:
    """Hops `first .. last` get the slots `starts .. target` again, pushed by hop `source`."""

    source: int
    first: int
    last: int
    starts: Lengths


@dataclass(frozen=True)
class Plan:
    """`operations`: what each hop does in the fence before the refills (None: nothing)."""

    operations: tuple[RowOperation | None, ...]
    refills: tuple[Refill, ...]


@dataclass(frozen=True)
class _State:
    """What one hop holds once it has applied what it missed."""

    parents: Lengths | None
    held: Lengths
    backup_from: Lengths | None
    rows: bool


def plan_repair(holds: tuple[Holds, ...], ops: tuple[Applied, ...], target: Lengths) -> Plan:
    """Bring every hop to `target`: more is truncated, less is replayed.

    `target`: what the last hop has answered, so the client knows that it once was everywhere.
    A run of hops that hold less is refilled by the nearest hop before it that holds `target` and
    whose backup reaches down to what the run holds; hops in between are refilled too. The client
    has its own inputs from the first slot on, so a source is always found. Raises SessionLostError
    if a hop says that it holds other rows than it can.
    """
    states = tuple(_state(hold, ops, len(target)) for hold in holds)
    starts = [tuple(map(min, state.held, target)) for state in states]
    refills: list[Refill] = []
    index = len(states) - 1
    while index >= 0:
        if starts[index] == target:
            index -= 1
            continue
        last, lowest = index, starts[index]
        while index > 0 and not _can_refill(states[index - 1], target, lowest):
            index -= 1
            lowest = tuple(map(min, lowest, starts[index]))
        for hop in range(index, last + 1):
            starts[hop] = lowest
        refills.append(Refill(index - 1, index, last, lowest))
        index -= 1
    operations = tuple(
        RowOperation(parents=state.parents, truncate_to=start) if state.rows else None
        for state, start in zip(states, starts, strict=True)
    )
    return Plan(operations, tuple(reversed(refills)))


def _state(holds: Holds, ops: tuple[Applied, ...], rows: int) -> _State:
    if not holds.held:
        return _State(None, (0,) * rows, None, rows=False)
    held, backup_from, parents = holds.held, holds.backup_from, None
    sound = backup_from is None or len(backup_from) == len(held)
    for missed in ops:
        if sound and missed.epoch > holds.rows_epoch:
            if operation_fault(missed.operation, len(held), MAX_ROWS) is not None:
                break
            held = applied(held, missed.operation)
            parents = composed(parents, missed.operation.parents)
            if backup_from is not None:
                backup_from = forked(backup_from, missed.operation.parents)
    if not sound or len(held) != rows:
        raise SessionLostError(
            f"hop {holds.hop} holds {len(holds.held)} rows since epoch {holds.rows_epoch}, where "
            f"{rows} belong; open a new session",
            session=holds.session,
        )
    return _State(parents, held, backup_from, rows=True)


def _can_refill(state: _State, target: Lengths, starts: Lengths) -> bool:
    if state.backup_from is None or any(map(int.__lt__, state.held, target)):
        return False
    return all(map(int.__le__, state.backup_from, starts))

"""What hop and client agree on: row operations, the shape of a step, trimming, classes."""

from collections.abc import Iterable

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.messages import MAX_STEP_TOKENS, Grant, RowOperation, Step, TensorSpec, Want

DECODE_TOKENS_PER_ROW = 16
"""Decode has at most so many tokens of every row under way (one, or a speculation)."""
DECODE_TOKENS = 256
"""And at most so many over all rows."""

Lengths = tuple[int, ...]


def service_class_of(step: Step, before: Iterable[Step] = ()) -> ServiceClass:
    """A step that refills caches is repair; small steps are decode; all others prefill.

    `before`: the session's steps that are still under way. They count with it: who decodes awaits
    each answer before the next step, so a prompt that is cut as fine as decode is prefill.
    """
    if any(step.emit_from):
        return ServiceClass.REPAIR
    counts = step.counts
    for each in before:
        if not any(each.emit_from):
            counts = added(counts, each.counts)
    if max(counts, default=0) <= DECODE_TOKENS_PER_ROW and sum(counts) <= DECODE_TOKENS:
        return ServiceClass.DECODE
    return ServiceClass.PREFILL


def operation_fault(operation: RowOperation, rows: int, max_rows: int) -> str | None:
    """Why `operation` cannot be applied to `rows` rows; None: it can."""
    new_rows = rows
    if operation.parents is not None:
        new_rows = len(operation.parents)
        if new_rows > max_rows:
            return f"a fork into {new_rows} rows where {max_rows} are granted"
        if rows and max(operation.parents) >= rows:
            return f"a fork of row {max(operation.parents)} where there are {rows} rows"
    elif not rows and operation.truncate_to is not None:
        new_rows = len(operation.truncate_to)
    if operation.truncate_to is not None and len(operation.truncate_to) != new_rows:
        return f"truncates {len(operation.truncate_to)} rows where there are {new_rows}"
    return None


def forked(lengths: Lengths, parents: Lengths | None) -> Lengths:
    """The lengths of the rows after a fork; a session without rows forks into empty ones."""
    if parents is None:
        return lengths
    return tuple(lengths[parent] for parent in parents) if lengths else (0,) * len(parents)


def truncated(lengths: Lengths, truncate_to: Lengths | None) -> Lengths:
    """The lengths after a truncation; a session without rows begins with empty ones."""
    if truncate_to is None:
        return lengths
    if not lengths:
        return (0,) * len(truncate_to)
    return tuple(min(pair) for pair in zip(lengths, truncate_to, strict=True))


def applied(lengths: Lengths, operation: RowOperation | None) -> Lengths:
    """The lengths of the rows after `operation`, which has no fault."""
    if operation is None:
        return lengths
    return truncated(forked(lengths, operation.parents), operation.truncate_to)


def lacks(lengths: Lengths, operation: RowOperation | None) -> bool:
    """Whether `operation` keeps slots that rows of `lengths` do not hold."""
    if operation is None or operation.truncate_to is None:
        return False
    before = forked(lengths, operation.parents) or (0,) * len(operation.truncate_to)
    return any(keep > held for keep, held in zip(operation.truncate_to, before, strict=True))


def added(lengths: Lengths, counts: Lengths) -> Lengths:
    return tuple(held + count for held, count in zip(lengths, counts, strict=True))


def composed(first: Lengths | None, second: Lengths | None) -> Lengths | None:
    """Parents of one fork after another."""
    if first is None or second is None:
        return second if first is None else first
    return tuple(first[parent] for parent in second)


def shape_fault(step: Step, grant: Grant) -> str | None:
    """Why no hop of `grant` can take `step`, whatever it holds; None: shapes and limits fit."""
    rows, tokens = len(step.starts), sum(step.counts)
    if not 1 <= rows <= grant.rows:
        return f"{rows} rows where 1 to {grant.rows} are granted"
    if len(step.counts) != rows or len(step.emit_from) not in (0, rows):
        return f"{rows} starts, {len(step.counts)} counts and {len(step.emit_from)} emit_from"
    if tokens > MAX_STEP_TOKENS or len(step.position_ids) != tokens:
        return f"{tokens} tokens with {len(step.position_ids)} positions"
    longest = max(added(step.starts, step.counts))
    if longest > grant.length:
        return f"slot {longest - 1} where {grant.length} slots a row are granted"
    if step.seq and step.operation is not None:
        return "an operation that is not on the first step of its epoch"
    return None


def tensor_fault(tensors: tuple[TensorSpec, ...], tokens: int, dtype: str) -> str | None:
    """Why `tensors` are not the activations `[tokens, ...]` of a step or an answer."""
    said = [(tensor.name, tensor.dtype, tensor.shape[:1]) for tensor in tensors]
    if said != [("hidden", dtype, (tokens,))] * bool(tokens):
        return f"tensors {said} where {tokens} tokens of `hidden` in {dtype} belong"
    return None


Takes = tuple[tuple[int, int], ...]


def emitted(step: Step, hop: int) -> Takes:
    """Per row `(skip, take)`: which of the step's outputs go on from `hop` to the next."""
    if not step.emit_from or hop < step.emit_hop:
        return tuple((0, count) for count in step.counts)
    takes = []
    for start, count, emit_from in zip(step.starts, step.counts, step.emit_from, strict=True):
        skip = min(count, max(0, emit_from - start))
        takes.append((skip, count - skip))
    return tuple(takes)


def wanted(takes: Takes, want: Want) -> Takes:
    """Of `takes`, what the last hop sends to the client."""
    if want is Want.ALL:
        return takes
    if want is Want.LAST:
        return tuple((skip + take - 1, 1) if take else (skip, 0) for skip, take in takes)
    return tuple((skip, 0) for skip, _ in takes)


def taken(items: tuple[int, ...], counts: Lengths, takes: Takes) -> tuple[int, ...]:
    """Of one item per token, those that `takes` names."""
    chosen: list[int] = []
    first = 0
    for count, (skip, take) in zip(counts, takes, strict=True):
        chosen += items[first + skip : first + skip + take]
        first += count
    return tuple(chosen)

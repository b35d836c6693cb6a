"""Which stored tensors belong to which block, told from their names alone.

The blocks of every decoder are one list of modules, so their tensors are called
`<prefix>.<index>.<rest>`: `model.layers.3.mlp.up_proj.weight`, `h.3.attn.c_attn.weight`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from swarm.errors import CheckpointError

_INDEX = re.compile(r"\.(\d+)\.")


def find_block_prefix(names: Iterable[str], num_blocks: int) -> str:
    """The prefix under which all of `0 .. num_blocks-1` occur and most tensors lie.

    Lists inside the blocks (experts) hold fewer tensors than the blocks themselves.
    Raises CheckpointError if there is no such list.
    """
    indices: defaultdict[str, set[int]] = defaultdict(set)
    counts: defaultdict[str, int] = defaultdict(int)
    for name in names:
        for prefix, index in _lists(name):
            indices[prefix].add(index)
            counts[prefix] += 1
    complete = [prefix for prefix, found in indices.items() if found.issuperset(range(num_blocks))]
    if not complete:
        raise CheckpointError(
            f"the checkpoint's config promises {num_blocks} blocks, but its tensors do not hold "
            "them all; fetch the missing files"
        )
    return max(complete, key=lambda prefix: (counts[prefix], -len(prefix)))


def block_of(name: str, prefix: str) -> int | None:
    """The block that a tensor belongs to, or None."""
    if not name.startswith(prefix + "."):
        return None
    index, dot, _ = name[len(prefix) + 1 :].partition(".")
    return int(index) if dot and index.isdigit() else None


def renumber(name: str, prefix: str, shift: int) -> str:
    """The same tensor's name when the blocks are counted from `shift`."""
    index, _, rest = name[len(prefix) + 1 :].partition(".")
    return f"{prefix}.{int(index) - shift}.{rest}"


def _lists(name: str) -> Iterator[tuple[str, int]]:
    for match in _INDEX.finditer(name):
        yield name[: match.start()], int(match[1])

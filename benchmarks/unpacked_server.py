"""`swarm-server` whose blocks run each session alone: what packing is compared with.

It takes the way that models take whose sessions disturb each other in a pass.
"""

from swarm.cli.server import main
from swarm.models.slice import BlockSlice

_prepare = BlockSlice.prepare


def _prepare_without_packing(blocks: BlockSlice) -> None:
    _prepare(blocks)
    blocks.packs_sessions = False


if __name__ == "__main__":
    BlockSlice.prepare = _prepare_without_packing  # type: ignore[method-assign]
    main()

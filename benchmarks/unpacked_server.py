"""`swarm-server` whose blocks run each session alone: what packing is compared with.

It takes the way that models take whose sessions disturb each other in a pass.
"""

from unittest.mock import patch

from swarm.cli.server import main
from swarm.models.slice import BlockSlice

_prepare = BlockSlice.prepare


def _prepare_without_packing(blocks: BlockSlice) -> None:
    _prepare(blocks)
    blocks.packs_sessions = False


if __name__ == "__main__":
    with patch.object(BlockSlice, "prepare", _prepare_without_packing):
        main()

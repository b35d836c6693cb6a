"""A tiny swarm over real sockets, its servers in this process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swarm.testing import LocalSwarm


@pytest.fixture(scope="module")
def loopback_swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, "0:1", "1:4", loopback=True) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def loopback_model(loopback_swarm: LocalSwarm) -> Iterator[Any]:
    with loopback_swarm.client() as model:
        yield model

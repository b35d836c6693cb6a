"""What the tests of servers share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from summing_engine import World
    from whole_servers import ServerMaker


@pytest.fixture
def world() -> Iterator["World"]:
    """A running engine over blocks that sum up."""
    from summing_engine import running_engine

    with running_engine() as made:
        yield made


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model for whole servers."""
    from whole_servers import tiny_llama_in

    return tiny_llama_in(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture
def maker(model_folder: Path, tmp_path: Path) -> "ServerMaker":
    from whole_servers import ServerMaker

    return ServerMaker(model_folder, tmp_path)

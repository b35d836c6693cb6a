"""docs/architecture.md and docs/simulator.md name the files of the rooms, all of them."""

import re

import pytest
from document_pages import ROOT, prose_of

ROOMS = {
    "scheduling": ("docs/architecture.md", "| `scheduling/` | subject |"),
    "sessions": ("docs/architecture.md", "| `sessions/` | subject |"),
    "routing": ("docs/architecture.md", "| `routing/` | subject | used by |"),
    "wire": ("docs/architecture.md", "| `wire/` | subject |"),
    "dht": ("docs/architecture.md", "| `dht/` | subject |"),
    "models": ("docs/architecture.md", "| `models/` | subject |"),
    "server": ("docs/architecture.md", "| `server/` | subject |"),
    "client": ("docs/architecture.md", "| `client/` | subject |"),
    "simulator": ("docs/simulator.md", "| file | subject |"),
}
"""The page of each room, and the first line of its table there."""


@pytest.mark.parametrize("room", ROOMS)
def test_the_table_of_a_room_names_each_of_its_files_once(room: str) -> None:
    page, heading = ROOMS[room]
    table = prose_of(page).partition(f"\n{heading}\n")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+\.py)`", table)
    files = [path.name for path in (ROOT / "swarm" / room).glob("*.py")]
    assert sorted(named) == sorted(name for name in files if name != "__init__.py")

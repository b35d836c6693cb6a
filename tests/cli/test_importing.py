"""What a program does about its first imports, and that it does nothing about later ones."""

import gc
import subprocess
import sys

import pytest
import torch  # noqa: F401  (so that the imports of this process are later ones)

from swarm.cli.importing import importing


@pytest.mark.parametrize("quantised", [False, True])
def test_the_first_imports_of_a_program(quantised: bool) -> None:
    program = (
        "import gc, sys\n"
        "from swarm.cli.importing import importing\n"
        f"with importing(quantised={quantised}):\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 0\n"
        f"assert ('torchao' in sys.modules) is {not quantised}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_later_imports_are_as_ever() -> None:
    frozen, known = gc.get_freeze_count(), sys.modules.get("torchao")
    with importing():
        assert gc.isenabled()
    assert (gc.get_freeze_count(), sys.modules.get("torchao")) == (frozen, known)

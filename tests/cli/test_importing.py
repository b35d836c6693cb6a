"""What programs import, when, and that nothing changes for imports that come later."""

import gc
import sys
from collections.abc import Callable

import pytest
import torch  # noqa: F401  (so that the imports of this process are later ones)

from swarm.cli.importing import importing


@pytest.mark.parametrize(
    ("program", "command", "named"),
    [
        ("server", [], ["--peers", "--blocks", "--max-memory"]),
        ("dht", [], ["--peers", "--identity"]),
        ("client", ["generate"], ["--peers", "--prompt", "--max-new-tokens", "--stop", "--json"]),
        ("plan", ["place"], ["INVENTORY.yaml", "--peers"]),
    ],
)
def test_help_is_given_without_importing_anything_large(
    program: str, command: list[str], named: list[str], run_python: Callable[[str], str]
) -> None:
    told = run_python(
        f"import sys; from swarm.cli.{program} import main\n"
        f"sys.argv = ['x', *{command}, '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'transformers', 'hivemind', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    assert not [name for name in named if name not in told]
    assert told.splitlines()[-1] == "[]"


@pytest.mark.parametrize("quantized", [False, True])
def test_the_first_imports_of_a_program(quantized: bool, run_python: Callable[[str], str]) -> None:
    run_python(
        "import gc, sys\n"
        "from swarm.cli.importing import importing\n"
        f"with importing(quantized={quantized}):\n"
        "    assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 0\n"
        f"assert ('torchao' in sys.modules) is {not quantized}\n"
    )


def test_later_imports_are_as_ever() -> None:
    frozen, known = gc.get_freeze_count(), sys.modules.get("torchao")
    with importing():
        assert gc.isenabled()
    assert (gc.get_freeze_count(), sys.modules.get("torchao")) == (frozen, known)

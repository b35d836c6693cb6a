"""How a program imports what it computes with: torch and transformers, a million objects."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_QUANTIZES = "torchao"
"""transformers imports it where it is installed; only int8 weights need it."""


@contextmanager
def importing(*, quantized: bool = False) -> Iterator[None]:
    """Imports in here take a third less time, and the garbage collector never looks at what they
    make; for the first ones of a program, otherwise it changes nothing.

    `quantized`: whether weights will be. If not, torchao counts as not installed from now on, so
    this is for programs: a library's process is not ours.
    """
    if "torch" in sys.modules:
        yield
        return
    if not quantized:
        # Python's own way to say that there is no such module.
        sys.modules.setdefault(_QUANTIZES, None)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

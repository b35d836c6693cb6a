"""How a program imports what it computes with: torch and transformers, a million objects."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_UNUSED = ("torchao", "scipy")
"""transformers imports them where they are installed, for int8 weights and to train detectors."""


@contextmanager
def importing(*, quantised: bool = False) -> Iterator[None]:
    """Imports in here take a third less time, and what they make is never looked at again by the
    garbage collector; for the first ones of a program, otherwise it changes nothing.

    `quantised`: whether weights will be. If not, what transformers imports for that alone counts as
    not installed from now on, so this is for programs: a library's process is not ours.
    """
    if "torch" in sys.modules:
        yield
        return
    if not quantised:
        for package in _UNUSED:
            # Python's own way to say that there is no such module.
            sys.modules.setdefault(package, None)  # type: ignore[arg-type]
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

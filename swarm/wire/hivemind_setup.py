"""Importing hivemind without its side effects.

The import takes seconds, so it happens in a thread and only where a network is made. hivemind
1.1.12 does four things to the process that a library must not do; all are undone here: it prints
its log to the terminal, renames the level WARNING to WARN, sets torch's strategy for sharing
tensors between processes, and warns of its own deprecated calls. Its log goes to the logger
`hivemind` and is silent unless `HIVEMIND_LOGLEVEL` is set.
"""

import logging
import os
import threading
import warnings

_lock = threading.Lock()
_loaded = False


def load_hivemind() -> None:
    """Imports hivemind once. Blocks for seconds; may be called from any thread."""
    global _loaded
    with _lock:
        if not _loaded:
            _import_quietly()
            _loaded = True


def _import_quietly() -> None:
    user_wants_log = "HIVEMIND_LOGLEVEL" in os.environ
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "CRITICAL")
    from torch import multiprocessing

    strategy = multiprocessing.get_sharing_strategy()  # type: ignore[no-untyped-call]
    level_name = logging.getLevelName(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import hivemind  # noqa: F401
    finally:
        multiprocessing.set_sharing_strategy(strategy)  # type: ignore[no-untyped-call]
        logging.addLevelName(logging.WARNING, level_name)
        if not user_wants_log:
            del os.environ["HIVEMIND_LOGLEVEL"]
    if not user_wants_log:
        from hivemind.utils.logging import use_hivemind_log_handler

        use_hivemind_log_handler("nowhere")
        logging.getLogger("hivemind").setLevel(logging.CRITICAL)

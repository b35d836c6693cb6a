"""SIGTERM like Ctrl-C, so that what is open is closed on the way out."""

import signal


def interrupt_on_sigterm() -> None:
    """From now on SIGTERM raises KeyboardInterrupt in the main thread."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)

"""Letting transformers build a model: one at a time in a process, and without its reports."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

_one_at_a_time = threading.RLock()


@contextmanager
def building_model() -> Iterator[None]:
    """Around every `from_pretrained`, `from_config` and constructor of a model.

    transformers replaces `PreTrainedModel.tie_weights`, torch's default dtype and its own
    verbosity for as long as it builds. Of two threads in there at once the second would put back
    what the first had replaced, and no model of the process would tie its weights from then on.

    No progress bar for a handful of tensors, and no report of tensors that are absent: what is an
    error here is raised, the rest is as it should be.
    """
    with _one_at_a_time:
        verbosity = transformers_logging.get_verbosity()
        bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()

"""A progress bar for what a client fetches from the hub, such as huggingface_hub itself shows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.utils import tqdm


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Gives `progress(bytes fetched, bytes to fetch)`; the bar appears with the first call.

    `HF_HUB_DISABLE_PROGRESS_BARS` turns it off.
    """
    bar: tqdm | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(  # type: ignore[no-untyped-call]
                total=total, unit="B", unit_scale=True, desc=f"Fetching parts of {name}"
            )
        bar.update(done - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()

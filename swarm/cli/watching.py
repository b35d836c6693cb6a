"""The live table of `swarm-server --watch`; what else there is to say scrolls by above it."""

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from swarm.cli.events import Event
from swarm.cli.server_table import report_table
from swarm.printable import printable


class WatchScreen:
    """Shows a server's events on a terminal; `close` gives the terminal back."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        if event.event == "stats":
            self._show(report_table(event.fields))
        elif event.event == "loading":
            self._show(Text(printable(event.text)))
        else:
            self._console.print(Text(printable(event.text)))

    def error(self, message: str) -> None:
        """The last word of a command that fails."""
        self.close()
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"error: {message}"))

    def close(self) -> None:
        """The last table stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, what: RenderableType) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(what, refresh=True)

"""The live table of `swarm-server --watch`; what else there is to say scrolls by above it."""

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from swarm.cli.events import Event
from swarm.cli.server_table import report_table
from swarm.cli.terminal import plain_console
from swarm.printable import printable


class WatchScreen:
    """Shows a server's events on a terminal; `close` gives the terminal back."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or plain_console()
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
        plain_console(stderr=True, soft_wrap=True).print(Text(f"error: {message}"))

    def close(self) -> None:
        """The last table stays."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _show(self, what: RenderableType) -> None:
        if self._live is None:
            live = Live(console=self._console, auto_refresh=False)
            live.start()
            self._live = live
        self._live.update(what, refresh=True)

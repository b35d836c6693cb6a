"""The table of a server, plain and live, and how it is made from what the server counts."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from server_reports import peer, report, stats

from swarm.cli.errors import one_line
from swarm.cli.events import EventPrinter
from swarm.cli.logs import log_to_stderr
from swarm.cli.server_table import MAX_PEERS, duration, report_table
from swarm.cli.watching import WatchScreen
from swarm.printable import printable
from swarm.server.events import ServerEvent
from swarm.server.rates import Rates

HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]boo[/nothing]\n\u202egnp.exe"


def shown(fields: dict[str, Any], width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(report_table(fields))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line_of(text: str, beginning: str) -> list[str]:
    """The cells of the line whose first cell is this."""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        if cells[0] == beginning:
            return cells
    raise AssertionError(f"no line {beginning!r} in\n{text}")


def test_every_figure_has_its_line() -> None:
    text = shown(report())
    assert (
        "attic: blocks 10:30 of 80 of Big-70B, bfloat16 (int8) on cuda:0, online for 1 h 6 min"
        in text
    )
    assert line_of(text, "sessions")[1] == "3 open, 1 in line"
    assert line_of(text, "decode")[1:] == ["41.2 tokens/s", "123,456 tokens"]
    assert line_of(text, "prefill")[1:] == ["1,310.0 tokens/s", "7,890 tokens"]
    assert line_of(text, "wait for a pass")[1:] == ["2.5 ms, 2 wait", "99 passes, 0 steps failed"]
    assert line_of(text, "of it decode, prefill")[1] == "1.5 ms, 40.0 ms"
    assert line_of(text, "computing")[1:] == ["50 % of the time", "1 min 1 s, 75 % of it decode"]
    assert line_of(text, "cache")[1:] == [
        "49,152 of 65,536 tokens taken (75 %)",
        "492 MB of 655 MB",
    ]
    assert line_of(text, "copies for repairs")[1:] == ["12 MB", "1 given up"]
    assert line_of(text, "sent")[1:] == ["1.00 of 20 Mbit/s", "5 MB to the peers below"]
    assert line_of(text, "received")[1] == "2.00 Mbit/s"
    assert line_of(text, "reached by others")[1] == "yes, links that came in: 12"
    assert line_of(shown(report(accepted_streams=0)), "reached by others")[1] == "not yet"
    rates = ["1.00", "2.00", "5 MB", "2.0 GB", "12.3 ms", "20.00", "64 kB"]
    assert line_of(text, "..000001")[1:] == ["client", *rates]


def test_many_peers_are_counted_and_none_is_no_table() -> None:
    many = shown(report(peers=[peer(number) for number in range(MAX_PEERS + 7)]))
    assert many.count("client") == MAX_PEERS and "and 7 more" in many
    assert "round trip" not in shown(report(peers=[], max_upload_mbit=None))


def test_names_of_others_cannot_drive_the_terminal() -> None:
    assert printable("Ölmühle 7, 東京 🦙") == "Ölmühle 7, 東京 🦙"
    clean = printable(HOSTILE)
    assert clean == "?[2J?]0;owned?[red]boo[/nothing]??gnp.exe"
    text = shown(report(name=clean, peers=[peer(1, kind="server", name=clean)]), width=200)
    assert text.count(clean) == 2  # rich takes no markup from it either
    assert one_line(ValueError(f"peer said {HOSTILE}")).isprintable()


def test_what_is_logged_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import logging

    root = logging.Logger("root of its own")
    monkeypatch.setattr(logging, "root", root)
    log_to_stderr()
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        root.exception("a peer sent %s", HOSTILE)
    written = capsys.readouterr().err
    assert "Traceback" in written and "gnp.exe" in written
    assert all(line.isprintable() for line in written.splitlines())


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.9, 59, 60, 3599, 3600, 90_000, 864_000)] == [
        *("0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "1 d 1 h", "10 d 0 h")
    ]


# ---- rates


def test_a_rate_is_the_growth_over_the_last_seconds() -> None:
    rates = Rates(window_s=10)
    assert rates.per_s("tokens") == 0
    for second in range(101):
        rates.sample(float(second), {"tokens": 5.0 * min(second, 50)})
        if second == 3:
            assert rates.per_s("tokens") == 5
    assert rates.per_s("tokens") == 0
    rates.sample(101.0, {"tokens": 300.0, "new": 20.0})
    assert rates.per_s("tokens") == pytest.approx(5)
    assert rates.per_s("new") == pytest.approx(2)
    rates.sample(102.0, {"tokens": 10.0})  # counted from 0 again
    assert rates.per_s("tokens") == pytest.approx(1)
    assert rates.per_s("new") == 0
    rates.sample(200.0, {"tokens": 108.0})  # the process slept
    assert rates.per_s("tokens") == pytest.approx(1)


# ---- printers


def test_people_get_a_table_programs_an_object_and_files_of_watch_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    EventPrinter(False)(stats())
    assert line_of(capsys.readouterr().out, "decode")[1] == "41.2 tokens/s"
    EventPrinter(True)(stats())
    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "stats" and line["peers"][0]["sent"] == 5_000_000
    EventPrinter(False, tables=False)(stats())
    assert capsys.readouterr().out == "3 sessions; decode 41.2 tokens/s\n"


def test_a_terminal_that_knows_few_letters_ends_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "out", "w", encoding="ascii") as out:
        monkeypatch.setattr("sys.stdout", out)
        printer = EventPrinter(False)
        printer(ServerEvent("notice", "東京", {}))
        printer(ServerEvent("stats", "", report(name="東京")))
    assert "??" in (tmp_path / "out").read_text()


def test_programs_get_the_words_of_a_notice_too(capsys: pytest.CaptureFixture[str]) -> None:
    EventPrinter(True)(ServerEvent("notice", "it stays", {"blocks": "0:2"}))
    EventPrinter(True)(ServerEvent("draining", "draining: 1 session", {"sessions": 1}))
    notice, draining = map(json.loads, capsys.readouterr().out.splitlines())
    assert (notice["message"], notice["blocks"]) == ("it stays", "0:2")
    assert draining.keys() == {"event", "time", "sessions"}


def test_the_live_table_stays_below_what_is_told() -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, width=100, force_terminal=True, highlight=False)
    screen = WatchScreen(console)
    screen(ServerEvent("loading", "loading blocks 10:30: 50 %", {}))
    screen(stats())
    screen(ServerEvent("notice", f"model {HOSTILE}", {}))
    screen(ServerEvent("stats", "", report(sessions=4)))
    screen.close()
    screen.close()
    written = terminal.getvalue()
    assert "50 %" in written and "3 open" in written
    assert "owned\x07" not in written and "\x1b[2J" not in written
    assert written.index("model ?[2J") < written.rindex("4 open")
    # The cursor was hidden once and is back.
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1

"""docs/volunteers.md and the options of the server that it explains."""

from document_pages import text_of
from typer.main import get_command

from swarm.cli import server
from swarm.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE


def test_every_option_of_the_server_is_on_its_help_in_a_panel_of_its_subject() -> None:
    parser = get_command(server.app)
    panels = {
        option.name: getattr(option, "rich_help_panel", None)
        for option in parser.params
        if option.name not in ("help", "model", "version")
    }
    assert {"max_memory", "max_upload_mbit", "watch", "announce"} <= panels.keys()
    assert not [name for name, panel in panels.items() if panel is None]


def test_the_pages_name_every_limit_and_every_exit_code() -> None:
    page = text_of("docs/volunteers.md")
    for option in ("--max-memory", "--max-upload-mbit", "--cache-tokens", "--blocks", "--threads"):
        assert f"`{option}" in page
    codes = (EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED)
    assert all(f"\n| {code} | " in text_of("docs/reference.md") for code in codes)

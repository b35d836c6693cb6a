"""The commands of docs/volunteers.md and the systemd unit name options that exist, with values that
are fine."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from swarm.cli import client, dht, server
from swarm.cli.arguments import repeat_address_options, split_addresses
from swarm.cli.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from swarm.server.config import ServerConfig, make_config

DOCS = Path(__file__).resolve().parents[2] / "docs"
APPS = {"swarm-server": server.app, "swarm-client": client.app, "swarm-dht": dht.app}


def commands() -> list[str]:
    page = (DOCS / "volunteers.md").read_text().replace("\\\n", " ")
    unit = (DOCS / "swarm-server.service").read_text()
    shown = re.findall(r"^\.venv/bin/(swarm-.*)$", page, re.M)
    shown += re.findall(r"`\.venv/bin/(swarm-[^`]*)`", page)
    shown += re.findall(r"^ExecStart=/opt/swarm/\.venv/bin/(swarm-.*)$", unit, re.M)
    assert len(shown) >= 4
    return shown


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_page_is_understood(command: str) -> None:
    program, *arguments = shlex.split(command)
    parser = get_command(APPS[program])
    context = parser.make_context(program, repeat_address_options(arguments))
    if program != "swarm-server":
        return
    options = {name: value for name, value in context.params.items() if value is not None}
    fields = {name: options[name] for name in options.keys() & ServerConfig.model_fields}
    for name in ("peers", "listen", "announce"):
        fields[name] = split_addresses(options.get(name) or ())
    make_config(ServerConfig, **{name: value for name, value in fields.items() if value})


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
    page = (DOCS / "volunteers.md").read_text()
    for option in ("--max-memory", "--max-upload-mbit", "--cache-tokens", "--blocks", "--threads"):
        assert f"`{option}" in page
    reference = (DOCS / "reference.md").read_text()
    codes = (EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED)
    assert all(f"\n| {code} | " in reference for code in codes)

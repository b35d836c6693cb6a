"""Commands and programs in the pages are understood: options that there are, names that exist."""

import ast
import importlib
import re
import shlex

import pytest
from document_pages import PAGES, blocks_of, inline_code_of, text_of
from typer.main import get_command

from swarm.cli import client, dht, plan, server
from swarm.cli.arguments import repeat_address_options, split_addresses
from swarm.server.config import ServerConfig, make_config
from swarm.wire.identity import Identity

APPS = {
    "swarm-server": server.app,
    "swarm-client": client.app,
    "swarm-dht": dht.app,
    "swarm-plan": plan.app,
}
PEER = Identity.create().peer_id
ADDRESS = f"/ip4/127.0.0.1/tcp/31330/p2p/{PEER}"
_COMMAND = re.compile(r"(?:\.venv/bin/)?((?:swarm-server|swarm-client|swarm-dht|swarm-plan) .+)")


def _commands() -> list[str]:
    """All that are shown whole: ` ...` stands for something that is left out."""
    found = re.findall(r"^ExecStart=\S+/(swarm-.*)$", text_of("docs/swarm-server.service"), re.M)
    for page in PAGES:
        blocks = "\n".join((*blocks_of(page, "bash"), *blocks_of(page, "")))
        lines = blocks.replace("\\\n", " ").splitlines()
        for code in [*map(str.strip, lines), *inline_code_of(page)]:
            command = _COMMAND.fullmatch(code)
            if command is not None and " ..." not in code and "--version" not in code:
                found.append(command[1])
    return sorted(set(found))


def _benchmarks() -> list[str]:
    lines = [line.strip() for page in PAGES for line in text_of(page).splitlines()]
    codes = [*lines, *(code for page in PAGES for code in inline_code_of(page))]
    found = [re.fullmatch(r"(?:\S*python )?(benchmarks/\w+\.py .*--.*)", code) for code in codes]
    return sorted({one[1] for one in found if one is not None})


@pytest.mark.parametrize("command", _commands())
def test_a_command_is_understood(command: str) -> None:
    command = command.replace("$ADDRESS", ADDRESS).replace("12D3KooW...", PEER)
    words = ["4" if word == "N" else word for word in shlex.split(command)]
    program, *arguments = repeat_address_options(words)
    if program == "swarm-client" and "--peers" not in arguments:
        arguments += ["--peers", ADDRESS]
    parser = get_command(APPS[program])
    if hasattr(parser, "commands"):
        parser, arguments = parser.commands[arguments[0]], arguments[1:]
    context = parser.make_context(program, arguments)
    if program == "swarm-server":
        options = {name: value for name, value in context.params.items() if value is not None}
        fields = {name: options[name] for name in options.keys() & ServerConfig.model_fields}
        for name in ("peers", "listen", "announce"):
            fields[name] = split_addresses(options.get(name) or ())
        make_config(ServerConfig, **{name: value for name, value in fields.items() if value})


@pytest.mark.parametrize("command", _benchmarks())
def test_a_benchmark_has_the_options_that_are_named(command: str) -> None:
    program, *words = shlex.split(command)
    source = text_of(program) + text_of("benchmarks/common.py")
    assert not [word for word in words if word.startswith("--") and f'"{word}"' not in source]


@pytest.mark.parametrize("page", PAGES)
def test_a_program_in_python_imports_what_there_is(page: str) -> None:
    for block in blocks_of(page, "python"):
        for node in ast.walk(ast.parse(block, page)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("swarm"):
                module = importlib.import_module(str(node.module))
                assert not [one.name for one in node.names if not hasattr(module, one.name)]


def test_the_pages_show_every_program() -> None:
    shown = {command.split()[0] for command in _commands()}
    assert shown == set(APPS)
    assert _benchmarks()

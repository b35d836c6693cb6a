"""A route uses no more of a server's span than it needs."""

import json

import pytest
from processes import ServerProgram, StartServer
from swarm_commands import generate, status

from swarm.spans import Span

PROMPT = "The history of the printing press begins"


@pytest.mark.matrix
def test_two_servers_that_overlap_serve_what_three_do(
    three_servers: list[ServerProgram], start_server: StartServer
) -> None:
    expected = json.loads(generate(three_servers[0].address(), PROMPT, 12).stdout)
    first = start_server("0:20")
    second = start_server("10:30", peers=[first.address()])
    for server in (first, second):
        server.wait_online()
    assert status(first.address())["missing"] == []
    done = generate(first.address(), PROMPT, 12)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["token_ids"] == expected["token_ids"]
    spans = [Span.parse(hop["blocks"]) for hop in found["route"]]
    assert spans[0].start == 0 and spans[-1].end == 30
    assert len(spans) == 2 and spans[0].end == spans[1].start

"""Servers and clients read, and keep in memory, their own part of the model and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import ServerProgram, StartServer

from swarm.models.checkpoint import Checkpoint, open_checkpoint
from swarm.spans import Span

# What the programs themselves take while they load: code, buffers, the measuring of the speed.
CODE_BYTES = 90_000_000

CLIENT = """
import json, re, sys
from pathlib import Path

import swarm.client.model
from swarm import AutoModelForCausalLM
from swarm.client.runtime import runtime

opened = []

def open_and_keep(*arguments, open_checkpoint=swarm.client.model.open_checkpoint):
    opened.append(open_checkpoint(*arguments))
    return opened[-1]

swarm.client.model.open_checkpoint = open_and_keep

def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])

import swarm.models.gguf_source, torch, transformers.models.llama.modeling_llama
before = peak()
model = AutoModelForCausalLM.from_pretrained(initial_peers=[sys.argv[1]])
ids = model.generate(torch.arange(5, 25)[None], max_new_tokens=8, min_new_tokens=8)
print(json.dumps({
    "bytes_read": [one.bytes_read for one in opened],
    "grown": peak() - before,
    "parameters": sum(one.numel() * one.element_size() for one in model.parameters()),
    "tokens": ids.shape[1],
}))
model.close()
"""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint()


def block_bytes(checkpoint: Checkpoint) -> int:
    """Of one block in float32."""
    stored = checkpoint.block_tensors(Span(0, 1)).values()
    return sum(4 * _elements(checkpoint, name) for name in stored)


def shell_bytes(checkpoint: Checkpoint) -> int:
    """Of embeddings, norm and head in float32; tied tensors count once."""
    return sum(4 * _elements(checkpoint, name) for name in checkpoint.shell_tensors())


def _elements(checkpoint: Checkpoint, name: str) -> int:
    elements = 1
    for size in checkpoint.tensors[name].shape:
        elements *= size
    return elements


def stored_bytes(checkpoint: Checkpoint, names: list[str]) -> int:
    return sum(checkpoint.tensors[name].nbytes for name in names)


def peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def start_and_measure(server: ServerProgram) -> tuple[int, int, dict[str, Any]]:
    """Peak memory before the blocks are loaded and after, and the first statistics."""
    server.address()
    before = peak_bytes(server.pid)
    server.wait_online()
    return before, peak_bytes(server.pid), server.wait_for("stats")


def test_a_server_reads_and_keeps_its_own_blocks_only(
    start_server: StartServer, checkpoint: Checkpoint
) -> None:
    options = ["--stats", "0.2", "--cache-tokens", "64"]
    few_before, few, few_stats = start_and_measure(start_server("0:5", options=options))
    _, whole, whole_stats = start_and_measure(start_server("0:30", options=options))
    for span, stats in ((Span(0, 5), few_stats), (Span(0, 30), whole_stats)):
        own = list(checkpoint.block_tensors(span).values())
        assert stats["blocks"] == str(span)
        assert stats["bytes_read"] == stored_bytes(checkpoint, own)
    block = block_bytes(checkpoint)
    # What it grows by is its blocks; the embeddings would not have fitted into the rest.
    assert shell_bytes(checkpoint) > CODE_BYTES
    assert few - few_before < 5 * block + CODE_BYTES
    # And the same measure sees the other blocks where there are some.
    assert whole - few > 0.9 * 25 * block


def test_a_client_reads_and_keeps_no_block(
    three_servers: list[ServerProgram], checkpoint: Checkpoint
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, three_servers[0].address()],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["tokens"] == 28
    assert found["bytes_read"] == [stored_bytes(checkpoint, list(checkpoint.shell_tensors()))]
    shell, blocks = shell_bytes(checkpoint), 30 * block_bytes(checkpoint)
    assert found["parameters"] == shell
    # Reading the embeddings takes them twice for a moment; the blocks have no place.
    assert found["grown"] < 2 * shell + CODE_BYTES < blocks

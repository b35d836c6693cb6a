"""Loading a span takes at its peak less than 1.2 times what the span takes, wherever it lies.

Quantized, the one and a half blocks in float32 count that are planned for comparing each.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from gguf_files import write_large_gguf
from hub_stand_in import REPOSITORY, running_hub

SPAN = "1:11"
MOST = 1.2
LIBRARIES = {"int8": "torchao", "nf4": "bitsandbytes"}

PROGRAM = """
import ctypes, gc, json, re, sys
from pathlib import Path

import torch
from swarm.models.checkpoint import open_checkpoint
from swarm.server.config import ServerConfig
from swarm.server.hosted import Plan, load
from swarm.server.hosting import memory_needs
from swarm.spans import Span

def memory(what):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(what + r":\\s+(\\d+)", status)[1])

def load_span(model, span):
    model, _, kind = model.partition("?")
    kind = kind or "none"
    checkpoint = open_checkpoint(model)
    needs = memory_needs(checkpoint, torch.float32, kind)
    plan = Plan(checkpoint, "x", torch.device("cpu"), torch.float32, needs, kind)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    told = {"fetching": [], "loading": []}
    hosted = load(
        plan, span, ServerConfig(cache_tokens=64), 1,
        lambda done, total: told["fetching"].append([done, total]),
        lambda done, total: told["loading"].append([done, total]),
        lambda: None,
    )
    return {
        "grown": memory("VmHWM") - before, "weights": needs.weights(span),
        "loading": needs.loading_bytes,
        "read": checkpoint.bytes_read, "last": {k: v[-1:] for k, v in told.items()},
        "stored": sum(
            checkpoint.tensors[name].nbytes for name in checkpoint.block_tensors(span).values()
        ),
    }

for model in sys.argv[2:]:
    load_span(model, Span(0, 1))  # what the programs take once
print(json.dumps([load_span(model, Span.parse(sys.argv[1])) for model in sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same blocks, of 13.6 MB each in float32, in four forms."""
    folder = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1536, num_hidden_layers=12,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "single")
    model.bfloat16().save_pretrained(folder / "sharded", max_shard_size="20MB")
    write_large_gguf(folder / "large.gguf", config)
    yield {
        "single": folder / "single",
        "sharded": folder / "sharded",
        "gguf": folder / "large.gguf",
        "home": folder / "home",
    }


def test_the_peak_of_loading(models: dict[str, Path]) -> None:
    with running_hub(models["single"]) as hub:
        # As a user sets them: the real variables of a program of its own.
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(models["home"]),
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_right",
        }
        hub.faults.token = "hf_right"
        names = [str(models[name]) for name in ("single", "sharded", "gguf")]
        quantized = [k for k, name in LIBRARIES.items() if importlib.util.find_spec(name)]
        names += [f"{models['sharded']}?{kind}" for kind in quantized]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, SPAN, REPOSITORY, *names],
            capture_output=True, text=True, timeout=240, env=environment, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = ("hub", "single", "sharded", "gguf", *quantized)
    found = dict(zip(kinds, json.loads(done.stdout), strict=True))
    for kind, one in found.items():
        # What is planned with: quantized blocks are compared with one in float32 at a time.
        assert one["grown"] < MOST * (one["weights"] + one["loading"]), (kind, one)
        # The measure sees the weights at all.
        assert one["grown"] > 0.95 * one["weights"], (kind, one)
        assert one["read"] >= one["stored"], kind
        done_tensors, all_tensors = one["last"]["loading"][0]
        assert done_tensors == all_tensors
    assert found["single"]["weights"] == found["hub"]["weights"] > 130_000_000
    assert found["single"]["read"] == found["single"]["stored"]
    assert found["single"]["last"]["fetching"] == []
    assert found["hub"]["last"]["fetching"] == [[found["hub"]["stored"]] * 2]
    first_block, header = found["hub"]["stored"] // 10, 100_000
    assert hub.weight_bytes < found["hub"]["stored"] + first_block + header
    assert list(models["home"].glob("hub/models--org--tiny/swarm-ranges/*/*-*"))

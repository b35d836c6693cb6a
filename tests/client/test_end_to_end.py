"""The promise, kept by real processes: a model over three servers gives plain transformers' ids.

Ids are compared as they are; where the two best logits are closer than `TIE` the choice is a matter
of the last bits, so such a row is compared teacher-forced up to there.
"""

import asyncio
import gc
import json
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import command_line
from same_ids import assert_greedy_ids, assert_same_ids
from transformers import AutoModelForCausalLM as PlainAutoModel
from transformers import TextIteratorStreamer, pipeline, set_seed

from swarm import AutoModelForCausalLM, ClientSettings
from swarm.errors import NotServedError, SessionFullError
from swarm.models.checkpoint import open_checkpoint
from swarm.models.embedded import embedded_gguf

LOGITS_TOLERANCE = 1e-3
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village by the sea,",
    "Water boils at",
    "List three fruits:",
    "The quick brown fox",
    "In 1969, astronauts",
    "To make bread, you need flour,",
]


@pytest.fixture(scope="module")
def tokenizer():
    return open_checkpoint().load_tokenizer()


@pytest.fixture(scope="module")
def plain():
    path = embedded_gguf()
    model = PlainAutoModel.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    return model


@pytest.fixture(scope="module")
def address(three_servers):
    return three_servers[0].address()


@pytest.fixture(scope="module")
def model(address):
    model = AutoModelForCausalLM.from_pretrained(initial_peers=[address], dtype=torch.float32)
    yield model
    model.close()


def greedy(model, tokenizer, prompt, tokens=64):
    inputs = tokenizer(prompt, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=tokens, do_sample=False)


@pytest.fixture(scope="module")
def expected(plain, tokenizer):
    """The first ids that plain transformers generates after each of `PROMPTS`."""
    return [greedy(plain, tokenizer, prompt, 12) for prompt in PROMPTS]


def check_greedy(plain, tokenizer, prompt, got, expected):
    """All 64 ids; the first ones as they are, the others in one pass."""
    assert_same_ids(plain, expected, got[:, : expected.shape[1]])
    assert_greedy_ids(plain, tokenizer(prompt, return_tensors="pt").input_ids, got, 64)


def test_greedy_ids(model, plain, tokenizer, expected):
    for prompt, want in zip(PROMPTS, expected, strict=True):
        check_greedy(plain, tokenizer, prompt, greedy(model, tokenizer, prompt), want)


def test_threads_of_one_client(model, plain, tokenizer, expected):
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: greedy(model, tokenizer, prompt, 12), PROMPTS))
    for want, got in zip(expected, together, strict=True):
        assert_same_ids(plain, want, got)


def test_eight_client_processes(address, plain, tokenizer, expected):
    def run(prompt):
        command = [*command_line("swarm-client"), "generate", "--peers", address, "--json"]
        command += ["--prompt", prompt, "--max-new-tokens", "64"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=True)
        return json.loads(done.stdout)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        answers = list(pool.map(run, PROMPTS))
    for prompt, want, answer in zip(PROMPTS, expected, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        got = torch.cat([ids, torch.tensor([answer["token_ids"]])], dim=1)
        check_greedy(plain, tokenizer, prompt, got, want)
        assert [hop["blocks"] for hop in answer["route"]] == ["0:10", "10:20", "20:30"]
        assert answer["ttft_s"] > 0
        assert answer["tokens_per_s"] > 0


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "max_new_tokens": 32},
        {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 16},
        {"num_beams": 5, "max_new_tokens": 24, "do_sample": False},
        {"num_beams": 5, "num_return_sequences": 3, "max_new_tokens": 12, "do_sample": False},
        {"prompt_lookup_num_tokens": 4, "max_new_tokens": 32, "do_sample": False},
        {"use_cache": False, "max_new_tokens": 4, "do_sample": False},
        {"prefill_chunk_size": 5, "max_new_tokens": 4, "do_sample": False},
    ],
    ids=["sampling", "three-samples", "beams", "best-of-beams", "lookup", "no-cache", "chunked"],
)
def test_ways_of_generating(model, plain, tokenizer, options):
    inputs = tokenizer("A cat and a dog. A cat and a dog. A cat", return_tensors="pt")
    set_seed(7)
    expected = plain.generate(**inputs, **options)
    set_seed(7)
    got = model.generate(**inputs, **options)
    if options.get("do_sample"):
        assert torch.equal(got, expected)
    else:
        assert_same_ids(plain, expected, got)


def test_a_local_assistant(model, plain, tokenizer):
    inputs = tokenizer("The three primary colours are", return_tensors="pt")
    options = {"max_new_tokens": 24, "do_sample": False}
    got = model.generate(**inputs, **options, assistant_model=plain)
    assert_same_ids(plain, plain.generate(**inputs, **options), got)


def test_a_left_padded_batch(model, plain, tokenizer):
    tokenizer.padding_side = "left"
    inputs = tokenizer(PROMPTS[:4], return_tensors="pt", padding=True)
    assert int(inputs.attention_mask.min()) == 0
    options = {"max_new_tokens": 24, "do_sample": False}
    expected, got = plain.generate(**inputs, **options), model.generate(**inputs, **options)
    width = inputs.input_ids.shape[1]
    for row in range(4):
        alone = inputs.input_ids[row][inputs.attention_mask[row].bool()][None]
        assert_same_ids(
            plain,
            torch.cat([alone, expected[row : row + 1, width:]], dim=1),
            torch.cat([alone, got[row : row + 1, width:]], dim=1),
        )


def test_two_calls_in_one_session(model, plain, tokenizer):
    first = tokenizer("My name is", return_tensors="pt").input_ids
    with model.session(max_length=80) as session:
        told = model.generate(first, max_new_tokens=16, do_sample=False)
        assert_same_ids(plain, plain.generate(first, max_new_tokens=16, do_sample=False), told)
        held = session.position
        more = torch.cat([told, tokenizer(" And then", return_tensors="pt").input_ids], dim=1)
        assert held == told.shape[1] - 1
        again = model.generate(more, max_new_tokens=16, do_sample=False)
        assert_same_ids(plain, plain.generate(more, max_new_tokens=16, do_sample=False), again)
        edited = torch.cat(
            [first, tokenizer(" not", return_tensors="pt").input_ids, more[:, first.shape[1] :]],
            dim=1,
        )
        changed = model.generate(edited, max_new_tokens=8, do_sample=False)
        assert_same_ids(plain, plain.generate(edited, max_new_tokens=8, do_sample=False), changed)
        with pytest.raises(SessionFullError, match="max_length"):
            model.generate(changed, max_new_tokens=70, min_new_tokens=70, do_sample=False)


@pytest.mark.parametrize("sizes", [[57], [13, 1, 31, 12], [1] * 57], ids=["one", "odd", "single"])
def test_logits(model, plain, sizes):
    ids = torch.randint(3, 40000, (1, 57), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain(ids).logits
        cache, logits, at = None, [], 0
        for size in sizes:
            output = model(ids[:, at : at + size], past_key_values=cache)
            cache = output.past_key_values
            logits.append(output.logits)
            at += size
    assert (torch.cat(logits, dim=1) - expected).abs().max() < LOGITS_TOLERANCE


def test_a_long_prompt_in_pieces(model, plain):
    ids = torch.randint(3, 40000, (1, 700), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(ids).logits - plain(ids).logits).abs().max() < LOGITS_TOLERANCE
        last = model(ids, logits_to_keep=1).logits
        assert (last - plain(ids, logits_to_keep=1).logits).abs().max() < LOGITS_TOLERANCE


def test_inside_a_running_loop(model, tokenizer, expected):
    async def cell():
        return greedy(model, tokenizer, PROMPTS[0], 4)

    got = asyncio.run(cell())
    assert torch.equal(got, expected[0][:, : got.shape[1]])


def test_streaming_and_pipeline(model, plain, tokenizer):
    inputs = tokenizer(PROMPTS[2], return_tensors="pt")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": 12, "do_sample": False}
    thread = threading.Thread(
        target=model.generate, kwargs={**inputs, **options, "streamer": streamer}
    )
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    text = pipeline("text-generation", model=model, tokenizer=tokenizer)(
        PROMPTS[2], return_full_text=False, **options
    )[0]["generated_text"]
    width = inputs.input_ids.shape[1]
    assert streamed == text == tokenizer.decode(plain.generate(**inputs, **options)[0, width:])


def test_what_is_not_served(model):
    ids = torch.arange(5, 10)[None]
    with pytest.raises(NotServedError, match="attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(NotServedError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")


def free_tokens(address):
    command = [*command_line("swarm-client"), "status", "--peers", address, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    servers = json.loads(done.stdout)["servers"]
    return {row["blocks"]: (row["cache_tokens_free"], row["cache_tokens_total"]) for row in servers}


def test_the_cache_is_free_again(model, address):
    """After all of the above, and after an error in the middle of a generation."""

    class Broken:
        def __call__(self, input_ids, scores, **kwargs):
            raise RuntimeError("the user's own code")

    with pytest.raises(RuntimeError, match="own code"):
        model.generate(torch.arange(5, 10)[None], max_new_tokens=5, stopping_criteria=[Broken()])
    gc.collect()
    deadline = time.monotonic() + 30
    while True:
        found = free_tokens(address)
        if all(free == total for free, total in found.values()):
            break
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert sorted(found) == ["0:10", "10:20", "20:30"]


def test_settings_are_taken(address, plain, tokenizer, expected):
    """Small pieces, few at a time: another model of the process, in a swarm of its own."""
    settings = ClientSettings(prefill_chunk_tokens=3, window=1)
    told = []
    model = AutoModelForCausalLM.from_pretrained(
        initial_peers=[address],
        dtype="float32",
        settings=settings,
        on_prefill=lambda done, total: told.append((done, total)),
    )
    try:
        got = greedy(model, tokenizer, PROMPTS[2], 8)
    finally:
        model.close()
    assert_same_ids(plain, expected[2][:, : got.shape[1]], got)
    length = got.shape[1] - 8
    assert len(told) == -(-length // 3)
    assert told[-1] == (length, length)
    assert sorted(told) == told

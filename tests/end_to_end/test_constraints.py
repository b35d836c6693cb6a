"""transformers' logits processors, constraints, stopping criteria and streamers, over the swarm.

Each is run side by side with plain transformers, and changes what the plain model says.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import plain_model, some_ids
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AsyncTextIteratorStreamer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    set_seed,
)
from transformers.generation import BaseStreamer, WatermarkingConfig

from swarm.client.seeding import OwnRandom
from swarm.errors import NotServedError
from swarm.testing import LocalSwarm

IDS = some_ids(9)
TOKENS = 16
SAMPLING = {"do_sample": True, "temperature": 2.0, "top_k": 0}
BEAMS = {"num_beams": 3, "num_return_sequences": 2}


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Any:
    return plain_model(tiny_llama)


@pytest.fixture(scope="module")
def swarm(tiny_llama: Path) -> Iterator[LocalSwarm]:
    with LocalSwarm(tiny_llama, "0:1", "1:4") as swarm:
        yield swarm


@pytest.fixture(scope="module")
def remote(swarm: LocalSwarm) -> Iterator[Any]:
    with swarm.client() as model:
        yield model


@pytest.fixture(scope="module")
def usual(plain: Any) -> list[int]:
    """What the plain model says without any constraint."""
    return answer(plain)[0, IDS.shape[1] :].tolist()


def answer(model: Any, **options: Any) -> torch.Tensor:
    set_seed(3)
    given = {"max_new_tokens": TOKENS, "do_sample": False, **options}
    found: torch.Tensor = model.generate(IDS, attention_mask=torch.ones_like(IDS), **given)
    return found


def tokenizer() -> PreTrainedTokenizerFast:
    # transformers writes this word before each token to see what the token looks like in a text.
    words = {f"w{n}": n for n in range(95)} | {"abcdef": 95}
    backend = Tokenizer(WordLevel(words, unk_token="w3"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="w0", eos_token="w2")


class OnlyEven(LogitsProcessor):  # type: ignore[misc]
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        odd = torch.arange(scores.shape[-1], device=scores.device) % 2 == 1
        return scores.masked_fill(odd, float("-inf"))


def grammar(batch: int, ids: torch.Tensor) -> list[int]:
    """After a token, only those that are a little larger, round and round."""
    return [3 + (int(ids[-1]) + step) % 90 for step in range(1, 7)]


def _last(usual: list[int]) -> int:
    """A token that the model says before the end."""
    return usual[5]


Options = Callable[[list[int]], dict[str, Any]]

WAYS: dict[str, Options] = {
    "a processor": lambda usual: {"logits_processor": LogitsProcessorList([OnlyEven()])},
    "a grammar": lambda usual: {"prefix_allowed_tokens_fn": grammar},
    "bad words": lambda usual: {"bad_words_ids": [[usual[1]], usual[3:5]]},
    "bias": lambda usual: {"sequence_bias": [[[usual[2]], -30.0], [usual[4:6], -30.0]]},
    "suppressed": lambda usual: {"suppress_tokens": usual[:3]},
    "suppressed at the beginning": lambda usual: {"begin_suppress_tokens": usual[:1]},
    "forced last": lambda usual: {"forced_eos_token_id": 11},
    "an end that may not come": lambda usual: {"eos_token_id": _last(usual), "min_new_tokens": 12},
    "an end that comes sooner": lambda usual: {
        "eos_token_id": _last(usual),
        "exponential_decay_length_penalty": (2, 9.0),
    },
    "two ends": lambda usual: {"eos_token_id": [_last(usual), usual[2]]},
    "repetition": lambda usual: {"repetition_penalty": 3.0},
    "n-grams": lambda usual: {"no_repeat_ngram_size": 1},
    "the prompt again": lambda usual: {"encoder_repetition_penalty": 5.0},
    "watermark": lambda usual: {"watermarking_config": WatermarkingConfig(bias=20.0)},
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "min p": {"min_p": 0.9},
    "typical p": {"typical_p": 0.3},
    "epsilon": {"epsilon_cutoff": 0.03},
    "eta": {"eta_cutoff": 0.9},
    "top p": {"top_p": 0.4},
    "renormalized": {"top_p": 0.4, "renormalize_logits": True, "remove_invalid_values": True},
    "temperature": {"temperature": 0.5},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_constraints(plain: Any, remote: Any, usual: list[int], way: Options) -> None:
    options = way(usual)
    expected = answer(plain, **options)
    assert expected.tolist() != answer(plain).tolist()
    assert torch.equal(answer(remote, **options), expected)


@pytest.mark.parametrize("way", ["a processor", "a grammar", "n-grams"])
@pytest.mark.parametrize("mode", [SAMPLING, BEAMS], ids=["sampling", "beams"])
def test_constraints_of_samples_and_beams(
    plain: Any, remote: Any, usual: list[int], way: str, mode: dict[str, Any]
) -> None:
    options = {**WAYS[way](usual), **mode}
    expected = answer(plain, **options)
    assert expected.tolist() != answer(plain, **mode).tolist()
    assert torch.equal(answer(remote, **options), expected)


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS)
def test_samplers(plain: Any, remote: Any, options: dict[str, Any]) -> None:
    expected = answer(plain, **SAMPLING | options)
    assert expected.tolist() != answer(plain, **SAMPLING).tolist()
    assert torch.equal(answer(remote, **SAMPLING | options), expected)


def test_a_forced_first_token(plain: Any, remote: Any) -> None:
    options = {"forced_bos_token_id": 7, "max_new_tokens": TOKENS, "do_sample": False}
    expected = plain.generate(IDS[:, :1], **options)
    assert expected[0, 1] == 7
    assert torch.equal(remote.generate(IDS[:, :1], **options), expected)


def test_constraints_of_a_padded_batch(plain: Any, remote: Any) -> None:
    ids, mask = some_ids(9, rows=3), torch.ones(3, 9, dtype=torch.long)
    ids[1, :4] = mask[1, :4] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": TOKENS, "do_sample": False}
    options |= {"prefix_allowed_tokens_fn": grammar, "no_repeat_ngram_size": 2}
    assert torch.equal(remote.generate(ids, **options), plain.generate(ids, **options))


def test_constraints_of_a_session(plain: Any, remote: Any) -> None:
    """A second call with another constraint rolls back what it does not share."""
    with remote.session(max_length=64):
        for options in ({"prefix_allowed_tokens_fn": grammar}, {"no_repeat_ngram_size": 1}, {}):
            assert torch.equal(answer(remote, **options), answer(plain, **options))


class StopAt(StoppingCriteria):  # type: ignore[misc]
    """Stops each row where its last two ids rise."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (input_ids[:, -1] > input_ids[:, -2]) & (input_ids.shape[1] > IDS.shape[1] + 2)


def test_stopping_criteria(plain: Any, remote: Any) -> None:
    for mode in ({}, SAMPLING, BEAMS):
        options = {"stopping_criteria": StoppingCriteriaList([StopAt()]), **mode}
        expected = answer(plain, **options)
        assert expected.shape[1] < IDS.shape[1] + TOKENS
        assert torch.equal(answer(remote, **options), expected)


def test_stop_strings(plain: Any, remote: Any, usual: list[int]) -> None:
    made = tokenizer()
    options = {"stop_strings": [f"w{_last(usual)}"], "tokenizer": made}
    expected = answer(plain, **options)
    assert expected.shape[1] < IDS.shape[1] + TOKENS
    assert torch.equal(answer(remote, **options), expected)


class Heard(BaseStreamer):  # type: ignore[misc]
    """What a streamer is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(value.tolist())

    def end(self) -> None:
        self.told.append("end")


def test_a_streamer_hears_the_same(plain: Any, remote: Any) -> None:
    ours, theirs = Heard(), Heard()
    answer(plain, streamer=theirs)
    answer(remote, streamer=ours)
    assert ours.told == theirs.told
    assert len(ours.told) == 1 + TOKENS + 1


def test_text_streamers(plain: Any, remote: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer()
    expected = made.decode(answer(plain)[0, IDS.shape[1] :], skip_special_tokens=True)
    answer(remote, streamer=TextStreamer(made, skip_prompt=True))
    assert capsys.readouterr().out.split() == expected.split()
    streamer = TextIteratorStreamer(made, skip_prompt=True, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(answer, remote, streamer=streamer)
        assert "".join(streamer).split() == expected.split()

    async def listen() -> str:
        streamer = AsyncTextIteratorStreamer(made, skip_prompt=True, timeout=60)
        running = asyncio.create_task(asyncio.to_thread(answer, remote, streamer=streamer))
        text = "".join([part async for part in streamer])
        await running
        return text

    assert asyncio.run(listen()).split() == expected.split()


def test_scores_after_the_processors(plain: Any, remote: Any) -> None:
    options = {"prefix_allowed_tokens_fn": grammar, **BEAMS}
    outputs = {"return_dict_in_generate": True, "output_scores": True}
    ours, theirs = (answer(model, **options, **outputs) for model in (remote, plain))
    assert torch.equal(ours.sequences, theirs.sequences)
    transitions = [
        model.compute_transition_scores(
            found.sequences, found.scores, found.beam_indices, normalize_logits=True
        )
        for model, found in ((remote, ours), (plain, theirs))
    ]
    assert torch.allclose(*transitions, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"force_words_ids": [[5]], "num_beams": 3}, {"num_beam_groups": 3, "num_beams": 3}],
    ids=["forced words", "groups of beams"],
)
def test_what_transformers_itself_has_no_longer(remote: Any, options: dict[str, Any]) -> None:
    with pytest.raises(NotServedError):
        answer(remote, **options)


def test_samples_in_several_threads(plain: Any, remote: Any) -> None:
    """Each thread with a seed of its own gets what a single thread would."""

    def sample(seed: int) -> list[int]:
        with OwnRandom(seed):
            found = remote.generate(IDS, max_new_tokens=TOKENS, **SAMPLING)
            more = remote.generate(found, max_new_tokens=2, **SAMPLING)
        ids: list[int] = more[0].tolist()
        return ids

    expected = []
    for seed in range(4):
        set_seed(seed)
        found = plain.generate(IDS, max_new_tokens=TOKENS, **SAMPLING)
        expected.append(plain.generate(found, max_new_tokens=2, **SAMPLING)[0].tolist())
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sample, range(4))) == expected


def test_nothing_is_left_on_the_servers(swarm: LocalSwarm) -> None:
    swarm.wait_until_free()

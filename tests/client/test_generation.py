"""transformers' ways of generating, over the plain model's own layers: ids must be equal."""

import inspect

import pytest
import torch
from stand_in import IDS, PADDED, as_remote, tiny_llama
from transformers import Phi3Config, Phi3ForCausalLM, StoppingCriteriaList, set_seed

from swarm.errors import NotServedError

WAYS = {
    "greedy": {"max_new_tokens": 40},
    "no cache": {"max_new_tokens": 10, "use_cache": False},
    "sampling": {"max_new_tokens": 40, "do_sample": True, "temperature": 0.8, "top_k": 20},
    "beams": {"max_new_tokens": 30, "num_beams": 5, "num_return_sequences": 3},
    "beam sampling": {"max_new_tokens": 20, "num_beams": 4, "do_sample": True},
    "three samples": {"max_new_tokens": 20, "do_sample": True, "num_return_sequences": 3},
    "prompt lookup": {"max_new_tokens": 30, "prompt_lookup_num_tokens": 4},
    "chunked prefill": {"max_new_tokens": 20, "prefill_chunk_size": 4},
    "two forwards a step": {"max_new_tokens": 10, "guidance_scale": 1.5},
    "processors": {"max_new_tokens": 20, "repetition_penalty": 1.3, "min_new_tokens": 20},
    "padded": {"inputs": PADDED, "attention_mask": (PADDED != 0).long(), "max_new_tokens": 20},
    "padded beams": {
        "inputs": PADDED,
        "attention_mask": (PADDED != 0).long(),
        "max_new_tokens": 20,
        "num_beams": 3,
    },
}


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_same_ids(plain, remote, options):
    model, servers = remote
    options = {"inputs": IDS, "do_sample": False, **options}
    set_seed(5)
    expected = plain.generate(**options)
    set_seed(5)
    assert torch.equal(model.generate(**options), expected)
    assert servers.reserved == 0


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("in_swarm", [False, True])
def test_an_assistant(plain, remote, sampling, in_swarm):
    model, servers = remote
    assistant = tiny_llama(1)
    options = {"max_new_tokens": 30, "do_sample": sampling}
    set_seed(5)
    expected = plain.generate(IDS, assistant_model=assistant, **options)
    if in_swarm:
        assistant, others = as_remote(assistant)
    set_seed(5)
    assert torch.equal(model.generate(IDS, assistant_model=assistant, **options), expected)
    assert servers.reserved == 0
    if in_swarm:
        assert others.reserved == 0


def test_a_prompt_of_embeddings(plain, remote):
    model, _ = remote
    embeddings = plain.get_input_embeddings()(IDS).detach()
    options = {"inputs_embeds": embeddings, "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(model.generate(**options), plain.generate(**options))


@pytest.mark.parametrize("shape", [(0, 4), (1, 0)])
def test_of_nothing_nothing_is_asked(remote, shape):
    model, servers = remote
    nothing = torch.zeros(shape, dtype=torch.long)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="at least one token"):
            call(nothing)
    assert not servers.opened


def test_equal_rows_are_computed_once(remote):
    model, servers = remote
    model.generate(IDS, max_new_tokens=3, num_beams=5, do_sample=False)
    assert [step.counts for step in servers.steps] == [(9,), (1,) * 5, (1,) * 5]
    assert servers.opened == [(5, 11)]


def test_a_prompt_asks_for_its_last_answer_only(remote):
    model, servers = remote
    model.generate(IDS, max_new_tokens=2, do_sample=False)
    assert [step.keep for step in servers.steps] == [1, 1]


def test_padding_does_not_travel(remote):
    model, servers = remote
    model.generate(PADDED, attention_mask=(PADDED != 0).long(), max_new_tokens=2, do_sample=False)
    assert [step.counts for step in servers.steps] == [(3, 5, 6), (1, 1, 1)]
    assert list(servers.steps[0].position_ids) == [0, 1, 2, 0, 1, 2, 3, 4, *range(6)]


def test_a_rewind_at_the_long_context_limit():
    torch.manual_seed(0)
    plain = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=211,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            original_max_position_embeddings=16,
            pad_token_id=0,
            eos_token_id=2,
            initializer_range=0.3,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "original_max_position_embeddings": 16,
            },
        )
    ).eval()
    model, servers = as_remote(plain)
    options = {"max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))
    assert (17,) in [step.counts for step in servers.steps], "computed again from the beginning"
    assert len(servers.opened) == 1


def test_a_streamer_and_stopping_criteria(plain, remote):
    model, servers = remote

    class Collector:
        def __init__(self):
            self.values, self.ended = [], False

        def put(self, value):
            self.values += value.reshape(-1).tolist()

        def end(self):
            self.ended = True

    def after_fifteen(input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= 15)

    collector = Collector()
    options = {
        "max_new_tokens": 40,
        "do_sample": False,
        "stopping_criteria": StoppingCriteriaList([after_fifteen]),
    }
    got = model.generate(IDS, streamer=collector, **options)
    assert torch.equal(got, plain.generate(IDS, **options))
    assert collector.values == got[0].tolist()
    assert collector.ended
    assert servers.reserved == 0


# ---- forward


@pytest.mark.parametrize("sizes", [[9], [2, 1, 4, 2], [1] * 9])
def test_logits_in_steps(plain, remote, sizes):
    model, _ = remote
    ids = torch.cat([IDS, IDS.flip(1)])
    cache, logits, at = None, [], 0
    with torch.no_grad():
        for size in sizes:
            output = model(ids[:, at : at + size], past_key_values=cache)
            cache, at = output.past_key_values, at + size
            logits.append(output.logits)
        assert torch.allclose(torch.cat(logits, dim=1), plain(ids).logits, atol=1e-4)


def test_padding_on_either_side(plain, remote):
    model, _ = remote
    ids = torch.cat([IDS, IDS.flip(1)])
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[1, -2:] = 0
    with torch.no_grad():
        got, expected = model(ids, attention_mask=mask), plain(ids, attention_mask=mask)
    assert torch.allclose(got.logits[mask.bool()], expected.logits[mask.bool()], atol=1e-4)


def test_a_loss_without_gradients(plain, remote):
    model, _ = remote
    output = model(IDS, labels=IDS)
    assert not output.logits.requires_grad
    expected = plain(IDS, labels=IDS).loss.item()
    assert output.loss.item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(NotServedError, match="gradients"):
        output.loss.backward()
    with torch.no_grad():
        assert not model(IDS, labels=IDS).loss.requires_grad


# ---- the class


def test_it_is_the_checkpoints_own_class(plain, remote):
    model, _ = remote
    assert isinstance(model, type(plain))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)

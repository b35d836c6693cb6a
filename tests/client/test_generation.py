"""transformers' ways of generating, over the plain model's own layers: ids must be equal."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from stand_in import as_remote, tiny_llama
from transformers import DynamicCache, Phi3Config, Phi3ForCausalLM, StoppingCriteriaList, set_seed

from swarm.errors import NotServedError, SessionClosedError, SessionFullError

IDS = torch.tensor([[17, 4, 99, 150, 4, 99, 150, 4, 99]])
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [0, 9, 8, 7, 6, 5], [11, 12, 13, 14, 15, 16]])


@pytest.fixture(scope="module")
def plain():
    return tiny_llama()


@pytest.fixture
def remote(plain):
    return as_remote(plain)


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


# ---- sessions


@pytest.mark.parametrize("beams", [1, 3])
def test_two_calls_in_a_session(plain, remote, beams):
    model, servers = remote
    options = {"max_new_tokens": 10, "do_sample": False, "num_beams": beams}
    first = plain.generate(IDS, **options)
    more = torch.cat([first, torch.tensor([[20, 30, 40]])], dim=1)
    edited = more.clone()
    edited[0, 5] = 77
    with model.session(max_length=60) as session:
        assert torch.equal(model.generate(IDS, **options), first)
        before = len(servers.steps)
        assert torch.equal(model.generate(more, **options), plain.generate(more, **options))
        assert servers.steps[before].counts == (4,), "the rest was kept"
        before = len(servers.steps)
        assert torch.equal(model.generate(edited, **options), plain.generate(edited, **options))
        assert servers.steps[before].counts == (17,), "rolled back to what is shared"
        assert len(servers.opened) == 1
        assert session.route == model.route != ()
    assert servers.reserved == 0


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3}])
def test_masks_of_ones_in_a_session_with_copies(plain, remote, how):
    """As tokenizers give them; the rows of the mask are copied before the session's are."""
    model, servers = remote
    options = {"max_new_tokens": 5, **how}
    first_ids = IDS
    with model.session(max_length=60):
        for _ in range(2):
            mask = torch.ones_like(first_ids)
            torch.manual_seed(3)
            mine = model.generate(first_ids, attention_mask=mask, **options)
            torch.manual_seed(3)
            theirs = plain.generate(first_ids, attention_mask=mask, **options)
            assert mine.tolist() == theirs.tolist()
            first_ids = theirs[:1]
    assert len(servers.opened) == 1


def test_a_padded_batch_in_a_session(plain, remote):
    model, servers = remote
    mask = (PADDED != 0).long()
    options = {"max_new_tokens": 5, "do_sample": False}
    with model.session(max_length=40):
        told = model.generate(PADDED, attention_mask=mask, **options)
        more = torch.cat([told, torch.tensor([[20], [30], [40]])], dim=1)
        longer = torch.cat([mask, torch.ones((3, 6), dtype=torch.long)], dim=1)
        before = len(servers.steps)
        got = model.generate(more, attention_mask=longer, **options)
        assert servers.steps[before].counts == (2, 2, 2)
        assert torch.equal(got, plain.generate(more, attention_mask=longer, **options))
        # Another padding of the same texts, as a tokenizer makes it for a longer row.
        shifted = torch.nn.functional.pad(more, (2, 0))
        shifted_mask = torch.nn.functional.pad(longer, (2, 0))
        got = model.generate(shifted, attention_mask=shifted_mask, **options)
        assert torch.equal(got, plain.generate(shifted, attention_mask=shifted_mask, **options))
    assert len(servers.opened) == 1


def test_forward_in_a_session_takes_new_tokens(plain, remote):
    model, servers = remote
    with torch.no_grad(), model.session(max_length=9):
        parts = [model(IDS[:, at : at + 4]).logits for at in (0, 4, 8)]
        assert torch.allclose(torch.cat(parts, dim=1), plain(IDS).logits, atol=1e-4)
        with pytest.raises(SessionFullError, match="10 tokens in a session for 9"):
            model(IDS[:, :1])
    assert servers.reserved == 0


def test_a_session_for_another_thread(plain, remote):
    model, servers = remote
    options = {"max_new_tokens": 5, "do_sample": False}
    session = model.session(max_length=40)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: model.generate(IDS, session=session, **options)).result()
        pool.submit(lambda: model.generate(first, session=session, **options)).result()
    assert servers.steps[-5].counts == (1,)
    session.close()
    assert servers.reserved == 0
    with pytest.raises(SessionClosedError):
        model.generate(first, session=session, **options)


def test_too_many_rows_for_a_session(remote):
    model, _ = remote
    with model.session(max_length=40):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
        with pytest.raises(SessionFullError, match="rows=3"):
            model.generate(IDS, max_new_tokens=2, num_beams=3, do_sample=False)
    with model.session(max_length=40, rows=3):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
        model.generate(IDS, max_new_tokens=2, num_beams=3, do_sample=False)


# ---- ends


def test_an_error_frees_the_servers(remote):
    model, servers = remote

    def broken(input_ids, scores, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(IDS, max_new_tokens=5, stopping_criteria=[broken])
    assert len(servers.opened) == 1
    assert servers.reserved == 0


def test_a_returned_cache_is_kept_as_long_as_it_is_used(plain, remote):
    model, servers = remote
    options = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True}
    output = model.generate(IDS, **options)
    assert servers.reserved > 0
    held = output.sequences.shape[1] - 1
    before = len(servers.steps)
    again = model.generate(output.sequences, past_key_values=output.past_key_values, **options)
    expected = plain.generate(output.sequences, **options).sequences
    assert torch.equal(again.sequences, expected)
    assert servers.opened[0] == (1, held)
    assert len(servers.opened) == 2, "it went on in a longer session"
    assert servers.steps[before].counts == (held,), "computed again"
    assert servers.steps[before + 1].starts == (held,)
    del again
    assert servers.reserved > 0
    del output
    assert servers.reserved == 0


def test_forward_frees_what_nobody_keeps(plain, remote):
    model, servers = remote
    with torch.no_grad():
        logits = model(IDS).logits
        assert torch.equal(logits, plain(IDS).logits)
        assert servers.reserved == 0
        assert model(IDS, use_cache=False).past_key_values is None
        as_tuple = model(IDS, return_dict=False)
    assert torch.equal(as_tuple[0], logits)


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


# ---- what is not served


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"output_attentions": True}, "attentions"),
        ({"output_hidden_states": True}, "hidden states"),
        ({"past_key_values": DynamicCache()}, "DynamicCache"),
        ({"attention_mask": torch.ones(1, 1, 9, 9)}, "2D"),
        ({"attention_mask": torch.ones(1, 4)}, "all 9"),
    ],
)
def test_forward_refuses(remote, options, named):
    model, servers = remote
    with pytest.raises(NotServedError, match=named):
        model(IDS, **options)
    assert servers.opened == []


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "quantized"},
        {"assistant_early_exit": 1},
        {"output_attentions": True, "return_dict_in_generate": True},
        {"past_key_values": DynamicCache()},
    ],
)
def test_generate_refuses(remote, options):
    model, servers = remote
    with pytest.raises(NotServedError):
        model.generate(IDS, max_new_tokens=3, **options)
    assert servers.reserved == 0


def test_gradients_are_refused(remote):
    model, _ = remote
    embeddings = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with pytest.raises(NotServedError, match="gradients"):
        model(inputs_embeds=embeddings)


def test_inner_modules_are_refused(remote):
    model, _ = remote
    with pytest.raises(NotServedError, match="itself"):
        model.model(IDS)


def test_masks_that_change_what_is_held_are_refused(remote):
    model, _ = remote
    mask = (PADDED != 0).long()
    cache = model(PADDED, attention_mask=mask).past_key_values
    new = torch.tensor([[7], [8], [9]])
    with pytest.raises(NotServedError, match="give the attention_mask"):
        model(new, past_key_values=cache)
    with pytest.raises(NotServedError, match="changes columns"):
        model(new, past_key_values=cache, attention_mask=torch.ones(3, 7))
    model(new, past_key_values=cache, attention_mask=torch.nn.functional.pad(mask, (0, 1), value=1))


def test_a_cache_is_not_copied(remote):
    model, _ = remote
    cache = model(IDS).past_key_values
    with pytest.raises(NotServedError, match="copied"):
        copy.deepcopy(cache)
    with pytest.raises(NotServedError, match="remote"):
        cache.update(None, None, 0)


# ---- the class


def test_it_is_the_checkpoints_own_class(plain, remote):
    model, _ = remote
    assert isinstance(model, type(plain))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)


def test_two_threads_have_a_session_each(plain, remote):
    model, servers = remote
    options = {"max_new_tokens": 20, "do_sample": False}
    prompts = [IDS, IDS.flip(1), IDS[:, 3:], IDS[:, :2]]
    expected = [plain.generate(prompt, **options) for prompt in prompts]

    def talk(prompt):
        with model.session(max_length=40):
            return model.generate(prompt, **options)

    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(talk, prompts))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(servers.opened) == 4
    assert servers.reserved == 0

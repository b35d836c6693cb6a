"""Sessions of a model: what they keep between calls, how long servers are held, and when freed."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from stand_in import IDS, PADDED, as_remote, tiny_llama

from swarm.errors import NotServedError, SessionClosedError, SessionFullError


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


@pytest.mark.parametrize(
    "how",
    [{"prompt_lookup_num_tokens": 4}, {"assistant_model": True}, {"use_cache": False}],
    ids=["lookup", "assistant", "no cache"],
)
def test_a_second_call_computes_only_what_is_new_however_it_generates(plain, remote, how):
    """transformers feeds all ids once more, to the first pass with guesses, and to all passes
    where a checkpoint's config says that it has no cache."""
    model, servers = remote
    if how.get("assistant_model"):
        how = {"assistant_model": tiny_llama(1)}
    options = {"max_new_tokens": 10, "do_sample": False}
    first = plain.generate(IDS, **options)
    more = torch.cat([first, torch.tensor([[20, 30, 40]])], dim=1)
    with model.session(max_length=60) as session:
        assert torch.equal(model.generate(IDS, **options, **how), first)
        held, before = session.position, len(servers.steps)
        assert torch.equal(model.generate(more, **options, **how), plain.generate(more, **options))
        assert servers.steps[before].starts == (held,)
        assert held >= IDS.shape[1]
    output = model.generate(IDS, **options, return_dict_in_generate=True)
    got = model.generate(more, past_key_values=output.past_key_values, **options, **how)
    assert torch.equal(got, plain.generate(more, **options))


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


def test_a_session_of_another_model(plain, remote):
    model, servers = remote
    other, _ = as_remote(plain)
    with other.session(max_length=40) as session, pytest.raises(NotServedError, match="another"):
        model.generate(IDS, session=session, max_new_tokens=2)
    assert not servers.opened


def test_a_session_that_has_ended_while_nobody_used_it_is_begun_anew(plain, remote):
    """The next `generate()` brings all ids; to a `forward()` with new tokens it is over."""
    model, servers = remote
    options = {"max_new_tokens": 5, "do_sample": False}
    with model.session(max_length=40) as session:
        first = model.generate(IDS, **options)
        servers.open.clear()
        assert torch.equal(model.generate(first, **options), plain.generate(first, **options))
        assert len(servers.opened) == 2
        held, mask = session.position, torch.ones((1, 30), dtype=torch.long)
        servers.open.clear()
        with pytest.raises(SessionClosedError):
            model.generate(first[:, -1:], attention_mask=mask[:, : held + 1], **options)
    assert len(servers.opened) == 2


def test_too_many_rows_for_a_session(remote):
    model, _ = remote
    with model.session(max_length=40):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
        with pytest.raises(SessionFullError, match="rows=3"):
            model.generate(IDS, max_new_tokens=2, num_beams=3, do_sample=False)
    with model.session(max_length=40, rows=3):
        model.generate(IDS, max_new_tokens=2, do_sample=False)
        model.generate(IDS, max_new_tokens=2, num_beams=3, do_sample=False)


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


# ---- ends


def test_an_error_frees_the_servers(remote):
    model, servers = remote

    def broken(input_ids, scores, **kwargs):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(IDS, max_new_tokens=5, stopping_criteria=[broken])
    assert len(servers.opened) == 1
    assert servers.reserved == 0


def test_a_session_that_was_interrupted_between_two_lines_is_over(remote, monkeypatch):
    """The servers hold tokens of which we do not know: none may follow them."""
    model, servers = remote
    options = {"max_new_tokens": 5, "do_sample": False}

    def interrupted(*args):
        monkeypatch.undo()
        raise KeyboardInterrupt

    with model.session(max_length=40):
        first = model.generate(IDS, **options)
        monkeypatch.setattr("swarm.client.columns.Columns.append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(first, **options)
        assert servers.reserved == 0
        with pytest.raises(SessionClosedError, match="KeyboardInterrupt"):
            model.generate(first, **options)


def test_a_returned_cache_that_holds_all_ids(plain, remote):
    """As `model(ids).past_key_values`: transformers has nothing left to compute then."""
    model, servers = remote
    options = {"max_new_tokens": 5, "do_sample": False}
    cache = model(IDS).past_key_values
    got = model.generate(IDS, past_key_values=cache, **options)
    assert torch.equal(got, plain.generate(IDS, **options))
    assert [step.counts for step in servers.steps] == [(9,)] + [(1,)] * 5
    with pytest.raises(NotServedError, match="not these 9 ids"):
        model.generate(IDS + 1, past_key_values=cache, **options)


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

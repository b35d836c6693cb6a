"""How much room is asked of the servers, and what becomes of a cache that is used up."""

import copy

import pytest
import torch
from stand_in import IDS

from swarm.errors import CacheFullError, NotServedError, SessionFullError

TWO = torch.tensor([[0, 0, 0, 5, 6, 7], [11, 12, 13, 14, 15, 16]])


def token_by_token(model, ids, mask=None, start=3):
    """The logits of all columns, the first `start` at once and then one by one."""
    cache, logits = None, []
    with torch.no_grad():
        for begin, end in [(0, start)] + [(at, at + 1) for at in range(start, ids.shape[1])]:
            output = model(
                ids[:, begin:end],
                past_key_values=cache,
                attention_mask=None if mask is None else mask[:, :end],
            )
            cache = output.past_key_values
            logits.append(output.logits)
    return torch.cat(logits, dim=1), cache


def test_a_forward_asks_for_room_to_go_on(remote):
    model, servers = remote
    cache = model(IDS).past_key_values
    assert servers.opened == [(1, 9 + 512)]
    del cache
    assert servers.reserved == 0
    model(IDS, use_cache=False)
    assert servers.opened[1] == (1, 9)


def test_a_forward_is_content_with_what_it_needs(plain, remote):
    model, servers = remote
    servers.room = 20
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert servers.opened == [(1, 9)]


@pytest.mark.parametrize("padded", [False, True])
def test_a_cache_that_is_used_up_goes_on_in_a_longer_session(plain, remote, padded):
    model, servers = remote
    model._remote.continuation_tokens = 2
    ids = torch.cat([TWO, TWO.flip(0), TWO], dim=1) if padded else IDS.repeat(2, 2)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    got, cache = token_by_token(model, ids, mask)
    with torch.no_grad():
        expected = plain(ids, attention_mask=mask).logits
    assert torch.allclose(got[mask.bool()], expected[mask.bool()], atol=1e-4)
    assert len(servers.opened) > 1
    assert len(servers.open) == 1, "the shorter ones are closed"
    del cache
    assert servers.reserved == 0


def test_the_move_follows_forks_and_rewinds(plain, remote):
    model, servers = remote
    model._remote.continuation_tokens = 0
    rows = torch.stack([IDS[0], IDS[0].flip(0)])
    with torch.no_grad():
        cache = model(rows).past_key_values
        cache.crop(-3)
        cache.reorder_cache(torch.tensor([1, 1]))
        new = torch.tensor([[3, 4, 5, 6, 7], [7, 6, 5, 4, 3]])
        got = model(new, past_key_values=cache).logits
        whole = torch.cat([rows[[1, 1], :6], new], dim=1)
        assert torch.allclose(got, plain(whole).logits[:, 6:], atol=1e-4)
    assert servers.opened == [(2, 9), (2, 22)]


def test_no_room_for_a_longer_session(remote):
    model, servers = remote
    servers.room = 12
    with pytest.raises(CacheFullError):
        token_by_token(model, IDS.repeat(1, 2))
    assert servers.reserved == 0


def test_a_returned_output_costs_no_more_room(remote):
    model, servers = remote
    model.generate(
        IDS, max_new_tokens=4, num_beams=3, do_sample=False, return_dict_in_generate=True
    )
    assert servers.opened == [(3, 12)]


# ---- sessions


@pytest.mark.parametrize("room", [{"max_length": 20, "rows": 257}, {"max_length": (1 << 20) + 1}])
def test_more_than_a_session_can_have_is_said_at_once(remote, room):
    model, servers = remote
    with (
        model.session(**room),
        pytest.raises(NotServedError, match="at most 256 rows of 1,048,576 tokens"),
    ):
        model.generate(IDS, max_new_tokens=2)
    assert not servers.opened


def test_looked_up_candidates_in_a_session_of_exactly_the_length(plain, remote):
    model, servers = remote
    ids = torch.tensor([[5, 6, 7, 8] * 6])
    options = {"max_new_tokens": 12, "do_sample": False, "prompt_lookup_num_tokens": 10}
    with model.session(max_length=36):
        assert torch.equal(model.generate(ids, **options), plain.generate(ids, **options))
    assert servers.opened == [(1, 68)]


def test_an_assistant_in_a_session_of_exactly_the_length(plain, remote):
    model, servers = remote
    servers.room = 21
    options = {"max_new_tokens": 12, "do_sample": False, "assistant_model": copy.deepcopy(plain)}
    with model.session(max_length=21):
        assert torch.equal(model.generate(IDS, **options), plain.generate(IDS, **options))
    assert servers.opened == [(1, 21)], "no more where there is no more"


def test_forward_keeps_to_the_length_of_a_session(remote):
    model, _ = remote
    with model.session(max_length=9):
        model(IDS)
        with pytest.raises(SessionFullError, match=r"10 tokens in a session for 9.*max_length"):
            model(IDS[:, :1])


def test_generate_keeps_to_the_length_of_a_session(remote):
    model, servers = remote
    with (
        model.session(max_length=12),
        pytest.raises(SessionFullError, match="13 tokens in a session for 12"),
    ):
        model.generate(IDS, max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert servers.opened == [(1, 44)]


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_any_number_of_rows_after_beams(plain, remote, rows):
    model, _ = remote
    options = {"max_new_tokens": 6, "do_sample": False}
    embeddings = plain.get_input_embeddings()(IDS.repeat(rows, 1)).detach()
    with model.session(max_length=40, rows=4):
        model.generate(IDS, num_beams=4, **options)
        got = model.generate(inputs_embeds=embeddings, **options)
        assert torch.equal(got, plain.generate(inputs_embeds=embeddings, **options))
        got = model.generate(IDS, num_beams=4, **options)
        assert torch.equal(got, plain.generate(IDS, num_beams=4, **options))

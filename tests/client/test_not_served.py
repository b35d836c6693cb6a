"""What a remote model does not serve is refused with a reason."""

import copy

import pytest
import torch
from stand_in import IDS, PADDED
from transformers import DynamicCache

from swarm.errors import NotServedError


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
        {"use_mtp": True},
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

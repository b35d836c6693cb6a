"""Ways in which people use a transformers model: the same here, or a clear refusal."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from stand_in import IDS, tiny_llama
from transformers import GenerationConfig, TextIteratorStreamer, set_seed

from swarm.errors import NotServedError

LEFT = torch.tensor([[0, 0, 0, 5, 6, 7], [11, 12, 13, 14, 15, 16]])
RIGHT = torch.tensor([[5, 6, 7, 0, 0, 0], [11, 12, 13, 14, 15, 16]])


def mask_of(ids):
    return (ids != 0).long()


OUTPUTS = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
WAYS = {
    "several samples of embeddings": {
        "inputs": None,
        "inputs_embeds": True,
        "do_sample": True,
        "num_return_sequences": 3,
    },
    "beams of embeddings": {"inputs": None, "inputs_embeds": True, "num_beams": 3},
    "a config": {"generation_config": GenerationConfig(max_new_tokens=7, num_beams=2)},
    "max_length": {"max_new_tokens": None, "max_length": 15},
    "no length": {"max_new_tokens": None},
    "outputs": OUTPUTS,
    "outputs of samples": {**OUTPUTS, "do_sample": True},
    "outputs of an assistant": {**OUTPUTS, "assistant_model": True},
    "outputs of padded beams": {
        **OUTPUTS,
        "inputs": LEFT,
        "attention_mask": mask_of(LEFT),
        "num_beams": 3,
        "num_return_sequences": 2,
    },
    "nothing but the beginning": {"inputs": None},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_same_outputs(plain, remote, way):
    model, servers = remote
    options = {"inputs": IDS, "max_new_tokens": 8, **way}
    if "generation_config" in options:
        del options["max_new_tokens"]
    elif "do_sample" not in options:
        options["do_sample"] = False
    if options.get("inputs_embeds"):
        options["inputs_embeds"] = plain.get_input_embeddings()(IDS).detach()
    if options.get("assistant_model"):
        options["assistant_model"] = tiny_llama(1)
    set_seed(3)
    expected = plain.generate(**options)
    set_seed(3)
    got = model.generate(**options)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected)
    else:
        assert torch.equal(got.sequences, expected.sequences)
        for name in ("scores", "logits"):
            pairs = zip(getattr(got, name), getattr(expected, name), strict=True)
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    del got
    assert servers.reserved == 0


class Numbers:
    """The part of a tokenizer that transformers' streamers use."""

    def decode(self, ids, **options):
        return "".join(f"{token} " for token in ids)


def test_text_from_another_thread(remote):
    model, _ = remote
    streamer = TextIteratorStreamer(Numbers(), skip_prompt=True, timeout=60)
    with ThreadPoolExecutor(1) as pool:
        options = {"max_new_tokens": 8, "do_sample": False}
        done = pool.submit(model.generate, IDS, streamer=streamer, **options)
        text = "".join(streamer)
        assert text == Numbers().decode(done.result()[0, 9:].tolist())


def test_right_padding(plain, remote):
    model, servers = remote
    mask = mask_of(RIGHT)
    with torch.no_grad():
        got, expected = model(RIGHT, attention_mask=mask), plain(RIGHT, attention_mask=mask)
        assert torch.allclose(got.logits[mask.bool()], expected.logits[mask.bool()], atol=1e-4)
        more = {
            "attention_mask": torch.nn.functional.pad(mask, (0, 1), value=1),
            "position_ids": torch.tensor([[3], [6]]),
        }
        new = torch.tensor([[9], [8]])
        got = model(new, past_key_values=got.past_key_values, **more).logits
        expected = plain(new, past_key_values=expected.past_key_values, **more).logits
        assert torch.allclose(got, expected, atol=1e-4)
    opened = len(servers.opened)
    with pytest.raises(NotServedError, match=r'\(row 0\).* set tokenizer.padding_side = "left"'):
        model.generate(RIGHT, attention_mask=mask, max_new_tokens=3)
    with pytest.raises(NotServedError, match=r"\(row 0, 1, 2, .*, 7 and 1 more\)"):
        model.generate(RIGHT[:1].repeat(9, 1), attention_mask=mask[:1].repeat(9, 1))
    assert len(servers.opened) == opened


def test_the_module_itself(plain, remote):
    model, _ = remote
    assert model.to("cpu") is model
    assert model.eval() is model
    assert not model.training
    assert model.config.num_hidden_layers == 3
    blocks = sum(parameter.numel() for parameter in plain.model.layers.parameters())
    assert model.num_parameters() == plain.num_parameters() - blocks
    with torch.inference_mode():
        assert model(IDS, logits_to_keep=1).logits.shape[1] == 1


@pytest.mark.parametrize(
    "take",
    [
        copy.copy,
        copy.deepcopy,
        pickle.dumps,
        lambda model: model.save_pretrained("nowhere"),
        lambda model: model.generate_batch([[1, 2]]),
        lambda model: model.generate(IDS, cache_implementation="paged"),
        lambda model: model.generate(IDS, penalty_alpha=0.6, top_k=4),
        lambda model: model.generate(IDS, dola_layers="low"),
        lambda model: model.generate(IDS, num_beams=4, num_beam_groups=2, diversity_penalty=1.0),
        lambda model: model.generate(IDS, num_beams=4, force_words_ids=[[5]]),
        lambda model: model.generate(IDS, cache_implementation="offloaded"),
    ],
    ids=[
        *("copy", "deepcopy", "pickle", "save", "generate_batch", "paged"),
        *("contrastive", "dola", "groups", "constraints", "offloaded"),
    ],
)
def test_refusals(remote, take):
    model, servers = remote
    with pytest.raises(NotServedError):
        take(model)
    assert servers.reserved == 0

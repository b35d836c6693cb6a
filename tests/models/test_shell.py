"""A shell whose blocks run in a plain model next door gives exactly the plain model's outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import ARCHITECTURES, save_tiny
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, pipeline

from swarm.errors import CheckpointError, NotServedError
from swarm.models.checkpoint import open_checkpoint
from swarm.models.layer_list import find_layers
from swarm.models.shell import load_shell


class PlainBlocks(nn.Module):
    """Runs the blocks of a plain model, with masks and tables of the plain model's own making."""

    def __init__(self, plain: PreTrainedModel) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []
        _, blocks = find_layers(plain, plain.config.num_hidden_layers)
        self._decoder = [plain]  # in a list, so that it is no part of the shell
        self._entered: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        blocks[-1].register_forward_hook(self._leave)

    def forward(self, hidden_states: torch.Tensor, **given: Any) -> torch.Tensor:
        self.calls.append(given)
        self._entered = hidden_states
        self._decoder[0](inputs_embeds=hidden_states, **given)
        assert self._left is not None
        result, self._entered, self._left = self._left, None, None
        return result

    def _enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._entered is None:
            return None
        if "hidden_states" in kwargs:
            return args, kwargs | {"hidden_states": self._entered}
        return (self._entered, *args[1:]), kwargs

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self._left = output[0] if isinstance(output, tuple) else output


class Pair:
    def __init__(self, architecture: str, folder: Path) -> None:
        save_tiny(architecture, folder)
        self.plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.checkpoint = open_checkpoint(str(folder))
        self.blocks = PlainBlocks(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        self.shell = load_shell(self.checkpoint, torch.float32, lambda config: self.blocks)


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


PROMPTS = torch.tensor([[5, 17, 33, 8, 90, 41, 7, 60, 12, 13], [9, 8, 7, 6, 5, 4, 3, 30, 20, 10]])
PADDED = torch.tensor([[0, 0, 0, 0, 5, 17, 33, 8, 90, 41], [9, 8, 7, 6, 5, 4, 3, 30, 20, 10]])
PADDING = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [1] * 10])


@torch.no_grad()
def test_prefill(pair: Pair) -> None:
    assert torch.equal(pair.shell(PROMPTS).logits, pair.plain(PROMPTS).logits)


@torch.no_grad()
def test_cached_decode(pair: Pair) -> None:
    caches = DynamicCache(config=pair.plain.config), DynamicCache(config=pair.plain.config)
    for part in (PROMPTS[:, :6], PROMPTS[:, 6:7], PROMPTS[:, 7:]):
        logits = [
            model(part, past_key_values=cache, use_cache=True).logits
            for model, cache in zip((pair.shell, pair.plain), caches, strict=True)
        ]
        assert torch.equal(*logits)


@torch.no_grad()
def test_left_padding_reaches_the_remote(pair: Pair) -> None:
    pair.blocks.calls.clear()
    positions = (PADDING.cumsum(-1) - 1).clamp(min=0)
    given: dict[str, Any] = {"attention_mask": PADDING}
    if pair.plain.config.model_type != "bloom":
        given["position_ids"] = positions
    shell, plain = (model(PADDED, **given).logits for model in (pair.shell, pair.plain))
    assert torch.equal(shell, plain)
    (call,) = pair.blocks.calls
    assert torch.equal(call["attention_mask"], PADDING.bool())
    assert torch.equal(call["position_ids"], positions)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "temperature": 1.3, "top_k": 20}, {"num_beams": 3}],
    ids=["greedy", "sampling", "beams"],
)
def test_generate(pair: Pair, options: dict[str, Any]) -> None:
    ids = []
    for model in (pair.shell, pair.plain):
        torch.manual_seed(7)
        ids.append(
            model.generate(
                PADDED, attention_mask=PADDING, max_new_tokens=12, min_new_tokens=12, **options
            )
        )
    assert torch.equal(*ids)


def test_no_block_is_read_or_made(pair: Pair) -> None:
    shell_bytes = sum(
        pair.checkpoint.tensors[name].nbytes for name in pair.checkpoint.shell_tensors()
    )
    assert pair.checkpoint.bytes_read == shell_bytes
    _, blocks = find_layers(pair.plain, 4)
    expected = sum(p.numel() for p in pair.plain.parameters()) - sum(
        p.numel() for p in blocks.parameters()
    )
    assert sum(parameter.numel() for parameter in pair.shell.parameters()) == expected
    assert all(parameter.device.type == "cpu" for parameter in pair.shell.parameters())


def test_class_and_config_are_the_checkpoints_own(pair: Pair) -> None:
    assert isinstance(pair.shell, type(pair.plain))
    assert type(pair.shell).__name__ == type(pair.plain).__name__
    assert pair.shell.config.num_hidden_layers == 4
    assert pair.shell.generation_config.to_dict() == pair.plain.generation_config.to_dict()
    assert not pair.shell.training


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair("llama", tmp_path_factory.mktemp("llama"))


def test_dtype_is_the_callers(llama: Pair) -> None:
    shell = load_shell(llama.checkpoint, torch.bfloat16, lambda config: nn.Identity())
    assert shell.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in shell.parameters()} == {torch.bfloat16}


def test_pipeline_accepts_the_embedded_shell() -> None:
    checkpoint = open_checkpoint(None)
    shell = load_shell(checkpoint, torch.float32, lambda config: Unchanged())
    run = pipeline("text-generation", model=shell, tokenizer=checkpoint.load_tokenizer())
    (answer,) = run("Hello", max_new_tokens=2, do_sample=False)
    assert answer["generated_text"].startswith("Hello")
    names = checkpoint.shell_tensors()
    assert checkpoint.bytes_read == sum(checkpoint.tensors[name].nbytes for name in names)


class Unchanged(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        return hidden_states


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"attention_mask": torch.ones(2, 1, 10, 10, dtype=torch.bool)}, "four dimensions"),
        ({"cu_seq_lens_q": torch.tensor([0, 10])}, "cu_seq_lens_q"),
    ],
)
def test_what_cannot_travel_is_refused(llama: Pair, given: dict[str, Any], named: str) -> None:
    with pytest.raises(NotServedError, match=named):
        llama.shell(PROMPTS, **given)


def test_a_missing_tensor_is_an_error_and_never_random(tmp_path: Path) -> None:
    plain = save_tiny("llama", tmp_path)
    weights = {k: v for k, v in plain.state_dict().items() if k != "model.norm.weight"}
    plain.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_shell(open_checkpoint(str(tmp_path)), torch.float32, lambda config: nn.Identity())

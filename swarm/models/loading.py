"""transformers' own loading of weights that somebody else has chosen."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from swarm.errors import CheckpointError
from swarm.models.building import building_model


def load_model(
    model_class: type[Any],
    config: PretrainedConfig,
    state_dict: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    name: str,
    generation_config: GenerationConfig | None = None,
) -> PreTrainedModel:
    """Build `model_class(config)` on the meta device and fill it from stored names and tensors.

    Conversion of stored weights (fused experts and the like), tying, buffers and dtypes are
    transformers' own. Values may be lazy, see `LazyTensor`. `name` is for messages.
    Raises CheckpointError if a parameter is not in `state_dict` or has another shape: transformers
    itself would fill it with random numbers.
    """
    try:
        with building_model():
            model, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(state_dict),
                dtype=dtype,
                generation_config=generation_config,
                output_loading_info=True,
                trust_remote_code=False,
            )
    except RuntimeError as error:
        raise CheckpointError(
            f"{name}: the stored tensors do not fit its config; fetch the model again ({error})"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{name}: {missing[0]} is not in the checkpoint ({len(missing)} parameters are "
            "missing); fetch the model again"
        )
    loaded: PreTrainedModel = model
    return loaded

"""Models on the Hugging Face hub: their small files at once, their weights by byte range.

Both lie in the hub's usual cache (`hub_shard` says where), pinned to one commit. `HF_ENDPOINT`,
`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_TOKEN` and the stored login count as usual, for
huggingface_hub does the asking.
"""

import logging
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from swarm.errors import ModelNotFoundError
from swarm.models.hub_errors import hub_errors
from swarm.models.hub_shard import HubShard
from swarm.models.safetensors_source import SINGLE_NAME, ShardFile, shard_names

logger = logging.getLogger(__name__)

SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
"""Config, index of the weights and tokenizer."""
OTHER_FOLDERS = ["*/*"]
"""Conversions for other programs."""


def fetch_repository(name: str, revision: str | None) -> tuple[Path, list[ShardFile]]:
    """Fetch the small files; return their folder and the weight files, none of them fetched.

    The folder is named after the commit. Raises ModelNotFoundError in one line for a name, revision
    or gate that refuses, for a repository without safetensors files, and when there is neither a
    network nor a cached copy.
    """
    with hub_errors(name):
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=SMALL_FILES,
                ignore_patterns=OTHER_FOLDERS,
            )
        )
    logger.info("%s is taken at commit %s", name, folder.name)
    names = shard_names(folder)
    if names is None:
        single = HubShard(name, folder, SINGLE_NAME)
        if not single.is_known():
            with hub_errors(name):
                exists = HfApi().file_exists(name, SINGLE_NAME, revision=folder.name)
            if not exists:
                raise ModelNotFoundError(
                    f"{name} has no safetensors files on the hub; choose a model that has"
                )
        return folder, [single]
    return folder, [HubShard(name, folder, shard) for shard in names]

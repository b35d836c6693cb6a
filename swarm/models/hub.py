"""Models on the Hugging Face hub, of which only the needed files are fetched.

huggingface_hub keeps them in its shared cache, pinned to one commit, and obeys `HF_HUB_OFFLINE`,
`HF_HOME` and the token as usual.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from swarm.errors import ModelNotFoundError
from swarm.models.disk_cache import cache_key, load_json, store_json
from swarm.models.safetensors_source import SINGLE_NAME, ShardFile, shard_names

SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model"]
"""Config, index of the weights and tokenizer."""


class HubShard:
    """A weight file of a repository at one commit.

    Short ranges (headers, samples) are read remotely unless the file is here; a tensor that is
    loaded fetches its whole file into the hub's cache.
    """

    def __init__(self, repository: str, commit: str, name: str) -> None:
        self._repository = repository
        self._commit = commit
        self._name = name
        self._remote = f"{repository}@{commit}/{name}"
        self.label = f"{repository}/{name}"
        self.key = cache_key("hub", repository, commit, name)

    def size(self) -> int:
        path = self._cached()
        if path is not None:
            return path.stat().st_size
        kept = load_json("hub-size", self.key)
        if isinstance(kept, int):
            return kept
        with hub_errors(self.label):
            size = int(HfFileSystem().info(self._remote)["size"])
        store_json("hub-size", self.key, size)
        return size

    def read(self, start: int, end: int) -> bytes:
        path = self._cached()
        if path is not None:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(end - start)
        with hub_errors(self.label):
            return bytes(HfFileSystem().cat_file(self._remote, start=start, end=end))

    def local_path(self) -> Path:
        with hub_errors(self.label):
            return Path(hf_hub_download(self._repository, self._name, revision=self._commit))

    def _cached(self) -> Path | None:
        found = try_to_load_from_cache(self._repository, self._name, revision=self._commit)
        return Path(found) if isinstance(found, str) else None


def fetch_repository(name: str, revision: str | None) -> tuple[Path, list[ShardFile]]:
    """Fetch the small files; return their folder and the weight files, none of them fetched.

    Raises ModelNotFoundError in one line for a name, revision or gate that refuses, for a
    repository without safetensors files, and when there is neither a network nor a cached copy.
    """
    with hub_errors(name):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES))
    commit = folder.name
    names = shard_names(folder)
    if names is None:
        with hub_errors(name):
            single = _has_single_file(name, commit)
        if not single:
            raise ModelNotFoundError(
                f"{name} has no safetensors files on the hub; choose a model that has"
            )
        names = [SINGLE_NAME]
    return folder, [HubShard(name, commit, shard) for shard in names]


def _has_single_file(name: str, commit: str) -> bool:
    if isinstance(try_to_load_from_cache(name, SINGLE_NAME, revision=commit), str):
        return True
    return HfApi().file_exists(name, SINGLE_NAME, revision=commit)


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Say in one line what the hub's many errors mean for the user."""
    try:
        yield
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{what} asks for your consent; give it on its page on huggingface.co, then "
            "run: hf auth login"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(
            f"{what}: no such folder, and no such model on the hub that you may read; check the "
            "name, or run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{what} has no such revision; leave it out or check it"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ModelNotFoundError(
            f"{what}: no such folder, not in the hub's local cache, and the hub cannot be reached; "
            "check the name and the network (and HF_HUB_OFFLINE)"
        ) from error
    except EntryNotFoundError as error:
        raise ModelNotFoundError(
            f"{what} is not on the hub; the repository is incomplete"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"{what}: the hub cannot be reached ({type(error).__name__}); check the network"
        ) from error

"""What the hub's many errors mean for the user, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
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

from swarm.errors import ModelNotFoundError, SwarmError


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Raises ModelNotFoundError instead of huggingface_hub's errors and those of its transport."""
    try:
        yield
    except SwarmError:
        raise
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
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        raise ModelNotFoundError(
            f"{what}: the hub cannot be reached ({type(error).__name__}); check the network"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ModelNotFoundError(
            f"{what}: what answers is not a Hugging Face hub ({type(error).__name__}); check "
            "HF_ENDPOINT and the network"
        ) from error

"""The client's part of a model and its place in the swarm, for the length of a command."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarm.cli.importing import importing
from swarm.cli.logs import log_to_stderr
from swarm.cli.terminal import say, take_any_text
from swarm.errors import UsageError
from swarm.sessions.grants import ACTIVATION_DTYPES
from swarm.wire.addresses import split_peer

if TYPE_CHECKING:
    from swarm.models.checkpoint import Checkpoint

DTYPE_NAMES = ("auto", *ACTIVATION_DTYPES)


@dataclass(frozen=True)
class Connection:
    """The options of `swarm-client generate` and `chat` that say which model, and where."""

    model: str | None
    peers: tuple[str, ...]
    dtype: str = "auto"
    revision: str | None = None
    mix_numerics: bool = False

    def open(self) -> "Checkpoint":
        """Checks what can be checked without the swarm. Raises UsageError, CheckpointError."""
        for address in self.peers:
            split_peer(address)
        if self.dtype not in DTYPE_NAMES:
            raise UsageError(f"--dtype {self.dtype}: use one of {', '.join(DTYPE_NAMES)}")
        take_any_text()
        with importing():
            _quiet_libraries()
            from swarm.models.checkpoint import open_checkpoint

        return open_checkpoint(self.model, self.revision)

    @contextmanager
    def joined(self, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Any]:
        """The model, a member of the swarm until the block ends. Raises SwarmError."""
        say("loading the client's part of the model and joining the swarm")
        from swarm import AutoModelForCausalLM, ClientSettings

        model = AutoModelForCausalLM.from_pretrained(
            self.model,
            initial_peers=self.peers,
            dtype=self.dtype,
            revision=self.revision,
            settings=ClientSettings(mix_numerics=self.mix_numerics),
            on_prefill=on_prefill,
        )
        try:
            yield model
        finally:
            model.close()


def _quiet_libraries() -> None:
    log_to_stderr()
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()

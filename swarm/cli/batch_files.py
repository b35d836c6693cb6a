"""The files of a batch: prompts with their options, and answers that survive an interruption."""

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec

from swarm.cli.answering import Sampling
from swarm.cli.output_lock import OutputLock
from swarm.errors import UsageError

Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


class Prompt(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a file of prompts; an option replaces the command's own for this prompt."""

    prompt: str
    id: str | int | None = None
    max_new_tokens: Positive | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_k: Positive | None = None
    top_p: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    seed: Natural | None = None
    num_beams: Positive | None = None
    stop: list[str] | None = None

    def sampling(self, defaults: Sampling) -> Sampling:
        """The options of this prompt."""
        names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "num_beams")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.stop is not None:
            own["stop"] = tuple(self.stop)
        return replace(defaults, **own)


def read_prompts(path: Path) -> list[Prompt]:
    """JSON lines if the first one begins with a brace, else a prompt a line; empty lines count for
    nothing. UsageError names the line that is wrong."""
    try:
        text = _read(path, "--prompts").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--prompts {path} is not UTF-8 text: {error}") from None
    # Not splitlines(), which also splits at characters that may stand in a prompt.
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise UsageError(f"--prompts {path} has no prompts; write one a line")
    if not numbered[0][1].lstrip().startswith("{"):
        return [Prompt(line) for _, line in numbered]
    decode = msgspec.json.Decoder(Prompt).decode
    prompts = []
    for number, line in numbered:
        try:
            prompts.append(decode(line))
        except msgspec.MsgspecError as error:
            raise UsageError(
                f"{path}, line {number}: {error}; a line is an object with `prompt` and, if need "
                f"be, {', '.join(Prompt.__struct_fields__[1:])}"
            ) from None
    return prompts


class Failure(msgspec.Struct):
    """Why there is no answer."""

    type: str
    message: str


class Result(msgspec.Struct):
    """One line of the output."""

    index: int
    """Of the prompt in its file, from 0."""
    id: str | int | None
    text: str | None
    token_ids: list[int] | None
    ttft_s: float | None
    tokens_per_s: float | None
    error: Failure | None
    digest: str
    """Of everything that the answer follows from."""


_BEGINNING = b'{"index":'
"""Of each line of the output."""


def digest_of(checkpoint: str, dtype: str, prompt: Prompt, sampling: Sampling) -> str:
    """Of the model's weights, the prompt and the options; 16 hexadecimal digits."""
    everything = [checkpoint, dtype, prompt.prompt, prompt.id, asdict(sampling)]
    return hashlib.blake2b(msgspec.json.encode(everything), digest_size=8).hexdigest()


class ResultFile:
    """Answers, one line each, written as they come; `finish` puts them in order.

    Opening a file of an earlier run keeps the answers in it. What failed is asked again, and a
    line that was only half written is dropped.
    """

    def __init__(self, path: Path, digests: Sequence[str]) -> None:
        """`digests[i]`: of prompt i. UsageError if the file holds answers to something else, is
        being written by another run, or cannot be written."""
        self._path = path = _regular(path)
        self._results: dict[int, Result] = {}
        with ExitStack() as undo:
            try:
                lock = OutputLock(path)
            except OSError as error:
                raise _unwritable(path, error) from None
            undo.callback(lock.release)
            if path.exists():
                self._take_all(_read(path, "--output"), digests)
            self._rewrite()
            self._file = self._open()
            undo.pop_all()
        self._lock = lock

    @property
    def done(self) -> frozenset[int]:
        """The prompts that have answers."""
        return frozenset(index for index, one in self._results.items() if one.error is None)

    def add(self, result: Result) -> None:
        """UsageError where it cannot be written (a full disk)."""
        left = memoryview(_line(result))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise _unwritable(self._path, error) from None
        self._results[result.index] = result

    def finish(self) -> None:
        """In the order of the prompts, and closed."""
        self._file.close()
        self._rewrite()
        self._lock.release()

    def close(self) -> None:
        self._file.close()
        self._lock.release()

    def _take_all(self, stored: bytes, digests: Sequence[str]) -> None:
        *whole, half = stored.split(b"\n")
        for number, line in enumerate(whole, 1):
            self._take(number, line, digests)
        if half and not half.startswith(_BEGINNING) and not _BEGINNING.startswith(half):
            raise self._not_ours(len(whole) + 1)

    def _take(self, number: int, line: bytes, digests: Sequence[str]) -> None:
        try:
            result = msgspec.json.decode(line, type=Result)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._not_ours(number) from None
        if result.error is not None:
            return
        if result.index >= len(digests) or digests[result.index] != result.digest:
            raise UsageError(
                f"--output {self._path} has answers to other prompts, options or another model "
                f"(line {number}, prompt {result.index}); name another file, or go back to those"
            )
        self._results.setdefault(result.index, result)

    def _not_ours(self, number: int) -> UsageError:
        return UsageError(
            f"--output {self._path} is not an output of this command (line {number}); name another "
            "file, and this one stays as it is"
        )

    def _rewrite(self) -> None:
        """All at once or not at all."""
        kept = sorted(self._results.values(), key=lambda result: result.index)
        try:
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            with ExitStack() as undo:
                undo.callback(os.unlink, name)
                with os.fdopen(handle, "wb") as file:
                    file.writelines(map(_line, kept))
                mode = self._path.stat().st_mode if self._path.exists() else 0o644
                os.chmod(name, mode & 0o777)
                os.replace(name, self._path)
                undo.pop_all()
        except OSError as error:
            raise _unwritable(self._path, error) from None

    def _open(self) -> Any:
        try:
            return open(self._path, "ab", buffering=0)
        except OSError as error:
            raise _unwritable(self._path, error) from None


def _line(result: Result) -> bytes:
    return msgspec.json.encode(result) + b"\n"


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be read: {error.strerror}") from None


def _regular(path: Path) -> Path:
    """Where a link leads, for the file is replaced now and then and not written in its place."""
    try:
        real = path.resolve()
        if real.is_symlink() or (
            real.exists() and not real.is_file()
        ):  # one to itself, or a device
            raise UsageError(
                f"--output {path} is not a regular file, and only to one of these can a later run "
                "add its answers; name another"
            )
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise UsageError(f"--output {path} cannot be used: {error}; name another file") from None
    return real


def _unwritable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"--output {path} cannot be written: {error.strerror}; name another file")

"""What `swarm-client generate --prompts` does once its options are read."""

import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from swarm.cli.answering import Answering, Sampling
from swarm.cli.batch_files import Failure, Prompt, Result, ResultFile, digest_of, read_prompts
from swarm.cli.connecting import Connection
from swarm.cli.errors import one_line
from swarm.cli.terminal import say
from swarm.errors import SwarmError, UsageError

logger = logging.getLogger(__name__)

MAX_FAILED_ROUNDS = 3
"""So many failures of the swarm for each of the concurrent prompts, without an answer in between,
and the rest is left for another time."""


@dataclass(frozen=True)
class BatchRequest:
    """A file of prompts, and the file of their answers."""

    connection: Connection
    sampling: Sampling
    """For prompts that bring no options of their own."""
    prompts: Path
    output: Path
    concurrency: int


def generate_batch(request: BatchRequest) -> bool:
    """Answers what has no answer yet; whether all prompts have one now.

    An error of one prompt goes to its line of the output. Interrupted, it raises
    KeyboardInterrupt and leaves a file that another run goes on with.
    """
    prompts = read_prompts(request.prompts)
    samplings = [prompt.sampling(request.sampling) for prompt in prompts]
    checkpoint = request.connection.open()
    digests = [
        digest_of(checkpoint.identity, request.connection.dtype, prompt, sampling)
        for prompt, sampling in zip(prompts, samplings, strict=True)
    ]
    results = ResultFile(request.output, digests)
    try:
        todo = [index for index in range(len(prompts)) if index not in results.done]
        if len(todo) < len(prompts):
            say(f"{len(prompts) - len(todo)} of {len(prompts)} have answers already")
        if todo:
            tokenizer = checkpoint.load_tokenizer()
            with request.connection.joined() as model, _progress(len(prompts)) as progress:
                progress.advance(len(prompts) - len(todo), 0)
                batch = _Batch(model, tokenizer, prompts, samplings, digests, results, progress)
                batch.run(todo, request.concurrency)
        results.finish()
    finally:
        results.close()
        left = len(prompts) - len(results.done)
        say(
            f"{len(results.done)} of {len(prompts)} prompts are answered in {request.output}"
            + ("; run the same command again for the others" if left else "")
        )
    return not left


class Progress(Protocol):
    """What shows how far a batch is."""

    def advance(self, prompts: int, tokens: int) -> None: ...
    def tell(self, line: str) -> None: ...


class _Batch:
    """Prompts in several threads, each with a session of its own; their answers in one file."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: list[Prompt],
        samplings: list[Sampling],
        digests: list[str],
        results: ResultFile,
        progress: Progress,
    ) -> None:
        self._model = model
        self._tokenizer = _SharedTokenizer(tokenizer)
        self._prompts, self._samplings, self._digests = prompts, samplings, digests
        self._results = results
        self._progress = progress
        self._stopped = threading.Event()
        self._failed_in_a_row = 0

    def run(self, todo: list[int], concurrency: int) -> None:
        most_failures = MAX_FAILED_ROUNDS * concurrency
        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="prompt")
        with ExitStack() as at_end:
            at_end.callback(pool.shutdown, cancel_futures=True)
            # Before that, when it is interrupted: who waits for a server now is told so and need
            # not be waited for.
            at_end.callback(self._model.close)
            at_end.callback(self._stopped.set)
            for done in as_completed([pool.submit(self._answer, index) for index in todo]):
                result = done.result()
                if result is None:
                    continue
                self._results.add(result)
                self._progress.advance(1, len(result.token_ids or ()))
                if result.error is None:
                    self._failed_in_a_row = 0
                    continue
                self._failed_in_a_row += 1
                what = f"prompt {result.index}: {result.error.type}: {result.error.message}"
                self._progress.tell(what)
                if self._failed_in_a_row >= most_failures and not self._stopped.is_set():
                    self._progress.tell(f"{most_failures} failures in a row: the rest is left")
                    self._stopped.set()

    def _answer(self, index: int) -> Result | None:
        """None: stopped before there was a whole answer."""
        if self._stopped.is_set():
            return None
        prompt, sampling = self._prompts[index], self._samplings[index]
        try:
            ids = self._tokenizer(prompt.prompt).input_ids
            if not ids:
                raise UsageError("the prompt has no tokens")
            answering = Answering(
                self._model, self._tokenizer, sampling, stopped=self._stopped.is_set
            )
            with sampling.random():
                answer = answering.run(ids)
        except Exception as error:
            if self._stopped.is_set():
                return None
            if not isinstance(error, SwarmError):
                logger.warning("prompt %d failed", index, exc_info=True)
            failure = Failure(type(error).__name__, one_line(error))
            return self._result(index, error=failure)
        if self._stopped.is_set():
            return None
        return self._result(
            index,
            text=answer.text,
            token_ids=answer.ids,
            ttft_s=round(answer.first_s, 4),
            tokens_per_s=round(answer.tokens_per_s, 3),
        )

    def _result(
        self,
        index: int,
        *,
        text: str | None = None,
        token_ids: list[int] | None = None,
        ttft_s: float | None = None,
        tokens_per_s: float | None = None,
        error: Failure | None = None,
    ) -> Result:
        return Result(
            index=index,
            id=self._prompts[index].id,
            text=text,
            token_ids=token_ids,
            ttft_s=ttft_s,
            tokens_per_s=tokens_per_s,
            error=error,
            digest=self._digests[index],
        )


class _SharedTokenizer:
    """A tokenizer for several threads: those in Rust refuse to be used by two at once."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.pad_token_id = tokenizer.pad_token_id

    def __call__(self, text: str) -> Any:
        with self._lock:
            return self._tokenizer(text)

    def decode(self, *args: Any, **options: Any) -> Any:
        with self._lock:
            return self._tokenizer.decode(*args, **options)


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[tokens]} tokens"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars, total)


class _Silent:
    """Where standard error is no terminal: failures only."""

    def advance(self, prompts: int, tokens: int) -> None: ...

    def tell(self, line: str) -> None:
        say(line)


class _Bar:
    """rich's progress bar."""

    def __init__(self, bars: Any, total: int) -> None:
        self._bars = bars
        self._tokens = 0
        self._task = bars.add_task("prompts", total=total, tokens=0)

    def advance(self, prompts: int, tokens: int) -> None:
        self._tokens += tokens
        self._bars.update(self._task, advance=prompts, tokens=self._tokens)

    def tell(self, line: str) -> None:
        self._bars.console.print(line, markup=False, highlight=False)

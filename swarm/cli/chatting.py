"""What `swarm-client chat` does once its options are read."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarm.cli.answering import Answer, Answering, Sampling
from swarm.cli.connecting import Connection
from swarm.cli.conversation import Conversation
from swarm.cli.errors import explain
from swarm.cli.generating import route_in_words
from swarm.cli.interrupts import StopOnInterrupt
from swarm.cli.terminal import checked_text, say, say_prefill, write
from swarm.errors import SessionFullError, SwarmError, UsageError

if TYPE_CHECKING:
    from swarm.client.session import Session

DEFAULT_CONTEXT_TOKENS = 4096
HELP = """\
/reset   begin anew; the system message stays
/stats   tokens, speed and route of the last answer
/help    this text
/quit    end the chat, like the end of the input (Ctrl-D)
Ctrl-C ends an answer; what was said stays in the conversation. A message that begins with a slash
is written with two."""


@dataclass(frozen=True)
class ChatRequest:
    """The options of `swarm-client chat`."""

    connection: Connection
    sampling: Sampling
    system: str | None = None
    template: Path | None = None
    """A file with a Jinja chat template, in place of the model's own."""
    context_tokens: int | None = None
    """Most tokens of the whole conversation; None: the model's limit, at most 4,096."""


def chat(request: ChatRequest) -> None:
    """Talk until /quit or the end of the input.

    At a terminal an error ends a turn; with input from a pipe it is raised, for a script to see.
    """
    checked_text(request.system or "", "--system")
    interactive = sys.stdin.isatty()
    checkpoint = request.connection.open()
    tokenizer = checkpoint.load_tokenizer()
    if request.template is not None:
        tokenizer.chat_template = _read(request.template)
    conversation = Conversation(tokenizer, request.system)
    context_tokens = _context_tokens(request.context_tokens, checkpoint.config)
    with request.connection.joined(say_prefill if interactive else None) as model:
        talk = Chat(model, tokenizer, conversation, request.sampling, context_tokens)
        if interactive:
            say(f"{checkpoint.name}, {context_tokens} tokens of context; /help tells what to type")
        try:
            talk.run(_typed_lines() if interactive else _piped_lines(), forgiving=interactive)
        finally:
            talk.close()


class Chat:
    """A conversation in one session of the model: each turn computes only what is new."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        conversation: Conversation,
        sampling: Sampling,
        context_tokens: int,
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._conversation = conversation
        self._sampling = sampling
        self._context_tokens = context_tokens
        self._random = sampling.random()
        self._session: Session | None = None
        self._last: Answer | None = None
        self._sent = 0
        """Tokens of the last question that the session did not hold yet."""
        self._commands: dict[str, Callable[[], None]] = {
            "/reset": self._reset,
            "/stats": self._say_stats,
            "/help": lambda: say(HELP),
        }

    def run(self, lines: Iterator[str], *, forgiving: bool) -> None:
        """Answers each line. `forgiving`: an error is told and the chat goes on."""
        for line in lines:
            text = line.strip()
            if text in ("/quit", "/exit"):
                return
            try:
                if text.startswith("/") and not text.startswith("//"):
                    self._obey(text)
                elif text:
                    self._answer(text.removeprefix("/") if text.startswith("//") else text)
            except SwarmError as error:
                if not forgiving:
                    raise
                say(f"error: {explain(error)}")

    def close(self) -> None:
        if self._session is not None:
            self._session.close()

    def _obey(self, text: str) -> None:
        command = self._commands.get(text)
        if command is None:
            raise UsageError(
                f"{text} is not a command; /help lists them, and //.. sends it to the model"
            )
        command()

    def _answer(self, text: str) -> None:
        ids = self._conversation.ask(text)
        room = self._context_tokens - len(ids)
        if room < 1:
            self._conversation.withdraw()
            raise SessionFullError(
                f"the conversation would have {len(ids)} tokens with this message, and its context "
                f"has {self._context_tokens}; /reset begins anew, --context-tokens gives more"
            )
        sampling = self._sampling
        if room < sampling.max_new_tokens:
            sampling = replace(sampling, max_new_tokens=room)
        session = self._open_session()
        held = min(session.position, self._conversation.shared(ids), len(ids) - 1)
        self._sent = len(ids) - held
        with StopOnInterrupt() as interrupt:
            answering = Answering(
                self._model,
                self._tokenizer,
                sampling,
                on_text=write,
                stopped=lambda: interrupt.asked,
            )
            try:
                with self._random:
                    self._last = answering.run(ids, session)
            except KeyboardInterrupt:
                # Nobody knows how far the servers are: the next turn begins another session.
                session.close()
            except SwarmError:
                session.close()
                write("\n" if answering.ids else "")
                self._conversation.withdraw()
                raise
        write("\n")
        if not answering.ids:
            self._conversation.withdraw()
            return
        self._conversation.answered(answering.ids)
        if room == len(answering.ids) < self._sampling.max_new_tokens:
            say(
                f"the context of {self._context_tokens} tokens is full; /reset begins anew, "
                "--context-tokens gives more"
            )

    def _open_session(self) -> "Session":
        if self._session is None or self._session.cache.is_closed:
            self._session = self._model.session(max_length=self._context_tokens)
        return self._session

    def _reset(self) -> None:
        self._conversation.reset()
        say("the conversation begins anew")

    def _say_stats(self) -> None:
        if self._last is None:
            say("nothing has been said yet")
            return
        held = 0 if self._session is None else self._session.position
        say(
            f"{self._conversation.turns} turns, {held} of {self._context_tokens} tokens held; "
            f"last turn: {self._sent} tokens sent, {len(self._last.ids)} received, "
            f"{self._last.tokens_per_s:.2f} tokens/s, first after {self._last.first_s:.2f} s; "
            f"route: {route_in_words(self._model.route)}"
        )


def _typed_lines() -> Iterator[str]:
    """Asks at the terminal, with a history of what was typed."""
    import readline  # noqa: F401  (changes what input() can do)

    while True:
        try:
            yield input("> ")
        except EOFError:
            write("\n")
            return
        except KeyboardInterrupt:
            say("\n/quit or Ctrl-D ends the chat")


def _piped_lines() -> Iterator[str]:
    # Not `for line in sys.stdin`: each line is answered when it comes.
    while line := sys.stdin.readline():
        yield line


def _context_tokens(asked: int | None, config: Any) -> int:
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if asked is None:
        return min(limit or DEFAULT_CONTEXT_TOKENS, DEFAULT_CONTEXT_TOKENS)
    if limit is not None and asked > limit:
        raise UsageError(f"--context-tokens {asked}: this model has {limit} positions")
    return asked


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--template {template} cannot be read: {reason}") from None

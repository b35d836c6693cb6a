"""The messages of a chat, and their tokens as the session holds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from swarm.errors import UsageError


@dataclass(frozen=True)
class _Held:
    """What the template made of the messages up to an answer, the answer included."""

    text: str
    ids: tuple[int, ...]
    ended: bool
    """Whether the last id is the token that ends an answer; `text` does not show it."""


class Conversation:
    """Turns messages into the ids that the model is to continue, by its chat template.

    The template renders all messages anew for each turn. As far as it renders the last turn as
    before, the ids that were generated are kept as they are (written again, a text may be other
    tokens), so that only the new message has to be computed. Where the template changes what went
    before (it may leave out a chain of thought), the ids follow the template.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        """UsageError if the tokenizer has no chat template."""
        if not getattr(tokenizer, "chat_template", None):
            raise UsageError(
                "this model has no chat template: it continues texts and was not made to answer; "
                "use `swarm-client generate`, or give a template with --template FILE"
            )
        self._tokenizer = tokenizer
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []
        self._held: _Held | None = None
        self._asked = ""
        self._ids: list[int] = []

    def ask(self, text: str) -> list[int]:
        """The ids of everything up to the beginning of the answer to `text`.

        UsageError if the template does not take such messages.
        """
        self._messages.append({"role": "user", "content": text})
        try:
            self._asked = self._render()
            self._ids = self._encode(self._asked)
        except BaseException:
            self.withdraw()
            raise
        return self._ids

    def answered(self, ids: Sequence[int]) -> None:
        """What the model said, perhaps only a part of it; special tokens at its end included."""
        said = list(ids)
        ended = bool(said) and said[-1] in self._tokenizer.all_special_ids
        content = self._decode(said[:-1] if ended else said)
        self._messages.append({"role": "assistant", "content": content})
        self._held = _Held(self._asked + content, (*self._ids, *said), ended)

    def withdraw(self) -> None:
        """As if the last message that has no answer had not been said."""
        if self._messages and self._messages[-1]["role"] == "user":
            self._messages.pop()

    def reset(self) -> None:
        """Forgets all messages but the system's."""
        self._messages.clear()
        self._held = None

    @property
    def turns(self) -> int:
        """Messages that have an answer."""
        return sum(message["role"] == "assistant" for message in self._messages)

    def shared(self, ids: Sequence[int]) -> int:
        """How many of `ids`, from the first on, the last turn had as well."""
        held = () if self._held is None else self._held.ids
        pairs = enumerate(zip(held, ids, strict=False))
        return next((at for at, (a, b) in pairs if a != b), min(len(held), len(ids)))

    def _render(self) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [*self._system, *self._messages], tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise UsageError(
                f"the model's chat template refuses these messages: {error}"
                + ("; leave out --system" if self._system else "")
            ) from None

    def _encode(self, text: str) -> list[int]:
        # Without offsets (a tokenizer in Python) nobody knows where in the text a token begins.
        fast = bool(getattr(self._tokenizer, "is_fast", False))
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        ids: list[int] = list(encoded.input_ids)
        held = self._held
        if not fast or held is None or not text.startswith(held.text):
            return ids
        begins = [start for start, _ in encoded.offset_mapping]
        if len(held.text) not in begins:
            return ids
        at = begins.index(len(held.text))
        kept = held.ids
        if held.ended:
            # The template ends the answer by itself, mostly with the same token.
            at, kept = (at + 1, kept) if ids[at] == kept[-1] else (at, kept[:-1])
        return [*kept, *ids[at:]]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

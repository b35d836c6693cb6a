"""Token ids to text as it comes: whole characters only, and nothing from a stop text on."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
"""What the bytes of an unfinished character decode to."""


class TextStream:
    """Grows with each token; `put` returns what may be shown now.

    Held back are characters that more tokens may still change, and whatever may be the beginning
    of a stop text. Each token is decoded together with the few before it, because how a token is
    written may depend on them (as text-generation-inference does it).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._longest_stop = max(map(len, self._stops), default=1)
        self._ids: list[int] = []
        self._context = 0
        """Where the tokens begin that the next ones are decoded with."""
        self._read = 0
        """Tokens whose text is in `_text`."""
        self._text = ""
        self._shown = 0

    def put(self, ids: Sequence[int]) -> str:
        """Add tokens; the text that is new and certain."""
        self._ids += ids
        return self._take(final=False)

    def end(self) -> str:
        """What was held back."""
        return self._take(final=True)

    def _take(self, *, final: bool) -> str:
        if not self.stopped:
            self._decode_new(final)
        end = len(self._text)
        if not final and not self.stopped:
            end -= _begun_stop(self._text, self._stops)
        new, self._shown = self._text[self._shown : end], max(self._shown, end)
        return new

    def _decode_new(self, final: bool) -> None:
        before = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        if text.endswith(_INCOMPLETE) and not final:
            return
        searched = max(0, len(self._text) - self._longest_stop + 1)
        self._text += text[len(before) :]
        self._context, self._read = self._read, len(self._ids)
        tail, self.stopped = cut_at_stop(self._text[searched:], self._stops)
        self._text = self._text[:searched] + tail


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """`text` before the first stop text, and whether there is one."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)], True) if found else (text, False)


def _begun_stop(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop text."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0

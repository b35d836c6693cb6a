"""Token ids to text as it comes: whole characters only, and nothing from a stop text on."""

from collections.abc import Callable, Sequence


class TextStream:
    """Grows with each token; `take` returns what may be shown now.

    Held back are characters that more tokens may still change, and whatever may be the beginning
    of a stop text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stops = tuple(stop for stop in stops if stop)
        self._ids: list[int] = []
        self._shown = 0
        self.stopped = False

    def put(self, ids: Sequence[int]) -> str:
        """Add tokens; the text that is new and certain."""
        self._ids += ids
        return self._take(final=False)

    def end(self) -> str:
        """What was held back."""
        return self._take(final=True)

    @property
    def text(self) -> str:
        """All text, without what follows a stop text."""
        return cut_at_stop(self._decode(self._ids), self._stops)[0]

    def _take(self, *, final: bool) -> str:
        text, self.stopped = cut_at_stop(self._decode(self._ids), self._stops)
        end = len(text)
        if not final and not self.stopped:
            # An incomplete character decodes to a replacement character.
            while end > self._shown and text[end - 1] == "\ufffd":
                end -= 1
            end -= _begun_stop(text[:end], self._stops)
        new, self._shown = text[self._shown : end], max(self._shown, end)
        return new


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

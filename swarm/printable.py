"""Text of strangers, as it may reach a terminal."""

from collections.abc import Sequence

UNPRINTABLE = "?"
MAX_LISTED = 8


def printable(text: str) -> str:
    """The same text in one line: escape sequences, line breaks, marks that turn the direction of
    writing and whatever else is not shown as itself are replaced."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else UNPRINTABLE for one in text)


def listed(names: Sequence[str], most: int = MAX_LISTED) -> str:
    """`a, b and 5 more`: the first of a list that strangers may make as long as they like."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

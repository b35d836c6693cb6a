"""Text of strangers, as it may reach a terminal."""

UNPRINTABLE = "?"


def printable(text: str) -> str:
    """The same text in one line: escape sequences, line breaks, marks that turn the direction of
    writing and whatever else is not shown as itself are replaced."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else UNPRINTABLE for one in text)

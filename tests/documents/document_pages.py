"""The pages that the tests of documents read, and what they take out of them."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)


@cache
def text_of(page: str) -> str:
    """`page`: its path from the root of the repository."""
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """The page without its blocks of code."""
    return _FENCED.sub("", text_of(page))


def blocks_of(page: str, language: str) -> list[str]:
    """Its blocks of code in this language; an empty one: those that name none."""
    return [body for kind, body in _FENCED.findall(text_of(page)) if kind == language]


def inline_code_of(page: str) -> list[str]:
    """What stands in single backticks."""
    return re.findall(r"`([^`\n]+)`", prose_of(page))


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

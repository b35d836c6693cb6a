"""Pages link to what there is, and name files that there are."""

import re
from functools import cache

import pytest
from document_pages import PAGES, ROOT, anchors_of, inline_code_of, prose_of

_OUTSIDE = ("http://", "https://")
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|md|svg|service|toml)")
_FOLDERS = ("", "docs", "docs/measurements", "swarm", "tests")
"""Where a path may begin that a page names."""


@cache
def _file_names() -> frozenset[str]:
    folders = ("swarm", "tests", "scripts", "benchmarks", "examples", "docs")
    return frozenset(path.name for folder in folders for path in (ROOT / folder).rglob("*.*"))


def _leads_somewhere(page: str, target: str) -> bool:
    path, _, anchor = target.partition("#")
    found = (ROOT / page).parent / path if path else ROOT / page
    if not anchor:
        return found.exists()
    return found.is_file() and anchor in anchors_of(found.resolve().relative_to(ROOT).as_posix())


def _is_there(name: str) -> bool:
    if "/" not in name and name in _file_names():
        return True
    return any((ROOT / folder / name).exists() for folder in _FOLDERS)


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_to_a_file_and_a_heading_that_there_are(page: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose_of(page))
    inside = [target for target in targets if not target.startswith(_OUTSIDE)]
    assert not [target for target in inside if not _leads_somewhere(page, target)]


@pytest.mark.parametrize("page", PAGES)
def test_a_file_that_a_page_names_is_there(page: str) -> None:
    words = [word for code in inline_code_of(page) for word in code.split()]
    assert not [word for word in words if _FILE.fullmatch(word) and not _is_there(word)]

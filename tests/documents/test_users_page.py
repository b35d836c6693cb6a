"""docs/users.md lists the settings and errors that there are. What programs write is compared with
docs/reference.md where they are run."""

import builtins
import re
from dataclasses import fields

import pytest
from document_pages import text_of

from swarm import errors
from swarm.client.settings import ClientSettings

PAGE = text_of("docs/users.md")


def test_every_setting_of_a_client_is_there_with_its_default() -> None:
    table = PAGE.partition("\n### Settings\n")[2].partition("\n### ")[0]
    shown = {"none": None, "False": False}
    found = {
        name: shown[default] if default in shown else float(default.replace(",", ""))
        for name, default in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.M)
    }
    assert found == {field.name: field.default for field in fields(ClientSettings)}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+Error)`", PAGE))))
def test_an_error_of_the_page_is_one(name: str) -> None:
    assert hasattr(errors, name) or hasattr(builtins, name)

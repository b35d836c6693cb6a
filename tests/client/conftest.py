"""What the tests of the client share."""

import pytest
from stand_in import as_remote, tiny_llama


@pytest.fixture(scope="module")
def plain():
    return tiny_llama()


@pytest.fixture
def remote(plain):
    return as_remote(plain)

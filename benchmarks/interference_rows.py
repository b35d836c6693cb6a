"""The single rows beside the interference benchmark's tables."""

from collections.abc import Mapping
from typing import Any


def extra_rows(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {}

"""Weights move to huge pages, and stay what they are."""

import sys
from pathlib import Path

import pytest
import torch

from swarm.server import huge_pages
from swarm.server.huge_pages import use_huge_pages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages of Linux")
MIB = 1 << 20


def _huge_bytes() -> int:
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if "AnonHugePages" in line)


def test_what_is_in_use_moves_and_nothing_changes() -> None:
    weights = torch.arange(32 * MIB // 4, dtype=torch.int32)
    before = _huge_bytes()
    done = use_huge_pages()
    if not done:
        pytest.skip("this kernel gives no huge pages")
    assert _huge_bytes() - before >= 16 * MIB
    assert torch.equal(weights, torch.arange(32 * MIB // 4, dtype=torch.int32))


def test_what_is_not_in_use_stays_empty() -> None:
    reserved = torch.empty(256 * MIB, dtype=torch.uint8)  # the system has given no page of it yet
    start, end = reserved.data_ptr(), reserved.data_ptr() + reserved.numel()
    assert not [each for each in huge_pages._regions() if each[0] < end and start < each[1]]


def test_an_administrator_who_says_never_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    weights = torch.ones(32 * MIB // 4)
    assert use_huge_pages() == 0
    assert weights.sum() == 32 * MIB // 4

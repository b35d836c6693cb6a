"""How many blocks and how much cache a machine takes, and which run of blocks."""

import pytest
import torch

from swarm.errors import AddressError, MemoryShortError, UsageError
from swarm.server import memory
from swarm.server.config import ServerConfig, make_config
from swarm.server.hosting import pick_device
from swarm.server.memory import LEAST_CACHE_TOKENS, MOST_DEFAULT_CACHE_TOKENS, MemoryNeeds
from swarm.server.reachability import Reach, join_addresses, reach_of, widest_first
from swarm.server.threads import pick_threads
from swarm.spans import Span

MB = 1 << 20
NEEDS = MemoryNeeds(block_bytes=(10 * MB,) * 8, token_bytes_per_block=1024)


def free_for(blocks: int, tokens: int) -> int:
    span = Span(0, blocks)
    return NEEDS.weights(span) + NEEDS.cache(span, tokens) + memory.RESERVE_BYTES


def test_what_just_fits_is_taken_and_a_byte_less_is_refused() -> None:
    NEEDS.check(Span(0, 4), free_for(4, 1000), 1000)
    with pytest.raises(MemoryShortError):
        NEEDS.check(Span(0, 4), free_for(4, 1000) - 1, 1000)


def test_the_error_names_the_whole_pages_of_cache_that_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="use --cache-tokens 960 or fewer"):
        NEEDS.check(Span(0, 4), free_for(4, 1000), 2000)


def test_the_error_names_the_blocks_that_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="use --blocks 2:5 or fewer"):
        NEEDS.check(Span(2, 8), free_for(3, 1000), 1000)


def test_the_error_says_when_nothing_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="a machine with more memory"):
        NEEDS.check(Span(0, 1), memory.RESERVE_BYTES, None)


@pytest.mark.parametrize("blocks", range(9))
def test_as_many_blocks_as_fit(blocks: int) -> None:
    free = free_for(blocks, 1000) if blocks else memory.RESERVE_BYTES
    assert NEEDS.blocks_that_fit(free, 1000) == blocks
    assert NEEDS.blocks_that_fit(100 * free, 1000) == 8


@pytest.mark.parametrize("free", [0, free_for(4, 300), 100 * free_for(4, 10_000)])
def test_the_default_cache_is_bounded_both_ways(free: int) -> None:
    tokens = NEEDS.default_cache_tokens(Span(0, 4), free)
    assert LEAST_CACHE_TOKENS <= tokens <= MOST_DEFAULT_CACHE_TOKENS
    if tokens > LEAST_CACHE_TOKENS:
        assert NEEDS.cache(Span(0, 4), tokens) <= free * memory.CACHE_SHARE


def test_free_memory_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < memory.free_memory_bytes("cpu") <= psutil.virtual_memory().total


def test_sizes_in_words() -> None:
    assert [memory.in_words(size) for size in (5e6, 999e6, 1.5e9)] == ["5 MB", "999 MB", "1.5 GB"]


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for wrong in ("abacus", "meta", "cuda:99999x"):
        with pytest.raises(UsageError):
            pick_device(wrong)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert pick_threads(None) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pick_threads(None) >= 1


# ---- addresses


def test_who_can_reach_an_address() -> None:
    assert reach_of("/ip4/127.0.0.1/tcp/1") is Reach.THIS_MACHINE
    assert reach_of("/ip6/::1/tcp/1") is Reach.THIS_MACHINE
    assert reach_of("/ip4/192.168.1.2/tcp/1") is Reach.LOCAL_NETWORK
    assert reach_of("/ip4/8.8.8.8/tcp/1") is Reach.ANYBODY
    assert reach_of("/dns4/example.org/tcp/1") is Reach.ANYBODY


def test_others_get_the_widest_address_first() -> None:
    here, near, far = (f"/ip4/{ip}/tcp/1" for ip in ("127.0.0.1", "10.0.0.1", "8.8.8.8"))
    assert widest_first([here, near, far]) == [far, near]
    assert widest_first([here]) == [here]
    assert join_addresses([here], [far], "ID") == [f"{far}/p2p/ID"]


# ---- settings


def test_settings_from_text() -> None:
    config = make_config(ServerConfig, blocks="3:7", peers=())
    assert config.blocks == Span(3, 7)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"blocks": "7:3"}, "--blocks: 7:3 is not a run of blocks"),
        ({"blocks": "all"}, "write it as 0:20"),
        ({"cache_tokens": 63}, "--cache-tokens.* 64"),
        ({"dtype": "int4"}, "--dtype"),
        ({"stats_s": -1}, "--stats: "),
        ({"unheard_of": 1}, "--unheard-of"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_option(
    values: dict[str, object], hint: str
) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        make_config(ServerConfig, **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"listen": ()},
        {"listen": ("0.0.0.0:80",)},
        {"peers": ("/ip4/127.0.0.1/tcp/80",)},
        {"announce": ("here",)},
    ],
)
def test_a_wrong_address_is_told_as_such(values: dict[str, object]) -> None:
    with pytest.raises(AddressError):
        make_config(ServerConfig, **values)

"""How many blocks and how much cache a machine takes, and which run of blocks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from swarm.dht.records import MAX_ADDRESSES, ServerRecord
from swarm.dht.signing import MAX_VALUE_BYTES
from swarm.errors import AddressError, MemoryShortError, NotServedError, UsageError
from swarm.models.checkpoint import open_checkpoint
from swarm.routing.view import Numerics, ServerState
from swarm.server import memory
from swarm.server.config import ServerConfig, make_config
from swarm.server.free_memory import FreeMemory, cgroup_free_bytes, free_memory
from swarm.server.hosting import memory_needs, pick_device
from swarm.server.memory import MAX_DEFAULT_CACHE_TOKENS, MIN_CACHE_TOKENS, Budget, MemoryNeeds
from swarm.server.neighbourhood import short_name
from swarm.server.reachability import (
    Reach,
    check_announced,
    forwarding_advice,
    join_addresses,
    reach_of,
    widest_first,
)
from swarm.server.sizes import in_words, parse_bytes
from swarm.server.threads import pick_threads
from swarm.spans import Span
from swarm.wire.frames import PROTOCOL_VERSION
from swarm.wire.identity import Identity

MB = 1 << 20
NEEDS = MemoryNeeds(block_bytes=(10 * MB,) * 8, token_bytes_per_block=1024)


def size(blocks: int, tokens: int) -> int:
    """Of so many blocks and their cache."""
    if not blocks:
        return 0
    span = Span(0, blocks)
    return NEEDS.weights(span) + NEEDS.cache(span, tokens)


def free(usable: int) -> Budget:
    return Budget(FreeMemory(usable + memory.RESERVE_BYTES, "here"))


def lent(usable: int) -> Budget:
    return Budget(FreeMemory(1 << 40, "here"), usable)


@pytest.mark.parametrize("budget", [free, lent])
def test_what_just_fits_is_taken_and_a_byte_less_is_refused(
    budget: Callable[[int], Budget],
) -> None:
    NEEDS.check(Span(0, 4), budget(size(4, 1000)), 1000)
    with pytest.raises(MemoryShortError):
        NEEDS.check(Span(0, 4), budget(size(4, 1000) - 1), 1000)


def test_the_error_names_the_whole_pages_of_cache_that_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="free here; use --cache-tokens 960 or fewer"):
        NEEDS.check(Span(0, 4), free(size(4, 1000)), 2000)


def test_the_error_names_the_blocks_that_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="of --max-memory; use --blocks 2:5 or fewer"):
        NEEDS.check(Span(2, 8), lent(size(3, 1000)), 1000)


def test_the_error_says_when_nothing_would_fit() -> None:
    with pytest.raises(MemoryShortError, match="a machine with more memory"):
        NEEDS.check(Span(0, 1), free(0), None)
    with pytest.raises(MemoryShortError, match="lend more"):
        NEEDS.check(Span(0, 1), lent(1), None)


@pytest.mark.parametrize("blocks", range(9))
def test_as_many_blocks_as_fit(blocks: int) -> None:
    usable = size(blocks, 1000)
    assert NEEDS.blocks_that_fit(usable, 1000) == blocks
    assert NEEDS.blocks_that_fit(100 * usable + (1 << 30), 1000) == 8


@pytest.mark.parametrize("usable", [0, size(4, 300), 100 * size(4, 10_000)])
def test_the_default_cache_is_bounded_both_ways(usable: int) -> None:
    tokens = NEEDS.default_cache_tokens(Span(0, 4), free(usable))
    assert MIN_CACHE_TOKENS <= tokens <= MAX_DEFAULT_CACHE_TOKENS
    if tokens > MIN_CACHE_TOKENS:
        assert NEEDS.cache(Span(0, 4), tokens) <= usable * memory.CACHE_SHARE


@pytest.mark.parametrize("gigabytes", [0.2, 1, 8])
def test_blocks_and_default_cache_stay_within_what_is_lent(gigabytes: float) -> None:
    budget = Budget(FreeMemory(4 << 30, "here"), int(gigabytes * (1 << 30)))
    big = MemoryNeeds(block_bytes=(40 * MB,) * 200, token_bytes_per_block=4096)
    count = big.blocks_that_fit(budget.usable_bytes, None)
    span = Span(0, count)
    tokens = big.default_cache_tokens(span, budget.without(big.weights(span)))
    taken = big.weights(span) + big.cache(span, tokens)
    assert 0.7 * budget.usable_bytes < taken <= budget.usable_bytes
    assert taken <= (4 << 30) - memory.RESERVE_BYTES


# ---- free memory


def test_free_memory_is_less_than_the_machine_has() -> None:
    import psutil

    assert 0 < free_memory("cpu").size_bytes <= psutil.virtual_memory().total


def write(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_narrowest_limit_on_the_way_up_counts(tmp_path: Path) -> None:
    """Version 2: our own cgroup has no limit, the slice above has one, the root has no files."""
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("0::/lend.slice/swarm.service\n")
    assert cgroup_free_bytes(root, own) is None
    write(root / "lend.slice/swarm.service", memory__max="max", memory__current=300 * MB)
    assert cgroup_free_bytes(root, own) is None
    write(root / "lend.slice", memory__max=1000 * MB, memory__high="max", memory__current=600 * MB)
    assert cgroup_free_bytes(root, own) == 400 * MB
    write(root / "lend.slice", memory__stat=f"anon 5\ninactive_file {50 * MB}\nactive_file 7")
    assert cgroup_free_bytes(root, own) == 450 * MB
    write(root / "lend.slice", memory__high=700 * MB)
    assert cgroup_free_bytes(root, own) == 150 * MB
    write(root / "lend.slice/swarm.service", memory__max=310 * MB)
    assert cgroup_free_bytes(root, own) == 10 * MB


def test_in_a_container_the_mount_is_its_cgroup(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    for path in ("/docker/0123456789", "/../../docker/0123", "/"):
        own.write_text(f"0::{path}\n")
        write(root, memory__max=64 * MB, memory__current=80 * MB)
        assert cgroup_free_bytes(root, own) == 0


def test_limits_of_version_1(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "own"
    own.write_text("5:cpu,cpuacct:/\n4:memory:/job\n0::/\n")
    ours = root / "memory/job"
    write(ours, memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=MB)
    assert cgroup_free_bytes(root, own) is None
    write(ours, memory__limit_in_bytes=100 * MB, memory__usage_in_bytes=70 * MB)
    write(ours, memory__stat=f"inactive_file 1\ntotal_inactive_file {20 * MB}")
    assert cgroup_free_bytes(root, own) == 50 * MB


def test_sizes_in_words() -> None:
    sizes = (0, 2e3, 5e6, 999e6, 1.5e9)
    assert [in_words(size) for size in sizes] == ["0 kB", "2 kB", "5 MB", "999 MB", "1.5 GB"]


def test_sizes_from_text() -> None:
    texts = ("8GiB", "8 gib", "1.5G", "500MB", "64k", "1000000", "2TB", "12B")
    sizes = (8 << 30, 8 << 30, 1_500_000_000, 500_000_000, 64_000, 1_000_000, 2 * 10**12, 12)
    assert tuple(parse_bytes(text) for text in texts) == sizes
    for wrong in ("", "GiB", "-1", "8GiBs", "eight", "1e9", "8 G iB", "nan", "0x10"):
        with pytest.raises(ValueError, match="8GiB"):
            parse_bytes(wrong)


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for wrong in ("abacus", "meta", "cuda:99999x"):
        with pytest.raises(UsageError):
            pick_device(wrong)


def test_a_model_without_attention_is_refused_in_words(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(NotServedError, match=r"has no attention \(mamba\)"):
        memory_needs(open_checkpoint(str(tmp_path)), torch.float32)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_threads(3) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert pick_threads(None) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert pick_threads(None) >= 1


def test_the_record_has_room_for_the_longest_names_and_addresses() -> None:
    identity = Identity.create()
    longest = ServerRecord(
        peer=identity.peer_id,
        span=Span(4000, 4096),
        state=ServerState.DRAINING,
        checkpoint="c" * 64,
        model=short_name("organisation/" + "é" * 100),
        num_blocks=4096,
        numerics=Numerics("bfloat16", "int8", "cuda"),
        decode_ms_per_block=123.4567,
        prefill_tokens_per_s=123456.7,
        cache_tokens_free=1 << 39,
        cache_tokens_total=1 << 40,
        queue_wait_ms=1234.567,
        sessions=100_000,
        public_name=make_config(ServerConfig, name="東" * 20).name,
        max_upload_mbit=1234.5,
        addresses=("/ip6/2001:db8:1111:2222:3333:4444:5555:6666/tcp/65535",) * MAX_ADDRESSES,
        version="0.10.11.dev12345",
        protocol=PROTOCOL_VERSION,
        sequence=1 << 50,
    )
    assert len(longest.sealed(identity, "v1/key/0", 2e9)) <= MAX_VALUE_BYTES
    with pytest.raises(UsageError, match="63 bytes"):
        make_config(ServerConfig, name="東" * 21)


def test_a_models_name_in_the_directory_is_short_and_printable() -> None:
    assert short_name("/models/my-llama/") == "my-llama"
    assert short_name("") == short_name("/") == "model"
    assert short_name("evil\x1b[2J\n") == "evil?[2J?"
    assert len(short_name("é" * 100).encode()) == 80


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


def test_what_is_announced_can_be_dialled() -> None:
    for fine in ("/ip4/203.0.113.7/tcp/31330", "/dns4/example.org/tcp/1", "/ip6/2001:db8::1/tcp/2"):
        assert make_config(ServerConfig, announce=(fine,)).announce == (fine,)
    for wrong, hint in (
        ("/ip4/203.0.113.7/tcp/0", "names no port"),
        ("/dns4/example.org", "names no port"),
        ("/ip4/0.0.0.0/tcp/31330", "not the address of a machine"),
        ("/ip6/::/tcp/31330", "not the address of a machine"),
    ):
        with pytest.raises(AddressError, match=hint):
            make_config(ServerConfig, announce=(wrong,))


def test_what_is_announced_is_our_own() -> None:
    ours, other = Identity.create().peer_id, Identity.create().peer_id
    check_announced(["/ip4/8.8.8.8/tcp/1", f"/ip4/8.8.8.8/tcp/1/p2p/{ours}"], ours)
    with pytest.raises(AddressError, match="another peer"):
        check_announced([f"/ip4/8.8.8.8/tcp/1/p2p/{other}"], ours)


def test_who_forwards_a_port_is_told_to_keep_it() -> None:
    public, free, fixed = "/ip4/8.8.8.8/tcp/9", "/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/tcp/31330"
    now = ["/ip4/192.168.1.2/tcp/41234/p2p/ID"]
    advice = forwarding_advice([free], [public], now)
    assert advice is not None and "--listen /ip4/0.0.0.0/tcp/41234" in advice
    assert forwarding_advice([free, fixed], [public], now) is None
    assert forwarding_advice([free], [], now) is None


# ---- settings


def test_settings_from_text() -> None:
    config = make_config(ServerConfig, blocks="3:7", peers=(), max_memory="2GiB", name=" Öl 4 ")
    assert config.blocks == Span(3, 7)
    assert (config.max_memory, config.name) == (2 << 30, "Öl 4")


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"blocks": "7:3"}, "--blocks: 7:3 is not a run of blocks"),
        ({"blocks": "all"}, "write it as 0:20"),
        ({"cache_tokens": 63}, "--cache-tokens.* 64"),
        ({"dtype": "int4"}, "--dtype"),
        ({"stats_s": -1}, "--stats: "),
        ({"stats_s": "nan"}, "--stats: "),
        ({"drain_timeout_s": "nan"}, "--drain-timeout: "),
        ({"drain_timeout_s": "inf"}, "--drain-timeout: "),
        ({"max_upload_mbit": "nan"}, "--max-upload-mbit: "),
        ({"max_memory": "plenty"}, "--max-memory: 'plenty' is not an amount of memory"),
        ({"max_memory": "0GiB"}, "--max-memory: "),
        ({"max_upload_mbit": 0}, "--max-upload-mbit: "),
        ({"max_upload_mbit": "inf"}, "--max-upload-mbit: "),
        ({"name": "two\nlines"}, "--name: "),
        ({"name": "\x1b[31mred"}, "--name: "),
        ({"name": "ö" * 31}, "--name: 62 bytes"),
        ({"name": "\ud800"}, "--name: "),
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
        {"listen": ("/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/31330")},
        {"listen": ("/ip4/0.0.0.0",)},
        {"peers": ("/ip4/127.0.0.1/tcp/80",)},
        {"announce": ("here",)},
    ],
)
def test_a_wrong_address_is_told_as_such(values: dict[str, object]) -> None:
    with pytest.raises(AddressError):
        make_config(ServerConfig, **values)

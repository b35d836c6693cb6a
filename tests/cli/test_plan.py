"""`swarm-plan place`: inventories, plans, and their pictures."""

import json

import pytest

from swarm.cli.plan import app
from swarm.cli.plan_inventory import PlanMistakesError, read_plan
from swarm.cli.plan_models import CONFIGS, model_shape
from swarm.cli.plan_picture import bar, hosts_line
from swarm.cli.plan_placing import make_plan, plan_fields, with_optimum
from swarm.errors import MemoryShortError, ModelNotFoundError, UsageError
from swarm.routing.layout import Layout
from swarm.spans import PeerId, Span

INVENTORY = """
model: {name: llama-3.1-70b, quantization: nf4}
machines:
  - {name: desk, hardware: rtx-4090, count: 2, region: eu}
  - {name: old, hardware: rtx-3090, count: 2, region: eu}
  - {name: lab, hardware: a100-40gb, region: us, relayed: true}
clients:
  - {name: me, region: eu}
network:
  within_region_ms: 20
  between: [{regions: [eu, us], rtt_ms: 90}]
  relay_ms: 60
  bandwidth_mbit: 100
workload: {prompt_tokens: 200, output_tokens: 200, sessions: 8}
"""
BLOOM = """
model: {name: toy, blocks: 10, block_gb: 1.0, cache_bytes_per_token: 1000, activation_bytes: 8192}
machines:
  - {name: fast, memory_gb: 12, decode_ms_per_block: 1, pass_ms: 2}
  - {name: slow, memory_gb: 12, decode_ms_per_block: 4}
workload: {prompt_tokens: 10, output_tokens: 90, sessions: 4}
"""


def mistakes(path):
    with pytest.raises(PlanMistakesError) as caught:
        read_plan(path)
    return caught.value.lines


def test_an_inventory_means_what_it_says(plan_file):
    read = read_plan(plan_file(INVENTORY))
    inventory = read.inventory()
    assert [one.peer for one in inventory.machines] == ["desk-1", "desk-2", "old-1", "old-2", "lab"]
    assert inventory.machines[0].memory_bytes == pytest.approx(0.9 * 24e9)
    assert inventory.model.num_blocks == 80
    rtt = {
        pair: 2 * inventory.network.one_way_s(*map(PeerId, pair))
        for pair in [("me", "desk-1"), ("me", "lab"), ("desk-1", "lab"), ("desk-1", "old-2")]
    }
    assert rtt == pytest.approx(
        {
            ("me", "desk-1"): 0.02,
            ("me", "lab"): 0.15,
            ("desk-1", "lab"): 0.15,
            ("desk-1", "old-2"): 0.02,
        }
    )
    assert inventory.network.seconds_per_byte(PeerId("me")) == pytest.approx(8e-8)
    assert read.workload.workload().session_tokens == 400


def test_what_was_measured_goes_before_the_data_sheet(plan_file):
    measured = INVENTORY.replace(
        "count: 2, region: eu}",
        "region: eu, memory_gb: 10, decode_ms_per_block: 3, row_ms_per_block: 0.5}",
        1,
    )
    machine = read_plan(plan_file(measured)).inventory().machines[0]
    assert machine.memory_bytes == 10e9
    assert machine.speed.block_s == pytest.approx(0.003)
    assert machine.speed.decode_s(1, 3) - machine.speed.decode_s(1, 1) == pytest.approx(0.001)


def test_a_spread_network_is_the_same_for_the_same_seed(plan_file):
    def delay(seed):
        text = INVENTORY.replace("relay_ms: 60", "spread: 0.5") + f"seed: {seed}\n"
        network = read_plan(plan_file(text)).inventory().network
        return network.one_way_s(PeerId("desk-1"), PeerId("desk-2"))

    assert delay(1) == delay(1) != delay(2)


@pytest.mark.parametrize("name", CONFIGS)
def test_known_models_have_their_published_size(name):
    shape = model_shape(name)
    billions = {
        "smollm2-135m": 0.106,
        "llama-2-7b": 6.48,
        "llama-3.1-8b": 6.98,
        "llama-3.1-70b": 68.5,
        "llama-3.1-405b": 401.6,
        "qwen2.5-72b": 70.2,
        "mixtral-8x7b": 46.4,
        "bloom-176b": 172.6,
    }
    assert shape.num_blocks * shape.block_parameters / 1e9 == pytest.approx(
        billions[name], rel=0.01
    )


def test_a_model_of_ones_own(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(CONFIGS["llama-2-7b"])))
    assert model_shape(str(tmp_path)).num_blocks == 32
    with pytest.raises(ModelNotFoundError, match=r"llama-9.*llama-3\.1-70b"):
        model_shape("llama-9")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="not a JSON object"):
        model_shape(str(tmp_path))


def test_each_mistake_gets_its_own_line(plan_file):
    wrong = (
        INVENTORY.replace("hardware: a100-40gb", "hardware: abacus")
        .replace("count: 2, region: eu}", "count: 0, memory_gb: -4}", 1)
        .replace("sessions: 8", "session: 8")
    )
    lines = mistakes(plan_file(wrong))
    assert len(lines) == 4
    assert any("machines[0].memory_gb" in line and "-4" in line for line in lines)
    assert any("machines[0].count" in line for line in lines)
    assert any("abacus" in line and "rtx-4090" in line for line in lines)
    assert any("workload.session: no such field" in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{name: old,", "{name: desk,", "named twice: desk-1, desk-2"),
        ("{name: lab,", "{name: me,", "named twice: me"),
        ("clients:\n  - {name: me, region: eu}", "clients: []", "at least one machine"),
        ("relayed: true", "host: box", "hosts lacks box"),
        ("hardware: rtx-3090, ", "memory_gb: 5, ", "give its hardware, or memory_gb"),
        ("quantization: nf4", "blocks: 3", "blocks and block_gb go together"),
        ("within_region_ms: 20", "within_region_ms: .inf", "finite"),
        ("relay_ms: 60", "relay_ms: fast", "'fast' is not a number"),
    ],
)
def test_mistakes_are_named(plan_file, old, new, said):
    assert old in INVENTORY
    text = INVENTORY.replace(old, new)
    assert said in " ".join(mistakes(plan_file(text)))


@pytest.mark.parametrize("text", ["", "- 1", "model: [", "a: \x00"])
def test_what_is_no_inventory_is_said(plan_file, text):
    with pytest.raises(UsageError, match=r"YAML|inventory"):
        read_plan(plan_file(text))


def test_a_plan_says_what_it_delivers(plan_file):
    read = read_plan(plan_file(BLOOM))
    found = with_optimum(make_plan("best", read.inventory(), read.workload.workload(), 0), 10)
    fields = json.loads(json.dumps(plan_fields(found)))
    assert [row["blocks"] for row in fields["machines"]] == ["0:10", "0:10"]
    assert (fields["missing"], fields["least_hosts"], fields["mean_hosts"]) == ([], 2, 2.0)
    # One hop on the fast machine: 20 ms of round trip, 2 + 2 ms fixed, 10 blocks of 1 ms, and
    # the way of its bytes is not limited.
    assert fields["tpot_s"] == pytest.approx(0.020 + 0.002 + 0.002 + 0.010)
    # Of all machines together: 1 / 12 ms and 1 / 40 ms.
    assert fields["tokens_per_s"] == pytest.approx(1 / 0.012 + 1 / 0.040, rel=1e-6)
    assert fields["sessions"] == 2 * (2_000_000_000 // (1000 * 10) // 100)
    assert fields["optimum"]["proved"]
    assert fields["optimum"]["gap"] == pytest.approx(0.0, abs=1e-3)


def test_a_bad_placement_shows_its_gap(plan_file):
    text = BLOOM.replace(
        "memory_gb: 12, decode_ms_per_block: 4", "memory_gb: 6, decode_ms_per_block: 4"
    )
    text = text.replace(
        "  - {name: slow",
        "  - {name: other, memory_gb: 6, decode_ms_per_block: 4}\n  - {name: slow",
    )
    read = read_plan(plan_file(text))
    inventory, workload = read.inventory(), read.workload.workload()
    plan = make_plan("best", inventory, workload, 0)
    slow = Layout(10, {PeerId("other"): Span(0, 5), PeerId("slow"): Span(5, 10)})
    worse = with_optimum(type(plan)("given", inventory, workload, slow, plan.expected), 10)
    best = with_optimum(plan, 10)
    assert worse.optimum.gap > 0.3 > best.optimum.gap
    assert worse.optimum.best_s == pytest.approx(best.optimum.best_s, rel=1e-3)


def test_too_little_memory_says_how_many_gb(plan_file):
    read = read_plan(plan_file(BLOOM.replace("memory_gb: 12", "memory_gb: 4")))
    with pytest.raises(MemoryShortError, match=r"needs 4\.0 GB more"):
        make_plan("best", read.inventory(), read.workload.workload(), 0)


def test_little_that_is_missing_is_not_told_as_nothing(plan_file):
    small = BLOOM.replace("block_gb: 1.0", "block_gb: 0.001").replace(
        "memory_gb: 12", "memory_gb: 0.004"
    )
    read = read_plan(plan_file(small))
    for placement in ("best", "petals", "parallax"):
        with pytest.raises(MemoryShortError, match=r" 0\.00\d+ GB more"):
            make_plan(placement, read.inventory(), read.workload.workload(), 0)


def test_blocks_that_machines_do_not_want_are_no_lack_of_memory(plan_file):
    read = read_plan(plan_file(BLOOM.replace("memory_gb: 12", "memory_gb: 12, max_blocks: 4")))
    with pytest.raises(MemoryShortError, match="hold 8 of the 10 blocks of toy, for their max_blo"):
        make_plan("best", read.inventory(), read.workload.workload(), 0)


def test_bars_show_spans():
    assert bar(Span(0, 5), 10) == "█████·····"
    assert bar(None, 4) == "····"
    assert bar(Span(79, 80), 80, cells=40) == "·" * 39 + "█"
    layout = Layout(4, {PeerId("a"): Span(0, 3), PeerId("b"): Span(1, 2)})
    assert hosts_line(layout) == "1210"


def test_place_prints_a_picture_and_json(plan_file, plan):
    path = plan_file(BLOOM)
    table = plan("place", path)
    assert table.returncode == 0, table.stderr
    assert "██████████" in table.stdout
    assert "at least 2 hosts" in table.stdout
    done = plan("place", path, "--json", "--placement", "cg-bp", "--time-limit", "0")
    found = json.loads(done.stdout)
    assert (found["placement"], found["optimum"], len(found["machines"])) == ("cg-bp", None, 2)


def test_mistakes_on_the_command_line_are_single_lines(plan_file, tmp_path, plan):
    wrong = plan("place", plan_file(BLOOM.replace("memory_gb: 12", "memory_gb: -1")))
    assert wrong.returncode == 2
    assert wrong.stderr.count("error: ") == len(wrong.stderr.splitlines()) == 2
    nothing = plan("place", tmp_path / "none.yaml")
    assert nothing.returncode == 2
    assert nothing.stderr.startswith("error: ")
    assert len(nothing.stderr.splitlines()) == 1
    unknown = plan("place", plan_file(BLOOM), "--placement", "magic")
    assert (unknown.returncode, len(unknown.stderr.splitlines())) == (2, 1)
    assert "cg-bp" in unknown.stderr


@pytest.mark.parametrize("option", [("--sessions", "4"), ("--model", "llama-2-7b")])
def test_what_is_for_a_live_swarm_is_not_ignored_beside_an_inventory(
    plan_file, option, monkeypatch, capsys
):
    monkeypatch.setattr("swarm.cli.plan.end_on_sigterm", lambda: None)
    with pytest.raises(SystemExit) as end:
        app(args=["place", str(plan_file(BLOOM)), *option], standalone_mode=False)
    assert end.value.code == 2
    assert "for --peers; an inventory" in capsys.readouterr().err


def test_a_live_swarm_is_planned_for(three_servers, plan):
    address = three_servers[0].address()
    done = plan("place", "--peers", address, "--json", "--output-tokens", "16")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    now = found["now"]
    assert [row["blocks"] for row in now["machines"]] == ["0:10", "10:20", "20:30"]
    assert (now["least_hosts"], now["missing"]) == (1, [])
    assert now["tpot_s"] > 0
    assert found["missing"] == []
    assert found["model"] == "SmolLM2-135M-Instruct"

"""`swarm-plan simulate` and `swarm-plan compare`."""

import json

import pytest

from swarm.cli.plan_inventory import PlanMistakesError, read_plan
from swarm.cli.plan_results import comparison_table, ranked, result_fields, text_plot
from swarm.cli.plan_simulating import POLICIES, Options, run_policies
from swarm.errors import MemoryShortError, UsageError
from swarm.routing.policies import PLACEMENTS, ROUTERS
from swarm.simulator.scenario import FaultKind

INVENTORY = """
model: {name: toy, blocks: 10, block_gb: 1.0, cache_bytes_per_token: 10000, activation_bytes: 8192}
machines:
  - {name: fast, count: 2, memory_gb: 12, decode_ms_per_block: 1, row_ms_per_block: 0.1}
  - {name: half, count: 4, memory_gb: 7, decode_ms_per_block: 2, row_ms_per_block: 0.1}
clients: [{name: me}, {name: you}]
network: {within_region_ms: 20, spread: 0.3, bandwidth_mbit: 100}
workload: {prompt_tokens: 20, output_tokens: 16, rate_per_s: 3}
simulation: {requests: 40, spread: 0.5}
"""


def test_every_named_policy_exists():
    for policy in POLICIES:
        placement, _, router = policy.partition("+")
        assert placement in PLACEMENTS
        assert router in ROUTERS


def test_all_policies_serve_the_same_scenario(plan_file):
    found = run_policies(read_plan(plan_file(INVENTORY)), POLICIES, Options(None, None, 0))
    assert list(found) == list(POLICIES)
    fields = [result_fields(name, result) for name, result in found.items()]
    assert [one["done"] for one in fields] == [40] * len(POLICIES)
    order = ranked(found)
    means = [found[name].summary()["response_s"]["mean"] for name in order]
    assert means == sorted(means)
    assert comparison_table(found).row_count == len(POLICIES)
    lines = text_plot(found).splitlines()[2:]
    assert [line.split()[0] for line in lines] == order
    # The longest bar belongs to the largest p99.
    bars = {line.split()[0]: line.count("█") + line.count("░") for line in lines}
    slowest = max(order, key=lambda name: found[name].summary()["response_s"]["p99"])
    assert bars[slowest] == max(bars.values()) > 40


def test_a_policy_that_cannot_place_is_shown_with_its_reason(plan_file):
    # Petals keeps 4,096 tokens of cache for each block: ten blocks do not fit so.
    text = INVENTORY.replace("10000", "1000000").replace("count: 4, memory_gb: 7", "memory_gb: 1")
    text = text.replace("count: 2, memory_gb: 12", "memory_gb: 14")
    read = read_plan(plan_file(text))
    found = run_policies(read, ["petals+petals", "cg-bp+parallax"], Options(5, None, 0))
    assert isinstance(found["petals+petals"], MemoryShortError)
    assert "GB more" in result_fields("petals+petals", found["petals+petals"])["error"]
    assert ranked(found) == ["cg-bp+parallax", "petals+petals"]
    with pytest.raises(MemoryShortError):
        run_policies(read, ["petals+petals"], Options(5, None, 0))


@pytest.mark.parametrize(
    ("policy", "said"),
    [("petals", "PLACEMENT"), ("magic+petals", "cg-bp"), ("petals+magic", "two-choices")],
)
def test_unknown_policies_are_refused_before_anything_runs(plan_file, policy, said):
    with pytest.raises(UsageError, match=said):
        run_policies(
            read_plan(plan_file(INVENTORY)), ["best+petals", policy], Options(None, None, 0)
        )


def test_the_file_says_what_happens(plan_file):
    text = INVENTORY.replace(
        "spread: 0.5}",
        "median_stay_s: 60, liars: 0.5, view_age_s: 30,"
        " faults: [{kind: freeze, machine: fast-1, at_s: 2, lasts_s: 5}]}",
    ).replace("count: 4, memory_gb: 7,", "count: 4, memory_gb: 7, host: box,")
    read = read_plan(plan_file(text + "hosts: [{name: box, cores: 2}]\n"))
    inventory = read.inventory()
    from swarm.routing.placements.best import BestPlacement

    layout = BestPlacement().place(inventory, read.workload.workload())
    scenario = read.scenario(inventory, layout, requests=7, rate_per_s=0.0, seed=3)
    assert (scenario.traffic.requests, scenario.traffic.at_once, scenario.seed) == (7, True, 3)
    assert scenario.faults[0].kind is FaultKind.FREEZE
    assert scenario.churn.median_stay_s == 60
    assert (scenario.liars, scenario.timing.view_age_s) == (0.5, 30)
    assert scenario.hosts[0].machines == ("half-1", "half-2", "half-3", "half-4")
    with pytest.raises(PlanMistakesError, match=r"simulation\.requests"):
        read_plan(plan_file(INVENTORY.replace("requests: 40", "requests: -1")))


def test_a_rate_that_is_given_is_planned_for(plan_file):
    work = read_plan(plan_file(INVENTORY.replace("rate_per_s: 3", "sessions: 5"))).workload
    assert (work.workload().sessions, work.workload().rate_per_s) == (5, 0)
    assert (work.workload(2.0).sessions, work.workload(2.0).rate_per_s) == (0, 2.0)
    assert work.workload(0.0).sessions == 5


def test_simulate_says_the_same_for_the_same_seed(plan_file, plan):
    path = plan_file(INVENTORY)
    first, again = (plan("simulate", path, "--json", "--seed", 4) for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    found = json.loads(first.stdout)
    assert (found["policy"], found["done"], found["seed"]) == ("best+two-choices", 40, 4)
    assert len(found["servers"]) == 6


def test_simulate_and_compare_print_tables_and_a_plot(plan_file, tmp_path, plan):
    path = plan_file(INVENTORY)
    one = plan("simulate", path, "--requests", 10)
    assert one.returncode == 0, one.stderr
    assert "to the first token" in one.stdout
    assert "10 done, 0 failed" in one.stdout
    plot = tmp_path / "plot.txt"
    arguments = ("--policy", "best+jffc", "--policy", "petals+petals", "--plot", plot)
    both = plan("compare", path, *arguments)
    assert both.returncode == 0, both.stderr
    assert "best+jffc" in both.stdout
    assert "█" in plot.read_text(encoding="utf-8")
    lost = plan("compare", path, *arguments[:-1], tmp_path / "none" / "plot.txt")
    assert lost.returncode == 2
    assert "cannot be written" in lost.stderr

"""The interference benchmark's prompts, figures, bars and picture, and what it keeps."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import interference_modules  # noqa: F401
import pytest
from interference_bars import bar_rows
from interference_plot import plot
from interference_report import arm_rows, figures, ratio_row
from interference_results import Results
from interference_swarm import MAX_PROMPT, MIN_PROMPT, Load


def made_run(gap_ms: float, slow_ms: float, ttft_s: float) -> dict[str, Any]:
    """Two sessions of 100 gaps each, two of which are slow."""
    session = [gap_ms] * 98 + [slow_ms] * 2
    return {
        "gaps_ms": [session, session],
        "prompts": [{"tokens": 1000, "ttft_s": ttft_s}],
        "link_use": 0.45,
        "stage_cores": [0.1, 0.2, 0.1],
        "all_cores": 0.9,
        "commit": "1234567",
    }


def test_all_arms_get_the_same_prompts_and_seeds_others() -> None:
    load = Load(seed=1, seconds=40.0, prompts=10, fill_s=10.0)
    assert load.arrivals() == load.arrivals()
    assert load.arrivals() != Load(2, 40.0, 10, 10.0).arrivals()


@pytest.mark.parametrize("seed", range(5))
def test_prompts_are_as_many_and_as_long_as_the_load_says(seed: int) -> None:
    arrivals = Load(seed, seconds=40.0, prompts=20, fill_s=10.0).arrivals()
    window = [(at, tokens) for at, tokens in arrivals if at >= 0]
    times, tokens = zip(*window, strict=True)
    assert len(window) == 20
    assert list(times) == sorted(times) and times[-1] < 40
    assert min(tokens) >= MIN_PROMPT and max(tokens) <= MAX_PROMPT
    mean = (MIN_PROMPT + MAX_PROMPT) / 2
    assert sum(tokens) / len(tokens) == pytest.approx(mean, rel=0.03)


def test_what_comes_before_the_window_is_what_comes_at_its_end() -> None:
    arrivals = Load(3, seconds=8.0, prompts=6, fill_s=10.0).arrivals()
    window = [(at, tokens) for at, tokens in arrivals if at >= 0]
    before = [(at, tokens) for at, tokens in arrivals if at < 0]
    assert [at for at, _ in arrivals] == sorted(at for at, _ in arrivals)
    assert min(at for at, _ in before) >= -10
    once = [(at + 8, tokens) for at, tokens in before if at >= -8]
    assert [(pytest.approx(at), tokens) for at, tokens in window] == once
    late = [(at + 16, tokens) for at, tokens in before if at < -8]
    assert late == [(pytest.approx(at), tokens) for at, tokens in window if at >= 6]


def test_figures_are_pooled_over_sessions_and_seeds() -> None:
    found = figures([made_run(100, 1000, 2.0), made_run(100, 2000, 4.0)])
    assert found.tpot == pytest.approx((98 * 100 + 2 * 1500) / 100)
    assert (found.p50, found.longest) == (pytest.approx(100), pytest.approx(2000))
    assert found.p99 == pytest.approx(2000)
    assert found.ttft_s == pytest.approx(3.0)
    assert (found.gaps, found.prompts) == (400, 2)
    assert found.stage_cores == 0.2


def made_results(file: Path | None = None) -> Results:
    results = Results(file)
    results.made_over("cubic")
    for arm, run in {
        "A": made_run(100, 4000, 2.0),
        "A'": made_run(100, 500, 2.0),
        "C": made_run(100, 600, 2.5),
    }.items():
        results.add("main 20 Mbit/s, 20 ms, use 0.45", arm, 1, run)
        results.add("main 20 Mbit/s, 20 ms, use 0.3", arm, 1, run)
    return results


def test_ratios_are_of_pooled_figures() -> None:
    row = ratio_row("a point", made_results().complete("main 20 Mbit/s, 20 ms, use 0.45"))
    assert row is not None
    assert row["p99 C/A"] == pytest.approx(0.15)
    assert row["p99 C/A'"] == pytest.approx(1.2)
    assert row["p99 C/B"] is None


def test_each_figure_has_its_bar_and_is_met_or_missed() -> None:
    rows = {(row["figure"], row["point"]): row["holds"] for row in bar_rows(made_results())}
    point = "20 Mbit/s, 20 ms, use 0.45"
    assert rows["mean TPOT, C / A", point] == "missed"
    assert rows["p99 between tokens, C / A", point] == "met"
    assert rows["p99 between tokens, C / A'", point] == "missed"
    assert rows["TTFT of the prompts, C / A", point] == "missed"
    assert rows["cores of the busiest stage", point] == "met"
    # At lower use nothing is asked of the mean.
    assert ("mean TPOT, C / A", "20 Mbit/s, 20 ms, use 0.3") not in rows
    assert ("TTFT of the prompts, C / A", "20 Mbit/s, 20 ms, use 0.3") in rows


def test_a_link_is_to_be_at_least_so_fast() -> None:
    results = Results()
    for path, mbit in (("20 Mbit/s, 20 ms", 19.5), ("loopback", 60.0)):
        results.add(f"bulk {path}", "raw", 1, {"mbit": 20.0, "cpu_s_per_gb": 3.0})
        results.add(f"bulk {path}", "link", 1, {"mbit": mbit, "cpu_s_per_gb": 4.0})
    results.add("bulk 100 Mbit/s, 0 ms", "raw", 1, {"mbit": 100.0, "cpu_s_per_gb": 3.0})
    results.add("bulk 100 Mbit/s, 0 ms", "link", 1, {"mbit": 94.0, "cpu_s_per_gb": 3.0})
    assert [row["holds"] for row in bar_rows(results)] == ["met", "met", "missed"]


def test_what_was_measured_is_gone_on_with_and_says_of_which_commit(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    made_results(file)
    again = Results(file)
    point = "main 20 Mbit/s, 20 ms, use 0.45"
    assert again.has(point, "C", 1) and not again.has(point, "C", 2)
    again.add(point, "C", 2, made_run(100, 900, 2.0))
    runs = Results(file).complete(point)
    # The others have not been measured with the second seed yet.
    assert {arm: len(of_arm) for arm, of_arm in runs.items()} == {"A": 1, "A'": 1, "C": 1}
    assert figures(runs["C"]).p99 == 600
    assert all(run["commit"] for of_arm in runs.values() for run in of_arm)
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_of_one_congestion_control(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.json")
    assert results.tcp is None
    results.made_over("bbr")
    results.add("main 20 Mbit/s, 20 ms, use 0.45", "C", 1, made_run(100, 900, 2.0))
    again = Results(tmp_path / "results.json")
    assert again.tcp == "bbr"
    again.made_over("bbr")
    with pytest.raises(ValueError, match=r"results.json has runs over bbr, not cubic"):
        again.made_over("cubic")


def test_the_picture_is_svg_with_a_row_for_each_point() -> None:
    runs = {"A": [made_run(100, 4000, 2.0)], "C": [made_run(100, 300, 2.0)]}
    rows = arm_rows("5 Mbit/s & more", runs) + arm_rows("20 Mbit/s", runs)
    picture = ElementTree.fromstring(plot(rows, "Title"))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"5 Mbit/s & more", "20 Mbit/s", "A", "C"} <= set(texts)

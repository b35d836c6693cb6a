"""The interference benchmark's prompts, figures and picture."""

from typing import Any
from xml.etree import ElementTree

import interference_modules  # noqa: F401
import pytest
from interference_plot import plot
from interference_report import arm_rows, figures, ratio_row
from interference_swarm import LONGEST_PROMPT, SHORTEST_PROMPT, Load


def made_run(gap_s: float, slow_s: float, ttft_s: float) -> dict[str, Any]:
    """Two sessions of 100 gaps each, two of which are slow."""
    session = [gap_s] * 98 + [slow_s] * 2
    return {
        "gaps_s": [session, session],
        "prompts": [{"tokens": 1000, "due": 0.0, "ttft_s": ttft_s}],
        "link_use": 0.45,
        "stage_cores": [0.1, 0.2, 0.1],
        "all_cores": 0.9,
    }


def test_all_arms_get_the_same_prompts_and_seeds_others() -> None:
    load = Load(seed=1, seconds=40.0, prompts_per_s=0.25, fill_s=10.0)
    assert load.arrivals() == load.arrivals()
    assert load.arrivals() != Load(2, 40.0, 0.25, 10.0).arrivals()


@pytest.mark.parametrize("seed", range(5))
def test_prompts_are_as_many_and_as_long_as_the_load_says(seed: int) -> None:
    arrivals = Load(seed, seconds=40.0, prompts_per_s=0.5, fill_s=10.0).arrivals()
    times, tokens = zip(*arrivals, strict=True)
    assert len(arrivals) == 25
    assert list(times) == sorted(times) and times[0] >= 0 and times[-1] <= 50
    assert min(tokens) >= SHORTEST_PROMPT and max(tokens) <= LONGEST_PROMPT
    mean = (SHORTEST_PROMPT + LONGEST_PROMPT) / 2
    assert sum(tokens) / len(tokens) == pytest.approx(mean, rel=0.03)


def test_figures_are_pooled_over_sessions_and_seeds() -> None:
    found = figures([made_run(0.1, 1.0, 2.0), made_run(0.1, 2.0, 4.0)])
    assert found.tpot == pytest.approx(1e3 * (98 * 0.1 + 2 * 1.5) / 100)
    assert (found.p50, found.longest) == (pytest.approx(100), pytest.approx(2000))
    assert found.p99 == pytest.approx(2000)
    assert found.ttft_s == pytest.approx(3.0)
    assert (found.gaps, found.prompts) == (400, 2)
    assert found.stage_cores == 0.2


def test_ratios_name_the_bars_that_are_missed() -> None:
    runs = {
        "A": [made_run(0.1, 4.0, 2.0)],
        "A'": [made_run(0.1, 0.5, 2.0)],
        "C": [made_run(0.1, 0.6, 2.5)],
    }
    row = ratio_row("a point", 0.45, runs)
    assert row is not None
    assert row["p99 C/A"] == pytest.approx(0.15)
    assert row["p99 C/A'"] == pytest.approx(1.2)
    assert row["p99 C/B"] is None
    assert row["missed"] == "TTFT C/A, TPOT C/A, p99 C/A'"
    # At lower use nothing is asked of the mean.
    lower = ratio_row("a point", 0.3, runs)
    assert lower is not None and lower["missed"] == "TTFT C/A, p99 C/A'"


def test_the_picture_is_svg_with_a_row_for_each_point() -> None:
    runs = {"A": [made_run(0.1, 4.0, 2.0)], "C": [made_run(0.1, 0.3, 2.0)]}
    rows = arm_rows("5 Mbit/s & more", runs) + arm_rows("20 Mbit/s", runs)
    picture = ElementTree.fromstring(plot(rows, "Title"))
    texts = [element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"5 Mbit/s & more", "20 Mbit/s", "A", "C"} <= set(texts)

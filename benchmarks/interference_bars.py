"""Whether the interference benchmark's bars hold: a row for each figure, its bar, met or missed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interference_report import figures, ratio_row
from interference_results import Results
from interference_rows import always_rows, bulk_rows, streamed_rows, uncontended_rows

TPOT_BAR = 0.5
P99_BAR = 0.25
OTHERS_BAR = 1.05
TTFT_BAR = 1.10
ALWAYS_BAR = 1.2
"""Of the idle p99 and a pass's time at each stage, on paced engines."""
COMPUTED_ALWAYS_AIM = 2.5
"""Of the idle p99, where passes are computed: an aim."""
SAME_BAR = 1.05
STREAMED_BAR = 0.65
BULK_BAR = 0.95
LOOPBACK_BAR = 0.7
CORES_BAR = 0.7
"""Of a core, for each stage."""
BARRED_USES = (0.45, 0.6)

Row = dict[str, Any]


def bar_rows(results: Results) -> list[Row]:
    """All figures that have a bar, of what was measured."""
    return [
        *_mains(results),
        *_always(always_rows(results)),
        *(
            _row("TPOT without prompts, C / best other", row["point"], row["ratio"], SAME_BAR)
            for row in uncontended_rows(results)
        ),
        *(
            _row("TTFT of 2,048 tokens, streamed / whole", row["point"], row["ratio"], STREAMED_BAR)
            for row in streamed_rows(results)
            if row["limit"] is None
        ),
        *_bulk(bulk_rows(results)),
    ]


def _mains(results: Results) -> Iterator[Row]:
    for point, runs in results.of_kind("main").items():
        ratios = ratio_row(point, runs)
        if ratios is not None:
            if float(point.rpartition(" ")[2]) in BARRED_USES:
                yield _row("mean TPOT, C / A", point, ratios["TPOT C/A"], TPOT_BAR)
                yield _row("p99 between tokens, C / A", point, ratios["p99 C/A"], P99_BAR)
            for other in ("A'", "B"):
                ratio = ratios[f"p99 C/{other}"]
                if ratio is not None:
                    yield _row(f"p99 between tokens, C / {other}", point, ratio, OTHERS_BAR)
            yield _row("TTFT of the prompts, C / A", point, ratios["TTFT C/A"], TTFT_BAR)
        busiest = max(figures(of_arm).stage_cores for of_arm in runs.values())
        yield _row("cores of the busiest stage", point, busiest, CORES_BAR)


def _always(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for row in rows:
        if row["arm"] != "C" or row["idle + passes"] is None:
            continue
        point = row["point"]
        if point.startswith("5 "):
            figure = "p99 beside one prompt / idle (an aim)"
            yield _row(figure, point, row["ratio"], COMPUTED_ALWAYS_AIM)
        else:
            bar = ALWAYS_BAR * row["idle + passes"]
            yield _row("p99 beside one prompt, ms", point, row["p99 ms"], bar)


def _bulk(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for row in rows:
        bar = LOOPBACK_BAR if row["path"] == "loopback" else BULK_BAR
        yield _row("bulk, link / raw stream", row["path"], row["ratio"], bar, at_least=True)


def _row(figure: str, point: str, value: float, bar: float, *, at_least: bool = False) -> Row:
    met = value >= bar if at_least else value <= bar
    return {
        "figure": figure,
        "point": point,
        "measured": value,
        "bar": f"at {'least' if at_least else 'most'} {bar:.4g}",
        "holds": "met" if met else "missed",
    }

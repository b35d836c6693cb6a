"""A picture of the main table, as SVG: each arm's p99 and mean between two tokens, by point."""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

COLOURS = {"A": "#8c2d04", "A'": "#fe9929", "B": "#6a51a3", "C": "#08519c"}
_LEFT, _TOP, _ROW, _BAR, _WIDTH = 190, 56, 74, 14, 620


def plot(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """`rows`: as of `interference_report.arm_rows`. Milliseconds on a logarithmic axis; the bar
    ends at the p99, the mark within it is the mean."""
    points = list(dict.fromkeys(row["point"] for row in rows))
    lowest = 10 ** math.floor(math.log10(min(row["TPOT ms"] for row in rows)))
    highest = 10 ** math.ceil(math.log10(max(row["p99"] for row in rows)))

    def place(milliseconds: float) -> float:
        share = math.log10(milliseconds / lowest) / math.log10(highest / lowest)
        return _LEFT + _WIDTH * max(0.0, share)

    height = _TOP + _ROW * len(points) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 60}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="18" font-size="14">{escape(title)}</text>',
        _legend(dict.fromkeys(str(row["arm"]) for row in rows)),
    ]
    decade = lowest
    while decade <= highest:
        x = place(decade)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 30}" stroke="#ccc"/>'
            f'<text x="{x:.1f}" y="{height - 14}" text-anchor="middle">{decade:g} ms</text>'
        )
        decade *= 10
    for index, point in enumerate(points):
        top = _TOP + _ROW * index
        parts.append(f'<text x="10" y="{top + 30}">{escape(str(point))}</text>')
        for line, row in enumerate(row for row in rows if row["point"] == point):
            y = top + 4 + _BAR * line
            colour = COLOURS.get(str(row["arm"]), "#555")
            tail, mean = place(row["p99"]), place(row["TPOT ms"])
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{tail - _LEFT:.1f}" height="{_BAR - 3}"'
                f' fill="{colour}" fill-opacity="0.55"/>'
                f'<rect x="{mean - 1.5:.1f}" y="{y}" width="3" height="{_BAR - 3}"'
                f' fill="{colour}"/>'
            )
    return "\n".join([*parts, "</svg>", ""])


def _legend(arms: Mapping[str, None]) -> str:
    parts = []
    for index, arm in enumerate(arms):
        x = _LEFT + 60 * index
        parts.append(
            f'<rect x="{x}" y="30" width="12" height="12" fill="{COLOURS.get(arm, "#555")}"/>'
            f'<text x="{x + 17}" y="40">{escape(arm)}</text>'
        )
    x = _LEFT + 60 * len(arms)
    return "".join([*parts, f'<text x="{x}" y="40">bar: p99; mark: mean between two tokens</text>'])

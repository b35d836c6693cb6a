"""How much a long prompt holds up everybody else's decoding, over links of little bandwidth.

Three stages and two clients, real processes over real libp2p, each in a network namespace with a
token bucket at its way out and a user-space delay. A Llama of hidden size 1,024, one block a stage,
float32 in the servers and bfloat16 on the wire. One client decodes (4 to 8 sessions), the other
sends prompts of 512 to 2,048 tokens at Poisson times. The arms alternate, with the same prompts:

  A   a prompt's whole activation is one message a hop; links are first come, first served
  A'  the product's chunks, first come, first served
  B   whole prompts, a stream for each message: the transport's own multiplexing
  C   the product

The compute policy is the product's in all of them. `compute` holds the wire unlimited and varies
the compute policy instead. With 5 Mbit/s passes are really computed; for faster links two cores do
not suffice, so there an engine sleeps for a pass's time, which is printed. `use` is what prompts
and decoding together take of a link in arm A, as it was planned; what it was is printed.

The runs are made seed by seed, every arm before the next seed. With --results each run is kept,
with its commit, and not made again: a long table is made in several goes, and one seed of
everything can be had first (`--seeds 1`, then `--seeds 3`).
"""

import argparse
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from common import Report, arguments
from interference_arms import ARMS
from interference_bars import bar_rows
from interference_measuring import PACES, Measuring
from interference_network import QUEUE_MS, USUAL_TCP, TestNetwork, make_network
from interference_plot import plot
from interference_report import arm_rows, ratio_row
from interference_results import Results
from interference_rows import always_rows, bulk_rows, streamed_rows, uncontended_rows
from interference_swarm import Swarms

USES = (0.45, 0.6, 0.3)
PARTS = ("main", "always", "streamed", "bulk", "compute")


def show(results: Results, report: Report, picture: str | None) -> None:
    """Tables of all that is in the results."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for kind in ("main", "idle", "compute"):
        points = results.of_kind(kind).items()
        tables[kind] = [row for point, runs in points for row in arm_rows(point, runs)]
    ratios = [ratio_row(point, runs) for point, runs in results.of_kind("main").items()]
    report.table("the wire: arms", tables["main"])
    report.table("C against the others", [row for row in ratios if row is not None])
    report.table("nothing contends", tables["idle"])
    report.table("nothing contends: C to the best other", uncontended_rows(results))
    report.table("one prompt of 1,024 tokens always in flight", always_rows(results))
    report.table("first token of 2,048 tokens over three stages", streamed_rows(results))
    report.table("bulk over a link, without decode", bulk_rows(results))
    report.table("the engine: compute policies, unlimited wire", tables["compute"])
    report.table("bars", bar_rows(results))
    if picture and tables["main"]:
        title = "Between two tokens, while others' prompts pass"
        Path(picture).write_text(plot(tables["main"], title))


def facts_of(network: TestNetwork) -> dict[str, str]:
    """What the figures were measured over."""
    return {"network": network.kind, "bucket": f"{QUEUE_MS} ms"}


def _points(text: str) -> tuple[float, float]:
    mbit, _, rtt_ms = text.partition(":")
    if float(mbit) not in PACES:
        raise argparse.ArgumentTypeError(f"{text}: the rate is one of 5, 20 and 100")
    return float(mbit), float(rtt_ms or 20)


def main(arguments_given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__ or "", repetitions=1)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--points",
        nargs="+",
        type=_points,
        metavar="MBIT:RTT",
        default=[(mbit, rtt) for rtt in (20.0, 50.0) for mbit in PACES],
        help="rates 5, 20, 100 and round trips in ms; default: all, with 20 and 50",
    )
    parser.add_argument("--uses", nargs="+", type=float, default=list(USES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--parts",
        nargs="*",
        choices=PARTS,
        default=list(PARTS),
        help="none: only the tables of what is in --results",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of a run at 20 Mbit/s, about")
    parser.add_argument("--quick", action="store_true", help="5 and 20 Mbit/s, use 0.45, one seed")
    parser.add_argument(
        "--in-process-relay",
        action="store_true",
        help="no namespaces: rate and delay are made in each process, as without root",
    )
    parser.add_argument(
        "--tcp",
        default=USUAL_TCP,
        help=f"congestion control, as of `ip route`; default {USUAL_TCP}",
    )
    parser.add_argument("--results", help="JSON file that keeps each run, and is gone on with")
    parser.add_argument(
        "--budget-minutes", type=float, default=1e6, help="begin nothing new after this time"
    )
    parser.add_argument("--plot", help="write the main table as SVG here")
    options = parser.parse_args(arguments_given)
    if options.quick:
        options.points, options.uses, options.seeds = [(5.0, 20.0), (20.0, 20.0)], [0.45], 1
        options.parts = ["main"]
    report = Report("interference", as_json=options.json)
    results = Results(Path(options.results) if options.results else None)
    measuring = Measuring(options, report, results)
    facts: dict[str, str | None] = {}

    def meet(network: TestNetwork) -> None:
        facts.update(facts_of(network))
        results.made_over(network.tcp)

    ways = {"loopback": options.in_process_relay, "tcp": options.tcp}
    with Swarms(**ways, on_network=meet) as swarms:
        if "main" in options.parts:
            measuring.main_table(swarms)
        if "always" in options.parts:
            measuring.always(swarms)
        if "streamed" in options.parts:
            measuring.streamed(swarms)
        if "compute" in options.parts:
            measuring.compute_table(swarms)
    if "bulk" in options.parts:
        network = make_network(2, **ways)
        with closing(network):
            meet(network)
            if not network.relays:
                measuring.bulk(network)
    report.table("set-up", [facts | {"TCP": results.tcp}] if results.tcp else [])
    paces = [{"Mbit/s": mbit, "pass": str(pace or "computed")} for mbit, pace in PACES.items()]
    report.table("passes", paces)
    show(results, report, options.plot)
    if measuring.left_out:
        report.note(f"no time left for: {'; '.join(measuring.left_out)}")
    report.finish()


if __name__ == "__main__":
    main()

"""How long `--help` of each command takes: aim, under a second."""

import subprocess
import time

from common import Report, arguments, median
from processes import command_line

COMMANDS = (
    ("swarm-server",),
    ("swarm-client",),
    ("swarm-client", "generate"),
    ("swarm-client", "status"),
    ("swarm-dht",),
    ("swarm-plan",),
    ("swarm-plan", "place"),
    ("swarm-plan", "simulate"),
    ("swarm-plan", "compare"),
)


def help_seconds(command: tuple[str, ...]) -> float:
    program, *subcommand = command
    started = time.perf_counter()
    subprocess.run(
        [*command_line(program), *subcommand, "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def main() -> None:
    options = arguments(__doc__, repetitions=5).parse_args()
    report = Report("help: time of --help", as_json=options.json)
    rows = []
    for command in COMMANDS:
        first = help_seconds(command)
        seconds = [help_seconds(command) for _ in range(options.repetitions)]
        rows.append(
            {
                "command": " ".join(command),
                "first s": first,
                "median s": median(seconds),
                "slowest s": max(seconds),
            }
        )
    report.table("seconds until `--help` has been printed", rows)
    report.finish()


if __name__ == "__main__":
    main()

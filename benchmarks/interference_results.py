"""What the interference benchmark has measured, run by run, in a file that later runs go on with.

A point's runs are kept by arm and seed, each with the commit that it was made of and the congestion
control that it was made over. Tables are made of the seeds that all of a point's arms have, so that
a table of a run that was broken off compares the same prompts.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Run = Mapping[str, Any]
Runs = dict[str, list[Run]]
"""By arm, the runs of the same seeds in each."""
_ROOT = Path(__file__).resolve().parents[1]
_MEASURED = ("swarm", "benchmarks", "scripts")


class Results:
    """Runs by point, arm and seed; saved after each."""

    def __init__(self, file: Path | None = None) -> None:
        """`file`: is read if it is there; None: nothing is kept."""
        self._file = file
        self._commit = commit()
        self._tcp: str | None = None
        self._points: dict[str, dict[str, dict[str, Run]]] = {}
        if file is not None and file.exists():
            self._points = json.loads(file.read_text())

    @property
    def tcp(self) -> str | None:
        """The congestion control that the runs were made over; None: there are none yet."""
        found = {
            str(run["tcp"])
            for arms in self._points.values()
            for runs in arms.values()
            for run in runs.values()
        }
        return " and ".join(sorted(found)) or None

    def made_over(self, tcp: str) -> None:
        """What is added now was made over this congestion control; a file is of one only, so that
        nobody compares two. Raises ValueError."""
        if self.tcp not in (None, tcp):
            raise ValueError(f"{self._file} has runs over {self.tcp}, not {tcp}: name another file")
        self._tcp = tcp

    def has(self, point: str, arm: str, seed: int) -> bool:
        return str(seed) in self._points.get(point, {}).get(arm, {})

    def add(self, point: str, arm: str, seed: int, run: Mapping[str, Any]) -> None:
        of_arm = self._points.setdefault(point, {}).setdefault(arm, {})
        of_arm[str(seed)] = {**run, "commit": self._commit, "tcp": self._tcp}
        if self._file is not None:
            # Whole or not at all: whoever breaks the program off loses one run at most.
            new = self._file.with_name(f"{self._file.name}.new")
            new.write_text(self._text())
            os.replace(new, self._file)

    def _text(self) -> str:
        """One line a run, so that files of two times can be compared."""
        lines = []
        for point, arms in self._points.items():
            runs = [
                f"  {json.dumps(arm)}: {{\n   "
                + ",\n   ".join(
                    f"{json.dumps(seed)}: {json.dumps(run)}" for seed, run in seeds.items()
                )
                + "}"
                for arm, seeds in arms.items()
            ]
            lines.append(f" {json.dumps(point)}: {{\n" + ",\n".join(runs) + "}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def of_kind(self, kind: str) -> dict[str, Runs]:
        """Complete runs by point; the points' names without `kind`."""
        found = {}
        for name in self._points:
            first, _, point = name.partition(" ")
            if first == kind and (runs := self.complete(name)):
                found[point] = runs
        return found

    def complete(self, point: str) -> Runs:
        """Of the seeds that all arms of this point have; empty without one."""
        arms = self._points.get(point, {})
        shared = set.intersection(*(set(seeds) for seeds in arms.values())) if arms else set()
        ordered = sorted(shared, key=int)
        return {arm: [seeds[one] for one in ordered] for arm, seeds in arms.items() if ordered}


def commits(runs: Mapping[str, Sequence[Run]]) -> str:
    """Of which the runs were made, in the order in which they come."""
    return " ".join(dict.fromkeys(str(run["commit"]) for arm in runs.values() for run in arm))


def commit() -> str:
    """Of what is measured here, short; with a `+` if files were changed since."""
    try:
        head = _git("rev-parse", "--short=7", "HEAD")
        changed = _git("status", "--porcelain", "--", *_MEASURED)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    return ran.stdout.strip()

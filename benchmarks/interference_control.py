"""What the processes of the interference benchmark are told, and what they tell, in JSON lines."""

import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from interference_arms import CHOSEN, Chosen
from interference_streams import LINKS, UPLINK


@dataclass(frozen=True)
class Pace:
    """How long a paced engine's pass takes."""

    pass_ms: float
    token_ms: float

    def __str__(self) -> str:
        return f"{self.pass_ms:g} ms + {self.token_ms:g} ms a token"


def choose_line(chosen: Chosen, *, mbit: float, delay_s: float) -> str:
    """The command that makes a process do what `chosen` says, over such a way out."""
    return json.dumps({"do": "choose", **asdict(chosen), "mbit": mbit, "delay_s": delay_s})


def paced(chosen: Chosen, pace: Pace | None) -> Chosen:
    if pace is None:
        return replace(chosen, pass_s=None, token_s=0.0)
    return replace(chosen, pass_s=pace.pass_ms / 1e3, token_s=pace.token_ms / 1e3)


def obey(command: dict[str, Any]) -> bool:
    """Does what every process can do; False: it is none of that."""
    match command["do"]:
        case "choose":
            for name in asdict(CHOSEN):
                setattr(CHOSEN, name, command[name])
            UPLINK.bytes_per_s = command["mbit"] * 1e6 / 8
            UPLINK.delay_s = command["delay_s"]
            say("chosen")
        case "links":
            say("links", links=links(), uplink_bytes=UPLINK.sent_bytes)
        case _:
            return False
    return True


def links() -> list[dict[str, Any]]:
    """Each link of this process as it is now."""
    found = []
    for of_process in LINKS:
        for peer in of_process.peers():
            stats = of_process.stats(peer)
            if stats is not None:
                found.append({"peer": peer, **asdict(stats)})
    return found


def say(event: str, **fields: object) -> None:
    """One line, written at once: several threads write."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()

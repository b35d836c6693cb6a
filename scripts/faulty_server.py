"""`swarm-server` with a fault of its own: `SWARM_FAULT=crash_at_step:20 faulty_server.py ...`."""

import asyncio
import os
from typing import Any

from faults import Fault

from swarm.server.pass_runner import PassRunner
from swarm.server.reception import Reception
from swarm.sessions.messages import RefuseKind
from swarm.wire.links import Links


def _refuse() -> None:
    def fault(*_: Any) -> tuple[RefuseKind, str]:
        return RefuseKind.QUOTA, "it was told to refuse"

    setattr(Reception, "_fault", fault)  # noqa: B010  (a method of the class is replaced)


def _at_step(number: int, *, wrong: bool) -> None:
    forward, count = vars(PassRunner)["_forward"], 0

    def counted(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count < number:
            return forward(*arguments)
        if not wrong:
            os._exit(3)
        return forward(*arguments) * float("nan")

    setattr(PassRunner, "_forward", counted)  # noqa: B010


def _deaf() -> None:
    async def start(links: Any) -> None:
        links._loop = asyncio.get_running_loop()

    setattr(Links, "start", start)  # noqa: B010


def main() -> None:
    kind, _, number = os.environ["SWARM_FAULT"].partition(":")
    match Fault(kind):
        case Fault.REFUSE:
            _refuse()
        case Fault.CRASH_AT_STEP:
            _at_step(int(number), wrong=False)
        case Fault.WRONG_OUTPUT:
            _at_step(int(number), wrong=True)
        case Fault.STALE_RECORD:
            _deaf()
        case other:
            raise SystemExit(f"{other} is done to a server from outside")
    from swarm.cli.server import main as run

    run()


if __name__ == "__main__":
    main()

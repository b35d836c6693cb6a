"""`swarm-server` with a fault of its own: `SWARM_FAULT=crash_at_step:20 faulty_server.py ...`."""

import asyncio
import os
from typing import Any

from faults import Fault

from swarm.server import service
from swarm.server.reception import Reception
from swarm.sessions.messages import RefuseKind
from swarm.wire.links import Links


def _refuse() -> None:
    def fault(self: Reception, *_: Any) -> tuple[RefuseKind, str]:
        return RefuseKind.QUOTA, "it was told to refuse"

    Reception._fault = fault  # type: ignore[method-assign]


def _at_step(number: int, wrong: bool) -> None:
    make, count = service.engine_job, 0

    def engine_job(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count >= number and not wrong:
            os._exit(3)
        job = make(*arguments)
        if count >= number:
            job.hidden.fill_(float("inf"))
        return job

    service.engine_job = engine_job


def _deaf() -> None:
    async def start(self: Links) -> None:
        self._loop = asyncio.get_running_loop()

    Links.start = start  # type: ignore[method-assign]


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

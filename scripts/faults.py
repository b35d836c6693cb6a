"""What can go wrong with a server, as words that tests and benchmarks share.

`KILL` and the three kinds of freezing are done to a process from outside, with signals; a frozen
daemon is also what a silently cut network looks like. The others are a server's own, and are asked
for when it starts: `swarm-server` run by `faulty_server.py`. Links are cut and slowed down between
servers in one process (`swarm.testing.LocalSwarm`), and cut between processes that are reached
through relays (`relays.py`).
"""

import contextlib
import signal
from enum import StrEnum
from typing import TYPE_CHECKING

import psutil
from processes import Program, ServerProgram

if TYPE_CHECKING:
    from swarm.server.server import Server
    from swarm.testing import LocalSwarm

SLOW_S = 30.0


class Fault(StrEnum):
    """What happens to a server, or to the link of two."""

    KILL = "kill"
    """The process ends at once, and its daemon with it; its record stays for a minute."""
    FREEZE = "freeze"
    """The interpreter stops; its daemon still takes connections."""
    FREEZE_DAEMON = "freeze_daemon"
    """Nothing passes to or from the server, and no connection is closed: a silent cut."""
    FREEZE_BOTH = "freeze_both"
    """As if the machine was suspended."""
    KILL_DAEMON = "kill_daemon"
    """All its connections break; the server starts a new daemon."""
    REFUSE = "refuse"
    """From its start: it takes no session."""
    CRASH_AT_STEP = "crash_at_step"
    """From its start: the process ends in the middle of its n-th step."""
    WRONG_OUTPUT = "wrong_output"
    """From its start: what it computes from its n-th step on is no number."""
    STALE_RECORD = "stale_record"
    """From its start: it says a minute long that it is online, and hears nobody."""
    CUT_LINK = "cut_link"
    """Of two servers: nothing passes between them, and nothing says so."""
    SLOW_LINK = "slow_link"
    """Of two servers: what passes between them takes half a minute."""


FROM_OUTSIDE = (Fault.KILL, Fault.FREEZE, Fault.FREEZE_DAEMON, Fault.FREEZE_BOTH, Fault.KILL_DAEMON)


def daemon_of(program: Program) -> psutil.Process:
    """The libp2p daemon of a server or a client."""
    children = psutil.Process(program.pid).children(recursive=True)
    return next(child for child in children if "p2pd" in child.name())


def inflict(server: ServerProgram, fault: Fault) -> None:
    """Does one of `FROM_OUTSIDE` to a server that runs."""
    process, daemon = psutil.Process(server.pid), daemon_of(server)
    match fault:
        case Fault.KILL:
            process.send_signal(signal.SIGKILL)
        case Fault.FREEZE:
            process.send_signal(signal.SIGSTOP)
        case Fault.FREEZE_DAEMON:
            daemon.send_signal(signal.SIGSTOP)
        case Fault.FREEZE_BOTH:
            process.send_signal(signal.SIGSTOP)
            daemon.send_signal(signal.SIGSTOP)
        case Fault.KILL_DAEMON:
            daemon.send_signal(signal.SIGKILL)
        case _:
            raise ValueError(f"{fault} is not done from outside; see `Fault`")


def inflict_between(swarm: "LocalSwarm", one: "Server", other: "Server", fault: Fault) -> None:
    """Does `CUT_LINK` or `SLOW_LINK` to the link of two servers in one process."""
    match fault:
        case Fault.CUT_LINK:
            swarm.partition(one, other)
        case Fault.SLOW_LINK:
            swarm.set_path(one, other, delay_s=SLOW_S)
        case _:
            raise ValueError(f"{fault} is not done to a link")


def thaw(server: ServerProgram) -> None:
    """Ends every freezing; a server that is gone is no error."""
    with contextlib.suppress(psutil.NoSuchProcess, StopIteration):
        daemon_of(server).send_signal(signal.SIGCONT)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(server.pid).send_signal(signal.SIGCONT)

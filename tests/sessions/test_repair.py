"""What hops say that they hold is not believed further than it can be true."""

import pytest

from swarm.errors import SessionLostError
from swarm.sessions.messages import Holds, RowOperation
from swarm.sessions.repair import Applied, Refill, plan_repair

FORK = Applied(epoch=3, operation=RowOperation(parents=(1, 1, 0)))
SESSION = bytes(16)


def holds(
    held: tuple[int, ...], backup_from: tuple[int, ...] | None = None, rows_epoch: int = 0
) -> Holds:
    return Holds(SESSION, 4, 0, held, backup_from, rows_epoch)


def test_a_fork_that_was_missed_is_caught_up_and_the_rest_refilled() -> None:
    sound, behind = holds((7, 7, 5), (0, 0, 0), 3), holds((5, 6))
    plan = plan_repair((sound, behind), (FORK,), (7, 7, 5))
    assert plan.operations[1] == RowOperation(parents=(1, 1, 0), truncate_to=(6, 6, 5))
    assert plan.refills == (Refill(0, 1, 1, (6, 6, 5)),)


@pytest.mark.parametrize(
    "lie",
    [
        holds((7, 7, 5, 9), rows_epoch=3),
        holds((7, 7), rows_epoch=3),
        holds((5, 6), (0,)),
        holds((5, 6), ()),
        holds((7, 7, 5), (0, 0), 3),
        holds((7,), (0,)),
    ],
)
def test_rows_that_cannot_be_end_the_session_with_a_reason(lie: Holds) -> None:
    with pytest.raises(SessionLostError, match=r"3 belong; open a new session"):
        plan_repair((lie,), (FORK,), (7, 7, 5))

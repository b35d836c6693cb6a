"""The steps that a hop has taken and not yet passed on, in order."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from swarm.scheduling.classes import ServiceClass
from swarm.sessions.events import PassDone
from swarm.sessions.messages import Step
from swarm.sessions.rules import Lengths, added, service_class_of


@dataclass
class _Pass:
    step: Step
    service_class: ServiceClass
    done: PassDone | None = None


class Passes:
    """All of one epoch; the engine may end them in any order."""

    def __init__(self) -> None:
        self._waiting: deque[_Pass] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, step: Step, done: PassDone | None = None) -> ServiceClass:
        """The step's class here, beside those that wait. `done`: where nothing is to compute."""
        service_class = service_class_of(step, (waiting.step for waiting in self._waiting))
        self._waiting.append(_Pass(step, service_class, done))
        return service_class

    def ended(self, done: PassDone) -> None:
        """One that is not waited for is ignored."""
        for waiting in self._waiting:
            if waiting.step.seq == done.seq:
                waiting.done = done

    def committed(self) -> Iterator[tuple[Step, PassDone, ServiceClass]]:
        """Removes the ended steps that have nothing before them, and gives them in order."""
        while self._waiting and (done := self._waiting[0].done) is not None:
            ended = self._waiting.popleft()
            yield ended.step, done, ended.service_class

    def clear(self) -> None:
        self._waiting.clear()

    def added_to(self, held: Lengths) -> Lengths:
        """The lengths of the rows once all of them have ended."""
        for waiting in self._waiting:
            held = added(held, waiting.step.counts)
        return held

    def validate(self, epoch: int, next_seq: int) -> None:
        """Raises AssertionError if they are not the last steps before `next_seq`; for tests."""
        seqs = [waiting.step.seq for waiting in self._waiting]
        assert seqs == list(range(next_seq - len(seqs), next_seq))
        assert all(waiting.step.epoch == epoch for waiting in self._waiting)

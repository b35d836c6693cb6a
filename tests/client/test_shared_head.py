import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from swarm.client.shared_head import MAX_TOKENS, SharedHead

HEAD = nn.Linear(8, 11).requires_grad_(False)
PATIENCE_S = 30


class Gate:
    """A head that can be held in the middle of a call; counts the tokens of each call."""

    def __init__(self, fault: Callable[[int], Exception | None] = lambda tokens: None) -> None:
        self.calls: list[int] = []
        self.entered = threading.Semaphore(0)
        self.free = threading.Event()
        self.free.set()
        self._fault = fault

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls.append(hidden[..., 0].numel())
        self.entered.release()
        assert self.free.wait(PATIENCE_S)
        fault = self._fault(self.calls[-1])
        if fault is not None:
            raise fault
        return HEAD(hidden)


def _wait_for_company(head: SharedHead, waiting: int) -> None:
    for _ in range(1000):
        if len(head._waiting) == waiting:
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"{len(head._waiting)} wait, not {waiting}")


def _together(gate: Gate, inputs: list[torch.Tensor]) -> list[torch.Tensor | Exception]:
    """The first input alone, all others while its call is held."""
    head = SharedHead(gate)
    answers: dict[int, torch.Tensor | Exception] = {}

    def ask(index: int) -> None:
        with torch.no_grad(), torch.inference_mode(index % 2 == 1):
            try:
                answers[index] = head(inputs[index])
            except ValueError as error:
                answers[index] = error

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(inputs))]
    gate.free.clear()
    threads[0].start()
    assert gate.entered.acquire(timeout=PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    _wait_for_company(head, len(inputs) - 1)
    gate.free.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not head._busy and not head._waiting
    return [answers[index] for index in range(len(inputs))]


def test_who_waits_is_computed_together() -> None:
    gate = Gate()
    inputs = [torch.randn(1, 1 + index % 3, 8) for index in range(7)]
    answers = _together(gate, inputs)
    assert gate.calls == [1, sum(part.shape[1] for part in inputs[1:])]
    for mine, found in zip(inputs, answers, strict=True):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, HEAD(mine))
    # Out of another's inference mode, and of no common memory: everybody may write to theirs.
    assert isinstance(answers[2], torch.Tensor)
    answers[2].zero_()
    torch.testing.assert_close(answers[4], HEAD(inputs[4]))


def test_after_a_common_failure_each_computes_alone() -> None:
    gate = Gate(lambda tokens: RuntimeError("too large") if tokens > 1 else None)
    inputs = [torch.randn(1, 1, 8) for _ in range(4)]
    for mine, found in zip(inputs, _together(gate, inputs), strict=True):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, HEAD(mine))


def test_an_error_is_the_callers_own() -> None:
    head = SharedHead(Gate(lambda tokens: ValueError("broken")))
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            head(torch.randn(1, 1, 8))


def test_long_inputs_and_gradients_go_alone() -> None:
    gate = Gate()
    head = SharedHead(gate)
    head(torch.randn(1, MAX_TOKENS + 1, 8))
    head(torch.randn(1, 2, 8, requires_grad=True)).sum().backward()
    assert gate.calls == [MAX_TOKENS + 1, 2]
    assert not head._busy


class Interrupted(BaseException):
    pass


def test_whoever_leaves_while_waiting_holds_nobody_up() -> None:
    gate = Gate()
    head = SharedHead(gate)
    answers: list[torch.Tensor] = []
    gate.free.clear()
    first = threading.Thread(target=lambda: answers.append(head(torch.randn(1, 1, 8))))
    first.start()
    assert gate.entered.acquire(timeout=PATIENCE_S)
    wait = threading.Event.wait

    def interrupted(event: threading.Event, timeout: float | None = None) -> bool:
        if threading.current_thread() is leaver and timeout is None:
            wait(event)  # its turn comes, and in that moment it is interrupted
            raise Interrupted
        return wait(event, timeout)

    def leave() -> None:
        with pytest.raises(Interrupted):
            head(torch.randn(1, 1, 8))

    leaver = threading.Thread(target=leave)
    last = threading.Thread(target=lambda: answers.append(head(torch.randn(1, 1, 8))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Event, "wait", interrupted)
        leaver.start()
        _wait_for_company(head, 1)
        last.start()
        _wait_for_company(head, 2)
        gate.free.set()
        for thread in (first, leaver, last):
            thread.join(PATIENCE_S)
    assert len(answers) == 2
    assert not head._busy and not head._waiting


class InterruptingLock:
    """Whoever lets go of it for the n-th time is interrupted in that moment."""

    def __init__(self, times: int) -> None:
        self._lock, self._left = threading.Lock(), times

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()
        self._left -= 1
        if not self._left:
            raise Interrupted


@pytest.mark.parametrize("times", [1, 2, 3])
def test_whoever_is_interrupted_between_two_lines_holds_nobody_up(times: int) -> None:
    head, answers = SharedHead(Gate()), []
    head._lock = InterruptingLock(times)  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        head(torch.randn(1, 1, 8))
    another = threading.Thread(target=lambda: answers.append(head(torch.randn(1, 1, 8))))
    another.daemon = True
    another.start()
    another.join(PATIENCE_S)
    assert len(answers) == 1
    assert not head._busy and not head._waiting

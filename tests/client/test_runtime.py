"""The background loop: from any thread, inside another loop, from finalizers, after a fork."""

import asyncio
import contextlib
import gc
import os
import queue
import subprocess
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from swarm.client.runtime import Runtime, runtime
from swarm.errors import SwarmError


@pytest.fixture
def loop():
    one = Runtime()
    yield one
    one.stop()


async def double(number):
    await asyncio.sleep(0)
    return 2 * number


def test_one_runtime_for_all_threads():
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: runtime(), range(8)))
    assert found == {runtime()}


def test_work_from_several_threads(loop):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: loop.run(double(n)), range(20))) == list(range(0, 40, 2))


def test_inside_a_running_loop(loop):
    async def cell():
        return loop.run(double(21))

    assert asyncio.run(cell()) == 42


def test_errors_come_through(loop):
    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        loop.run(fail())


def test_too_late_is_cancelled(loop):
    cancelled = threading.Event()

    async def endless():
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    with pytest.raises(TimeoutError):
        loop.run(endless(), 0.05)
    assert cancelled.wait(10)


@pytest.fixture
def interrupted(monkeypatch):
    """Whoever waits for the loop is interrupted when what it waits for is there."""

    def result(future, timeout=None):
        done, _ = wait([future], 30)
        assert done
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", result)
    yield
    monkeypatch.undo()


def test_what_nobody_waits_for_any_more_is_given_back(loop, interrupted):
    given_back = queue.SimpleQueue()
    with pytest.raises(KeyboardInterrupt):
        loop.run(double(21), discard=given_back.put)
    assert given_back.get(timeout=10) == 42


def test_work_that_is_cancelled_before_it_begins_says_nothing(loop, recwarn):
    begun, go_on = threading.Event(), threading.Event()

    def hold():
        begun.set()
        go_on.wait(10)

    loop.call_soon(hold)
    assert begun.wait(10)
    with pytest.raises(TimeoutError):
        loop.run(double(21), 0.01)
    go_on.set()
    assert loop.run(double(1)) == 2
    gc.collect()
    assert not recwarn.list


def test_what_was_made_although_it_was_cancelled_is_given_back(loop):
    given_back = queue.SimpleQueue()

    async def stubborn():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)
        return "made"

    with pytest.raises(TimeoutError):
        loop.run(stubborn(), 0.05, discard=given_back.put)
    assert given_back.get(timeout=10) == "made"


def test_what_somebody_takes_is_not_given_back(loop):
    given_back = []
    assert loop.run(double(1), discard=given_back.append) == 2
    with pytest.raises(SwarmError, match="itself"):
        loop.run(nested_in(loop), discard=given_back.append)
    assert given_back == []


async def nested_in(loop):
    return loop.run(double(1))


def test_the_loop_does_not_wait_for_itself(loop):
    with pytest.raises(SwarmError, match="itself"):
        loop.run(nested_in(loop))


def test_a_finalizer_in_the_loops_own_thread(loop):
    """As when the garbage collector runs there: it must not wait for the loop."""
    freed = threading.Event()

    class Session:
        pass

    async def collect_here():
        session = Session()
        session.itself = session
        weakref.finalize(session, loop.call_soon, freed.set)
        del session
        gc.collect()

    loop.run(collect_here(), 10)
    assert freed.wait(10)


def test_stop_closes_what_is_open():
    one, closed = Runtime(), []

    async def close(name):
        closed.append(name)

    one.close_at_exit("a", lambda: close("a"), 10)
    one.close_at_exit("b", lambda: close("b"), 10)
    one.forget("b")
    one.stop()
    one.stop()
    assert closed == ["a"]
    one.call_soon(closed.append, "too late")
    assert closed == ["a"]


PROGRAM = """
import asyncio, atexit, os, sys
from swarm.client.runtime import runtime
async def number(): return 7
{}
"""


def run_program(text, timeout_s=60):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(text)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_fork_makes_its_own():
    done = run_program(
        """
mine = runtime()
assert mine.run(number()) == 7
pid = os.fork()
if pid == 0:
    assert runtime() is not mine
    assert runtime().run(number(), 20) == 7
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert mine.run(number()) == 7
print("fine")
"""
    )
    assert done.stdout == "fine\n", done.stderr


def test_the_end_of_the_program_says_goodbye_and_does_not_hang():
    done = run_program(
        """
async def endless():
    print("closing", flush=True)
    await asyncio.sleep(3600)
runtime().close_at_exit("never", endless, 0.2)
runtime().run(number())
"""
    )
    assert done.stdout == "closing\n"
    assert done.returncode == 0
    assert "too slow" in done.stderr

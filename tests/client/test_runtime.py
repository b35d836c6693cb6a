"""The background loop: from any thread, inside another loop, from finalizers, after a fork."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

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


def test_the_loop_does_not_wait_for_itself(loop):
    async def nested():
        return loop.run(double(1))

    with pytest.raises(SwarmError, match="itself"):
        loop.run(nested())


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

    one.close_at_exit("a", lambda: close("a"))
    one.close_at_exit("b", lambda: close("b"))
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
import swarm.client.runtime as module
module.EXIT_DEADLINE_S = 0.2
runtime().close_at_exit("never", endless)
runtime().run(number())
"""
    )
    assert done.stdout == "closing\n"
    assert done.returncode == 0
    assert "too slow" in done.stderr

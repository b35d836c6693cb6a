"""What all tests share: one thread a process, a home of their own, real servers, no leftovers."""

import gc
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler.loadfile import LoadFileScheduling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from swarm.testing import LocalSwarm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
from processes import (
    Program,
    ServerProgram,
    StartServer,
    interrupt_on_sigterm,
    running_servers,
)

# Nothing of what the tests import is garbage: see `pytest_collection_finish`.
gc.disable()
# Before anything imports torch or looks for the user's folders.
_RUN = uuid.uuid4().hex
_HOME = tempfile.TemporaryDirectory(prefix="swarm-tests-")
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HOME=_HOME.name,
    XDG_DATA_HOME=f"{_HOME.name}/data",
    XDG_CACHE_HOME=f"{_HOME.name}/cache",
    XDG_CONFIG_HOME=f"{_HOME.name}/config",
    SWARM_TEST_RUN=_RUN,
)
# A shell that runs us in the background has SIGINT ignored, and the programs that tests interrupt
# would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Time decides no test: a slow machine makes no example fail, and a failing one can be repeated.
settings.register_profile(
    "swarm",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("swarm")


class FilesOfOneSwarm(LoadFileScheduling):
    """A file's tests stay with one worker, and so do all files that share `three_servers`."""

    def _split_scope(self, nodeid: str) -> str:
        return _scope_of_file(self.config.rootpath / super()._split_scope(nodeid))


@cache
def _scope_of_file(path: Path) -> str:
    return "three_servers" if "three_servers" in path.read_text("utf-8") else str(path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return FilesOfOneSwarm(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    # The collector need not go through a million objects of torch and transformers again and again.
    gc.freeze()
    gc.enable()


def pytest_sessionstart() -> None:
    # Whoever ends the run early still gets fixtures that clean up.
    interrupt_on_sigterm()


def _processes_of_this_run() -> list[psutil.Process]:
    """Every other process that inherited our environment, also one whose parent is gone."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("SWARM_TEST_RUN") == _RUN:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run if a process is left when all fixtures are gone, and ends it."""
    deadline = time.monotonic() + 10
    left = _processes_of_this_run()
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _processes_of_this_run()
    lines = []
    for process in left:
        try:
            lines.append(f"  pid {process.pid}: {' '.join(process.cmdline())[:200]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if lines:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("\nprocesses left behind by the tests:", red=True)
            reporter.write_line("\n".join(lines), red=True)


def pytest_unconfigure() -> None:
    _HOME.cleanup()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts real `swarm-server` processes on loopback and ends them after the test.

    `start_server("0:10", peers=[address], model=None, options=["--cache-tokens", "512"])` returns
    at once; `.address()` and `.wait_online()` wait.
    """
    with ExitStack() as stack:

        def start(
            blocks: str | None = None,
            *,
            model: str | None = None,
            peers: tuple[str, ...] | list[str] = (),
            options: tuple[str, ...] | list[str] = (),
        ) -> ServerProgram:
            server = ServerProgram(blocks=blocks, model=model, peers=peers, options=options)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def start_program() -> Iterator[Callable[[str, list[str]], Program]]:
    """Starts any program that writes JSON lines, `start_program(name, command)`; ended likewise."""
    with ExitStack() as stack:
        yield lambda name, command: stack.enter_context(Program(name, command))


@pytest.fixture(scope="session")
def three_servers() -> Iterator[list[ServerProgram]]:
    """The embedded model over three real servers, `0:10`, `10:20`, `20:30`; shared by all tests.

    A test that stops one of them, or fills its cache for good, starts its own.
    """
    with running_servers(["0:10", "10:20", "20:30"]) as servers:
        yield servers


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 4 blocks and 96 tokens."""
    from tiny_models import save_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tiny("llama", folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of 2 blocks that can be talked with, and its tokenizer."""
    from tiny_chat import save_chat_model

    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    save_chat_model(folder)
    return folder


@pytest.fixture(scope="module")
def chat_swarm(chat_folder: Path) -> Iterator["LocalSwarm"]:
    """Two servers of `chat_folder`'s model, and what else is in memory only."""
    from swarm.testing import LocalSwarm

    with LocalSwarm(chat_folder, "0:1", "1:2") as swarm:
        yield swarm


@pytest.fixture(scope="module")
def chat_plain(chat_folder: Path) -> "PreTrainedModel":
    """The same model in plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(chat_folder, dtype=torch.float32).eval()

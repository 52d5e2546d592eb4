"""What every test process needs."""

import gc
import os
import signal
import sys
from collections.abc import Iterator

import pytest
import structlog

# Whoever runs the suite in the background of a shell has SIGINT ignored, and every child would inherit that: those that
# are to be interrupted could not be.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Bytecode is kept, whatever the environment says: else each of a thousand processes compiles anew what was changed.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# As in the daemons: hardly anything is garbage in circles, and looking for it often takes a tenth of the time.
gc.set_threshold(10_000, 20, 20)

# Tracebacks of simulated crashes are not drawn as pictures, which would cost more than the tests themselves.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection needs to look at it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _warm_starts() -> Iterator[None]:
    """Programs that labs run start quickly; see `tests.warm`."""
    if "channeld.lab.processes" not in sys.modules or not sys.platform.startswith("linux"):
        yield  # no test that was collected has a lab, or there is nothing to start them so with
        return
    from tests.warm import warm_starts

    with warm_starts():
        yield


@pytest.fixture
def cold_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs start as they do for users."""
    from channeld.lab.processes import ManagedProcess, spawn_program

    monkeypatch.setattr(ManagedProcess, "spawn", staticmethod(spawn_program))

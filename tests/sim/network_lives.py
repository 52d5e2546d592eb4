"""What dies in the simulated world (kill -9, between any two lines) and starts again on the same disk."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, ClassVar

from tests.sim.network_chain import SimSource
from tests.sim.network_loop import Life
from tests.sim.network_store import Database, SimStore

if TYPE_CHECKING:
    from tests.sim.network_world import World


class Mortal(ABC):
    """A process through all its lives. `title` is its lives' name."""

    CRASHED_AT_COMMIT: ClassVar[str]
    """How the world counts that."""

    def __init__(self, world: World, title: str, database: Database) -> None:
        self.world = world
        self.title = title
        self.database = database
        self.life = Life(title)
        self.life.end()
        self.store: SimStore
        self.source: SimSource
        self.stays_down = False
        self.crashes = 0
        self._has_store = False

    def start(self) -> None:
        """A new life begins."""
        assert not self.life.alive
        self.life = Life(self.title)
        self.stays_down = self._has_store = False
        self._forget()
        self.spawn(self._start())

    @abstractmethod
    def _forget(self) -> None:
        """What the last life had in memory is gone."""

    @abstractmethod
    async def _start(self) -> None:
        """As the process starts."""

    def _open_store(self) -> None:
        self.store = SimStore(self.database, self.life, self.world.luck, self._crash_at_commit)
        self._has_store = True

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this life. Where errors are expected the coroutine deals with them: any other is a problem."""
        task = self.world.loop.create_task(coroutine, context=self.life.context)
        task.add_done_callback(self._ended, context=self.life.context)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.world.problem(f"{self.title}: {type(error).__name__}: {error}")

    def crash(self) -> None:
        """kill -9, right here. It is started again after a while, unless it has to stay down."""
        if not self.life.alive:
            return
        self.life.end()
        self.crashes += 1
        if self._has_store:
            self.store.release()
        self._died()

    @abstractmethod
    def _died(self) -> None:
        """What the world sees of that."""

    def _crash_at_commit(self) -> None:
        self.world.done[self.CRASHED_AT_COMMIT] += 1
        self.crash()


__all__ = ["Mortal"]

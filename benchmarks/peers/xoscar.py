"""Xoscar: actors in pools, each a process with an event loop. The one here asks, the one in the other answers."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import xoscar

from benchmarks.contest import require
from benchmarks.peers.actors import asked, messages, spawned, spawns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from benchmarks.contest import Figures, Measure, Scale


class Counter(xoscar.Actor):
    """Found by its name in the other process."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def add(self, number: int) -> None:
        """Count."""
        self._count += number

    def how_many(self) -> int:
        """Tell the count."""
        return self._count


@asynccontextmanager
async def _other_process() -> AsyncIterator[str]:
    """Start a pool of one process beside this one, and give its address."""
    pool = await xoscar.create_actor_pool("127.0.0.1:0", n_process=1)
    async with pool:
        [address] = pool.sub_processes
        yield address


async def _counting(address: str) -> Any:
    """Return an actor that has answered once."""
    actor = await xoscar.create_actor(Counter, address=address)
    first = await actor.how_many()
    require(first == 0, f"an actor that was told nothing has counted {first}")
    return actor


async def _ask(scale: Scale) -> Figures:
    times = []
    async with _other_process() as address:
        actor = await _counting(address)
        for _ in range(scale.publishes):
            begin = time.perf_counter()
            await actor.how_many()
            times.append(time.perf_counter() - begin)
    return asked(times)


async def _tell(scale: Scale) -> Figures:
    count = messages(scale)
    async with _other_process() as address:
        actor = await _counting(address)
        begin = time.perf_counter()
        for _ in range(count):
            await actor.add.tell(1)
        handled = await actor.how_many()
        end = time.perf_counter()
    require(handled == count, f"of {count} messages {handled} were handled")
    return {"messages/s": count / (end - begin)}


async def _spawn(scale: Scale) -> Figures:
    times = []
    async with _other_process() as address:
        for _ in range(spawns(scale)):
            begin = time.perf_counter()
            actor = await _counting(address)
            times.append(time.perf_counter() - begin)
            await xoscar.destroy_actor(actor)
    return spawned(times)


def ask(folder: Path, scale: Scale) -> Figures:
    """Await an answer from the other process."""
    del folder
    return asyncio.run(_ask(scale))


def tell(folder: Path, scale: Scale) -> Figures:
    """Send without an answer, until the last one was handled."""
    del folder
    return asyncio.run(_tell(scale))


def spawn(folder: Path, scale: Scale) -> Figures:
    """Create an actor in a process that runs already."""
    del folder
    return asyncio.run(_spawn(scale))


ROWS: dict[str, Measure] = {"ask": ask, "tell": tell, "spawn": spawn}

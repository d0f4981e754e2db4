"""How a library of actors is measured: an actor counts what it is told, and answers with the count when asked."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks.contest import Figures, Scale, latencies, require, timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

MORE = 1
HOW_MANY = "how many?"
MAX_MESSAGES = 20_000
TIMEOUT = 120.0


class Actors(ABC):
    """A running system of actors of somebody else."""

    @abstractmethod
    def spawn(self) -> Any:
        """Start a counting actor, and return its address."""

    @abstractmethod
    def tell(self, actor: Any, message: object) -> None:
        """Send, and do not wait."""

    @abstractmethod
    def ask(self, actor: Any, message: object) -> Any:
        """Send, and wait for the answer."""

    @abstractmethod
    def stop(self, actor: Any) -> None:
        """Have the actor end."""


type OpenActors = Callable[[Path], AbstractContextManager[Actors]]


def ask(open_actors: OpenActors, folder: Path, scale: Scale) -> Figures:
    """Send a short string, and receive a number."""
    with open_actors(folder) as actors, _counting(actors) as actor:
        times = timed(lambda: actors.ask(actor, HOW_MANY), scale.publishes)
    return asked(times)


def tell(open_actors: OpenActors, folder: Path, scale: Scale) -> Figures:
    """Send numbers, until the last one was handled."""
    count = messages(scale)
    with open_actors(folder) as actors, _counting(actors) as actor:
        begin = time.perf_counter()
        for _ in range(count):
            actors.tell(actor, MORE)
        handled = actors.ask(actor, HOW_MANY)
        end = time.perf_counter()
    require(handled == count, f"of {count} messages {handled} were handled")
    return {"messages/s": count / (end - begin)}


def spawn(open_actors: OpenActors, folder: Path, scale: Scale) -> Figures:
    """Start an actor, and have it answer."""
    times = []
    with open_actors(folder) as actors:
        for _ in range(spawns(scale)):
            begin = time.perf_counter()
            with _counting(actors):
                times.append(time.perf_counter() - begin)
    return spawned(times)


ROWS: dict[str, Callable[[OpenActors, Path, Scale], Figures]] = {"ask": ask, "tell": tell, "spawn": spawn}


def messages(scale: Scale) -> int:
    """Return how many are told."""
    return min(scale.tasks, MAX_MESSAGES)


def spawns(scale: Scale) -> int:
    """Return how many actors are started, one after the other."""
    return max(scale.publishes // 10, 1)


def asked(times: list[float]) -> Figures:
    """Return the figures of `ask`."""
    return {"p50 ms": latencies(times)["p50 ms"], "asks/s": len(times) / sum(times)}


def spawned(times: list[float]) -> Figures:
    """Return the figure of `spawn`."""
    return {"p50 ms": latencies(times)["p50 ms"]}


@contextmanager
def _counting(actors: Actors) -> Iterator[Any]:
    """Give an actor that has answered once."""
    actor = actors.spawn()
    first = actors.ask(actor, HOW_MANY)
    require(first == 0, f"an actor that was told nothing has counted {first}")
    try:
        yield actor
    finally:
        actors.stop(actor)

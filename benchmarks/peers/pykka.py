"""Pykka: an actor is a thread."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pykka

from benchmarks.peers.actors import HOW_MANY, TIMEOUT, Actors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class _Counter(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def on_receive(self, message: object) -> int:
        if message != HOW_MANY:
            self._count += 1
        return self._count


class PykkaActors(Actors):
    """All in this process."""

    def spawn(self) -> Any:
        """Start a thread."""
        return _Counter.start()

    def tell(self, actor: Any, message: object) -> None:
        """Put it into the actor's queue."""
        actor.tell(message)

    def ask(self, actor: Any, message: object) -> Any:
        """Wait for the future."""
        return actor.ask(message, timeout=TIMEOUT)

    def stop(self, actor: Any) -> None:
        """Wait until the thread is at its end."""
        actor.stop(timeout=TIMEOUT)


@contextmanager
def pykka_actors(folder: Path) -> Iterator[Actors]:
    """Nothing has to be started."""
    del folder
    try:
        yield PykkaActors()
    finally:
        pykka.ActorRegistry.stop_all(timeout=TIMEOUT)

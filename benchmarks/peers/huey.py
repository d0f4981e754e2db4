"""huey with its SqliteStorage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huey import SqliteHuey

from benchmarks.peers.common import TakingQueue, handle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task


class Huey(TakingQueue):
    """Tasks leave the table when they are taken, and there is no acknowledgement: `take` is the durable one."""

    share = 20

    def __init__(self, address: str) -> None:
        """Register the handler."""
        self._huey = SqliteHuey(filename=address, fsync=True, results=False, timeout=60)
        self._handle = self._huey.task()(handle)

    def publish(self, task: Task) -> None:
        """Commit one."""
        self._handle(task)

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Commit one after the other: there is no other way."""
        for task in tasks:
            self._handle(task)

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Remove the next one, as its consumer does."""
        message = self._huey.dequeue()
        return () if message is None else [(message, message.args[0])]

    def ack(self, receipts: Sequence[Any]) -> None:
        """There is nothing to tell it."""

    def size(self) -> int:
        """Count."""
        return int(self._huey.pending_count())

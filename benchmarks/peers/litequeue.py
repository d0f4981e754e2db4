"""litequeue, with the one pragma changed that makes a commit wait for the disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from litequeue import LiteQueue

from benchmarks.peers.common import TakingQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task


class Litequeue(TakingQueue):
    """A table of SQLite in one file."""

    share = 20

    def __init__(self, address: str) -> None:
        """It sets NORMAL itself, with which a commit survives the death of a process, but no loss of power."""
        self._queue = LiteQueue(address, timeout=60)
        self._queue.conn.execute("PRAGMA synchronous = FULL")

    def publish(self, task: Task) -> None:
        """Commit one."""
        self._queue.put(orjson.dumps(task).decode())

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Commit all at once."""
        with self._queue.transaction():
            for task in tasks:
                self._queue.put(orjson.dumps(task).decode())

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Lock the next one."""
        message = self._queue.pop()
        return () if message is None else [(message, orjson.loads(message.data))]

    def ack(self, receipts: Sequence[Any]) -> None:
        """Mark them as done."""
        for message in receipts:
            self._queue.done(message.message_id, claim_id=message.claim_id)

    def size(self) -> int:
        """Count."""
        return int(self._queue.ready_count())

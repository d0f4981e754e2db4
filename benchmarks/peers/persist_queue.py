"""persist-queue: its SQLiteAckQueue, as the queues of it that write files do not sync every task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from persistqueue import Empty, SQLiteAckQueue

from benchmarks.peers.common import TakingQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task

FINISHED_ROWS = 1000
"""After how many the finished ones are cleared away, since `get` looks at all of them."""


class PersistQueue(TakingQueue):
    """A table of SQLite in a folder."""

    share = 20
    workers = 1  # `get` selects and then marks, in two transactions: two processes get the same task.

    def __init__(self, address: str) -> None:
        """Open it as one of several processes."""
        self._queue = SQLiteAckQueue(address, auto_resume=False, timeout=60)
        self._finished = 0

    def publish(self, task: Task) -> None:
        """Commit one."""
        self._queue.put(task)

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Commit one after the other: there is no other way."""
        for task in tasks:
            self._queue.put(task)

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Mark the next one as taken. To wait for another process is not possible."""
        try:
            item = self._queue.get(block=False, raw=True)
        except Empty:
            return ()
        return [(item["pqid"], item["data"])]

    def ack(self, receipts: Sequence[Any]) -> None:
        """Mark them as finished."""
        for receipt in receipts:
            self._queue.ack(id=receipt)
            self._finished += 1
        if self._finished >= FINISHED_ROWS:
            self._queue.clear_acked_data(max_delete=FINISHED_ROWS, keep_latest=0)
            self._finished = 0

    def size(self) -> int:
        """Count anew: what it keeps in memory knows this process only."""
        return int(SQLiteAckQueue(self._queue.path, auto_resume=False, timeout=60).qsize())

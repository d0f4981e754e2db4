"""diskcache: its Deque."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diskcache import Cache, Deque

from benchmarks.peers.common import TakingQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task


class Diskcache(TakingQueue):
    """Items leave the table when they are taken, and there is no acknowledgement: `take` is the durable one."""

    share = 20

    def __init__(self, address: str) -> None:
        """Have commits wait for the disk: 2 is FULL."""
        cache = Cache(address, eviction_policy="none", sqlite_synchronous=2, timeout=60)
        self._deque = Deque.fromcache(cache)

    def publish(self, task: Task) -> None:
        """Commit one."""
        self._deque.append(task)

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Commit all at once."""
        with self._deque.transact():
            self._deque.extend(tasks)

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Remove the next one."""
        try:
            return [(None, self._deque.popleft())]
        except IndexError:
            return ()

    def ack(self, receipts: Sequence[Any]) -> None:
        """There is nothing to tell it."""

    def size(self) -> int:
        """Count."""
        return len(self._deque)

"""beanstalkd, by greenstalk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import greenstalk
import orjson

from benchmarks.peers.common import TakingQueue
from benchmarks.peers.servers import beanstalkd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task

WAIT_SECONDS = 1
"""The shortest wait there is."""


class Beanstalkd(TakingQueue):
    """The tube `default`."""

    share = 20
    serve = staticmethod(beanstalkd)

    def __init__(self, address: str) -> None:
        """Connect."""
        self._client = greenstalk.Client(address, encoding=None)

    def publish(self, task: Task) -> None:
        """Put one."""
        self._client.put(orjson.dumps(task))

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Put one after the other: there is no other way."""
        for task in tasks:
            self._client.put(orjson.dumps(task))

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Reserve the next one, and wait a little for it."""
        try:
            job = self._client.reserve(timeout=WAIT_SECONDS)
        except greenstalk.TimedOutError:
            return ()
        return [(job, orjson.loads(job.body))]

    def ack(self, receipts: Sequence[Any]) -> None:
        """Delete them."""
        for job in receipts:
            self._client.delete(job)

    def size(self) -> int:
        """Count."""
        return int(self._client.stats_tube("default")["current-jobs-ready"])

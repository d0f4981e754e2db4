"""Dramatiq with its RedisBroker and one worker thread in each process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from redis import Redis

from benchmarks.peers.common import RESULT_TIMEOUT, PeerQueue, handle
from benchmarks.peers.servers import redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.synchronize import Event

    from benchmarks.peers.common import Task

QUEUE = "tasks"


class Dramatiq(PeerQueue):
    """A list in Redis, and a set for each worker of what it has not acknowledged."""

    share = 20
    serve = staticmethod(redis_server)

    def __init__(self, address: str) -> None:
        """Connect, with the usual middleware and a watch."""
        self._watch = _Watch()
        self._broker = RedisBroker(client=Redis(unix_socket_path=address))
        self._broker.add_middleware(self._watch)
        self._actor = dramatiq.actor(handle, broker=self._broker, queue_name=QUEUE, max_retries=0)

    def publish(self, task: Task) -> None:
        """Send one."""
        self._actor.send(task)

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Send one after the other: its groups do so, too."""
        for task in tasks:
            self._actor.send(task)

    def size(self) -> int:
        """Count, those included that were not acknowledged."""
        return int(self._broker.do_qsize(QUEUE))

    def work(self, ready: Callable[[], None], all_published: Event) -> float:
        """Have its worker run until the queue is empty."""
        ready()
        worker = dramatiq.Worker(self._broker, queues={QUEUE}, worker_threads=1)
        worker.start()
        all_published.wait()
        self._broker.join(QUEUE, timeout=int(RESULT_TIMEOUT * 1000))
        worker.stop()
        return self._watch.acknowledged


class _Watch(dramatiq.Middleware):
    """Knows when the last acknowledgement was answered."""

    acknowledged = 0.0

    def after_ack(self, broker: Any, message: Any) -> None:
        del broker, message
        self.acknowledged = time.monotonic()

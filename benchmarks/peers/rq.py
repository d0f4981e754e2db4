"""RQ with its SimpleWorker, which runs jobs in its own process: the default one forks for each."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from redis import Redis
from rq import Queue, SimpleWorker

from benchmarks.peers.common import PeerQueue, handle
from benchmarks.peers.servers import redis_server

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from multiprocessing.synchronize import Event

    from benchmarks.peers.common import Task


class Rq(PeerQueue):
    """A list in Redis, and a hash for each job."""

    share = 100
    serve = staticmethod(redis_server)

    def __init__(self, address: str) -> None:
        """Connect."""
        self._redis = Redis(unix_socket_path=address)
        self._queue = Queue("tasks", connection=self._redis)

    def publish(self, task: Task) -> None:
        """Enqueue one."""
        self._queue.enqueue(handle, task, result_ttl=0)

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Enqueue all in one pipeline."""
        self._queue.enqueue_many([Queue.prepare_data(handle, (task,), result_ttl=0) for task in tasks])

    def size(self) -> int:
        """Count."""
        return int(self._queue.count)

    def work(self, ready: Callable[[], None], all_published: Event) -> float:
        """Have its worker run until it comes upon the job that stops it: one for each worker, behind all others."""
        worker = _Worker([self._queue], connection=self._redis)

        def publish_the_end() -> None:
            all_published.wait()
            self._queue.enqueue(stop, result_ttl=0)

        threading.Thread(target=publish_the_end, daemon=True).start()
        ready()
        worker.work(logging_level="ERROR")
        return worker.acknowledged


class _Worker(SimpleWorker):
    """Knows when the last job was over, in Redis as well."""

    acknowledged = 0.0

    def perform_job(self, job: Any, *arguments: Any, **keywords: Any) -> bool:
        done = bool(super().perform_job(job, *arguments, **keywords))
        if job.func_name.endswith(handle.__name__):
            self.acknowledged = time.monotonic()
        return done


def stop() -> None:
    """Have the worker stop after this job: a signal is what it listens to."""
    os.kill(os.getpid(), signal.SIGTERM)

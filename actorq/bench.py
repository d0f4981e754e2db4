"""What a disk and a machine carry, measured in a few seconds on a queue of its own beside the one that is meant."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actorq.queue import Queue
from actorq.store.filesystem import REAL
from actorq.store.gauge import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from actorq.tasks.task import Task

CONSUMERS = 2
COMMIT_BYTES = 400
"""A commit of one task, about."""

FILE_BYTES = 1 << 20
"""What is written to lies in space that the file has already, as in a queue that is hosted."""

MOST_SAMPLES = 5000

LAST_TASKS = 500
"""Among so many at either end of a queue are the first that was begun and the last that was finished."""

SHORTEST_SECONDS = 0.001
"""What the file's times can tell apart."""

MEMORY = frozenset({"tmpfs", "ramfs"})
"""File systems where a sync does nothing, and a power cut takes all."""

PAYLOAD = {"path": "a/folder/of/pictures/summer.png", "width": 800, "height": 600, "note": "about 100 bytes of JSON"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure. Times are seconds for one; None where only many were timed together."""

    name: str
    title: str
    count: int
    per_second: float | None = None
    p50: float | None = None
    p99: float | None = None


class Bench:
    """Measures, one after the other, and says before each what it does."""

    def __init__(self, folder: Path, tasks: int, seconds: float, say: Callable[[str], None]) -> None:
        """`tasks`: how many at once; `seconds`: how long one after the other."""
        self.filesystem = REAL.kind(folder)
        self._folder = folder
        self._tasks = tasks
        self._seconds = seconds
        self._say = say

    def run(self) -> Iterator[Measure]:
        """Yield each figure once it is there. Whatever happens, nothing is left in the folder."""
        folder = self._folder / f".actorq-bench-{os.urandom(8).hex()}"
        try:
            folder.mkdir(mode=0o700)
            yield from self._run_in(folder)
        finally:
            if folder.exists():  # ^C may have come before it was made
                shutil.rmtree(folder)

    def _run_in(self, folder: Path) -> Iterator[Measure]:
        yield self._sync(folder / "bytes")
        queue = Queue(folder / "Queue.json", keep_done=None)
        queue.handler("nothing")(do_nothing)
        queue.handler("now")(tell_the_time)
        yield self._publish_one(queue, "publish_one", "publish one, no brokers")
        self._say("publishing for the drain")
        ids = queue.publish_many([PAYLOAD] * self._tasks, name="nothing")
        self._say("starting brokers and two consumers")
        with queue.running(CONSUMERS):
            yield self._drain(queue, ids)
            yield self._publish_one(queue, "publish_one_brokered", "publish one, through brokers")
            queue.join()
            yield self._latency(queue)
            yield from self._end_to_end(queue)
            self._say("stopping")

    def _sync(self, path: Path) -> Measure:
        self._say("writing and syncing")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.pwrite(fd, bytes(FILE_BYTES), 0)
            os.fsync(fd)
            data = b"x" * COMMIT_BYTES
            at = 0

            def write() -> None:
                nonlocal at
                os.pwrite(fd, data, at)
                os.fdatasync(fd)
                at = (at + COMMIT_BYTES) % (FILE_BYTES - COMMIT_BYTES)

            times = self._timed(write)
        finally:
            os.close(fd)
        return one_by_one("sync", f"write and fdatasync of {COMMIT_BYTES} bytes", times)

    def _publish_one(self, queue: Queue, name: str, title: str) -> Measure:
        self._say(title)
        return one_by_one(name, title, self._timed(lambda: queue.publish(PAYLOAD, name="nothing")))

    def _drain(self, queue: Queue, ids: list[str]) -> Measure:
        """By the file's own times: consumers begin as soon as they are there, and may be done before we look."""
        self._say("draining")
        queue.join()
        started = [task.started_at for task in map(queue.get, ids[:LAST_TASKS])]
        finished = [task.finished_at for task in map(queue.get, ids[-LAST_TASKS:])]
        elapsed = max(filter(None, finished)) - min(filter(None, started))
        return all_together("drain", "run by two consumers", len(ids), elapsed.total_seconds())

    def _latency(self, queue: Queue) -> Measure:
        """From before a publish until its handler runs, in a queue that is idle."""
        self._say("publish to start")
        sent: dict[str, float] = {}

        def publish() -> None:
            before = time.monotonic()
            sent[queue.publish(None, name="now")] = before
            queue.join()  # its consumer has reported, and is idle again

        self._timed(publish)
        weighed = [(float(queue.get(task_id).result) - before, 1) for task_id, before in sent.items()]
        p50, p99 = percentile(weighed, 0.5), percentile(weighed, 0.99)
        return Measure("publish_to_start", "publish to start, idle queue", len(sent), None, p50, p99)

    def _end_to_end(self, queue: Queue) -> Iterator[Measure]:
        self._say("end to end")
        with stopwatch() as elapsed:
            with stopwatch() as published:
                queue.publish_many([PAYLOAD] * self._tasks, name="nothing")
            queue.join()
        yield all_together("publish_many", "publish many, while they are run", self._tasks, published())
        yield all_together("end_to_end", "published and run by two consumers", self._tasks, elapsed())

    def _timed(self, call: Callable[[], object]) -> list[float]:
        """Call again and again for as long as was asked for; return how long each call took."""
        times: list[float] = []
        end = time.monotonic() + self._seconds
        now = time.monotonic()
        while not times or (now < end and len(times) < MOST_SAMPLES):
            call()
            before, now = now, time.monotonic()
            times.append(now - before)
        return times


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Return a function that tells, after the block, how long it took."""
    begin = time.monotonic()
    end = begin
    yield lambda: end - begin
    end = time.monotonic()


def one_by_one(name: str, title: str, times: list[float]) -> Measure:
    """Return the figure for calls that were made one after the other."""
    weighed = [(each, 1) for each in times]
    return Measure(
        name, title, len(times), len(times) / sum(times), percentile(weighed, 0.5), percentile(weighed, 0.99)
    )


def all_together(name: str, title: str, count: int, elapsed: float) -> Measure:
    """Return the figure for many at once."""
    return Measure(name, title, count, count / max(elapsed, SHORTEST_SECONDS))


# ---------------------------------------------------------------------------------------------------------------
# What the consumers run


def do_nothing(task: Task) -> None:
    """Cost as little as a handler can."""


def tell_the_time(task: Task) -> float:  # noqa: ARG001  # every handler gets one
    """Return when it was begun, by the clock that all processes of a machine share."""
    return time.monotonic()

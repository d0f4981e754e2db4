"""How a queue is measured that is not actorq.

A peer is a class that publishes, takes and acknowledges. Everything else stands here: the processes and their common
start, the clocks, and the proof that every task was run, and run once. A task carries its number where the payload
has "tries". CLOCK_MONOTONIC is the same for all processes of a machine, so that times of two of them can be compared.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from benchmarks.contest import PAYLOAD, BenchmarkError, Figures, Scale, Turns, at_rate, in_turns, latencies, require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from multiprocessing.connection import Connection
    from multiprocessing.synchronize import Barrier, Event
    from pathlib import Path

type Task = dict[str, Any]

SPAWN = multiprocessing.get_context("spawn")
PUBLISHERS = 8
WORKERS = 2
RATE = 100.0

POLL_SECONDS = 0.001
"""How long a worker sleeps that found nothing, where the library cannot wait for another process."""
START_TIMEOUT = 60.0
RESULT_TIMEOUT = 600.0
EXIT_TIMEOUT = 10.0


class PeerQueue(ABC):
    """A queue of somebody else, opened. Each process opens its own, with the same address."""

    share: ClassVar[int] = 1
    """By how much the number of tasks is divided for one that takes too long: the figures are rates."""
    workers: ClassVar[int] = WORKERS
    """Of `end_to_end`. One, where two would be given the same task."""

    @abstractmethod
    def __init__(self, address: str) -> None:
        """Open it, and make it if it is not there."""

    @abstractmethod
    def publish(self, task: Task) -> None:
        """Return once the task is on the disk."""

    @abstractmethod
    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Return once all of them are: in the fastest way that is documented."""

    @abstractmethod
    def size(self) -> int:
        """Return how many tasks are ready."""

    @abstractmethod
    def work(self, ready: Callable[[], None], all_published: Event) -> float:
        """Run all tasks with `handle`, and return when the last one was acknowledged (monotonic)."""

    @staticmethod
    def serve(folder: Path) -> AbstractContextManager[str]:
        """Start what serves it, and return the address. Most need no server: there it is a path."""
        return _path_in(folder)


class TakingQueue(PeerQueue):
    """A queue from which one takes, and which is told afterwards."""

    @abstractmethod
    def take(self) -> Sequence[tuple[Any, Task]]:
        """Return what to run next, each task with its receipt; nothing if there is none."""

    @abstractmethod
    def ack(self, receipts: Sequence[Any]) -> None:
        """Return once it is on the disk that these tasks have run."""

    def work(self, ready: Callable[[], None], all_published: Event) -> float:
        """Take, run, acknowledge, until nothing is left after the last was published."""
        acknowledged = 0.0
        last_look = False
        ready()
        while True:
            taken = self.take()
            if taken:
                for _, task in taken:
                    handle(task)
                self.ack([receipt for receipt, _ in taken])
                acknowledged = time.monotonic()
            elif last_look:
                return acknowledged
            else:
                # What was published before this was set is seen by the look after it.
                last_look = all_published.is_set()
                if not last_look:
                    time.sleep(POLL_SECONDS)


class Report(NamedTuple):
    """What one worker process has done."""

    begun: list[tuple[int, float]]
    """The number of each task that it ran, and when it began (monotonic)."""
    acknowledged: float


_begun: list[tuple[int, float]] = []


def handle(task: Task) -> None:
    """Do nothing, but remember which task it was and when. By name, as some libraries want their handlers."""
    _begun.append((task["tries"], time.monotonic()))


def numbered(count: int) -> list[Task]:
    """Return so many tasks, numbered from 0."""
    return [PAYLOAD | {"tries": number} for number in range(count)]


# The rows.


def publish_one(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Turns:
    """Publish one at a time."""
    with queue_type.serve(folder) as address:
        queue = queue_type(address)
        queue.publish(PAYLOAD)
        times = yield from in_turns(lambda: queue.publish(PAYLOAD), scale.publishes)
        _require_size(queue, scale.publishes + 1)
    return latencies(times)


def publish_8(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Figures:
    """Publish one at a time from eight processes."""
    tasks = numbered(scale.each_of_eight)
    with queue_type.serve(folder) as address:
        queue = queue_type(address)
        start = SPAWN.Barrier(PUBLISHERS)
        with _processes(_publish, [(queue_type, address, start, tasks)] * PUBLISHERS) as channels:
            spans = [_result_of(channel) for channel in channels]
        count = len(tasks) * PUBLISHERS
        _require_size(queue, count)
    begins, ends = zip(*spans, strict=True)
    return {"published/s": count / (max(ends) - min(begins))}


def publish_many(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Figures:
    """Publish in bulk."""
    tasks = numbered(scale.tasks // queue_type.share)
    with queue_type.serve(folder) as address:
        queue = queue_type(address)
        begin = time.monotonic()
        queue.publish_many(tasks)
        end = time.monotonic()
        _require_size(queue, len(tasks))
    return {"published/s": len(tasks) / (end - begin)}


def drain(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Figures:
    """Run what lies ready, in one process."""
    tasks = numbered(scale.tasks // queue_type.share)
    with queue_type.serve(folder) as address:
        queue = queue_type(address)
        queue.publish_many(tasks)
        with _workers(queue_type, address, 1) as finish:
            [report] = finish()
        _require_each_once(queue, [report], len(tasks))
    return {"tasks/s": len(tasks) / (report.acknowledged - min(began for _, began in report.begun))}


def end_to_end(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Figures:
    """Publish in bulk while the workers run."""
    tasks = numbered(scale.tasks // queue_type.share)
    with queue_type.serve(folder) as address:
        queue = queue_type(address)
        with _workers(queue_type, address, queue_type.workers) as finish:
            begin = time.monotonic()
            queue.publish_many(tasks)
            reports = finish()
        _require_each_once(queue, reports, len(tasks))
    return {"tasks/s": len(tasks) / (max(report.acknowledged for report in reports) - begin)}


def latency(queue_type: type[PeerQueue], folder: Path, scale: Scale) -> Figures:
    """From the call of publish to the start of the handler, in an idle worker."""
    published: list[float] = []
    with queue_type.serve(folder) as address:
        queue = queue_type(address)

        def publish_next() -> None:
            task = PAYLOAD | {"tries": len(published)}
            published.append(time.monotonic())
            queue.publish(task)

        with _workers(queue_type, address, 1) as finish:
            at_rate(publish_next, RATE, scale.seconds)
            [report] = finish()
        _require_each_once(queue, [report], len(published))
    return latencies((began - published[number] for number, began in report.begun), "100/s ")


ROWS: dict[str, Callable[[type[PeerQueue], Path, Scale], Figures | Turns]] = {
    "publish_one": publish_one,
    "publish_8": publish_8,
    "publish_many": publish_many,
    "drain": drain,
    "end_to_end": end_to_end,
    "latency": latency,
}


def _require_size(queue: PeerQueue, count: int) -> None:
    size = queue.size()
    require(size == count, f"{count} tasks were acknowledged, and {size} are there")


def _require_each_once(queue: PeerQueue, reports: list[Report], count: int) -> None:
    numbers = sorted(number for report in reports for number, _ in report.begun)
    require(
        numbers == list(range(count)), f"of {count} tasks {len(set(numbers))} were run, {len(numbers)} times in all"
    )
    _require_size(queue, 0)


# The processes.


def _publish(queue_type: type[PeerQueue], address: str, start: Barrier, tasks: list[Task]) -> tuple[float, float]:
    """Publish these tasks, one at a time, and return from when to when that was."""
    queue = queue_type(address)
    start.wait(START_TIMEOUT)
    begin = time.monotonic()
    for task in tasks:
        queue.publish(task)
    return begin, time.monotonic()


def _work(queue_type: type[PeerQueue], address: str, start: Barrier, all_published: Event) -> Report:
    """Run tasks until none is left."""

    def ready() -> None:
        start.wait(START_TIMEOUT)

    acknowledged = queue_type(address).work(ready, all_published)
    return Report(_begun, acknowledged)


@contextmanager
def _workers(queue_type: type[PeerQueue], address: str, count: int) -> Iterator[Callable[[], list[Report]]]:
    """Start workers, and give what is called after the last publish: it returns their reports."""
    start = SPAWN.Barrier(count + 1)
    all_published = SPAWN.Event()
    with _processes(_work, [(queue_type, address, start, all_published)] * count) as channels:

        def finish() -> list[Report]:
            all_published.set()
            return [_result_of(channel) for channel in channels]

        start.wait(START_TIMEOUT)
        yield finish


@contextmanager
def _processes(target: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Connection]]:
    """Run a function in processes, and give a channel for the result of each. None is left over afterwards."""
    processes, channels = [], []
    try:
        for each in arguments:
            here, there = SPAWN.Pipe(duplex=False)
            process = SPAWN.Process(target=_run, args=(there, target, each), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            channels.append(here)
        yield channels
        for process in processes:
            process.join(EXIT_TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(channel: Connection, target: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """What runs in each of them."""
    # ^C goes to all processes of the terminal; only the first one shall speak of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    channel.send(target(*arguments))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _result_of(channel: Connection) -> Any:
    require(channel.poll(RESULT_TIMEOUT), f"a process gave no result within {RESULT_TIMEOUT:.0f} s")
    try:
        return channel.recv()
    except EOFError:
        raise BenchmarkError("a process died; what it said stands above") from None


@contextmanager
def _path_in(folder: Path) -> Iterator[str]:
    yield str(folder / "queue")

"""What each benchmark does. Apart from the command, because handlers are imported by name in their consumers."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from actorq import Queue, Task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

END_TO_END_TASKS = 100_000
PUBLISH_ONE_TASKS = 1_000

PAYLOAD = {"path": "/var/data/images/2026/11/23/a-fairly-usual-name.png", "width": 640, "height": 480, "tries": 3}
"""About 100 bytes of JSON."""


def nothing(task: Task) -> None:
    """Run no code: what is measured is the queue."""
    del task


def disk(folder: Path) -> dict[str, float]:
    """Write and fdatasync 400 bytes again and again into room that the file has."""
    file = os.open(folder / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(file, b"\n" * (1 << 20), 0)
    os.fsync(file)
    times = []
    for number in range(PUBLISH_ONE_TASKS):
        begin = time.perf_counter()
        os.pwrite(file, b"x" * 400, number * 400)
        os.fdatasync(file)
        times.append(time.perf_counter() - begin)
    os.close(file)
    return {"p50 ms": statistics.median(times) * 1e3, "p99 ms": statistics.quantiles(times, n=100)[98] * 1e3}


def publish_one(folder: Path) -> dict[str, float]:
    """Publish one task at a time."""
    direct = Queue(folder / "direct.json")
    brokered = Queue(folder / "brokered.json")
    result = timed_publishes(direct, "direct")
    with brokered.running(0):
        result |= timed_publishes(brokered, "brokers")
    return result


def timed_publishes(queue: Queue, label: str) -> dict[str, float]:
    """Return the latency of publishing."""
    queue.publish(PAYLOAD)
    times = []
    for _ in range(PUBLISH_ONE_TASKS):
        begin = time.perf_counter()
        queue.publish(PAYLOAD)
        times.append(time.perf_counter() - begin)
    if queue.counts()["ready"] != PUBLISH_ONE_TASKS + 1:
        raise SystemExit("publish_one lost tasks")
    quantiles = statistics.quantiles(times, n=100)
    return {f"{label} p50 ms": quantiles[49] * 1e3, f"{label} p99 ms": quantiles[98] * 1e3}


def end_to_end(folder: Path) -> dict[str, float]:
    """Publish and run: tasks a second."""
    queue = Queue(folder / "end_to_end.json")
    with queue.running(2, handler=nothing):
        begin = time.perf_counter()
        queue.publish_many(PAYLOAD for _ in range(END_TO_END_TASKS))
        published = time.perf_counter()
        queue.join(timeout=120)
        done = time.perf_counter()
    if queue.counts()["done"] != END_TO_END_TASKS:
        raise SystemExit("end_to_end lost tasks")
    return {"published/s": END_TO_END_TASKS / (published - begin), "done/s": END_TO_END_TASKS / (done - begin)}


BENCHMARKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "disk": disk,
    "publish_one": publish_one,
    "end_to_end": end_to_end,
}

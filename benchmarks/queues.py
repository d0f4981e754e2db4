"""The rows that measure a queue: what publishing costs, what running costs, and how long a task waits.

Every figure is with durability="power", the default: an acknowledgement comes after its fdatasync. Each row counts what
was run, and has no figure if that is not exactly what was published.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, override

from actorq import Actor, ActorSystem, Queue, TaskIn
from actorq.attachments import attachment_of
from actorq.brokered_publisher import Publisher
from benchmarks import handlers
from benchmarks.contest import PAYLOAD, Figures, Scale, Turns, at_rate, in_turns, latencies, require

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.brokers.session import Brokers

PUBLISHERS = 8
JOIN_SECONDS = 600.0
SIZES = (20, 100, 1000, 10_000, 100_000)
"""Bytes of a payload, where sizes are mixed: each in one of so many cases as it is larger than the first."""


def publish_one_direct(folder: Path, scale: Scale) -> Turns:
    """Publish one task at a time while no broker runs."""
    queue = Queue(folder / "Queue.json")
    queue.publish(PAYLOAD)
    times = yield from in_turns(lambda: queue.publish(PAYLOAD), scale.publishes)
    require(queue.counts()["ready"] == scale.publishes + 1, "publish_one lost tasks")
    return latencies(times)


def publish_one(folder: Path, scale: Scale) -> Turns:
    """Publish one task at a time through running brokers."""
    queue = Queue(folder / "Queue.json")
    with queue.running(0):
        queue.publish(PAYLOAD)
        times = yield from in_turns(lambda: queue.publish(PAYLOAD), scale.publishes)
    require(queue.counts()["ready"] == scale.publishes + 1, "publish_one lost tasks")
    return latencies(times)


class PublisherInTurn(Actor):
    """Publishes so many tasks one after the other, and says when it was done."""

    def __init__(self, brokers: Brokers) -> None:
        self._publisher = Publisher(brokers)

    @override
    def receive(self, message: object) -> float:
        """Take how many."""
        assert isinstance(message, int)
        for _ in range(message):
            self._publisher.receive(TaskIn(PAYLOAD))
        return time.monotonic()

    @override
    def on_stop(self) -> None:
        self._publisher.on_stop()


def publish_8(folder: Path, scale: Scale) -> Figures:
    """Publish one task at a time from each of eight processes at once, through running brokers."""
    queue = Queue(folder / "Queue.json")
    each = scale.each_of_eight
    with queue.running(0):
        attachment = attachment_of(queue.path)
        assert attachment is not None
        with ActorSystem() as system:
            publishers = [system.spawn(PublisherInTurn, attachment.brokers) for _ in range(PUBLISHERS)]
            for publisher in publishers:
                publisher.ask(1, timeout=JOIN_SECONDS)
            begin = time.monotonic()
            asked = [publisher.ask_later(each) for publisher in publishers]
            end = max(answer.wait(JOIN_SECONDS) for answer in asked)
    require(queue.counts()["ready"] == (each + 1) * PUBLISHERS, "publish_8 lost tasks")
    return {"published/s": each * PUBLISHERS / (end - begin)}


def publish_many(folder: Path, scale: Scale) -> Figures:
    """Publish in bulk through running brokers; nobody runs anything meanwhile."""
    queue = Queue(folder / "Queue.json")
    with queue.running(0):
        queue.publish(PAYLOAD)
        begin = time.perf_counter()
        queue.publish_many(PAYLOAD for _ in range(scale.tasks))
        end = time.perf_counter()
    require(queue.counts()["ready"] == scale.tasks + 1, "publish_many lost tasks")
    return {"published/s": scale.tasks / (end - begin)}


def drain(folder: Path, scale: Scale) -> Figures:
    """Have one consumer run an empty handler on tasks that lie ready."""
    queue = Queue(folder / "Queue.json")
    ids = queue.publish_many(PAYLOAD for _ in range(scale.tasks))
    with queue.running(1, handler=handlers.nothing):
        queue.join(timeout=JOIN_SECONDS)
    require(queue.counts()["done"] == scale.tasks, "drain lost tasks")
    return {"tasks/s": scale.tasks / seconds_between(queue, ids[0], ids[-1])}


def seconds_between(queue: Queue, first: str, last: str) -> float:
    """Return the time from the start of one task to the end of another: starting a consumer is not in it."""
    begin, end = queue.get(first).started_at, queue.get(last).finished_at
    assert begin is not None
    assert end is not None
    return (end - begin).total_seconds()


def end_to_end(folder: Path, scale: Scale) -> Figures:
    """Publish in bulk while two consumers run an empty handler, from the first publish to the last outcome."""
    queue = Queue(folder / "Queue.json")
    with queue.running(2, handler=handlers.nothing):
        warm_up(queue)
        begin = time.perf_counter()
        queue.publish_many(PAYLOAD for _ in range(scale.tasks))
        published = time.perf_counter()
        queue.join(timeout=JOIN_SECONDS)
        bring_to_disk(queue)
        end = time.perf_counter()
    require(queue.counts()["done"] == scale.tasks + 100, "end_to_end lost tasks")
    return {"tasks/s": scale.tasks / (end - begin), "published/s": scale.tasks / (published - begin)}


def bring_to_disk(queue: Queue) -> None:
    """Wait for the disk: the last outcome shows in the file, and a join returns, while its sync is still under way."""
    fd = os.open(queue.path, os.O_RDONLY)
    os.fdatasync(fd)
    os.close(fd)


def warm_up(queue: Queue) -> None:
    """Run something, so that what is imported at the first task is."""
    queue.publish_many(PAYLOAD for _ in range(100))
    queue.join(timeout=JOIN_SECONDS)


def latency(folder: Path, scale: Scale) -> Figures:
    """Publish single tasks at a steady rate; from the call to the start of the handler."""
    return latencies(latency_at(folder / "idle", rate=100.0, size=1, seconds=scale.seconds), "100/s ")


def half_load(folder: Path, scale: Scale) -> Figures:
    """Do the same with groups of a hundred, at half of the rate that is reached end to end."""
    capacity = end_to_end(folder, scale)["tasks/s"]
    size = 100
    busy = latency_at(folder / "busy", rate=capacity / 2 / size, size=size, seconds=scale.seconds / 2)
    return latencies(busy, "half load ")


def latency_at(folder: Path, *, rate: float, size: int, seconds: float) -> list[float]:
    """Publish groups of a size at so many a second, and return how long each task waited for its handler."""
    folder.mkdir()
    queue = Queue(folder / "Queue.json")
    path = str(folder / "waits")
    with queue.running(2, handler=handlers.note_wait if size == 1 else handlers.note_wait_of_one_in_ten):
        for _ in range(20):
            queue.publish((time.monotonic(), str(folder / "warm")))
        queue.join(timeout=JOIN_SECONDS)
        if size == 1:
            at_rate(lambda: queue.publish((time.monotonic(), path)), rate, seconds)
        else:
            at_rate(lambda: queue.publish_many([(time.monotonic(), path)] * size), rate, seconds)
        queue.join(timeout=JOIN_SECONDS)
    return handlers.waits_in(path)


def mixed(folder: Path, scale: Scale) -> Figures:
    """Publish and run payloads from 20 bytes to 100 kB, small ones more often; in bytes, as that is what limits."""
    dice = random.Random(7)
    payloads = ["x" * size for size in dice.choices(SIZES, [SIZES[0] / size for size in SIZES], k=scale.tasks // 5)]
    queue = Queue(folder / "Queue.json")
    with queue.running(2, handler=handlers.nothing):
        warm_up(queue)
        begin = time.perf_counter()
        queue.publish_many(payloads)
        queue.join(timeout=JOIN_SECONDS)
        bring_to_disk(queue)
        end = time.perf_counter()
    require(queue.counts()["done"] == len(payloads) + 100, "mixed lost tasks")
    return {"tasks/s": len(payloads) / (end - begin), "MB/s": sum(map(len, payloads)) / (end - begin) / 1e6}


def busy(folder: Path, scale: Scale) -> Figures:
    """Run handlers of one millisecond on two consumers: the limit is 2,000 a second, and half of them for each."""
    queue = Queue(folder / "Queue.json")
    count = max(1000, scale.tasks // 20)
    warm, path = str(folder / "warm"), folder / "who"
    with queue.running(2, handler=handlers.take_a_millisecond):
        queue.publish_many([warm] * 10)
        queue.join(timeout=JOIN_SECONDS)
        begin = time.perf_counter()
        queue.publish_many([str(path)] * count)
        queue.join(timeout=JOIN_SECONDS)
        bring_to_disk(queue)
        end = time.perf_counter()
    require(queue.counts()["done"] == count + 10, "busy lost tasks")
    by_consumer = Counter(path.read_text().split())
    return {"tasks/s": count / (end - begin), "share of the busier %": 100 * max(by_consumer.values()) / count}


def busy_floor(folder: Path, scale: Scale) -> Figures:
    """Call the same handler in a loop, twice as often as one process can."""
    del folder
    count = max(1000, scale.tasks // 20) // 2
    begin = time.perf_counter()
    for _ in range(count):
        handlers.take_a_millisecond(None)
    return {"tasks/s": 2 * count / (time.perf_counter() - begin)}

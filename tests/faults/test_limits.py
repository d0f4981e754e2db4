"""A queue that may hold only so much says so, counts exactly whatever dies, and takes more once some is done."""

from __future__ import annotations

import random
import threading
import time
from contextlib import nullcontext
from typing import Any

import orjson
import pytest

from actorq import PayloadError, Queue, QueueFullError
from actorq.brokers.backlog import Backlog, Limits
from tests import handlers
from tests.faults.test_kills import kill, pids_of, wait_for_successor
from tests.helpers import wait_until


@pytest.fixture
def limited(tmp_path):
    """Return a queue of at most 100 tasks."""
    return Queue(tmp_path / "Queue.json", max_pending=100)


def with_or_without_brokers(queue, brokers):
    return queue.running(0) if brokers else nullcontext()


def lines_of_tasks(queue):
    return [line for line in queue.path.read_bytes().splitlines(keepends=True) if line.startswith(b',{"id":')]


both = pytest.mark.parametrize("brokers", [False, True], ids=["direct", "brokers"])


@both
def test_beyond_the_limit_a_publish_is_refused_is_not_in_the_queue_and_says_what_to_do(limited, brokers):
    with with_or_without_brokers(limited, brokers):
        for n in range(100):
            limited.publish(n)
        for _ in range(3):
            with pytest.raises(QueueFullError, match=r"100 tasks.*max_pending is 100; publish again once") as info:
                limited.publish("too many")
            assert str(limited.path) in str(info.value)
            assert info.value.published == []

    assert limited.counts()["ready"] == 100
    assert b"too many" not in limited.path.read_bytes()


@both
def test_of_many_those_that_fit_are_in_and_are_told(limited, brokers):
    with with_or_without_brokers(limited, brokers):
        ids = limited.publish_many(range(30))
        with pytest.raises(QueueFullError) as info:
            limited.publish_many(range(30, 30_000))

    assert [limited.get(task_id).data for task_id in [*ids, *info.value.published]] == list(range(100))
    assert limited.counts()["ready"] == 100


@both
def test_a_bad_item_behind_a_full_queue_is_not_what_is_told(limited, brokers):
    with with_or_without_brokers(limited, brokers):
        with pytest.raises(PayloadError) as bad:
            limited.publish_many([1, 2, {3}])
        with pytest.raises(QueueFullError) as full:
            limited.publish_many([*range(200), {3}])

    assert (len(bad.value.published), len(full.value.published)) == (2, 98)


@both
def test_a_limit_in_bytes_counts_what_the_lines_take_in_the_file(tmp_path, brokers):
    queue = Queue(tmp_path / "Queue.json", max_pending_bytes=5_000)
    with with_or_without_brokers(queue, brokers), pytest.raises(QueueFullError, match="max_pending_bytes is 5,000"):
        queue.publish_many({"n": n, "text": "ü" * (n % 50)} for n in range(1000))

    lines = lines_of_tasks(queue)
    assert 4_800 < sum(map(len, lines)) <= 5_000
    assert queue.counts()["ready"] == len(lines)


def test_what_is_done_makes_room_and_what_is_dead_too(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_pending=10, max_pending_bytes=100_000)
    queue.handler("good")(handlers.echo)
    queue.handler("bad")(handlers.fail)
    with queue.running(2):
        for name in ("good", "bad") * 5:
            queue.publish_many(range(10), name=name)
            queue.join(timeout=30)

    assert (queue.counts()["done"], queue.counts()["dead"]) == (50, 50)
    queue.publish_many(range(10))
    with pytest.raises(QueueFullError):
        queue.publish(1)


def test_a_task_that_runs_or_is_to_be_tried_again_still_counts(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_pending=1)
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(1, handler=handlers.wait_for_file):
        queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        with pytest.raises(QueueFullError):
            queue.publish(None)
        started.unlink()
        kill(pids_of(queue)["consumer-1"])
        wait_until(started.exists)
        with pytest.raises(QueueFullError):
            queue.publish(None)
        until.touch()
        queue.join(timeout=30)
        queue.publish({"started": str(started), "until": str(until)})
        queue.join(timeout=30)


@pytest.mark.parametrize("name", ["publisher-broker", "consumer-broker"])
def test_the_count_outlives_the_brokers_that_keep_it(limited, name):
    with limited.running(0):
        limited.publish_many(range(60))
        for _ in range(5):
            victim = pids_of(limited)[name]
            kill(victim)
            wait_for_successor(limited, name, victim)
            with pytest.raises(QueueFullError) as info:
                limited.publish_many(range(41))
            assert limited.counts()["ready"] == 100
            assert len(info.value.published) in (40, 0)

    assert limited.counts()["ready"] == 100


def test_the_count_outlives_the_host(limited):
    limited.publish_many(range(50))
    with limited.running(0):
        limited.publish_many(range(30))
    limited.publish_many(range(10))
    with limited.running(0), pytest.raises(QueueFullError) as info:
        limited.publish_many(range(20))

    assert len(info.value.published) == 10


def test_a_flood_from_many_threads_under_kills_never_gets_more_in_than_the_limit_and_loses_nothing(limited):
    rng = random.Random(7)
    ids: list[str] = []
    most = 0
    stop = threading.Event()

    def flood():
        while not stop.is_set():
            try:
                ids.extend(limited.publish_many(range(rng.randrange(1, 40)), timeout=20))
            except QueueFullError as error:
                ids.extend(error.published)

    with limited.running(2, handler=handlers.echo):
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for name in rng.sample(["publisher-broker", "consumer-broker", "router"] * 2, 6):
            victim = None
            while victim is None:
                victim = pids_of(limited)[name]
            kill(victim)
            until = time.monotonic() + 0.06
            while time.monotonic() < until:
                counts = limited.counts()
                most = max(most, counts["ready"] + counts["running"])
        stop.set()
        for thread in threads:
            thread.join()
        limited.join(timeout=20)

    assert 50 < most <= 100
    assert limited.counts()["done"] == len(ids) == len(set(ids))
    assert len(ids) > 200


def test_the_default_is_no_limit_and_a_limit_is_a_number_from_1_on(tmp_path):
    bads: list[Any] = [0, -1, 1.5, True, "100"]
    for bad in bads:
        with pytest.raises(ValueError, match="max_pending"):
            Queue(tmp_path / "Queue.json", max_pending=bad)
        with pytest.raises(ValueError, match="max_pending_bytes"):
            Queue(tmp_path / "Queue.json", max_pending_bytes=bad)
    Queue(tmp_path / "Queue.json").publish_many(range(5000))


def test_what_was_published_since_the_scheduler_told_counts_once():
    backlog = Backlog(Limits(max_pending=100))
    assert not backlog.is_known
    backlog.tell(1000, 10, 500)
    for end in (1100, 1200, 1300):
        backlog.take(5, 50)
        backlog.written(end)
    backlog.take(7, 70)
    backlog.refused()
    assert (backlog.tasks, backlog.bytes) == (25, 650)

    backlog.tell(1200, 18, 580)  # two of its ten are done; it has read the first two of ours
    assert (backlog.tasks, backlog.bytes) == (23, 630)
    backlog.take(1, 10)
    assert backlog.tasks == 24


def test_what_a_writer_before_was_told_does_not_count():
    backlog = Backlog(Limits(max_pending=100), start=2000)
    backlog.tell(1999, 10, 500)
    assert not backlog.is_known

    backlog.tell(2000, 60, 500)
    assert (backlog.is_known, backlog.tasks) == (True, 60)


def test_the_file_of_a_limited_queue_is_like_any_other(limited):
    with pytest.raises(QueueFullError):
        limited.publish_many(range(101))

    assert [line["data"] for line in orjson.loads(limited.path.read_bytes()) if "data" in line] == list(range(100))

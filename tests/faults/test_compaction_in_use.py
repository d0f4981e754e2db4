"""A queue that is compacted again and again while it is published to and drained, and while processes are killed."""

from __future__ import annotations

import os
import random
import threading

import pytest

from actorq import Queue
from actorq.brokers.upkeep import Upkeep
from actorq.store.log_reader import LogReader
from actorq.store.verify import verify
from actorq.testing import armed_failpoints
from tests import handlers
from tests.faults.test_kills import (
    KILLS,
    idle_pid_of,
    kill_at_random,
    nothing_is_left,
    system_of,
    wait_for_successor,
)
from tests.helpers import limit, wait_until

SMALL = Upkeep(keep_done=50, min_bytes=32 << 10, wait=0.2)


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_crashes=100)
    queue._upkeep = SMALL
    with nothing_is_left(queue.path):
        yield queue
        queue._view.close()


def generation_of(queue):
    reader = LogReader(queue.path)
    reader.close()
    return reader.generation


def length_of(queue):
    """Return where the last commit ends; behind it there is room in reserve."""
    reader = LogReader(queue.path)
    for _ in reader.batches():
        pass
    reader.close()
    return reader.position.offset


def temps_beside(queue):
    return [name for name in os.listdir(queue.path.parent) if name.endswith((".new", ".offer"))]


def publish_and_run(queue, log, count, first=0):
    """Publish that many tasks that note their numbers, a few at a time; return their ids."""
    ids: list[str] = []
    while len(ids) < count:
        many = [{"file": str(log), "line": str(first + len(ids) + k)} for k in range(40)]
        ids += queue.publish_many(many, timeout=20)
    return ids


def publish_while_it_is_compacted(queue, points, log, first):
    """Bring about a compaction, and publish between the last look at the old file and the switch; return the ids."""
    generation = generation_of(queue)
    offering = points.lay("compactor.offering", "delay", value=0.1)
    ids = publish_and_run(queue, log, 120, first)
    queue.join(timeout=30)  # or they would all wait, and nothing be worth it
    points.wait_for(offering, timeout=20)
    ids += publish_and_run(queue, log, 40, first + len(ids))
    wait_until(lambda: generation_of(queue) > generation, timeout=20, what="a compaction")
    return ids


def test_a_queue_in_use_stays_small_and_loses_nothing(queue, tmp_path):
    log = tmp_path / "ran"
    with queue.running(1, handler=handlers.append_line):
        ids = publish_and_run(queue, log, 4000)
        queue.join(timeout=30)
        wait_until(lambda: length_of(queue) < 100 << 10, what="the last compaction")
        assert [child.restarts for child in system_of(queue).children() if child.name == "consumer-broker"] == [0]
        queue.pause("nobody's")
        waiting = queue.publish(None, name="nobody's")

    assert generation_of(queue) > 1
    assert queue.counts() == {"ready": 1, "scheduled": 0, "running": 0, "done": 4000, "dead": 0, "cancelled": 0}
    assert log.read_text().split() == [str(n) for n in range(4000)]  # in order, each once
    assert [queue.get(task_id).state for task_id in (ids[-1], waiting)] == ["done", "ready"]
    assert queue.path.stat().st_size < 100 << 10  # without the reserve, which goes when it is closed
    assert temps_beside(queue) == []
    assert str(verify(queue.path, boot_id="").verdict) == "intact"


def test_a_compactor_that_has_done_its_work_is_as_small_as_before(queue, tmp_path):
    with queue.running(1, handler=handlers.append_line):
        before = idle_pid_of(queue, "compactor")
        publish_and_run(queue, tmp_path / "ran", 1000)
        queue.join(timeout=30)
        wait_for_successor(queue, "compactor", before)
        assert generation_of(queue) > 1


@pytest.mark.parametrize("bad", [-1, 1.5, True, "all"])
def test_how_many_finished_tasks_are_kept_is_a_number_from_0_on_or_none(tmp_path, bad):
    Queue(tmp_path / "Queue.json", keep_done=0)
    with pytest.raises(ValueError, match="keep_done is a number from 0 on, or None to keep all"):
        Queue(tmp_path / "Queue.json", keep_done=bad)


def test_with_everything_kept_nothing_leaves(tmp_path):
    queue = Queue(tmp_path / "Queue.json", keep_done=None)
    queue._upkeep = queue._upkeep._replace(min_bytes=1, wait=0.1)
    with queue.running(1, handler=handlers.append_line):
        ids = [queue.publish({"file": str(tmp_path / "ran"), "line": str(n)}) for n in range(100)]
        queue.join(timeout=30)
        wait_until(lambda: generation_of(queue) > 1)
    assert [queue.get(task_id).data["line"] for task_id in ids] == [str(n) for n in range(100)]


@pytest.mark.parametrize(
    "victims",
    [
        ("publisher-broker", "compactor"),
        ("consumer-broker", "compactor"),
        ("publisher-broker", "consumer-broker", "compactor", "router", "registry", "consumer-1", "supervisor"),
    ],
    ids=lambda victims: victims[0] if len(victims) < 3 else "everybody",
)
def test_kills_while_it_is_compacted_lose_nothing_and_leave_nothing(queue, tmp_path, victims):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    log = tmp_path / "ran"
    stop = threading.Event()
    kills = KILLS or 12
    # A short wait, or a new scheduler would be dead before it asks for a compaction.
    queue._upkeep = SMALL._replace(min_bytes=8 << 10, wait=0.05)
    landed: list[int] = []
    ids: list[str] = []
    with armed_failpoints() as points, queue.running(2, handler=handlers.append_line):
        killer = threading.Thread(
            target=lambda: landed.append(kill_at_random(queue, victims, kills, seed, stop, longest_rest=0.04)),
            daemon=True,
        )
        killer.start()
        try:
            while killer.is_alive():
                many = [{"file": str(log), "line": str(len(ids) + k)} for k in range(random.randrange(1, 60))]
                ids += queue.publish_many(many, timeout=20)
                if len(ids) - queue.counts()["done"] > 500:  # on a busy machine they would wait for minutes in the end
                    queue.join(timeout=limit(60))
        finally:
            stop.set()
            killer.join()
        queue.join(timeout=30)
        while True:
            ids += publish_while_it_is_compacted(queue, points, log, len(ids))
            if generation_of(queue) >= 4:
                break
        ids.append(queue.publish({"file": str(log), "line": str(len(ids))}))
        queue.join(timeout=30)
        wait_until(lambda: length_of(queue) < 100 << 10, timeout=20, what="the last compaction")
        wait_until(lambda: temps_beside(queue) == [], timeout=20, what="the end of what is under way")

    assert landed == [kills]
    done = {"ready": 0, "scheduled": 0, "running": 0, "done": len(ids), "dead": 0, "cancelled": 0}
    assert queue.counts() == done
    assert set(log.read_text().split()) == {str(n) for n in range(len(ids))}
    assert temps_beside(queue) == []
    assert str(verify(queue.path, boot_id="").verdict) == "intact"


PLACES = {
    "compactor": ["compactor.asked", "compaction.begun", "compaction.piece", "compactor.offering", "compactor.offered"],
    "publisher-broker": [
        "writer.offered", "new_file.taken_over", "switch.copied", "new_file.syncing", "new_file.replacing",
        "new_file.named", "new_file.settled", "writer.switched",
    ],
    "consumer-broker": ["scheduler.compacting", "scheduler.following", "scheduler.swapping"],
}  # fmt: skip


@pytest.mark.parametrize("who", PLACES)
def test_whoever_dies_at_a_place_the_queue_goes_on_and_is_compacted_in_the_end(queue, tmp_path, who):
    log = tmp_path / "ran"
    queue._upkeep = Upkeep(keep_done=10, min_bytes=8 << 10, wait=0.05)  # so that a few tasks are worth a compaction
    ids: list[str] = []
    with armed_failpoints() as points, queue.running(1, handler=handlers.append_line):
        for place in PLACES[who]:
            charge = points.lay(place, "kill")
            ids += publish_and_run(queue, log, 80, len(ids))
            points.wait_for(charge)
            ids += publish_while_it_is_compacted(queue, points, log, len(ids))
            wait_until(lambda: temps_beside(queue) == [], timeout=20, what="the end of what is under way")
    assert queue.counts()["done"] == len(ids)
    assert len(log.read_text().split()) >= len(ids)
    assert temps_beside(queue) == []

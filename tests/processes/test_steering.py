"""Steering as users see it: with brokers and without, from handlers and threads, across kills, restarts, compaction."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext

import orjson
import pytest

from actorq import InvalidTransitionError, Queue, QueuePausedError, SteeringUnknownError, TaskNotFoundError
from actorq.store.compaction import compact
from actorq.testing import armed_failpoints
from tests import handlers
from tests.faults.test_kills import system_of
from tests.helpers import wait_until


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json", max_attempts=1)


@pytest.fixture(params=["with brokers", "without brokers"])
def either(request, queue):
    """Return a queue that is hosted, with no consumer, or not hosted."""
    if request.param == "without brokers":
        yield queue
    else:
        with queue.running(0):
            yield queue


def records_in(queue, kind):
    return [line[kind] for line in orjson.loads(queue.path.read_bytes()) if kind in line]


@contextmanager
def one_that_waits(queue, tmp_path):
    """Have a task run until the block ends; yield its id."""
    until = tmp_path / "until"
    task_id = queue.publish({"started": str(tmp_path / "started"), "until": str(until)}, name="wait")
    wait_until(lambda: queue.get(task_id).state == "running")
    yield task_id
    until.touch()


# ---------------------------------------------------------------------------------------------------------------
# What each does


def test_what_waits_is_cancelled_and_can_be_forgotten(either):
    ids = either.publish_many(range(5))

    assert either.cancel(ids[3], ids[1], ids[3]) == [ids[3], ids[1]]

    assert [either.get(task_id).state for task_id in ids] == ["ready", "cancelled", "ready", "cancelled", "ready"]
    assert either.cancel(ids[1]) == [ids[1]]
    assert either.purge(ids[1]) == [ids[1]]
    with pytest.raises(TaskNotFoundError):
        either.get(ids[1])
    with pytest.raises(TaskNotFoundError):
        either.cancel(ids[0], ids[1])
    assert either.get(ids[0]).state == "ready"
    assert either.counts() == {"ready": 3, "scheduled": 0, "running": 0, "done": 0, "dead": 0, "cancelled": 2}


def test_what_cannot_be_done_is_refused_before_anything_is_done(either):
    first, second = either.publish_many(range(2))
    either.cancel(first)

    for refused in (lambda: either.retry(first), lambda: either.purge(first, second)):
        with pytest.raises(InvalidTransitionError):
            refused()
    assert either.get(first).state == "cancelled"
    assert either.cancel() == []
    with pytest.raises(ValueError, match="cannot name a task"):
        either.pause("")


def test_a_dead_task_runs_again_with_its_errors_in_its_history(queue):
    with queue.running(1, handler=handlers.fail):
        ids = queue.publish_many(range(3))
        queue.join(timeout=30)
        assert queue.counts()["dead"] == 3
        assert queue.retry(ids[0]) == [ids[0]]
        queue.join(timeout=30)

    assert [len(queue.get(task_id).errors) for task_id in ids] == [2, 1, 1]
    assert queue.retry(*ids[1:]) == ids[1:]
    assert (queue.get(ids[1]).state, queue.get(ids[1]).attempts) == ("ready", 0)
    with queue.running(1, handler=handlers.echo):
        queue.join(timeout=30)
    assert [queue.get(task_id).state for task_id in ids] == ["dead", "done", "done"]
    assert queue.purge(ids[0], ids[1]) == ids[:2]
    assert queue.counts()["dead"] == 0
    assert queue.counts()["done"] == 2


def test_a_task_that_runs_is_not_cancelled_and_one_behind_it_never_starts(queue, tmp_path):
    with queue.running(1, handler=handlers.wait_for_file):
        with one_that_waits(queue, tmp_path) as runs:
            waits = queue.publish(None)
            assert queue.cancel(runs, waits) == [waits]
        queue.join(timeout=30)

    assert queue.get(runs).state == "done"
    assert queue.get(waits).state == "cancelled"
    assert queue.get(waits).started_at is None


def test_a_handler_may_steer_its_own_queue(queue):
    with queue.running(1, handler=handlers.cancel_another):
        queue.pause()
        first = queue.publish({"queue": str(queue.path)})
        second = queue.publish(None, name="second")
        queue.pause("second")
        queue.resume()
        wait_until(lambda: queue.get(first).state == "done", timeout=30)

    assert queue.get(first).result == [second]
    assert queue.get(second).state == "cancelled"


def test_many_thousand_tasks_are_cancelled_and_purged(either):
    ids = either.publish_many(range(8_000))

    assert either.cancel(*ids) == ids
    assert either.counts()["cancelled"] == 8_000
    assert either.purge(*ids[::2], timeout=60) == ids[::2]

    with pytest.raises(TaskNotFoundError):
        either.get(ids[-2])
    assert either.get(ids[-1]).state == "cancelled"  # one of the newest, which are kept


def test_threads_that_retry_and_cancel_at_once_are_all_answered(queue):
    with queue.running(0):
        ids = queue.publish_many(range(8))
        answers: list[list[str]] = []
        threads = [threading.Thread(target=lambda each=each: answers.append(queue.cancel(*ids, each))) for each in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert answers == [ids] * 8


# ---------------------------------------------------------------------------------------------------------------
# Pauses


def test_a_paused_queue_hands_out_nothing_until_it_goes_on(queue):
    with queue.running(2, handler=handlers.nothing):
        queue.publish_many(range(50))
        queue.join(timeout=30)
        queue.pause()
        assert queue.paused() == [None]
        ids = queue.publish_many(range(5))
        with pytest.raises(QueuePausedError) as caught:
            queue.join(timeout=30)
        assert str(caught.value) == "tasks are left and the queue is paused; let it go on: queue.resume()"
        assert queue.counts()["ready"] == 5
        queue.resume()
        queue.join(timeout=30)

    assert [queue.get(task_id).state for task_id in ids] == ["done"] * 5
    assert queue.paused() == []


def test_a_paused_name_keeps_no_other_name_back(queue):
    with queue.running(1, handler=handlers.nothing):
        queue.pause("mail")
        mail, work = queue.publish(1, name="mail"), queue.publish(2, name="work")
        with pytest.raises(QueuePausedError, match=r"queue\.resume\('mail'\)"):
            queue.join(timeout=30)
        assert (queue.get(mail).state, queue.get(work).state) == ("ready", "done")
        queue.resume()  # not of the name
        assert queue.paused() == ["mail"]
        queue.resume("mail")
        queue.join(timeout=30)
    assert queue.counts()["done"] == 2


def test_a_pause_survives_restarts_and_compaction(queue):
    queue.pause("mail")
    queue.publish(1, name="mail")
    compact(queue.path, boot_id="boot", pid=os.getpid())

    assert Queue(queue.path).paused() == ["mail"]
    with pytest.raises(QueuePausedError):
        queue.join(timeout=30)  # by reading
    with queue.running(1, handler=handlers.nothing), pytest.raises(QueuePausedError):
        queue.join(timeout=30)
    assert queue.counts()["ready"] == 1


def test_what_waits_behind_a_long_task_is_given_back_when_its_name_pauses(queue, tmp_path):
    with queue.running(1, handler=handlers.quick_or_long):
        queue.publish_many([None] * 2000, name="wait")
        queue.join(timeout=30)  # by now the consumer is given many at once
        queue.pause("wait")
        payload = {"started": str(tmp_path / "started"), "until": str(tmp_path / "until")}
        queue.publish_many([payload, *[None] * 30], name="wait")
        queue.resume("wait")
        wait_until((tmp_path / "started").exists)
        queue.pause("wait")
        wait_until(lambda: queue.counts()["running"] == 1, what="the rest to be given back")
        (tmp_path / "until").touch()
        with pytest.raises(QueuePausedError):
            queue.join(timeout=30)
        queue.resume("wait")
        queue.join(timeout=30)
    assert queue.counts()["done"] == 2031


# ---------------------------------------------------------------------------------------------------------------
# When something dies


@pytest.mark.parametrize(
    "place", ["scheduler.deciding", "scheduler.decided", "scheduler.answering", "writer.written", "writer.synced"]
)
def test_a_wish_comes_true_once_though_a_broker_dies_of_it(queue, place):
    with armed_failpoints() as points, queue.running(1, handler=handlers.fail):
        [dead] = queue.publish_many([0])
        queue.join(timeout=30)
        queue.pause()
        charge = points.lay(place, "kill")

        assert queue.retry(dead) == [dead]

        points.wait_for(charge)
        queue.resume()
        queue.join(timeout=30)
    assert len(queue.get(dead).errors) == 2


def test_a_retry_is_not_repeated_when_its_task_has_died_again(queue):
    """The scheduler dies as it is about to say yes; when it is asked again, the task has been dead for long."""
    with armed_failpoints() as points, queue.running(1, handler=handlers.fail):
        dead = queue.publish(0)
        queue.join(timeout=30)
        charge = points.lay("scheduler.answering", "kill")

        assert queue.retry(dead) == [dead]

        points.wait_for(charge)
        queue.join(timeout=30)
        assert queue.get(dead).state == "dead"
    assert len(queue.get(dead).errors) == 2


def test_a_pause_holds_though_all_brokers_are_killed(queue):
    with queue.running(1, handler=handlers.nothing):
        queue.pause("mail")
        mail = queue.publish(1, name="mail")
        for name in ("publisher-broker", "consumer-broker", "router", "registry"):
            system_of(queue).ref(name).kill()
        assert queue.cancel(mail) == [mail]
        again = queue.publish(2, name="mail")
        work = queue.publish(3)
        wait_until(lambda: queue.get(work).state == "done")
        assert queue.get(again).state == "ready"


def test_who_is_not_answered_hears_that_he_may_ask_again(queue):
    with armed_failpoints() as points, queue.running(0):
        task_id = queue.publish(1)
        charge = points.lay("scheduler.received", "delay", value=0.6)
        begun = time.monotonic()
        with pytest.raises(SteeringUnknownError, match="do it again, that is safe"):
            queue.cancel(task_id, timeout=0.2)
        assert time.monotonic() - begun < 0.6
        points.wait_for(charge)
        assert queue.cancel(task_id) == [task_id]


def test_a_killed_process_that_steered_directly_has_done_it_or_not(queue):
    with armed_failpoints(here=True) as points:
        ids = queue.publish_many(range(2))
        for place, state in (("direct.opened", "ready"), ("direct.steered", "cancelled")):
            charge = points.lay(place, "kill")
            pid = os.fork()
            if pid == 0:
                Queue(queue.path).cancel(*ids)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
            points.wait_for(charge)
            assert [queue.get(task_id).state for task_id in ids] == [state] * 2
    assert queue.cancel(*ids) == ids


@pytest.mark.parametrize("is_hosted", [False, True])
def test_another_process_steers_whether_or_not_somebody_hosts_the_queue(queue, is_hosted):
    code = "import sys; from actorq import Queue; print(*Queue(sys.argv[1]).cancel(*sys.argv[2:], timeout=10))"
    ids = queue.publish_many(range(2))
    command = [sys.executable, "-c", code, str(queue.path), *ids]
    with queue.running(0) if is_hosted else nullcontext():
        assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ids

    assert records_in(queue, "cancel") == [[f"{ids[0]}..2"]]


def test_a_host_that_dies_while_somebody_steers_is_a_pause_and_no_error(queue):
    ids = queue.publish_many(range(400))
    code = (
        "import sys, time; from actorq import Queue; queue = Queue(sys.argv[1])\n"
        "with queue.running(0): print('up', flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(queue.path)], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        host.stdout.readline()
        cancelled = queue.cancel(*ids[:200], timeout=10)
        host.kill()
        cancelled += queue.cancel(*ids[200:], timeout=10)

    assert cancelled == ids
    assert queue.counts()["cancelled"] == 400

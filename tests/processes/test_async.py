"""Publishing from an event loop."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import Future

import pytest

from actorq import PayloadError, PublishUnknownError, Queue, QueueFullError, QueueLockedError
from actorq.async_publisher import Item, chunks_of, publish_together
from actorq.publisher import CHUNK_BYTES, CHUNK_TASKS
from actorq.store.locks import HostLock
from tests import handlers
from tests.helpers import limit, wait_until


@pytest.fixture(autouse=True)
def _threads_end_soon(monkeypatch):
    monkeypatch.setattr("actorq.async_publisher.IDLE_SECONDS", 0.1)


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


@pytest.mark.parametrize("is_hosted", [False, True])
def test_what_is_published_at_the_same_time_shares_commits_and_each_gets_its_own_id(queue, is_hosted):
    async def publish():
        return await asyncio.gather(*(queue.apublish(number) for number in range(500)))

    if is_hosted:
        with queue.running(1, handler=handlers.echo):
            ids = asyncio.run(publish())
            queue.join(timeout=20)
    else:
        ids = asyncio.run(publish())

    assert [queue.get(task_id).data for task_id in ids] == list(range(500))
    # One commit each would be 500; the first goes alone, and what has gathered meanwhile goes together.
    assert queue._view.refresh().commit < 250


def test_the_loop_runs_on_while_the_queue_is_locked(queue):
    async def publish():
        ticks = 0
        task = asyncio.create_task(queue.apublish("late", timeout=20))
        with HostLock(queue.path).acquire():
            until = time.monotonic() + 0.2
            while time.monotonic() < until:
                await asyncio.sleep(0.001)
                ticks += 1
            assert not task.done()
        return ticks, await task

    ticks, task_id = asyncio.run(publish())

    assert ticks > 50 / limit(1)
    assert queue.get(task_id).data == "late"


def test_a_stream_may_be_of_either_kind_and_keeps_its_order(queue):
    async def numbers():
        for number in range(CHUNK_TASKS + 500):
            yield number

    async def publish():
        return await queue.apublish_many(numbers()), await queue.apublish_many(range(10), name="other")

    first, second = asyncio.run(publish())

    assert [queue.get(task_id).data for task_id in first[::300]] == list(range(0, CHUNK_TASKS + 500, 300))
    assert {queue.get(task_id).name for task_id in second} == {"other"}


def test_a_bad_item_ends_the_stream_and_those_before_it_are_in(queue):
    with pytest.raises(PayloadError) as caught:
        asyncio.run(queue.apublish_many([1, 2, {"x": float("nan")}, 4]))

    assert caught.value.index == 2
    assert [queue.get(task_id).data for task_id in caught.value.published] == [1, 2]
    assert queue.counts()["ready"] == 2
    with pytest.raises(PayloadError):
        asyncio.run(queue.apublish({1: 2}))


def test_where_there_is_no_room_for_all_each_call_hears_what_became_of_its_own(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_pending=5)

    async def publish():
        calls = [queue.apublish(number) for number in range(8)]
        return await asyncio.gather(*calls, return_exceptions=True)

    told = asyncio.run(publish())

    accepted = [each for each in told if isinstance(each, str)]
    assert [queue.get(task_id).data for task_id in accepted] == list(range(5))
    assert [type(each) for each in told[5:]] == [QueueFullError] * 3


def test_calls_that_go_together_and_fail_are_told_apart():
    class Port:
        def publish(self, chunks, name, timeout):
            error = PublishUnknownError("abcdefghijkl-7", 1.0)
            error.published = ["abcdefghijkl-5", "abcdefghijkl-6"]
            raise error

        def close(self):
            pass

    items = [Item([b"1"] * count, "default", 1.0, Future()) for count in (1, 3, 2)]
    publish_together(Port, items)

    assert items[0].future.result() == ["abcdefghijkl-5"]
    told = [each.future.exception() for each in items[1:]]
    assert [vars(error)["task_id"] for error in told] == ["abcdefghijkl-7", "abcdefghijkl-9"]
    assert [vars(error)["published"] for error in told] == [["abcdefghijkl-6"], []]


def test_calls_for_which_there_is_no_room_each_hear_what_of_theirs_is_in():
    class Port:
        def publish(self, chunks, name, timeout):
            error = QueueFullError("Queue.json", "full")
            error.published = ["abcdefghijkl-1", "abcdefghijkl-2", "abcdefghijkl-3"]
            raise error

        def close(self):
            pass

    items = [Item([b"1"] * count, "default", 1.0, Future()) for count in (2, 2, 2)]
    publish_together(Port, items)

    assert items[0].future.result() == ["abcdefghijkl-1", "abcdefghijkl-2"]
    told = [each.future.exception() for each in items[1:]]
    assert [type(error) for error in told] == [QueueFullError] * 2
    assert [vars(error)["published"] for error in told] == [["abcdefghijkl-3"], []]


def test_nobody_gives_up_because_his_neighbour_does(queue):
    async def publish():
        with HostLock(queue.path).acquire():
            calls = [queue.apublish(number, timeout=seconds) for number, seconds in enumerate((0.1, 20, 20))]
            first, *others = [asyncio.create_task(call) for call in calls]
            with pytest.raises(QueueLockedError):
                await first
        return await asyncio.gather(*others)

    ids = asyncio.run(publish())

    assert [queue.get(task_id).data for task_id in ids] == [1, 2]


def test_where_no_thread_can_be_had_the_call_hears_it_and_the_next_one_tries_again(queue, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            asyncio.run(queue.apublish("not published"))
    asyncio.run(queue.apublish("published", timeout=5))

    assert [task.data for task in queue.tasks()] == ["published"]


def test_a_call_that_is_cancelled_before_it_is_sent_publishes_nothing(queue):
    async def publish():
        with HostLock(queue.path).acquire():
            first = asyncio.create_task(queue.apublish("first", timeout=20))
            await asyncio.sleep(0.05)  # it is in hand, and waits for the lock
            second = asyncio.create_task(queue.apublish("second", timeout=20))
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        return await first

    asyncio.run(publish())

    assert queue.counts()["ready"] == 1


def test_a_forked_child_has_a_thread_of_its_own(queue):
    asyncio.run(queue.apublish("parent"))
    wait_until(lambda: threading.active_count() == 1, what="the thread to end")
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(queue.apublish("child", timeout=10))
            os._exit(0)
        except BaseException:  # noqa: BLE001  # the status says so
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    asyncio.run(queue.apublish("parent again"))
    assert queue.counts()["ready"] == 3


def test_payloads_travel_in_pieces_that_fit():
    pieces = chunks_of([b"x" * 100] * (CHUNK_TASKS + 1) + [b"y" * CHUNK_BYTES, b"z"])

    assert [payload for piece in pieces for payload in piece.payloads][-2:] == [b"y" * CHUNK_BYTES, b"z"]
    assert all(len(piece.payloads) <= CHUNK_TASKS for piece in pieces)
    assert all(sum(map(len, piece.payloads)) <= CHUNK_BYTES or len(piece.payloads) == 1 for piece in pieces)

"""Requests that are sent more than once: none is lost, none counts twice, and refused means certainly not in."""

from __future__ import annotations

import errno
import os
import signal
import threading

import pytest

from actorq import DiskFullError, Queue
from actorq.testing import armed_failpoints
from tests.faults.test_kills import pids_of


def ids_in(queue):
    state = queue._view.refresh()
    return {state.id_of(seq) for seq in range(len(state))}


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


def test_a_request_that_was_repeated_and_then_refused_never_comes_in(queue):
    """The writer dies with the request unread in its mailbox, so the publisher sends it again to the next one."""
    outcome: list[object] = []
    is_connected, may_publish = threading.Event(), threading.Event()

    def publish():
        queue.publish("before")
        is_connected.set()
        may_publish.wait(10)
        try:
            outcome.append(queue.publish("twice"))
        except DiskFullError as error:
            outcome.append(error)

    with armed_failpoints(here=True) as points, queue.running(0):
        publisher = threading.Thread(target=publish)
        publisher.start()
        assert is_connected.wait(10)
        writer = pids_of(queue)["publisher-broker"]
        os.kill(writer, signal.SIGSTOP)
        full = points.lay("log.writing", "raise", value=errno.ENOSPC)
        sent = points.lay("session.sent", "delay", value=0)
        may_publish.set()
        points.wait_for(sent)
        os.kill(writer, signal.SIGKILL)
        publisher.join()
        points.wait_for(full)
        queue.publish("after")  # behind every copy

    (found,) = outcome
    assert isinstance(found, DiskFullError)
    assert queue.counts()["ready"] == 2


def test_requests_lost_in_the_hand_of_a_killed_writer_are_repeated_before_the_later_ones_count(queue):
    """The first request of a stream dies with the writer; those behind it wait in the mailbox of the next one."""
    ids: list[str] = []
    is_connected, may_publish = threading.Event(), threading.Event()

    def publish():
        queue.publish("before")
        is_connected.set()
        may_publish.wait(10)
        ids.extend(queue.publish_many(["x" * 30_000] * 10))

    with armed_failpoints(here=True) as points, queue.running(0):
        publisher = threading.Thread(target=publish)
        publisher.start()
        assert is_connected.wait(10)
        in_hand = points.lay("writer.received", "stop")
        later = points.lay("session.sent", "delay", nth=6, value=0)
        may_publish.set()
        writer = points.wait_for(in_hand)
        points.wait_for(later)
        os.kill(writer.pid, signal.SIGKILL)
        publisher.join()

    found = [queue.get(task_id).state for task_id in ids if task_id in ids_in(queue)]
    assert found == ["ready"] * 10
    assert queue.counts()["ready"] == 11

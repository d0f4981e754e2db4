"""What a publisher does whose brokers are gone, with what they have not acknowledged."""

from __future__ import annotations

import errno
import random
from types import SimpleNamespace
from typing import Any

import pytest

from actorq import PublishRejectedError, PublishUnknownError
from actorq.actors.linux import boot_id
from actorq.brokers.messages import Event, EventOwner, Publish
from actorq.brokers.requests import Requests
from actorq.direct_publisher import Desk
from actorq.joining import WayIn
from actorq.refuge import Refuge
from actorq.store import records
from actorq.store.sessions import SessionTable
from actorq.testing import CrashingFilesystem
from actorq.view import View
from tests.store.log_on_paper import P, hello, ids
from tests.store.scenes import open_log

TIMEOUT = 3.0


class Scene:
    """A disk on which a writer was killed, and a publisher that has not heard of it."""

    def __init__(self, path):
        self.path = path
        self.disk = CrashingFilesystem()
        self.requests = Requests()
        self.requests.add(b"hello")
        self.session: Any = SimpleNamespace(id=P, requests=self.requests)

    def ask(self, *payloads):
        """Publish, as far as the publisher is concerned; return the records that a writer would have made of it."""
        first = self.requests.number + 1
        publish = Publish(P, first, len(payloads), "work", b"\n".join(payloads))
        self.requests.add(Event(EventOwner.PUBLISHER, publish).encode(), len(payloads))
        return records.publish_lines(ids(first, self.requests.number), "work", payloads)

    def written(self, *lines, synced=True):
        """Have a writer write a batch, who is killed then."""
        log = open_log(self.disk, self.path, boot_id())
        log.write([*lines])
        if synced:
            log.sync()
        self.disk = self.disk.after_kill()

    def settle(self):
        """Settle. The file stays open, as a publisher keeps it: what closing brings to disk comes too late."""
        self.desk = Desk(self.path, self.disk, boot_id(), lambda: None)
        return Refuge(self.path, WayIn(self.path), self.desk).settle(self.session, TIMEOUT)

    def payloads(self, disk=None):
        """Return what is in the queue, in order."""
        view = View(self.path, disk or self.disk)
        state = view.refresh()
        found = [view.get(state.id_of(seq)).data for seq in range(len(state))]
        view.close()
        return found


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path / "Queue.json")
    yield scene
    scene.desk.forget()


HELLO = records.hello_line(hello(P))


def test_what_the_log_does_not_show_is_written_and_what_it_shows_is_not_written_again(scene):
    first, _ = scene.ask(b"1", b"2"), scene.ask(b"3")
    scene.written(HELLO, first)

    assert scene.settle()

    assert scene.payloads() == [1, 2, 3]
    assert len(scene.requests) == 0


@pytest.mark.parametrize("seed", range(10))
def test_what_a_killed_writer_has_written_and_not_synced_is_on_disk_before_anybody_hears_of_it(scene, seed):
    scene.written(HELLO)
    scene.written(scene.ask(b"1", b"2"), synced=False)

    assert scene.settle()

    assert scene.requests.acknowledged == 2
    assert scene.payloads(scene.disk.after_power_cut(random.Random(seed))) == [1, 2]


def test_its_session_ends_with_it(scene):
    scene.written(HELLO, scene.ask(b"1"))
    scene.settle()

    table = SessionTable()
    log = open_log(scene.disk.after_kill(), scene.path, boot_id())
    for batch in log.tail():
        table.apply(batch.lines)
    assert table.roll() == []


def test_a_refusal_that_nobody_has_heard_of_is_told_and_what_came_before_it_is_in(scene):
    line = scene.ask(b"1")
    scene.ask(b"2")
    table = SessionTable()
    table.greet(hello(P))
    table.advance(P, 1)
    scene.written(HELLO, line, table.refuse(P, "queue_full"), synced=False)

    with pytest.raises(PublishRejectedError):
        scene.settle()

    assert scene.requests.acknowledged == 1
    assert scene.payloads() == [1]


def test_of_a_session_that_was_declared_dead_nobody_can_say_what_became_of_its_requests(scene):
    scene.requests.acknowledge(0)
    scene.ask(b"1")
    scene.written(HELLO, records.gone_line(P, "process died"))

    with pytest.raises(PublishUnknownError) as caught:
        scene.settle()

    assert (caught.value.task_id, caught.value.seconds) == (f"{P}-1", TIMEOUT)


def test_of_a_session_whose_hello_never_got_in_nothing_is_left_to_do(scene):
    scene.written(records.hello_line(hello("publisher444")))

    assert scene.settle()
    assert len(scene.requests) == 0


@pytest.mark.parametrize("is_asked_for", [True, False])
def test_where_the_disk_does_not_keep_it_nobody_hears_yes(scene, is_asked_for):
    scene.requests.acknowledge(0)
    line = scene.ask(b"1")
    scene.written(HELLO, *([] if is_asked_for else [line]), synced=False)
    scene.disk.fail_next("fdatasync", errno.EIO)

    with pytest.raises(PublishUnknownError):
        scene.settle()

    assert len(scene.requests) == 1

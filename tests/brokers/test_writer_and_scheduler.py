"""Writer and scheduler on a real file, in one process: each handles what has come, in turn, until nobody has more."""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace

import pytest

from actorq.actors import Mailbox, PacketSocket
from actorq.brokers import publisher_broker
from actorq.brokers.backlog import Limits
from actorq.brokers.consumer_broker import ConsumerBroker
from actorq.brokers.messages import (
    Acknowledged,
    Attach,
    AwaitIdle,
    Barrier,
    Channel,
    Committed,
    Deliver,
    Detach,
    Event,
    Gap,
    Gone,
    Hello,
    Idle,
    Pending,
    Publish,
    Push,
    Refused,
    RegistryStarted,
    Report,
    Sated,
    WriterStarted,
)
from actorq.brokers.publisher_broker import NOTE_BYTES, PublisherBroker, RoomAgain, SyncDue
from actorq.errors import SyncFailedError
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.testing import armed_failpoints
from tests.brokers.stage import Stage, limits_kept, packets, said

P, Q, C = (letter * 12 for letter in "pqc")


class Scene:
    """Both brokers, the mailboxes of the other two, and what has come to the clients."""

    def __init__(self, path):
        self.path = path
        self.boxes = {
            name: Mailbox(1 << 20, name) for name in ("writer", "scheduler", "router", "registry", "compactor")
        }
        self.has_writer = self.has_scheduler = False
        self.heard = []
        """Session and message, in the order in which they left the brokers."""

    def start_writer(self, durability="power", **options):
        boxes = self.boxes
        others = (boxes["scheduler"], boxes["router"], boxes["registry"])
        self.writer = Stage(PublisherBroker, self.path, *others, durability, inbox=boxes["writer"], **options)
        self.has_writer = True

    def stop_writer(self):
        self.writer.actor.on_stop()
        self.has_writer = False

    def start_scheduler(self, **options):
        boxes = self.boxes
        self.scheduler = Stage(
            ConsumerBroker,
            self.path,
            boxes["writer"],
            boxes["router"],
            boxes["compactor"],
            inbox=boxes["scheduler"],
            **options,
        )
        self.has_scheduler = True

    def settle(self):
        """Let them take turns; return what clients have heard since."""
        before = len(self.heard)
        for _ in range(4):
            self.writer.turn()
            self.scheduler.turn()
        self.collect()
        return self.heard[before:]

    def collect(self):
        for message in said(self.boxes["router"]):
            if isinstance(message, Deliver):
                at = 0
                for session, length in message.entries:
                    self.heard.append((session, Event.decode(message.body[at : at + length]).message))
                    at += length

    def log(self):
        """Return the state that the file holds."""
        reader = LogReader(self.path)
        state = QueueState()
        for batch in reader.batches():
            state.apply(batch)
        reader.close()
        return state


@pytest.fixture
def scene(tmp_path):
    with limits_kept():
        scene = Scene(tmp_path / "Queue.json")
        yield scene
        if scene.has_writer:
            scene.stop_writer()
        if scene.has_scheduler:
            scene.scheduler.actor._log.close()


def hello(session, role="publisher"):
    return Hello(session, role, os.getpid(), 1, "boot", None, 3, 3)


def publish(session, first, *payloads):
    return Publish(session, first, len(payloads), "work", b"\n".join(payloads))


def test_what_is_published_is_acknowledged_and_pushed_to_who_waits(scene):
    scene.start_writer()
    scene.start_scheduler()

    scene.writer.give(hello(P), hello(C, "consumer"), publish(P, 1, b"1"))
    heard = scene.settle()

    assert [type(message) for session, message in heard if session == P] == [Acknowledged]
    pushes = [message for _, message in heard if isinstance(message, Push)]
    assert [push.entries[0][:2] for push in pushes] == [[f"{P}-1", 1]]
    assert repr(scene.scheduler.actor._scheduler).startswith("<Scheduler {")


def test_a_frame_that_is_not_for_them_is_dropped_and_reported_and_what_comes_behind_is_handled(scene, caplog):
    scene.start_writer()
    scene.start_scheduler()

    for broker in (scene.writer, scene.scheduler):
        broker.give(b"no event\n", Detach(P), Committed(1, 1) if broker is scene.scheduler else hello(P))

    assert (P, Acknowledged(P, 0)) in scene.settle()
    reported = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert [text.partition(":")[0] for text in reported].count("message dropped") == 3
    assert len(reported) == 4


def test_who_has_given_his_channel_hears_through_it_and_through_the_router_once_it_is_full_or_has_ended(scene):
    scene.start_writer()
    scene.start_scheduler()
    mine, its = PacketSocket.pair(1 << 12)
    pidfd = os.pidfd_open(os.getpid())
    scene.writer.give(Attach(P, "publisher", os.getpid()), fds=[its.fileno(), pidfd])
    its.close()

    scene.writer.give(hello(P))
    assert scene.settle() == []
    assert heard_through(mine) == [Acknowledged(P, 0)]

    while its_writer(scene).try_send(P, b"x" * 100):
        pass
    scene.writer.give(publish(P, 1, b"1"))
    assert scene.settle() == [(P, Acknowledged(P, 1))]

    mine.close()
    scene.writer.give(publish(P, 2, b"2"))
    assert scene.settle() == [(P, Acknowledged(P, 2))]
    assert list(its_writer(scene)) == []
    os.close(pidfd)


def test_a_new_registry_is_given_the_channels_and_they_are_closed_with_their_sessions(scene):
    scene.start_writer()
    mine, its = PacketSocket.pair(1 << 12)
    pidfd = os.pidfd_open(os.getpid())
    scene.writer.give(Attach(P, "publisher", 7), fds=[its.fileno(), pidfd])
    its.close()
    os.close(pidfd)
    packets(scene.boxes["registry"])

    scene.writer.give(RegistryStarted())

    news, handed_over = packets(scene.boxes["registry"])
    assert isinstance(Event.decode(news.data).message, WriterStarted)
    assert Event.decode(handed_over.data).message == Channel(P, "publisher", 7, False)
    assert len(handed_over.fds) == 2
    for fd in handed_over.fds:
        os.close(fd)

    scene.writer.give(Gone(P, "closed", ""))
    with pytest.raises(EOFError):
        mine.receive(0)
    mine.close()


def its_writer(scene):
    return scene.writer.actor._channels


def its_writer_log(scene):
    return scene.writer.actor._log


def heard_through(channel):
    found = []
    while (packet := channel.try_receive()) is not None:
        found.append(Event.decode(packet.data).message)
    return found


def test_a_barrier_that_was_lost_is_sent_again_when_the_writer_tells_of_the_gap(scene):
    scene.start_writer()
    scene.start_scheduler()
    token = scene.scheduler.actor._scheduler.token
    scene.scheduler.turn()
    barriers = said(scene.boxes["writer"])  # and so they are lost

    scene.scheduler.give(Gap("x" * 12, 0), Acknowledged("x" * 12, 0))  # for an earlier one
    assert said(scene.boxes["writer"]) == []
    scene.scheduler.give(Gap(token, 0))

    assert said(scene.boxes["writer"]) == [barriers[0]] == [Barrier(token, 1)]


def test_with_a_limit_publishes_wait_for_the_scheduler_and_what_is_beyond_it_is_refused(scene):
    scene.start_writer(limits=Limits(max_pending=2))
    scene.writer.give(hello(P), publish(P, 1, b"1", b"2", b"3"))
    scene.collect()
    assert scene.heard == [(P, Acknowledged(P, 0))]

    scene.start_scheduler(is_limited=True)
    heard = scene.settle()

    assert heard[0] == (P, Acknowledged(P, 2))
    assert [(message.number, message.kind) for _, message in heard if isinstance(message, Refused)] == [
        (3, "queue_full")
    ]
    assert scene.log().pending_count == 2


def test_the_scheduler_tells_what_is_unfinished_when_it_changes_and_to_every_new_writer(scene):
    scene.start_writer(limits=Limits(max_pending=2))
    scene.start_scheduler(is_limited=True)
    scene.settle()
    log = scene.writer.actor._log

    def told():
        return [message for message in said(scene.boxes["writer"]) if not isinstance(message, Sated)]

    scene.scheduler.give(Committed(*log.position))
    assert told() == []
    scene.scheduler.give(WriterStarted(2, []))
    assert told() == [Pending(log.position.generation, log.commit, 0, 0)]


def test_the_scheduler_is_not_woken_for_tasks_that_nobody_could_take_until_there_are_many_or_somebody_comes(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.writer.give(hello(P))
    scene.settle()

    scene.writer.give(publish(P, 1, b"1"))
    assert said(scene.boxes["scheduler"]) == []
    scene.writer.give(publish(P, 2, b'"%b"' % (b"x" * NOTE_BYTES)))
    assert said(scene.boxes["scheduler"]) == [Committed(*its_writer_log(scene).position)]
    scene.writer.give(publish(P, 3, b"3"))
    assert said(scene.boxes["scheduler"]) == []

    scene.writer.give(hello(C, "consumer"))
    pushes = [message for _, message in scene.settle() if isinstance(message, Push)]
    assert [push.entries[0][:2] for push in pushes] == [[f"{P}-1", 1]]


def test_the_scheduler_says_that_nobody_could_take_more_only_if_something_was_published_since(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.writer.give(hello(P))
    scene.settle()

    scene.scheduler.give(Committed(*its_writer_log(scene).position))
    assert said(scene.boxes["writer"]) == []
    scene.writer.give(publish(P, 1, b"1"))
    for expected in (1, 0):
        position = its_writer_log(scene).position
        scene.scheduler.give(Committed(*position))
        assert said(scene.boxes["writer"]) == [Sated(scene.scheduler.actor._scheduler.token, *position)] * expected


def test_the_scheduler_hears_of_what_is_written_while_the_disk_works(scene, monkeypatch):
    scene.start_writer()
    scene.writer.give(hello(P))
    said(scene.boxes["scheduler"])
    meanwhile = []
    sync = PublisherBroker._sync_now

    def slow(writer):
        meanwhile.extend(said(scene.boxes["scheduler"]))
        sync(writer)

    monkeypatch.setattr(PublisherBroker, "_sync_now", slow)
    scene.writer.give(publish(P, 1, b"1"))

    assert meanwhile == [Committed(*its_writer_log(scene).position)]
    assert said(scene.boxes["scheduler"]) == []


def test_an_assignment_is_no_news_for_the_scheduler_that_asked_for_it(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.writer.give(hello(P), *[publish(P, number, b"1") for number in (1, 2)])
    scene.settle()
    scene.writer.give(hello(C, "consumer"))
    scene.scheduler.turn()  # and it has asked

    scene.writer.turn()
    assert [type(message) for message in said(scene.boxes["scheduler"])] == [Acknowledged]


def test_a_task_that_is_handed_out_as_it_is_published_wakes_the_scheduler_with_its_outcome(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.writer.give(hello(P), hello(C, "consumer"))
    scene.settle()

    scene.writer.give(publish(P, 1, b"1"))
    assert said(scene.boxes["scheduler"]) == []
    scene.collect()
    assert isinstance(scene.heard[-2][1], Push)

    scene.writer.give(Report(C, 1, [["done", f"{P}-1", 1, ""]]))
    scene.settle()
    scene.writer.give(publish(P, 2, b"2"))  # and so it was lent anew
    scene.collect()
    pushes = [message for _, message in scene.heard if isinstance(message, Push)]
    assert [push.entries[0][:2] for push in pushes] == [[f"{P}-1", 1], [f"{P}-2", 2]]


def test_who_waits_for_the_end_of_all_work_hears_of_it_once(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.settle()

    scene.scheduler.give(AwaitIdle(P, 7))
    assert scene.settle() == [(P, Idle(7, [], []))]
    scene.scheduler.give(AwaitIdle(P, 8))
    assert scene.settle() == [(P, Idle(8, [], []))]


def test_on_a_full_disk_publishers_are_refused_and_count_for_nothing_and_consumers_get_in(scene):
    scene.start_writer(limits=Limits(max_pending=2))
    scene.start_scheduler(is_limited=True)
    scene.writer.give(hello(P), hello(Q))
    scene.settle()

    with armed_failpoints(here=True) as points:
        points.lay("log.writing", "raise", value=errno.ENOSPC)
        scene.writer.give(hello(C, "consumer"), publish(P, 1, b"1", b"2"))

    assert [(message.number, message.kind) for session, message in scene.settle() if session == P] == [(1, "disk_full")]
    assert C in scene.log().consumers
    assert scene.log().pending_count == 0
    scene.writer.give(publish(Q, 1, b"1", b"2"))
    assert (Q, Acknowledged(Q, 2)) in scene.settle()


def test_what_finds_no_room_at_all_is_neither_refused_nor_acknowledged_and_asked_for_again_later(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.settle()
    with armed_failpoints(here=True) as points:
        points.lay("log.writing", "raise", value=errno.ENOSPC)
        scene.writer.give(hello(C, "consumer"))
    assert scene.settle() == []
    said(scene.boxes["registry"])

    scene.writer.actor.on_timer(RoomAgain())
    assert said(scene.boxes["registry"]) == [WriterStarted(scene.writer.actor._log.epoch, [])]
    scene.writer.give(hello(C, "consumer"))
    assert (C, Acknowledged(C, 0)) in scene.settle()


def test_a_new_registry_hears_who_is_there(scene):
    scene.start_writer()
    scene.writer.give(hello(P))
    said(scene.boxes["registry"])

    scene.writer.give(RegistryStarted())

    assert said(scene.boxes["registry"]) == [
        WriterStarted(scene.writer.actor._log.epoch, [[P, "publisher", os.getpid(), 1, "boot"]])
    ]


@pytest.fixture
def signals(monkeypatch):
    """Return a list of what would be sent to other processes."""
    sent = []
    kernel = SimpleNamespace(**vars(os) | {"kill": lambda pid, number: sent.append((pid, number))})
    monkeypatch.setattr(publisher_broker, "os", kernel)
    return sent


@pytest.mark.parametrize("place", ["log.writing", "log.syncing"])
def test_when_the_disk_fails_nobody_hears_yes_and_the_whole_tree_ends_and_only_the_next_one_goes_on(
    scene, signals, place
):
    scene.start_writer()
    scene.writer.give(hello(P))
    scene.collect()
    supervisor = (os.getppid(), signal.SIGKILL)

    with armed_failpoints(here=True) as points:
        points.lay(place, "raise", value=errno.EIO)
        with pytest.raises(SyncFailedError):
            scene.writer.give(publish(P, 1, b"1"))
    scene.collect()
    assert signals == [supervisor]
    assert (P, Acknowledged(P, 1)) not in scene.heard

    scene.stop_writer()
    with pytest.raises(SyncFailedError, match="start anew"):  # one of the same tree, which may have read too much
        scene.start_writer()
    assert signals == [supervisor] * 2


def test_with_the_weaker_durability_the_sync_comes_a_moment_after_the_answer_and_once_for_many(scene):
    scene.start_writer("process")
    scene.writer.give(hello(P), publish(P, 1, b"1"))
    scene.writer.give(publish(P, 2, b"2"))
    scene.collect()
    log = scene.writer.actor._log
    assert scene.heard[-1] == (P, Acknowledged(P, 2))
    assert log.synced < log.commit

    scene.writer.actor.on_timer(SyncDue())

    assert log.synced == log.commit


def test_what_is_unfinished_is_pushed_again_for_a_new_writer_and_not_for_one_that_asks_once_more(scene):
    scene.start_writer()
    scene.start_scheduler()
    scene.writer.give(hello(P), hello(C, "consumer"), publish(P, 1, b"1"))
    scene.settle()

    scene.writer.actor.on_timer(RoomAgain())
    assert [message for _, message in scene.settle() if isinstance(message, Push)] == []

    scene.stop_writer()
    scene.start_writer()
    assert [push.entries[0][0] for _, push in scene.settle() if isinstance(push, Push)] == [f"{P}-1"]

"""A client's session: what is repeated, to whom, and what a client never takes for an answer."""

from __future__ import annotations

import os
import threading

import pytest

from actorq.actors import Mailbox, PacketSocket
from actorq.actors.packets import close_fds
from actorq.brokered_publisher import BrokeredPublisher
from actorq.brokers import session as session_module
from actorq.brokers.messages import (
    Acknowledged,
    AwaitIdle,
    Confirm,
    Connect,
    Detach,
    Event,
    EventOwner,
    Forgotten,
    Gap,
    Hello,
    MalformedEventError,
    Refused,
    Report,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.session import Brokers, Session
from actorq.brokers.slot import Slot
from actorq.errors import ActorStoppedError, MailboxFullError
from actorq.publisher import Chunk
from actorq.tasks.ids import IdRange
from tests.brokers.stage import packets, said
from tests.helpers import limit


class Scene:
    """A session, the brokers' mailboxes, and the end of its channel that the Router would have."""

    def __init__(self):
        self.brokers = Brokers(*[Mailbox(1 << 14, name) for name in ("writer", "scheduler", "registry")])
        self.session = Session(self.brokers, EventOwner.PUBLISHER)
        self.connect()

    def connect(self):
        self.session.connect(1.0)
        self.meet()

    def meet(self):
        """Take the channel out of the Registry's mailbox."""
        (packet,) = packets(self.brokers.registry)
        assert Event.decode(packet.data).message == Connect(self.session.id, "publisher", os.getpid())
        os.close(packet.fds[1])
        self.channel = PacketSocket(packet.fds[0])

    def hear(self, message):
        self.channel.send(Event(EventOwner.ROUTER, message).encode())
        return self.session.receive(1.0)

    def ask(self, *numbers):
        """Add requests to the session, of which nothing is sent."""
        for number in numbers:
            request = self.session.requests.add(self.session.encode(AwaitIdle(self.session.id, number)))
            assert request.first == number

    def asked(self):
        """Return what has come to the writer: 0 for the hello."""
        return [0 if isinstance(message, Hello) else message.ticket for message in said(self.brokers.writer)]


def fill(mailbox):
    while mailbox.try_send(b"x" * 1000):
        pass


@pytest.fixture
def scene():
    return Scene()


def test_a_new_router_and_a_new_writer_get_all_that_is_not_acknowledged(scene):
    scene.ask(1, 2)

    assert scene.hear(RouterStarted()) == RouterStarted()
    assert scene.asked() == [0, 1, 2]
    scene.hear(Acknowledged(scene.session.id, 1))
    scene.hear(WriterStarted(2, []))
    assert scene.asked() == [2]


def test_behind_a_gap_everything_is_repeated_and_before_it_nothing(scene):
    scene.ask(1, 2, 3)

    scene.hear(Gap(scene.session.id, 2))

    assert scene.asked() == [2, 3]


@pytest.fixture
def consumer(scene):
    """Return a scene with the session of a consumer."""
    scene.session.close()
    slot = Slot()
    scene.session = Session(scene.brokers, EventOwner.CONSUMER, slot)
    scene.session.connect(1.0)
    (packet,) = packets(scene.brokers.registry)
    scene.channel = PacketSocket(packet.fds[0])
    close_fds(packet.fds[1:])
    yield scene
    scene.session.close()
    slot.close()


@pytest.mark.parametrize("news", [RouterStarted(), WriterStarted(2, [])], ids=["router", "writer"])
def test_a_consumer_with_nothing_to_say_repeats_its_last_request_to_hear_whether_it_is_known(consumer, news):
    session = consumer.session
    consumer.hear(news)
    assert [type(message) for message in said(consumer.brokers.writer)] == [Hello]
    consumer.hear(Acknowledged(session.id, 0))

    consumer.hear(news)

    assert said(consumer.brokers.writer) == [Confirm(session.id, 0)]


@pytest.mark.parametrize("news", [RouterStarted(), WriterStarted(2, [])], ids=["router", "writer"])
def test_a_consumer_asks_whether_it_is_known_also_when_something_else_is_on_its_way(consumer, news):
    session = consumer.session
    consumer.hear(RouterStarted())
    consumer.hear(Acknowledged(session.id, 0))
    report = Report(session.id, 1, [["done", "abcdefghijkl-1", 1, ""]])
    session.requests.add(session.encode(report))
    said(consumer.brokers.writer)

    consumer.hear(news)

    assert said(consumer.brokers.writer) == [report, Confirm(session.id, 0)]


def test_a_consumer_that_is_not_answered_whether_it_is_known_asks_again(consumer):
    session = consumer.session
    consumer.hear(Acknowledged(session.id, 0))
    consumer.hear(WriterStarted(2, []))
    said(consumer.brokers.writer)

    session.repeat_after_silence()
    assert said(consumer.brokers.writer) == [Confirm(session.id, 0)]
    consumer.hear(Acknowledged(session.id, 0))
    session.repeat_after_silence()

    assert said(consumer.brokers.writer) == []


def test_a_consumer_that_finds_the_mailbox_full_asks_whether_it_is_known_when_there_is_room(consumer, monkeypatch):
    monkeypatch.setattr(session_module, "SEND_AGAIN_SECONDS", 0.01)
    session = consumer.session
    consumer.hear(Acknowledged(session.id, 0))
    said(consumer.brokers.writer)
    while consumer.brokers.writer.try_send(b"x" * 1000):
        pass
    consumer.hear(WriterStarted(2, []))
    assert all(packet.data == b"x" * 1000 for packet in packets(consumer.brokers.writer))

    session.repeat_after_silence()

    assert said(consumer.brokers.writer) == [Confirm(session.id, 0)]


def test_a_publisher_with_nothing_to_say_says_nothing(scene):
    scene.hear(Acknowledged(scene.session.id, 0))

    scene.hear(WriterStarted(2, []))

    assert said(scene.brokers.writer) == []


def test_a_consumer_whose_acknowledged_requests_are_asked_for_again_asks_back(consumer):
    session = consumer.session
    for _ in range(2):
        session.requests.add(b"a report")
    consumer.hear(Acknowledged(session.id, 1))

    consumer.hear(Gap(session.id, 2))
    assert [packet.data for packet in packets(consumer.brokers.writer)] == [b"a report"]
    consumer.hear(Gap(session.id, 1))
    _, asked = packets(consumer.brokers.writer)

    assert Event.decode(asked.data).message == Confirm(session.id, 1)


def test_who_hears_that_the_log_has_lost_it_is_forgotten_and_not_by_an_old_gap(consumer):
    session = consumer.session
    consumer.hear(Acknowledged(session.id, 0))
    consumer.hear(Gap(session.id, 0))
    assert not session.is_forgotten

    consumer.hear(Forgotten(session.id))

    assert session.is_forgotten


def test_a_refusal_acknowledges_what_was_before_it(scene):
    scene.ask(1, 2, 3)

    scene.hear(Refused(scene.session.id, 3, "disk_full", "", 0, ""))

    assert scene.session.requests.oldest == 3
    assert repr(scene.session) == f"<Session {scene.session.id} publisher <Requests up to 3: 1 not acknowledged>>"


def test_what_finds_no_room_at_the_writer_is_repeated_another_time(scene, monkeypatch):
    monkeypatch.setattr(session_module, "SEND_AGAIN_SECONDS", 0.0)
    fill(scene.brokers.writer)

    scene.hear(RouterStarted())
    packets(scene.brokers.writer)
    scene.hear(RouterStarted())

    assert scene.asked() == [0]


def test_a_message_that_is_for_a_broker_is_refused(scene):
    with pytest.raises(MalformedEventError, match="not for a client"):
        scene.hear(Detach(scene.session.id))


def test_silence_is_no_message(scene):
    assert scene.session.receive(0.0) is None


def test_a_channel_that_has_ended_is_replaced(scene):
    scene.channel.close()

    assert scene.session.receive(0.0) is None
    scene.meet()

    assert scene.hear(RouterStarted()) == RouterStarted()
    assert scene.session.connections == 2


def test_a_channel_for_which_the_registry_has_no_room_is_replaced_again_later(scene):
    scene.channel.close()
    fill(scene.brokers.registry)
    assert scene.session.receive(0.0) is None

    packets(scene.brokers.registry)
    assert scene.session.receive(0.0) is None
    scene.meet()

    assert scene.hear(RouterStarted()) == RouterStarted()


def test_a_request_waits_for_room_and_then_says_that_there_is_none(scene):
    fill(scene.brokers.writer)

    with pytest.raises(MailboxFullError):
        scene.session.send(scene.session.requests.since()[0], 0.0)


def test_brokers_that_will_never_run_again_are_told_from_busy_ones(scene):
    scene.brokers.scheduler.reader.close()

    with pytest.raises(ActorStoppedError):
        scene.session.ask_scheduler(AwaitIdle(scene.session.id, 1), 0.0)


def test_who_hangs_up_is_seen_to_have_gone_and_twice_is_once(scene):
    scene.session.close()
    scene.session.close()

    with pytest.raises(EOFError):
        scene.channel.try_receive()


def test_a_refusal_of_what_was_acknowledged_since_is_void():
    """A hello was refused on a full disk, and its second copy let in; the answers come on two ways, in any order."""
    brokers = Brokers(*[Mailbox(1 << 14, name) for name in ("writer", "scheduler", "registry")])
    published = []
    publisher = BrokeredPublisher(brokers)
    thread = threading.Thread(target=lambda: published.append(publisher.publish([Chunk([b"1"])], "work", limit(10))))
    thread.start()
    packet = brokers.registry.receive(limit(10))
    assert packet is not None
    session = Event.decode(packet.data).message.session  # type: ignore[union-attr]
    channel = PacketSocket(packet.fds[0])
    refused = Refused(session, 0, "disk_full", "", 0, "/q/Queue.json")

    for answer in (Acknowledged(session, 0), refused, Acknowledged(session, 1)):
        channel.send(Event(EventOwner.ROUTER, answer).encode())

    thread.join(limit(10))
    assert published == [[IdRange(session, 1, 1)]]
    publisher.close()
    channel.close()
    os.close(packet.fds[1])

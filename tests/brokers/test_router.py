"""The Router: frames go to those that are attached, and what is none of its business harms nobody."""

from __future__ import annotations

import os

import pytest

from actorq.actors import Mailbox, PacketSocket
from actorq.brokers.messages import (
    Attach,
    Barrier,
    Channel,
    Connected,
    Deliver,
    Detach,
    Event,
    EventOwner,
    Recall,
    RegistryStarted,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.router import Router
from tests.brokers.stage import Stage, limits_kept, packets, said

P, Q, C = (letter * 12 for letter in "pqc")


class Scene:
    """A Router, the mailboxes that it sends to, and clients by session."""

    def __init__(self):
        self.registry, self.scheduler = Mailbox(1 << 20, "registry"), Mailbox(1 << 20, "scheduler")
        self.stage = Stage(Router, self.registry, self.scheduler)
        self.give = self.stage.give
        self.clients = {}

    def attach(self, session, role="publisher"):
        mine, its = PacketSocket.pair(1 << 16)
        self.clients[session] = mine
        pidfd = os.pidfd_open(os.getpid())
        self.give(Attach(session, role, os.getpid()), fds=[its.fileno(), pidfd])
        os.close(pidfd)
        its.close()

    def heard(self, session):
        """Return what has come to a client."""
        found = []
        while (packet := self.clients[session].try_receive()) is not None:
            found.append(Event.decode(packet.data).message)
        return found


@pytest.fixture
def scene():
    with limits_kept():
        scene = Scene()
        yield scene
        scene.give(*[Detach(session) for session in scene.clients])


def delivery(*frames):
    return Deliver([[session, len(frame)] for session, frame in frames], b"".join(frame for _, frame in frames))


RECALL = Event(EventOwner.ROUTER, Recall()).encode()


def test_it_says_that_it_has_started_to_the_registry_and_to_each_client_that_is_attached(scene):
    scene.attach(P)
    scene.attach(C, "consumer")

    assert said(scene.registry) == [RouterStarted()]
    assert scene.heard(P) == [RouterStarted()]
    assert said(scene.scheduler) == [Connected(C)]  # of publishers it need not know


def test_what_is_for_somebody_unknown_is_dropped_and_the_others_get_theirs(scene):
    scene.attach(P)
    scene.heard(P)

    scene.give(delivery((Q, b"for somebody else"), (P, RECALL)))

    assert scene.heard(P) == [Recall()]


@pytest.mark.parametrize("stray", [b"no event\n", b'["gap","router"]\n', Barrier(P, 1)])
def test_what_is_no_message_for_it_is_dropped_and_reported_and_what_comes_behind_is_handled(scene, stray, caplog):
    scene.attach(P)
    scene.heard(P)

    scene.give(stray, delivery((P, RECALL)))

    assert scene.heard(P) == [Recall()]
    assert "message dropped" in caplog.text


def test_a_client_that_is_attached_again_hears_through_its_new_channel_only(scene):
    scene.attach(P)
    old = scene.clients[P]
    scene.attach(P)
    assert scene.heard(P) == [RouterStarted()]

    assert old.try_receive() is not None  # what was said before
    with pytest.raises(EOFError):
        old.try_receive()


def test_a_client_that_is_detached_has_no_channel_any_more_and_twice_is_once(scene):
    scene.attach(P)
    scene.heard(P)

    scene.give(Detach(P), Detach(P), delivery((P, RECALL)))

    with pytest.raises(EOFError):
        scene.clients[P].try_receive()


def test_all_clients_hear_of_a_new_writer(scene):
    scene.attach(P)
    scene.attach(C, "consumer")

    scene.give(WriterStarted(7, []))

    assert [scene.heard(session)[-1] for session in (P, C)] == [WriterStarted(7, [])] * 2


def test_a_new_registry_gets_every_channel(scene):
    scene.attach(P)
    scene.attach(C, "consumer")
    packets(scene.registry)

    scene.give(RegistryStarted())

    handed = packets(scene.registry)
    assert [Event.decode(packet.data).message for packet in handed] == [
        Channel(P, "publisher", os.getpid(), True),
        Channel(C, "consumer", os.getpid(), True),
    ]
    for packet, session in zip(handed, (P, C), strict=True):
        channel = PacketSocket(packet.fds[0])
        channel.send(b"through the duplicate")
        scene.clients[session].try_receive()  # that the Router has started
        received = scene.clients[session].try_receive()
        assert received is not None
        assert received.data == b"through the duplicate"
        channel.close()

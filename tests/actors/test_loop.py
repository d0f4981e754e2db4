"""The loop of an actor, run by the test itself."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from actorq.actors import Actor, ActorRef, Mailbox, Packet, PacketSocket
from actorq.actors.loop import BATCH_MESSAGES, BATCH_SECONDS, Loop
from actorq.actors.status import Status
from tests.actors.cast import Add

if TYPE_CHECKING:
    from collections.abc import Iterator


class Scene(Actor):
    """Does what the test has written down, and ends."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def receive(self, message: object) -> object:
        self.seen.append(message)
        if message == "stop":
            self.stop()
        if callable(message):
            message()
        return None


class FrameScene(Actor):
    """Notes which frames came in one go, and does what each says."""

    frames = True

    def __init__(self) -> None:
        self.seen: list[list[bytes]] = []
        self.leaves_early = False
        self.seconds_each = 0.0

    def receive_frames(self, frames: Iterator[Packet]) -> None:
        seen: list[bytes] = []
        self.seen.append(seen)
        for frame in frames:
            seen.append(frame.data)
            time.sleep(self.seconds_each)
            if frame.data == b"stop":
                self.stop()
            if frame.data.startswith(b"send "):
                self.ref.send(frame.data.removeprefix(b"send "))
            if self.leaves_early:
                return


@pytest.fixture(params=[Scene])
def stage(request):
    """Return an actor that stands in its loop, its ref, and a function that runs the loop until it ends."""
    mailbox = Mailbox(name="scene")
    assert mailbox.reader is not None
    assert mailbox.writer is not None
    ours, theirs = PacketSocket.pair()
    loop = Loop("scene", mailbox.reader, lambda: None)
    ref = ActorRef("scene", "token", mailbox.writer, None)
    actor = request.param()
    actor.attach_to(loop, ref, Status(theirs))

    def run():
        signal.alarm(10)
        try:
            loop.run(actor)
        finally:
            signal.alarm(0)

    yield actor, ref, run
    ours.close()
    mailbox.close()


def test_it_handles_what_waits_and_nothing_after_a_stop(stage):
    actor, ref, run = stage
    for message in ("a", "stop", "b"):
        ref.tell(message)
    run()
    assert actor.seen == ["a", "stop"]


of_frames = pytest.mark.parametrize("stage", [FrameScene], indirect=True)


@of_frames
def test_frames_that_come_while_one_is_handled_are_handled_with_it(stage):
    actor, ref, run = stage
    for frame in (b"a", b"send send b", b"c", b"send stop"):
        ref.send(frame)
    run()
    assert actor.seen == [[b"a", b"send send b", b"c", b"send stop", b"send b", b"stop"]]


@of_frames
def test_frames_behind_a_stop_are_left_to_the_next_incarnation(stage):
    actor, ref, run = stage
    for frame in (b"a", b"stop", b"b"):
        ref.send(frame)
    run()
    assert actor.seen == [[b"a", b"stop"]]
    assert actor._loop._mailbox.try_receive().data == b"\x03b"


@of_frames
def test_frames_that_an_actor_does_not_ask_for_are_offered_again(stage):
    actor, ref, run = stage
    actor.leaves_early = True
    for frame in (b"a", b"b", b"stop"):
        ref.send(frame)
    run()
    assert actor.seen == [[b"a"], [b"b"], [b"stop"]]


@of_frames
@pytest.mark.parametrize(("seconds_each", "most"), [(0.0, BATCH_MESSAGES), (BATCH_SECONDS / 2, 2)])
def test_frames_without_end_let_the_timers_have_their_turn(stage, seconds_each, most):
    actor, ref, run = stage
    actor.seconds_each = seconds_each
    turns = []

    def before_wait():
        turns.append(len(actor.seen[-1]))
        if len(turns) == 3:
            ref.send(b"stop")
        return False

    actor.before_wait = before_wait
    ref.send(b"send " * 1000)
    run()
    assert all(0 < turn <= most for turn in turns[:3])


def test_a_stop_in_a_listener_ends_it_before_the_next_message(stage):
    actor, ref, run = stage
    read, write = os.pipe()

    def on_readable():
        ref.tell("too late")
        actor.stop()

    actor.listen(read, on_readable)
    os.write(write, b"x")
    run()
    assert actor.seen == []
    os.close(read)
    os.close(write)


def test_one_who_has_more_to_do_is_not_made_to_wait_and_hears_of_everything_meanwhile(stage, monkeypatch):
    actor, ref, run = stage
    calls = []

    def before_wait():
        calls.append(list(actor.seen))
        if len(calls) == 3:
            ref.tell("message")
        if len(calls) == 5:
            ref.tell("stop")
        return len(calls) < 5 or None  # as one that says nothing about it

    monkeypatch.setattr(actor, "before_wait", before_wait)
    run()  # or the alarm rings: nobody else sends anything

    assert calls == [[], [], [], ["message"], ["message"], ["message", "stop"]]


def test_timers_have_their_turn_while_messages_flood(stage):
    actor, ref, run = stage
    actor.after(0.0, "timer")
    for n in range(2000):
        ref.tell(Add(n))
    actor.after(0.001, "stop")
    run()
    assert len(actor.seen) < 2000
    assert "timer" in actor.seen


def test_news_of_a_closed_fd_are_not_taken_for_news_of_the_next_one_of_its_number(stage):
    actor, ref, run = stage
    pipes = [os.pipe() for _ in range(2)]
    called = []

    def listener_of(one, other):
        def on_readable():
            called.append(one)
            actor.unlisten(one)
            actor.unlisten(other)
            os.close(other)
            replacement, _ = os.pipe()
            assert replacement == other
            actor.listen(replacement, lambda: called.append("of the closed one"))
            ref.tell("stop")

        return on_readable

    (a, a_write), (b, b_write) = pipes
    actor.listen(a, listener_of(a, b))
    actor.listen(b, listener_of(b, a))
    os.write(a_write, b"x")
    os.write(b_write, b"x")
    run()
    assert len(called) == 1


def test_a_number_may_be_listened_to_again_after_its_fd_was_closed(stage):
    actor, ref, run = stage
    read, write = os.pipe()
    actor.listen(read, lambda: None)
    os.close(read)
    os.close(write)
    read_again, write_again = os.pipe()
    assert read_again == read
    actor.listen(read_again, lambda: ref.tell("stop"))
    os.write(write_again, b"x")
    run()
    assert actor.seen == ["stop"]
    actor.unlisten(read_again)
    actor.unlisten(read_again)


def test_a_packet_that_cannot_be_received_is_loud_and_lost_and_nothing_else(stage, caplog):
    actor, ref, run = stage
    raw = PacketSocket(os.dup(ref.mailbox_writer.fileno()))
    raw._sendmsg([b"\x07garbage"])
    ref.tell("stop")
    run()
    assert actor.seen == ["stop"]
    assert "cannot receive a message, which is lost" in caplog.text


def test_a_marker_that_was_meant_for_another_incarnation_stops_nobody(stage):
    actor, ref, run = stage
    ref.mailbox_writer.send(b"\x04", b"the token of another")
    ref.tell("still here")
    ref.tell("stop")
    run()
    assert actor.seen == ["still here", "stop"]


def test_an_outbox_is_flushed_while_the_actor_has_nothing_else_to_do(stage):
    actor, ref, run = stage
    one, other = PacketSocket.pair(1)
    outbox = actor.outbox(one)
    sent = 0
    while outbox.pending < 10_000:
        outbox.send(b"x" * 500)
        sent += 1
    received = []

    def read_some():
        while (packet := other.try_receive()) is not None:
            received.append(packet)
        if len(received) == sent:
            ref.tell("stop")
        else:
            actor.after(0.005, read_some)

    actor.after(0, read_some)
    run()
    assert len(received) == sent
    assert outbox.pending == 0

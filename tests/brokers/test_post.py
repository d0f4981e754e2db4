"""Post: many small deliveries in few frames, none of them too large, and all in order."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from actorq.actors import Mailbox, Packet
from actorq.actors.outbox import Outbox
from actorq.brokers.messages import Attach, Channel, Connect, Deliver, Detach, Event, EventOwner, Push
from actorq.brokers.post import MAX_FRAME_BYTES, Post, messages_in
from tests.brokers.stage import said


@pytest.mark.parametrize("size", [100, 10_000, 100_000])
def test_deliveries_go_out_in_order_in_frames_of_a_bounded_size(size):
    mailbox = Mailbox(4 << 20)
    broker: Any = SimpleNamespace(outbox=Outbox.to)
    post = Post(broker, mailbox, EventOwner.ROUTER)
    for number in range(10):
        post.deliver(f"{number:012}", Push([], b"x" * size))
    post.flush()
    post.flush()  # there is nothing more

    frames = said(mailbox)

    assert all(isinstance(frame, Deliver) for frame in frames)
    assert [session for frame in frames for session, _ in frame.entries] == [f"{number:012}" for number in range(10)]
    assert all(len(frame.body) <= MAX_FRAME_BYTES or len(frame.entries) == 1 for frame in frames)
    assert len(frames) == {100: 1, 10_000: 3, 100_000: 10}[size]


@pytest.mark.parametrize(
    ("message", "number"),
    [
        (Connect("p" * 12, "publisher", 1), 1),
        (Attach("p" * 12, "publisher", 1), 0),
        (Channel("p" * 12, "publisher", 1, True), 5),
        (Detach("p" * 12), 1),
        (None, 2),
    ],
)
def test_a_message_without_its_descriptors_or_with_too_many_is_dropped_and_leaves_none_open(message, number):
    fds = tuple(os.dup(0) for _ in range(number))
    frame = b"[1, 2\n" if message is None else Event(EventOwner.PUBLISHER, message).encode()
    after = Event(EventOwner.PUBLISHER, Detach("q" * 12)).encode()

    found = list(messages_in([Packet(frame, fds), Packet(after)]))

    assert found == [(Detach("q" * 12), ())]
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

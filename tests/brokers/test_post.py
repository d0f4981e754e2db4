"""Post: many small deliveries in few frames, none of them too large, and all in order."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actorq.actors import Mailbox
from actorq.actors.outbox import Outbox
from actorq.brokers.messages import Deliver, EventOwner, Push
from actorq.brokers.post import MAX_FRAME_BYTES, Post
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

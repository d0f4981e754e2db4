"""Objects as bytes plus fds."""

from __future__ import annotations

import gc
import os

import pytest

from actorq.actors import ActorRef, Fd, Mailbox, PacketSocket
from actorq.actors.packets import MAX_FDS
from actorq.actors.wire import pack, unpack


def through_the_kernel(value):
    one, other = PacketSocket.pair()
    data, fds = pack(value)
    one.send(data, fds=fds)
    packet = other.receive(1)
    assert packet is not None
    return unpack(packet.data, packet.fds)


def open_fds():
    gc.collect()  # what earlier tests left in the frames of their exceptions
    return len(os.listdir("/proc/self/fd"))


def test_plain_values_need_no_fds():
    data, fds = pack({"a": [1, 2.5, None]})
    assert not fds
    assert unpack(data) == {"a": [1, 2.5, None]}


def test_one_channel_in_many_places_travels_once():
    box = Mailbox(name="box")
    _, fds = pack([box, box, {"again": box}])
    assert len(fds) == 2
    received = through_the_kernel([box, box])
    assert received[0] is received[1]
    received[0].put("hello")
    assert box.get(timeout=1) == "hello"


def test_a_ref_carries_writing_ends_only():
    mailbox, supervisor = Mailbox(), Mailbox()
    assert mailbox.writer is not None
    ref = ActorRef("somebody", "token", mailbox.writer, supervisor.writer)
    _, fds = pack(ref)
    assert len(fds) == 2
    received = through_the_kernel(ref)
    assert received == ref
    assert hash(received) == hash(ref)
    assert repr(received) == "<ActorRef 'somebody'>"
    received.tell("hello")
    assert mailbox.get(timeout=1) == "hello"


def test_any_fd_can_be_wrapped():
    read, write = os.pipe()
    received = through_the_kernel(["x", Fd(write)])[1]
    os.write(received.fileno(), b"hello")
    assert os.read(read, 10) == b"hello"
    os.close(read)


def test_too_many_channels_in_one_message_are_refused_in_one_line():
    read, write = os.pipe()
    wrapped = [Fd(os.dup(write)) for _ in range(MAX_FDS + 1)]
    with pytest.raises(ValueError, match="254 fds in one message; the kernel carries 253"):
        pack(wrapped)
    os.close(read)
    os.close(write)


def test_a_closed_channel_cannot_travel():
    one, other = PacketSocket.pair()
    one.close()
    with pytest.raises(Exception, match="closed channel"):
        pack([one])
    other.close()


class Explodes:
    def __init__(self) -> None:
        self.channel = PacketSocket.pair()[0]

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("no")


def test_no_fd_is_left_over_whatever_happens():
    before = open_fds()
    for _ in range(20):
        through_the_kernel(["dropped", Mailbox()])
        with pytest.raises(RuntimeError):
            through_the_kernel(Explodes())
        read, write = os.pipe()
        os.close(read)
        unpack(pack("takes no fd")[0], [write])
    assert open_fds() == before

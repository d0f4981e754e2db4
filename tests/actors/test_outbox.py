"""Sends that never wait."""

from __future__ import annotations

import os
import resource

import pytest

from actorq.actors import Mailbox, Outbox, PacketSocket
from actorq.errors import MailboxFullError


def numbers_in(end):
    numbers = []
    while (packet := end.try_receive()) is not None:
        numbers.append(int(packet.data[:8]))
    return numbers


def test_what_finds_no_room_is_kept_and_sent_later_in_order():
    one, other = PacketSocket.pair(1)
    outbox = Outbox.to(one)
    sizes = [1, 100, 3000, 100_000, 5, 2000]
    for number in range(60):
        assert outbox.send(b"%08d" % number, b"x" * sizes[number % len(sizes)])
    assert outbox.pending > 0
    received = []
    while outbox.pending:
        received += numbers_in(other)
        assert outbox.flush()
    assert received + numbers_in(other) == list(range(60))
    assert not outbox.flush()


def test_parts_are_copied_so_that_the_caller_may_reuse_them():
    one, other = PacketSocket.pair(1)
    outbox = Outbox.to(one)
    buffer = bytearray(b"00000001")
    while not outbox.pending:
        outbox.send(buffer)
    buffer[:] = b"00000002"
    numbers_in(other)
    outbox.flush()
    assert numbers_in(other) == [1]


def test_kept_fds_are_duplicates():
    one, other = PacketSocket.pair(1)
    outbox = Outbox.to(one)
    while not outbox.pending:
        outbox.send(b"0")
    read, write = os.pipe()
    outbox.send(b"1", fds=[write])
    os.close(write)
    numbers_in(other)
    outbox.flush()
    assert other.try_receive() is not None
    packet = other.try_receive()
    assert packet is not None
    os.write(packet.fds[0], b"alive")
    assert os.read(read, 10) == b"alive"
    for fd in (read, *packet.fds):
        os.close(fd)


def test_beyond_its_limit_it_refuses():
    one, _other = PacketSocket.pair(1)
    outbox = Outbox.to(one, limit_bytes=1000)
    while outbox.pending < 900:
        assert outbox.send(b"x" * 300)
    with pytest.raises(MailboxFullError):
        outbox.send(b"x" * 300)
    assert outbox.pending == 900


@pytest.mark.parametrize("kept", [False, True])
def test_a_receiver_that_is_gone_is_reported_once_and_sends_are_dropped(kept):
    one, other = PacketSocket.pair(1)
    reports = []
    outbox = Outbox.to(one, on_broken=lambda: reports.append("broken"))
    if kept:
        while not outbox.pending:
            outbox.send(b"x" * 100)
    other.close()
    if kept:
        outbox.flush()
    assert not outbox.send(b"x")
    assert not outbox.send(b"x")
    assert reports == ["broken"]
    assert outbox.pending == 0
    assert outbox.is_broken


def test_to_a_mailbox_it_sends_frames():
    box = Mailbox(name="box")
    Outbox.to(box).send(b"a", b"b")
    packet = box.receive(0)
    assert packet is not None
    assert packet.data == b"ab"


def test_a_retired_one_sends_what_it_has_and_closes():
    one, other = PacketSocket.pair(1)
    outbox = Outbox.to(one)
    while not outbox.pending:
        outbox.send(b"00000001")
    outbox.retire()
    assert not outbox.is_broken
    numbers_in(other)
    outbox.flush()
    assert outbox.is_broken
    assert numbers_in(other) == [1]


def test_a_packet_that_cannot_be_kept_for_lack_of_descriptors_leaves_none_open():
    one, _other = PacketSocket.pair(1)
    outbox = Outbox.to(one)
    while not outbox.pending:
        outbox.send(b"0")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(3)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[1] + 1, before[1]))  # room for two more
    try:
        for _ in range(3):
            with pytest.raises(OSError, match="Too many open files"):
                outbox.send(b"1", fds=[0, 0, 0])
        os.close(os.dup(0))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)

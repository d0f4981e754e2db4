"""Whole packets between processes."""

from __future__ import annotations

import errno
import gc
import os
import queue
import socket
import threading
import time

import pytest

from actorq.actors import Packet, PacketSocket
from actorq.actors import packets as packets_module
from actorq.actors.packets import INLINE_BYTES, MAX_FDS
from tests.helpers import limit


@pytest.fixture
def pair():
    one, other = PacketSocket.pair()
    yield one, other
    one.close()
    other.close()


def open_fds():
    gc.collect()  # what earlier tests left in the frames of their exceptions
    return len(os.listdir("/proc/self/fd"))


def test_each_send_arrives_as_one_packet(pair):
    one, other = pair
    one.send(b"a", b"bc", memoryview(b"d"))
    one.send(b"second")
    assert other.receive(1) == Packet(b"abcd", ())
    assert other.receive(1) == Packet(b"second", ())


def test_both_ends_send_and_receive(pair):
    one, other = pair
    other.send(b"hello")
    assert one.receive(1) == Packet(b"hello", ())


@pytest.mark.parametrize("size", [0, 1, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 1 << 20])
def test_packets_of_any_size_arrive_as_they_were(pair, size):
    one, other = pair
    data = os.urandom(size)
    one.send(data)
    packet = other.receive(1)
    assert packet == Packet(data, ())


def test_a_packet_of_64_mebibytes_arrives(pair):
    one, other = pair
    data = os.urandom(1 << 20) * 64
    one.send(b"head", data)
    packet = other.receive(5)
    assert packet is not None
    assert packet.data == b"head" + data


def test_the_smallest_buffer_the_kernel_gives_still_carries_everything():
    one, other = PacketSocket.pair(1)
    assert one.buffer_bytes() < 5000
    for size in (1, 1000, 4570, 4576, 5000, 30_000, 100_000):
        one.send(b"x" * size, timeout=1)
        assert other.receive(1) == Packet(b"x" * size, ())


def test_fds_travel_with_packets_small_and_large(pair):
    one, other = pair
    for size in (1, 1 << 20):
        read, write = os.pipe()
        one.send(b"x" * size, fds=(write,))
        os.close(write)
        packet = other.receive(1)
        assert packet is not None
        os.write(packet.fds[0], b"through")
        assert os.read(read, 100) == b"through"
        assert not os.get_inheritable(packet.fds[0])
        for fd in (read, *packet.fds):
            os.close(fd)


def test_more_fds_than_the_kernel_carries_are_refused_in_one_line(pair):
    with pytest.raises(ValueError, match="254 fds in one packet"):
        pair[0].send(b"x", fds=[0] * (MAX_FDS + 1))


def test_as_many_fds_as_the_kernel_carries_arrive(pair):
    one, other = pair
    one.send(b"x", fds=[one.fileno()] * MAX_FDS)
    packet = other.receive(1)
    assert packet is not None
    assert len(packet.fds) == MAX_FDS
    for fd in packet.fds:
        os.close(fd)


def test_receive_waits_no_longer_than_told(pair):
    start = time.monotonic()
    assert pair[0].receive(0.05) is None
    assert 0.04 < time.monotonic() - start < limit(0.5)
    assert pair[0].try_receive() is None


def test_a_closed_other_end_is_eof_and_a_broken_pipe(pair):
    one, other = pair
    other.close()
    with pytest.raises(EOFError):
        one.receive(1)
    with pytest.raises(BrokenPipeError):
        one.send(b"x")
    with pytest.raises(BrokenPipeError):
        one.try_send(b"x")


def test_what_was_sent_before_the_end_is_received_even_if_the_dead_left_packets_unread(pair):
    # The kernel then reports ECONNRESET once, ahead of what is still to be read.
    one, other = pair
    one.send(b"never read")
    other.send(b"last words")
    other.send(b"very last words")
    other.close()
    assert one.receive(1) == Packet(b"last words", ())
    assert one.receive(1) == Packet(b"very last words", ())
    with pytest.raises(EOFError):
        one.receive(1)


def test_a_last_packet_is_not_taken_for_the_end_however_closely_that_follows():
    # The kernel looks for a packet first and for the end second: both may come in between.
    taken = ends = 0
    for _ in range(20):
        pairs = [PacketSocket.pair(None) for _ in range(200)]
        pid = os.fork()
        if pid == 0:
            try:
                for receiver, sender in pairs:
                    receiver.close()
                    sender.receive(10)  # the receiver is about to look
                    sender.send(b"last")
                    sender.close()
            finally:
                os._exit(0)
        for _, sender in pairs:
            sender.close()
        for receiver, _ in pairs:
            receiver.send(b"go")
            try:
                while (packet := receiver.try_receive()) is None:
                    pass
                taken += packet.data == b"last"
            except EOFError:
                ends += 1
            receiver.close()
        os.waitpid(pid, 0)
    assert (taken, ends) == (20 * 200, 0)


def test_the_end_is_believed_at_the_second_look_only(pair):
    # What the kernel says when the last packet and the end come between its two looks: once in some 100,000 times.
    one, other = pair
    other.send(b"last")
    other.close()
    real, looks = one._recvmsg, []

    def recvmsg(*arguments):
        looks.append(arguments)
        return (b"", [], 0, None) if len(looks) == 1 else real(*arguments)

    one._recvmsg = recvmsg
    assert one.try_receive() == Packet(b"last", ())
    with pytest.raises(EOFError):
        one.try_receive()


def test_sending_to_one_who_left_packets_unread_is_a_broken_pipe(pair):
    one, other = pair
    one.send(b"never read")
    other.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            one.try_send(b"x")


def fill(sender):
    count = 0
    while sender.try_send(b"x" * 1000):
        count += 1
    return count


def test_a_full_socket_says_so_and_at_the_deadline_raises_full(pair):
    one, _other = pair
    assert fill(one) > 100
    with pytest.raises(queue.Full):
        one.send(b"x", timeout=0.05)
    with pytest.raises(queue.Full):
        one.send(b"x" * (1 << 20), timeout=0)


def test_a_waiting_sender_gets_through_within_50_ms_after_one_packet_is_taken(pair):
    one, other = pair
    fill(one)
    sent = []

    def send_one():
        one.send(b"last", timeout=5)
        sent.append(time.monotonic())

    sender = threading.Thread(target=send_one)
    sender.start()
    time.sleep(0.1)  # the sender is now in its longest slices
    assert not sent
    taken = time.monotonic()
    other.receive(1)
    sender.join(5)
    assert sent[0] - taken < limit(0.05)


def test_a_shut_receiver_refuses_what_comes_and_keeps_what_came(pair):
    one, other = pair
    one.send(b"before")
    other.shut_receiving()
    with pytest.raises(BrokenPipeError):
        one.send(b"after")
    assert other.receive(1) == Packet(b"before", ())
    with pytest.raises(EOFError):
        other.receive(1)


def test_the_open_file_is_never_made_non_blocking_for_its_other_holders(pair, monkeypatch):
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(3)
    try:
        duplicate = pair[0].duplicate()
    finally:
        socket.setdefaulttimeout(before)
    assert os.get_blocking(duplicate.fileno())
    assert duplicate.receive(0.01) is None
    assert os.get_blocking(pair[0].fileno())


def raw_end(end):
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=os.dup(end.fileno()))


@pytest.mark.parametrize(
    ("data", "make_fds"),
    [
        pytest.param(b"\x01", lambda: list(os.pipe()), id="a pipe in place of a memfd, which a read would block on"),
        pytest.param(b"\x01", lambda: [os.memfd_create("unsealed")], id="a memfd that its sender can still change"),
        pytest.param(b"\x01", list, id="no fd at all"),
        pytest.param(b"\x07what", list, id="an unknown kind"),
        pytest.param(b"\x07what", lambda: list(os.pipe()), id="an unknown kind with fds"),
        pytest.param(b"\x00" * 90_000, list, id="longer than any of ours"),
    ],
)
def test_a_packet_that_is_not_ours_is_an_error_and_leaves_no_fd(pair, data, make_fds):
    one, other = pair
    with raw_end(one) as stranger:
        fds = make_fds()
        before = open_fds()
        stranger.sendmsg(
            [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(f.to_bytes(4, "little") for f in fds))]
        )
        with pytest.raises(OSError, match=r"sealed|packet of ours|larger"):
            other.receive(1)
        assert open_fds() == before
        for fd in fds:
            os.close(fd)
    one.send(b"still good")
    assert other.receive(1) == Packet(b"still good", ())


def test_a_receiver_may_bound_what_it_takes(pair):
    one, other = pair
    other.max_bytes = 100_000
    one.send(b"x" * 100_000)
    assert other.receive(1) == Packet(b"x" * 100_000, ())
    one.send(b"x" * 100_001)
    with pytest.raises(OSError, match="more than") as caught:
        other.receive(1)
    assert caught.value.errno == errno.EMSGSIZE


def test_no_fds_are_left_over(pair):
    before = open_fds()
    for _ in range(50):
        one, other = PacketSocket.pair()
        one.send(b"x" * 100_000, fds=(one.fileno(),))
        packet = other.receive(1)
        assert packet is not None
        os.close(packet.fds[0])
        one.send(b"x" * 100_000, fds=(one.fileno(),))  # never received
        del one, other
    assert open_fds() == before


def test_large_packets_count_as_what_is_bounded_as_well(pair):
    one, other = pair
    sent = 0
    while one.try_send(b"x" * (1 << 20)):
        sent += 1

    assert 4 < sent < 64  # two MiB of buffer; without that it was 2,700
    for _ in range(sent):
        packet = other.try_receive()
        assert packet is not None
        assert len(packet.data) == 1 << 20


def test_a_packet_that_nobody_takes_is_refused_where_it_is_sent(pair, monkeypatch):
    one, _ = pair
    monkeypatch.setattr(packets_module, "MAX_PACKET_BYTES", 1 << 20)

    with pytest.raises(OSError, match="nobody takes more"):
        one.send(b"x" * ((1 << 20) + 1))

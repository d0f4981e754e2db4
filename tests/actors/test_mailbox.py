"""The Queue that survives."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import multiprocessing.queues
import os
import pickle
import queue
import random
import signal
import statistics
import struct
import time
from pathlib import Path

import pytest

from actorq.actors import Mailbox
from actorq.actors.linux import pidfd_open
from actorq.actors.packets import wait_readable
from actorq.errors import MailboxFullError
from tests.helpers import limit, named_memory, wait_until

SPAWN = multiprocessing.get_context("spawn")
FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture
def mailbox():
    box = Mailbox(name="box")
    yield box
    box.close()


def test_it_is_a_multiprocessing_queue(mailbox):
    assert isinstance(mailbox, multiprocessing.queues.Queue)
    mailbox.put({"any": ["object", 1]})
    mailbox.put_nowait(None)
    assert not mailbox.empty()
    assert mailbox.get() == {"any": ["object", 1]}
    assert mailbox.get_nowait() is None
    assert mailbox.empty()
    assert not mailbox.full()
    mailbox.cancel_join_thread()
    mailbox.join_thread()


def test_nothing_of_the_stock_queue_is_left(mailbox):
    before = named_memory()
    other = Mailbox()
    wait_until(lambda: named_memory() <= before, what="semaphores left")
    assert not [name for name in vars(other) if name.startswith("_")]
    with pytest.raises(NotImplementedError, match="unread_bytes"):
        other.qsize()


def fill(mailbox, timeout):
    """Put numbers until there is no room within the timeout; return how many went in."""
    for number in itertools.count():
        try:
            mailbox.put(number, timeout=timeout)
        except MailboxFullError:
            return number
    return None


def test_empty_is_raised_in_time(mailbox):
    with pytest.raises(queue.Empty):
        mailbox.get_nowait()
    start = time.monotonic()
    with pytest.raises(queue.Empty):
        mailbox.get(timeout=0.05)
    assert 0.04 < time.monotonic() - start < limit(0.5)


def test_full_is_raised_in_time_and_says_whose():
    mailbox = Mailbox(1, name="tiny")
    assert fill(mailbox, 0) > 3
    assert mailbox.full()
    assert mailbox.unread_bytes() > 4000
    with pytest.raises(queue.Full, match=r"'tiny' stayed full for 0\.05 s"):
        mailbox.put(b"x", timeout=0.05)
    mailbox.get()
    assert not mailbox.full()
    mailbox.put(b"x", timeout=0.05)


def test_what_does_not_pickle_raises_in_the_caller_and_sends_nothing(mailbox):
    with pytest.raises((pickle.PicklingError, AttributeError)):
        mailbox.put(lambda: None)
    assert mailbox.empty()


def test_a_message_of_64_mebibytes_arrives(mailbox):
    data = os.urandom(1 << 20) * 64
    mailbox.put(data, timeout=1)
    assert mailbox.get(timeout=5) == data


def test_frames_are_never_unpickled(mailbox):
    mailbox.send(b"some", b"thing", fds=[0])
    packet = mailbox.receive(1)
    assert packet is not None
    assert packet.data == b"something"
    os.close(packet.fds[0])
    assert mailbox.receive(0) is None
    mailbox.put("a message")
    with pytest.raises(ValueError, match="mailbox of frames"):
        mailbox.receive(1)
    mailbox.send(b"not a pickle")
    with pytest.raises(ValueError, match="get"):
        mailbox.get()


def test_a_mailbox_travels_inside_a_message(mailbox):
    other = Mailbox(name="other")
    mailbox.put(["take this", other])
    _, received = mailbox.get()
    received.put("hello")
    assert received.name == "other"
    assert other.get(timeout=1) == "hello"


def test_by_itself_it_does_not_pickle(mailbox):
    with pytest.raises(RuntimeError, match="travels in messages and to children"):
        pickle.dumps(mailbox)


def test_a_connection_travels_inside_a_message(mailbox):
    ours, theirs = multiprocessing.Pipe(duplex=False)
    mailbox.put(("pipe", theirs))
    theirs.close()
    with mailbox.get()[1] as arrived:
        arrived.send("through")
        assert ours.recv() == "through"
    ours.close()


def answer_one(inbox, outbox):
    outbox.put(["got", inbox.get(timeout=10)])


@pytest.mark.parametrize("context", [SPAWN, FORK], ids=["spawn", "fork"])
def test_it_is_handed_to_a_child_like_any_queue(mailbox, context):
    answers = Mailbox()
    child = context.Process(target=answer_one, args=(mailbox, answers))
    child.start()
    mailbox.put("question")
    assert answers.get(timeout=10) == ["got", "question"]
    child.join(10)
    assert child.exitcode == 0


# ---------------------------------------------------------------------------------------------------------------
# Kills


def forked(function, *args):
    """Run a function in a forked child and return its pid; nothing of the test's runs there."""
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        finally:
            os._exit(0)
    return pid


def kill_and_reap(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def is_waiting(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def read_forever(inbox, outbox):
    while True:
        outbox.put(inbox.get())


@pytest.mark.parametrize("capacity", [4 << 20, 1], ids=["large", "smallest"])
def test_a_reader_killed_while_it_waits_takes_nothing_with_it(capacity):
    inbox, outbox = Mailbox(capacity), Mailbox(capacity)
    sent = 0
    for _ in range(20):
        reader = forked(read_forever, inbox, outbox)
        wait_until(functools.partial(is_waiting, reader))
        for _ in range(3):
            inbox.put(sent, timeout=2)
            assert outbox.get(timeout=2) == sent
            sent += 1
        wait_until(functools.partial(is_waiting, reader))
        kill_and_reap(reader)
    assert inbox.empty()


RECORD = struct.Struct("<IIQ")  # who, size of the filling, number


def write_forever(box, confirmed, writer, generation):
    """Number what is put, and note each number once its put has returned."""
    dice = random.Random(f"{writer}-{generation}")
    note = memoryview(confirmed).cast("Q")  # one store; struct.pack_into would clear the field first
    number = 0
    while True:
        size = int(10 * 3000 ** dice.random())
        box.put(RECORD.pack(writer << 16 | generation, size, number) + bytes([number % 251]) * size, timeout=10)
        note[0] = number + 1
        number += 1


@pytest.mark.parametrize("capacity", [4 << 20, 1], ids=["large", "smallest"])
def test_killed_writers_leave_no_torn_reordered_or_missing_message(capacity):
    import mmap

    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    box = Mailbox(capacity)
    next_number: dict[int, int] = {}
    confirmed = {}
    generations = dict.fromkeys(range(3), 0)
    writers = {}

    def start(writer):
        generation = generations[writer]
        generations[writer] += 1
        memory = mmap.mmap(-1, 8)
        confirmed[writer << 16 | generation] = memory
        writers[writer] = forked(write_forever, box, memory, writer, generation)

    def check(message):
        who, size, number = RECORD.unpack_from(message)
        assert message[RECORD.size :] == bytes([number % 251]) * size, f"torn, seed {seed}"
        assert number == next_number.get(who, 0), f"out of order, seed {seed}"
        next_number[who] = number + 1

    for writer in generations:
        start(writer)
    kills = 0
    next_kill = 0.0
    while kills < 25:
        check(box.get(timeout=5))
        if time.monotonic() >= next_kill:
            next_kill = time.monotonic() + dice.uniform(0, 0.02)
            victim = dice.choice(list(writers))
            kill_and_reap(writers[victim])
            start(victim)
            kills += 1
    for pid in writers.values():
        kill_and_reap(pid)
    while not box.empty():
        check(box.get_nowait())

    for who, memory in confirmed.items():
        (count,) = struct.unpack("=Q", memory)
        assert next_number.get(who, 0) >= count, f"confirmed but missing, seed {seed}"
        assert next_number.get(who, 0) <= count + 1


def test_a_stopped_reader_makes_puts_fail_at_their_deadline_and_then_goes_on():
    inbox, outbox = Mailbox(1), Mailbox()
    reader = forked(read_forever, inbox, outbox)
    try:
        inbox.put(0)
        assert outbox.get(timeout=2) == 0
        os.kill(reader, signal.SIGSTOP)
        sent = fill(inbox, 0.05)
        os.kill(reader, signal.SIGCONT)
        assert [outbox.get(timeout=2) for _ in range(sent)] == list(range(sent))
    finally:
        kill_and_reap(reader)


def test_the_last_writer_gone_is_eof():
    box = Mailbox()
    reader = Mailbox.of_ends("reader", box.reader, None)
    assert box.writer is not None
    box.writer.close()
    with pytest.raises(EOFError):
        reader.get(timeout=1)
    with pytest.raises(ValueError, match="no writing end"):
        reader.put(1)


def test_a_slow_reader_of_a_full_mailbox_is_not_waited_for_longer_than_it_takes():
    # The kernel reports room only once a socket is three quarters empty; 20 messages a second would take it seconds.
    def read_slowly(inbox):
        while True:
            inbox.get()
            time.sleep(0.02)

    inbox = Mailbox(1)
    while not inbox.full():
        inbox.put_nowait(b"x" * 200)
    reader = forked(read_slowly, inbox)
    try:
        waits = []
        for _ in range(10):
            start = time.monotonic()
            inbox.put(b"x" * 200)
            waits.append(time.monotonic() - start)
        assert statistics.median(waits) < limit(0.02 + 0.05)
    finally:
        kill_and_reap(reader)


def test_the_kernel_tells_of_a_death_within_10_ms():
    times = []
    for _ in range(5):
        pid = forked(time.sleep, 60)
        pidfd = pidfd_open(pid)
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_readable(pidfd, 5)
        times.append(time.monotonic() - start)
        os.waitpid(pid, 0)
        os.close(pidfd)
    assert statistics.median(times) < limit(0.01), times

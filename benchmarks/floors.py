"""The floors: what the bare mechanism costs on this machine, with none of the features.

No ids, no JSON, no checksums, no supervision, no flow control but a window: only processes, sockets, and a file that is
brought to disk before anybody hears yes. What actorq reaches is read as a share of that, in the same run.

    pipeline   publisher -> writer, fdatasync -> scheduler -> two consumers -> outcomes to the writer, fdatasync
    commits    clients, one publish at a time each -> writer, one fdatasync for all that wait -> Router -> client
    chain      publisher -> writer, fdatasync -> scheduler -> writer, no sync -> Router -> consumer

A task is packed by itself by its publisher, and unpacked by itself by its consumer, who calls a function with it.

`pipeline_of_json` is the same pipeline, in which each payload is what it must be in actorq: any JSON, which its
publisher encodes one by one, the writer checks, and its consumer parses and hands over as a Task, all by actorq's own
functions. A queue with these promises cannot do without that, whatever else it did without.

`pipeline_of_arrays` does the least that can be done with JSON at all: a packet is one array, which is encoded, checked
and parsed in one call each. Nothing is proved, and no task has a line of its own. No queue of JSON can do better.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import orjson

from actorq.tasks.payload import check_payloads, encode_payload
from actorq.tasks.task import tasks_in_hand
from benchmarks.contest import (
    PAYLOAD,
    PAYLOAD_BYTES,
    BenchmarkError,
    Figures,
    Scale,
    Turns,
    at_rate,
    in_turns,
    latencies,
    timed,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BATCH = 200
"""Tasks in a packet."""

WINDOW = 16
"""Packets in flight: from the publisher to the writer, and from the scheduler to each consumer."""

CLIENTS = 8
PACKET = 1 << 16
LENGTH = struct.Struct("<I")
NUMBER = struct.Struct("<q")
SEQPACKET = socket.SOCK_SEQPACKET

type Pair = tuple[socket.socket, socket.socket]


def pair() -> Pair:
    """Return two ends of a channel of packets."""
    ends = socket.socketpair(socket.AF_UNIX, SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    return ends


@contextmanager
def processes(*mains: Callable[[], None]) -> Iterator[None]:
    """Run each in a process of its own for as long as the body runs; then they are killed."""
    pids = []
    sys.stdout.flush()
    for main in mains:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                main()
                status = 0
            except BaseException:  # noqa: BLE001  the child must not return into the caller's code
                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def received(end: socket.socket) -> Iterator[bytes]:
    """Yield what has arrived, and wait for nothing."""
    while True:
        try:
            packet = end.recv(PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not packet:
            raise SystemExit
        yield packet


def new_file(folder: Path) -> int:
    """Return a new file that already has some room."""
    fd = os.open(folder / "floor", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.pwrite(fd, b"\n" * (1 << 20), 0)
    os.fsync(fd)
    return fd


class Appender:
    """Writes groups one after the other, each with one call."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._end = 0

    def write(self, group: list[bytes]) -> None:
        """Write what has gathered."""
        self._end += os.pwritev(self._fd, [b"".join(group)], self._end)

    def sync(self) -> None:
        """Bring it to disk."""
        os.fdatasync(self._fd)


# ---------------------------------------------------------------------------------------------------------------
# The pipeline


class Payloads(NamedTuple):
    """What is done with the payloads of a packet."""

    pack: Callable[[], bytes]
    check: Callable[[bytes], None]
    run: Callable[[bytes], int]
    """Call a function with each, and return how many they were."""


def pack_bytes() -> bytes:
    """Put a length before each."""
    return b"".join([LENGTH.pack(len(PAYLOAD_BYTES)) + PAYLOAD_BYTES for _ in range(BATCH)])


def run_bytes(packet: bytes) -> int:
    """Cut each out by its length."""
    at, done = 0, 0
    while at < len(packet):
        (length,) = LENGTH.unpack_from(packet, at)
        at += LENGTH.size
        nothing(packet[at : at + length])
        at += length
        done += 1
    return done


def pack_json() -> bytes:
    """Encode each."""
    return b"\n".join([encode_payload(PAYLOAD) for _ in range(BATCH)])


def check_json(packet: bytes) -> None:
    """Check that each is one whole value."""
    check_payloads(packet.split(b"\n"))


def run_json(packet: bytes) -> int:
    """Parse them, and make a Task of each."""
    rows = orjson.loads(b"[%b]" % packet.replace(b"\n", b","))
    for task in tasks_in_hand([{"data": row} for row in rows], 1):
        nothing(task)
    return len(rows)


def pack_array() -> bytes:
    """Encode all in one call."""
    return orjson.dumps([PAYLOAD for _ in range(BATCH)])


def check_array(packet: bytes) -> None:
    """Check all in one call."""
    orjson.loads(packet)


def run_array(packet: bytes) -> int:
    """Parse all in one call."""
    rows = orjson.loads(packet)
    for row in rows:
        nothing(row)
    return len(rows)


def pipeline(folder: Path, scale: Scale) -> Figures:
    """Bring bytes from one publisher through the disk to two consumers, and their outcomes to the disk."""
    return run_pipeline(folder, scale, Payloads(pack_bytes, nothing, run_bytes))


def pipeline_of_json(folder: Path, scale: Scale) -> Figures:
    """Do the same with JSON."""
    return run_pipeline(folder, scale, Payloads(pack_json, check_json, run_json))


def pipeline_of_arrays(folder: Path, scale: Scale) -> Figures:
    """Do the same with as little work as JSON can be."""
    return run_pipeline(folder, scale, Payloads(pack_array, check_array, run_array))


def run_pipeline(folder: Path, scale: Scale, payloads: Payloads) -> Figures:
    """Start the five processes, and return how many tasks a second they bring to their end."""
    batches = scale.tasks // BATCH
    publishing, jobs, first, second, finished = pair(), pair(), pair(), pair(), pair()
    outcomes = pair()
    file = new_file(folder)

    def writer() -> None:
        log = Appender(file)
        inbox, outcome_inbox = publishing[1], outcomes[1]
        poll = select.poll()
        poll.register(inbox, select.POLLIN)
        poll.register(outcome_inbox, select.POLLIN)
        done = 0
        while done < batches:
            ready = {fd for fd, _ in poll.poll()}
            if inbox.fileno() in ready:
                group = list(received(inbox))
                for packet in group:
                    payloads.check(packet)
                log.write(group)
                log.sync()
                inbox.send(NUMBER.pack(len(group)))
                for packet in group:
                    jobs[0].send(packet)
            if outcome_inbox.fileno() in ready:
                group = list(received(outcome_inbox))
                log.write(group)
                log.sync()
                jobs[0].send(b"".join(packet[:1] for packet in group))
                done += len(group)
        finished[0].send(b"all")
        signal.pause()

    def scheduler() -> None:
        ready: list[bytes] = []
        consumers = (first[0], second[0])
        room = [WINDOW, WINDOW]
        while True:
            packet = jobs[1].recv(PACKET)
            if len(packet) <= 2 * WINDOW:
                for consumer in packet:
                    room[consumer] += 1
            else:
                ready.append(packet)
            while ready and any(room):
                consumer = room.index(max(room))
                consumers[consumer].send(ready.pop(0))
                room[consumer] -= 1

    def consumer(number: int, inbox: socket.socket) -> None:
        prefix = bytes([number])
        while True:
            done = payloads.run(inbox.recv(PACKET))
            outcomes[0].send(prefix + NUMBER.pack(done))

    with processes(writer, scheduler, lambda: consumer(0, first[1]), lambda: consumer(1, second[1])):
        begin = time.perf_counter()
        outbox = publishing[0]
        unacknowledged = 0
        for _ in range(batches):
            packet = payloads.pack()
            while unacknowledged >= WINDOW:
                unacknowledged -= NUMBER.unpack(outbox.recv(NUMBER.size))[0]
            outbox.send(packet)
            unacknowledged += 1
        while unacknowledged:
            unacknowledged -= NUMBER.unpack(outbox.recv(NUMBER.size))[0]
        published = time.perf_counter()
        finished[1].recv(8)
        end = time.perf_counter()
    close(file, publishing, jobs, first, second, finished, outcomes)
    tasks = batches * BATCH
    return {"tasks/s": tasks / (end - begin), "published/s": tasks / (published - begin)}


def nothing(payload: object) -> None:
    """Run no code."""
    del payload


def close(file: int, *pairs: Pair) -> None:
    """Close all that a floor has opened."""
    os.close(file)
    for ends in pairs:
        for end in ends:
            end.close()


# ---------------------------------------------------------------------------------------------------------------
# Commits


def commits(folder: Path, scale: Scale) -> Figures:
    """Let eight clients publish one task at a time each."""
    count = scale.each_of_eight
    requests, replies = pair(), pair()
    channels = [pair() for _ in range(CLIENTS)]
    started, finished = pair(), pair()
    file = new_file(folder)

    def writer() -> None:
        log = Appender(file)
        while True:
            select.select([requests[1]], [], [])
            group = list(received(requests[1]))
            log.write(group)
            log.sync()
            replies[0].send(b"".join(packet[:1] for packet in group))

    def router() -> None:
        while True:
            for number in replies[1].recv(PACKET):
                channels[number][0].send(b"yes")

    def client(number: int) -> None:
        packet = bytes([number]) + PAYLOAD_BYTES
        channel = channels[number][1]
        started[1].recv(1)
        for _ in range(count):
            requests[0].send(packet)
            channel.recv(8)
        finished[0].send(b"x")
        signal.pause()

    clients = [lambda number=number: client(number) for number in range(CLIENTS)]
    with processes(writer, router, *clients):
        begin = time.perf_counter()
        for _ in range(CLIENTS):
            started[0].send(b"x")
        for _ in range(CLIENTS):
            finished[1].recv(1)
        end = time.perf_counter()
    close(file, requests, replies, started, finished, *channels)
    return {"published/s": count * CLIENTS / (end - begin)}


# ---------------------------------------------------------------------------------------------------------------
# The chain


def chain(folder: Path, scale: Scale) -> Figures:
    """Bring single tasks on the shortest way that keeps write-ahead from a publisher to a handler."""
    inbox, jobs, pushes, work, answers, report = pair(), pair(), pair(), pair(), pair(), pair()
    file = new_file(folder)

    def writer() -> None:
        log = Appender(file)
        while True:
            packet = inbox[1].recv(PACKET)
            log.write([packet])
            if packet.startswith(b"p"):
                log.sync()
                answers[0].send(b"yes")
                jobs[0].send(packet)
            else:
                pushes[0].send(packet)

    def scheduler() -> None:
        while True:
            inbox[0].send(b"a" + jobs[1].recv(PACKET)[1:])

    def router() -> None:
        while True:
            work[0].send(pushes[1].recv(PACKET))

    def consumer() -> None:
        while True:
            (published,) = NUMBER.unpack_from(work[1].recv(PACKET), 1)
            report[0].send(NUMBER.pack(time.monotonic_ns() - published))

    waits = []

    def publish() -> None:
        inbox[0].send(b"p" + NUMBER.pack(time.monotonic_ns()) + PAYLOAD_BYTES)
        answers[1].recv(8)

    with processes(writer, scheduler, router, consumer):
        timed(publish, 20)
        while select.select([report[1]], [], [], 0.1)[0]:
            report[1].recv(8)
        at_rate(publish, 100.0, scale.seconds)
        while select.select([report[1]], [], [], 0.1)[0]:
            waits.append(NUMBER.unpack(report[1].recv(8))[0] / 1e9)
    close(file, inbox, jobs, pushes, work, answers, report)
    if len(waits) < scale.seconds * 50:
        raise BenchmarkError(f"the chain brought {len(waits)} tasks only")
    return latencies(waits, "100/s ")


# ---------------------------------------------------------------------------------------------------------------
# The disk


def appended(folder: Path, scale: Scale) -> Turns:
    """Write 400 bytes at the end of a file and bring them to disk: its new size has to be journalled as well."""
    return commit_times(folder / "appended", scale.publishes, room=0)


def preallocated(folder: Path, scale: Scale) -> Turns:
    """Write 400 bytes over room that the file has already, and bring them to disk: what a yes costs at least."""
    return commit_times(folder / "preallocated", scale.publishes, room=scale.publishes * 400)


def commit_times(path: Path, count: int, room: int) -> Turns:
    """Time write and fdatasync."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.pwrite(fd, b"\n" * room, 0)
    os.fsync(fd)
    places = iter(range(0, count * 400, 400))

    def commit() -> None:
        os.pwrite(fd, b"x" * 400, next(places))
        os.fdatasync(fd)

    times = yield from in_turns(commit, count)
    os.close(fd)
    return latencies(times)

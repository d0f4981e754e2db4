"""Named places at which a test may have this process die, stop, stumble or wait.

A place is passed thousands of times a second and does nothing, for the price of looking at a flag::

    if failpoints.ARMED:
        failpoints.hit("writer.written")

What arms it, and nothing else does: when this module is imported, the environment variable ACTORQ_FAILPOINTS names a
folder that `actorq.testing.armed_failpoints` made, that belongs to this user, that nobody else may enter, and that
still exists. The folder is removed when the test ends. A child that is forked is armed if its parent was.

The folder holds one byte per place in shared memory, so that a process that passes knows at once whether anything is
meant for the place; and one file per charge, which says what is to happen there. A charge is taken by renaming its
file, before anything happens: so one process of all takes it, its successor does not die of it again, and the test
learns of it, with the process, however that ends.

Imports nothing of ours, because everything may import it.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import signal
import stat
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

ENVIRONMENT_VARIABLE = "ACTORQ_FAILPOINTS"


class Kind(enum.Enum):
    """What can happen at a place besides the end of the process."""

    PLAIN = "plain"
    CALL = "call"
    """A system call comes next: it may fail, so an OSError may be raised here."""
    WRITE = "write"
    """The call is a write: it may also be cut short by a kill."""


PLAIN, CALL, WRITE = Kind

# fmt: off
POINTS: Mapping[str, tuple[Kind, str]] = {
    # The writer
    "writer.locked":            (PLAIN, "it has the lock, and has not looked at the file"),
    "writer.opened":            (PLAIN, "the file is mended and open; nobody knows that there is a writer"),
    "writer.announced":         (PLAIN, "everybody is told to repeat what is not acknowledged"),
    "writer.received":          (PLAIN, "requests are out of the mailbox and nowhere else"),
    "writer.written":           (PLAIN, "a batch is in the file; no assignment in it is pushed, nothing is synced"),
    "writer.pushed":            (PLAIN, "its assignments are with the Router; nothing is synced"),
    "writer.synced":            (PLAIN, "the batch is on disk; nobody is told"),
    "writer.attached":          (PLAIN, "the writer has the channel of a client"),
    "writer.handing_over":      (PLAIN, "a new Registry gets the channels that the writer has"),
    "writer.acknowledging":     (PLAIN, "the next session of the batch is about to be told"),
    "writer.acknowledged":      (PLAIN, "all are told but the Registry"),
    "writer.greeted":           (PLAIN, "the Registry knows the newcomers; the scheduler does not know of the commit"),
    "writer.refused":           (PLAIN, "there was no room; it knows again what the file says, and nobody is told"),
    "writer.offered":           (PLAIN, "a compacted file is offered; nothing is done about it"),
    "writer.switched":          (PLAIN, "it has taken the place of the old one; the scheduler does not know"),
    "writer.stopping":          (PLAIN, "it is about to close the file and let go of the lock"),
    # The log
    "log.opened":               (PLAIN, "the file is mended; what it shows may not be on disk"),
    "log.writing":              (WRITE, "a batch is about to be written"),
    "log.written":              (PLAIN, "a batch is in the file"),
    "log.syncing":              (CALL,  "what was written is about to be brought to disk"),
    "log.synced":               (PLAIN, "it is on disk"),
    "log.taking_back":          (CALL,  "there was no room; the part that got through is about to be taken back"),
    "log.sync_failed":          (PLAIN, "a write or a sync has failed; no mark says so"),
    "log.marked":               (PLAIN, "the mark of the failed sync is left"),
    "log.closing":              (CALL,  "the filler is about to be taken off"),
    # Mending a file
    "recovery.torn":            (PLAIN, "a torn batch or a mark was found; nothing is done about it"),
    "recovery.keeping":         (WRITE, "the copy of it is about to be written"),
    "recovery.kept":            (PLAIN, "the copy is on disk; the torn batch is still in the file"),
    "recovery.blanking":        (WRITE, "filler is about to be written over it"),
    "recovery.blanked":         (PLAIN, "the file is whole again; it is not synced"),
    "recovery.rewriting":       (PLAIN, "everything good is about to be copied to a new file"),
    "recovery.rewritten":       (PLAIN, "the new file has the name; the mark of the failed sync is still there"),
    # A file before it gets its name
    "new_file.opened":          (PLAIN, "it has a temporary name and is empty"),
    "new_file.writing":         (WRITE, "a part of it is about to be written"),
    "new_file.taken_over":      (PLAIN, "the writer has given a name of its own to what was offered"),
    "new_file.syncing":         (CALL,  "all of it is written and about to be brought to disk"),
    "new_file.synced":          (PLAIN, "it is whole and on disk under its temporary name"),
    "new_file.replacing":       (CALL,  "it has two temporary names and is about to replace the old file"),
    "new_file.named":           (CALL,  "it has its name; the directory is about to be brought to disk"),
    "new_file.settled":         (PLAIN, "the directory is on disk; temporary names are left"),
    "compaction.begun":         (PLAIN, "the new file has its header"),
    "compaction.piece":         (PLAIN, "a piece of the snapshot is in the new file"),
    "compaction.copied":        (PLAIN, "the commits after the snapshot are in it, too"),
    "compaction.checked":       (PLAIN, "it was read back and is about to replace the old one"),
    "compaction.replaced":      (PLAIN, "it has replaced the old one"),
    "switch.copied":            (PLAIN, "the commits since the offer are in the new file; it is not synced"),
    # The Compactor
    "compactor.asked":          (PLAIN, "it is told to compact; nothing is written"),
    "compactor.offering":       (PLAIN, "the new file is on disk; the writer does not know"),
    "compactor.offered":        (PLAIN, "the offer is on its way to the writer"),
    # The scheduler
    "scheduler.replayed":       (PLAIN, "it has read the log; its barrier is not on its way"),
    "scheduler.begun":          (PLAIN, "its barrier is on its way to the writer"),
    "scheduler.received":       (PLAIN, "messages are out of the mailbox; nothing is done about them"),
    "scheduler.up_to_date":     (PLAIN, "it has read on to the last commit"),
    "scheduler.pushing_again":  (PLAIN, "what a consumer may have missed is about to be pushed again"),
    "scheduler.chosen":         (PLAIN, "tasks are chosen for consumers; the writer is not asked"),
    "scheduler.asked":          (PLAIN, "an assignment is on its way to the writer"),
    "scheduler.lent":           (PLAIN, "idle consumers were lent to the writer"),
    "scheduler.deciding":       (PLAIN, "somebody has steered; it is about to decide, and the writer is not asked"),
    "scheduler.decided":        (PLAIN, "what it has decided is on its way to the writer"),
    "scheduler.answering":      (PLAIN, "that is on disk; who has steered is about to be told"),
    "scheduler.recalling":      (PLAIN, "a consumer is about to be asked to give tasks back"),
    "scheduler.compacting":     (PLAIN, "the file is worth compacting; nobody is asked"),
    "scheduler.following":      (PLAIN, "it reads on in a compacted file, and has folded nothing of that"),
    "scheduler.swapping":       (PLAIN, "it has folded the new file, and still acts by what it had folded of the old"),
    "scheduler.idle":           (PLAIN, "who waits for the end of all work is about to be told"),
    # The Router
    "router.starting":          (PLAIN, "it has no channels, and the Registry does not know of it"),
    "router.received":          (PLAIN, "a frame is out of the mailbox and nowhere else"),
    "router.delivering":        (PLAIN, "the next client is about to get its part of a frame"),
    "router.attaching":         (PLAIN, "the channel of a client is in hand and not kept"),
    "router.attached":          (PLAIN, "the client is greeted; the scheduler does not know"),
    "router.detaching":         (PLAIN, "the channel of a client is about to be closed"),
    "router.handing_over":      (PLAIN, "a new Registry is about to get the channels"),
    # The Registry
    "registry.starting":        (PLAIN, "it watches nobody, and nobody knows of it"),
    "registry.received":        (PLAIN, "a frame is out of the mailbox and nowhere else"),
    "registry.connecting":      (PLAIN, "the descriptors of a client are in hand and not watched"),
    "registry.attaching":       (PLAIN, "a client is watched; writer and Router do not have its channel"),
    "registry.dead":            (PLAIN, "the kernel says that a client is dead; nobody is told"),
    "registry.ended":           (PLAIN, "the writer is told of the death; the Router is not"),
    # A client's session
    "session.connecting":       (PLAIN, "the channel is made; the Registry does not have its other end"),
    "session.connected":        (PLAIN, "the Registry has the other end, in its mailbox"),
    "session.sending":          (PLAIN, "a request is about to be sent"),
    "session.sent":             (PLAIN, "a request is in the writer's mailbox"),
    "session.received":         (PLAIN, "a message of the brokers is out of the channel; nothing is done about it"),
    # A consumer
    "consumer.pushed":          (PLAIN, "an assignment is out of the channel and not taken"),
    "consumer.starting":        (PLAIN, "the slot names a task; its handler has not begun"),
    "consumer.handled":         (PLAIN, "a handler has ended; its outcome is not noted"),
    "consumer.reporting":       (PLAIN, "outcomes are about to be reported"),
    "consumer.reported":        (PLAIN, "outcomes are in the writer's mailbox; the slot still names the last task"),
    "consumer.giving_back":     (PLAIN, "tasks that were not begun are about to be given back"),
    "consumer.stopping":        (PLAIN, "it is about to wait for the acknowledgement of its last outcomes"),
    # Publishers
    "publisher.publishing":     (PLAIN, "tasks have their ids; nothing is sent"),
    "publisher.acknowledged":   (PLAIN, "all of them are acknowledged; the caller does not know"),
    "direct.locked":            (PLAIN, "a direct publisher has both locks"),
    "direct.opened":            (PLAIN, "and has the file open"),
    "direct.synced":            (PLAIN, "its tasks are on disk; file and locks are still held"),
    "direct.steered":           (PLAIN, "what somebody has steered is on disk; file and locks are still held"),
    "direct.closed":            (PLAIN, "the file is closed; both locks are held, the caller does not know"),
    # The tree of processes
    "host.locked":              (PLAIN, "the host has its lock, and no processes"),
    "host.started":             (PLAIN, "the brokers run; the host does not say so yet"),
    "host.stopping":            (PLAIN, "the consumers have stopped; the brokers still run"),
    "host.stopped":             (PLAIN, "all processes have ended; the host still has its lock"),
    "warden.root_ended":        (PLAIN, "the supervisor and all below it are dead; the next is not started"),
    "warden.starting_root":     (CALL,  "the next supervisor is about to be started"),
    "root.starting":            (PLAIN, "the supervisor knows what to start and has started nothing"),
    "supervisor.forking":       (CALL,  "a child is about to be forked"),
    "supervisor.forked":        (PLAIN, "a child runs and is not watched"),
    "supervisor.started":       (PLAIN, "a child has said that it runs"),
    "supervisor.exited":        (PLAIN, "the kernel says that a child is dead; it is not reaped"),
    "supervisor.reaped":        (PLAIN, "it is reaped; nobody is told, nothing is started again"),
    "supervisor.told":          (PLAIN, "who asked is told of its death; nothing is started again"),
    "child.forked":             (PLAIN, "a child has begun and still holds everything of its supervisor's"),
    "child.starting":           (PLAIN, "it holds only its own; its actor is not made"),
    "child.started":            (PLAIN, "its actor is ready for messages; the supervisor does not know"),
}
# fmt: on

PLACES = {name: place for place, name in enumerate(POINTS)}
"""Two bytes of each name in shared memory: at its place whether a charge lies there; behind all of these, at its place
again, whether anybody ever passed."""
MEMORY_BYTES = 2 * len(POINTS)
MEMORY_FILE = "memory"
CHARGES, TAKEN, WENT_ON = "charges", "taken", "went-on"


class Charge(NamedTuple):
    """What is to happen at a place, once."""

    point: str
    action: str
    """kill, stop, raise, delay, exit or cut."""
    nth: int = 1
    """At the n-th pass of one process since the charge was laid; earlier ones are let through."""
    value: float = 0
    """The errno to raise, the seconds to wait, the status to exit with, or how many bytes of the write get through."""


ARMED = False


def arm(folder: str | os.PathLike[str]) -> None:
    """Obey the charges in this folder from now on. Raises ValueError when it was not made for that."""
    global ARMED, _folder, _memory  # noqa: PLW0603  # one per process, by design
    status = os.stat(folder)  # noqa: PTH116  # pathlib costs every process 5 ms that this import should not
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != stat.S_IRWXU:
        raise ValueError(f"{os.fspath(folder)} is not a private folder of this user: no fail points from there")
    _folder = os.fspath(folder)
    _memory = map_memory(_folder)
    _passes.clear()
    ARMED = True


def disarm() -> None:
    """Let everybody pass again."""
    global ARMED, _memory  # noqa: PLW0603
    ARMED = False
    if _memory is not None:
        _memory.close()
        _memory = None


def map_memory(folder: str | Path) -> mmap.mmap:
    """Return the memory that all processes share."""
    fd = os.open(f"{os.fspath(folder)}/{MEMORY_FILE}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return mmap.mmap(fd, MEMORY_BYTES)
    finally:
        os.close(fd)


def hit(name: str, data: Sequence[bytes | memoryview] = (), write: Callable[[bytes], object] | None = None) -> None:
    """Pass a place, and do what the test has laid there. `write` writes bytes of the `data` that are to be written."""
    memory = _memory
    place = PLACES[name]
    if memory is None:
        return  # disarmed a moment ago
    memory[len(PLACES) + place] = 1
    if not memory[place]:
        return
    taken = _take(name)
    if taken is not None:
        _obey(*taken, data, write)


_folder = ""
_memory: mmap.mmap | None = None
_passes: dict[str, int] = {}
"""By the file of the charge: how often this process has come by since it was laid."""


def _take(name: str) -> tuple[str, Charge] | None:
    """Return a charge that is due here and that no other process has taken, behind its serial number."""
    import json  # noqa: PLC0415  # only armed processes need it

    try:
        files = sorted(os.listdir(f"{_folder}/{CHARGES}"))  # noqa: PTH208  # see `arm`
    except FileNotFoundError:
        return None  # the test is over
    for file in files:
        serial, _, point = file.partition("@")
        if point != name:
            continue
        _passes[serial] = passes = _passes.get(serial, 0) + 1
        path = f"{_folder}/{CHARGES}/{file}"
        try:
            with open(path, encoding="ascii") as text:  # noqa: PTH123
                charge = Charge(*json.load(text))
            if passes < charge.nth:
                continue
            # Of all processes that come by, the kernel lets one do this; and it is done before anything happens.
            os.rename(path, f"{_folder}/{TAKEN}/{serial}.{os.getpid()}.{_start_time()}")  # noqa: PTH104
        except FileNotFoundError:
            continue  # another process was quicker, or the test has taken it back
        return serial, charge
    return None


def _start_time() -> int:
    """Return what, with its id, tells this process from all others: its start in clock ticks since boot."""
    with open("/proc/self/stat", "rb") as status:  # noqa: PTH123
        return int(status.read().rpartition(b")")[2].split()[19])


def _obey(serial: str, charge: Charge, data: Sequence[Any], write: Callable[[bytes], object] | None) -> None:
    match charge.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            signal.raise_signal(signal.SIGSTOP)  # this thread itself: what follows, it does once it has gone on
            with contextlib.suppress(FileNotFoundError):  # the test is over
                os.close(os.open(f"{_folder}/{WENT_ON}/{serial}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        case "exit":
            os._exit(int(charge.value))
        case "delay":
            time.sleep(charge.value)
        case "raise":
            number = int(charge.value)
            raise OSError(number, os.strerror(number))
        case "cut":
            assert write is not None
            write(b"".join(data)[: int(charge.value)])
            os.kill(os.getpid(), signal.SIGKILL)


if _named := os.environ.get(ENVIRONMENT_VARIABLE):
    with contextlib.suppress(FileNotFoundError):  # left over from a test that has ended
        arm(_named)

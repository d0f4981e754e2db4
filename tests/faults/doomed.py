"""Brokers that end, or stop, at a moment that a test chooses: the real ones, but for one look at a note beforehand.

`doom(folder, "router", b'"push"')` leaves the note; the broker of that name ends itself by SIGKILL as soon as it has
taken a frame that holds these bytes from its mailbox, with it and all others of the same grip in hand.

They stand here because their processes import the module they are from. One of tests would bring pytest with it: 0.3 s
of CPU at each start.
"""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

from actorq.brokers.consumer_broker import ConsumerBroker
from actorq.brokers.publisher_broker import PublisherBroker
from actorq.brokers.router import Router
from actorq.store.filesystem import RealFilesystem

FOLDER = "ACTORQ_TEST_DOOM"


def doom(folder, name, wanted):
    note = folder / f"doom-{name}"
    (folder / "note").write_bytes(wanted)
    (folder / "note").rename(note)  # there at once and whole
    return note


def obey(name, frames):
    """Die if one of the frames that wait is the one that was wished for; return all of them otherwise."""
    waiting = list(frames)
    note = Path(os.environ[FOLDER], f"doom-{name}")
    if note.exists():
        wanted = note.read_bytes()
        if any(wanted in frame.data for frame in waiting):
            note.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
    return iter(waiting)


class DoomedWriter(PublisherBroker):
    def on_start(self):
        super().on_start()
        self._log._filesystem = StoppingFilesystem(Path(os.environ[FOLDER]))

    def receive_frames(self, frames):
        super().receive_frames(obey("publisher-broker", frames))


class DoomedScheduler(ConsumerBroker):
    def receive_frames(self, frames):
        super().receive_frames(obey("consumer-broker", frames))


class DoomedRouter(Router):
    def receive_frames(self, frames):
        super().receive_frames(obey("router", frames))


class WriterThatCannotStart(PublisherBroker):
    """The real writer until a file appears; from then on it fails as it starts."""

    def on_start(self):
        if (self._path.parent / "broken").exists():
            raise OSError("no such luck")
        super().on_start()


class StoppingFilesystem(RealFilesystem):
    """Stops its process before a sync, or in the middle of a write, once for each note of that name."""

    def __init__(self, folder):
        self._sync, self._write = folder / "stop-before-sync", folder / "stop-inside-write"

    def fdatasync(self, fd):
        if self._sync.exists():
            self._sync.unlink()
            os.kill(os.getpid(), signal.SIGSTOP)
        super().fdatasync(fd)

    def pwritev(self, fd, buffers, offset):
        if self._write.exists():
            self._write.unlink()
            whole = b"".join(buffers)
            half = super().pwritev(fd, [whole[: len(whole.rstrip(b"\n")) // 2]], offset)
            os.kill(os.getpid(), signal.SIGSTOP)
            return half
        return super().pwritev(fd, buffers, offset)


class FailingFilesystem(RealFilesystem):
    """fdatasync fails once for each time that a certain file is put there."""

    def __init__(self, flag):
        self.flag = flag

    def fdatasync(self, fd):
        if self.flag.exists():
            self.flag.unlink()
            raise OSError(errno.EIO, "Input/output error")
        super().fdatasync(fd)


class WriterOnABadDisk(PublisherBroker):
    """The real writer; only its disk is bad."""

    def on_start(self):
        super().on_start()
        self._log._filesystem = FailingFilesystem(self._path.parent / "fail")

"""The two locks beside Queue.json: who may write it, and who hosts it.

    Queue.json.lock    the writer's lock, held by the one process that appends
    Queue.json.host    the host's lock: exclusive for as long as brokers run, shared during a direct publish;
                       its one line of JSON says who the host is

Both are `flock` locks on descriptors that are opened here, so the kernel frees them with their holder, whatever kills
it. Whoever is there to write takes the writer's by way of `filelock` (`LastingWriterLock`). The files are never
deleted: a lock on a deleted file excludes nobody who comes later. A forked child inherits the descriptor and with it
the lock; it calls `forget`.

There is one way to take the host's lock from a process that holds it and does not answer: whoever has the writer's
lock, so that nobody writes, puts a new file in the place of the old one (`HostLock.depose`). Whoever writes for a host
looks first whether its lock is still the one of that name (`host_identity`), with the writer's lock in hand as well.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self, override

import orjson

from actorq.clock import SYSTEM_CLOCK, Clock
from actorq.errors import FolderNotFoundError, QueueLockedError, UnsupportedFormatError
from actorq.stdio import above_stdio

if TYPE_CHECKING:
    from collections.abc import Mapping

with suppress(ImportError):  # only on Unix, and importing actorq works everywhere
    import fcntl

    _SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
    _EXCLUSIVE = fcntl.LOCK_EX | fcntl.LOCK_NB

FIRST_POLL = 0.0005
LONGEST_POLL = 0.01
MAX_OWNER_BYTES = 4096


class FileIdentity(NamedTuple):
    """Which file, whatever it is called."""

    device: int
    inode: int


class DescriptorLock:
    """A lock that lives and dies with an open descriptor."""

    suffix = ".lock"

    def __init__(self, queue_path: str | os.PathLike[str], *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._queue_path = Path(queue_path)
        self._name = f"{os.fspath(queue_path)}{self.suffix}"
        self._path = Path(self._name)
        self._clock = clock
        self._fd = -1
        self._parked = -1
        self._file: FileIdentity | None = None
        """What either descriptor has open."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._path}: {'held' if self.is_held else 'free or held elsewhere'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def path(self) -> Path:
        """The lock file."""
        return self._path

    @property
    def is_held(self) -> bool:
        """Whether this object holds its lock."""
        return self._fd >= 0

    def acquire(self, timeout: float = 0.0, *, shared: bool = False) -> Self:
        """Take the lock within so many seconds, or raise QueueLockedError with the holder's process id."""
        assert not self.is_held, f"{self!r} is taken twice"
        assert self._parked < 0, f"{self!r} is parked: to be taken by `take`"
        deadline = self._clock.now() + timeout
        while True:
            fd = self._open()
            try:
                self._wait_for(fd, deadline, shared=shared)
                if self.is_in_place():
                    fd, self._fd = -1, fd
                    return self
            finally:
                # Not locked in time, or somebody deleted the file between open and lock: it would exclude nobody.
                if fd >= 0:
                    os.close(fd)

    def take(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free, and say whether it was. Whoever calls sees to it that it `is_in_place`.

        Its file stays open, as after `park`.
        """
        assert not self.is_held, f"{self!r} is taken twice"
        if self._parked < 0:
            self._parked = self._open()
        # It counts as held before it is: `park` gives it back then, whatever interrupts this.
        self._fd, self._parked = self._parked, -1
        if not self._try_lock(self._fd, shared=shared):
            self._parked, self._fd = self._fd, -1
            return False
        return True

    def holder(self) -> int | None:
        """Return the process that holds the lock on the file that is parked here, as far as the kernel tells."""
        return None if self._parked < 0 else _holder_of(self._parked)

    def is_in_place(self) -> bool:
        """Say whether the file that was opened still has its name. If not, its lock excludes nobody who comes later."""
        return _identity_of(self._name) == self._file

    def forget_if_replaced(self) -> bool:
        """Close the file that is parked here if it is not the one of that name any more, and say so."""
        if self._parked < 0 or self.is_in_place():
            return False
        self.forget()
        return True

    def _open(self) -> int:
        try:
            fd, self._file = _open_lock_file(self._path)
        except FileNotFoundError as error:
            raise FolderNotFoundError(self._queue_path) from error
        return fd

    def _wait_for(self, fd: int, deadline: float, *, shared: bool) -> None:
        poll = FIRST_POLL
        while not self._try_lock(fd, shared=shared):
            left = deadline - self._clock.now()
            if left <= 0:
                raise QueueLockedError(self._queue_path, _holder_of(fd))
            # The kernel has no flock with a deadline, and an alarm would need the main thread.
            time.sleep(min(poll, left))
            poll = min(poll * 1.5, LONGEST_POLL)

    def _try_lock(self, fd: int, *, shared: bool) -> bool:
        return _lock(fd, shared=shared)

    def release(self) -> None:
        """Give the lock back, for forked children that still have the descriptor too. Twice is allowed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            _unlock(fd)
            os.close(fd)

    def park(self) -> None:
        """Give the lock back, but keep the file open for the next time: then a forked child must `forget` it."""
        if self._fd >= 0:
            _unlock(self._fd)
            self._parked, self._fd = self._fd, -1

    def forget(self) -> None:
        """Close the descriptor without a word to the kernel: in a forked child the parent keeps the lock."""
        for fd in (self._fd, self._parked):
            if fd >= 0:
                os.close(fd)
        self._fd = self._parked = -1


class WriterLock(DescriptorLock):
    """Held by the one process that writes Queue.json, for as long as it does."""

    suffix = ".lock"


class LastingWriterLock(WriterLock):
    """The same lock, by `filelock`: for a process that is there to write.

    It is the same system call, so either excludes the other. But the package is not for the process of somebody who
    publishes: the import takes 0.02 s, and leaves behind an audit hook of the whole interpreter, a guard against forks
    in the midst of locking, for which each payload takes 0.3 us longer to encode.
    """

    @override
    def _try_lock(self, fd: int, *, shared: bool) -> bool:
        assert not shared
        return _lock_by_filelock(fd)


class HostLock(DescriptorLock):
    """Held by the process that hosts the brokers; shared by direct publishers during their one commit."""

    suffix = ".host"

    @property
    def identity(self) -> FileIdentity:
        """Which file it is that is locked. Only for the holder."""
        assert self.is_held
        assert self._file is not None
        return self._file

    def depose(self, writer: WriterLock, suspect: FileIdentity) -> bool:
        """Take the lock's file away from whoever holds it; False if it is not the suspect any more.

        Only with the writer's lock in hand. The next one to ask for the lock gets it, on the new file.
        """
        assert writer.is_held
        if host_identity(self._queue_path) != suspect:
            return False
        new = Path(f"{self._name}.new")  # whoever has the writer's lock is alone here
        new.unlink(missing_ok=True)
        os.close(os.open(new, _LOCK_FLAGS | os.O_EXCL, 0o600))
        new.replace(self._path)
        return True

    def write_owner(self, owner: Mapping[str, object]) -> None:
        """Say who hosts. Only for the exclusive holder."""
        line = orjson.dumps(dict(owner)) + b"\n"
        assert self.is_held
        assert len(line) <= MAX_OWNER_BYTES
        # In this order a reader sees the old line or the new one; what is left of the old stands behind a line feed.
        os.pwrite(self._fd, line, 0)
        os.ftruncate(self._fd, len(line))


def read_owner(queue_path: str | os.PathLike[str]) -> dict[str, object] | None:
    """Return what the last host wrote about itself, or None. It may be dead: ask `is_hosted`."""
    try:
        fd = os.open(f"{os.fspath(queue_path)}{HostLock.suffix}", _READ_FLAGS)
    except FileNotFoundError:
        return None
    try:
        data = os.pread(fd, MAX_OWNER_BYTES, 0)
    finally:
        os.close(fd)
    try:
        owner = orjson.loads(data.partition(b"\n")[0])
    except orjson.JSONDecodeError:
        return None  # empty: nobody has hosted yet
    return owner if isinstance(owner, dict) else None


def host_identity(queue_path: str | os.PathLike[str]) -> FileIdentity | None:
    """Return which file has the name of the host's lock now."""
    return _identity_of(f"{os.fspath(queue_path)}{HostLock.suffix}")


def writer_pid(queue_path: str | os.PathLike[str]) -> int | None:
    """Return the process that holds the writer's lock, as far as the kernel tells."""
    try:
        fd = os.open(f"{os.fspath(queue_path)}{WriterLock.suffix}", _READ_FLAGS)
    except FileNotFoundError:
        return None
    try:
        return _holder_of(fd)
    finally:
        os.close(fd)


def host_pid(queue_path: str | os.PathLike[str]) -> int | None:
    """Return the process that hosts the queue, or did last, by its own word."""
    pid = (read_owner(queue_path) or {}).get("pid")
    return pid if isinstance(pid, int) else None


def is_starting(queue_path: str | os.PathLike[str]) -> bool:
    """Say whether the host has not yet said that all its brokers run."""
    return (read_owner(queue_path) or {}).get("starting") is True


def is_hosted(queue_path: str | os.PathLike[str]) -> bool:
    """Say whether a process holds the host's lock exclusively."""
    return _is_locked(queue_path, HostLock.suffix)


def is_written(queue_path: str | os.PathLike[str]) -> bool:
    """Say whether a process holds the writer's lock."""
    return _is_locked(queue_path, WriterLock.suffix)


# ---------------------------------------------------------------------------------------------------------------

_READ_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_LOCK_FLAGS = _READ_FLAGS | os.O_RDWR | os.O_CREAT


def _is_locked(queue_path: str | os.PathLike[str], suffix: str) -> bool:
    try:
        fd = os.open(f"{os.fspath(queue_path)}{suffix}", _READ_FLAGS)
    except FileNotFoundError:
        return False
    try:
        return not _lock(fd, shared=True)
    finally:
        os.close(fd)


def _open_lock_file(path: Path) -> tuple[int, FileIdentity]:
    try:
        fd = above_stdio(os.open(path, _LOCK_FLAGS, 0o600))
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise UnsupportedFormatError(path, "its lock file is not a regular file; remove it") from error
        raise
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise UnsupportedFormatError(path, "its lock file is not a regular file of one name; remove it")
    return fd, _identity(status)


def _lock(fd: int, *, shared: bool) -> bool:
    try:
        fcntl.flock(fd, _SHARED if shared else _EXCLUSIVE)
    except BlockingIOError:
        return False
    return True


def _lock_by_filelock(fd: int) -> bool:
    from filelock import lock_descriptor  # noqa: PLC0415  not in every process: see LastingWriterLock

    return lock_descriptor(fd, blocking=False)


def _unlock(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)


def _identity(status: os.stat_result) -> FileIdentity:
    return FileIdentity(status.st_dev, status.st_ino)


def _identity_of(path: str) -> FileIdentity | None:
    try:
        return _identity(os.lstat(path))
    except FileNotFoundError:
        return None


def _holder_of(fd: int) -> int | None:
    """Return the process that took a lock on this file, as far as the kernel tells."""
    inode = os.fstat(fd).st_ino
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4711 fd:00:1234567 0 EOF
        fields = line.split()
        if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
            pid = int(fields[4])
            return pid if pid > 0 else None
    return None

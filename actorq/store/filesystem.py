"""The few calls by which the store touches a disk: one of the two seams of actorq (the other is the clock).

`REAL` passes them on to the kernel. `actorq.testing.CrashingFilesystem` keeps in memory what was synced apart from
what was only written, and shows what a power cut may leave.
"""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, override

from actorq.errors import DiskFullError
from actorq.stdio import above_stdio

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

type StrPath = str | os.PathLike[str]
type Buffer = bytes | memoryview

# The disk, the quota or the largest file that the process may write is used up.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The kernel's, in which each change of a name in a directory renews the times of that directory, in its memory at once.
RENEW_TIMES = frozenset({"ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs", "overlay"})
# File systems of other machines, or of programs that may be: flock and fdatasync mean less there, or nothing.
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.s3fs", "vboxsf"})
# The clock from which it takes them, in ticks (CLOCK_REALTIME_COARSE, of which the `time` module lacks the name).
TIMES_CLOCK = 5
SECOND_NS = 1_000_000_000
DIRECTORY_FLAGS = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0)

# Device, inode and time.
type NamesVersion = tuple[int, int, int]


@contextmanager
def full_disk_told(path: StrPath) -> Iterator[None]:
    """Raise DiskFullError for this queue where an OSError of the block says that there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(path) from error
        raise


class Filesystem(Protocol):
    """Files by descriptor, names by path; every error is an OSError."""

    def open(self, path: StrPath, flags: int, mode: int = 0o600) -> int:
        """os.open; the path is not followed unless the flags say so."""
        ...

    def close(self, fd: int) -> None:
        """os.close."""
        ...

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """os.pread."""
        ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """os.pwritev: how many bytes of the buffers were taken."""
        ...

    def fdatasync(self, fd: int) -> None:
        """os.fdatasync."""
        ...

    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        """Have the disk begin with these bytes, less than a page of them, for a sync that will come soon."""
        ...

    def fsync(self, fd: int) -> None:
        """os.fsync."""
        ...

    def ftruncate(self, fd: int, length: int) -> None:
        """os.ftruncate."""
        ...

    def fstat(self, fd: int) -> os.stat_result:
        """os.fstat."""
        ...

    def lstat(self, path: StrPath) -> os.stat_result:
        """os.lstat."""
        ...

    def length(self, fd: int) -> int:
        """Return how long the file is, without a look at its times; see `log_writer`."""
        ...

    def rename(self, old: StrPath, new: StrPath) -> None:
        """os.rename."""
        ...

    def link(self, old: StrPath, new: StrPath) -> None:
        """os.link."""
        ...

    def unlink(self, path: StrPath) -> None:
        """os.unlink."""
        ...

    def listdir(self, path: StrPath) -> list[str]:
        """os.listdir."""
        ...

    def fsync_dir(self, path: StrPath) -> None:
        """Bring to disk which names a directory holds."""
        ...

    def names_version(self, directory: StrPath) -> NamesVersion | None:
        """Return what is another one after a name in this directory was set or removed; None if it cannot be told."""
        ...

    def kind(self, path: StrPath) -> str:
        """Say of what type the file system is, in the kernel's words; nothing if it cannot be told."""
        ...

    def room(self, path: StrPath) -> int:
        """Return how many bytes the file system of this directory still takes from this user."""
        ...


class RealFilesystem(Filesystem):
    """The kernel's."""

    def __init__(self) -> None:
        self._renews_times: dict[int, bool] = {}

    @override
    def open(self, path: StrPath, flags: int, mode: int = 0o600) -> int:
        return above_stdio(os.open(path, flags, mode))

    @override
    def close(self, fd: int) -> None:
        os.close(fd)

    @override
    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    @override
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(fd, buffers, offset)

    @override
    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    @override
    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        # Of pages that are not wanted any more the kernel begins to write what is not on disk. It drops them afterwards
        # only if all of a page is named, so these stay in memory.
        with suppress(OSError):  # what is not begun here, the sync will do, and say what is wrong
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)

    @override
    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    @override
    def ftruncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    @override
    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    @override
    def lstat(self, path: StrPath) -> os.stat_result:
        return os.lstat(path)

    @override
    def length(self, fd: int) -> int:
        return os.lseek(fd, 0, os.SEEK_END)

    @override
    def rename(self, old: StrPath, new: StrPath) -> None:
        Path(old).rename(new)

    @override
    def link(self, old: StrPath, new: StrPath) -> None:
        os.link(old, new)

    @override
    def unlink(self, path: StrPath) -> None:
        Path(path).unlink()

    @override
    def listdir(self, path: StrPath) -> list[str]:
        return [entry.name for entry in Path(path).iterdir()]

    @override
    def fsync_dir(self, path: StrPath) -> None:
        fd = os.open(path, DIRECTORY_FLAGS)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    @override
    def names_version(self, directory: StrPath) -> NamesVersion | None:
        now = time.clock_gettime_ns(TIMES_CLOCK)
        try:
            found = os.stat(directory)  # noqa: PTH116  Path.stat takes twice as long
        except OSError:
            return None  # whoever opens something there will say why
        changed = found.st_ctime_ns  # which nobody can set, unlike the other one
        # What happens from here on bears at least the time of before, so it shows if that is a later tick than the last
        # change. Without a part of a second, it may be a file system that counts in seconds.
        if changed >= now or changed % SECOND_NS == 0:
            return None
        renews = self._renews_times.get(found.st_dev)
        if renews is None:
            renews = self._renews_times[found.st_dev] = self.kind(directory) in RENEW_TIMES
        return (found.st_dev, found.st_ino, changed) if renews else None

    @override
    def kind(self, path: StrPath) -> str:
        device = Path(path).stat().st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return kind_of_mount(mounts, number, os.path.realpath(path))

    @override
    def room(self, path: StrPath) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize


_find_escapes = re.compile(r"\\([0-7]{3})")


def kind_of_mount(mounts: str, device: str, path: str) -> str:
    """Return the type of the file system of this device (`8:1`), or else of the mount point above this real path.

    The text is /proc/self/mountinfo. The device is not in it where each part of a file system has one of its own, as
    in btrfs.
    """
    longest, kind = "", ""
    for mount in mounts.splitlines():
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
        fields = mount.split()
        its_kind = fields[fields.index("-") + 1]
        if fields[2] == device:
            return its_kind
        point = _find_escapes.sub(lambda escape: chr(int(escape[1], 8)), fields[4])
        if len(point) >= len(longest) and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            longest, kind = point, its_kind
    return kind


REAL: Filesystem = RealFilesystem()


def read_exactly(filesystem: Filesystem, fd: int, length: int, offset: int) -> bytes:
    """Return so many bytes from there, fewer only if the file ends before."""
    data = filesystem.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    missing = length - len(data)
    while missing:
        data = filesystem.pread(fd, missing, offset + length - missing)
        if not data:
            break
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def write_exactly(filesystem: Filesystem, fd: int, data: Buffer, offset: int) -> None:
    """Write all of it, or raise the OSError that says why not."""
    rest = memoryview(data)
    while rest:
        written = filesystem.pwritev(fd, [rest], offset)
        if not written:
            raise OSError(errno.ENOSPC, "the file system took no more bytes")
        offset += written
        rest = rest[written:]


def same_file(one: os.stat_result, other: os.stat_result) -> bool:
    """Say whether both name one inode."""
    return one.st_ino == other.st_ino and one.st_dev == other.st_dev


def directory_of(path: StrPath) -> Path:
    """Return the directory whose entry the path is."""
    return Path(path).parent

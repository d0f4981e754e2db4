"""A file that is written under another name and gets its own only when it is whole and on disk.

Creation, compaction and the rewriting after doubt all end here:

    write everything -> fsync the file -> link or rename -> fsync the directory -> remove the second name

so that a crash at any step leaves the old file, or none, or the new one, each complete. Until the directory is on disk,
the file has a second name, by which the next process knows what this one, killed in between, did not get to: without
it, commits to a file that has its name only in memory would be lost with the name in a power cut.

While a queue runs, one process writes the file and another one, the writer, puts it in its place: `offer`, `take_over`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from actorq import failpoints
from actorq.errors import UnsupportedFormatError
from actorq.store.filesystem import Filesystem, StrPath, directory_of, write_exactly

if TYPE_CHECKING:
    from actorq.store.filesystem import Buffer

TEMP_SUFFIX = ".new"
OFFER_SUFFIX = ".offer"
"""Of a file that is written beside a queue in use, for its writer to take over. Whoever is told to write one may remove
those that others have left; so the writer gives it another name before he does anything with it."""
NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


class NewFile:
    """Write, then `publish` or `replace`, or `abandon`."""

    def __init__(
        self, path: StrPath, filesystem: Filesystem, *, suffix: str = TEMP_SUFFIX, offered: str | None = None
    ) -> None:
        """Begin an empty file, or go on with one that another process has left by `offer`: `offered` is its name.

        FileNotFoundError: it is not there any more.
        """
        self._path = Path(path)
        self._filesystem = filesystem
        self._directory = directory_of(path)
        self._temp, self._second = (
            self._directory / f".{self._path.name}.{os.urandom(8).hex()}{ending}" for ending in (suffix, TEMP_SUFFIX)
        )
        self.is_named = False
        """Whether the path names it."""
        self.size = 0
        self.fd = self._create() if offered is None else self._take_over(offered)

    def _create(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = self._filesystem.open(self._temp, flags, 0o600)
        if failpoints.ARMED:
            failpoints.hit("new_file.opened")
        return fd

    def _take_over(self, name: str) -> int:
        if not _is_name(name, self._path, OFFER_SUFFIX):
            raise ValueError(f"{name!r:.100} is not the name of a file that is offered")
        self._filesystem.rename(self._directory / name, self._temp)
        if failpoints.ARMED:
            failpoints.hit("new_file.taken_over")
        fd = -1
        try:
            fd = self._filesystem.open(self._temp, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            self.size = self._filesystem.fstat(fd).st_size
        except OSError:
            if fd >= 0:
                self._filesystem.close(fd)
            self._remove_temps()
            raise
        return fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()

    @property
    def temp(self) -> Path:
        """The name that it has until it gets its own."""
        return self._temp

    def write(self, data: Buffer) -> None:
        """Append."""
        if failpoints.ARMED:
            failpoints.hit(
                "new_file.writing", [data], lambda part: self._filesystem.pwritev(self.fd, [part], self.size)
            )
        write_exactly(self._filesystem, self.fd, data, self.size)
        self.size += len(data)

    def patch(self, data: Buffer, offset: int) -> None:
        """Overwrite what was written before."""
        assert offset + len(data) <= self.size
        write_exactly(self._filesystem, self.fd, data, offset)

    def sync(self) -> None:
        """Bring to disk what was written so far, so that the last sync finds little to do."""
        self._filesystem.fsync(self.fd)

    def publish(self) -> bool:
        """Give it its name, unless that name is taken. Say whether it got it."""
        self._finish()
        try:
            self._filesystem.link(self._temp, self._path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            # Look, then rename. The caller holds the writer's lock, so only a stranger could come in between.
            if _exists(self._filesystem, self._path):
                return False
            self._filesystem.rename(self._temp, self._path)
        self._settle()
        return True

    def offer(self) -> str:
        """Leave it, on disk under its temporary name, to whoever takes it over; return the name."""
        self._filesystem.fsync(self.fd)
        self._filesystem.close(self.detach())
        return self._temp.name

    def replace(self) -> None:
        """Put it in the place of the file that has the name now."""
        self._finish()
        try:
            self._filesystem.link(self._temp, self._second)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
        if failpoints.ARMED:
            failpoints.hit("new_file.replacing")
        self._filesystem.rename(self._temp, self._path)
        self._settle()

    def _finish(self) -> None:
        if failpoints.ARMED:
            failpoints.hit("new_file.syncing")
        self._filesystem.fsync(self.fd)
        if failpoints.ARMED:
            failpoints.hit("new_file.synced")

    def _settle(self) -> None:
        self.is_named = True
        if failpoints.ARMED:
            failpoints.hit("new_file.named")
        self._filesystem.fsync_dir(self._directory)
        if failpoints.ARMED:
            failpoints.hit("new_file.settled")
        # From here a power cut finds it under its name.
        self._remove_temps()

    def _remove_temps(self) -> None:
        for name in (self._temp, self._second):
            _unlink_if_there(self._filesystem, name)

    def detach(self) -> int:
        """Hand the open descriptor over to the caller."""
        fd, self.fd = self.fd, -1
        return fd

    def abandon(self) -> None:
        """Remove it if it never got its name, and close it. Nothing to do after `detach`."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        self._filesystem.close(fd)
        if not self.is_named:
            self._remove_temps()


def sweep(path: StrPath, filesystem: Filesystem, *, suffix: str = TEMP_SUFFIX) -> list[str]:
    """Remove what interrupted writers left behind. Only for the holder of the writer's lock; says what it removed.

    With `OFFER_SUFFIX`: what nobody will take over any more. For the only one who writes such files, or who could.
    """
    directory = directory_of(path)
    removed = []
    for entry in filesystem.listdir(directory):
        if _is_name(entry, path, suffix):
            _unlink_if_there(filesystem, directory / entry)
            removed.append(entry)
    return removed


def require_only_name(filesystem: Filesystem, fd: int, path: StrPath) -> None:
    """Refuse a file that has a second name: two names have two locks, and two writers overwrite each other.

    A second name of ours says that the directory may not be on disk yet; it is now.
    """
    if filesystem.fstat(fd).st_nlink > 1:
        filesystem.fsync_dir(directory_of(path))
        for suffix in (TEMP_SUFFIX, OFFER_SUFFIX):
            sweep(path, filesystem, suffix=suffix)
        if filesystem.fstat(fd).st_nlink > 1:
            raise UnsupportedFormatError(path, "it has a second name (a hard link); remove one of them")


def _is_name(entry: str, path: StrPath, suffix: str) -> bool:
    begin = f".{Path(path).name}."
    random = entry.removeprefix(begin).removesuffix(suffix)
    return entry == begin + random + suffix and len(random) == 16 and not random.strip("0123456789abcdef")


def _exists(filesystem: Filesystem, path: StrPath) -> bool:
    try:
        filesystem.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _unlink_if_there(filesystem: Filesystem, path: StrPath) -> None:
    try:
        filesystem.unlink(path)
    except FileNotFoundError:
        return

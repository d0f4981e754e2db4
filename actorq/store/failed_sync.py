"""The mark beside Queue.json that says: a sync of it failed, do not believe what the kernel shows of it.

After a failed fdatasync the kernel may drop the pages and report success for the next one, and reading gives the lost
bytes back until they leave the cache. So the first thing that happens is this mark. Whoever opens the file next copies
into a new file what can still be read and checks, through the last whole commit: that may be more than was synced, as
other processes have seen it and may have acted on it, and must not be less.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import orjson

from actorq.store.filesystem import Filesystem, StrPath, directory_of, read_exactly, write_exactly

SUFFIX = ".failed-sync"


class FailedSync(NamedTuple):
    """Which file, and its last commit that is known to be on disk. None where the mark itself could not be written."""

    generation: int | None
    synced: int | None
    reason: str
    tree: str | None = ""
    """Whose processes may have read what was not synced: whatever the writer calls them, "" if nobody else's."""


def leave_mark(filesystem: Filesystem, path: StrPath, failed: FailedSync) -> str:
    """Leave the mark as well as the disk still allows; return what the error should say if that was not well."""
    name = os.fspath(path) + SUFFIX
    try:
        fd = filesystem.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return ""
    except OSError as error:
        return f"; no mark could be left in {name} ({error.strerror})"
    # From here the mark exists. What it says is worth less: without it, the file's own records tell.
    try:
        write_exactly(filesystem, fd, orjson.dumps(failed._asdict()) + b"\n", 0)
        filesystem.fsync(fd)
        filesystem.fsync_dir(directory_of(name))
    except OSError as error:
        return f"; the mark {name} may not survive a power cut ({error.strerror})"
    finally:
        filesystem.close(fd)
    return ""


def has_mark(filesystem: Filesystem, path: StrPath) -> bool:
    """Say whether a mark was left."""
    try:
        filesystem.lstat(os.fspath(path) + SUFFIX)
    except FileNotFoundError:
        return False
    return True


def read_mark(filesystem: Filesystem, path: StrPath) -> FailedSync | None:
    """Return the mark, if one was left."""
    try:
        fd = filesystem.open(os.fspath(path) + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        data = read_exactly(filesystem, fd, 4096, 0)
    finally:
        filesystem.close(fd)
    try:
        said = orjson.loads(data)
        tree = str(said.get("tree", ""))
        generation, synced = (None if said[key] is None else int(said[key]) for key in ("generation", "synced"))
        return FailedSync(generation, synced, str(said["reason"]), tree)
    except (ValueError, KeyError, TypeError, AttributeError):
        return FailedSync(None, None, "unknown: the mark is not readable", None)


def sign_mark(filesystem: Filesystem, path: StrPath, tree: str) -> None:
    """Note in a mark that was left half written whose processes may have read what was not synced."""
    fd = filesystem.open(os.fspath(path) + SUFFIX, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        mark = {"generation": None, "synced": None, "reason": "unknown: the mark was left half written", "tree": tree}
        filesystem.ftruncate(fd, 0)
        write_exactly(filesystem, fd, orjson.dumps(mark) + b"\n", 0)
        filesystem.fsync(fd)
    finally:
        filesystem.close(fd)


def remove_mark(filesystem: Filesystem, path: StrPath) -> None:
    """Remove it, once a new file has taken the place."""
    name = os.fspath(path) + SUFFIX
    filesystem.unlink(name)
    filesystem.fsync_dir(directory_of(name))

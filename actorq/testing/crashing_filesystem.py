"""A disk that forgets: a `Filesystem` in memory that keeps what was synced apart from what was only written.

It shows every state, or a choice of them, that a power cut may leave, and it fails any call on demand::

    disk = CrashingFilesystem()
    log = LogWriter.open("Queue.json", filesystem=disk, boot_id="one", pid=1)
    log.write(lines)
    for left in disk.crash_states():              # any subset of the unsynced sectors, sizes and names
        LogWriter.open("Queue.json", filesystem=left, boot_id="two", pid=2)

The model is harsher than any file system in use: unsynced sectors of 512 bytes, file sizes and names reach the disk in
any combination; a sector that was never written reads as zeros. A failed sync forgets what it should have kept, while
reading still shows it, and the next sync succeeds. Whoever is stopped at a call makes no other call after it, whatever
his `finally` says: a killed process cleans up nothing.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import random
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, override

from actorq.store.filesystem import Buffer, Filesystem, NamesVersion, StrPath

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SECTOR = 512
PAGE = 4096
MOST_UNITS_TO_ENUMERATE = 10


class Stopped(BaseException):
    """The process ends at this call. Not an Exception, because nobody may catch it: nobody can catch a kill."""


@dataclass
class Fault:
    """What happens at a call instead of what should.

    ``taken``: how many bytes of a write get through before. ``skip``: how many calls of its name do not fail yet.
    """

    error: BaseException
    taken: int = 0
    skip: int = 0


@dataclass(frozen=True)
class Write:
    """One sector, as it was after a write to it. ``call``: which write, so that its sectors can go by whole pages."""

    offset: int
    data: bytes
    call: int


# A write, or the new length of the file.
type Change = Write | int


@dataclass
class Inode:
    """A file: what reading shows, what the disk holds, and the writes in between."""

    number: int
    live: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)


# Names to set (or, with None, to remove) in one atomic step.
type NameChange = dict[str, int | None]
# What a disk may hold: inodes by name, and the content of each.
type State = tuple[dict[str, int], dict[int, bytes]]


class CrashingFilesystem(Filesystem):
    """One flat disk in memory. Paths are compared as they are written."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int | str]] = []
        self.before_call: Callable[[], None] | None = None
        """Called before every call that changes something: the moment to look at what a power cut would leave."""
        self._inodes: dict[int, Inode] = {}
        self._names: dict[str, int] = {}
        self._durable_names: dict[str, int] = {}
        self._pending_names: list[NameChange] = []
        self._open_files: dict[int, int] = {}
        self._faults: dict[int | str, Fault] = {}
        self._is_stopped = False
        self._numbers = itertools.count(1000)

    # -----------------------------------------------------------------------------------------------------------
    # For tests

    def read_bytes(self, path: StrPath) -> bytes:
        """Return what reading that file shows."""
        return bytes(self._inodes[self._inode_of(path)].live)

    def write_bytes(self, path: StrPath, data: bytes) -> None:
        """Put a file there, on disk."""
        inode = self._new_inode()
        inode.live[:] = inode.durable[:] = data
        self._names[os.fspath(path)] = self._durable_names[os.fspath(path)] = inode.number

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(self._names)

    def fail_call(self, number: int, error: int | BaseException, *, taken: int = 0) -> None:
        """Let the call of that number (see `len(disk.calls)`) fail, a write after so many bytes."""
        exception = error if isinstance(error, BaseException) else OSError(error, os.strerror(error))
        self._faults[number] = Fault(exception, taken)

    def fail_next(self, call: str, error: int | BaseException, *, taken: int = 0, skip: int = 0) -> None:
        """Let the next call of this name (`write`, `fdatasync`, `rename` ...) fail, or the one after so many more."""
        exception = error if isinstance(error, BaseException) else OSError(error, os.strerror(error))
        self._faults[call] = Fault(exception, taken, skip)

    def heal(self) -> None:
        """Let no call fail any more; whoever was stopped is gone, and the other processes go on."""
        self._faults.clear()
        self._is_stopped = False

    def after_kill(self) -> CrashingFilesystem:
        """Return the disk as the next process finds it when this one was killed: everything written is there."""
        left = CrashingFilesystem()
        left._inodes = {
            inode.number: Inode(inode.number, bytearray(inode.live), bytearray(inode.durable), list(inode.pending))
            for inode in self._inodes.values()
        }
        left._names = dict(self._names)
        left._durable_names = dict(self._durable_names)
        left._pending_names = list(self._pending_names)
        left._numbers = itertools.count(next(self._numbers))
        return left

    def drop_caches(self) -> None:
        """Let reading show what the disk holds. It differs from what was shown before only after a failed sync."""
        for inode in self._inodes.values():
            inode.live[:] = _content(inode, inode.pending)

    def unit_count(self, *, block: int = SECTOR) -> int:
        """Return how many changes may be on the disk or not, each by itself, in the worst of all choices of names."""
        units = self._units(block)
        return max(sum(len(units[inode]) for inode in set(names.values())) for names in self._name_tables())

    def crash_states(
        self, *, limit: int = 200, seed: int = 0, block: int = SECTOR, enumerate_up_to: int = MOST_UNITS_TO_ENUMERATE
    ) -> Iterator[CrashingFilesystem]:
        """Return what a power cut may leave: all possibilities if they are few, else a choice of ``limit`` of them.

        ``block`` is how many bytes of one write reach the disk together or not at all: a sector, or a PAGE.
        """
        if len(self._pending_names) <= enumerate_up_to and self.unit_count(block=block) <= enumerate_up_to:
            states = self._all_states(block)
        else:
            states = self._some_states(block, limit, seed)
        seen = set()
        for names, contents in states:
            state = tuple((name, contents[inode]) for name, inode in sorted(names.items()))
            if state not in seen:
                seen.add(state)
                yield self._disk_with(names, contents)

    def after_power_cut(self, chance: random.Random) -> CrashingFilesystem:
        """Return one of these states: nothing, everything, or any share of what was not synced has reached the disk."""
        share = chance.choice([0.0, 1.0, chance.random()])
        names = self._names_with([chance.random() < share for _ in self._pending_names])
        units = self._units(SECTOR)
        contents = {}
        for number in sorted(set(names.values())):
            chosen = [chance.random() < share for _ in units[number]]
            contents[number] = _content(self._inodes[number], _kept_of(self._inodes[number], units[number], chosen))
        return self._disk_with(names, contents)

    # -----------------------------------------------------------------------------------------------------------
    # Filesystem

    @override
    def open(self, path: StrPath, flags: int, mode: int = 0o600) -> int:
        name = os.fspath(path)
        if flags & os.O_CREAT:
            self._call("create", name)
            if name in self._names and flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            if name not in self._names:
                self._change({name: self._new_inode().number})
        fd = next(self._numbers)
        self._open_files[fd] = self._inode_of(path)
        return fd

    @override
    def close(self, fd: int) -> None:
        del self._open_files[fd]

    @override
    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._file(fd).live[offset : offset + length])

    @override
    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        inode = self._file(fd)
        data = b"".join(buffers)
        fault = self._take_fault("write", inode.number)
        if fault is not None:
            data = data[: fault.taken]
        self._write(inode, data, offset)
        # A write that gets somewhere says how far; the error comes with the next one. A kill comes at once.
        if fault is not None and (not data or not isinstance(fault.error, OSError)):
            raise fault.error
        if fault is not None:
            self._faults[len(self.calls)] = Fault(fault.error)
        return len(data)

    @override
    def fdatasync(self, fd: int) -> None:
        self._sync("fdatasync", fd)

    @override
    def start_writeback(self, fd: int, offset: int, length: int) -> None:
        pass  # what was written may be on the disk in any case

    @override
    def fsync(self, fd: int) -> None:
        self._sync("fsync", fd)

    @override
    def ftruncate(self, fd: int, length: int) -> None:
        inode = self._file(fd)
        self._call("ftruncate", inode.number)
        _resize(inode.live, length)
        inode.pending.append(length)

    @override
    def fstat(self, fd: int) -> os.stat_result:
        return self._status(self._file(fd))

    @override
    def lstat(self, path: StrPath) -> os.stat_result:
        return self._status(self._inodes[self._inode_of(path)])

    @override
    def length(self, fd: int) -> int:
        return self._status(self._file(fd)).st_size

    @override
    def rename(self, old: StrPath, new: StrPath) -> None:
        self._call("rename", os.fspath(new))
        self._change({os.fspath(old): None, os.fspath(new): self._inode_of(old)})

    @override
    def link(self, old: StrPath, new: StrPath) -> None:
        name = os.fspath(new)
        self._call("link", name)
        if name in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        self._change({name: self._inode_of(old)})

    @override
    def unlink(self, path: StrPath) -> None:
        self._call("unlink", os.fspath(path))
        self._inode_of(path)
        self._change({os.fspath(path): None})

    @override
    def listdir(self, path: StrPath) -> list[str]:
        folder = os.path.normpath(path)
        splits = (os.path.split(name) for name in self._names)
        return [entry for parent, entry in splits if os.path.normpath(parent) == folder]

    @override
    def fsync_dir(self, path: StrPath) -> None:
        self._call("fsync_dir", os.fspath(path))
        for change in self._pending_names:
            _apply(self._durable_names, change)
        self._pending_names.clear()

    @override
    def names_version(self, directory: StrPath) -> NamesVersion | None:
        return 0, 0, hash(frozenset(self._names.items()))

    @override
    def kind(self, path: StrPath) -> str:
        return "memory"

    @override
    def room(self, path: StrPath) -> int:
        return 1 << 40

    # -----------------------------------------------------------------------------------------------------------

    def _call(self, name: str, what: int | str) -> None:
        fault = self._take_fault(name, what)
        if fault is not None:
            raise fault.error

    def _take_fault(self, name: str, what: int | str) -> Fault | None:
        if self._is_stopped:
            raise Stopped
        if self.before_call is not None:
            self.before_call()
        fault = self._faults.pop(len(self.calls), None)
        named = self._faults.get(name)
        if named is not None and named.skip:
            named.skip -= 1
        elif named is not None:
            fault = self._faults.pop(name)
        self.calls.append((name, what))
        self._is_stopped = fault is not None and isinstance(fault.error, Stopped)
        return fault

    def _sync(self, name: str, fd: int) -> None:
        inode = self._file(fd)
        fault = self._take_fault(name, inode.number)
        if fault is None:
            inode.durable[:] = _content(inode, inode.pending)
        # Kept or not, the kernel takes the pages for clean from here on. That is what makes a second sync a lie.
        if fault is None or not isinstance(fault.error, Stopped):
            inode.pending.clear()
        if fault is not None:
            raise fault.error

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        end = offset + len(data)
        if not data:
            return
        if end > len(inode.live):
            _resize(inode.live, end)
            inode.pending.append(end)
        inode.live[offset:end] = data
        # The disk takes whole sectors: with the last change of one, what was written to it before arrives as well.
        for sector in range(offset // SECTOR * SECTOR, end, SECTOR):
            inode.pending.append(Write(sector, bytes(inode.live[sector : sector + SECTOR]), len(self.calls)))

    def _new_inode(self) -> Inode:
        inode = Inode(next(self._numbers))
        self._inodes[inode.number] = inode
        return inode

    def _inode_of(self, path: StrPath) -> int:
        name = os.fspath(path)
        if name not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return self._names[name]

    def _file(self, fd: int) -> Inode:
        if fd not in self._open_files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._inodes[self._open_files[fd]]

    def _status(self, inode: Inode) -> os.stat_result:
        links = sum(number == inode.number for number in self._names.values())
        return os.stat_result((stat.S_IFREG | 0o600, inode.number, 1, links, 0, 0, len(inode.live), 0, 0, 0))

    def _change(self, change: NameChange) -> None:
        _apply(self._names, change)
        self._pending_names.append(change)

    def _units(self, block: int) -> dict[int, list[tuple[int, ...]]]:
        """Return what of each inode reaches the disk together or not at all: changes, by their places."""
        units = {}
        for inode in self._inodes.values():
            together: dict[tuple[int, int], list[int]] = {}
            for at, change in enumerate(inode.pending):
                key = (change.call, change.offset // block) if isinstance(change, Write) else (-1, at)
                together.setdefault(key, []).append(at)
            units[inode.number] = [tuple(places) for places in together.values()]
        return units

    def _names_with(self, kept: Sequence[bool]) -> dict[str, int]:
        """Return the names that the disk holds when these of their changes have reached it."""
        names = dict(self._durable_names)
        for change in itertools.compress(self._pending_names, kept):
            _apply(names, change)
        return names

    def _name_tables(self) -> list[dict[str, int]]:
        """Return which names the disk may hold, all possibilities, each once."""
        tables = map(self._names_with, itertools.product((False, True), repeat=len(self._pending_names)))
        return list({tuple(sorted(table.items())): table for table in tables}.values())

    def _all_states(self, block: int) -> Iterator[State]:
        units = self._units(block)

        @functools.cache
        def contents_of(number: int) -> list[bytes]:
            inode = self._inodes[number]
            subsets = itertools.product((False, True), repeat=len(units[number]))
            # No set: the order of its members would be another one in each process.
            return list(dict.fromkeys(_content(inode, _kept_of(inode, units[number], chosen)) for chosen in subsets))

        for names in self._name_tables():
            inodes = sorted(set(names.values()))
            for contents in itertools.product(*map(contents_of, inodes)):
                yield names, dict(zip(inodes, contents, strict=True))

    def _some_states(self, block: int, limit: int, seed: int) -> Iterator[State]:
        units = self._units(block)
        pieces = [(number, places) for number, of_inode in units.items() for places in of_inode]
        count = len(self._pending_names)
        for chosen in _subsets(count + len(pieces), limit, seed):
            names = self._names_with(chosen[:count])
            contents = {}
            for number in set(names.values()):
                mine = [kept for (owner, _), kept in zip(pieces, chosen[count:], strict=True) if owner == number]
                inode = self._inodes[number]
                contents[number] = _content(inode, _kept_of(inode, units[number], mine))
            yield names, contents

    def _disk_with(self, names: dict[str, int], contents: dict[int, bytes]) -> CrashingFilesystem:
        left = CrashingFilesystem()
        left._numbers = itertools.count(next(self._numbers))
        left._durable_names = dict(names)
        left._names = dict(names)
        for number, content in contents.items():
            left._inodes[number] = Inode(number, bytearray(content), bytearray(content))
        return left


def _kept_of(inode: Inode, units: list[tuple[int, ...]], chosen: Sequence[bool]) -> list[Change]:
    """Return the changes that these units consist of, in the order in which they were made."""
    return [inode.pending[at] for at in sorted(at for places in itertools.compress(units, chosen) for at in places)]


def _content(inode: Inode, kept: Sequence[Change]) -> bytes:
    """Return what the disk holds when of the changes since the last sync these have reached it."""
    content = bytearray(inode.durable)
    for change in kept:
        if not isinstance(change, Write):
            _resize(content, change)
    for change in kept:
        if isinstance(change, Write):
            # A sector behind the end of the file is on the disk, but nobody sees it.
            visible = change.data[: max(0, len(content) - change.offset)]
            content[change.offset : change.offset + len(visible)] = visible
        else:
            # What a cut has taken off does not come back when the file grows again.
            content[change:] = bytes(max(0, len(content) - change))
    return bytes(content)


def _resize(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


def _apply(names: dict[str, int], change: NameChange) -> None:
    for name, number in change.items():
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def _subsets(count: int, limit: int, seed: int) -> Iterator[tuple[bool, ...]]:
    yield (False,) * count
    yield (True,) * count
    chance = random.Random(seed)  # noqa: S311  a choice of tests, which must repeat
    # None, all, one, all but one: where an error of order shows first. Half of the choice at most.
    for at in sorted(chance.sample(range(count), min(count, limit // 4))):
        yield tuple(index == at for index in range(count))
        yield tuple(index != at for index in range(count))
    for _ in range(max(0, limit - 2 * min(count, limit // 4) - 2)):
        share = chance.random()
        yield tuple(chance.random() < share for _ in range(count))

"""The reader's half of the log: replay it from its start, then follow it as it grows.

A reader takes no lock and writes nothing. What stands behind the last whole commit, be it a batch under way or one that
a crash has torn, is not there yet as far as a reader is concerned. Only a batch that does not check although a later
commit stands behind it is damage.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from actorq.errors import CorruptQueueError, QueueReplacedError, UnsupportedFormatError
from actorq.store.filesystem import REAL, Filesystem, StrPath, read_exactly, same_file
from actorq.store.format import (
    COMMIT_MARK,
    HEAD_LENGTH,
    OPENING,
    PIECE_MARK,
    RECORD_LENGTH,
    Commit,
    Header,
    HeaderError,
    batch_crc,
    parse_commit,
    parse_head,
    render_header,
    snapshot_chain,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
FIRST_READ = 16 << 10
LARGE_READ = 4 << 20


class Position(NamedTuple):
    """A place in the log that means the same to everybody: which file, and how far into it."""

    generation: int
    offset: int


class Batch(NamedTuple):
    """The lines of one commit (or of one piece of the snapshot), as they stand in the file.

    ``start`` is the offset of the first byte of the lines, ``end`` the one behind the commit record's line feed.
    """

    start: int
    lines: bytes
    commit: Commit
    end: int
    piece: bool


class Link(NamedTuple):
    """Where a reader stands in the chain of commits: behind which one, and what the next must be chained to."""

    offset: int
    number: int
    chain: int
    epoch: int
    piece: bool


class BatchReader:
    """Reads batches of a file that somebody else has open, and will close, from a given link on."""

    def __init__(self, filesystem: Filesystem, fd: int, path: StrPath, header: Header, link: Link) -> None:
        self._filesystem = filesystem
        self._fd = fd
        self._path = path
        self._link = link
        self._searched_to = 0
        self._last_crc = 0
        self.header = header

    def __repr__(self) -> str:
        where = f"{os.fspath(self._path)} generation {self.generation}"
        return f"<{type(self).__name__} {where} commit {self.commit} at {self._link.offset}>"

    @property
    def path(self) -> StrPath:
        """Where the file was when it was opened."""
        return self._path

    @property
    def generation(self) -> int:
        """The number of this file: a compacted or rewritten one has a higher number."""
        return self.header.generation

    @property
    def position(self) -> Position:
        """Behind the last batch that was read."""
        return Position(self.header.generation, self._link.offset)

    @property
    def commit(self) -> int:
        """The number of the last commit that was read or that the snapshot stands for."""
        return self.header.commit if self._link.piece else self._link.number

    @property
    def link(self) -> Link:
        """Where this reader stands in the chain."""
        return self._link

    def batches(self, verify: bool = True) -> Iterator[Batch]:
        """Return what was committed since, oldest first, through the last whole commit."""
        size = FIRST_READ
        suspected = -1
        while True:
            begin = self._link.offset
            data = self._filesystem.pread(self._fd, size, begin)
            yield from self._whole_batches(data, begin, verify)
            at = self._link.offset - begin
            if at and not data.startswith(b"]", at):
                size = min(size * 4, LARGE_READ)
                continue
            if len(data) == size and self._is_cut_short(data, at):
                size *= 4
                continue
            later = self._later_commit(data, at)
            if later is None:
                if self._link.piece:
                    raise self._damage("a piece of the snapshot is damaged or missing")
                return
            # The bytes may have been read while they were written, an early page before and a late one after. The
            # later commit proves that the writer is past this place, so a second look is the truth.
            if suspected == self._link.offset:
                raise self._damage(f"its checksum or shape is wrong, but commit {later} stands behind it")
            suspected = self._link.offset

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file, fewer only if it ends before."""
        return read_exactly(self._filesystem, self._fd, length, offset)

    def behind(self, link: Link) -> BatchReader:
        """Return a reader of the same open file that stands behind another commit."""
        return BatchReader(self._filesystem, self._fd, self._path, self.header, link)

    # -----------------------------------------------------------------------------------------------------------

    def _whole_batches(self, data: bytes, begin: int, verify: bool) -> Iterator[Batch]:
        link = self._link
        at = link.offset - begin
        # Most often what follows is the bracket and filler, which is the slow case of the search below: 33 us.
        while data.startswith(b",", at):
            end_of_lines = find_line(data, PIECE_MARK if link.piece else COMMIT_MARK, at)
            if end_of_lines < 0:
                return
            commit = parse_commit(data, end_of_lines, piece=link.piece)
            if commit is None:
                return
            end = end_of_lines + RECORD_LENGTH
            lines = data[at:end_of_lines]
            if not follows(commit, link, len(lines)):
                return
            if verify and batch_crc(lines, data[end_of_lines:end], link.chain) != commit.crc:
                return
            batch = Batch(begin + at, lines, commit, begin + end, link.piece)
            self._link = link = link_behind(batch, self.header)
            self._last_crc = commit.crc
            yield batch
            at = end

    def _is_cut_short(self, data: bytes, at: int) -> bool:
        """Is the next batch larger than what was read? Then it shows neither its record nor filler."""
        if not data.startswith(b",", at) or data.endswith(b"\n\n"):
            return False
        record = find_line(data, PIECE_MARK if self._link.piece else COMMIT_MARK, at)
        return record < 0 or record + RECORD_LENGTH > len(data)

    def _later_commit(self, data: bytes, at: int) -> int | None:
        """Return the number of a commit that stands behind the next one, where that one is not whole."""
        expected = self.header.commit if self._link.piece else self._link.number + 1
        begin = self._link.offset - at
        found = later_commit(data, at, expected)
        if found is not None:
            return found
        # Behind a hole larger than one read there may be more. Each byte is looked at once; and fstat is not asked for
        # the size, because that makes the writer's next commit slower (see log_writer).
        place = max(self._searched_to, begin + len(data))
        while self._filesystem.pread(self._fd, 1, place):
            chunk = self._filesystem.pread(self._fd, LARGE_READ, place - RECORD_LENGTH)
            found = later_commit(chunk, 0, expected)
            if found is not None:
                return found
            place += len(chunk) - RECORD_LENGTH
        self._searched_to = place
        return None

    def _damage(self, reason: str) -> CorruptQueueError:
        return CorruptQueueError(
            self._path, self._link.offset, None if self._link.piece else self._link.number + 1, reason
        )


class LogReader(BatchReader):
    """Opens Queue.json, reads it batch by batch, and follows it."""

    def __init__(self, path: StrPath, *, filesystem: Filesystem = REAL) -> None:
        fd = open_queue_file(filesystem, path, os.O_RDONLY)
        try:
            header = read_header(filesystem, fd, path)
        except BaseException:
            filesystem.close(fd)
            raise
        super().__init__(filesystem, fd, path, header, first_link(header))
        self._identity = filesystem.fstat(fd)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._fd

    def moved(self) -> bool:
        """Say whether the path names another file now. Then open a new reader and begin anew."""
        try:
            now = self._filesystem.lstat(self._path)
        except FileNotFoundError:
            return True
        return not same_file(now, self._identity)

    def is_as_read(self) -> bool:
        """Say whether what was read last still stands there: somebody may have written another file into this one."""
        if self._link.offset == HEAD_LENGTH:
            return self._filesystem.pread(self._fd, HEAD_LENGTH, 0) == OPENING + render_header(self.header)
        record = self._filesystem.pread(self._fd, RECORD_LENGTH, self._link.offset - RECORD_LENGTH)
        last = parse_commit(record) or parse_commit(record, piece=True)
        return last is not None and last.crc == self._last_crc

    def close(self) -> None:
        """Let go of the file. Closing twice is allowed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._filesystem.close(fd)


def require_queue(path: StrPath, queue_id: str | None, *, filesystem: Filesystem = REAL) -> None:
    """Raise QueueReplacedError unless the file is there and holds this queue (None: whatever it holds, or nothing)."""
    if queue_id is None:
        return
    try:
        fd = open_queue_file(filesystem, path, os.O_RDONLY)
    except FileNotFoundError as error:
        raise QueueReplacedError(path, "it was removed or renamed") from error
    try:
        found = read_header(filesystem, fd, path).queue
    finally:
        filesystem.close(fd)
    if found != queue_id:
        raise QueueReplacedError(path, "another queue has its name now")


def find_line(data: bytes, mark: bytes, at: int) -> int:
    """Return where the next line behind this place begins that begins with the mark, or -1.

    The first few bytes are looked for, and the rest where they stand: for six and more in 30,000 CPython takes another
    algorithm, and three times as long.
    """
    few = b"\n" + mark[:4]
    while True:
        at = data.find(few, at) + 1
        if not at:
            return -1
        if data.startswith(mark, at):
            return at


def first_link(header: Header) -> Link:
    """Return the link that the first batch of a file is chained to."""
    if header.pieces:
        return Link(HEAD_LENGTH, 0, snapshot_chain(header), 0, piece=True)
    return Link(HEAD_LENGTH, header.commit, header.chain, 0, piece=False)


def link_behind(batch: Batch, header: Header) -> Link:
    """Return the link that the batch after this one is chained to."""
    commit = batch.commit
    if batch.piece and commit.number == header.pieces:
        return Link(batch.end, header.commit, header.chain, commit.epoch, piece=False)
    return Link(batch.end, commit.number, commit.crc, commit.epoch, batch.piece)


def follows(commit: Commit, link: Link, length: int) -> bool:
    """Say whether this is the record that must come next, whatever its checksum says."""
    return (
        commit.number == link.number + 1
        and commit.bytes == length
        and commit.epoch >= link.epoch
        and commit.synced < commit.number
    )


def later_commit(data: bytes, at: int, expected: int) -> int | None:
    """Return the number of the first well-formed commit record in the data that comes after the expected one.

    Or before it: nobody leaves an old commit there, so that is a block of the file in the wrong place.
    """
    # Filler is the slow case of a search for something that begins with a line feed; no record is without a comma.
    if data.find(b",", at) < 0:
        return None
    while True:
        at = find_line(data, COMMIT_MARK, at)
        if at < 0:
            return None
        commit = parse_commit(data, at)
        if commit is not None and commit.number != expected:
            return commit.number


def open_queue_file(filesystem: Filesystem, path: StrPath, flags: int) -> int:
    """Open the regular file of that name, without following a link and without waiting for a pipe."""
    try:
        fd = filesystem.open(path, flags | OPEN_FLAGS)
    except OSError as error:
        match error.errno:
            case errno.ELOOP:
                raise UnsupportedFormatError(path, "it is a symbolic link; use the path that it points to") from error
            case errno.EISDIR:
                raise UnsupportedFormatError(path, "it is a directory") from error
            case errno.ENXIO:
                raise UnsupportedFormatError(path, "it is a socket or a pipe") from error
        raise
    if not stat.S_ISREG(filesystem.fstat(fd).st_mode):
        filesystem.close(fd)
        raise UnsupportedFormatError(path, "it is not a regular file")
    return fd


def read_header(filesystem: Filesystem, fd: int, path: StrPath) -> Header:
    """Return the header of an open file, or say what it is instead."""
    try:
        return parse_head(read_exactly(filesystem, fd, HEAD_LENGTH * 2, 0))
    except HeaderError as error:
        if error.is_damage:
            raise CorruptQueueError(path, 0, None, error.reason) from error
        raise UnsupportedFormatError(path, error.reason) from error

"""A new Queue.json without what nobody needs any more: finished tasks, and the history of those that stay.

The new file begins with a snapshot of the state behind some commit X, in pieces, and goes on with the commits after X
as they are: its header carries the chain's value at X, so they are copied byte for byte. `Compaction` is that file in
the making; it needs no lock until its end, and whoever holds the lock brings it up to date and in place. `compact` does
all of it at once, for a queue that nobody is using.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from actorq import failpoints
from actorq.errors import CorruptQueueError, DiskFullError
from actorq.store.filesystem import NO_ROOM, REAL, Filesystem, StrPath
from actorq.store.fold import QueueState
from actorq.store.format import (
    CLOSING,
    FILLER,
    HEAD_LENGTH,
    OPENING,
    RECORD_LENGTH,
    Header,
    render_header,
    seal,
    snapshot_chain,
)
from actorq.store.log_reader import BatchReader, Link, LogReader, first_link
from actorq.store.log_writer import LogWriter
from actorq.store.new_file import NewFile, sweep


class Compacted(NamedTuple):
    """What compaction came to. ``removed`` counts the finished tasks that have left."""

    generation: int
    bytes_before: int
    bytes_after: int
    tasks: int
    removed: int


def compact(
    path: StrPath, *, boot_id: str, pid: int, keep_done: int | None = 10_000, filesystem: Filesystem = REAL
) -> Compacted:
    """Put a compacted file in the place of this one. The caller holds the locks: nobody writes and nobody hosts.

    Of the finished tasks the newest ``keep_done`` stay; None keeps all. Readers of the old file see that it has moved.
    A crash at any step leaves the old file or the new one.
    """
    # A torn tail must be cut and kept aside, not left out in silence; and the old file must be on disk, too.
    LogWriter.open(path, filesystem=filesystem, boot_id=boot_id, pid=pid, create=False).close()
    sweep(path, filesystem)
    reader = LogReader(path, filesystem=filesystem)
    try:
        state, at = _fold(reader)
        bytes_before = reader.position.offset + len(CLOSING + FILLER)
        with Compaction(path, reader.header, reader.link, at, filesystem) as compaction:
            for lines in state.snapshot_pieces(reader.read, keep_done):
                compaction.write_piece(lines)
            compaction.copy_batches(reader)
            compacted = compaction.check(state)
            compaction.replace()
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(path) from error
        raise
    finally:
        reader.close()
    generation = compaction.header.generation
    return Compacted(generation, bytes_before, compaction.size, len(compacted), len(state) - len(compacted))


class Compaction:
    """The new file in the making: pieces of the snapshot, then the batches since, then its name."""

    def __init__(self, path: StrPath, old: Header, link: Link, at: str, filesystem: Filesystem) -> None:
        """Begin a file whose snapshot stands for the old one through this link, whose commit was written at ``at``."""
        self._path = path
        self._filesystem = filesystem
        self._link = link
        self._at = at
        self.header = old._replace(generation=old.generation + 1, pieces=0, commit=link.number, chain=link.chain)
        self._chain = snapshot_chain(self.header)
        self._is_closed = False
        self._new = NewFile(path, filesystem)
        try:
            self._new.write(OPENING + render_header(self.header))
            if failpoints.ARMED:
                failpoints.hit("compaction.begun")
        except BaseException:
            self._new.abandon()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._new.abandon()

    @property
    def size(self) -> int:
        """How long the new file is so far."""
        return self._new.size

    def write_piece(self, lines: bytes) -> None:
        """Append one piece of the snapshot. All of them come before the first batch."""
        number = self.header.pieces + 1
        record, self._chain = seal(
            lines, self._chain, number=number, epoch=self._link.epoch, synced=0, at=self._at, piece=True
        )
        self._new.write(lines)
        self._new.write(record)
        self.header = self.header._replace(pieces=number)
        if failpoints.ARMED:
            failpoints.hit("compaction.piece")

    def copy_batches(self, reader: BatchReader) -> int:
        """Append what was committed to the old file since the reader last looked, as it is. Return how many batches.

        The reader stands where the snapshot was made, or where the last copying ended.
        """
        copied = 0
        for batch in reader.batches():
            self._new.write(batch.lines)
            self._new.write(reader.read(batch.end - RECORD_LENGTH, RECORD_LENGTH))
            copied += 1
        if failpoints.ARMED:
            failpoints.hit("compaction.copied")
        return copied

    def sync(self) -> None:
        """Bring to disk what was written so far, so that `replace` need not wait long."""
        self._new.sync()

    def check(self, old: QueueState) -> QueueState:
        """Read the new file back and hold it against the old state; return the state that it holds."""
        self._close_array()
        header = self.header
        reader = BatchReader(self._filesystem, self._new.fd, self._new.temp, header, first_link(header))
        state, _ = _fold(reader)
        if state.counts() != old.counts():
            reason = f"after compaction {state.counts()} would be there, before {old.counts()}; the old file was kept"
            raise CorruptQueueError(self._path, HEAD_LENGTH, None, reason)
        if failpoints.ARMED:
            failpoints.hit("compaction.checked")
        return state

    def replace(self) -> None:
        """Put the new file in the place of the old one. Whoever calls this holds the writer's lock."""
        self._close_array()
        self._new.replace()
        if failpoints.ARMED:
            failpoints.hit("compaction.replaced")

    def _close_array(self) -> None:
        self._new.patch(render_header(self.header), len(OPENING))
        if not self._is_closed:
            self._new.write(CLOSING + FILLER)
            self._is_closed = True


def _fold(reader: BatchReader) -> tuple[QueueState, str]:
    """Return the state behind the last commit, and when that was written."""
    state = QueueState()
    at = reader.header.created
    for batch in reader.batches():
        state.apply(batch)
        at = batch.commit.at
    return state, at

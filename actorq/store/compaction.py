"""A new Queue.json without what nobody needs any more: finished tasks, and the history of those that stay.

The new file begins with a snapshot of the state behind some commit X, in pieces, and goes on with the commits after X
as they are: its header carries the chain's value at X, so they are copied byte for byte. `Compaction` is that file in
the making; it needs no lock until its end, and whoever holds the lock brings it up to date and in place. `compact` does
all of it at once, for a queue that nobody is using. For one that is in use `prepare` does most of it, in small steps,
and offers the file to the writer; what is left to do then is in switch.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

from actorq import failpoints
from actorq.errors import CompactionError, CorruptQueueError
from actorq.store.filesystem import REAL, Filesystem, StrPath, directory_of, full_disk_told
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
from actorq.store.log_reader import Batch, BatchReader, Link, LogReader, first_link
from actorq.store.log_writer import LogWriter
from actorq.store.new_file import OFFER_SUFFIX, TEMP_SUFFIX, NewFile, sweep
from actorq.store.snapshot import PIECE_BYTES
from actorq.store.switch import Offer

if TYPE_CHECKING:
    from collections.abc import Generator

CLOSE_ENOUGH = 2 << 20
"""If no more than this was committed while the last commits were copied, the writer can copy the rest in a moment.

Two or three commits of a flood, each of which is up to 1 MiB.
"""

MAX_ROUNDS = 20
"""So often what came meanwhile is copied. A queue that still outruns it then is too busy to be compacted."""


TOO_BUSY = "the queue is too busy: new commits come faster than they can be copied"


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
    for suffix in (TEMP_SUFFIX, OFFER_SUFFIX):
        sweep(path, filesystem, suffix=suffix)
    reader = LogReader(path, filesystem=filesystem)
    try:
        state, at = fold_all(reader)
        bytes_before = reader.position.offset + len(CLOSING + FILLER)
        with full_disk_told(path), Compaction(path, reader.header, reader.link, at, filesystem) as compaction:
            for lines in state.snapshot_pieces(reader.read, keep_done):
                compaction.write_piece(lines)
            compaction.copy_batches(reader)
            compacted = compaction.check(state.counts())
            compaction.replace()
    finally:
        reader.close()
    generation = compaction.header.generation
    return Compacted(generation, bytes_before, compaction.size, len(compacted), len(state) - len(compacted))


def prepare(
    path: StrPath, generation: int, keep_done: int | None, *, filesystem: Filesystem = REAL
) -> Generator[int, None, Offer]:
    """Write a compacted file beside one that is in use, and return it as an offer to the writer.

    Does a little between two yields: reads a batch or writes a piece. What it yields is how many bytes it has brought
    to disk just now, if others may have the disk for a while, and 0 while it must keep up with them. Raises
    CompactionError when it cannot be done now, and whatever else goes wrong; the old file is never touched.
    """
    # Nobody else writes such files, so those that are there were left by somebody who was killed.
    sweep(path, filesystem, suffix=OFFER_SUFFIX)
    reader = LogReader(path, filesystem=filesystem)
    try:
        if reader.generation != generation:
            raise CompactionError(f"generation {generation} is not there any more, it is {reader.generation}")
        # As far as the file reaches now, lest a busy writer be followed for ever.
        length = filesystem.lstat(path).st_size
        state, at = QueueState(), reader.header.created
        for batch in reader.batches():
            state.apply(batch)
            at = batch.commit.at
            yield 0
            if batch.end >= length and not batch.piece:
                break
        margin = reader.position.offset // 8  # for what others write meanwhile
        _require_room(filesystem, path, state.needed_bytes(keep_done) + margin)
        with Compaction(path, reader.header, reader.link, at, filesystem, suffix=OFFER_SUFFIX) as compaction:
            for lines in state.snapshot_pieces(reader.read, keep_done):
                _require_room(filesystem, path, len(lines) + margin)  # results and errors were not counted above
                compaction.write_piece(lines)
                compaction.sync()
                yield len(lines)
            counts = state.counts()
            del state
            yield from compaction.check_pieces(counts)
            most = compaction.size + length
            for _ in range(MAX_ROUNDS):
                copied = unsynced = 0
                for batch in reader.batches():
                    unsynced += compaction.copy(batch, reader)
                    if unsynced >= PIECE_BYTES:
                        compaction.sync()
                        yield 0  # no rest: whoever rests while others write is never done
                        copied += unsynced
                        unsynced = 0
                        _require_room(filesystem, path, margin)
                        if compaction.size > most:
                            raise CompactionError(TOO_BUSY)
                compaction.sync()
                yield 0
                if copied + unsynced <= CLOSE_ENOUGH:
                    return compaction.offer(reader.link)
            raise CompactionError(TOO_BUSY)
    finally:
        reader.close()


def _require_room(filesystem: Filesystem, path: StrPath, needed: int) -> None:
    """Raise CompactionError unless the disk has room for so many bytes: nobody is to find it full because of this."""
    if filesystem.room(directory_of(path)) < needed:
        raise CompactionError(f"the disk has no room for {needed} bytes more")


class Compaction:
    """The new file in the making: pieces of the snapshot, then the batches since, then its name."""

    def __init__(
        self, path: StrPath, old: Header, link: Link, at: str, filesystem: Filesystem, *, suffix: str = TEMP_SUFFIX
    ) -> None:
        """Begin a file whose snapshot stands for the old one through this link, whose commit was written at ``at``."""
        self._path = path
        self._filesystem = filesystem
        self._link = link
        self._at = at
        self.header = old._replace(generation=old.generation + 1, pieces=0, commit=link.number, chain=link.chain)
        self._chain = snapshot_chain(self.header)
        self._is_closed = False
        self._new = NewFile(path, filesystem, suffix=suffix)
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
    def path(self) -> StrPath:
        """What it will be called."""
        return self._path

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
            self.copy(batch, reader)
            copied += 1
        if failpoints.ARMED:
            failpoints.hit("compaction.copied")
        return copied

    def copy(self, batch: Batch, reader: BatchReader) -> int:
        """Append one batch as it is. Return how many bytes that are."""
        self._new.write(batch.lines)
        self._new.write(reader.read(batch.end - RECORD_LENGTH, RECORD_LENGTH))
        return batch.end - batch.start

    def sync(self) -> None:
        """Bring to disk what was written so far, so that `replace` need not wait long."""
        self._new.sync()

    def check_pieces(self, counts: dict[str, int]) -> Generator[int]:
        """Read the snapshot back, piece by piece, and hold it against what the old state counted."""
        reader = self._read_back()
        state = QueueState()
        for piece in reader.batches():
            state.apply(piece)
            yield 0
        self._compare(state, counts)

    def offer(self, last: Link) -> Offer:
        """Leave the file to the writer. `last`: the commit of the old file that was copied last."""
        self._new.patch(render_header(self.header), len(OPENING))
        generation, size = self.header.generation - 1, self._new.size
        return Offer(generation, self._new.offer(), last.number, last.offset, size)

    def check(self, counts: dict[str, int]) -> QueueState:
        """Read the new file back and hold it against what must be in it; return the state that it holds."""
        self._close_array()
        state, _ = fold_all(self._read_back())
        self._compare(state, counts)
        if failpoints.ARMED:
            failpoints.hit("compaction.checked")
        return state

    def replace(self) -> None:
        """Put the new file in the place of the old one. Whoever calls this holds the writer's lock."""
        self._close_array()
        self._new.replace()
        if failpoints.ARMED:
            failpoints.hit("compaction.replaced")

    def publish(self) -> bool:
        """Give the new file its name where no file has it, and say whether it got it. Also for the lock's holder."""
        self._close_array()
        return self._new.publish()

    def _read_back(self) -> BatchReader:
        header = self.header
        return BatchReader(self._filesystem, self._new.fd, self._new.temp, header, first_link(header))

    def _compare(self, new: QueueState, counts: dict[str, int]) -> None:
        if new.counts() != counts:
            reason = f"after compaction {new.counts()} would be there, before {counts}; the old file was kept"
            raise CorruptQueueError(self._path, HEAD_LENGTH, None, reason)

    def _close_array(self) -> None:
        self._new.patch(render_header(self.header), len(OPENING))
        if not self._is_closed:
            self._new.write(CLOSING + FILLER)
            self._is_closed = True


def fold_all(reader: BatchReader) -> tuple[QueueState, str]:
    """Return the state behind the last commit, and when that was written."""
    state = QueueState()
    at = reader.header.created
    for batch in reader.batches():
        state.apply(batch)
        at = batch.commit.at
    return state, at

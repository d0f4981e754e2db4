"""The writer goes over to a compacted file, in the middle of its work.

Somebody has written a file that says the same as the old one up to some commit (`compaction.prepare`) and offers it.
The writer, between two batches, copies what it has committed since, gives the file its name and writes on there:

    old   ... commit N │ commits since │ ] filler
                       │               │
    new   ... commit N │ copied        │ ] filler          same numbers, same chain, same epoch; generation + 1

A crash at any step leaves the old file or the new one under the name, and both hold every commit there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from actorq import failpoints
from actorq.errors import CompactionError, CorruptQueueError, UnsupportedFormatError
from actorq.store.format import HEAD_LENGTH, RECORD_LENGTH, Header, parse_commit
from actorq.store.log_reader import read_header
from actorq.store.new_file import NewFile

if TYPE_CHECKING:
    from actorq.store.log_writer import LogWriter

MAX_REST = 8 << 20
"""So much may have come since the offer. To copy more would hold up who publishes."""

_COPY_BYTES = 1 << 20


class Offer(NamedTuple):
    """A compacted file, for the writer to take over."""

    generation: int
    """Of the old file."""
    name: str
    """What the new one is called, in the same directory."""
    commit: int
    """It holds everything up to this one ..."""
    end: int
    """... which ends here in the old file ..."""
    size: int
    """... and at the end of the new one."""


def switch(log: LogWriter, offer: Offer) -> LogWriter:
    """Put the file that is offered in the place of this log, and return the log that goes on there.

    Raises CompactionError or OSError if it will not do: then the old log goes on, and the file is removed. Raises
    SyncFailedError if the new one has the name, and it is not certain that the disk knows.
    """
    with NewFile(log.path, log.filesystem, offered=offer.name) as new:
        try:
            header = read_header(log.filesystem, new.fd, new.temp)
        except (CorruptQueueError, UnsupportedFormatError) as error:
            raise CompactionError(str(error)) from error
        reason = _reason_to_refuse(log, offer, header, new)
        if reason is not None:
            raise CompactionError(reason)
        end = log.position.offset
        for at in range(offer.end, end, _COPY_BYTES):
            new.write(log.read(at, min(_COPY_BYTES, end - at)))
        if failpoints.ARMED:
            failpoints.hit("switch.copied")
        return log.go_over_to(new, header, new.size)


def _reason_to_refuse(log: LogWriter, offer: Offer, header: Header, new: NewFile) -> str | None:
    """Return what is wrong with the offer, or None."""
    mine = log.header
    if offer.generation != mine.generation:
        return f"it was made of generation {offer.generation}, and this is {mine.generation}"
    if (header.queue, header.generation) != (mine.queue, mine.generation + 1) or header.commit > offer.commit:
        return "it is not what it says"
    if new.size != offer.size or offer.size <= HEAD_LENGTH + RECORD_LENGTH:
        return f"it is {new.size} bytes long, and should be {offer.size}"
    if not HEAD_LENGTH + RECORD_LENGTH < offer.end <= log.position.offset:
        return "it ends behind the old file"
    if log.position.offset - offer.end > MAX_REST:
        return f"{log.position.offset - offer.end} bytes were committed since"
    last = _last_commit(log.read(offer.end - RECORD_LENGTH, RECORD_LENGTH), mine)
    if last is None or last[0] != offer.commit:
        return f"commit {offer.commit} does not end there"
    if last != _last_commit(log.filesystem.pread(new.fd, RECORD_LENGTH, offer.size - RECORD_LENGTH), header):
        return f"it does not end with commit {offer.commit}"
    return None


def _last_commit(record: bytes, header: Header) -> tuple[int, int] | None:
    """Return number and CRC of the commit that this record closes; of the last piece, those that it stands for."""
    commit = parse_commit(record)
    if commit is not None:
        return commit.number, commit.crc
    piece = parse_commit(record, piece=True)
    return (header.commit, header.chain) if piece is not None and piece.number == header.pieces else None

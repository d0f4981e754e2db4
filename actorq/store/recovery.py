"""What stands behind the last good commit, and what is done about it.

A writer that is killed, or whose machine loses power, may leave a torn batch behind; that is cut, and a copy kept
aside. A disk that changes bits leaves damage; that is refused, because cutting it would drop what was promised. The
two are told apart by one pure function of bytes, `classify_tail`, from these facts:

- A kill tears a write only from its end: what is there is a prefix, and prefixes end without their commit record.
- A power cut may lose any sector that was not synced. A lost sector shows what was there before, and that was filler
  (line feeds, or zeros where the file ended before): a run of two or more, which no batch contains, or a single one,
  or the closing bracket, where a batch has its first byte, the comma before `{`.
- Commit records say which commit was known to be on disk when they were written. Such a one cannot be torn.
- A changed bit makes no run of filler out of anything that a batch contains.

So a single changed bit at or before the last commit record is never answered with a cut, and a prefix always is.
"""

from __future__ import annotations

import enum
import os
import re
from typing import TYPE_CHECKING, NamedTuple, override

from actorq import failpoints
from actorq.errors import CorruptQueueError, SyncFailedError
from actorq.store.failed_sync import FailedSync, read_mark, remove_mark
from actorq.store.filesystem import NO_ROOM, Filesystem, StrPath, directory_of, write_exactly
from actorq.store.format import (
    CLOSING,
    COMMIT_MARK,
    FILLER,
    OPENING,
    RECORD_LENGTH,
    Commit,
    Header,
    parse_commit,
    render_header,
    resembles_commit,
    seal,
    snapshot_chain,
)
from actorq.store.last_commit import find_end, find_end_from_start, last_boot, synced_before
from actorq.store.log_reader import Batch, BatchReader, Link, first_link
from actorq.store.new_file import NewFile, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator


# ---------------------------------------------------------------------------------------------------------------
# Decide


class TailKind(enum.Enum):
    """What the bytes behind the last good commit are."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


class Tail(NamedTuple):
    """The verdict. ``commits`` counts whole commits in the tail that come after the one that is not whole."""

    kind: TailKind
    reason: str
    commits: int = 0


def classify_tail(rest: bytes, expected: int, *, same_boot: bool) -> Tail:
    """Say what stands behind the last good commit, where commit ``expected`` would have come next.

    ``same_boot``: the machine has not restarted since the last good commit was written, so no power cut happened.
    """
    if is_clean(rest):
        return _CLEAN
    body = rest.rstrip(_UNWRITTEN)
    behind = list(_commits_in(body))
    if any(commit.number < expected for _, commit in behind):
        return Tail(TailKind.DAMAGED, "an earlier commit stands there again")
    later = [(at, commit) for at, commit in behind if commit.number > expected]
    if later:
        return _classify_with_later(rest[: later[0][0]], expected, [commit for _, commit in later], same_boot=same_boot)
    if _looks_whole(body, behind=rest[len(body) : len(body) + 1]):
        if same_boot or not _shows_lost_sector(body):
            return Tail(TailKind.DAMAGED, "it is whole, but its checksum or shape is wrong")
        return Tail(TailKind.TORN, "a power cut lost a part of it")
    if same_boot and b"\0" in rest:
        return Tail(TailKind.DAMAGED, "it holds zero bytes, which nobody wrote, and no power cut happened")
    return Tail(TailKind.TORN, "its writer was stopped before its end")


def is_clean(rest: bytes) -> bool:
    """Say whether there is nothing but the closing bracket and filler. Both may be missing: they come last."""
    return rest.rstrip(_UNWRITTEN) in {b"", CLOSING}


def _classify_with_later(before: bytes, expected: int, later: list[Commit], *, same_boot: bool) -> Tail:
    intact = f"{len(later)} later commits are there" if len(later) > 1 else "a later commit is there"
    witness = next((commit for commit in later if commit.synced >= expected), None)
    if witness is not None:
        reason = f"it was on disk when commit {witness.number} was written; {intact}"
        return Tail(TailKind.DAMAGED, reason, len(later))
    if same_boot:
        return Tail(TailKind.DAMAGED, f"no power cut happened since; {intact}", len(later))
    if not _shows_lost_sector(before):
        return Tail(TailKind.DAMAGED, f"nothing of it is missing, but its checksum is wrong; {intact}", len(later))
    return Tail(TailKind.TORN, "a power cut lost a part of it before it was synced", len(later))


_CLEAN = Tail(TailKind.CLEAN, "nothing but filler")
_UNWRITTEN = b"\n\0"
_RUN = re.compile(rb"[\n\0]{2}")
_COMMIT_LINE = b"\n" + COMMIT_MARK


def _shows_lost_sector(body: bytes) -> bool:
    # A batch that got through in two writes has no bracket behind it, so there the next one's first byte was filler.
    return body.startswith((CLOSING, b"\n{", b"\0{")) or _RUN.search(body) is not None


def _looks_whole(body: bytes, *, behind: bytes) -> bool:
    """Say whether the write reached its end, whatever happened to the bytes since. No prefix of a batch ends so."""
    if body.endswith(b"\n]") or any(True for _ in _commits_in(body)):
        return True
    if resembles_commit(body[-RECORD_LENGTH - 1 : -1]):
        return True  # the record's own line feed, or the bracket behind it, has changed
    # Or the bracket is gone, and the record's line feed was taken for filler.
    return resembles_commit(body[1 - RECORD_LENGTH :] + behind) and behind == FILLER


def _commits_in(data: bytes) -> Iterator[tuple[int, Commit]]:
    at = 0
    while at := data.find(_COMMIT_LINE, at) + 1:
        commit = parse_commit(data, at)
        if commit is not None:
            yield at, commit


# ---------------------------------------------------------------------------------------------------------------
# Act


class Recovery(NamedTuple):
    """What was done to a file before it could be used again."""

    action: str
    offset: int
    commit: int
    length: int
    commits: int
    aside: str | None
    reason: str

    @override
    def __str__(self) -> str:
        where = f"{self.action} behind commit {self.commit} at byte {self.offset}"
        if self.aside is None:
            return f"{where}: nothing was cut ({self.reason})"
        more = f" and {self.commits} unsynced commits behind it" if self.commits else ""
        cut = f"{self.length} bytes of commit {self.commit + 1}{more} were cut, kept in {self.aside!r}"
        return f"{where}: {cut} ({self.reason})"


class Recovered(NamedTuple):
    """A file that can be appended to: its descriptor, which may be another than before, and its last good commit.

    ``synced`` is the highest commit that is known to be on disk. ``is_untouched``: nothing was written to get here.
    """

    fd: int
    header: Header
    link: Link
    synced: int
    recovery: Recovery | None
    is_untouched: bool = False


class Examined(NamedTuple):
    """Where an open file ends, what stands behind that, and what that is."""

    link: Link
    rest: bytes
    same_boot: bool
    tail: Tail


def examine(
    filesystem: Filesystem, fd: int, path: StrPath, header: Header, boot_id: str | None, mark: FailedSync | None
) -> Examined:
    """Decide what a writer will do about the end of the file, and change nothing. ``mark``: that of this very file."""
    link, rest = find_end(filesystem, fd, path, header)
    if mark is None and is_clean(rest):
        return Examined(link, rest, same_boot=True, tail=_CLEAN)
    read = BatchReader(filesystem, fd, path, header, link).read
    # A failed sync loses pages as a power cut does.
    same_boot = mark is None and boot_id is not None and last_boot(read, link) == boot_id
    if not same_boot:
        # All of it will be copied. What looks like a torn end may be the trace of damage further ahead.
        link, rest = find_end_from_start(filesystem, fd, path, header)
    tail = classify_tail(rest, link.number + 1, same_boot=same_boot)
    if mark is not None and mark.synced is not None and link.number < mark.synced:
        tail = Tail(TailKind.DAMAGED, f"commit {mark.synced} was on disk")
    return Examined(link, rest, same_boot=same_boot, tail=tail)


def recover(filesystem: Filesystem, fd: int, path: StrPath, header: Header, boot_id: str) -> Recovered:
    """Make an open file fit to be appended to, or raise CorruptQueueError. The caller syncs it afterwards.

    In place if only a process has died; in a new file after doubt, that is after a power cut that tore something, and
    after a failed sync: there the kernel may show what the disk does not hold.
    """
    mark = read_mark(filesystem, path)
    if mark is not None and mark.generation not in {header.generation, None}:
        # It speaks of the file before this one: the last recovery ended between the new file and the mark's removal.
        remove_mark(filesystem, path)
        mark = None
    link, rest, same_boot, tail = examine(filesystem, fd, path, header, boot_id, mark)
    read = BatchReader(filesystem, fd, path, header, link).read
    if mark is None and tail.kind is TailKind.CLEAN:
        is_untouched = rest.startswith(CLOSING) and b"\0" not in rest
        if not is_untouched:
            blank(filesystem, fd, link.offset, len(rest))
        # Whoever cut there may have been killed before his sync: the torn bytes are still what the disk shows.
        is_untouched = is_untouched and not was_cut(filesystem, path, link)
        return Recovered(fd, header, link, synced_before(read, header, link), None, is_untouched=is_untouched)
    if tail.kind is TailKind.DAMAGED:
        raise CorruptQueueError(path, link.offset, link.number + 1, tail.reason)
    if failpoints.ARMED:
        failpoints.hit("recovery.torn")
    torn = b"" if tail.kind is TailKind.CLEAN else rest.rstrip(_UNWRITTEN)
    aside = _keep_aside_in_any_case(filesystem, fd, path, link, torn) if torn else None
    done = Recovery("cut", link.offset, link.number, len(torn), tail.commits, aside, tail.reason)
    if same_boot:
        blank(filesystem, fd, link.offset, len(rest))
        return Recovered(fd, header, link, synced_before(read, header, link), done)
    if failpoints.ARMED:
        failpoints.hit("recovery.rewriting")
    new_fd, new_header = rewrite(filesystem, fd, path, header, link)
    try:
        if failpoints.ARMED:
            failpoints.hit("recovery.rewritten")
        if mark is not None:
            done = done._replace(reason=f"a sync had failed: {mark.reason}")
            # Last of all: until it is gone, the next to come starts over.
            remove_mark(filesystem, path)
    except BaseException:
        filesystem.close(new_fd)
        raise
    filesystem.close(fd)
    return Recovered(new_fd, new_header, link, link.number, done._replace(action="rewritten"))


def _keep_aside_in_any_case(filesystem: Filesystem, fd: int, path: StrPath, link: Link, torn: bytes) -> str:
    """Keep it aside, where the disk is full in the room that the filler behind it takes."""
    try:
        return keep_aside(filesystem, path, link, torn)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
    # One line feed stays: what is behind the torn bytes is a part of the evidence.
    end = link.offset + len(torn) + len(FILLER)
    if filesystem.fstat(fd).st_size > end:
        filesystem.ftruncate(fd, end)
    return keep_aside(filesystem, path, link, torn)


def aside_of(path: StrPath, link: Link) -> str:
    """Return what a copy of the torn bytes behind this commit is called."""
    return f"{os.fspath(path)}.torn-{link.epoch}-{link.offset}"


def was_cut(filesystem: Filesystem, path: StrPath, link: Link) -> bool:
    """Say whether torn bytes behind this commit were cut: maybe a moment ago, and only in memory so far."""
    try:
        filesystem.lstat(aside_of(path, link))
    except FileNotFoundError:
        return False
    return True


def keep_aside(filesystem: Filesystem, path: StrPath, link: Link, data: bytes) -> str:
    """Copy what will be cut to a file of its own, and return its name. A copy that is there is never overwritten."""
    name = aside_of(path, link)
    fd, chosen = open_unused(filesystem, name)
    try:
        if failpoints.ARMED:
            failpoints.hit("recovery.keeping", [data], lambda part: filesystem.pwritev(fd, [part], 0))
        write_exactly(filesystem, fd, data, 0)
        filesystem.fsync(fd)
    except OSError:
        filesystem.unlink(chosen)
        raise
    finally:
        filesystem.close(fd)
    filesystem.fsync_dir(directory_of(chosen))
    if failpoints.ARMED:
        failpoints.hit("recovery.kept")
    return chosen


def open_unused(filesystem: Filesystem, name: str) -> tuple[int, str]:
    """Create a file of that name, or of that and a number, and return it open with its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    number = 1
    while True:
        chosen = name if number == 1 else f"{name}.{number}"
        try:
            return filesystem.open(chosen, flags, 0o600), chosen
        except FileExistsError:
            number += 1


def blank(filesystem: Filesystem, fd: int, offset: int, length: int) -> None:
    """Put filler there, and last the closing bracket before it: where a bracket stands, nothing torn is behind it."""
    filler = FILLER * max(1, length - 1)
    if failpoints.ARMED:
        failpoints.hit("recovery.blanking", [filler], lambda part: filesystem.pwritev(fd, [part], offset + 1))
    write_exactly(filesystem, fd, filler, offset + 1)
    write_exactly(filesystem, fd, CLOSING, offset)
    if failpoints.ARMED:
        failpoints.hit("recovery.blanked")


def rewrite(filesystem: Filesystem, fd: int, path: StrPath, header: Header, last: Link) -> tuple[int, Header]:
    """Copy everything through this commit into a new file, give that the name, and return it open.

    For all cases in which what the kernel shows of the old file may not be what the disk holds. Everything is checked
    once more on the way. Commits are copied byte for byte, so offsets stay what they were; the generation rises, so a
    reader that knew more begins anew.
    """
    sweep(path, filesystem)
    new_header = header._replace(generation=header.generation + 1)
    reader = BatchReader(filesystem, fd, path, header, first_link(header))
    chain = snapshot_chain(new_header)
    with NewFile(path, filesystem) as new:
        new.write(OPENING + render_header(new_header))
        before = reader.link
        for batch in _batches_through(reader, last):
            commit = batch.commit
            # Nothing is read a second time: after a failed sync it may read differently, once it has left the cache.
            record, crc = seal(
                batch.lines,
                chain if batch.piece else before.chain,
                number=commit.number,
                epoch=commit.epoch,
                synced=commit.synced,
                at=commit.at,
                piece=batch.piece,
            )
            if batch.piece:
                chain = crc
            new.write(batch.lines)
            new.write(record)
            before = reader.link
        new.write(CLOSING + FILLER)
        new.replace()
        return new.detach(), new_header


def _batches_through(reader: BatchReader, last: Link) -> Iterator[Batch]:
    """Return the batches through this commit; what stands behind it is not even looked at.

    They were all there at the first look. If they are not now, then because the cache has let go of what the disk did
    not take; the next recovery sees the truth at once. Raises SyncFailedError.
    """
    if reader.link.offset == last.offset:
        return
    try:
        for batch in reader.batches():
            yield batch
            if batch.end == last.offset:
                return
    except CorruptQueueError as error:
        raise SyncFailedError(reader.path, f"what could be read a moment ago is gone: {error.reason}") from error
    raise SyncFailedError(reader.path, f"commit {last.number} could be read a moment ago and is gone")

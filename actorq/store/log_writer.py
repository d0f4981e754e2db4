"""The writer's half of the log: find its end, mend it, append batches, bring them to disk.

There is one writer at a time; whoever makes a `LogWriter` holds the writer's lock. A batch is one write: its lines, its
commit record and the new closing bracket, over the old bracket and the filler behind it. Nothing before that is ever
written again. `write` makes a batch visible to every reader, `sync` makes it survive a power cut.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from actorq import failpoints
from actorq.clock import SYSTEM_CLOCK, Clock, to_iso
from actorq.errors import (
    CorruptQueueError,
    DiskFullError,
    QueueReplacedError,
    SyncFailedError,
    UnsupportedFormatError,
)
from actorq.store.failed_sync import FailedSync, has_mark, leave_mark
from actorq.store.filesystem import (
    NETWORK,
    NO_ROOM,
    REAL,
    Buffer,
    Filesystem,
    StrPath,
    directory_of,
    read_exactly,
    same_file,
    write_exactly,
)
from actorq.store.format import (
    CLOSING,
    FILLER,
    HEAD_LENGTH,
    OPENING,
    RECORD_LENGTH,
    Header,
    parse_commit,
    render_header,
    seal,
)
from actorq.store.last_commit import find_line
from actorq.store.log_reader import (
    OPEN_FLAGS,
    Batch,
    BatchReader,
    Link,
    Position,
    first_link,
    open_queue_file,
    read_header,
)
from actorq.store.new_file import NewFile, require_only_name, sweep
from actorq.store.records import writer_line
from actorq.store.recovery import Recovery, recover, was_cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BATCH = 256 << 20
FILLER_STEP = 1 << 20
FIRST_FILLER_STEP = 64 << 10
# Overwriting filler spares fdatasync the file's new size: 0.08 against 0.12 ms. From 128 KiB on, writing every byte
# twice costs as much as it spares (0.36 ms both at 256 KiB), so larger batches bring no filler.
LARGE_BATCH = 128 << 10
# Looking at the file's times makes the kernel renew them at the next write, and journal that: a commit with a stat
# before it takes 0.14 ms instead of 0.09. So not before each.
SECONDS_BETWEEN_CHECKS = 0.1
# The disk begins with a shorter batch while its writer still works: 0.02 ms that `sync` need not wait for. Of one that
# covers a whole page, the kernel would drop that page from memory, and the scheduler read it from the disk.
EARLY_BYTES = 4096
CHECKPOINT_MARK = b',{"sessions":'


class LogWriter:
    """Appends to Queue.json. The caller holds the writer's lock for as long as this lives."""

    def __init__(
        self,
        path: StrPath,
        fd: int,
        header: Header,
        link: Link,
        synced: int,
        *,
        filesystem: Filesystem,
        clock: Clock,
        who: tuple[str, int],
    ) -> None:
        self._path = os.fspath(path)
        self._fd = fd
        self._filesystem = filesystem
        self._clock = clock
        self._who = who
        self._link = link
        self._end = b""  # of what was written here: the last record and the bracket
        self._identity = filesystem.fstat(fd)
        self._size = self._identity.st_size
        self._next_check = clock.now()
        self._checkpoint: int | None = None
        self._has_signed = False
        self._step = 0
        self._largest_step = FILLER_STEP
        self._reserve = 0
        self._tree = ""
        self._is_writing = False
        self._refusal: str | None = None
        self.header = header
        self.epoch = link.epoch + 1
        self.synced = synced
        self.recovered: Recovery | None = None

    @classmethod
    def open(
        cls,
        path: StrPath,
        *,
        boot_id: str,
        pid: int,
        filesystem: Filesystem = REAL,
        clock: Clock = SYSTEM_CLOCK,
        create: bool = True,
        filler_step: int = FILLER_STEP,
        reserve: int = 0,
        tree: str = "",
        settle: bool = True,
    ) -> LogWriter:
        """Open the file, or create it; cut what a crash has torn; raise CorruptQueueError where damage is older.

        When this returns, every commit in the file is on disk; without `settle` that may be so only once `sync` has
        returned, which then is one for what others have left and for what was written since. `reserve`: how many bytes
        of filler each batch leaves behind it, as far as there is room; see `write`. `tree`: what the mark of a failed
        sync says of who may have read what was not synced.
        """
        try:
            fd = open_queue_file(filesystem, path, os.O_RDWR)
        except FileNotFoundError:
            if not create:
                raise
            create_file(path, filesystem=filesystem, clock=clock)
            fd = open_queue_file(filesystem, path, os.O_RDWR)
        try:
            require_only_name(filesystem, fd, path)
            header = read_header(filesystem, fd, path)
            fd, header, link, synced, recovery, is_untouched = recover(filesystem, fd, path, header, boot_id)
            log = cls(path, fd, header, link, synced, filesystem=filesystem, clock=clock, who=(boot_id, pid))
            log.recovered = recovery
            log._largest_step = filler_step
            log._reserve = reserve
            log._tree = tree
            if failpoints.ARMED:
                failpoints.hit("log.opened")
            # The last writer may have died between write and sync. What depends on its commits must not be promised
            # before they are on disk; and what was cut must not come back behind the next batch.
            if settle or not is_untouched:
                log.sync()
        except OSError as error:
            filesystem.close(fd)
            if error.errno in NO_ROOM:
                raise DiskFullError(path) from error
            raise
        except BaseException:
            filesystem.close(fd)
            raise
        return log

    def __repr__(self) -> str:
        state = "failed" if self._refusal else f"commit {self.commit}, synced {self.synced}"
        return f"<LogWriter {self._path} generation {self.header.generation} epoch {self.epoch}: {state}>"

    @property
    def path(self) -> StrPath:
        """What the file is called."""
        return self._path

    @property
    def filesystem(self) -> Filesystem:
        """Where it lies."""
        return self._filesystem

    @property
    def commit(self) -> int:
        """The number of the last commit that was written."""
        return self._link.number

    @property
    def position(self) -> Position:
        """The end of the last commit: where the closing bracket stands and the next batch will begin."""
        return Position(self.header.generation, self._link.offset)

    @property
    def size(self) -> int:
        """Length of the file, filler included."""
        return self._size

    @property
    def bytes_since_checkpoint(self) -> int:
        """How much `tail` would have to read."""
        return self._link.offset - self._checkpoint_start()

    def tail(self) -> Iterator[Batch]:
        """Return the batches since and with the last that begins with a checkpoint, oldest first; without one, all."""
        start = self._checkpoint_start()
        return self._reader(self._link_at(start)).batches()

    def write(self, lines: bytes | Sequence[bytes], *, keep: int = 0, will_sync: bool = False) -> Position:
        """Append one batch, each line ``,{...}`` with its line feed. Readers see it; a power cut may still take it.

        DiskFullError: there was no room, and nothing of it is in the file. `keep`: room is what leaves so many bytes of
        filler behind it, which then are there for batches that keep less. `will_sync`: `sync` comes next.
        """
        self._refuse_if_failed()
        if self._is_writing:
            raise SyncFailedError(self._path, "a write was interrupted")
        data = lines if isinstance(lines, bytes) else b"".join(lines)
        if not (data.startswith(b',{"') and data.endswith(b"}\n")):
            raise ValueError(f"not whole lines of a batch: {data[:20]!r}...{data[-20:]!r}")
        is_checkpoint = data.startswith(CHECKPOINT_MARK)
        if not self._has_signed:
            data = data + self._signature() if is_checkpoint else self._signature() + data
        elif is_checkpoint:
            # So that the boot id of the last writer, too, is found near the end.
            data += self._signature()
        if len(data) > MAX_BATCH:
            raise ValueError(f"a batch of {len(data)} bytes is longer than {MAX_BATCH}")
        if self._clock.now() >= self._next_check:
            self.check_file()
        number = self._link.number + 1
        record, crc = seal(
            data,
            self._link.chain,
            number=number,
            epoch=self.epoch,
            synced=self.synced,
            at=to_iso(self._clock.wall()),
        )
        start = self._link.offset
        end = start + len(data) + len(record)
        if self._reserve:
            self._make_room(end + 1, keep)
        # Until this object knows what it has written it must not write again: an interrupt (Ctrl-C) may come between.
        self._is_writing = True
        # Readers take a batch with a whole record for committed: what finds no room behind it must not undo that.
        self._put(start, [data, record, CLOSING, self._filler_behind(end + 1, len(data))], end - start)
        if failpoints.ARMED:
            failpoints.hit("log.written")
        # From here every reader takes it for committed.
        self._link = Link(end, number, crc, self.epoch, piece=False)
        self._end = record + CLOSING
        self._is_writing = False
        self._has_signed = True
        if is_checkpoint:
            self._checkpoint = start
        if will_sync and end - start < EARLY_BYTES:
            self._filesystem.start_writeback(self._fd, start, end - start)
        return Position(self.header.generation, end)

    def sync(self) -> None:
        """Bring to disk what was written before this call. After SyncFailedError nothing more can be done here."""
        self._refuse_if_failed()
        number = self._link.number
        try:
            if failpoints.ARMED:
                failpoints.hit("log.syncing")
            self._filesystem.fdatasync(self._fd)
        except OSError as error:
            raise self._fail(f"fdatasync: {error.strerror}") from error
        if failpoints.ARMED:
            failpoints.hit("log.synced")
        # From here a power cut keeps them. A second thread may have written on meanwhile, so not self.commit.
        self.synced = number

    def pause(self) -> None:
        """Close the file and keep what is known of it: the lock will be given back. `resume` goes on."""
        self.forget()

    def resume(self, *, undisturbed: bool = False) -> bool:
        """Open the file again and say whether this can write on; the writer's lock is held again.

        It can if the file still ends in the record that this wrote last, whose CRC is chained to all before it; and if
        nothing has happened after which more than that must be looked at. Otherwise open it anew.
        `undisturbed`: since this said yes the last time, no name in the folder was set or removed; so nobody has left
        word of such a thing there.
        """
        if self._refusal is not None or self._is_writing or self._fd >= 0:
            return False
        if not undisturbed and self._has_word_left():
            return False
        now = self._clock.now()
        if now >= self._next_check:
            if not self.is_in_place():
                return False
            self._next_check = now + SECONDS_BETWEEN_CHECKS
        try:
            self._fd = self._filesystem.open(self._path, os.O_RDWR | OPEN_FLAGS)
            end = self._filesystem.pread(self._fd, RECORD_LENGTH + 1, self._link.offset - RECORD_LENGTH)
        except OSError:
            return False  # whoever opens it anew will say why
        self._size = self._filesystem.length(self._fd)  # others may have taken filler off, or brought some
        return end == self._end

    def _has_word_left(self) -> bool:
        return has_mark(self._filesystem, self._path) or was_cut(self._filesystem, self._path, self._link)

    def is_in_place(self) -> bool:
        """Say whether the path still names this file, and no other path does."""
        try:
            named = self._filesystem.lstat(self._path)
        except FileNotFoundError:
            return False
        return same_file(named, self._identity) and named.st_nlink == 1

    def check_file(self) -> None:
        """Raise QueueReplacedError if the path names another file now, or somebody else has changed its length."""
        try:
            named = self._filesystem.lstat(self._path)
        except FileNotFoundError as error:
            raise QueueReplacedError(self._path, "it was removed or renamed") from error
        if not same_file(named, self._identity):
            raise QueueReplacedError(self._path, "another file has its name now")
        if named.st_size != self._size:
            raise QueueReplacedError(self._path, f"it is {named.st_size} bytes long, and was {self._size}")
        self._next_check = self._clock.now() + SECONDS_BETWEEN_CHECKS

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the file."""
        return read_exactly(self._filesystem, self._fd, length, offset)

    def go_over_to(self, new: NewFile, header: Header, end: int) -> LogWriter:
        """Put a file that holds the same commits, and ends here, in the place of this one; return the log on that.

        This object is of no use any more then. If an OSError leaves this, nothing has changed.
        """
        self._refuse_if_failed()
        self.check_file()
        new.write(CLOSING)
        new.write(_filler(self._reserve + self._next_step() if self._reserve else len(FILLER)))
        try:
            new.replace()
            successor = self._successor(new, header, end)
        except OSError as error:
            if not new.is_named:
                raise
            # The name may go back to the old file in a power cut, with everything that would be written from here on.
            raise self._fail(f"naming the new file: {error.strerror}", header.generation) from error
        self.forget()
        return successor

    def _successor(self, new: NewFile, header: Header, end: int) -> LogWriter:
        number, chain = self._link.number, self._link.chain
        link = Link(end, number, chain, self._link.epoch, piece=False)
        successor = LogWriter(
            self._path,
            new.detach(),
            header,
            link,
            number,  # `replace` has brought all of it to disk
            filesystem=self._filesystem,
            clock=self._clock,
            who=self._who,
        )
        successor.epoch = self.epoch
        # It signs once more: its own signature may be in what the snapshot stands for, and the next one asks for it.
        successor._step = self._step
        successor._largest_step = self._largest_step
        successor._reserve = self._reserve
        successor._tree = self._tree
        return successor

    def close(self) -> None:
        """Take the filler off, bring everything to disk, and close. After a failure only close. Twice is allowed."""
        if self._fd < 0:
            return
        try:
            if self._refusal is None and not self._is_writing:
                self._finish()
        finally:
            fd, self._fd = self._fd, -1
            self._filesystem.close(fd)

    def forget(self) -> None:
        """Close the descriptor and touch nothing, as in a forked child."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._filesystem.close(fd)

    # -----------------------------------------------------------------------------------------------------------

    def _reader(self, link: Link) -> BatchReader:
        return BatchReader(self._filesystem, self._fd, self._path, self.header, link)

    def _signature(self) -> bytes:
        boot_id, pid = self._who
        return writer_line(self.epoch, boot_id, pid)

    def _filler_behind(self, end: int, length: int) -> Buffer:
        """Return what follows the bracket: as much as the file already has is left as it is."""
        if end < self._size or self._reserve:
            return b""
        if length >= LARGE_BATCH or not self._step:
            # A single publish, in and out, leaves the file as a clean close would.
            self._step = self._step or min(FIRST_FILLER_STEP, self._largest_step)
            return FILLER
        return _filler(self._next_step())

    def _next_step(self) -> int:
        step = self._step or min(FIRST_FILLER_STEP, self._largest_step)
        self._step = min(step * 2, self._largest_step)
        return step

    def _make_room(self, end: int, keep: int) -> None:
        """See that a batch may end here and leave as much filler behind it as it has to keep, or raise DiskFullError.

        Before the batch is written, not with it: a batch that is whole has been seen by readers, and cannot be taken
        back because what should stand behind it found no room.
        """
        missing = end + self._reserve - self._size
        if missing <= 0:
            return
        try:
            self._size += self._filesystem.pwritev(self._fd, [_filler(missing + self._next_step())], self._size)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise self._fail(f"write: {error.strerror}") from error
        if self._size < end + keep:
            raise DiskFullError(self._path)

    def _put(self, start: int, buffers: list[Buffer], needed: int) -> None:
        """Write the buffers, of which so many bytes must get through; bracket and filler behind them need not."""
        try:
            if failpoints.ARMED:
                failpoints.hit("log.writing", buffers, lambda part: self._filesystem.pwritev(self._fd, [part], start))
            written = self._filesystem.pwritev(self._fd, buffers, start)
            if written < needed:
                whole = b"".join(buffers)
                write_exactly(self._filesystem, self._fd, memoryview(whole)[written:needed], start + written)
                written = needed
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise self._fail(f"write: {error.strerror}") from error
            self._take_back(start, needed)
            self._is_writing = False
            raise DiskFullError(self._path) from error
        self._size = max(self._size, start + written)

    def _take_back(self, start: int, length: int) -> None:
        """Make the file what it was before a write that did not succeed."""
        try:
            if failpoints.ARMED:
                failpoints.hit("log.taking_back")
            if self._filesystem.fstat(self._fd).st_size > self._size:
                self._filesystem.ftruncate(self._fd, self._size)
            keep = min(length, self._size - start)
            if keep > 0:
                # The bracket last: where one stands, nothing that was taken back is behind it.
                write_exactly(self._filesystem, self._fd, FILLER * (keep - 1), start + 1)
                write_exactly(self._filesystem, self._fd, CLOSING, start)
            # Recovery knows a lost sector by the filler that it shows. What was taken back may be on the disk already;
            # the filler over it must be, before the next batch comes.
            self._filesystem.fdatasync(self._fd)
        except OSError as error:
            raise self._fail(f"taking back what did not fit: {error.strerror}") from error

    def _fail(self, reason: str, generation: int = 0) -> SyncFailedError:
        if failpoints.ARMED:
            failpoints.hit("log.sync_failed")
        self._refusal = reason
        mark = FailedSync(generation or self.header.generation, self.synced, reason, self._tree)
        self._refusal += leave_mark(self._filesystem, self._path, mark)
        if failpoints.ARMED:
            failpoints.hit("log.marked")
        return SyncFailedError(self._path, self._refusal)

    def _refuse_if_failed(self) -> None:
        if self._refusal is not None:
            raise SyncFailedError(self._path, self._refusal)
        if self._fd < 0:
            raise ValueError(f"{self!r} is closed")

    def _finish(self) -> None:
        tidy = self._link.offset + len(CLOSING + FILLER)
        try:
            if failpoints.ARMED:
                failpoints.hit("log.closing")
            if self._size != tidy:
                self.check_file()
                if self._size > tidy:
                    self._filesystem.ftruncate(self._fd, tidy)
                else:
                    write_exactly(self._filesystem, self._fd, CLOSING + FILLER, self._link.offset)
                self._size = tidy
        except OSError as error:
            # Not even room for the bracket: the next writer to find some sets it. Everything else is a disk that fails.
            if error.errno not in NO_ROOM or self._size >= tidy:
                raise self._fail(f"taking off the filler: {error.strerror}") from error
        if self.synced != self.commit:
            self.sync()

    def _checkpoint_start(self) -> int:
        if self._checkpoint is None:
            found = find_line(self._reader(self._link).read, CHECKPOINT_MARK, self._link.offset)
            self._checkpoint = HEAD_LENGTH if found is None else found
        return self._checkpoint

    def _link_at(self, start: int) -> Link:
        if start == HEAD_LENGTH:
            return first_link(self.header)
        record = read_exactly(self._filesystem, self._fd, RECORD_LENGTH, start - RECORD_LENGTH)
        commit = parse_commit(record)
        if commit is not None:
            return Link(start, commit.number, commit.crc, commit.epoch, piece=False)
        piece = parse_commit(record, piece=True)
        if piece is None:
            raise CorruptQueueError(
                self._path, start - RECORD_LENGTH, None, "no commit record stands before a checkpoint"
            )
        if piece.number == self.header.pieces:
            return Link(start, self.header.commit, self.header.chain, piece.epoch, piece=False)
        return Link(start, piece.number, piece.crc, piece.epoch, piece=True)


_FILLER_VIEW = memoryview(FILLER * (2 * FILLER_STEP))


def _filler(length: int) -> Buffer:
    return _FILLER_VIEW[:length] if length <= len(_FILLER_VIEW) else FILLER * length


def require_local(filesystem: Filesystem, path: StrPath) -> None:
    """Raise UnsupportedFormatError where no queue may be made."""
    kind = filesystem.kind(directory_of(path))
    if kind in NETWORK:
        raise UnsupportedFormatError(
            path, f"it would lie on {kind}, where locks and syncs do not hold; use a local disk"
        )


def new_header(clock: Clock) -> Header:
    """Return the header of a new queue."""
    return Header(os.urandom(16).hex(), 1, 0, 0, 0, to_iso(clock.wall()))


def create_file(path: StrPath, *, filesystem: Filesystem = REAL, clock: Clock = SYSTEM_CLOCK) -> bool:
    """Create an empty queue, unless the name is taken. Say whether it was created."""
    require_local(filesystem, path)
    sweep(path, filesystem)
    header = new_header(clock)
    with NewFile(path, filesystem) as new:
        try:
            new.write(OPENING + render_header(header) + CLOSING + FILLER)
            return new.publish()
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFullError(path) from error
            raise

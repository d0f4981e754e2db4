"""A damaged Queue.json made usable again: what still checks is kept, and what is lost is named.

Never by itself. `plan_repair` reads all of the file and changes nothing; `Plan.carry_out` copies the damaged file aside
and puts a new one in its place, which begins with a snapshot as after compaction.

Commits are looked at one by one, whatever stands between them:

    checked    its checksum is right
    mended     one bit of it had changed, and the checksum tells which
    unproved   whole in every line, but the checksum that it is chained to is lost with the commit before
    damaged    anything else: its tasks are lost, or with ``keep_unverified`` kept as far as their lines can be read

Then all that is kept is folded as ever. What is not proved to have been finished is ready again, and so is whatever a
consumer had in hand: a task that runs once more is the smaller evil.
"""

from __future__ import annotations

import enum
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

from actorq.clock import SYSTEM_CLOCK, to_iso
from actorq.errors import FoldError, UnsupportedFormatError
from actorq.store import records
from actorq.store.compaction import Compaction
from actorq.store.failed_sync import read_mark, remove_mark
from actorq.store.filesystem import REAL, Filesystem, StrPath, directory_of, full_disk_told, read_exactly, write_exactly
from actorq.store.fold import QueueState
from actorq.store.format import (
    CRC_AT,
    HEAD_LENGTH,
    OPENING,
    RECORD_LENGTH,
    VERSION,
    Commit,
    Header,
    HeaderError,
    batch_crc,
    parse_commit,
    parse_head,
    resembles_commit,
    snapshot_chain,
)
from actorq.store.last_commit import last_boot
from actorq.store.log_reader import Batch, Link, open_queue_file
from actorq.store.records import RecordError, parse_line
from actorq.store.recovery import TailKind, classify_tail, open_unused
from actorq.store.single_bit import find_flipped_bit
from actorq.store.verify import Damage, Verdict, verify
from actorq.tasks.ids import IdRange, parse_range, parse_task_id

if TYPE_CHECKING:
    from collections.abc import Iterator


class Trust(enum.StrEnum):
    """What is known of a commit, or of bytes where one should be."""

    CHECKED = "checked"
    MENDED = "mended"
    UNPROVED = "unproved"
    DAMAGED = "damaged"


class Part(NamedTuple):
    """Some bytes of the file behind its header: the lines of one commit or piece, or what stands between two."""

    start: int
    lines_end: int
    end: int
    trust: Trust
    commit: Commit | None
    piece: bool


@dataclass(slots=True)
class Plan:
    """What a repair would keep and lose. Nothing has been changed."""

    path: str
    damages: list[Damage]
    commits_kept: int = 0
    mended_bits: list[int] = field(default_factory=list)
    """Offsets of the bytes of which one bit is put right."""
    unproved: list[int] = field(default_factory=list)
    """Numbers of the commits that are whole, but cannot be checked."""
    unverified: list[str] = field(default_factory=list)
    """Tasks that are kept although their commit is damaged: their payload may have changed."""
    lost: list[str] = field(default_factory=list)
    """Tasks that are known to have been in the queue, and will not be any more."""
    lost_finished: list[str] = field(default_factory=list)
    """Of those: what later records say to have been finished. Only their results are lost."""
    lost_bytes: int = 0
    """How long the parts are that are left out, a torn end not counted."""
    lost_commits: list[int] = field(default_factory=list)
    """Commits that were on disk once, and of which no byte is left."""
    run_again: list[str] = field(default_factory=list)
    """Tasks that become ready again, although they may have run: their assignment, or their outcome, is lost."""
    torn_bytes: int = 0
    """A last commit that was never acknowledged, and is left out."""
    counts: dict[str, int] = field(default_factory=dict)
    """Tasks by state after the repair."""
    backup: str | None = None
    """Where the damaged file is kept, once it has been repaired."""
    generation: int = 0


class Repair:
    """A plan, and what is needed to carry it out."""

    def __init__(self, plan: Plan, data: bytearray, header: Header, link: Link, at: str, state: QueueState) -> None:
        self.plan = plan
        self._data = data
        self._header = header
        self._link = link
        self._at = at
        self._state = state

    def carry_out(self, filesystem: Filesystem = REAL) -> None:
        """Copy the damaged file aside and put the new one in its place. The caller holds both locks.

        A crash at any step leaves the damaged file or the new one. Raises DiskFullError: nothing was changed.
        """
        path = self.plan.path
        with full_disk_told(path), Compaction(path, self._header, self._link, self._at, filesystem) as new:
            for lines in self._state.snapshot_pieces(self._read, None):
                new.write_piece(lines)
            new.check(self._state.counts())
            backup = self._copy_aside(filesystem)
            # From here the damaged file is safe under another name.
            new.replace()
        if read_mark(filesystem, path) is not None:
            remove_mark(filesystem, path)
        self.plan.backup = backup
        self.plan.generation = new.header.generation

    def _read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def _copy_aside(self, filesystem: Filesystem) -> str:
        source = open_queue_file(filesystem, self.plan.path, os.O_RDONLY)
        try:
            target, name = open_unused(filesystem, f"{self.plan.path}.damaged-{self._header.generation}")
            try:
                _copy(filesystem, source, target)
                filesystem.fsync(target)
            finally:
                filesystem.close(target)
        finally:
            filesystem.close(source)
        filesystem.fsync_dir(directory_of(name))
        return name


COPY_BYTES = 4 << 20
TAIL_LENGTH = RECORD_LENGTH - CRC_AT
"""Of header and commit record: the checksum, and what follows it."""


def _copy(filesystem: Filesystem, source: int, target: int) -> None:
    offset = 0
    while chunk := read_exactly(filesystem, source, COPY_BYTES, offset):
        write_exactly(filesystem, target, chunk, offset)
        offset += len(chunk)


def plan_repair(
    path: StrPath,
    *,
    boot_id: str | None = None,
    truncate_at: int | None = None,
    keep_unverified: bool = False,
    is_alone: bool = False,
    filesystem: Filesystem = REAL,
) -> Repair | None:
    """Say what a repair would keep and lose; None if there is nothing to repair. Reads all of the file into memory.

    ``truncate_at``: drop also what is good, from the commit on in which this byte lies. ``keep_unverified``: keep the
    readable tasks of damaged commits. ``is_alone``: the caller has the writer's lock.

    Raises UnsupportedFormatError: it is no queue, and nothing in it can be told to have been one.
    """
    report = verify(path, boot_id=boot_id, is_alone=is_alone, filesystem=filesystem)
    if report.is_ok and truncate_at is None:
        return None
    fd = open_queue_file(filesystem, path, os.O_RDONLY)
    try:
        data = bytearray(read_exactly(filesystem, fd, filesystem.fstat(fd).st_size, 0))
    finally:
        filesystem.close(fd)
    plan = Plan(os.fspath(path), report.damages)
    head = _head_of(data, plan)
    if report.verdict is Verdict.UNREADABLE:
        # Whatever has become of its header: what holds a commit, byte for byte as we write them, was a queue of ours.
        version = re.search(rb'"actorq":([0-9]{1,9}),', data[: 2 * HEAD_LENGTH])
        is_later = version is not None and int(version[1]) > VERSION and not plan.mended_bits
        if is_later or not any(True for _ in _whole_records(data, head.end)):
            raise UnsupportedFormatError(path, f"{report.reason}; {NO_QUEUE}")
        plan.damages.append(Damage(0, None, report.reason))
    mark = read_mark(filesystem, path)
    last_synced = mark.synced if mark is not None and mark.generation in {head.header.generation, None} else None
    # A failed sync takes pages, as a power cut does.
    salvage = _Salvage(plan, data, head, boot_id if mark is None else None, keep_unverified=keep_unverified)
    return salvage.run(truncate_at, last_synced)


NO_QUEUE = "there is nothing to repair in it; move it away and bring the queue back from a backup, or begin a new one"


class Head(NamedTuple):
    """What a file begins with."""

    header: Header
    end: int
    """Where the lines behind it begin."""
    is_whole: bool
    """Else the header is what can be told of it: whether pieces follow, and what they are chained to, is in doubt."""


def _head_of(data: bytearray, plan: Plan) -> Head:
    """Return the header, mended if it can be, and where it ends."""
    # A byte order mark may stand before it.
    begin = max(0, data.find(OPENING + b'{"actorq":', 0, HEAD_LENGTH))
    line = begin + len(OPENING)
    head = bytes(data[begin : begin + 2 * HEAD_LENGTH])
    if _is_header(head):
        return Head(parse_head(head), begin + HEAD_LENGTH, is_whole=True)
    signed = bytes(data[line : begin + HEAD_LENGTH - TAIL_LENGTH])
    tail = bytes(data[begin + HEAD_LENGTH - TAIL_LENGTH : begin + HEAD_LENGTH])
    found = find_flipped_bit(signed, 0, tail[:8]) or _flipped_behind(signed, crc32(signed), tail)
    if found is not None:
        offset, bit = found
        data[line + offset] ^= 1 << bit
        head = bytes(data[begin : begin + 2 * HEAD_LENGTH])
        if _is_header(head):
            plan.mended_bits.append(line + offset)
            return Head(parse_head(head), begin + HEAD_LENGTH, is_whole=True)
        data[line + offset] ^= 1 << bit
    queue = re.search(rb'"queue":"([0-9a-f]{32})"', head)
    generation = re.search(rb'"generation": *([0-9]{1,12}),', head)
    commit = re.search(rb'"commit": *([0-9]{1,12}),"chain":"([0-9a-f]{8})"', head)
    behind = HEAD_LENGTH if head.startswith(b',{"', HEAD_LENGTH) else head.find(b'\n,{"') + 1
    header = Header(
        queue[1].decode() if queue else os.urandom(16).hex(),
        int(generation[1]) if generation else 1,
        # Whether pieces follow is seen from the first of them.
        0,
        int(commit[1]) if commit else 0,
        int(commit[2], 16) if commit else 0,
        to_iso(SYSTEM_CLOCK.wall()),
    )
    return Head(header, begin + behind if behind else min(len(data), begin + HEAD_LENGTH), is_whole=False)


def _is_header(head: bytes) -> bool:
    try:
        parse_head(head)
    except HeaderError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------
# Into parts


def find_parts(data: bytearray, head: Head, mended: list[int]) -> Iterator[Part]:
    """Yield all bytes behind the header as parts. Single changed bits are put right in the data, and noted."""
    header = head.header
    chain: int | None = snapshot_chain(header) if header.pieces else header.chain
    at = head.end
    was_piece = False
    for record, commit, piece in _whole_records(data, head.end):
        if not head.is_whole and (at == head.end or (was_piece and not piece)):
            chain = _chain_if_it_fits(data, at, record, header, piece=piece)
        was_piece = piece
        # As it should be, or but for one bit, which may be in the record's own numbers.
        is_unknown = chain is None and not head.is_whole
        told = None if is_unknown else _chain_of(header, commit, chain, piece=piece)
        part = _examine(data, at, record, told, mended)
        if part is None and chain is not None:
            part = _examine(data, at, record, chain, mended)
        if part is not None:
            yield part
            at, chain = part.end, _chain_behind(header, part)
            continue
        begin = record - commit.bytes
        if not at <= begin:
            yield Part(at, record + RECORD_LENGTH, record + RECORD_LENGTH, Trust.DAMAGED, None, piece)
            at, chain = record + RECORD_LENGTH, commit.crc
            continue
        if at < begin:
            # A commit whose record is damaged, or more of them.
            gap = _examine(data, at, begin - RECORD_LENGTH, chain, mended) if begin - at > RECORD_LENGTH else None
            if gap is None:
                yield Part(at, begin, begin, Trust.DAMAGED, None, piece=False)
                stored = bytes(data[begin - RECORD_LENGTH + CRC_AT : begin - RECORD_LENGTH + CRC_AT + 8])
                chain = int(stored, 16) if _is_hex(stored) else None
            else:
                yield gap
                chain = _chain_behind(header, gap)
            part = _examine(data, begin, record, _chain_of(header, commit, chain, piece=piece), mended)
        if part is None:
            is_whole = chain is None or at < begin
            trust = Trust.UNPROVED if is_whole and _reads_well(data, begin, record) else Trust.DAMAGED
            part = Part(begin, record, record + RECORD_LENGTH, trust, commit, piece)
        yield part
        at, chain = part.end, _chain_behind(header, part)
    if at < len(data):
        end = len(bytes(data).rstrip(b"\n\0"))
        end += data[end : end + 1] == b"\n"
        last = end - (data[end - 2 : end] == b"]\n") * 2
        gap = _examine(data, at, last - RECORD_LENGTH, chain, mended) if last - at > RECORD_LENGTH else None
        if gap is not None:
            yield gap
            at = gap.end
        yield Part(at, len(data), len(data), Trust.DAMAGED, None, piece=False)


def _chain_if_it_fits(data: bytearray, begin: int, record: int, header: Header, *, piece: bool) -> int | None:
    """Return what these lines are chained to by what is left of the header, or None if their checksum denies it."""
    chain = snapshot_chain(header) if piece else header.chain
    return chain if _as_it_stands(data, begin, record, chain) else None


def _chain_of(header: Header, commit: Commit, chain: int | None, *, piece: bool) -> int | None:
    """Return what this record is chained to: the first commit behind a snapshot to the header, not to a piece."""
    return header.chain if not piece and commit.number == header.commit + 1 else chain


def _chain_behind(header: Header, part: Part) -> int | None:
    """Return what the record behind this part is chained to."""
    if part.commit is None:
        return None
    is_last_piece = part.piece and part.commit.number == header.pieces
    return header.chain if is_last_piece else part.commit.crc


def _whole_records(data: bytearray, start: int) -> Iterator[tuple[int, Commit, bool]]:
    for match in re.finditer(rb'\n,\{"(commit|piece)":', data):
        at = match.start() + 1
        if at >= start:
            piece = match[1] == b"piece"
            commit = parse_commit(bytes(data[at : at + RECORD_LENGTH]), piece=piece)
            if commit is not None:
                yield at, commit, piece


def _examine(data: bytearray, begin: int, record: int, chain: int | None, mended: list[int]) -> Part | None:
    """Return the commit of these lines if its checksum is right, or is when one bit is put right; else None."""
    if chain is None or record <= begin:
        return None
    if part := _as_it_stands(data, begin, record, chain):
        return part
    line = bytes(data[record : record + RECORD_LENGTH])
    if parse_commit(line) is None and parse_commit(line, piece=True) is None and not resembles_commit(line):
        return None
    message = bytes(data[begin : record + CRC_AT])
    found = find_flipped_bit(message, chain, line[CRC_AT : CRC_AT + 8])
    if found is None:
        # Or it is in the record's last eleven bytes: the checksum itself, or what follows it.
        found = _flipped_behind(message, batch_crc(message[:-CRC_AT], message[-CRC_AT:], chain), line[CRC_AT:])
    if found is None:
        return None
    offset, bit = found
    data[begin + offset] ^= 1 << bit
    for is_piece in (False, True):
        line = bytes(data[record : record + RECORD_LENGTH])
        commit = parse_commit(line, piece=is_piece)
        if commit is not None and batch_crc(bytes(data[begin:record]), line, chain) == commit.crc:
            mended.append(begin + offset)
            return Part(begin, record, record + RECORD_LENGTH, Trust.MENDED, commit, is_piece)
    data[begin + offset] ^= 1 << bit
    return None


def _as_it_stands(data: bytearray, begin: int, record: int, chain: int) -> Part | None:
    """Return the commit of these lines if its checksum is right."""
    for is_piece in (False, True):
        line = bytes(data[record : record + RECORD_LENGTH])
        commit = parse_commit(line, piece=is_piece)
        if commit is not None and batch_crc(bytes(data[begin:record]), line, chain) == commit.crc:
            return Part(begin, record, record + RECORD_LENGTH, Trust.CHECKED, commit, is_piece)
    return None


def _flipped_behind(message: bytes, crc: int, tail: bytes) -> tuple[int, int] | None:
    """Return the one bit in which the end of a line, the checksum and what follows it, is not what it should be."""
    right = b'%08x"}\n' % crc
    wrong = [(at, one ^ other) for at, (one, other) in enumerate(zip(right, tail, strict=False)) if one != other]
    if len(wrong) != 1 or len(tail) != TAIL_LENGTH or wrong[0][1].bit_count() != 1:
        return None
    at, change = wrong[0]
    return len(message) + at, change.bit_length() - 1


def _reads_well(data: bytearray, begin: int, end: int) -> bool:
    """Say whether all lines are records, and behind each `publish` stand the tasks that it announces and no others."""
    awaited: Iterator[str] = iter(())
    for line in bytes(data[begin:end]).splitlines(keepends=True):
        fields = _fields_of(line)
        if fields is None or next(awaited, None) != fields.get("id"):
            return False
        if "publish" in fields:
            session, first, last = parse_range(str(fields["publish"]))
            awaited = (f"{session}-{number}" for number in range(first, last + 1))
    return next(awaited, None) is None


def _fields_of(line: bytes) -> dict[str, object] | None:
    try:
        return parse_line(line)
    except RecordError:
        return None


def _is_hex(text: bytes) -> bool:
    return len(text) == 8 and not text.strip(b"0123456789abcdef")


# ---------------------------------------------------------------------------------------------------------------
# Into a queue


class _Salvage:
    """Folds what is kept, and notes what is not."""

    def __init__(self, plan: Plan, data: bytearray, head: Head, boot_id: str | None, *, keep_unverified: bool) -> None:
        header = self._header = head.header
        self._plan = plan
        self._data = data
        self._head = head
        self._boot_id = boot_id
        self._keep_unverified = keep_unverified
        self._state = QueueState()
        self._commit = Commit(header.commit, 0, 0, 0, header.created, 0)
        self._link = Link(head.end, header.commit, header.chain, 0, piece=False)
        self._named: dict[str, None] = {}  # tasks in parts that are left out
        self._finished: set[str] = set()
        self._in_doubt: dict[str, None] = {}

    def run(self, truncate_at: int | None, last_synced: int | None) -> Repair:
        parts = list(find_parts(self._data, self._head, self._plan.mended_bits))
        for number, part in enumerate(parts):
            if truncate_at is not None and part.end > truncate_at:
                self._leave_out(part)
            elif part.trust is Trust.DAMAGED:
                self._damaged(part, is_last=number == len(parts) - 1)
            else:
                self._take(part)
        if last_synced is not None and self._link.number < last_synced:
            self._plan.lost_commits = list(range(self._link.number + 1, last_synced + 1))
        self._release_everybody()
        self._conclude()
        return Repair(self._plan, self._data, self._header, self._link, self._commit.at, self._state)

    def _take(self, part: Part) -> None:
        commit = part.commit
        assert commit is not None
        self._commit = commit
        if part.trust is Trust.UNPROVED:
            self._plan.unproved.append(commit.number)
        self._plan.commits_kept += not part.piece
        epoch = max(commit.epoch, self._link.epoch)
        if not part.piece and commit.number > self._link.number:
            self._link = Link(part.end, commit.number, commit.crc, epoch, piece=False)
        else:
            self._link = self._link._replace(epoch=epoch)
        for start, lines in _records_in(bytes(self._data[part.start : part.lines_end]), part.start):
            self._follow(start, lines, piece=part.piece)

    def _follow(self, start: int, lines: bytes, *, piece: bool) -> bool:
        """Fold one record; say whether that was possible."""
        before = self._outcome_of(lines)
        try:
            self._state.apply(Batch(start, lines, self._commit, start + len(lines), piece))
        except FoldError:
            self._name_tasks_in(lines)
            self._plan.lost_bytes += len(lines)
            return False
        for task_id in before:
            seq = self._state.seq_of(task_id)
            if seq is None:
                # It is spoken of, so it was here; its line is lost.
                self._named[task_id] = None
                self._finished.add(task_id)
            elif self._state.state_of(seq) in ("ready", "running"):
                self._in_doubt[task_id] = None
        return True

    def _outcome_of(self, lines: bytes) -> list[str]:
        """Return the tasks that the record says to be finished."""
        if not lines.startswith((b',{"done":', b',{"failed":', b',{"cancel":')):
            return []
        fields = _fields_of(lines) or {}
        cancelled = fields.get("cancel")
        if isinstance(cancelled, list):
            return [task_id for ids in cancelled for task_id in _ids_in(str(ids))]
        span = fields.get("done") or (fields.get("failed") if fields.get("then") == "dead" else None)
        return [] if span is None else _ids_in(str(span))

    def _damaged(self, part: Part, *, is_last: bool) -> None:
        lines = bytes(self._data[part.start : part.end])
        if is_last and all(damage.offset != part.start for damage in self._plan.damages):
            rest = classify_tail(lines, self._link.number + 1, same_boot=self._is_same_boot())
            if rest.kind is not TailKind.DAMAGED:
                self._plan.torn_bytes = len(lines.strip(b"]\n\0"))
                return
        if not self._keep_unverified:
            self._leave_out(part)
            return
        for start, each in _readable_records_in(lines, part.start):
            if self._follow(start, each, piece=False):
                self._plan.unverified += [str(match[1], "ascii") for match in _TASK.finditer(each)]
        self._leave_out(part)

    def _is_same_boot(self) -> bool:
        """Say whether the machine has run on since the last commit that is kept; then the disk has lost nothing."""
        return self._boot_id is not None and last_boot(self._read, self._link) == self._boot_id

    def _read(self, offset: int, length: int) -> bytes:
        return bytes(self._data[offset : offset + length])

    def _leave_out(self, part: Part) -> None:
        lines = bytes(self._data[part.start : part.end])
        self._plan.lost_bytes += len(lines.rstrip(b"\n\0"))
        self._name_tasks_in(lines)

    def _name_tasks_in(self, lines: bytes) -> None:
        for match in _TASK.finditer(lines):
            self._named[str(match[1], "ascii")] = None
        for match in _PUBLISHED.finditer(lines):
            self._named.update(dict.fromkeys(_ids_in(str(match[1], "ascii"))))

    def _release_everybody(self) -> None:
        """Nobody hosts the queue, so nobody is at work: whatever was in hand is ready again."""
        for consumer in self._state.consumers.values():
            for assignment in consumer.assignments.values():
                for lo, hi in assignment.held:
                    self._in_doubt.update(dict.fromkeys(map(self._state.id_of, range(lo, hi))))
        sessions = [*self._state.consumers, *self._state.publishers]
        for session in sessions:
            end = len(self._data)
            self._state.apply(Batch(end, records.gone_line(session, "repaired"), self._commit, end, piece=False))

    def _conclude(self) -> None:
        plan, state = self._plan, self._state
        gone = [task_id for task_id in self._named if state.seq_of(task_id) is None]
        plan.lost = [task_id for task_id in gone if task_id not in self._finished]
        plan.lost_finished = [task_id for task_id in gone if task_id in self._finished]
        plan.run_again = [each for each in self._in_doubt if _is_ready(state, each)]
        plan.counts = state.counts()
        plan.generation = self._header.generation + 1


_TASK = re.compile(rb',\{"id":"([a-z2-7]{12}-[1-9][0-9]{0,14})",')
_PUBLISHED = re.compile(rb',\{"publish":"([a-z2-7]{12}-[1-9][0-9]{0,14}(?:\.\.[1-9][0-9]{0,14})?)",')
MOST_NAMED = 100_000
"""Of one range: a changed digit must not make a million names."""


def _ids_in(span: str) -> list[str]:
    try:
        session, first, last = parse_range(span)
    except ValueError:
        return []
    return [f"{session}-{number}" for number in range(first, min(last, first + MOST_NAMED) + 1)]


def _is_ready(state: QueueState, task_id: str) -> bool:
    seq = state.seq_of(task_id)
    return seq is not None and state.state_of(seq) == "ready"


def _records_in(lines: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield each record with its offset: a line, or a `publish` with the lines of its tasks."""
    rest = iter(_lines_in(lines, start))
    held: tuple[int, bytes] | None = None
    for offset, line in rest:
        if line.startswith(records.TASK_LINE) and held is not None:
            held = (held[0], held[1] + line)
            continue
        if held is not None:
            yield held
        held = (offset, line)
    if held is not None:
        yield held


def _readable_records_in(lines: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield what can be read of damaged lines: records, and tasks, each announced anew by a line of its own.

    The bytes of that line are not in the file; the offset is such that those of the task are where they stand.
    """
    for offset, line in _lines_in(lines, start):
        fields = _fields_of(line)
        if fields is None or "publish" in fields:
            continue
        if line.startswith(records.TASK_LINE):
            session, number = parse_task_id(str(fields["id"]))
            head = records.publish_head(IdRange(session, number, number), str(fields["name"]))
            yield offset - len(head), head + line
        else:
            yield offset, line


def _lines_in(lines: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    for line in lines.splitlines(keepends=True):
        yield start, line
        start += len(line)

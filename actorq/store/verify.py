"""Look at every byte of a Queue.json, change none, and say what is found in words that lead to the next step.

It takes no lock and works beside a running queue. Damage is a finding, not an error: one report tells where the first
damage is, how many commits behind it are whole, and what can be done.
"""

from __future__ import annotations

import enum
import os
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from actorq.errors import CorruptQueueError, FoldError, UnsupportedFormatError
from actorq.store.failed_sync import read_mark
from actorq.store.filesystem import REAL, Filesystem, StrPath
from actorq.store.fold import QueueState
from actorq.store.format import COMMIT_MARK, FILLER, RECORD_LENGTH, Commit, parse_commit
from actorq.store.locks import is_written
from actorq.store.log_reader import BatchReader, Link, first_link, open_queue_file, read_header
from actorq.store.records import RecordError, parse_line
from actorq.store.recovery import TailKind, examine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.store.failed_sync import FailedSync
    from actorq.store.log_reader import Batch
    from actorq.store.recovery import Examined

    type ExamineEnd = Callable[[FailedSync | None], Examined]

SEARCH_BLOCK = 4 << 20


class Verdict(enum.StrEnum):
    """What the file is."""

    INTACT = "intact"
    TORN = "torn"
    """Whole but for its last commit, which was never acknowledged. The next start mends that by itself."""
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    """No queue, or no queue of this version."""


@dataclass(frozen=True, slots=True)
class Damage:
    """One place that is not as it was written. ``commit``: the one expected there, None in header and snapshot."""

    offset: int
    commit: int | None
    reason: str


@dataclass(slots=True)
class Report:
    """What was found."""

    path: str
    verdict: Verdict = Verdict.INTACT
    reason: str = ""
    next_step: str = "nothing to do"
    size: int = 0
    generation: int = 0
    commit: int = 0
    """Number of the last good commit before any damage."""
    good_bytes: int = 0
    """Where that commit ends: everything before is whole."""
    pieces: int = 0
    records: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """Tasks by state at the last good commit."""
    damages: list[Damage] = field(default_factory=list)
    commits_behind: int = 0
    """Whole commits behind the first damage."""

    @property
    def is_ok(self) -> bool:
        """Whether the queue can be used as it is."""
        return self.verdict in {Verdict.INTACT, Verdict.TORN}

    @property
    def offset(self) -> int | None:
        """Where the first damage is."""
        return self.damages[0].offset if self.damages else None


def verify(
    path: StrPath, *, boot_id: str | None = None, is_alone: bool = False, filesystem: Filesystem = REAL
) -> Report:
    """Check header, chain, every record and what follows from them. Raises OSError only where the file cannot be read.

    ``boot_id``: of this boot, if the caller knows it; it makes the judgement of a torn end sharper. ``is_alone``: the
    caller has the writer's lock; else whoever has it may be in the middle of a commit.
    """
    report = Report(os.fspath(path))
    try:
        fd = open_queue_file(filesystem, path, os.O_RDONLY)
        try:
            header = read_header(filesystem, fd, path)
            reader = BatchReader(filesystem, fd, path, header, first_link(header))
            end = End(
                lambda mark: examine(filesystem, fd, path, header, boot_id, mark),
                lambda: not is_alone and is_written(path),
            )
            _check(reader, report, end, filesystem)
        finally:
            filesystem.close(fd)
    except UnsupportedFormatError as error:
        report.verdict, report.reason = Verdict.UNREADABLE, error.reason
        report.next_step = "check the path; if this was a queue, bring it back from a backup"
    except CorruptQueueError as error:
        report.damages.append(Damage(error.offset, None, error.reason))
        _conclude(report)
    return report


class End(NamedTuple):
    """How to judge what stands behind the last good commit."""

    examine: ExamineEnd
    is_written: Callable[[], bool]
    """Whether somebody may be writing there."""


def _check(reader: BatchReader, report: Report, end: End, filesystem: Filesystem) -> None:
    report.generation = reader.generation
    report.pieces = reader.header.pieces
    contents = _Contents(report)
    damage: Damage | None = None
    try:
        for batch in reader.batches():
            contents.check(batch)
    except CorruptQueueError as error:
        damage = Damage(error.offset, error.sequence, error.reason)
    report.counts = contents.state.counts()
    report.commit = reader.commit
    report.good_bytes = reader.link.offset
    report.size = filesystem.lstat(report.path).st_size
    if reader.link.piece:
        assert damage is not None  # a snapshot is whole, or damaged
        report.damages.append(damage)
    else:
        mark = read_mark(filesystem, report.path)
        if mark is not None and mark.generation not in {reader.generation, None}:
            mark = None
        _judge_end(reader.link, end, damage, mark, report)
    if any(each.offset == reader.link.offset for each in report.damages):
        report.commits_behind = sum(1 for _ in _whole_commits_behind(reader, report))
    _conclude(report)


class _Contents:
    """What the lines between the commit records say."""

    def __init__(self, report: Report) -> None:
        self.state = QueueState()
        self._report = report
        self._is_followed = True

    def check(self, batch: Batch) -> None:
        number = None if batch.piece else batch.commit.number
        offset = batch.start
        for line in batch.lines.splitlines(keepends=True):
            try:
                parse_line(line)
            except RecordError as error:
                self._report.damages.append(Damage(offset, number, str(error)))
            offset += len(line)
            self._report.records += 1
        if self._is_followed:
            try:
                self.state.apply(batch)
            except FoldError as error:
                self._is_followed = False
                self._report.damages.append(Damage(error.offset, number, error.reason))


def _judge_end(link: Link, how: End, damage: Damage | None, mark: FailedSync | None, report: Report) -> None:
    """Say what the next writer will do about what stands behind the last good commit: he and this must agree.

    A hole in commits that were never synced is damage to a reader; a writer cuts it after a power cut, unless he finds
    the end behind the damage, where he would build on it.
    """
    end = how.examine(mark)
    if damage is not None and (how.is_written() or end.link.offset != link.offset):
        report.damages.append(damage)
        return
    match end.tail.kind:
        case TailKind.CLEAN:
            pass
        case _ if damage is None and how.is_written():
            report.reason = "a commit was under way while it was read"
            return
        case TailKind.DAMAGED:
            report.damages.append(damage or Damage(link.offset, link.number + 1, end.tail.reason))
            return
        case TailKind.TORN:
            report.verdict = Verdict.TORN
            torn = len(end.rest.rstrip(FILLER + b"\0"))
            report.reason = f"{torn} bytes of commit {link.number + 1} at byte {link.offset}: {end.tail.reason}"
            report.next_step = "nothing to do: the next start cuts them off and keeps a copy beside the file"
    if mark is not None:
        report.reason = f"a sync had failed ({mark.reason})" + (f"; {report.reason}" if report.reason else "")
        report.next_step = "nothing to do: the next start copies what is whole to a new file"


def _whole_commits_behind(reader: BatchReader, report: Report) -> Iterator[Commit]:
    """Yield the commits behind the first damage that are whole, noting further damages on the way."""
    at = reader.link.offset
    while (found := _next_record(reader, at)) is not None:
        offset, commit = found
        at = offset + RECORD_LENGTH
        link = Link(at, commit.number, commit.crc, commit.epoch, piece=False)
        rest = reader.behind(link)
        try:
            for batch in rest.batches():
                at = batch.end
                yield batch.commit
        except CorruptQueueError as error:
            at = max(at, error.offset)
            report.damages.append(Damage(error.offset, error.sequence, error.reason))
        else:
            return


def _next_record(reader: BatchReader, at: int) -> tuple[int, Commit] | None:
    while data := reader.read(at, SEARCH_BLOCK):
        place = 0
        while (place := data.find(FILLER + COMMIT_MARK, place) + 1) and place + RECORD_LENGTH <= len(data):
            commit = parse_commit(data, place)
            if commit is not None:
                return at + place, commit
        if len(data) < SEARCH_BLOCK:
            return None
        at += len(data) - RECORD_LENGTH
    return None


def _conclude(report: Report) -> None:
    if not report.damages:
        return
    first = report.damages[0]
    what = "" if first.commit is None else f"commit {first.commit} "
    more = f"; {len(report.damages) - 1} further places are damaged" if len(report.damages) > 1 else ""
    behind = f"; {report.commits_behind} commits behind it are whole" if report.commits_behind else ""
    report.verdict = Verdict.DAMAGED
    report.reason = f"{what}at byte {first.offset}: {first.reason}{more}{behind}"
    command = f"actorq repair {shlex.quote(report.path)}"
    report.next_step = f"stop its worker, then see what a repair would keep and lose (it changes nothing): {command}"

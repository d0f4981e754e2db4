"""A dump becomes a queue, or a part of one: all of it or nothing.

The new file is written beside, as a snapshot: what the queue holds already, as it stands, and behind that the tasks of
the dump. It is read back, and only then gets its name. The lines are taken one after the other, so a dump may be longer
than memory; what is kept of it is the state of its tasks, some fifty bytes each.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Self

import orjson

from actorq.clock import SYSTEM_CLOCK, Clock
from actorq.errors import LoadError
from actorq.store import records
from actorq.store.compaction import Compaction, fold_all
from actorq.store.dump import Dumped, parse_head, parse_task
from actorq.store.filesystem import REAL, Filesystem, StrPath, directory_of, full_disk_told
from actorq.store.fold import QueueState
from actorq.store.format import HEAD_LENGTH
from actorq.store.log_reader import Link, LogReader
from actorq.store.log_writer import LogWriter, new_header, require_local
from actorq.store.new_file import OFFER_SUFFIX, TEMP_SUFFIX, sweep
from actorq.store.snapshot import PIECE_BYTES
from actorq.tasks.ids import IdRange
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Loaded(NamedTuple):
    """What loading came to: how many tasks came in, and how many are in the queue now, by state."""

    tasks: int
    generation: int
    counts: dict[str, int]


def load(
    path: StrPath,
    lines: Iterable[bytes],
    *,
    boot_id: str,
    pid: int,
    filesystem: Filesystem = REAL,
    clock: Clock = SYSTEM_CLOCK,
) -> Loaded:
    """Put the tasks of a dump into a queue, which is made if there is none. The caller holds both locks.

    Raises LoadError, and whatever else goes wrong; the queue is then what it was. Readers see that the file has moved.
    """
    try:
        filesystem.lstat(path)
    except FileNotFoundError:
        return _load_anew(path, lines, filesystem, clock)
    return _load_more(path, lines, boot_id, pid, filesystem)


def _load_anew(path: StrPath, lines: Iterable[bytes], filesystem: Filesystem, clock: Clock) -> Loaded:
    require_local(filesystem, path)
    sweep(path, filesystem)
    # The file before the first one: a new queue has generation 1.
    header = new_header(clock)._replace(generation=0)
    link = Link(HEAD_LENGTH, 0, 0, 0, piece=False)
    with full_disk_told(path), Compaction(path, header, link, header.created, filesystem) as compaction:
        task_count, counts = _write(compaction, QueueState(), iter(()), lines)
        compaction.check(counts)
        if not compaction.publish():
            raise LoadError(0, f"{path} has come into being meanwhile")
    return Loaded(task_count, compaction.header.generation, counts)


def _load_more(path: StrPath, lines: Iterable[bytes], boot_id: str, pid: int, filesystem: Filesystem) -> Loaded:
    LogWriter.open(path, filesystem=filesystem, boot_id=boot_id, pid=pid, create=False).close()
    for suffix in (TEMP_SUFFIX, OFFER_SUFFIX):
        sweep(path, filesystem, suffix=suffix)
    reader = LogReader(path, filesystem=filesystem)
    try:
        state, at = fold_all(reader)
        with full_disk_told(path), Compaction(path, reader.header, reader.link, at, filesystem) as compaction:
            pieces = state.snapshot_pieces(reader.read, None)
            task_count, counts = _write(compaction, state, pieces, lines)
            del state, pieces
            compaction.check(counts)
            compaction.replace()
    finally:
        reader.close()
    return Loaded(task_count, compaction.header.generation, counts)


def _write(
    compaction: Compaction, state: QueueState, pieces: Iterator[bytes], lines: Iterable[bytes]
) -> tuple[int, dict[str, int]]:
    """Write the snapshot of the state and the dump behind it; return how many tasks it has, and all that is there."""
    ending = records.sessions_line([], None, 0)
    for piece in pieces:
        if piece.startswith(_SESSIONS):
            ending = piece  # the last one, and it stays the last one
        else:
            compaction.write_piece(piece)
    counts = Counter(state.counts())
    numbered = ((at, line) for at, line in enumerate(lines, 1) if line.strip())
    at, line = next(numbered, (1, b""))
    head = parse_head(line)
    with _Pile(compaction, directory_of(compaction.path)) as pile:
        guard = _Guard(state)
        for at, line in numbered:
            task = parse_task(line, at)
            if guard.admits(task, at):
                pile.add(task)
                counts[task.state] += 1
        guard.require(head.tasks)
        pile.finish()
    counts.update(head.removed)
    ending += b"".join(records.steered_line(Verb.PAUSE, (), name) for name in head.paused)
    compaction.write_piece(ending + (records.counts_line(head.removed) if head.removed else b""))
    return guard.seen, {str(word): counts[word] for word in TaskState}


_SESSIONS = b',{"sessions":'


class _Guard:
    """Looks at the ids: none may be there already, and those of one session come in ascending order, as everywhere."""

    def __init__(self, state: QueueState) -> None:
        self.seen = 0
        self._state = state
        self._last: dict[str, int] = {}
        self._there = 0
        self._first = ""

    def admits(self, task: Dumped, at: int) -> bool:
        """Say whether the task can be taken in. Raises LoadError; of those that are there it only takes note."""
        self.seen += 1
        session, number = task.session, task.number
        last = self._last.get(session, 0)
        if number <= last:
            raise LoadError(at, f"the id {session}-{number} comes behind {session}-{last}; leave the lines in order")
        self._last[session] = number
        if number <= self._state.index.last_of(session):
            if self._state.seq_of(f"{session}-{number}") is None:
                raise LoadError(at, f"{session}-{number} is older than a task of the queue; load into a new queue")
            self._there += 1
            self._first = self._first or f"{session}-{number}"
        publisher = self._state.publishers.get(session)
        if publisher is not None and number > publisher.last_request:
            raise LoadError(at, f"the publisher of {session}-{number} is still at work here; load into a new queue")
        return not self._there

    def require(self, promised: int | None) -> None:
        """Raise LoadError if tasks were there, or if not all have come."""
        if self._there:
            first = self._first
            those = f"{first} is" if self._there == 1 else f"{self._there:,} of {self.seen:,} tasks ({first} ...) are"
            raise LoadError(0, f"{those} in the queue already; load into a new queue")
        if promised is not None and promised != self.seen:
            raise LoadError(
                0, f"the dump was cut off or changed: its first line says {promised:,} tasks, {self.seen:,} came"
            )


class _Pile:
    """Tasks on their way into pieces of a snapshot.

    What is to be known of done and cancelled tasks stands behind all tasks, in the order in which they finished: by
    that order they leave one day. Until all have come it lies in a file that has no name.
    """

    def __init__(self, compaction: Compaction, folder: StrPath) -> None:
        self._compaction = compaction
        self._run: list[Dumped] = []
        self._run_bytes = 0
        self._parts: list[bytes] = []
        self._bytes = 0
        # Of no use to anybody after a crash, so it is none of the files that `Filesystem` is for.
        self._aside = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed at the end of the block
        self._offsets = array("Q")
        self._finished = array("Q")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._aside.close()

    def add(self, task: Dumped) -> None:
        """Take up the next task."""
        if self._run:
            last = self._run[-1]
            is_next = (last.session, last.number + 1) == (task.session, task.number)
            is_alike = (last.name, last.published_at) == (task.name, task.published_at)
            if not (is_next and is_alike) or self._run_bytes + len(task.data) > PIECE_BYTES:
                self._end_run()
        self._run.append(task)
        self._run_bytes += len(task.data) + _BESIDE_DATA

    def finish(self) -> None:
        """Write what is left."""
        self._end_run()
        ends = self._offsets[1:]
        ends.append(self._aside.tell())
        for place in sorted(range(len(self._offsets)), key=self._finished.__getitem__):
            self._aside.seek(self._offsets[place])
            self._put(self._aside.read(ends[place] - self._offsets[place]))
        self._write_piece()

    def _end_run(self) -> None:
        """Write tasks that were published together, and what is to be known of them."""
        run, self._run, self._run_bytes = self._run, [], 0
        if not run:
            return
        first = run[0]
        ids = IdRange(first.session, first.number, run[-1].number)
        parts = [records.publish_lines(ids, first.name, [task.data for task in run], first.published_at)]
        for alike in _alike(run):
            line = _kept_line(alike)
            if alike[0].state in (TaskState.DONE, TaskState.CANCELLED):
                self._put_aside(line, alike[0].finished_at or "")
            elif line:
                parts.append(line)
        self._put(b"".join(parts))

    def _put_aside(self, line: bytes, finished_at: str) -> None:
        self._offsets.append(self._aside.tell())
        self._finished.append(int(finished_at.translate(_DIGITS)))
        self._aside.write(line)

    def _put(self, lines: bytes) -> None:
        if self._bytes + len(lines) > PIECE_BYTES:
            self._write_piece()
        self._parts.append(lines)
        self._bytes += len(lines)

    def _write_piece(self) -> None:
        if self._parts:
            self._compaction.write_piece(b"".join(self._parts))
            self._parts, self._bytes = [], 0


_BESIDE_DATA = 50
"""Of the line of a task, about."""
_DIGITS = str.maketrans("", "", "-T:.Z")


def _alike(run: list[Dumped]) -> Iterator[list[Dumped]]:
    """Yield tasks of which one line says all."""
    alike: list[Dumped] = []
    for task in run:
        if alike and not (_is_plain(task) and _is_plain(alike[0]) and _common(task) == _common(alike[0])):
            yield alike
            alike = []
        alike.append(task)
    if alike:
        yield alike


def _is_plain(task: Dumped) -> bool:
    return task.errors is None and task.result is None


def _common(task: Dumped) -> tuple[object, ...]:
    return task.state, task.started_at, task.finished_at, task.failures, task.crashes


def _kept_line(alike: list[Dumped]) -> bytes:
    """Return what is to be known of these tasks, or nothing if they are plain ready."""
    task = alike[0]
    fields: dict[str, bytes] = {}
    if task.failures:
        fields["failures"] = b"%d" % task.failures
    if task.crashes:
        fields["crashes"] = b"%d" % task.crashes
    if task.started_at is not None:
        fields["started"] = orjson.dumps(task.started_at)
    if task.finished_at is not None:
        fields["finished"] = orjson.dumps(task.finished_at)
    if task.errors is not None:
        fields["errors"] = task.errors
    if task.result is not None:
        fields["result"] = task.result
    if task.state is TaskState.READY and not fields:
        return b""
    return records.kept_line(IdRange(task.session, task.number, alike[-1].number), task.state, fields)

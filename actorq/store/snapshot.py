"""The queue as it stands, written as the beginning of a new file: what compaction is made of.

    hello ...                    who is connected, with his numbers
    publish, id, id ...          every task that stays, its line copied byte for byte
    kept ...                     what is not plain ready, finished ones in the order in which they finished
    assign ...                   who has what
    sessions, pause, counts      the writer's table, what is paused, and what has left

Folding these lines gives the state they were made from, without the tasks that left. Times are those of the old file.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import orjson

from actorq.store import records
from actorq.store.clients import ConsumerState, Session
from actorq.tasks.ids import IdRange
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import Verb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.store.fold import QueueState

PIECE_BYTES = 1 << 20
"""Who folds a piece, or waits for the disk to take one, does nothing else for that long: some 10 ms."""
_WINDOW_BYTES = 1 << 18


def snapshot_pieces(
    state: QueueState, read: Callable[[int, int], bytes], keep_done: int | None, piece_bytes: int | None = None
) -> Iterator[bytes]:
    """Yield the lines of the snapshot in pieces of about ``piece_bytes``, by default PIECE_BYTES.

    The last one begins with `sessions`.

    Of the tasks that are done or cancelled only the newest ``keep_done`` stay; None keeps all.
    """
    finished = _finished(state)
    leaving = [] if keep_done is None else finished[: max(0, len(finished) - keep_done)]
    staying = finished[len(leaving) :]
    piece_bytes = piece_bytes or PIECE_BYTES
    window = _Window(read)
    pile: list[bytes] = []
    size = 0
    for lines in _lines(state, window.read, leaving, staying, piece_bytes):
        if size + len(lines) > piece_bytes and pile:
            yield b"".join(pile)
            pile, size = [], 0
        pile.append(lines)
        size += len(lines)
    if pile:
        yield b"".join(pile)
    yield _ending(state, leaving)


def _finished(state: QueueState) -> list[int]:
    """Return the places of the tasks that may leave, in the order in which they finished."""
    places = [*state.places_in(TaskState.DONE), *state.places_in(TaskState.CANCELLED)]
    places.sort()
    places.sort(key=state.outcome_offset)
    return places


def _lines(
    state: QueueState,
    read: Callable[[int, int], bytes],
    leaving: list[int],
    staying: list[int],
    piece_bytes: int,
) -> Iterator[bytes]:
    for consumer in state.consumers.values():
        yield records.hello_line(_hello(consumer), last_request=consumer.last_request, last_no=consumer.last_no)
    for publisher in state.publishers.values():
        yield records.hello_line(_hello(publisher), last_request=publisher.last_request)
    yield from _tasks(state, read, leaving, piece_bytes)
    yield from _kept(state, read, staying)
    for consumer in state.consumers.values():
        yield from _assignments(state, consumer)


def _tasks(
    state: QueueState, read: Callable[[int, int], bytes], leaving: list[int], piece_bytes: int
) -> Iterator[bytes]:
    """Yield groups of tasks: as many as belong together, but no more than fill a piece."""
    run: _Run | None = None
    for lo, hi, name in _runs(state, leaving):
        for begin, end in _slices(state, lo, hi, piece_bytes):
            ids, at = state.range_of(begin, end), state.published_at(begin)
            offset, length = state.span_of(begin, end)
            if run is not None and run.is_followed_by(ids, name, at) and run.size + length <= piece_bytes:
                run.ids = IdRange(ids.session, run.ids.first, ids.last)
            else:
                if run is not None:
                    yield run.lines()
                run = _Run(ids, name, at)
            run.parts.append(read(offset, length))
            run.size += length
    if run is not None:
        yield run.lines()


class _Run:
    """Tasks that become one group of the new file."""

    __slots__ = ("at", "ids", "name", "parts", "size")

    def __init__(self, ids: IdRange, name: str, at: str) -> None:
        self.ids = ids
        self.name = name
        self.at = at
        self.parts: list[bytes] = []
        self.size = 0

    def is_followed_by(self, ids: IdRange, name: str, at: str) -> bool:
        mine = self.ids
        return ids.first == mine.last + 1 and ids.session == mine.session and at == self.at and name == self.name

    def lines(self) -> bytes:
        return records.publish_head(self.ids, self.name, self.at) + b"".join(self.parts)


def _runs(state: QueueState, leaving: list[int]) -> Iterator[tuple[int, int, str]]:
    """Yield what stays of each group: lo, hi, name."""
    gone = bytearray(map(state.is_purged, range(len(state)))) if state.purged else bytearray(len(state))
    for seq in leaving:
        gone[seq] = 1
    for _, lo, hi in state.index.groups_in(0, len(state)):
        name = state.name_of(lo)
        begin = gone.find(0, lo, hi)
        while begin >= 0:
            end = gone.find(1, begin, hi)
            end = hi if end < 0 else end
            yield begin, end, name
            begin = gone.find(0, end, hi)


def _slices(state: QueueState, lo: int, hi: int, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut a part of a group into slices that fit a piece; a longer line is a slice of its own."""
    while lo < hi:
        end = hi if state.span_of(lo, hi)[1] <= piece_bytes else state.index.fitting(lo, hi, piece_bytes)
        yield lo, end
        lo = end


def _kept(state: QueueState, read: Callable[[int, int], bytes], staying: list[int]) -> Iterator[bytes]:
    """Yield what is to be known of tasks beside their lines; one line for as many as it is the same for."""
    told_apart = set(state.places_in(TaskState.DEAD))
    told_apart.update(state.places_in(TaskState.SCHEDULED))
    told_apart.update(seq for seq in state.troubled() if state.state_of(seq) in (TaskState.READY, TaskState.RUNNING))
    lo = hi = 0
    word, fields = TaskState.READY, dict[str, bytes]()
    for seq in (*sorted(told_apart), *staying):
        now = state.state_of(seq)
        # Running is said by `assign`, behind these lines.
        next_word = TaskState.READY if now is TaskState.RUNNING else now
        next_fields = _fields(state, seq, now, read)
        is_same = seq == hi and next_word is word and next_fields == fields and _OWN.isdisjoint(fields)
        if not (is_same and lo < hi and state.index.is_range(lo, seq + 1)):
            if lo < hi:
                yield records.kept_line(state.range_of(lo, hi), word, fields)
            lo, word, fields = seq, next_word, next_fields
        hi = seq + 1
    if lo < hi:
        yield records.kept_line(state.range_of(lo, hi), word, fields)


_OWN = {"result", "errors"}
"""What is said of one task at a time."""


def _fields(state: QueueState, seq: int, now: TaskState, read: Callable[[int, int], bytes]) -> dict[str, bytes]:
    fields: dict[str, bytes] = {}
    if failures := state.failures_of(seq):
        fields["failures"] = b"%d" % failures
    if crashes := state.crashes_of(seq):
        fields["crashes"] = b"%d" % crashes
    if now is not TaskState.RUNNING and (started := state.started_at(seq)):
        fields["started"] = orjson.dumps(started)
    if finished := state.finished_at(seq):
        fields["finished"] = orjson.dumps(finished)
    if troubles := state.troubles_of(seq, read):
        fields["errors"] = orjson.dumps(troubles)
    result = state.result_of(seq, read) if now is TaskState.DONE else None
    if result is not None:
        fields["result"] = result  # the last one, as everywhere
    return fields


def _assignments(state: QueueState, consumer: ConsumerState) -> Iterator[bytes]:
    """Yield a line for each part of each assignment that is unfinished: numbers that follow each other."""
    token = state.scheduler or consumer.session
    for no, assignment in consumer.assignments.items():
        for begin, end in assignment.held:
            lo = begin
            for _, _, hi in state.index.groups_in(begin, end):
                if hi == end or not state.index.is_range(lo, hi + 1):
                    at = state.started_at(lo)
                    yield records.assign_line(state.range_of(lo, hi), consumer.session, no, token, 0, at=at)
                    lo = hi


def _ending(state: QueueState, leaving: list[int]) -> bytes:
    """Return the last piece. It begins like a checkpoint, so the writer need not read further back."""
    rows = [records.session_row(_hello(each), each.last_request, each.last_no) for each in state.consumers.values()]
    rows += [records.session_row(_hello(each), each.last_request) for each in state.publishers.values()]
    removed = Counter(state.removed)
    removed.update(str(state.state_of(seq)) for seq in leaving)
    counts = records.counts_line(removed) if removed else b""
    pauses = b"".join([records.steered_line(Verb.PAUSE, (), name) for name in state.pauses()])
    return records.sessions_line(rows, state.scheduler, state.scheduler_request) + pauses + counts


def _hello(known: Session | ConsumerState) -> records.Hello:
    """Return what the session said when it made itself known."""
    if isinstance(known, Session):
        return records.Hello(known.session, records.PUBLISHER, known.pid, known.start, known.boot)
    return records.Hello(
        known.session,
        records.CONSUMER,
        known.pid,
        known.start,
        known.boot,
        None if known.names is None else tuple(sorted(known.names)),
        known.max_attempts,
        known.max_crashes,
    )


class _Window:
    """Reads ahead: task lines are asked for one after the other, a hundred bytes at a time."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read = read
        self._begin = 0
        self._bytes = b""

    def read(self, offset: int, length: int) -> bytes:
        at = offset - self._begin
        if at < 0 or at + length > len(self._bytes):
            self._begin, at = offset, 0
            self._bytes = self._read(offset, max(length, _WINDOW_BYTES))
        return self._bytes[at : at + length]

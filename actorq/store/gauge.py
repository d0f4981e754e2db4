"""How much goes through a queue, and how long it takes: a fold that counts what its batches have done."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, override

from actorq.clock import from_iso
from actorq.store.fold import AFTER_CRASH, CODES, FAIL, QueueState
from actorq.tasks.lifecycle import TaskState

if TYPE_CHECKING:
    from actorq.store.fold import Step
    from actorq.store.log_reader import Batch

MOST_RANGES = 4096
"""Of which tasks finished; of more every second one is forgotten, and again."""


class Flow(NamedTuple):
    """What has gone through. Seconds come with the number of tasks for which they hold, in no order."""

    published: int
    done: int
    failed: int
    """Attempts that went wrong: the handler raised, or its process died."""
    waits: list[tuple[float, int]]
    """From publish to the last start, of tasks that are done."""
    runs: list[tuple[float, int]]
    """From the last start to done. As the file has it: from one commit to another, in milliseconds."""


class Gauge(QueueState):
    """A fold that measures on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[tuple[int, str]] = []
        """When each writer took over, as far as the file goes back: epoch and time."""
        self._is_news = True
        self._start_anew()

    def _start_anew(self) -> None:
        self._published = self._done_count = self._failed_count = 0
        self._finished: list[tuple[int, int]] = []
        self._stride = 1
        self._skipped = 0

    def take_up(self, batch: Batch, *, is_news: bool) -> None:
        """Fold a batch; only what is news is measured, and a snapshot never is."""
        self._is_news = is_news and not batch.piece
        if not self.epochs or batch.commit.epoch != self.epochs[-1][0]:
            self.epochs.append((batch.commit.epoch, batch.commit.at))
        self.apply(batch)

    def take_flow(self) -> Flow:
        """Return what has gone through since this was asked the last time."""
        waits: list[tuple[float, int]] = []
        runs: list[tuple[float, int]] = []
        for lo, hi in self._finished:
            started, finished = self.started_at(lo), self.finished_at(lo)
            if started is not None and finished is not None:
                begin = from_iso(started)
                # Clocks are set back now and then.
                waits.append((max(0.0, begin - from_iso(self.published_at(lo))), hi - lo))
                runs.append((max(0.0, from_iso(finished) - begin), hi - lo))
        flow = Flow(self._published, self._done_count, self._failed_count, waits, runs)
        self._start_anew()
        return flow

    @override
    def _publish(self, lines: list[bytes], at: int, offset: int) -> tuple[int, int]:
        before = len(self.index)
        behind = super()._publish(lines, at, offset)
        if self._is_news:
            self._published += len(self.index) - before
        return behind

    @override
    def _move(self, step: Step, lo: int, hi: int) -> None:
        super()._move(step, lo, hi)
        if not self._is_news:
            return
        if step.after == _DONE:
            self._done_count += hi - lo
            self._note_finished(lo, hi)
        elif step in _WRONG:
            self._failed_count += hi - lo

    def _note_finished(self, lo: int, hi: int) -> None:
        self._skipped += 1
        if self._skipped < self._stride:
            return
        self._skipped = 0
        self._finished.append((lo, hi))
        if len(self._finished) > MOST_RANGES:
            del self._finished[::2]
            self._stride *= 2


_DONE = CODES[TaskState.DONE]
_WRONG = frozenset((*FAIL.values(), *AFTER_CRASH.values()))


def percentile(weighed: list[tuple[float, int]], share: float) -> float | None:
    """Return the value that so large a share of all does not exceed, None of none."""
    rank = share * sum(weight for _, weight in weighed)
    for value, weight in sorted(weighed):
        rank -= weight
        if rank <= 0:
            return value
    return None

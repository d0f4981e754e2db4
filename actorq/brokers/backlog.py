"""The backlog: how much of the queue is not finished, as the writer must know it to keep a limit.

The writer folds sessions only; what is ready, scheduled or running is known to the scheduler, who tells it after each
commit that it has read. What was published since stands here, by the number of its commit: so nothing is
counted twice and nothing is missed, whatever dies in between. What was finished since is missing, so the count errs to
one side only: the queue never holds more than it may.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence


class Limits(NamedTuple):
    """How much may be ready, scheduled and running at once; None is as much as the disk holds."""

    max_pending: int | None = None
    """Tasks."""
    max_pending_bytes: int | None = None
    """Bytes of their lines in the file."""

    def __bool__(self) -> bool:
        """Whether there is a limit at all."""
        return self != (None, None)

    def room(self, tasks: int, size: int, lengths: Sequence[int]) -> int:
        """Return how many of the next tasks, whose lines have these lengths, fit in behind what is there."""
        count = len(lengths)
        if self.max_pending is not None:
            count = min(count, max(0, self.max_pending - tasks))
        if self.max_pending_bytes is not None:
            for number, length in enumerate(lengths[:count]):
                size += length
                if size > self.max_pending_bytes:
                    return number
        return count

    def why_full(self, tasks: int, size: int) -> str:
        """Say what is used up."""
        if self.max_pending is not None and tasks >= self.max_pending:
            return f"{tasks:,} tasks are not finished, and max_pending is {self.max_pending:,}"
        return f"tasks not finished take {size:,} bytes, and max_pending_bytes is {self.max_pending_bytes:,}"


class Backlog:
    """The writer's count of what is not finished. Not known until the scheduler has told.

    What it told a writer before may still lie in the mailbox, and not count what that one published last: so nothing
    counts that was told as of a commit before `start`, the last one when this writer began.
    """

    def __init__(self, limits: Limits, start: int = 0) -> None:
        self.limits = limits
        self.start = start
        self.is_known = False
        self._told = (0, 0)
        self._since: deque[tuple[int, int, int]] = deque()
        """Published and not told yet: number of the commit, tasks, bytes."""
        self._tasks = self._bytes = 0
        """The sums of these."""
        self._open: list[tuple[int, int]] = []
        """Taken into the group at hand."""

    def __repr__(self) -> str:
        return f"<Backlog {self.tasks} tasks, {self.bytes} bytes of {self.limits}>"

    @property
    def tasks(self) -> int:
        """How many tasks are not finished, at most."""
        return self._told[0] + self._tasks + sum(tasks for tasks, _ in self._open)

    @property
    def bytes(self) -> int:
        """How long their lines are together, at most."""
        return self._told[1] + self._bytes + sum(size for _, size in self._open)

    def tell(self, commit: int, tasks: int, size: int) -> None:
        """Hear from the scheduler what is not finished as of this commit."""
        if commit < self.start:
            return
        self.is_known = True
        self._told = tasks, size
        since = self._since
        while since and since[0][0] <= commit:
            _, tasks, size = since.popleft()
            self._tasks -= tasks
            self._bytes -= size

    def take(self, tasks: int, size: int) -> None:
        """Count what goes into the group at hand."""
        self._open.append((tasks, size))

    def written(self, commit: int) -> None:
        """The group at hand is in the log, as this commit."""
        for tasks, size in self._open:
            self._since.append((commit, tasks, size))
            self._tasks += tasks
            self._bytes += size
        self._open.clear()

    def refused(self) -> None:
        """The group at hand will not be in the log."""
        self._open.clear()

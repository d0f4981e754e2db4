"""Things to be done later, by one process."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, override

if TYPE_CHECKING:
    from collections.abc import Callable

    from actorq.clock import Clock


class Timer:
    """One thing to be done once, unless it is cancelled before."""

    __slots__ = ("_action", "due")

    def __init__(self, due: float, action: Callable[[], None]) -> None:
        self.due = due
        """When, by the clock's `now`."""
        self._action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Do nothing when the time comes. Harmless when it has come already."""
        self._action = None

    @property
    def is_pending(self) -> bool:
        """Whether it is still to be done."""
        return self._action is not None

    def fire(self) -> None:
        """Do it, if it is still to be done."""
        action, self._action = self._action, None
        if action is not None:
            action()

    @override
    def __repr__(self) -> str:
        return f"<Timer {'pending' if self.is_pending else 'over'} due={self.due:.3f}>"


class Timers:
    """The timers of one process, the next one first; those due at the same time in the order in which they were set."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Have something done once that much time has passed."""
        timer = Timer(self._clock.now() + max(0.0, seconds), action)
        heapq.heappush(self._heap, (timer.due, next(self._order), timer))
        return timer

    def fire_due(self) -> None:
        """Do what is due. What that sets with no delay waits for the next call, so that this one ends."""
        if not self._heap:
            return
        now = self._clock.now()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for timer in due:
            timer.fire()

    def seconds_to_next(self) -> float | None:
        """Return how long nothing is due; None when no timer is set."""
        while self._heap and not self._heap[0][2].is_pending:
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - self._clock.now()) if self._heap else None

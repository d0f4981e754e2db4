"""Which tasks may be handed out next: the ready ones, in publish order, by name.

One byte per task: 0 when it is not ready, else the lane of its name. The next task that a consumer may have is then one
search over bytes for a set of lanes, in C, and what was already found empty is not looked at again.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from array import array

_SHARED_LANE = 255
"""Names beyond the 254th share it; there the name itself is compared."""


class ReadyLanes:
    """The ready tasks of the queue, by place. The names are numbered in the order in which they were first seen."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.waiting: list[int] = []  # by name: ready tasks
        self._number_of: dict[str, int] = {}
        self._lanes = bytearray()  # by task
        self._patterns: dict[frozenset[str] | None, tuple[int, re.Pattern[bytes] | None]] = {}
        self._cursors: dict[frozenset[str] | None, int] = {}
        self._paused: frozenset[str | None] = frozenset()

    def number_of(self, name: str) -> int:
        """Return the number of a name, a new one if need be."""
        number = self._number_of.get(name)
        if number is None:
            number = self._number_of[name] = len(self.names)
            self.names.append(name)
            self.waiting.append(0)
        return number

    def add(self, name: int, count: int) -> None:
        """Take up new ready tasks at the end."""
        self._lanes += _LANES[name if name < _SHARED_LANE else -1] * count
        self.waiting[name] += count

    def take(self, name: int, lo: int, hi: int) -> None:
        """Tasks of one name are not ready any more."""
        self._lanes[lo:hi] = bytes(hi - lo)
        self.waiting[name] -= hi - lo

    def give_back(self, name: int, lo: int, hi: int) -> None:
        """Tasks of one name are ready again, in their place."""
        self.show(name, lo, hi)
        self.waiting[name] += hi - lo

    def hide(self, lo: int, hi: int) -> None:
        """Pass over tasks that are ready, but asked for already."""
        self._lanes[lo:hi] = bytes(hi - lo)

    def show(self, name: int, lo: int, hi: int) -> None:
        """Take back a `hide`."""
        self._lanes[lo:hi] = _LANES[name if name < _SHARED_LANE else -1] * (hi - lo)
        for names, cursor in self._cursors.items():
            if cursor > lo:
                self._cursors[names] = lo

    def pause(self, names: frozenset[str | None]) -> None:
        """Pass over the tasks of these names, and with None of all, from now on: no others than these are paused."""
        self._paused = names
        self._patterns.clear()
        self._cursors.clear()

    def paused_names(self) -> list[str]:
        """Return the names that are paused and have ready tasks."""
        if None in self._paused:
            return [name for name, number in zip(self.names, self.waiting, strict=True) if number]
        return [name for name in self.names if name in self._paused and self.waiting[self._number_of[name]]]

    def paused_count(self) -> int:
        """Return how many ready tasks are of a name that is paused."""
        if None in self._paused:
            return sum(self.waiting)
        return sum(self.waiting[number] for name, number in self._number_of.items() if name in self._paused)

    def next_run(
        self, names: frozenset[str] | None, start: int, limit: int, bounds: array[int], names_of: array[int]
    ) -> tuple[int, int] | None:
        """Return the first run ``lo, hi`` from ``start`` of tasks of one name and group, at most ``limit`` of them.

        ``bounds`` and ``names_of`` are the index's columns by group.
        """
        pattern = self._pattern(names)
        if pattern is None:
            return None
        cursor = self._cursors.get(names, 0)
        is_first = start <= cursor
        begin = max(start, cursor)
        lanes = self._lanes
        while True:
            match = pattern.search(lanes, begin)
            if match is None:
                begin = len(lanes)
                break
            begin = match.start()
            group = bisect_right(bounds, begin) - 1
            run = bytes(lanes[begin : min(begin + limit, bounds[group + 1])])
            end = begin + len(run) - len(run.lstrip(run[:1]))
            if run[0] != _SHARED_LANE or self._is_open(self.names[names_of[group]], names):
                break
            begin = end
        if is_first:
            # Nothing before it is ready under these names; whoever comes back moves the cursor back.
            self._cursors[names] = begin
        return None if match is None else (begin, end)

    def _is_open(self, name: str, names: frozenset[str] | None) -> bool:
        return (names is None or name in names) and name not in self._paused

    def _pattern(self, names: frozenset[str] | None) -> re.Pattern[bytes] | None:
        """Return the search for the names' lanes, or None when no task of these names was ever seen."""
        seen, pattern = self._patterns.get(names, (-1, None))
        if seen == len(self.names):
            return pattern
        if None in self._paused:
            pattern = None
        elif names is None and not self._paused:
            pattern = re.compile(rb"[^\0]")
        else:
            wanted = self._number_of if names is None else names & self._number_of.keys()
            numbers = [self._number_of[name] for name in wanted if name not in self._paused]
            lanes = sorted({min(number + 1, _SHARED_LANE) for number in numbers})
            pattern = re.compile(b"[" + b"".join(b"\\x%02x" % lane for lane in lanes) + b"]") if lanes else None
        self._patterns[names] = len(self.names), pattern
        return pattern


_LANES = [bytes([lane]) for lane in range(1, _SHARED_LANE + 1)]
"""By number of a name, the last one for all beyond."""

"""Where each task of the queue is: from its id to its place, from its place to its bytes in the file.

A task is known inside by its place (``seq``), its position in publish order in this generation of the file. Tasks come
in groups, one per `publish` record: same session, numbers that follow each other, same name, lines that touch. So one
row per group and one offset per task tell everything, and no id is kept as a string.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from actorq.tasks.ids import IdRange, parse_task_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


class TaskIndex:
    """Groups of tasks in publish order. Grows only; a new generation starts a new one."""

    def __init__(self) -> None:
        self.offsets = array("Q")  # by task: where its line begins
        self.bounds = array("Q", [0])  # group g is tasks bounds[g] .. bounds[g + 1] - 1
        self.names = array("I")  # by group: a number for its name
        self._firsts = array("Q")  # by group: number of its first task in the session
        self._ends = array("Q")  # by group: where its last line ends
        self._sessions = array("I")  # by group: its session, as a number
        self._session_texts: list[str] = []
        # Most sessions of a shell script publish once: those cost a plain int.
        self._groups_of: dict[str, int | _Groups] = {}

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, session: str, first: int, offsets: Sequence[int], end: int, name: int) -> None:
        """Take up a group. Raises ValueError when its numbers do not lie behind those of its session so far."""
        group = len(self._firsts)
        known = self._groups_of.get(session)
        if known is None:
            self._groups_of[session] = group
            self._sessions.append(len(self._session_texts))
            self._session_texts.append(session)
        else:
            groups = _Groups(known, self._firsts[known]) if isinstance(known, int) else known
            self._groups_of[session] = groups
            last = groups.groups[-1]
            if first < groups.firsts[-1] + self.bounds[last + 1] - self.bounds[last]:
                raise ValueError(f"{session}-{first} was published before")
            groups.groups.append(group)
            groups.firsts.append(first)
            self._sessions.append(self._sessions[last])
        self._firsts.append(first)
        self.offsets.extend(offsets)
        self.bounds.append(len(self.offsets))
        self._ends.append(end)
        self.names.append(name)

    def locate(self, session: str, first: int, last: int) -> tuple[int, int] | None:
        """Return the places ``lo, hi`` of the tasks first..last, or None unless all are here, side by side.

        Those of one publish always are; and nobody is to name others in one range, for compaction, which takes away
        what lies between, would make a difference.
        """
        known = self._groups_of.get(session)
        if known is None:
            return None
        bounds = self.bounds
        if isinstance(known, int):
            lo = bounds[known] + first - self._firsts[known]
            hi = lo + last - first + 1
            return (lo, hi) if bounds[known] <= lo and hi <= bounds[known + 1] else None
        at = bisect_right(known.firsts, first) - 1
        if at < 0:
            return None
        group = known.groups[at]
        lo = bounds[group] + first - known.firsts[at]
        hi = lo + last - first + 1
        if lo >= bounds[group + 1]:
            return None
        # A range lies in one group when it is written; compaction may since have cut that group in two.
        while hi > bounds[group + 1]:
            at += 1
            if at == len(known.groups) or known.groups[at] != group + 1:
                return None
            group += 1
            if known.firsts[at] - first != bounds[group] - lo:
                return None
        return lo, hi

    def parts_of(self, ids: IdRange) -> Iterator[tuple[int, int]]:
        """Yield the places ``lo, hi`` of those of the tasks that are here, group by group, by their numbers."""
        known = self._groups_of.get(ids.session)
        if known is None:
            return
        groups = _Groups(known, self._firsts[known]) if isinstance(known, int) else known
        for at in range(max(0, bisect_right(groups.firsts, ids.first) - 1), len(groups.firsts)):
            first = groups.firsts[at]
            if first > ids.last:
                return
            begin, end = self.bounds[groups.groups[at]], self.bounds[groups.groups[at] + 1]
            lo, hi = begin + max(0, ids.first - first), min(end, begin + ids.last - first + 1)
            if lo < hi:
                yield lo, hi

    def seq_of(self, task_id: str) -> int | None:
        """Return the place of a task, or None. Raises ValueError when the text is no id."""
        session, number = parse_task_id(task_id)
        place = self.locate(session, number, number)
        return None if place is None else place[0]

    def last_of(self, session: str) -> int:
        """Return the number of the last task that is here of a session, 0 if there is none."""
        known = self._groups_of.get(session)
        if known is None:
            return 0
        group = known if isinstance(known, int) else known.groups[-1]
        return self._firsts[group] + self.bounds[group + 1] - self.bounds[group] - 1

    def group_of(self, seq: int) -> int:
        """Return the group that the task came in."""
        return bisect_right(self.bounds, seq) - 1

    def groups_in(self, lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
        """Yield each group of the places lo..hi-1, with the part of them that lies in it."""
        group = bisect_right(self.bounds, lo) - 1
        while lo < hi:
            end = min(hi, self.bounds[group + 1])
            yield group, lo, end
            lo = end
            group += 1

    def range_of(self, lo: int, hi: int) -> IdRange:
        """Return the ids of the places lo..hi-1, which belong together as `locate` demands."""
        group = bisect_right(self.bounds, lo) - 1
        first = self._firsts[group] + lo - self.bounds[group]
        return IdRange(self._session_texts[self._sessions[group]], first, first + hi - lo - 1)

    def is_range(self, lo: int, hi: int) -> bool:
        """Tell whether the places lo..hi-1 have numbers of one session that follow each other."""
        first, last = self.range_of(lo, lo + 1), self.range_of(hi - 1, hi)
        return first.session == last.session and last.first - first.first == hi - 1 - lo

    def fitting(self, lo: int, hi: int, limit: int) -> int:
        """Return the end of as many tasks from ``lo`` as fit into ``limit`` bytes, but at least one."""
        return max(lo + 1, bisect_right(self.offsets, self.offsets[lo] + limit, lo, hi) - 1)

    def id_of(self, seq: int) -> str:
        """Return the id of a task."""
        group = bisect_right(self.bounds, seq) - 1
        return f"{self._session_texts[self._sessions[group]]}-{self._firsts[group] + seq - self.bounds[group]}"

    def session_of(self, group: int) -> str:
        """Return the session that published the group."""
        return self._session_texts[self._sessions[group]]

    def end_of(self, seq: int) -> int:
        """Return the offset in the file at which the task's line ends."""
        group = bisect_right(self.bounds, seq) - 1
        return self.offsets[seq + 1] if seq + 1 < self.bounds[group + 1] else self._ends[group]

    def span_of(self, lo: int, hi: int) -> tuple[int, int]:
        """Return offset and length in the file of the lines of lo..hi-1.

        Within one group these are task lines and nothing else; between two groups there are other lines to skip.
        """
        begin = self.offsets[lo]
        return begin, self.end_of(hi - 1) - begin

    def bytes_of(self, lo: int, hi: int) -> int:
        """Return how long the lines of lo..hi-1 are together, without what may stand between groups."""
        return sum(self.end_of(end - 1) - self.offsets[begin] for _, begin, end in self.groups_in(lo, hi))


class _Groups:
    """The groups of a session that published more than once, and the number of the first task of each."""

    __slots__ = ("firsts", "groups")

    def __init__(self, group: int, first: int) -> None:
        self.groups = array("I", [group])
        self.firsts = array("Q", [first])

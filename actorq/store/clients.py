"""Who is connected, and what each consumer has in hand, as far as the log tells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import override


@dataclass(slots=True)
class Session:
    """A publisher that is known and, as far as the log tells, alive."""

    session: str
    pid: int
    start: int
    boot: str
    last_request: int = 0


@dataclass(slots=True)
class ConsumerState:
    """A consumer that is known and, as far as the log tells, alive."""

    session: str
    pid: int
    start: int
    boot: str
    names: frozenset[str] | None
    """None takes every name."""
    max_attempts: int
    max_crashes: int
    last_request: int = 0
    last_no: int = 0
    """The number of its newest assignment, void ones included."""
    outstanding: int = 0
    """How many tasks it has."""
    assignments: dict[int, Assignment] = field(default_factory=dict)
    """By number, oldest first: those of which a task is unfinished."""


class Assignment:
    """Tasks that were handed to a consumer together: the places lo..hi-1, of which `left` are unfinished."""

    __slots__ = ("held", "hi", "left", "lo")

    def __init__(self, lo: int, hi: int) -> None:
        self.lo = lo
        self.hi = hi
        self.left = hi - lo
        self.held = [(lo, hi)]
        """The unfinished ones. What is in here is running, and nothing else is."""

    def release(self, lo: int, hi: int) -> bool:
        """Let go of lo..hi-1 if all of them are held; tell whether."""
        for place, (begin, end) in enumerate(self.held):
            if begin <= lo and hi <= end:
                self.held[place : place + 1] = [part for part in ((begin, lo), (hi, end)) if part[0] < part[1]]
                self.left -= hi - lo
                return True
        return False

    @override
    def __repr__(self) -> str:
        return f"<Assignment {self.lo}..{self.hi - 1}, {self.left} left>"

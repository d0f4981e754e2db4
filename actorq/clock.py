"""Where time comes from. One of the two seams of actorq (the other is the file system): tests put a fake here."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from math import floor
from typing import Protocol, override


class Clock(Protocol):
    """Two kinds of time that must not be mixed."""

    def now(self) -> float:
        """Seconds that only go forward: for deadlines, back-off and rates."""

    def wall(self) -> float:
        """Seconds since 1970 in UTC, which may jump: for display and for `not before`."""


class SystemClock(Clock):
    """The kernel's clocks."""

    @override
    def now(self) -> float:
        return time.monotonic()

    @override
    def wall(self) -> float:
        return time.time()


SYSTEM_CLOCK: Clock = SystemClock()


def to_iso(wall: float) -> str:
    """Return a wall time as ISO 8601 in UTC with milliseconds, always 24 characters."""
    return _to_the_millisecond(floor(wall * 1000))


@lru_cache(maxsize=1)  # a writer who commits four times in a millisecond spares three in four
def _to_the_millisecond(millisecond: int) -> str:
    second, millisecond = divmod(millisecond, 1000)
    return f"{_to_the_second(second)}.{millisecond:03d}Z"


@lru_cache(maxsize=1)
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat().removesuffix("+00:00")


def from_iso(text: str) -> float:
    """Return the wall time that `to_iso` wrote."""
    return datetime.fromisoformat(text).timestamp()

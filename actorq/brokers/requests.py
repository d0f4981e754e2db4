"""Numbered requests, seen from the sender: go-back-N.

A session numbers what it asks of the writer 1, 2, 3 ... and keeps each request until it is acknowledged. The writer
accepts only the next number, answers an older one as done, and reports a gap. So a request may be sent as often as
one likes, and one that died in the hand of a broker is repeated together with all that came after it: nothing is
lost, nothing counts twice, nothing changes its order.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Request(NamedTuple):
    """A request that is not acknowledged yet; it takes the numbers `first` to `last`."""

    first: int
    last: int
    frame: bytes


class Requests:
    """The requests of one session. `number` is the last one given out; a session begins with request 0."""

    __slots__ = ("_unacknowledged", "acknowledged", "number")

    def __init__(self) -> None:
        self.number = -1
        self.acknowledged = -1
        """The highest number that was acknowledged."""
        self._unacknowledged: deque[Request] = deque()

    def __repr__(self) -> str:
        return f"<Requests up to {self.number}: {len(self._unacknowledged)} not acknowledged>"

    def __len__(self) -> int:
        return len(self._unacknowledged)

    @property
    def oldest(self) -> int:
        """The first number that is not acknowledged; the next one when all are."""
        return self._unacknowledged[0].first if self._unacknowledged else self.number + 1

    def add(self, frame: bytes, count: int = 1) -> Request:
        """Keep the frame, which takes the next `count` numbers; the caller sends it."""
        request = Request(self.number + 1, self.number + count, frame)
        self.number += count
        self._unacknowledged.append(request)
        return request

    def acknowledge(self, number: int) -> None:
        """Forget all requests up to the number."""
        self.acknowledged = max(self.acknowledged, number)
        kept = self._unacknowledged
        while kept and kept[0].last <= number:
            kept.popleft()

    def since(self, number: int = 0) -> list[Request]:
        """Return what must be sent again after a gap at the number, or (0) after a new epoch."""
        return [request for request in self._unacknowledged if request.last >= number]

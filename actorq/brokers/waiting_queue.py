"""WaitingQueue: the consumers that could take work, the longest waiting one first.

Each consumer has a credit: how many tasks it may hold. It is sized so that the consumer holds some milliseconds of
work: enough that it never waits for the next push, little enough that no task waits long behind another while some
other consumer idles. A consumer that finishes 50 tasks a second holds one; one that finishes 200,000 holds 4,000.

Where the disk is slow, that is not enough: all that a consumer holds is done long before the next push
comes. So whoever runs dry holds twice what it had done by then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

TARGET_SECONDS = 0.020
"""How much work a consumer may hold: what it runs before it reports, and as much again until the next push is there."""

MAX_ROUND_SECONDS = 0.05
"""A round that takes longer than this is one of a long task, not of a slow disk."""

FORGETTING = 0.9
"""By so much the round counts less with each time that a consumer did not run dry."""

MAX_CREDIT = 8000

MIN_SAMPLE_SECONDS = 0.002
"""Completions are counted over at least this long before they say anything about a rate."""


@dataclass(slots=True)
class Credit:
    """How many tasks one consumer may hold, from how many it has finished lately."""

    tasks: int = 1
    _finished: int = 0
    _since: float | None = None
    _round: float = 0.0
    """How long it took from one push to the next, when it last had nothing to do in between."""

    def busy(self, now: float) -> None:
        """Begin to measure: the consumer has work from here on."""
        if self._since is None:
            self._finished, self._since = 0, now

    def finished(self, count: int, now: float, *, ran_dry: bool = False) -> None:
        """Count completions and adapt: the rate times the target, at most four times as much at a time.

        `ran_dry`: it holds nothing any more, so its rate is that of the way round as well.
        """
        self._finished += count
        if self._since is None or now == self._since:
            return
        seconds = now - self._since
        # If all that it had is done within a moment, that says more of the way round than of its speed: so it may hold
        # more. To wait for a longer sample took half of the time in which 1,000 tasks are run.
        may_hold_more = ran_dry and self._finished / seconds * TARGET_SECONDS > self.tasks
        if seconds < MIN_SAMPLE_SECONDS and not may_hold_more:
            return
        if ran_dry:
            self._round = min(seconds, MAX_ROUND_SECONDS)
        else:
            self._round *= FORGETTING
        # The rate times twice the round is twice what it had: exactly, so it must not be rounded down.
        fits = round(self._finished / seconds * max(TARGET_SECONDS, 2 * self._round), 6)
        # Falling at once matters (a slow handler must not hoard); rising takes a few steps, so one burst proves little.
        # Steps of two took a quarter of the time in which 20,000 tasks are run.
        self.tasks = max(1, min(int(fits), self.tasks * 4, MAX_CREDIT))
        self._finished, self._since = 0, now

    def shrink(self) -> None:
        """Begin anew with one task: the present one takes longer than the rate made believe."""
        self.tasks = 1
        self._round = 0.0
        self.idle()

    def idle(self) -> None:
        """Stop measuring: there is nothing to do, which says nothing about the consumer's speed."""
        self._since = None


@dataclass(slots=True)
class Seat:
    """One consumer as the scheduler sees it."""

    session: str
    names: frozenset[str] | None
    next_no: int
    """The number of its next assignment."""
    held: int = 0
    """Tasks assigned to it and not finished, those included whose assignment is not in the log yet."""
    credit: Credit = field(default_factory=Credit)
    moved: float = 0.0
    """When it last finished something, or got its first task."""
    is_recalled: bool = False
    """What it holds less of next, it has given back and not finished."""

    @property
    def room(self) -> int:
        """How many more tasks it may take; 0 until a quarter of its credit is free, to keep assignments large."""
        free = self.credit.tasks - self.held
        return free if free * 4 >= self.credit.tasks else 0

    @property
    def has_slowed_down(self) -> bool:
        """Whether it holds much more than it would get now: its tasks are longer than those before."""
        return self.held > 2 * self.credit.tasks


class WaitingQueue:
    """The consumers with room, in the order in which they began to wait."""

    def __init__(self) -> None:
        self._waiting: deque[Seat] = deque()
        self._present: set[str] = set()

    def __repr__(self) -> str:
        return f"<WaitingQueue {[seat.session for seat in self._waiting]}>"

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, seat: Seat) -> None:
        """Let a consumer wait, if it has room and does not wait yet."""
        if seat.room and seat.session not in self._present:
            self._waiting.append(seat)
            self._present.add(seat.session)

    def idle(self) -> list[Seat]:
        """Return those who hold nothing."""
        return [seat for seat in self._waiting if seat.held == 0]

    def nothing_to_do(self) -> None:
        """Note that those who wait hold nothing and get nothing: their clocks stop."""
        for seat in self.idle():
            seat.credit.idle()

    def leave(self, session: str) -> None:
        """Take a consumer out: it is dead."""
        if session in self._present:
            self._present.discard(session)
            self._waiting = deque(seat for seat in self._waiting if seat.session != session)

    def take_first(self) -> Seat | None:
        """Remove and return the one that has waited longest."""
        if not self._waiting:
            return None
        seat = self._waiting.popleft()
        self._present.discard(seat.session)
        return seat

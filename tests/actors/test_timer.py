"""Timers, on a clock that the test moves."""

from __future__ import annotations

from actorq.actors.timer import Timers


class HandClock:
    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time


def test_timers_fire_once_when_due_in_the_order_of_their_times():
    clock, done = HandClock(), []
    timers = Timers(clock)
    timers.after(2, lambda: done.append("b"))
    timers.after(1, lambda: done.append("a"))
    timers.after(2, lambda: done.append("c"))
    assert timers.seconds_to_next() == 1
    timers.fire_due()
    assert done == []
    clock.time += 2
    timers.fire_due()
    timers.fire_due()
    assert done == ["a", "b", "c"]
    assert timers.seconds_to_next() is None


def test_a_cancelled_timer_does_nothing_and_nobody_waits_for_it():
    clock, done = HandClock(), []
    timers = Timers(clock)
    timer = timers.after(1, lambda: done.append("never"))
    timers.after(5, lambda: done.append("later"))
    timer.cancel()
    assert not timer.is_pending
    assert timers.seconds_to_next() == 5
    clock.time += 5
    timers.fire_due()
    timer.cancel()
    assert done == ["later"]


def test_one_due_timer_may_cancel_another():
    clock, done = HandClock(), []
    timers = Timers(clock)

    def cancel_the_other():
        other.cancel()

    timers.after(1, cancel_the_other)
    other = timers.after(1, lambda: done.append("never"))
    clock.time += 1
    timers.fire_due()
    assert done == []


def test_a_timer_that_sets_itself_again_at_once_does_not_hold_up_the_rest():
    clock, done = HandClock(), []
    timers = Timers(clock)

    def again():
        done.append("again")
        timers.after(0, again)

    timers.after(0, again)
    timers.fire_due()
    assert done == ["again"]
    assert timers.seconds_to_next() == 0
    timers.after(-5, lambda: done.append("long overdue"))
    timers.fire_due()
    assert done == ["again", "again", "long overdue"]

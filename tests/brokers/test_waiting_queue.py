"""Who waits for work, and for how much."""

from __future__ import annotations

import pytest

from actorq.brokers.waiting_queue import MAX_CREDIT, TARGET_SECONDS, Credit, Seat, WaitingQueue


def sessions_in(waiting):
    """Take all who wait, and return them in order."""
    return [seat.session for seat in iter(waiting.take_first, None)]


def test_consumers_are_served_in_the_order_in_which_they_began_to_wait():
    waiting = WaitingQueue()
    for session in "abc":
        waiting.join(Seat(session, None, 1))

    assert sessions_in(waiting) == ["a", "b", "c"]
    assert waiting.take_first() is None


def test_a_consumer_without_room_does_not_wait():
    waiting = WaitingQueue()

    waiting.join(Seat("a", None, 1, held=1))

    assert len(waiting) == 0


def test_a_consumer_waits_once():
    waiting = WaitingQueue()
    seat = Seat("a", None, 1)

    waiting.join(seat)
    waiting.join(seat)

    assert len(waiting) == 1


def test_a_dead_consumer_leaves():
    waiting = WaitingQueue()
    waiting.join(Seat("a", None, 1))
    waiting.join(Seat("b", None, 1))

    waiting.leave("a")

    assert sessions_in(waiting) == ["b"]


def finish(credit, per_second, seconds, now=0.0):
    """Let a consumer finish tasks at a steady rate, reported each 3 ms."""
    credit.busy(now)
    owed = 0.0
    for step in range(round(seconds / 0.003)):
        owed += per_second * 0.003
        done, owed = int(owed), owed - int(owed)
        if done:
            credit.finished(done, now + (step + 1) * 0.003)


def test_a_fast_consumer_may_hold_what_it_finishes_in_the_target_time():
    credit = Credit()

    finish(credit, per_second=100_000, seconds=0.2)

    assert 0.8 * 100_000 * TARGET_SECONDS <= credit.tasks <= 1.2 * 100_000 * TARGET_SECONDS


def test_a_slow_consumer_holds_one_task():
    credit = Credit()

    finish(credit, per_second=50, seconds=1)

    assert credit.tasks == 1


def test_a_consumer_that_becomes_slow_loses_its_credit_with_the_next_report():
    credit = Credit()
    finish(credit, per_second=100_000, seconds=0.2)

    credit.finished(1, now=1.2)

    assert credit.tasks == 1


def test_credit_is_bounded():
    credit = Credit()

    finish(credit, per_second=10_000_000, seconds=0.5)

    assert credit.tasks == MAX_CREDIT


def test_time_without_work_says_nothing_about_speed():
    credit = Credit()
    finish(credit, per_second=100_000, seconds=0.2)
    before = credit.tasks

    credit.idle()
    credit.busy(100.0)
    credit.finished(500, 100.005)

    assert credit.tasks >= before * 0.9


def rounds(credit, seconds_of_a_round, seconds_of_a_task, number):
    """Let a consumer finish all that it may hold, again and again, and wait for the next push each time."""
    now = 0.0
    for _ in range(number):
        credit.busy(now)
        now += seconds_of_a_round + credit.tasks * seconds_of_a_task
        credit.finished(credit.tasks, now, ran_dry=True)
    return credit.tasks


@pytest.mark.parametrize("disk", [0.004, 0.006, 0.012, 0.03, 0.045])
def test_on_a_slow_disk_a_consumer_holds_enough_to_be_at_work_most_of_the_time(disk):
    tasks = rounds(Credit(), disk, 0.0001, 30)

    assert tasks * 0.0001 >= min(disk, 0.05 - disk) * 0.45
    assert tasks * 0.0001 <= 0.1


def test_after_a_few_rounds_a_fast_consumer_holds_thousands():
    assert rounds(Credit(), 0.002, 0.000003, 7) > 3000


def test_where_a_round_takes_a_moment_a_few_of_them_are_enough():
    assert rounds(Credit(), 0.0004, 0.000001, 6) > 1000


def test_a_single_task_that_is_done_in_a_moment_says_nothing_against_a_fast_consumer():
    credit = Credit()
    finish(credit, per_second=100_000, seconds=0.2)
    before = credit.tasks

    credit.idle()
    credit.busy(100.0)
    credit.finished(1, 100.0005, ran_dry=True)
    credit.busy(100.0005)
    credit.finished(1, 100.0005, ran_dry=True)

    assert credit.tasks == before


def test_a_consumer_that_becomes_slow_one_short_task_at_a_time_loses_its_credit():
    credit = Credit()
    finish(credit, per_second=100_000, seconds=0.2)

    now = 1.0
    for _ in range(100):
        credit.busy(now)
        now += 0.0015
        credit.finished(1, now, ran_dry=True)

    assert credit.tasks <= TARGET_SECONDS / 0.0015 + 1


def test_what_is_finished_while_nobody_measures_is_not_counted_later():
    credit = Credit()

    credit.finished(500, 1.0)
    credit.busy(1.0)
    credit.finished(1, 1.05)

    assert credit.tasks == 1


@pytest.mark.parametrize("task", [0.05, 0.2, 3.0])
def test_a_consumer_with_long_tasks_holds_one_though_it_runs_dry_after_each(task):
    assert rounds(Credit(), 0.004, task, 30) == 1


def test_a_slow_round_is_forgotten_by_who_does_not_run_dry_any_more():
    credit = Credit()
    rounds(credit, 0.045, 0.0001, 20)
    assert credit.tasks > 20

    now = 10.0
    for _ in range(60):
        now += 0.004
        credit.finished(4, now)

    assert credit.tasks == 1000 * TARGET_SECONDS

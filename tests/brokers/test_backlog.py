"""How much may be unfinished: what fits behind what is there, and what the writer takes to be there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.brokers.backlog import Backlog, Limits


@pytest.mark.parametrize(
    ("limits", "tasks", "size", "room"),
    [
        (Limits(), 10**6, 10**9, 4),
        (Limits(max_pending=10), 0, 0, 4),
        (Limits(max_pending=10), 7, 10**9, 3),
        (Limits(max_pending=10), 10, 0, 0),
        (Limits(max_pending=10), 12, 0, 0),
        (Limits(max_pending_bytes=100), 10**6, 60, 4),
        (Limits(max_pending_bytes=100), 0, 61, 3),
        (Limits(max_pending_bytes=100), 0, 100, 0),
        (Limits(max_pending_bytes=100), 0, 500, 0),
        (Limits(max_pending=10, max_pending_bytes=100), 8, 60, 2),
        (Limits(max_pending=10, max_pending_bytes=100), 8, 85, 1),
    ],
)
def test_so_many_of_four_tasks_of_ten_bytes_fit_in(limits, tasks, size, room):
    assert limits.room(tasks, size, [10, 10, 10, 10]) == room


@given(
    st.lists(st.integers(1, 100), max_size=20),
    st.integers(0, 30),
    st.integers(1, 30),
    st.integers(0, 500),
    st.integers(1, 800),
)
def test_as_many_fit_as_leave_both_limits_kept_and_not_one_less(lengths, tasks, max_pending, size, max_bytes):
    room = Limits(max_pending, max_bytes).room(tasks, size, lengths)

    def is_kept(count):
        return tasks + count <= max_pending and size + sum(lengths[:count]) <= max_bytes

    assert room == 0 or is_kept(room)
    assert room == len(lengths) or not is_kept(room + 1)


def test_only_a_limit_that_is_set_is_one():
    assert not Limits()
    assert Limits(max_pending=0)
    assert Limits(max_pending_bytes=0)


def test_a_refusal_says_which_limit_is_used_up():
    limits = Limits(max_pending=2000, max_pending_bytes=100_000)

    assert limits.why_full(2000, 50) == "2,000 tasks are not finished, and max_pending is 2,000"
    assert limits.why_full(3, 99_999) == "tasks not finished take 99,999 bytes, and max_pending_bytes is 100,000"
    assert "max_pending_bytes is 7" in Limits(max_pending_bytes=7).why_full(3, 7)


@pytest.fixture
def backlog():
    backlog = Backlog(Limits(max_pending=10), start=1000)
    backlog.tell(1000, 2, 200)
    return backlog


def standing(backlog):
    return backlog.tasks, backlog.bytes


def test_nothing_is_known_before_the_scheduler_has_read_as_far_as_this_writer_began():
    backlog = Backlog(Limits(max_pending=10), start=1000)

    backlog.tell(999, 2, 200)
    assert not backlog.is_known

    backlog.tell(1000, 3, 300)
    assert backlog.is_known
    assert standing(backlog) == (3, 300)


def test_what_is_published_counts_at_once_and_only_once_when_the_scheduler_has_read_it(backlog):
    backlog.take(1, 10)
    backlog.take(2, 20)
    assert standing(backlog) == (5, 230)
    backlog.written(1100)
    assert standing(backlog) == (5, 230)

    backlog.tell(1100, 4, 220)  # one of them is finished already
    assert standing(backlog) == (4, 220)


def test_what_the_scheduler_has_not_read_yet_is_added_to_what_it_says(backlog):
    for end in (1100, 1200, 1300):
        backlog.take(1, 10)
        backlog.written(end)

    backlog.tell(1200, 0, 0)

    assert standing(backlog) == (1, 10)


def test_what_found_no_room_on_the_disk_does_not_count(backlog):
    backlog.take(3, 30)
    backlog.refused()
    assert standing(backlog) == (2, 200)

    backlog.take(1, 10)
    backlog.written(1100)
    assert standing(backlog) == (3, 210)
    assert repr(backlog) == "<Backlog 3 tasks, 210 bytes of Limits(max_pending=10, max_pending_bytes=None)>"

"""How many more may be published: what the scheduler told last, and what the writer has taken since."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.brokers.backlog import Backlog, Limits

LENGTHS = st.lists(st.integers(1, 100), max_size=20)


@given(LENGTHS, st.integers(0, 30), st.integers(1, 30), st.integers(0, 500), st.integers(1, 800))
def test_as_many_fit_as_leave_both_limits_kept_and_not_one_less(lengths, tasks, max_pending, size, max_bytes):
    room = Limits(max_pending, max_bytes).room(tasks, size, lengths)

    def is_kept(count):
        return tasks + count <= max_pending and size + sum(lengths[:count]) <= max_bytes

    assert room == 0 or is_kept(room)
    assert room == len(lengths) or not is_kept(room + 1)


@pytest.mark.parametrize(
    ("limits", "is_one"),
    [(Limits(), False), (Limits(max_pending=1), True), (Limits(max_pending_bytes=1), True)],
)
def test_no_limit_is_none_and_lets_everything_in(limits, is_one):
    assert bool(limits) == is_one
    assert is_one or limits.room(10**9, 10**12, [1, 2, 3]) == 3


def test_what_is_full_is_said_with_both_numbers():
    limits = Limits(max_pending=1000, max_pending_bytes=5000)

    assert limits.why_full(1000, 10) == "1,000 tasks are not finished, and max_pending is 1,000"
    assert limits.why_full(999, 5000) == "tasks not finished take 5,000 bytes, and max_pending_bytes is 5,000"


def test_nothing_is_known_before_the_scheduler_has_told_as_of_where_the_writer_began():
    backlog = Backlog(Limits(max_pending=10), start=500)

    backlog.tell(499, 3, 30)  # it told a writer before
    assert not backlog.is_known

    backlog.tell(500, 4, 40)
    assert (backlog.is_known, backlog.tasks, backlog.bytes) == (True, 4, 40)


def test_what_is_in_a_group_that_was_refused_does_not_count():
    backlog = Backlog(Limits(max_pending=10))
    backlog.tell(0, 2, 20)

    backlog.take(3, 30)
    assert (backlog.tasks, backlog.bytes) == (5, 50)
    backlog.refused()

    assert (backlog.tasks, backlog.bytes) == (2, 20)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 50)), max_size=12), st.data())
def test_a_publish_counts_once_however_far_the_scheduler_has_read(groups, data):
    backlog = Backlog(Limits(max_pending=10))
    ends = list(accumulate(size for _, size in groups))
    for (tasks, size), end in zip(groups, ends, strict=True):
        backlog.take(tasks, size)
        backlog.written(end)
    # The scheduler tells what is not finished as of some commit; nothing is finished here.
    seen = data.draw(st.integers(0, len(groups)))
    backlog.tell(ends[seen - 1] if seen else 0, sum(t for t, _ in groups[:seen]), sum(s for _, s in groups[:seen]))

    assert backlog.tasks == sum(tasks for tasks, _ in groups)
    assert backlog.bytes == sum(size for _, size in groups)
    assert repr(backlog).startswith(f"<Backlog {backlog.tasks} tasks")

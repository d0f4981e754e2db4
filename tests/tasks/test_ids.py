"""Ids: what is written is what is read, and nothing else is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.tasks.ids import IdRange, check_session, new_session, parse_range, parse_task_id, task_id

NUMBER = st.integers(1, 10**15 - 1)
SESSION = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=12, max_size=12)


def test_sessions_are_new_each_time():
    sessions = {new_session() for _ in range(1000)}

    assert len(sessions) == 1000
    assert all(re.fullmatch("[a-z2-7]{12}", session) for session in sessions)
    assert {letter for session in sessions for letter in session} == set("abcdefghijklmnopqrstuvwxyz234567")


@given(SESSION, NUMBER)
def test_an_id_is_read_as_it_was_written(session, number):
    assert parse_task_id(task_id(session, number)) == (session, number)


@given(SESSION, NUMBER, NUMBER)
def test_a_range_is_read_as_it_was_written(session, one, other):
    span = IdRange(session, min(one, other), max(one, other))

    assert IdRange.parse(str(span)) == span
    assert parse_range(str(span)) == (span.session, span.first, span.last)


@pytest.mark.parametrize(("first", "last"), [(3, 7), (3, 3), (7, 7), (4, 6)])
def test_a_range_covers_its_parts(first, last):
    assert IdRange("a" * 12, 3, 7).covers(IdRange("a" * 12, first, last))
    assert not IdRange("a" * 12, 3, 7).covers(IdRange("b" * 12, first, last))


@pytest.mark.parametrize(("first", "last"), [(2, 3), (2, 8), (7, 8), (8, 9), (1, 2)])
def test_a_range_does_not_cover_what_reaches_beyond_it(first, last):
    assert not IdRange("a" * 12, 3, 7).covers(IdRange("a" * 12, first, last))


def test_a_range_knows_its_ids():
    span = IdRange("k3v9x2m4q7ab", 9, 11)

    assert span.count == 3
    assert span.ids() == ["k3v9x2m4q7ab-9", "k3v9x2m4q7ab-10", "k3v9x2m4q7ab-11"]
    assert str(IdRange("k3v9x2m4q7ab", 9, 9)) == "k3v9x2m4q7ab-9"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "k3v9x2m4q7ab",
        "k3v9x2m4q7ab-",
        "k3v9x2m4q7ab-0",
        "k3v9x2m4q7ab-01",
        "k3v9x2m4q7ab--1",
        "k3v9x2m4q7ab-+1",
        "k3v9x2m4q7ab-1 ",
        "k3v9x2m4q7ab-1\n",
        "k3v9x2m4q7ab-\u0661",
        "k3v9x2m4q7ab-1_0",
        "K3V9X2M4Q7AB-1",
        "k3v9x2m4q7a-1",
        'k3v9x2m4q7"b-1',
        "k3v9x2m4q7ab-1234567890123456",
    ],
)
def test_what_is_no_id_is_refused(text):
    with pytest.raises(ValueError, match="is not a task id"):
        parse_task_id(text)
    with pytest.raises(ValueError, match="is not a range"):
        IdRange.parse(text)


@pytest.mark.parametrize(
    "text", ["k3v9x2m4q7ab-2..1", "k3v9x2m4q7ab-2..2", "k3v9x2m4q7ab-1...2", "k3v9x2m4q7ab-1..2..3"]
)
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="is not a range"):
        IdRange.parse(text)


def test_a_session_is_checked():
    assert check_session("k3v9x2m4q7ab") == "k3v9x2m4q7ab"
    with pytest.raises(ValueError, match="is not a session"):
        check_session('k3v9x2m4q7a"')

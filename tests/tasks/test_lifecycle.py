"""The life cycle: the table, and that the drawing is the table."""

from __future__ import annotations

import re

import pytest

from actorq.errors import InvalidTransitionError
from actorq.tasks import lifecycle
from actorq.tasks.lifecycle import TRANSITIONS, TaskEvent, TaskState, advance
from actorq.tasks.policy import Policy, after_crash, after_failure


def test_every_state_has_a_row():
    assert set(TRANSITIONS) == set(TaskState)


@pytest.mark.parametrize("event", TaskEvent)
@pytest.mark.parametrize("state", TaskState)
def test_every_step_follows_the_table_or_is_refused(state, event):
    if event in TRANSITIONS[state]:
        assert advance(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(InvalidTransitionError, match=f"a task that is {state} cannot {event}"):
            advance(state, event)


def test_the_drawing_is_the_table():
    drawn = re.findall(r"^    (\w+) +--(\w+)--> +(\w+)", lifecycle.__doc__ or "", re.MULTILINE)

    assert sorted(drawn) == sorted(
        (state, event, after) for state, row in TRANSITIONS.items() for event, after in row.items()
    )


def test_every_event_happens_somewhere():
    assert {event for row in TRANSITIONS.values() for event in row} == set(TaskEvent)


@pytest.mark.parametrize(("failures", "event"), [(1, "retry"), (2, "retry"), (3, "bury"), (4, "bury")])
def test_the_last_attempt_that_fails_is_the_end(failures, event):
    assert after_failure(failures, max_attempts=3) == event


@pytest.mark.parametrize(("crashes", "event"), [(1, "release"), (2, "bury"), (3, "bury")])
def test_the_last_crash_is_the_end(crashes, event):
    assert after_crash(crashes, max_crashes=2) == event


@pytest.mark.parametrize(
    "limits", [{"max_attempts": 0}, {"max_crashes": -1}, {"max_attempts": 2.0}, {"max_crashes": True}]
)
def test_limits_are_numbers_from_one_on(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        Policy(**limits)

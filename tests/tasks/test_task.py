"""Task and TaskIn: what users touch."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from actorq.tasks.lifecycle import TaskState
from actorq.tasks.task import Failure, Task, TaskIn, check_name, tasks_in_hand


def test_a_task_in_hand_is_a_task():
    (quick,) = tasks_in_hand([{"id": "k3v9x2m4q7ab-1", "name": "mail", "data": {"to": "a"}}], 2)
    slow = Task("k3v9x2m4q7ab-1", "mail", {"to": "a"}, TaskState.RUNNING, 2)

    assert quick == slow
    assert repr(quick) == repr(slow)
    assert quick.attempt == quick.attempts == 2
    assert (quick.errors, quick.result, quick.started_at) == ((), None, None)


def in_hand():
    return tasks_in_hand([{"id": "k3v9x2m4q7ab-1", "name": "mail", "data": [1]}], 1)[0]


@pytest.mark.parametrize("task", [in_hand(), Task("a", "b", 1, errors=(Failure("E", "m"),))])
def test_a_task_travels(task):
    assert pickle.loads(pickle.dumps(task)) == task
    assert dataclasses.asdict(task).keys() == {field.name for field in dataclasses.fields(Task)}
    assert copy.deepcopy(task) == task
    assert dataclasses.replace(task, attempts=7).attempts == 7


def test_a_task_does_not_change():
    task = in_hand()

    with pytest.raises(dataclasses.FrozenInstanceError):
        task.state = TaskState.DONE
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        task.colour  # noqa: B018  # that is the claim


def test_a_task_without_a_name_is_named_default():
    assert TaskIn({"n": 1}) == TaskIn({"n": 1}, "default")


@pytest.mark.parametrize("name", ["a", "résumé", "a b", "x" * 128])
def test_a_name_is_printable_and_short(name):
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\x1b[31m", "\ud800", "\u202egnp.exe", None, b"a"])
def test_what_cannot_be_a_name_is_refused(name):
    with pytest.raises(ValueError, match="cannot name a task"):
        check_name(name)

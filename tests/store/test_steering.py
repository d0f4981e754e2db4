"""Steering, as the log tells it: what each record does, what a wish comes to, and that it may be repeated."""

from __future__ import annotations

import pytest

from actorq.errors import InvalidTransitionError, TaskNotFoundError
from actorq.store import records
from actorq.store.fold import QueueState
from actorq.store.records import error_json
from actorq.store.snapshot import snapshot_pieces
from actorq.store.steering import MOST_TASKS, Wish, decide, fulfilled, wishes_for
from actorq.tasks.ids import IdRange
from actorq.tasks.steering import Verb
from tests.store.log_on_paper import C, P, Paper, Q, S, ids
from tests.store.naive_fold import view_of
from tests.store.test_fold import Scene

ERROR = error_json("ValueError", "no")


@pytest.fixture
def scene():
    """Return a queue with one task in each state: 1 ready, 2 running, 3 done, 4 dead, 5 cancelled."""
    scene = Scene()
    scene.publish(1, 5)
    scene.assign(2, 4, no=1)
    scene.write(records.done_line(ids(3), 1, C, 1), records.failed_line(f"{P}-4", 1, C, 2, "dead", ERROR))
    steer(scene, Verb.CANCEL, ids(5))
    assert scene.states() == ["ready", "running", "done", "dead", "cancelled"]
    return scene


def steer(scene, verb, *ranges, name=None):
    scene.write(records.steered_line(verb, ranges, name, scheduler=S, request=9))


def kill(scene, number, no):
    """Have a ready task fail for good."""
    scene.assign(number, number, no=no)
    scene.write(records.failed_line(f"{P}-{number}", no, C, no + 1, "dead", ERROR))


def test_a_retried_task_begins_anew_and_keeps_its_errors(scene):
    steer(scene, Verb.RETRY, ids(1, 5))

    task = scene.task(4)
    assert (task.state, task.attempts, len(task.errors)) == ("ready", 0, 1)
    assert (task.started_at, task.finished_at) == (None, None)
    assert scene.states() == ["ready", "running", "done", "ready", "cancelled"]
    assert scene.state.next_ready_run(None, 1, limit=9) == (3, 4)
    assert scene.state.scheduler_request == 9


def test_a_cancelled_task_is_not_handed_out(scene):
    steer(scene, Verb.CANCEL, ids(1, 5))

    assert scene.states() == ["cancelled", "running", "done", "dead", "cancelled"]
    assert scene.state.next_ready_run(None, limit=9) is None
    assert scene.task(1).finished_at is not None
    assert scene.state.pending_count == 1


def test_an_assignment_behind_a_cancel_is_void(scene):
    steer(scene, Verb.CANCEL, ids(1))

    scene.assign(1, 1, no=2)

    assert scene.states()[0] == "cancelled"
    assert scene.consumer.last_no == 2


def test_a_purged_task_is_forgotten_and_of_those_done_and_cancelled_the_number_stays(scene):
    before = scene.state.counts()

    steer(scene, Verb.PURGE, ids(1, 5))

    assert [scene.state.seq_of(f"{P}-{number}") for number in range(1, 6)] == [0, 1, None, None, None]
    assert scene.state.counts() == before | {"dead": 0}
    assert scene.state.needed_bytes(None) < scene.state.position


def test_a_compacted_file_has_nothing_of_a_purged_task(scene):
    steer(scene, Verb.PURGE, ids(4, 5))
    steer(scene, Verb.PAUSE, name="work")
    steer(scene, Verb.PAUSE)

    pieces = list(snapshot_pieces(scene.state, scene.paper.read, None))

    copy, new = Paper(2), QueueState()
    for piece in pieces:
        new.apply(copy.write(piece, piece=True))
    assert f'"{P}-4"'.encode() not in b"".join(pieces)
    assert b"ValueError" not in b"".join(pieces)
    assert new.counts() == scene.state.counts()
    assert view_of(new, copy.read) == view_of(scene.state, scene.paper.read)
    assert new.paused == {None, "work"}


def test_a_purge_behind_a_compaction_finds_what_that_has_left():
    """The record names three tasks, of which one has left the file by then: in both files the same is there."""
    scene = Scene()
    scene.publish(1, 3)
    scene.assign(1, 3, no=1)
    for number in (1, 2, 3):
        scene.write(records.done_line(ids(number), 1, C, number))
    copy, new = Paper(2), QueueState()
    for piece in snapshot_pieces(scene.state, scene.paper.read, 2):
        new.apply(copy.write(piece, piece=True))

    line = records.steered_line(Verb.PURGE, [ids(1, 2)], None)
    scene.write(line)
    new.apply(copy.write(line))

    assert new.counts() == scene.state.counts()
    assert new.seq_of(f"{P}-2") is scene.state.seq_of(f"{P}-2") is None
    assert new.seq_of(f"{P}-3") == 1


def test_what_is_paused_is_passed_over_until_it_goes_on():
    scene = Scene()
    scene.publish(1, 2)
    scene.publish(3, 4, name="mail")

    steer(scene, Verb.PAUSE, name="work")
    assert scene.state.next_ready_run(None, limit=9) == (2, 4)
    assert scene.state.next_ready_run(frozenset({"work"}), limit=9) is None
    assert (scene.state.open_count, scene.state.paused_names()) == (2, ["work"])

    steer(scene, Verb.PAUSE)
    assert scene.state.next_ready_run(None, limit=9) is None
    assert (scene.state.open_count, scene.state.paused_names()) == (0, ["work", "mail"])

    steer(scene, Verb.RESUME)
    assert scene.state.next_ready_run(None, limit=9) == (2, 4)
    steer(scene, Verb.RESUME, name="work")
    assert scene.state.next_ready_run(None, limit=9) == (0, 2)
    assert scene.state.paused == frozenset()


def test_names_that_share_a_lane_are_paused_one_by_one():
    scene = Scene()
    for number in range(1, 300):
        scene.publish(number, number, name=f"name {number}")
        if number > 250:
            steer(scene, Verb.CANCEL, ids(1, 250))

    steer(scene, Verb.PAUSE, name="name 260")

    assert scene.state.next_ready_run(None, 259, limit=9) == (260, 261)
    assert scene.state.next_ready_run(frozenset({"name 260", "name 262"}), 259, limit=9) == (261, 262)


# ---------------------------------------------------------------------------------------------------------------
# Wishes


@pytest.mark.parametrize("stranger", [f"{P}-6", f"{Q}-1", "nonsense", ""])
def test_nothing_is_wished_of_a_task_that_is_not_here(scene, stranger):
    with pytest.raises(TaskNotFoundError):
        wishes_for(scene.state, Verb.CANCEL, [f"{P}-1", stranger])


@pytest.mark.parametrize(
    ("verb", "number", "text"),
    [
        (Verb.RETRY, 3, f"{P}-3 is done; only dead tasks are retried"),
        (Verb.PURGE, 2, f"{P}-2 is running; only tasks that are done, dead or cancelled are purged"),
    ],
)
def test_what_cannot_be_wished_is_said_in_words(scene, verb, number, text):
    with pytest.raises(InvalidTransitionError) as caught:
        wishes_for(scene.state, verb, [f"{P}-4", f"{P}-{number}"])

    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("verb", "changed"), [(Verb.RETRY, [ids(4)]), (Verb.CANCEL, [ids(1)]), (Verb.PURGE, [ids(3, 5)])]
)
def test_what_is_decided_is_what_can_be_changed(scene, verb, changed):
    assert decide(scene.state, Wish(verb, (ids(1, 9),), None, "9999")) == changed


def test_a_wish_that_is_repeated_changes_nothing_and_is_answered_the_same(scene):
    wishes = [
        *wishes_for(scene.state, Verb.CANCEL, [f"{P}-1"]),
        *wishes_for(scene.state, Verb.RETRY, [f"{P}-4"]),
        *wishes_for(scene.state, Verb.PURGE, [f"{P}-3", f"{P}-5"]),
    ]
    for wish in wishes:
        steer(scene, wish.verb, *decide(scene.state, wish))
    answers = [fulfilled(scene.state, wish) for wish in wishes]

    assert answers == [[ids(1)], [ids(4)], [ids(3), ids(5)]]
    assert [decide(scene.state, wish) for wish in wishes] == [[], [], []]
    assert [fulfilled(scene.state, wish) for wish in wishes] == answers


def test_a_retry_that_is_repeated_lets_a_task_lie_that_has_died_since(scene):
    [wish] = wishes_for(scene.state, Verb.RETRY, [f"{P}-4"])
    steer(scene, Verb.RETRY, *decide(scene.state, wish))
    kill(scene, 4, no=2)

    assert decide(scene.state, wish) == []
    assert fulfilled(scene.state, wish) == [ids(4)]
    [anew] = wishes_for(scene.state, Verb.RETRY, [f"{P}-4"])
    assert decide(scene.state, anew) == [ids(4)]


def test_what_came_too_late_is_not_said_to_be_cancelled(scene):
    [wish] = wishes_for(scene.state, Verb.CANCEL, [f"{P}-{number}" for number in (1, 2, 3)])
    steer(scene, Verb.CANCEL, *decide(scene.state, wish))

    assert fulfilled(scene.state, wish) == [ids(1)]


def test_many_tasks_become_few_ranges_and_wishes_of_a_bounded_size():
    scene = Scene()
    scene.publish(1, 2500)
    numbers = [*range(2500, 0, -1), 7]

    wishes = wishes_for(scene.state, Verb.CANCEL, [f"{P}-{number}" for number in numbers])

    assert [wish.tasks for wish in wishes] == [
        (IdRange(P, 1, MOST_TASKS),),
        (IdRange(P, MOST_TASKS + 1, 2 * MOST_TASKS),),
        (IdRange(P, 2 * MOST_TASKS + 1, 2500),),
    ]

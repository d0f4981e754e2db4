"""What has happened, as events: they tell what records did, and replaying them leads to the same state."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorq.errors import QueueReplacedError
from actorq.store import records
from actorq.store.compaction import compact
from actorq.store.history import History, HistoryReader
from actorq.tasks.ids import IdRange
from actorq.testing import CrashingFilesystem
from tests.store.log_on_paper import C, P, Paper, S, hello, ids, moment
from tests.store.scenes import BOOT, PATH, open_log
from tests.store.test_fold import ERROR, STEP, Story, publish

BEGIN = records.hello_line(hello(P)) + records.hello_line(hello(C, max_crashes=1)) + records.barrier_line(S)
ASSIGNED = records.assign_line(ids(1, 4), C, 1, S, 1)
OUTCOMES = [
    records.done_result_lines([(f"{P}-1", b'{"by":"somebody4444"}')], 1, C, 1),
    records.failed_line(f"{P}-2", 1, C, 2, "ready", ERROR),
    records.returned_line(ids(3), 1, C, 3),
    records.gone_line(C, "killed by signal 9", f"{P}-4"),
]


def told(*batches, task_id=None):
    paper, history = Paper(), History(task_id)
    return [event for batch in batches for event in history.events_of(paper.write(batch))]


def words(events):
    return [(event.event, event.tasks, event.state) for event in events]


def test_each_change_of_tasks_is_an_event_with_its_time_and_process():
    events = told(BEGIN, publish(1, 4), ASSIGNED, *OUTCOMES)

    assert words(events) == [
        ("joined", None, None),
        ("joined", None, None),
        ("scheduler", None, None),
        ("published", f"{P}-1..4", "ready"),
        ("assigned", f"{P}-1..4", "running"),
        ("done", f"{P}-1", "done"),
        ("failed", f"{P}-2", "ready"),
        ("returned", f"{P}-3", "ready"),
        ("left", None, None),
        ("crashed", f"{P}-4", "dead"),
    ]
    assert [event.commit for event in events] == [1, 1, 1, 2, 3, 4, 5, 6, 7, 7]
    assert [event.at for event in events[3:7]] == [moment(number) for number in (2, 3, 4, 5)]
    assert {(event.session, event.pid) for event in events[4:]} == {(C, 17)}
    failed, crashed = events[6], events[9]
    assert failed.error == {"type": "ValueError", "message": "no such file", "traceback": "Traceback ..."}
    assert (failed.attempt, failed.name, failed.count) == (1, "work", 1)
    assert crashed.error is not None
    assert crashed.error["message"] == "killed by signal 9"


def test_of_one_task_only_its_own_events_are_told():
    events = told(BEGIN, publish(1, 4), ASSIGNED, *OUTCOMES, task_id=f"{P}-2")

    assert words(events) == [
        ("published", f"{P}-2", "ready"),
        ("assigned", f"{P}-2", "running"),
        ("failed", f"{P}-2", "ready"),
    ]


def test_what_came_too_late_is_void():
    late = records.done_line(ids(2), 1, C, 5)
    events = told(BEGIN, publish(1, 4), ASSIGNED, *OUTCOMES[:2], late, ASSIGNED)

    assert words(events)[-2:] == [("void", f"{P}-2", None), ("void", f"{P}-1..4", None)]
    assert "refused" in (events[-2].note or "")


@given(st.lists(STEP, min_size=20, max_size=60))
@settings(deadline=None, max_examples=50)
def test_the_last_event_of_each_task_tells_its_state(steps):
    paper, history = Paper(), History()
    story = Story(paper)
    states = {}
    for batch in (story.begin(), *(paper.write(story.step(*step)) for step in steps)):
        for event in history.events_of(batch):
            if event.tasks is not None and event.state is not None:
                states.update(dict.fromkeys(IdRange.parse(event.tasks).ids(), event.state))
            if event.event == "purged":
                assert event.tasks is not None
                for task_id in IdRange.parse(event.tasks).ids():
                    del states[task_id]

    assert states == {
        history.id_of(seq): history.state_of(seq) for seq in range(len(history)) if not history.is_purged(seq)
    }


@pytest.fixture
def disk():
    disk = CrashingFilesystem()
    log = open_log(disk)
    for batch in (BEGIN + publish(1, 4), ASSIGNED, *OUTCOMES):
        log.write(batch)
        log.sync()
    log.close()
    return disk


def squeeze(disk):
    compact(PATH, boot_id=BOOT, pid=1, filesystem=disk)


def append(disk, lines):
    log = open_log(disk)
    log.write(lines)
    log.close()


def test_a_compacted_file_says_so_and_tells_how_its_tasks_stood(disk):
    squeeze(disk)

    with HistoryReader(PATH, filesystem=disk) as history:
        events = list(history.events())

    assert words(events) == [
        ("compacted", None, None),
        ("published", f"{P}-1..4", "ready"),
        ("kept", f"{P}-2", "ready"),
        ("kept", f"{P}-4", "dead"),
        ("kept", f"{P}-1", "done"),
    ]
    assert events[2].error is not None
    assert events[2].error["type"] == "ValueError"
    assert events[3].note == "1 crashes"


def test_who_follows_goes_on_where_he_was_when_the_file_is_compacted(disk):
    with HistoryReader(PATH, filesystem=disk) as history:
        assert len(list(history.events())) > 5
        squeeze(disk)
        assert list(history.events()) == []
        append(disk, publish(5, 6))
        assert words(history.events()) == [("writer", None, None), ("published", f"{P}-5..6", "ready")]


def test_what_a_compaction_took_away_before_it_was_read_is_told_as_it_stands(disk):
    with HistoryReader(PATH, filesystem=disk) as history:
        list(history.events())
        append(disk, publish(5, 6))
        squeeze(disk)
        events = list(history.events())

    published = [event.tasks for event in events if event.event == "published"]
    assert events[0].event == "compacted"
    # In one run if both came within a millisecond.
    assert published in ([f"{P}-1..6"], [f"{P}-1..4", f"{P}-5..6"])


def test_another_queue_of_the_same_name_is_not_taken_for_this_one(disk):
    with HistoryReader(PATH, filesystem=disk) as history:
        list(history.events())
        disk.unlink(PATH)
        append(disk, publish(1, 2))
        with pytest.raises(QueueReplacedError):
            list(history.events())

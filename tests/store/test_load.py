"""Dump and load: what goes out comes in again, all of it or nothing."""

from __future__ import annotations

import errno
from contextlib import suppress

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorq.errors import DiskFullError, LoadError
from actorq.store import records
from actorq.store.compaction import compact, fold_all
from actorq.store.dump import dump_lines
from actorq.store.fold import QueueState
from actorq.store.load import load
from actorq.store.log_reader import LogReader
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.log_on_paper import P, Paper, hello, ids
from tests.store.scenes import BOOT, PATH, killed_at, open_log
from tests.store.test_fold import STEP, Story

T = "2026-11-23T18:00:02.246Z"
HEAD = b'{"actorq_dump":1}\n'
GOOD = {"id": f"{P}-1", "name": "work", "state": "ready", "published_at": T, "data": 1}


def dumped(disk, path=PATH):
    reader = LogReader(path, filesystem=disk)
    try:
        state, _ = fold_all(reader)
        return list(dump_lines(state, reader.read))
    finally:
        reader.close()


def loaded(lines, disk=None):
    disk = disk or CrashingFilesystem()
    return disk, load(PATH, lines, boot_id=BOOT, pid=1, filesystem=disk)


def lines_with(*tasks):
    return [HEAD, *(orjson.dumps(task, option=orjson.OPT_APPEND_NEWLINE) for task in tasks)]


def a_queue(*batches):
    disk = CrashingFilesystem()
    log = open_log(disk)
    for batch in batches:
        log.write(batch)
    log.close()
    return disk


def content(disk):
    """Return what lies on the disk, under any name."""
    return {name: disk.read_bytes(name) for name in disk.listdir(".")}


@given(st.lists(STEP, min_size=20, max_size=80))
@settings(deadline=None, max_examples=50)
def test_whatever_a_queue_holds_comes_back_byte_for_byte(steps):
    paper, state = Paper(), QueueState()
    story = Story(paper)
    for batch in (story.begin(), *(paper.write(story.step(*step)) for step in steps)):
        state.apply(batch)
    out = list(dump_lines(state, paper.read))

    disk, done = loaded(out)

    assert dumped(disk) == out
    expected = state.counts()
    expected["ready"] += expected.pop("running")
    assert done.counts == expected | {"running": 0}
    open_log(disk).close()  # and a writer finds nothing to complain of
    assert dumped(disk) == out


def test_finished_tasks_leave_in_the_order_in_which_they_finished():
    def done(number, second):
        return GOOD | {"id": f"{P}-{number}", "state": "done", "finished_at": f"2026-11-23T18:00:{second:02}.000Z"}

    disk, _ = loaded(lines_with(done(1, 30), done(2, 10), done(3, 20)))

    compact(PATH, boot_id=BOOT, pid=1, keep_done=1, filesystem=disk)

    assert [orjson.loads(line).get("id") for line in dumped(disk)] == [None, f"{P}-1"]
    assert orjson.loads(dumped(disk)[0])["removed"] == {"done": 2}


def test_a_dump_comes_in_behind_the_tasks_of_a_queue_and_those_who_publish_there_go_on():
    begin = records.hello_line(hello("publisher444")) + records.publish_lines(
        ids(1, 2, "publisher444"), "a", [b"1"] * 2
    )
    disk = a_queue(begin)
    _, done = loaded([b'{"actorq_dump":1,"tasks":1,"removed":{"done":3}}\n', *lines_with(GOOD)[1:]], disk)

    log = open_log(disk)
    log.write(records.publish_lines(ids(3, session="publisher444"), "a", [b"3"]))
    log.close()

    tasks = [orjson.loads(line) for line in dumped(disk)]
    assert [task["id"] for task in tasks[1:]] == ["publisher444-1", "publisher444-2", f"{P}-1", "publisher444-3"]
    assert tasks[0]["removed"] == {"done": 3}
    assert (done.tasks, done.generation, done.counts["ready"], done.counts["done"]) == (1, 2, 3, 3)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{bad", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"id":"x","id":"y"}', "twice"),
        (orjson.dumps(GOOD)[:-3], "not JSON"),
        (orjson.dumps(GOOD | {"data": "X"}).replace(b'"X"', b"1e999"), "inf"),
        (orjson.dumps(GOOD | {"data": "X"}).replace(b'"X"', b"[" * 300 + b"]" * 300), "deep"),
        (orjson.dumps(GOOD | {"data": "X"}).replace(b'"X"', b"18446744073709551616"), "2^64"),
        (orjson.dumps(GOOD | {"data": "x" * (1 << 20)}), "bytes are more than"),
        (orjson.dumps({"id": f"{P}-1"}), "'state' is missing"),
        (orjson.dumps(GOOD | {"id": "one"}), "not a task id"),
        (orjson.dumps(GOOD | {"id": 1}), "not text"),
        (orjson.dumps(GOOD | {"name": ""}), "cannot name a task"),
        (orjson.dumps(GOOD | {"state": "running"}), "'running'"),
        (orjson.dumps(GOOD | {"published_at": "yesterday"}), "not a time"),
        (orjson.dumps(GOOD | {"published_at": "2026-02-31T00:00:00.000Z"}), "day"),
        (orjson.dumps(GOOD | {"state": "done"}), "has a finished_at"),
        (orjson.dumps(GOOD | {"finished_at": T}), "has no finished_at"),
        (orjson.dumps(GOOD | {"started_at": T}), "has no started_at"),
        (orjson.dumps(GOOD | {"result": 1}), "has no result"),
        (orjson.dumps(GOOD | {"failures": 256}), "failures"),
        (orjson.dumps(GOOD | {"errors": [{"type": "E"}]}), "errors"),
        (orjson.dumps(GOOD | {"priority": 1}), "'priority'"),
        (orjson.dumps(GOOD | {"id": f"{P}-7"}), "leave the lines in order"),
    ],
    ids=range(23),
)
def test_a_wrong_line_is_named_and_nothing_is_loaded(line, reason):
    for disk in (CrashingFilesystem(), a_queue(records.publish_lines(ids(1, session="publisher444"), "a", [b"1"]))):
        before = content(disk)
        good = orjson.dumps(GOOD | {"id": f"{P}-7"}) + b"\n"
        with pytest.raises(LoadError) as caught:
            loaded([HEAD, good, line + b"\n"], disk)

        assert caught.value.line == 3
        assert reason in str(caught.value)
        assert "nothing was loaded" in str(caught.value)
        assert content(disk) == before


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"", "beginning of a dump"),
        (b"{}", "beginning of a dump"),
        (b'{"actorq_dump":2}', "version 2"),
        (b'{"actorq_dump":1,"tasks":-1}', "tasks"),
        (b'{"actorq_dump":1,"removed":{"ready":1}}', "removed"),
        (b'{"actorq_dump":1,"tasks":2}', "cut off"),
    ],
)
def test_a_dump_that_is_none_or_not_whole_is_refused(head, reason):
    with pytest.raises(LoadError, match=reason):
        loaded([head + b"\n", *lines_with(GOOD)[1:]])


def test_ids_that_are_there_already_are_counted():
    disk, _ = loaded(lines_with(GOOD, GOOD | {"id": f"{P}-3"}))
    before = disk.read_bytes(PATH)

    with pytest.raises(LoadError, match=f"2 of 3 tasks .*{P}-1"):
        loaded(lines_with(GOOD, GOOD | {"id": f"{P}-3"}, GOOD | {"id": f"{P}-4"}), disk)
    with pytest.raises(LoadError, match=f"{P}-3 is in the queue already"):
        loaded(lines_with(GOOD | {"id": f"{P}-3"}), disk)
    with pytest.raises(LoadError, match="older than"):
        loaded(lines_with(GOOD | {"id": f"{P}-2"}), disk)
    assert disk.read_bytes(PATH) == before


def test_what_a_publisher_that_is_at_work_would_publish_next_is_refused():
    disk = a_queue(records.hello_line(hello(P)) + records.publish_lines(ids(1), "work", [b"1"]))

    with pytest.raises(LoadError, match="still at work"):
        loaded(lines_with(GOOD | {"id": f"{P}-2"}), disk)


@pytest.mark.parametrize("place", ["compaction.begun", "compaction.piece", "compaction.checked", "new_file.replacing"])
def test_killed_anywhere_on_the_way_the_queue_is_what_it_was(place):
    disk = a_queue(records.publish_lines(ids(1, session="publisher444"), "a", [b"1"]))
    before = dumped(disk)
    with killed_at(disk, place):
        loaded(lines_with(GOOD), disk)
    after = disk.after_kill()

    open_log(after).close()
    assert dumped(after) == before

    loaded(lines_with(GOOD), after)
    assert after.listdir(".") == [PATH]


def test_a_power_cut_leaves_the_old_queue_or_the_whole_new_one():
    disk = a_queue(records.publish_lines(ids(1, session="publisher444"), "a", [b"1"]))
    old = dumped(disk)
    new = dumped(loaded(lines_with(GOOD), disk.after_kill())[0])
    calls = len(disk.calls)
    seen = set()
    for at in range(calls, calls + 60):
        now = disk.after_kill()
        now.fail_call(len(now.calls) + at - calls, Stopped(), taken=0)
        with suppress(Stopped):
            loaded(lines_with(GOOD), now)
        for left in now.crash_states(limit=4, seed=at):
            open_log(left).close()
            lines = dumped(left)
            assert lines in (old, new)
            seen.add(lines == new)
    assert seen == {False, True}


def test_a_full_disk_is_told_and_leaves_nothing_behind():
    for disk in (CrashingFilesystem(), a_queue(records.publish_lines(ids(1, session="publisher444"), "a", [b"1"]))):
        before = content(disk)
        disk.fail_next("write", errno.ENOSPC, skip=2)
        with pytest.raises(DiskFullError):
            loaded(lines_with(GOOD), disk)
        assert content(disk) == before

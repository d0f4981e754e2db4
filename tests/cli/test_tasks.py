"""ls, show, and Queue.tasks: tasks as people and programs see them."""

from __future__ import annotations

import pytest

from actorq import Queue, TaskState
from tests import handlers
from tests.cli.shell import on_a_terminal, one_line
from tests.helpers import wait_until


def echo_or_fail(task):
    if task.data == {"fails": True}:
        raise ValueError("no \x1b[2Jpicture")
    return task.data


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory):
    """A queue with tasks that are done, dead and ready."""
    queue = Queue(tmp_path_factory.mktemp("queue") / "Queue.json", max_attempts=2)
    ids = queue.publish_many([{"n": 1}, {"fails": True}, "x" * 500])
    with queue.running(1, handler=echo_or_fail):
        queue.join(timeout=30)
    ids += queue.publish_many(["wäit\x1b[2J", None], name="later")
    return queue, ids


def test_tasks_come_in_publish_order_and_may_be_narrowed(lived_in):
    queue, ids = lived_in

    assert [task.id for task in queue.tasks()] == ids
    assert list(queue.tasks()) == [queue.get(task_id) for task_id in ids]
    assert [task.state for task in queue.tasks("dead")] == [TaskState.DEAD]
    assert [task.id for task in queue.tasks(["dead", "ready"])] == [ids[1], *ids[3:]]
    assert [task.id for task in queue.tasks(name="later")] == ids[3:]
    assert [task.id for task in queue.tasks("done", "later")] == []
    assert [task.id for task in queue.tasks(limit=2)] == ids[3:]
    assert [task.id for task in queue.tasks(["done", "dead"], limit=1)] == [ids[2]]


def test_tasks_that_nobody_published_are_none(tmp_path):
    assert list(Queue(tmp_path / "Queue.json").tasks()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_does_not_exist_is_refused_at_once(lived_in):
    queue, _ = lived_in
    with pytest.raises(ValueError, match=r"waiting.*ready, scheduled"):
        queue.tasks("waiting")
    with pytest.raises(ValueError, match="limit"):
        queue.tasks(limit=-1)


def test_tasks_are_those_of_the_moment_whatever_is_published_meanwhile(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    ids = queue.publish_many(range(3))
    tasks = queue.tasks()
    first = next(tasks)
    queue.publish_many(range(3))

    assert [first.id, *(task.id for task in tasks)] == ids


def test_ls_lists_the_newest_last_and_says_nothing_matched_with_3(actorq, lived_in):
    queue, ids = lived_in

    words = actorq("ls", "--queue", queue.path)
    lines = words.out.splitlines()

    assert words.status == 0
    assert lines[0].split() == ["id", "name", "state", "age", "attempts", "payload"]
    assert [line.split()[0] for line in lines[1:]] == ids
    assert (
        len(
            {line.index(word) for line, word in zip(lines[1:], ["done", "dead", "done", "ready", "ready"], strict=True)}
        )
        == 1
    )
    assert lines[3].endswith(f'"{"x" * 500}"')
    assert "\x1b" not in words.out
    assert [actorq("ls", "--queue", queue.path, "--limit", n).out.count("\n") for n in (0, 1, 2)] == [6, 2, 3]
    none = actorq("ls", "--queue", queue.path, "--state", "cancelled")
    assert (none.status, one_line(none.out)) == (3, True)
    none = actorq("ls", "--queue", queue.path, "--name", "nobody", "--json")
    assert (none.status, none.out) == (3, "")


def test_ls_and_show_write_the_same_json(actorq, lived_in):
    queue, ids = lived_in

    listed = actorq("ls", "--queue", queue.path, "--json").lines
    shown = actorq("show", *ids, "--queue", queue.path, "--json").lines

    assert listed == shown
    assert [task["id"] for task in listed] == ids
    dead = listed[1]
    assert (dead["state"], dead["attempts"], dead["data"], dead["result"]) == ("dead", 2, {"fails": True}, None)
    assert [error["type"] for error in dead["errors"]] == ["ValueError"] * 2
    assert dead["finished_at"].endswith("Z")
    assert dead["errors"][1]["at"] == dead["finished_at"]
    assert "\x1b" not in actorq("ls", "--queue", queue.path, "--json").out


def test_show_tells_everything_and_nothing_from_the_file_moves_the_cursor(actorq, lived_in):
    queue, ids = lived_in

    ran = actorq("show", ids[1], ids[0], "--queue", queue.path)

    assert ran.status == 0
    assert "error 2 of 2" in ran.out
    assert r"ValueError: no \x1b[2Jpicture" in ran.out
    assert "Traceback (most recent call last):" in ran.out
    assert '"fails": true' in ran.out
    assert "result" in ran.out
    assert "\x1b" not in ran.out


def test_show_names_the_ids_that_are_not_there_in_one_line(actorq, lived_in):
    queue, ids = lived_in

    ran = actorq("show", "aaaaaaaaaaaa-1", ids[0], "nonsense", "--queue", queue.path)

    assert ran.status == 3
    assert one_line(ran.err), ran
    assert "'aaaaaaaaaaaa-1', 'nonsense'" in ran.err
    assert ids[0] in ran.out


def test_show_says_which_process_has_a_running_task(actorq, tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(1, handler=handlers.wait_for_file):
        task_id = queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        running = actorq("show", task_id).out
        until.touch()
        queue.join(timeout=30)

    assert "running, with consumer" in running


def test_a_terminal_gets_colours_and_short_lines(lived_in):
    queue, _ = lived_in

    listed = on_a_terminal("ls", "--queue", str(queue.path))

    assert "\x1b[31mdead\x1b[0m" in listed
    assert "..." in listed
    assert "x" * 100 not in listed
    assert "\x1b" not in on_a_terminal("ls", "--queue", str(queue.path), NO_COLOR="1").replace("\r\x1b[K", "")

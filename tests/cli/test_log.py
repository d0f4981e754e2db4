"""log: what has happened, for people and for programs, once and as it goes on."""

from __future__ import annotations

import signal

import orjson
import pytest

from actorq import Queue
from tests import handlers
from tests.cli.shell import background, on_a_terminal, one_line


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory):
    """A queue in which one task was done, one has failed for good, and one waits under another name."""
    queue = Queue(tmp_path_factory.mktemp("queue") / "Queue.json", max_attempts=2)
    done = queue.publish(1, name="echo")
    dead = queue.publish("\x1b[2J", name="fail")
    queue.handler("echo")(handlers.echo)
    queue.handler("fail")(handlers.fail)
    with queue.running(1):
        queue.join(timeout=30)
    return queue, done, dead


def test_the_life_of_a_task_from_publish_to_its_end(actorq, lived_in):
    queue, done, dead = lived_in

    lives = [actorq("log", task, "--queue", queue.path, "--json").lines for task in (done, dead)]
    words = actorq("log", dead, "--queue", queue.path)

    assert [event["event"] for event in lives[0]] == ["published", "assigned", "done"]
    assert [event["event"] for event in lives[1]] == ["published", "assigned", "failed", "assigned", "failed"]
    assert [event["attempt"] for event in lives[1]] == [None, 1, 1, 2, 2]
    assert lives[1][-1]["state"] == "dead"
    assert lives[1][-1]["at"] == actorq("show", dead, "--queue", queue.path, "--json").json["finished_at"]
    assert words.status == 0
    assert words.out.count("\n") == 5
    assert r"ValueError: cannot do \x1b[2J  then dead" in words.out
    assert "\x1b" not in words.out


def test_of_the_whole_queue_the_last_events_are_told(actorq, lived_in):
    queue, _, _ = lived_in

    everything = actorq("log", "-n", 0, "--queue", queue.path, "--json").lines
    last = actorq("log", "-n", 3, "--queue", queue.path, "--json").lines

    assert {"writer", "joined", "published", "assigned", "done", "failed", "left"} <= {e["event"] for e in everything}
    assert last == everything[-3:]
    assert actorq("log", "--queue", queue.path).out.count("\n") == len(everything)


def test_a_task_that_is_not_there_is_one_line_and_status_3(actorq, lived_in):
    queue, _, _ = lived_in
    for task_id in ("aaaaaaaaaaaa-1", "nonsense"):
        ran = actorq("log", task_id, "--follow", "--queue", queue.path)
        assert (ran.status, ran.out) == (3, "")
        assert one_line(ran.err), ran


def test_it_follows_until_ctrl_c(here):
    queue = Queue("Queue.json")
    first = queue.publish(1)
    with background("log", "--follow", "--json", "--queue", queue.path) as process:
        events = [orjson.loads(process.stdout.readline()) for _ in range(2)]
        second = queue.publish(2)
        while events[-1]["event"] != "published" or events[-1]["tasks"] == first:
            events.append(orjson.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert events[-1]["tasks"] == second
    assert (process.returncode, err) == (0, "")


def test_on_a_terminal_failures_stand_out(lived_in):
    queue, _, dead = lived_in

    assert "\x1b[31mfailed" in on_a_terminal("log", dead, "--queue", str(queue.path))

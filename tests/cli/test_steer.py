"""retry, cancel, purge, pause and resume, as a shell sees them."""

from __future__ import annotations

import pytest

from actorq import Queue
from tests import handlers
from tests.cli.shell import one_line


@pytest.fixture
def queue(here):
    return Queue(here / "Queue.json", max_attempts=1)


@pytest.fixture
def mixed(queue):
    """Return the ids of a queue with two dead tasks, one done, and two that wait; each other one is `mail`."""
    ids = [queue.publish({"n": n}, name=name) for n, name in enumerate(("mail", "work"))]
    with queue.running(1, handler=handlers.fail):
        queue.join(timeout=30)
    ids.append(queue.publish(None, name="mail"))
    with queue.running(1, handler=handlers.nothing):
        queue.join(timeout=30)
    return [*ids, *[queue.publish(None, name=name) for name in ("work", "mail")]]


def states(queue, ids):
    return [str(queue.get(task_id).state) for task_id in ids]


def test_single_tasks_are_retried_cancelled_and_purged(actorq, queue, mixed):
    assert actorq("retry", mixed[1]).out == "1 task ready again\n"
    assert actorq("cancel", mixed[3], mixed[2]).out == f"1 task cancelled\n{mixed[2]} is done, and stays so\n"
    assert actorq("purge", mixed[0], mixed[3]).out == "2 tasks purged\n"

    assert states(queue, [mixed[1], mixed[2], mixed[4]]) == ["ready", "done", "ready"]
    assert queue.counts() == {"ready": 2, "scheduled": 0, "running": 0, "done": 1, "dead": 0, "cancelled": 1}


def test_all_tasks_of_a_state_and_a_name_are_meant(actorq, queue, mixed):
    assert actorq("retry", "--all", "--name", "mail", "--json").json == {"id": mixed[0]}
    assert actorq("cancel", "--all", "--name", "work").out == "1 task cancelled\n"
    assert states(queue, mixed) == ["ready", "dead", "done", "cancelled", "ready"]

    asked = actorq("purge", "--dead", "--cancelled")
    assert (asked.status, asked.err) == (1, "actorq purge: 2 tasks would be forgotten; to do it: --yes\n")
    assert actorq("purge", "--dead", "--cancelled", "--yes").out == "2 tasks purged\n"
    assert actorq("purge", "--done", "--yes", "--name", "mail").status == 0
    assert queue.counts() == {"ready": 2, "scheduled": 0, "running": 0, "done": 1, "dead": 0, "cancelled": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ("retry", "--all", "--name", "nobody"),
        ("cancel", "--all", "--name", "nobody"),
        ("purge", "--cancelled", "--yes"),
        ("retry", "k3v9x2m4q7ab-17"),
        ("cancel", "nonsense"),
        ("resume",),
        ("resume", "mail"),
    ],
    ids=" ".join,
)
def test_status_3_when_nothing_matched(actorq, queue, arguments):
    queue.publish(1)

    ran = actorq(*arguments)

    assert ran.status == 3
    assert (ran.out + ran.err).count("\n") == 1
    assert queue.counts()["ready"] == 1


def test_a_task_that_cannot_be_retried_is_named_in_one_line(actorq, queue):
    task_id = queue.publish(1)

    ran = actorq("retry", task_id)

    assert (ran.status, ran.err) == (1, f"actorq retry: {task_id} is ready; only dead tasks are retried\n")


@pytest.mark.parametrize(
    "arguments",
    [("retry",), ("cancel", "k3v9x2m4q7ab-17", "--all"), ("purge", "k3v9x2m4q7ab-17", "--name", "x"), ("pause", "")],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_2(actorq, here, arguments):
    ran = actorq(*arguments)

    assert ran.status == 2
    assert one_line(ran.err), ran
    assert list(here.iterdir()) == []


def test_what_is_paused_is_said_and_shown_by_info(actorq, queue):
    queue.publish(1, name="mail")

    assert actorq("pause", "mail").out == "mail is paused; to let it go on: actorq resume mail\n"
    assert actorq("pause", "--json").json == {"paused": [None, "mail"]}
    assert queue.paused() == [None, "mail"]
    assert actorq("info", "--json").json["paused"] == [None, "mail"]
    assert "paused  the whole queue, mail; to go on: actorq resume [NAME]" in actorq("info").out
    assert actorq("resume").out == "the whole queue goes on\n"
    other = actorq("resume", "work")
    assert (other.status, other.err) == (3, "actorq resume: work is not paused; what is: mail\n")
    assert actorq("resume", "mail", "--json").json == {"paused": []}
    assert "paused" not in actorq("info").out


def test_brokers_that_run_are_asked(actorq, queue):
    with queue.running(0):
        task_id = queue.publish(1)
        assert actorq("cancel", task_id).out == "1 task cancelled\n"
        assert actorq("purge", "--cancelled", "--yes").out == "1 task purged\n"

"""Handlers that do the worst: the queue goes on, the task ends as the rules say, and its record names the cause."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import orjson
import pytest

from actorq import Queue
from actorq.brokers.consumer_broker import RECALL_SECONDS
from actorq.testing import armed_failpoints
from tests import handlers, hostile
from tests.faults.test_kills import descendants, kill, pids_of, system_of, wait_for_successor
from tests.helpers import limit, wait_until


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    queue.handler("innocent")(handlers.echo)
    return queue


@pytest.fixture
def stray():
    """Return a list for the pids of processes that a handler has left behind."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def run_among_innocents(queue, *culprits, data=None):
    """Run a task for each of these handlers between innocent ones; return them once all work has ended."""
    for handler in culprits:
        queue.handler(handler.__name__)(handler)
    with queue.running(2):
        before = queue.publish_many(range(20), name="innocent")
        ids = [queue.publish(data, name=handler.__name__) for handler in culprits]
        after = queue.publish_many(range(20), name="innocent")
        queue.join(timeout=20)

    innocent = [queue.get(each) for each in (*before, *after)]
    assert [task.result for task in innocent] == [*range(20), *range(20)]
    assert [task.errors for task in innocent] == [()] * 40
    orjson.loads(queue.path.read_bytes())
    return [queue.get(task_id) for task_id in ids]


def wait_for_done(queue, number):
    wait_until(lambda: queue.counts()["done"] == number, what=f"{number} tasks to be done")


CRASHES = {
    hostile.segfault: "killed by signal 11 (SIGSEGV)",
    hostile.abort: "killed by signal 6 (SIGABRT)",
    hostile.killed_by_the_kernel: "killed by signal 9 (SIGKILL)",
    hostile.real_time_signal: "killed by signal 35",
    hostile.exit_0: "exit status 0",
    hostile.exit_7: "exit status 7",
    hostile.close_all_fds: "exit status 1",
    hostile.take_all_fds: "exit status 1",
}


def test_a_handler_that_takes_its_process_with_it_is_dead_after_three_crashes_and_the_record_says_how(queue):
    before = descendants(os.getpid())
    for task, cause in zip(run_among_innocents(queue, *CRASHES), CRASHES.values(), strict=True):
        assert (task.state, task.attempts) == ("dead", 3), task
        assert [error.type for error in task.errors] == ["ConsumerDied"] * 3, task
        assert [cause in error.message for error in task.errors] == [True] * 3, (task.name, task.errors)

    wait_until(lambda: descendants(os.getpid()) <= before, what="what is left of the tree to end")


FAILURES = {
    hostile.raise_odd: ("Odd", "out"),
    hostile.exit_by_exception: ("SystemExit", "no more"),
    hostile.interrupt: ("KeyboardInterrupt", ""),
    hostile.recurse: ("RecursionError", "maximum recursion depth exceeded"),
    hostile.raise_silent: ("SilentError", "<no text: str() of it raised ValueError>"),
    hostile.raise_leaving: ("LeavingError", "<no text: str() of it raised SystemExit>"),
    hostile.raise_surrogates: ("ValueError", "? and ?"),
    hostile.raise_10_mb: ("ValueError", "e" * 8000),
}
OUT_OF_MEMORY = {hostile.take_10_gib: ("MemoryError", "")}  # apart: it leaves little to the process that it ran in


@pytest.mark.parametrize("failures", [FAILURES, OUT_OF_MEMORY], ids=["", "out of memory"])
def test_a_handler_that_raises_whatever_it_may_be_has_failed_three_times_and_its_process_lives(queue, failures):
    tasks = run_among_innocents(queue, *failures)

    for task, (kind, message) in zip(tasks, failures.values(), strict=True):
        assert (task.state, task.attempts) == ("dead", 3), task
        assert [(error.type, error.message) for error in task.errors] == [(kind, message)] * 3, task
        assert all(task.name in error.traceback for error in task.errors), task
        assert all(len(error.traceback) <= 8000 for error in task.errors), task


COMPLAINTS = {
    hostile.too_large: "bytes are more than",
    hostile.too_deep: "nested more than 64 deep",
    hostile.endless: "nested more than 64 deep",
    hostile.not_a_number: "$.n: nan is not JSON",
    hostile.liar: "nobody may know",
}


def test_a_result_that_cannot_be_kept_is_an_error_at_once(queue):
    for task, complaint in zip(run_among_innocents(queue, *COMPLAINTS), COMPLAINTS.values(), strict=True):
        assert (task.state, task.attempts) == ("dead", 1), task
        assert complaint in task.errors[0].message, task


MANY_LISTS: list[list[int]] = [[]] * 340_000
"""Not 1 MiB of text, and 20 MB once it is parsed."""


def leave_no_room(pid):
    """Leave a process no memory for those: its parser segfaults then."""
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))


@pytest.mark.parametrize("before", [0, 20], ids=["alone", "among others"])
def test_a_text_that_no_process_survives_to_parse_is_given_up_and_is_all_that_is(queue, before):
    with armed_failpoints() as points:
        ids = queue.publish_many(range(before), name="innocent")
        deadly = queue.publish(MANY_LISTS, name="innocent")
        ids += queue.publish_many(range(20), name="innocent")
        pushed = points.lay("consumer.pushed", "stop")
        with queue.running(1):
            for _ in range(60):
                leave_no_room(points.wait_for(pushed).pid)
                stopped, pushed = pushed, points.lay("consumer.pushed", "stop")
                points.let_go_on(stopped)
                points.wait_for(pushed)  # the same process again, or the next one
                if queue.get(deadly).state == "dead":
                    break
            points.let_go_on(pushed)
            queue.join(timeout=20)

    assert [error.type for error in queue.get(deadly).errors] == ["ConsumerDied"] * 3
    assert {queue.get(each).errors for each in ids} == {()}
    assert queue.counts() == queue.counts() | {"done": len(ids), "dead": 1}


def test_crashes_and_failures_are_counted_apart(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_attempts=2, max_crashes=2)
    with queue.running(1, handler=hostile.crash_then_fail):
        task_id = queue.publish(None)
        queue.join(timeout=20)

    task = queue.get(task_id)
    assert [error.type for error in task.errors] == ["ConsumerDied", "ValueError", "ValueError"]
    assert (task.state, task.attempts) == ("dead", 3)


def test_a_handler_that_never_lets_go_of_the_interpreter_stops_nobody_else_and_can_be_killed(queue, tmp_path):
    queue.handler("hostile")(hostile.hold_the_gil)
    note = tmp_path / "pid"
    with queue.running(2):
        task_id = queue.publish(str(note), name="hostile")
        for n in (1, 2):
            wait_until(lambda: note.exists() and note.read_text() != "", what="the handler to run")
            time.sleep(2 * RECALL_SECONDS)  # from here on it is known to run long, and nothing is put behind it
            queue.publish_many(range(50), name="innocent")
            wait_for_done(queue, 50 * n)
            assert queue.get(task_id).state == "running"
            pid = int(note.read_text())
            note.unlink()
            kill(pid)
        wait_until(lambda: note.exists() and note.read_text() != "")
        kill(int(note.read_text()))
        queue.join(timeout=30)

    assert queue.get(task_id).state == "dead"
    assert {error.message for error in queue.get(task_id).errors} == {"killed by signal 9 (SIGKILL)"}


def test_what_a_handler_changes_in_its_process_disturbs_no_later_task(queue, tmp_path):
    queue.handler("hostile")(hostile.disturb)
    with queue.running(1):
        for n in range(3):
            disturbed = queue.publish(None, name="hostile")
            after = queue.publish(n, name="innocent")
            queue.join(timeout=30)
            assert (queue.get(disturbed).state, queue.get(disturbed).errors) == ("done", ())
            assert (queue.get(after).result, queue.get(after).attempts) == (n, 1)
        consumer = pids_of(queue)["consumer-1"]
        begin = time.monotonic()
    assert time.monotonic() - begin < 5  # the thread that it left running is not waited for
    assert not Path(f"/proc/{consumer}").exists()
    assert {path.stat().st_mode & 0o777 for path in queue.path.parent.glob("Queue.json*")} == {0o600}


def test_garbage_on_the_standard_streams_goes_there_and_nowhere_else(tmp_path):
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent("""
            from actorq import Queue
            from tests import hostile
            queue = Queue("Queue.json")
            if __name__ == "__main__":
                with queue.running(1, handler=hostile.garbage):
                    queue.publish_many(range(5))
                    queue.join(timeout=30)
        """)
    )
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, timeout=30, env=os.environ | {"PYTHONPATH": root}
    )

    assert run.returncode == 0
    assert run.stdout == run.stderr == bytes(range(256)) * 16 * 5
    assert Queue(tmp_path / "Queue.json").counts()["done"] == 5
    orjson.loads((tmp_path / "Queue.json").read_bytes())


@pytest.mark.parametrize("leave_behind", [hostile.leave_a_child, hostile.leave_a_daemon])
def test_a_process_that_a_handler_leaves_behind_holds_up_neither_a_restart_nor_the_end(queue, stray, leave_behind):
    queue.handler("hostile")(leave_behind)
    with queue.running(1):
        task_id = queue.publish(None, name="hostile")
        queue.join(timeout=30)
        stray.append(queue.get(task_id).result)
        assert Path(f"/proc/{stray[0]}").exists()
        held = {path.name: str(path.readlink()) for path in Path(f"/proc/{stray[0]}/fd").iterdir()}

        consumer = pids_of(queue)["consumer-1"]
        begin = time.monotonic()
        kill(consumer)
        wait_for_successor(queue, "consumer-1", consumer)
        queue.publish(1, name="innocent")
        queue.join(timeout=30)
        kill(system_of(queue).supervisor_pid)
        queue.publish(2, name="innocent")
        queue.join(timeout=30)
        took = time.monotonic() - begin
        begin = time.monotonic()
    assert took < limit(2), "a restart waits for the stray process"
    assert time.monotonic() - begin < limit(2), "the end waits for the stray process"

    # Its locks are free, and it holds nothing of the queue's.
    assert {fd for fd, target in held.items() if target.startswith(str(queue.path))} == set()
    with queue.running(1, timeout=0):
        queue.publish(3, name="innocent")
        queue.join(timeout=30)
    assert queue.counts()["done"] == 4
    assert Path(f"/proc/{stray[0]}").exists()


def test_a_handler_may_publish_into_its_own_queue_but_neither_wait_for_it_nor_host_it(queue):
    published, waits, hosts = run_among_innocents(
        queue, hostile.publish_here, hostile.join_here, hostile.host_here, data=str(queue.path)
    )

    assert published.state == "done"
    assert queue.get(published.result).result == "more"
    assert waits.state == "dead"
    assert "waits for itself" in waits.errors[0].message
    assert hosts.state == "dead"
    assert {error.type for error in hosts.errors} == {"QueueLockedError"}
    assert str(os.getpid()) in hosts.errors[0].message  # it is told who does

"""Fail points: the list and the code agree, off they are a look at a flag, and on each does once what it is told."""

from __future__ import annotations

import ast
import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import actorq
from actorq import DiskFullError, Queue, failpoints
from actorq.actors.exits import ExitKind
from actorq.actors.linux import process_start_time, process_status
from actorq.failpoints import POINTS, Kind
from actorq.testing import NotTakenError, armed_failpoints
from tests import handlers
from tests.faults.test_kills import system_of
from tests.helpers import wait_until

ROOT = Path(actorq.__file__).parent


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


@cache
def places_in_the_code():
    """Return the call and the statement around it for each place that the package passes."""
    return list(_places_in_the_code())


def _places_in_the_code():
    for path in ROOT.rglob("*.py"):
        if path.name in ("failpoints.py", "testing.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for child in ast.iter_child_nodes(node):
                call = child.value if isinstance(child, ast.Expr) else None
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "failpoints.hit":
                    yield call, node


def test_each_name_of_the_list_is_passed_at_one_place_and_no_other_name_is():
    names = Counter(ast.literal_eval(call.args[0]) for call, _ in places_in_the_code())

    assert set(names) == set(POINTS)
    assert [name for name, times in names.items() if times > 1] == []


def test_a_place_that_is_not_armed_costs_a_look_at_a_flag():
    for call, statement in places_in_the_code():
        assert isinstance(statement, ast.If), ast.unparse(call)
        assert ast.unparse(statement.test) == "failpoints.ARMED"
        assert len(statement.body) == 1
        assert statement.orelse == []


def test_a_place_says_what_is_written_exactly_where_the_list_calls_it_a_write():
    for call, _ in places_in_the_code():
        kind, _ = POINTS[ast.literal_eval(call.args[0])]
        assert len(call.args) == (3 if kind is Kind.WRITE else 1), ast.unparse(call)


def is_armed(folder):
    code = "from actorq import failpoints; print(failpoints.ARMED)"
    environment = {key: value for key, value in os.environ.items() if key != failpoints.ENVIRONMENT_VARIABLE}
    if folder is not None:
        environment[failpoints.ENVIRONMENT_VARIABLE] = str(folder)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_nothing_arms_a_process_but_the_folder_of_a_test_that_runs():
    assert is_armed(None).stdout == "False\n"
    with armed_failpoints() as points:
        assert not failpoints.ARMED
        assert is_armed(points.folder).stdout == "True\n"
        points.folder.chmod(0o755)
        assert "not a private folder" in is_armed(points.folder).stderr
    assert is_armed(points.folder).stdout == "False\n"
    assert failpoints.ENVIRONMENT_VARIABLE not in os.environ


def test_a_killed_writer_is_told_from_its_successor_which_is_not_killed_again(queue):
    with armed_failpoints() as points, queue.running(1, handler=handlers.nothing):
        system = system_of(queue)
        watch = system.watch(system.ref("publisher-broker"))
        charge = points.lay("writer.written", "kill")

        ids = [queue.publish(n) for n in range(20)]
        queue.join(timeout=30)

        victim = points.wait_for(charge)
        down = watch.wait(5)
        assert time.time() - victim.at < 10
        assert (down.pid, down.reason.kind) == (victim.pid, ExitKind.KILLED)
        assert {child.restarts for child in system.children() if child.name == "publisher-broker"} == {1}
        assert "writer.written" in points.passed()
    assert [queue.get(task_id).state for task_id in ids] == ["done"] * 20


def test_a_writer_that_is_stopped_at_its_place_holds_everything_up_until_it_goes_on(queue):
    with armed_failpoints() as points, queue.running(0):  # or an outcome might be what comes by
        queue.publish(0)
        charge = points.lay("writer.synced", "stop")
        with pytest.raises(actorq.PublishUnknownError) as unknown:
            queue.publish(1, timeout=0.3)

        pid, start, _ = points.wait_for(charge)
        assert start == process_start_time(pid)
        wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        os.kill(pid, signal.SIGCONT)

        queue.publish(2)
        assert queue.get(unknown.value.task_id).state == "ready"


@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_who_is_slow_to_stop_goes_on_as_well(seconds):
    with armed_failpoints() as points:
        charge = points.lay("writer.synced", "stop")
        pid = os.fork()
        if pid == 0:
            stop = signal.raise_signal

            def stop_late(number):
                time.sleep(seconds)  # no processor for it meanwhile
                stop(number)

            signal.raise_signal = stop_late
            failpoints.arm(str(points.folder))
            failpoints.hit("writer.synced")
            os._exit(7)
        assert points.wait_for(charge).pid == pid

    wait_until(lambda: (status := process_status(pid)) and status.state == "Z")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_write_that_is_cut_short_leaves_so_many_bytes_which_are_kept_aside(queue):
    with armed_failpoints() as points, queue.running(1, handler=handlers.nothing):
        queue.publish(0)
        queue.join(timeout=30)
        charge = points.lay("log.writing", "cut", value=10)
        task_id = queue.publish(1)
        points.wait_for(charge)
        queue.join(timeout=30)

    aside = [path for path in queue.path.parent.iterdir() if ".torn-" in path.name]
    assert [path.stat().st_size for path in aside] == [10]
    assert queue.get(task_id).state == "done"


def test_an_error_is_raised_where_a_system_call_would_have_met_it(queue):
    with armed_failpoints() as points, queue.running(1, handler=handlers.nothing):
        queue.publish(0)
        queue.join(timeout=30)  # from here on nobody writes but for us
        charge = points.lay("log.writing", "raise", value=errno.ENOSPC)
        with pytest.raises(DiskFullError):
            queue.publish(1)
        points.wait_for(charge)
        queue.publish(2)
        queue.join(timeout=30)
    assert queue.counts()["done"] == 2


def test_an_exit_and_a_delay_and_the_third_pass(queue):
    with armed_failpoints(here=True) as points:
        exits = points.lay("direct.synced", "exit", nth=3, value=7)
        pid = os.fork()
        if pid == 0:
            for n in range(4):
                queue.publish(n)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        assert points.wait_for(exits).pid == pid
        assert queue.counts()["ready"] == 3

        delay = points.lay("direct.locked", "delay", value=0.2)
        begin = time.monotonic()
        queue.publish(4)
        assert time.monotonic() - begin >= 0.2
        assert points.wait_for(delay).pid == os.getpid()
    queue.publish(5)
    assert queue.counts()["ready"] == 5


def test_of_many_processes_that_come_by_at_once_one_takes_the_charge():
    with armed_failpoints(here=True) as points:
        charges = [points.lay("child.started", "exit", value=50 + n) for n in range(3)]
        begin, go = os.pipe()
        pids = []
        for _ in range(12):
            pid = os.fork()
            if pid == 0:
                os.close(go)
                os.read(begin, 1)  # the end of file, for all of them at once
                failpoints.hit("child.started")
                os._exit(0)
            pids.append(pid)
        os.close(begin)
        os.close(go)
        exits = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)

        assert exits == [0] * 9 + [50, 51, 52]
        takers = {taken.pid for charge in charges if (taken := points.taken_by(charge)) is not None}
        assert len(takers) == 3
        assert takers <= set(pids)


def test_a_charge_that_was_taken_back_harms_nobody_and_one_that_nobody_takes_is_reported():
    with armed_failpoints(here=True) as points:
        charge = points.lay("child.started", "kill")
        with pytest.raises(NotTakenError, match=r"child\.started"):
            points.wait_for(charge, timeout=0.01)
        assert points.take_back(charge)
        failpoints.hit("child.started")
        assert points.taken_by(charge) is None
        assert not points.take_back(charge)


@pytest.mark.parametrize(
    ("point", "action"), [("writer.synced", "raise"), ("log.syncing", "cut"), ("writer.synced", "explode")]
)
def test_what_cannot_happen_at_a_place_is_refused(point, action):
    with armed_failpoints() as points, pytest.raises(ValueError, match=action):
        points.lay(point, action)


def test_a_test_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with armed_failpoints(here=True) as points:
        points.lay("child.started", "kill")
    failpoints.hit("child.started")  # as a process does that outlives the test
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= before

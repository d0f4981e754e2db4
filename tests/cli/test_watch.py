"""info, again and again: a page that stays in its place, or an object on each line; and the processes it shows."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from functools import partial
from pathlib import Path

import orjson
import pytest

from actorq import Queue
from actorq.attachments import brokers_of
from actorq.observer import Observer
from actorq.store.compaction import compact
from tests import handlers
from tests.cli.shell import COMMAND, background, environment
from tests.helpers import wait_until

BROKERS = ["publisher-broker", "router", "registry", "consumer-broker", "compactor"]
ROLES = {"host", "supervisor", "consumer", *BROKERS}


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


def pids(info):
    return {process["role"]: process["pid"] for process in info.processes}


def is_another(observer, role, pid):
    return pids(observer.look()).get(role, pid) != pid


def test_the_processes_of_a_host_are_named_and_their_restarts_counted(queue):
    with queue.running(1, handler=handlers.nothing), Observer(queue.path) as observer:
        queue.publish_many(range(10))
        queue.join(timeout=30)
        first = observer.look()
        assert [each["role"] for each in first.processes] == ["host", "supervisor", *BROKERS, "consumer"]
        assert [each["depth"] for each in first.processes] == [0, 1, 2, 2, 2, 2, 2, 2]
        assert first.host == {"pid": os.getpid(), "door": "Queue.json.door"}
        assert first.flow is None

        before = pids(first)
        for role in ("router", "publisher-broker"):
            os.kill(before[role], signal.SIGKILL)
            wait_until(partial(is_another, observer, role, before[role]))
            queue.publish(1)
        os.kill(before["consumer"], signal.SIGSTOP)
        wait_until(lambda: {each["state"] for each in observer.look().processes} >= {"stopped"})
        os.kill(before["consumer"], signal.SIGCONT)

        restarts = {each["role"]: each["restarts"] for each in observer.look().processes if each["role"] in ROLES}
        assert restarts == dict.fromkeys(["host", "consumer"]) | dict.fromkeys(["supervisor", *BROKERS], 0) | {
            "router": 1,
            "publisher-broker": 1,
        }
    assert Observer(queue.path).look().processes == []


def test_it_is_told_how_much_waits_in_the_mailboxes(queue):
    with queue.running(0), Observer(queue.path) as observer:
        writer = pids(observer.look())["publisher-broker"]
        brokers = brokers_of(queue.path)
        assert brokers is not None
        os.kill(writer, signal.SIGSTOP)
        for _ in range(10):
            brokers.writer.send(b"no event at all", timeout=1)
        waiting = {each["role"]: each["mailbox"] for each in observer.look().processes}
        os.kill(writer, signal.SIGCONT)

    assert waiting["publisher-broker"] > 1000
    assert (waiting["consumer-broker"], waiting["registry"]) == (0, 0)
    assert (waiting["router"], waiting["host"]) == (None, None)


def test_each_look_tells_what_has_gone_through_since_the_last_also_over_a_compaction(queue):
    queue.publish_many(range(3))
    with Observer(queue.path) as observer:
        observer.look()
        queue.publish_many(range(4))
        second = observer.look()
        compact(queue.path, boot_id="boot", pid=1)
        third = observer.look()

    assert second.flow is not None
    assert third.flow is not None
    assert second.flow["published"] * second.flow["seconds"] == pytest.approx(4, rel=0.5)  # the seconds are rounded
    assert (third.flow["published"], third.counts["ready"], third.generation) == (0, 7, 2)


def test_a_consumer_is_shown_with_its_task_and_since_when(queue, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(1, handler=handlers.wait_for_file), Observer(queue.path) as observer:
        task_id = queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        [consumer] = observer.look().consumers
        until.touch()
        queue.join(timeout=30)
        flow = observer.look().flow

    assert (consumer["tasks"], consumer["alive"]) == ([task_id], True)
    assert consumer["since"].endswith("Z")
    assert flow is not None
    assert flow["start_to_done"]["p99"] >= 0


def test_watching_as_json_writes_an_object_a_line_until_ctrl_c(queue):
    queue.publish(1)
    with background("info", "--watch", "0.05", "--json", "--queue", queue.path) as process:
        looks = [orjson.loads(process.stdout.readline())]
        queue.publish_many(range(5))
        while looks[-1]["counts"]["ready"] != 6:
            looks.append(orjson.loads(process.stdout.readline()))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, "")
    assert looks[0]["flow"] is None
    assert sum(look["flow"]["published"] * look["flow"]["seconds"] for look in looks[1:]) == pytest.approx(5, rel=0.2)


def test_watching_in_a_pipe_writes_block_after_block(queue):
    queue.publish(1)
    with background("info", "--watch", "0.05", "--queue", queue.path) as process:
        blocks = [process.stdout.readline() for _ in range(30)]

    assert blocks.count(f"queue  {queue.path}\n") >= 2
    assert "\x1b" not in "".join(blocks)


def test_the_page_stays_in_its_place_on_a_terminal_and_ends_cleanly(queue):
    queue.publish(1)
    controller, terminal = pty.openpty()
    command = [*COMMAND, "info", "--watch", "0.05", "--queue", str(queue.path)]
    process = subprocess.Popen(command, stdout=terminal, env=environment(TERM="xterm"))
    os.close(terminal)
    written = b""
    while written.count(b"\x1b[J") < 3:
        written += os.read(controller, 65536)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    os.close(controller)

    pages = written.split(b"\x1b[J")
    lines = pages[0].count(b"\n")
    assert pages[1].startswith(b"\r\x1b[K\x1b[%dF" % lines)


def test_a_queue_that_goes_away_ends_the_watch_in_one_line(queue):
    queue.publish(1)
    with background("info", "--watch", "0.05", "--queue", queue.path) as process:
        process.stdout.readline()
        Path(queue.path).unlink()
        _, err = process.communicate(timeout=20)

    assert process.returncode == 1
    assert err.count("\n") == 1
    assert "removed" in err

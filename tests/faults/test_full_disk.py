"""A full disk stops publishing with a clear error, loses nothing, and once there is room all goes on by itself."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from actorq import DiskFullError, Queue, hosting
from actorq.brokers.publisher_broker import RESERVE_BYTES
from actorq.hosting import BROKER_NAMES
from tests import handlers
from tests.faults.doomed import FOLDER, DoomedWriter
from tests.faults.test_kills import kill, pids_of, wait_for_successor
from tests.faults.test_races import is_stopped
from tests.helpers import wait_until


@pytest.fixture
def small_disk(tmp_path):
    """Return a folder on a file system of 4 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if mount.returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Take all room that is left; return the file that holds it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return ballast


def test_publishing_without_brokers_says_so_and_works_again_once_there_is_room(small_disk):
    queue = Queue(small_disk / "Queue.json")
    before = queue.publish_many(range(100))
    ballast = fill(small_disk)

    with pytest.raises(DiskFullError):
        queue.publish("x" * 100_000)
    assert queue.counts()["ready"] == 100

    ballast.unlink()
    after = queue.publish("x" * 100_000)
    assert queue.counts()["ready"] == 101
    assert {queue.get(task_id).state for task_id in [*before, after]} == {"ready"}


def test_while_brokers_run_publishers_hear_it_and_the_rest_waits_for_room(small_disk):
    queue = Queue(small_disk / "Queue.json")
    with queue.running(2, handler=handlers.echo):
        ids = [queue.publish("small")]
        queue.join(timeout=30)
        ballast = fill(small_disk)
        with pytest.raises(DiskFullError) as info:
            ids += queue.publish_many("x" * 50_000 for _ in range(400))
        ids += info.value.published

        ballast.unlink()
        ids.append(queue.publish("again"))
        queue.join(timeout=20)

    assert queue.counts()["done"] == len(ids)
    assert {queue.get(task_id).state for task_id in ids} == {"done"}


def publish_until_full(queue, name="default"):
    """Publish tasks, small ones in the end, until the disk is full for them; return the ids of those that are in."""
    ids: list[str] = []
    for size in (20_000, 2000, 200):
        with suppress(DiskFullError):
            while True:
                ids.append(queue.publish("p" * size, name=name))
    return ids


def test_while_the_disk_is_full_what_runs_becomes_done_or_dead_at_once_and_more_is_handed_out(small_disk, tmp_path):
    queue = Queue(small_disk / "Queue.json", max_crashes=1)
    queue.handler("gate")(handlers.wait_for_file)
    queue.handler("fail")(handlers.fail)
    queue.handler("die")(handlers.die)
    queue.handler("quick")(handlers.echo)
    gates = [{"started": str(tmp_path / f"started{n}"), "until": str(tmp_path / "until")} for n in range(2)]
    with queue.running(2):
        held = queue.publish_many(gates, name="gate")
        wait_until(lambda: all((tmp_path / f"started{n}").exists() for n in range(2)))
        waiting = [queue.publish(n, name=name) for n in range(10) for name in ("quick", "fail", "die")]
        fill(small_disk)
        waiting += publish_until_full(queue, "quick")
        with pytest.raises(DiskFullError):
            queue.publish_many(range(10))

        (tmp_path / "until").touch()
        wait_until(lambda: {queue.get(task_id).state for task_id in held} == {"done"}, timeout=1)
        queue.join(timeout=20)
        with pytest.raises(DiskFullError):
            queue.publish("still full")

    counts = queue.counts()
    assert (counts["dead"], counts["done"]) == (20, len(held) + len(waiting) - 20)


def test_a_consumer_and_every_broker_may_die_while_the_disk_is_full(small_disk, tmp_path):
    queue = Queue(small_disk / "Queue.json", max_crashes=100)
    queue.handler("gate")(handlers.wait_for_file)
    gate = {"started": str(tmp_path / "started"), "until": str(tmp_path / "until")}
    with queue.running(2, handler=handlers.echo):
        task_id = queue.publish(gate, name="gate")
        wait_until((tmp_path / "started").exists)
        ballast = fill(small_disk)
        publish_until_full(queue)
        for name in (*BROKER_NAMES, "consumer-1", "consumer-2"):
            victim = pids_of(queue)[name]
            kill(victim)
            wait_for_successor(queue, name, victim)
        (tmp_path / "until").touch()
        wait_until(lambda: queue.get(task_id).state == "done")

        ballast.unlink()
        queue.publish(None)
        queue.join(timeout=30)

    assert queue.counts()["dead"] == 0


def test_publishers_that_keep_trying_use_up_nothing_that_is_reserved(small_disk, tmp_path):
    queue = Queue(small_disk / "Queue.json")
    gate = {"started": str(tmp_path / "started"), "until": str(tmp_path / "until")}
    with queue.running(1, handler=handlers.wait_for_file):
        task_id = queue.publish(gate)
        wait_until((tmp_path / "started").exists)
        fill(small_disk)
        publish_until_full(queue)
        size, end = queue.path.stat().st_size, end_of(queue)
        for _ in range(300):
            with pytest.raises(DiskFullError):
                queue.publish(None)

        assert queue.path.stat().st_size == size
        assert end_of(queue) - end < 40_000  # each that went away is noted as gone
        (tmp_path / "until").touch()
        wait_until(lambda: queue.get(task_id).state == "done", timeout=1)


def end_of(queue):
    """Return how much of the file is not filler."""
    return len(queue.path.read_bytes().rstrip(b"\n"))


def test_the_reserve_is_there_again_once_there_is_room(small_disk, tmp_path):
    queue = Queue(small_disk / "Queue.json")
    with queue.running(1, handler=handlers.echo):
        for _ in range(3):
            ballast = fill(small_disk)
            publish_until_full(queue)
            ballast.unlink()  # before the join, or what is ready may need more than assignments get of the reserve
            queue.publish("room")
            queue.join(timeout=30)
            assert queue.path.stat().st_size - end_of(queue) > RESERVE_BYTES * 0.9

    assert queue.path.read_bytes().endswith(b"}\n]\n")  # and nothing of it is left at rest


def test_a_compaction_for_which_there_is_no_room_leaves_the_file_as_it_was(small_disk):
    queue = Queue(small_disk / "Queue.json")
    queue.publish_many("p" * 1000 for _ in range(1500))
    fill(small_disk)
    before = queue.path.read_bytes()

    run = subprocess.run(
        [sys.executable, "-m", "actorq", "compact", queue.path], capture_output=True, text=True, check=False
    )

    assert run.returncode == 1
    assert "no room left" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert queue.path.read_bytes() == before
    assert {path.name for path in small_disk.iterdir()} <= {
        "Queue.json",
        "Queue.json.lock",
        "Queue.json.host",
        "ballast",
    }


def test_the_command_line_says_which_are_in_when_the_disk_gets_full(small_disk):
    lines = b"".join(b'"%b"\n' % (b"x" * 50_000) for _ in range(200))

    run = subprocess.run(
        [sys.executable, "-m", "actorq", "publish", "--queue", small_disk / "Queue.json", "-"],
        input=lines,
        capture_output=True,
        check=False,
    )

    assert run.returncode == 1
    assert b"no room left" in run.stderr
    ids = run.stdout.decode().split()
    queue = Queue(small_disk / "Queue.json")
    assert 0 < len(ids) == queue.counts()["ready"]
    assert {queue.get(task_id).state for task_id in ids} == {"ready"}


def kill_when_stopped(pid):
    wait_until(lambda: is_stopped(pid))
    kill(pid)


def test_a_torn_tail_is_cut_and_kept_aside_though_the_disk_is_full(small_disk, tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(hosting, "PublisherBroker", DoomedWriter)
    queue = Queue(small_disk / "Queue.json")
    with queue.running(1, handler=handlers.echo):
        queue.publish("before")
        queue.join(timeout=30)
        fill(small_disk)
        queue.publish("p" * 5000)
        queue.join(timeout=30)
        writer = pids_of(queue)["publisher-broker"]
        (tmp_path / "stop-inside-write").touch()
        threading.Thread(target=kill_when_stopped, args=(writer,)).start()
        task_id = queue.publish("q" * 20_000, timeout=10)
        queue.join(timeout=30)

    assert queue.get(task_id).state == "done"
    [aside] = small_disk.glob("Queue.json.torn-*")
    assert b"qqq" in aside.read_bytes()


def test_outcomes_that_found_no_room_are_recorded_once_there_is_some(small_disk, tmp_path):
    queue = Queue(small_disk / "Queue.json")
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(1, handler=handlers.big_result_after):
        task_id = queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        ballast = fill(small_disk)
        until.touch()
        wait_until(lambda: queue.get(task_id).state == "running", timeout=1)

        ballast.unlink()
        queue.join(timeout=30)

    assert queue.get(task_id).state == "done"
    assert queue.get(task_id).attempts == 1

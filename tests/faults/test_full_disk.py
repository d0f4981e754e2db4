"""A full disk stops publishing with a clear error, loses nothing, and once there is room all goes on by itself."""

from __future__ import annotations

import subprocess

import pytest

from actorq import DiskFullError, Queue
from tests import handlers
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
        queue.join(timeout=10)
        ballast = fill(small_disk)
        with pytest.raises(DiskFullError) as info:
            ids += queue.publish_many("x" * 50_000 for _ in range(400))
        ids += info.value.published

        ballast.unlink()
        ids.append(queue.publish("again"))
        queue.join(timeout=20)

    assert queue.counts()["done"] == len(ids)
    assert {queue.get(task_id).state for task_id in ids} == {"done"}


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
        queue.join(timeout=10)

    assert queue.get(task_id).state == "done"
    assert queue.get(task_id).attempts == 1

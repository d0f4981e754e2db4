"""A publish without brokers ends in one of its three ways, whatever the disk does meanwhile."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from actorq import DiskFullError, PublishRejectedError, PublishUnknownError, Queue
from actorq.actors.linux import boot_id
from actorq.publisher import CHUNK_TASKS, WINDOW
from actorq.store.compaction import compact
from actorq.store.failed_sync import FailedSync, leave_mark
from actorq.store.filesystem import REAL
from actorq.testing import armed_failpoints


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    queue.publish("before")
    return queue


@pytest.fixture
def points():
    with armed_failpoints(here=True) as points:
        yield points


def test_a_sync_that_fails_before_anything_is_written_means_rejected(queue, points):
    with queue.path.open("ab") as file:
        file.truncate(queue.path.stat().st_size - len("]\n"))
        file.write(b',{"publish":"torn')  # by a publisher that was killed; it is cut, and the cut has to be on disk
    points.lay("log.syncing", "raise", value=errno.EIO)
    with pytest.raises(PublishRejectedError, match="nothing was written"):
        queue.publish("refused")

    queue.publish("after")
    assert queue.counts()["ready"] == 2


def test_a_sync_that_fails_behind_the_write_means_unknown(queue, points):
    points.lay("log.syncing", "raise", value=errno.EIO)
    with pytest.raises(PublishUnknownError) as unknown:
        queue.publish("perhaps")

    queue.publish("after")
    assert queue.get(unknown.value.task_id).data == "perhaps"
    assert queue.counts()["ready"] == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_filler_that_cannot_be_taken_off_does_not_hide_that_the_task_is_in(queue, points, number, caplog):
    points.lay("log.closing", "raise", value=number)
    task_id = queue.publish("in")
    queue._close_port()

    assert queue.get(task_id).data == "in"
    assert "not closed cleanly" in caplog.text
    queue.publish("after")
    assert queue.counts()["ready"] == 3


def test_between_two_publishes_the_file_is_anybodys(queue):
    """Whatever others did to it meanwhile, the next publish goes on behind it."""
    other = Queue(queue.path)
    other.publish("by another")
    expected: list[object] = ["before", "by another"]
    for meanwhile in (
        lambda: None,
        other._close_port,
        lambda: compact(queue.path, boot_id=boot_id(), pid=os.getpid()),
        lambda: tear(queue.path),
        lambda: Path(f"{queue.path}.lock").unlink(),
        lambda: Path(f"{queue.path}.host").unlink(),
        lambda: leave_mark(REAL, queue.path, FailedSync(None, None, "a test")),
        lambda: host_for_a_moment(other),
    ):
        meanwhile()
        queue.publish(len(expected))
        expected.append(len(expected))

        assert [task["data"] for task in orjson.loads(queue.path.read_bytes()) if "data" in task] == expected


def tear(path):
    """Leave what a publisher leaves that is killed in the middle of its write."""
    whole = path.read_bytes().rstrip(b"\n")
    path.write_bytes(whole[:-1] + b',{"publish":"torn')


def host_for_a_moment(queue):
    with queue.running(0):
        pass


def test_the_file_is_left_as_it_should_be_at_rest_by_who_exits_and_by_who_closes(tmp_path):
    path = tmp_path / "Queue.json"
    code = f"from actorq import Queue\nqueue = Queue({str(path)!r})\nfor n in range(5): queue.publish(n)\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (run.returncode, run.stderr) == (0, "")
    assert path.read_bytes().endswith(b"}\n]\n")


def test_who_exits_when_the_queue_is_gone_brings_nothing_back(tmp_path):
    path = tmp_path / "folder" / "Queue.json"
    code = (
        f"import shutil, sys\nfrom pathlib import Path\nfrom actorq import Queue\npath = Path({str(path)!r})\n"
        "path.parent.mkdir()\nqueue = Queue(path)\nqueue.publish(1)\nqueue.publish(2)\n"
        "shutil.rmtree(path.parent)\n"
        "if sys.argv[1] == 'empty': path.parent.mkdir()\n"
    )
    for left in ("empty", "nothing"):
        run = subprocess.run([sys.executable, "-c", code, left], capture_output=True, text=True)
        assert (run.returncode, run.stderr) == (0, "")
        assert path.parent.exists() == (left == "empty")
        if left == "empty":
            assert list(path.parent.iterdir()) == []
            path.parent.rmdir()


def test_a_fork_keeps_no_lock_of_a_publisher_that_dies(queue):
    """Parent and child share the descriptors of the locks; were the child's still open, it would hold what it took."""
    queue.publish("opened")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent has published
        os._exit(lock_files_open(queue.path))
    os.close(reader)
    queue.publish("in the parent")
    os.close(writer)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def lock_files_open(path):
    """Return how many descriptors of this process are of the queue."""
    targets = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    return sum(target.startswith(str(path)) for target in targets)


def test_a_full_disk_in_the_middle_of_many_says_which_are_in(queue, points):
    points.lay("log.writing", "raise", nth=2, value=errno.ENOSPC)
    with pytest.raises(DiskFullError) as full:
        queue.publish_many(range(CHUNK_TASKS * WINDOW * 2))

    assert len(full.value.published) == queue.counts()["ready"] - 1 > 0
    assert [queue.get(task_id).data for task_id in full.value.published[:3]] == [0, 1, 2]

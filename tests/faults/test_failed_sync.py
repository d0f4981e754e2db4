"""A disk that does not keep what was written: nothing of it is acknowledged, and nothing is trusted afterwards."""

from __future__ import annotations

import errno
from pathlib import Path

import orjson

from actorq import Queue, hosting
from actorq.testing import armed_failpoints
from tests import handlers
from tests.faults.doomed import WriterOnABadDisk
from tests.faults.test_kills import pids_of, system_of
from tests.helpers import wait_until


def test_after_a_failed_sync_all_starts_anew_on_a_new_file_and_the_publish_goes_through(tmp_path, monkeypatch):
    monkeypatch.setattr(hosting, "PublisherBroker", WriterOnABadDisk)
    queue = Queue(tmp_path / "Queue.json")
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(2, handler=handlers.quick_or_long):
        before = queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        inode = queue.path.stat().st_ino
        supervisor = system_of(queue).supervisor_pid
        consumers = {pid for name, pid in pids_of(queue).items() if name.startswith("consumer-")}

        (tmp_path / "fail").touch()
        after = queue.publish(None)

        assert queue.path.stat().st_ino != inode
        assert system_of(queue).supervisor_pid != supervisor
        assert not consumers & set(pids_of(queue).values())
        until.touch()
        queue.join(timeout=30)

    assert [queue.get(task_id).state for task_id in (before, after)] == ["done", "done"]
    assert queue.get(before).errors == ()
    assert orjson.loads(queue.path.read_bytes())[0]["generation"] == 2
    assert not list(Path(tmp_path).glob("*failed-sync*"))


def test_a_writer_that_dies_of_its_failed_sync_before_the_others_do_takes_them_along_at_its_next_start(tmp_path):
    """The next one finds the mark; it must not cut from the log what consumers that live on have read there."""
    queue = Queue(tmp_path / "Queue.json")
    with armed_failpoints() as points, queue.running(1, handler=handlers.nothing):
        queue.publish(1)
        queue.join(timeout=30)
        consumer = pids_of(queue)["consumer-1"]
        points.lay("log.syncing", "raise", value=errno.EIO)
        killed = points.lay("log.marked", "kill")

        after = queue.publish(2)

        points.wait_for(killed)
        queue.join(timeout=30)
        assert pids_of(queue)["consumer-1"] != consumer

    assert queue.get(after).state == "done"
    assert orjson.loads(queue.path.read_bytes())[0]["generation"] == 2


def test_with_durability_process_what_was_acknowledged_is_synced_soon_after(tmp_path):
    queue = Queue(tmp_path / "Queue.json", durability="process")
    with queue.running(0):
        queue.publish(1)
        queue.publish(2)

        # The watermark in a commit record says what was on disk when it was written.
        def synced():
            queue.publish(3)
            return orjson.loads(queue.path.read_bytes())[-1]["synced"]

        wait_until(lambda: synced() > 0)

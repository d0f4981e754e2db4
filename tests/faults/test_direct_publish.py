"""A publish without brokers ends in one of its three ways, whatever the disk does meanwhile."""

from __future__ import annotations

import errno

import pytest

from actorq import DiskFullError, PublishRejectedError, PublishUnknownError, Queue
from actorq.publisher import CHUNK_TASKS, WINDOW
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
    points.lay("log.syncing", "raise", value=errno.EIO)
    with pytest.raises(PublishRejectedError, match="nothing was written"):
        queue.publish("refused")

    queue.publish("after")
    assert queue.counts()["ready"] == 2


def test_a_sync_that_fails_behind_the_write_means_unknown(queue, points):
    points.lay("log.syncing", "raise", nth=2, value=errno.EIO)
    with pytest.raises(PublishUnknownError) as unknown:
        queue.publish("perhaps")

    queue.publish("after")
    assert queue.get(unknown.value.task_id).data == "perhaps"
    assert queue.counts()["ready"] == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_filler_that_cannot_be_taken_off_does_not_hide_that_the_task_is_in(queue, points, number, caplog):
    points.lay("log.closing", "raise", value=number)
    task_id = queue.publish("in")

    assert queue.get(task_id).data == "in"
    assert "not closed cleanly" in caplog.text
    queue.publish("after")
    assert queue.counts()["ready"] == 3


def test_a_full_disk_in_the_middle_of_many_says_which_are_in(queue, points):
    points.lay("log.writing", "raise", nth=2, value=errno.ENOSPC)
    with pytest.raises(DiskFullError) as full:
        queue.publish_many(range(CHUNK_TASKS * WINDOW * 2))

    assert len(full.value.published) == queue.counts()["ready"] - 1 > 0
    assert [queue.get(task_id).data for task_id in full.value.published[:3]] == [0, 1, 2]

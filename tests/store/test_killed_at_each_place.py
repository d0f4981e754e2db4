"""A writer that dies, or meets an error, at a named place: what was synced stays, and the next writer goes on."""

from __future__ import annotations

import errno

import pytest

from actorq.errors import DiskFullError, SyncFailedError
from actorq.failpoints import POINTS, Kind
from actorq.testing import CrashingFilesystem, armed_failpoints
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_with, killed_at, line, open_log, reopen

ELSEWHERE = {"new_file.taken_over"}
"""Where nobody comes by but in a switch to a compacted file; see test_switch.py."""
PLACES = [name for name in POINTS if name.startswith(("log.", "recovery.", "new_file.")) and name not in ELSEWHERE]
WRITES = [name for name in PLACES if POINTS[name][0] is Kind.WRITE]


class Life:
    """Writers of one file, one after the other: what they have tried to write, and what of it was synced."""

    def __init__(self):
        self.disk = CrashingFilesystem()
        self.tried = []
        self.synced = []

    def commit(self, log, number):
        self.tried.append(line(number))
        log.write(line(number))
        log.sync()
        self.synced.append(line(number))

    def is_kept_by(self, found):
        """Say whether all that was synced was found, and beyond it only what was tried, in order."""
        return set(self.synced) <= set(found) and found == [each for each in self.tried if each in found]


# Each scene prepares, waits for the fail points, and comes by its places.


def a_new_file(life):
    yield
    log = open_log(life.disk)
    life.commit(log, 0)
    log.close()


def a_commit(life):
    log = open_log(life.disk)
    life.commit(log, 0)
    yield
    life.commit(log, 1)
    log.close()


def a_write_without_room(life):
    log = open_log(life.disk)
    life.commit(log, 0)
    points = yield
    points.lay("log.writing", "raise", value=errno.ENOSPC)
    life.commit(log, 1)


def a_sync_that_fails(life):
    log = open_log(life.disk)
    life.commit(log, 0)
    points = yield
    points.lay("log.syncing", "raise", value=errno.EIO)
    life.commit(log, 1)


def a_torn_end(life, boot_id=BOOT):
    life.tried = [line(0), line(1)]
    life.synced = [line(0)]
    life.disk.write_bytes(PATH, disk_with(life.tried).read_bytes(PATH)[:-30])
    yield
    log = open_log(life.disk, boot_id=boot_id)
    life.commit(log, 2)
    log.close()


def a_torn_end_after_a_power_cut(life):
    return a_torn_end(life, NEXT_BOOT)


SCENES = {
    "log.opened": a_torn_end,
    "log.writing": a_commit,
    "log.written": a_commit,
    "log.syncing": a_commit,
    "log.synced": a_commit,
    "log.closing": a_commit,
    "log.taking_back": a_write_without_room,
    "log.sync_failed": a_sync_that_fails,
    "log.marked": a_sync_that_fails,
    "recovery.torn": a_torn_end,
    "recovery.keeping": a_torn_end,
    "recovery.kept": a_torn_end,
    "recovery.blanking": a_torn_end,
    "recovery.blanked": a_torn_end,
    "recovery.rewriting": a_torn_end_after_a_power_cut,
    "recovery.rewritten": a_torn_end_after_a_power_cut,
    "new_file.replacing": a_torn_end_after_a_power_cut,
}
"""Which of them leads to a place; a new file to all others."""


def begin(place):
    """Return a life, and its scene up to where somebody may come by the place."""
    life = Life()
    scene = SCENES.get(place, a_new_file)(life)
    next(scene)
    return life, scene


@pytest.mark.parametrize(
    ("place", "action"), [*((place, "kill") for place in PLACES), *((place, "cut") for place in WRITES)]
)
def test_whoever_is_killed_at_a_place_leaves_what_was_synced_to_the_next_writer(place, action):
    life, scene = begin(place)
    with killed_at(life.disk, place, action) as points:
        scene.send(points)

    assert life.is_kept_by(reopen(life.disk.after_kill()))
    for left in life.disk.crash_states(limit=12):  # the power goes with him
        assert life.is_kept_by(reopen(left, NEXT_BOOT))


ERRORS = {
    ("log.writing", errno.ENOSPC): DiskFullError,
    ("log.writing", errno.EIO): SyncFailedError,
    ("log.syncing", errno.ENOSPC): SyncFailedError,
    ("log.syncing", errno.EIO): SyncFailedError,
    ("log.taking_back", errno.ENOSPC): SyncFailedError,
    ("log.taking_back", errno.EIO): SyncFailedError,
    ("log.closing", errno.ENOSPC): SyncFailedError,
    ("log.closing", errno.EIO): SyncFailedError,
    ("recovery.keeping", errno.ENOSPC): None,  # it finds room where the filler was
    ("recovery.keeping", errno.EIO): OSError,
    ("recovery.blanking", errno.ENOSPC): DiskFullError,
    ("recovery.blanking", errno.EIO): OSError,
    ("new_file.writing", errno.ENOSPC): DiskFullError,
    ("new_file.writing", errno.EIO): OSError,
    ("new_file.syncing", errno.ENOSPC): DiskFullError,
    ("new_file.syncing", errno.EIO): OSError,
    ("new_file.replacing", errno.ENOSPC): DiskFullError,
    ("new_file.replacing", errno.EIO): OSError,
    ("new_file.named", errno.ENOSPC): DiskFullError,
    ("new_file.named", errno.EIO): OSError,
}


@pytest.mark.parametrize(("place", "code"), ERRORS)
def test_a_call_that_fails_at_a_place_is_reported_and_leaves_what_was_synced_to_the_next_writer(place, code):
    life, scene = begin(place)
    with armed_failpoints(here=True) as points:
        points.lay(place, "raise", value=code)
        with pytest.raises(ERRORS[place, code] or StopIteration):
            scene.send(points)

    assert life.is_kept_by(reopen(life.disk))
    assert [name for name in life.disk.names() if name.endswith((".new", ".failed-sync"))] == []


def test_every_call_that_may_fail_is_in_the_table():
    assert {place for place, _ in ERRORS} == {place for place in PLACES if POINTS[place][0] is not Kind.PLAIN}

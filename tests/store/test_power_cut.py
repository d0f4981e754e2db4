"""Every state that a power cut may leave, at every step: nothing that was promised is lost, nothing else appears."""

from __future__ import annotations

import json

import pytest

from actorq.errors import StoreError
from actorq.store.log_writer import create_file
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.power_cuts import Tally, Workload, check_long, check_short, short_workloads
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, line, lines_in, open_log

LAST_BOOT = "33333333-3333-3333-3333-333333333333"


class Promises:
    """A writer's life, and what it has promised so far."""

    def __init__(self, disk):
        self.disk = disk
        self.synced: list[bytes] = []
        self.written: list[bytes] = []

    def run(self, steps, filler_step=0):
        log = open_log(self.disk, filler_step=filler_step)
        for number, step in enumerate(steps):
            if step == "sync":
                log.sync()
                self.synced = list(self.written)
            elif step == "close":
                log.close()
                self.synced = list(self.written)
                log = open_log(self.disk, filler_step=filler_step)
            else:
                batch = line(number, size={"small": 40, "sector": 512, "large": 1300}[step])
                self.written.append(batch)  # from here it may be there
                log.write(batch)
        return log

    def check(self, left, boot_id=NEXT_BOOT):
        """Hold the promises against what a new writer finds on this disk."""
        log = open_log(left, boot_id=boot_id)
        log.forget()
        found = lines_in(left)
        assert found[: len(self.synced)] == self.synced, "something acknowledged is lost"
        assert found == self.written[: len(found)], "a hole, or something never written"
        json.loads(left.read_bytes(PATH))
        assert not [name for name in left.names() if name.endswith(".new")] or PATH in left.names()
        return log


def no_violation(tally):
    assert tally.violations == []
    assert (tally.refused, tally.lost, tally.wrong) == (0, 0, 0)
    assert tally.recovered == tally.states


def test_short_workloads_survive_every_power_cut():
    """All of one operation, and some of the longer ones; `python -m tests.store.power_cuts` exhausts three."""
    tally = Tally()
    workloads = short_workloads()
    for workload in [*workloads[:18], *workloads[40::181]]:
        tally.add(check_short(workload))
    no_violation(tally)
    assert tally.states > 5000


def test_random_long_workloads_survive_power_cuts_kills_full_disks_and_failed_syncs():
    tally = Tally()
    for number in range(8):
        tally.add(check_long(8, number))
    no_violation(tally)
    assert tally.of_recovery > 300


def test_a_lost_sync_is_found():
    """The check itself can fail: a writer that adopts what its predecessor did not sync loses it in a power cut."""

    class ForgetfulDisk(CrashingFilesystem):
        def fdatasync(self, fd):
            if self.calls and self.calls[-1][0] == "write":
                super().fdatasync(fd)

    life = Workload("a writer that does not sync what it adopts", 0, 0)
    life.do("small")
    life.killed()
    forgetful = ForgetfulDisk()
    vars(forgetful).update(vars(life.disk))
    life.disk = forgetful
    life.do("sync", watch=life.look_at_all)
    life.look_at_all()
    assert life.tally.lost > 0


@pytest.mark.parametrize("taken", [0, 1, 700], ids=lambda taken: f"{taken} bytes of a write")
def test_a_power_cut_at_any_call_of_a_life_keeps_every_promise(taken):
    steps = ["small", "sync", "large", "sector", "sync", "close", "small", "sync"]
    calls, states = 0, 0
    while True:
        disk = CrashingFilesystem()
        disk.fail_call(calls, Stopped(), taken=taken)
        promises = Promises(disk)
        try:
            promises.run(steps, filler_step=1024)
            break
        except Stopped:
            pass
        for left in disk.crash_states(limit=40, seed=calls):
            promises.check(left)
            states += 1
        promises.check(disk.after_kill(), boot_id=BOOT)
        calls += 1
    assert calls == 17
    assert states > 300


def some(disks, number):
    """Return so many of them, evenly chosen."""
    disks = list(disks)
    return disks[:: max(1, len(disks) // number)]


def torn_disks():
    """Return disks on which recovery has something to do, each with what is promised of it."""
    for name, steps, is_failed in [
        ("torn", ["small", "sync", "large"], False),
        ("two unsynced", ["small", "sync", "sector", "large"], False),
        ("failed sync", ["small", "sync", "large"], True),
    ]:
        promises = Promises(CrashingFilesystem())
        log = promises.run(steps, filler_step=1024)
        disk = promises.disk
        if is_failed:
            disk.fail_call(len(disk.calls), 5)
            with pytest.raises(StoreError):
                log.sync()
            yield name, promises, [disk.after_kill(), *some(disk.crash_states(), 4)], BOOT
        else:
            yield name, promises, some(disk.crash_states(), 10), NEXT_BOOT


def test_recovery_interrupted_at_any_call_is_recovery_still_to_be_done():
    interrupted = 0
    for name, promises, disks, boot_id in torn_disks():
        for left in disks:
            whole = left.after_kill()
            promises.check(whole, boot_id=boot_id)
            wanted = lines_in(whole)
            calls = 0
            while True:
                disk = left.after_kill()
                disk.fail_call(calls, Stopped(), taken=3)
                try:
                    open_log(disk, boot_id=boot_id).forget()
                    break
                except Stopped:
                    interrupted += 1
                again = disk.after_kill()
                promises.check(again, boot_id=boot_id)
                assert lines_in(again) == wanted, (name, calls)
                for after_cut in some(disk.crash_states(seed=calls), 6):
                    promises.check(after_cut, boot_id=LAST_BOOT)
                calls += 1
    assert interrupted > 100


def test_recovering_twice_changes_nothing_more():
    for _, promises, disks, boot_id in torn_disks():
        for left in disks:
            promises.check(left, boot_id=boot_id)
            once = left.read_bytes(PATH), left.names()
            assert promises.check(left, boot_id=boot_id).recovered is None
            assert (left.read_bytes(PATH), left.names()) == once


def test_a_power_cut_during_creation_leaves_a_whole_queue_or_none():
    calls, seen = 0, set()
    while True:
        disk = CrashingFilesystem()
        disk.fail_call(calls, Stopped(), taken=50)
        try:
            create_file(PATH, filesystem=disk)
            break
        except Stopped:
            pass
        for left in [disk.after_kill(), *disk.crash_states()]:
            seen.add(PATH in left.names())
            log = open_log(left, boot_id=NEXT_BOOT)
            assert log.commit == 0
            log.close()
            assert left.names() == [PATH]
        calls += 1
    assert seen == {True, False}


def test_what_a_created_queue_promises_holds_from_the_moment_it_is_created():
    disk = CrashingFilesystem()
    create_file(PATH, filesystem=disk)
    for left in disk.crash_states():
        open_log(left, boot_id=NEXT_BOOT).close()
        assert left.names() == [PATH]
        assert lines_in(left) == []


def test_adopted_commits_are_on_disk_before_anything_is_built_on_them():
    """A writer dies between write and sync; the next one finds the commit in the cache, and then the power goes."""
    disk = CrashingFilesystem()
    log = open_log(disk)
    log.write(line(0))
    next_disk = disk.after_kill()
    log = open_log(next_disk)
    assert (log.commit, log.synced) == (1, 1)
    for left in next_disk.crash_states():
        assert lines_in(left) == [line(0)]


def test_commits_to_a_file_whose_maker_was_killed_do_not_go_with_its_name_in_a_power_cut():
    """Killed between the rename and the sync of the directory, it leaves a name that is only in memory."""
    whole = disk_with([line(0), line(1)]).read_bytes(PATH)
    for content, first in ((None, []), (whole[:-10], [line(0)])):
        calls = 0
        while True:
            disk = CrashingFilesystem() if content is None else disk_of(content)
            disk.fail_call(calls, Stopped())
            try:
                open_log(disk, boot_id=NEXT_BOOT).forget()
                break
            except Stopped:
                pass
            next_disk = disk.after_kill()
            log = open_log(next_disk, boot_id=NEXT_BOOT)
            log.write(line(7))
            log.sync()
            for left in next_disk.crash_states(limit=50, seed=calls):
                open_log(left, boot_id=LAST_BOOT).forget()
                assert lines_in(left) == [*first, line(7)], calls
            calls += 1
        assert calls > 5

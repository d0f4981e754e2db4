from __future__ import annotations

import itertools
import random
import re

import pytest

from actorq.errors import DiskFullError, UnsupportedFormatError
from actorq.store import records
from actorq.store.compaction import compact
from actorq.store.failed_sync import FailedSync, leave_mark
from actorq.store.format import HEAD_LENGTH, RECORD_LENGTH
from actorq.store.repair import plan_repair
from actorq.store.single_bit import find_flipped_bit
from actorq.store.verify import Verdict, verify
from actorq.tasks.steering import Verb
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.damage import specimen_of
from tests.store.log_on_paper import C, P, S, hello, ids
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, end_of_commits, open_log
from tests.store.test_compaction import a_life, queue_on

MARK = f"{PATH}.failed-sync"


def publish(first, last=None, size=30):
    return records.publish_lines(
        ids(first, last), "work", [b'"%d %b"' % (n, b"x" * size) for n in range(first, (last or first) + 1)]
    )


def six_tasks():
    """Six tasks in six commits; the third commit hands out the first two."""
    log = [publish(1), publish(2)]
    log += [records.hello_line(hello(C)) + records.barrier_line(S) + records.assign_line(ids(1), C, 1, S, 1)]
    log += [publish(3, 4), records.done_result_lines([(f"{P}-1", b"17")], 1, C, 1), publish(5), publish(6)]
    return disk_with(log, close=False).read_bytes(PATH).rstrip(b"\n") + b"\n"


def compacted_and_used():
    """Six tasks in a snapshot, and one in each of two commits behind it."""
    disk = CrashingFilesystem()
    a_life(disk).close()
    compact(PATH, boot_id=BOOT, pid=1, filesystem=disk)
    log = open_log(disk)
    log.write(records.publish_lines(ids(7), "later", [b'"seven"']))
    log.write(records.publish_lines(ids(8), "later", [b'"eight"']))
    log.close()
    return disk.read_bytes(PATH)


def wiped(content, at, length=3):
    """Return the content with a few bytes changed, more than a checksum can put right."""
    return content[:at] + bytes(byte ^ 0x55 for byte in content[at : at + length]) + content[at + length :]


def repaired(content, **options):
    disk = disk_of(content)
    repair = plan_repair(PATH, boot_id=BOOT, filesystem=disk, **options)
    assert repair is not None
    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], content), "a plan changes nothing"
    repair.carry_out(disk)
    assert verify(PATH, boot_id=BOOT, filesystem=disk).verdict is Verdict.INTACT
    backup = repair.plan.backup
    assert backup is not None
    assert disk.names() == [PATH, backup]
    assert disk.read_bytes(backup) == content
    tasks, _ = queue_on(disk)
    return repair.plan, {task.removeprefix(f"{P}-"): each for task, each in tasks.items()}, disk


def test_a_damaged_commit_in_the_middle_costs_its_own_tasks_and_they_are_named():
    content = six_tasks()
    plan, tasks, disk = repaired(wiped(content, content.index(b'"4 xxx') + 3))
    assert plan.lost == [f"{P}-3", f"{P}-4"]
    assert sorted(tasks) == ["1", "2", "5", "6"]
    assert (tasks["1"].state, tasks["1"].result) == ("done", 17)
    assert plan.counts["done"] == 1
    log = open_log(disk)
    assert (log.commit, log.header.generation) == (7, 2)
    log.write(publish(7))
    log.close()
    assert len(queue_on(disk)[0]) == 5


def test_what_can_be_read_of_a_damaged_commit_is_kept_on_demand():
    content = six_tasks()
    damaged = wiped(content, content.index(b'"4 xxx') + 3)
    plan, tasks, _ = repaired(damaged, keep_unverified=True)
    assert sorted(tasks) == ["1", "2", "3", "4", "5", "6"]
    assert plan.unverified == [f"{P}-3", f"{P}-4"]
    assert plan.lost == []
    broken = wiped(content, content.index(b'{"id":"%b-4' % P.encode()), 2)
    plan, tasks, _ = repaired(broken, keep_unverified=True)
    assert sorted(tasks) == ["1", "2", "3", "5", "6"]
    assert plan.lost == [f"{P}-4"]


def test_a_lost_assignment_makes_the_task_run_again_and_says_so():
    content = six_tasks()
    plan, tasks, _ = repaired(wiped(content, content.index(b'"assign"') + 1))
    assert plan.run_again == [f"{P}-1"]
    assert tasks["1"].state == "ready"
    assert len(tasks) == 6


def test_what_a_consumer_had_in_hand_is_ready_again():
    content = six_tasks()
    plan, tasks, _ = repaired(wiped(content, content.index(b'"done"') + 1))
    assert (plan.run_again, tasks["1"].state) == ([f"{P}-1"], "ready")


def test_a_cancelled_task_that_was_given_back_in_a_lost_commit_is_ready_again_and_named():
    log = [records.hello_line(hello(C)) + records.barrier_line(S) + publish(1, 2)]
    log += [records.assign_line(ids(1), C, 1, S, 1), records.returned_line(ids(1), 1, C, 1)]
    log += [records.steered_line(Verb.CANCEL, [ids(1, 2)], None, scheduler=S, request=2), publish(3)]
    content = disk_with(log, close=False).read_bytes(PATH).rstrip(b"\n") + b"\n"

    plan, tasks, _ = repaired(wiped(content, content.index(b'"returned"') + 1))

    assert [tasks[number].state for number in "123"] == ["ready", "cancelled", "ready"]
    assert plan.run_again == [f"{P}-1"]


def test_a_purged_task_is_not_said_to_be_lost():
    content = six_tasks()
    disk = disk_of(content)
    log = open_log(disk)
    log.write(records.steered_line(Verb.PURGE, [ids(1)], None))
    log.close()
    damaged = wiped(disk.read_bytes(PATH), content.index(b'"4 xxx') + 3)

    plan, tasks, _ = repaired(damaged)

    assert (plan.lost, plan.lost_finished) == ([f"{P}-3", f"{P}-4"], [])
    assert sorted(tasks) == ["2", "5", "6"]


def test_a_task_that_is_spoken_of_but_has_no_line_is_named():
    content = six_tasks()
    plan, tasks, _ = repaired(wiped(content, content.index(b'"id":"%b-1"' % P.encode()), 12))
    assert "1" not in tasks
    assert plan.lost_finished == [f"{P}-1"]


def test_a_lost_commit_record_costs_its_own_commit_and_not_the_one_behind_it():
    content = six_tasks()
    record = content.index(b',{"commit":           2')
    plan, tasks, _ = repaired(content[:record] + bytes(RECORD_LENGTH) + content[record + RECORD_LENGTH :])
    assert sorted(tasks) == ["1", "3", "4", "5", "6"]
    assert (plan.lost, plan.unproved) == ([f"{P}-2"], [3])


def test_a_single_changed_bit_is_put_right_without_any_loss():
    content = six_tasks()
    wanted, _ = queue_on(disk_of(content))
    chance = random.Random(3)
    mended = 0
    offsets = range(len(b"[\n"), end_of_commits(content), 7)
    for offset in offsets:
        changed = bytearray(content)
        changed[offset] ^= 1 << chance.randrange(8)
        plan, tasks, _ = repaired(bytes(changed))
        assert plan.lost == []
        assert [(task.id, task.data) for task in tasks.values()] == [(each.id, each.data) for each in wanted.values()]
        mended += plan.mended_bits == [offset]
    assert mended > 0.99 * len(offsets)


@pytest.mark.parametrize("length", [HEAD_LENGTH - 10, HEAD_LENGTH, 500])
def test_what_stands_behind_a_lost_header_is_kept(length):
    content = six_tasks()
    plan, tasks, disk = repaired(b"[\n" + b'{"actorq":1,"queue":"???'.ljust(length, b"?") + content[2 + length :])
    assert {"3", "4", "5", "6"} <= set(tasks)
    open_log(disk).close()
    assert plan.damages[0].offset == 0


def test_a_damaged_piece_of_a_snapshot_costs_its_own_tasks():
    content = specimen_of(12).content
    whole, _ = queue_on(disk_of(content))
    plan, tasks, _ = repaired(wiped(content, HEAD_LENGTH + 700, 40))
    assert plan.lost
    assert len(tasks) + len(plan.lost) == len(whole)


def test_truncating_keeps_only_what_stands_before_that_byte():
    content = six_tasks()
    at = content.index(b'"id":"%b-5"' % P.encode())
    plan, tasks, _ = repaired(content, truncate_at=at)
    assert sorted(tasks) == ["1", "2", "3", "4"]
    assert plan.lost == [f"{P}-5", f"{P}-6"]


def test_a_compacted_file_is_repaired_as_well():
    content = compacted_and_used()
    plan, tasks, _ = repaired(wiped(content, content.index(b'"seven"')))
    assert plan.lost == [f"{P}-7"]
    assert sorted(tasks) == ["1", "2", "3", "4", "5", "6", "8"]
    assert tasks["2"].errors[0].message == "no"


@pytest.mark.parametrize("member", ["crc", "created", "pieces", "commit", "chain", "generation", "queue"])
def test_whatever_is_damaged_in_the_header_of_a_compacted_file_costs_no_task(member):
    content = compacted_and_used()
    wanted, _ = queue_on(disk_of(content))
    value = re.search(b'"%b": *"?' % member.encode(), content)
    assert value is not None

    plan, tasks, _ = repaired(wiped(content, value.end(), 2))

    assert plan.lost == []
    assert [(each.id, each.data, each.errors) for each in tasks.values()] == [
        (each.id, each.data, each.errors) for each in wanted.values()
    ]


def test_a_last_commit_that_lost_a_sector_without_a_restart_is_lost_and_not_torn_wherever_else_damage_is():
    content = six_tasks()
    record = content.rindex(b',{"commit"')
    content = content[:record] + bytes(RECORD_LENGTH) + content[record + RECORD_LENGTH :]
    damaged = wiped(content, content.index(b'"4 xxx') + 3)

    plan, tasks, _ = repaired(damaged)
    assert (plan.lost, plan.torn_bytes) == ([f"{P}-3", f"{P}-4", f"{P}-6"], 0)
    assert sorted(tasks) == ["1", "2", "5"]

    repair = plan_repair(PATH, boot_id=NEXT_BOOT, filesystem=disk_of(damaged))
    assert repair is not None
    assert repair.plan.lost == [f"{P}-3", f"{P}-4"]  # the power has gone since: it may never have been acknowledged
    assert repair.plan.torn_bytes > 0


def test_where_the_boot_of_the_last_commit_cannot_be_read_a_repair_goes_on():
    content = six_tasks()
    record = content.rindex(b',{"commit"')
    content = content[:record] + bytes(RECORD_LENGTH) + content[record + RECORD_LENGTH :]
    plan, tasks, _ = repaired(wiped(content, content.index(b'"boot":"'), 4))

    assert plan.torn_bytes > 0
    assert "5" in tasks


def test_lines_that_are_not_what_their_publish_announces_are_not_kept_under_other_ids():
    content = six_tasks()
    first, second = (content.index(b',{"id":"%b-%d"' % (P.encode(), number)) for number in (3, 4))
    length = second - first
    swapped = content[:first] + content[second : second + length] + content[first:second] + content[second + length :]
    record = swapped.index(b',{"commit":           3')
    plan, tasks, _ = repaired(swapped[:record] + bytes(RECORD_LENGTH) + swapped[record + RECORD_LENGTH :])

    assert {"3", "4"} <= {task.removeprefix(f"{P}-") for task in plan.lost}
    assert {"3", "4"}.isdisjoint(tasks)


def test_a_torn_end_is_no_loss_and_needs_no_repair():
    content = six_tasks()
    torn = content[: end_of_commits(content)] + publish(7)[:40]
    assert plan_repair(PATH, boot_id=BOOT, filesystem=disk_of(torn)) is None
    assert plan_repair(PATH, boot_id=BOOT, filesystem=disk_of(content)) is None
    plan, tasks, _ = repaired(wiped(torn, torn.index(b'"4 xxx') + 3))
    assert plan.torn_bytes > 0
    assert plan.lost == [f"{P}-3", f"{P}-4"]
    assert "7" not in tasks


def test_commits_that_a_failed_sync_has_taken_are_counted_and_the_mark_goes():
    disk = disk_of(six_tasks())
    leave_mark(disk, PATH, FailedSync(1, 9, "EIO"))
    repair = plan_repair(PATH, boot_id=BOOT, filesystem=disk)
    assert repair is not None
    assert repair.plan.lost_commits == [8, 9]
    repair.carry_out(disk)
    assert MARK not in disk.names()
    assert verify(PATH, filesystem=disk).verdict is Verdict.INTACT
    assert len(queue_on(disk)[0]) == 6


@pytest.mark.parametrize("content", [b"", b"{}", b"hello\n", b"\0" * 5000])
def test_what_is_no_queue_is_not_repaired(content):
    disk = disk_of(content)
    with pytest.raises(UnsupportedFormatError, match="bring the queue back from a backup, or begin a new one"):
        plan_repair(PATH, filesystem=disk)
    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], content)


def test_a_kill_or_power_cut_at_any_call_leaves_the_damaged_file_or_the_new_one():
    content = six_tasks()
    damaged = wiped(content, content.index(b'"4 xxx') + 3)
    verdicts = set()
    for call in itertools.count():
        disk = disk_of(damaged)
        repair = plan_repair(PATH, boot_id=BOOT, filesystem=disk)
        assert repair is not None
        disk.fail_call(call, Stopped(), taken=100)
        try:
            repair.carry_out(disk)
            break
        except Stopped:
            pass
        for left in [disk.after_kill(), *disk.crash_states(limit=20, seed=call)]:
            verdict = verify(PATH, boot_id=NEXT_BOOT, filesystem=left).verdict
            verdicts.add(verdict)
            if verdict is Verdict.INTACT:
                assert sorted(queue_on(left)[0]) == [f"{P}-{n}" for n in (1, 2, 5, 6)]
                assert any(left.read_bytes(name) == damaged for name in left.names())
            else:
                assert left.read_bytes(PATH) == damaged
    assert verdicts == {Verdict.INTACT, Verdict.DAMAGED}


def test_without_room_nothing_is_changed():
    content = six_tasks()
    damaged = wiped(content, content.index(b'"4 xxx') + 3)
    refused = 0
    for call in itertools.count():
        disk = disk_of(damaged)
        repair = plan_repair(PATH, boot_id=BOOT, filesystem=disk)
        assert repair is not None
        disk.fail_call(call, 28, taken=50)
        try:
            repair.carry_out(disk)
            break
        except DiskFullError:
            refused += 1
        heads = disk.read_bytes(PATH)[:HEAD_LENGTH]
        assert disk.read_bytes(PATH) == damaged or heads != damaged[:HEAD_LENGTH]
    assert refused > 5


def test_any_damage_at_all_is_repaired_to_an_intact_queue_of_tasks_that_were_in_it():
    specimen = specimen_of(12)
    whole, _ = queue_on(disk_of(specimen.content))
    chance = random.Random(5)
    for _ in range(60):
        content = bytearray(specimen.content)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(2, specimen.end)
            length = chance.choice([1, 5, 200, 512, 3000])
            content[at : at + length] = chance.choice([bytes(length), b"\n" * length, chance.randbytes(length)])
        disk = disk_of(bytes(content))
        try:
            repair = plan_repair(PATH, boot_id=BOOT, filesystem=disk)
        except UnsupportedFormatError:
            continue  # nothing is left of the header
        if repair is None:
            continue  # of the unsynced end only
        repair.carry_out(disk)
        assert verify(PATH, boot_id=BOOT, filesystem=disk).verdict is Verdict.INTACT
        tasks, _ = queue_on(disk)
        assert {key: each.data for key, each in tasks.items()}.items() <= {k: e.data for k, e in whole.items()}.items()


def test_a_flipped_bit_is_found_and_other_damage_hardly_ever_looks_like_one():
    from zlib import crc32

    chance = random.Random(1)
    message = chance.randbytes(3000)
    crc = b"%08x" % crc32(message, 7)
    for _ in range(200):
        at, bit = chance.randrange(3000), chance.randrange(8)
        changed = bytearray(message)
        changed[at] ^= 1 << bit
        assert find_flipped_bit(bytes(changed), 7, crc) == (at, bit)
    found = [find_flipped_bit(chance.randbytes(3000), 7, crc) for _ in range(200)]
    assert found == [None] * 200
    assert find_flipped_bit(message, 7, crc) is None

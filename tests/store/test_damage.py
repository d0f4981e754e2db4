"""A part of what `python -m tests.store.damage` does in full."""

from __future__ import annotations

from collections import Counter

import pytest

from actorq.errors import CorruptQueueError
from actorq.store import records
from actorq.store.failed_sync import FailedSync, leave_mark
from actorq.store.log_reader import LogReader
from actorq.store.verify import Verdict, verify
from tests.store.damage import (
    CHUNK,
    PAYLOAD_SIZES,
    WrongStateError,
    blocks,
    editors,
    flip_all,
    harmless,
    judge,
    judge_all,
    specimen_of,
    torn,
    truncations,
)
from tests.store.log_on_paper import ids
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, end_of_commits, line, lines_in, open_log

KIB = 12


def task(number, size=10):
    return records.publish_lines(ids(number), "task", [b'"%b"' % (b"x" * size)])


def test_a_flipped_bit_is_refused_or_changes_nothing():
    specimen = specimen_of(KIB)
    tally = Counter[str]()
    for begin in (0, *range(CHUNK, KIB << 10, 19 * CHUNK), specimen.end - CHUNK):
        tally += flip_all(KIB, begin, step=3)
    assert set(tally) == {"refused", "same"}
    assert tally.total() > 2_000


@pytest.mark.parametrize("size", PAYLOAD_SIZES)
def test_a_batch_torn_at_any_byte_is_cut(size):
    tally, violations = judge_all(torn(size, step=1 if size <= 64 else max(37, size // 100)))
    assert violations == []
    assert set(tally) == {"cut"}


def test_damaged_blocks_are_refused_or_cut_where_nobody_knows_them_to_be_on_disk():
    specimen = specimen_of(KIB)
    tally, violations = judge_all((specimen, *case) for case in blocks(specimen, 512))
    assert violations == []
    assert tally["refused"] > tally["cut"] > 0


def test_a_file_cut_off_anywhere_is_refused_cut_or_shorter():
    specimen = specimen_of(8)
    tally, violations = judge_all((specimen, *case) for case in truncations(specimen, 197))
    assert violations == []
    assert min(tally["refused"], tally["cut"]) > 50


@pytest.mark.parametrize("name", editors(specimen_of(KIB)))
def test_what_an_editor_saves_is_refused(name):
    specimen = specimen_of(KIB)
    for boot_id in (BOOT, NEXT_BOOT):
        assert judge(specimen, editors(specimen)[name], boot_id) == "refused"


@pytest.mark.parametrize("name", harmless(specimen_of(KIB)))
def test_white_space_at_the_end_is_no_matter(name):
    specimen = specimen_of(KIB)
    for boot_id in (BOOT, NEXT_BOOT):
        assert judge(specimen, harmless(specimen)[name], boot_id) == "same"


def test_the_judge_can_say_no():
    """A forged file, all of whose checksums are right, is another queue."""
    specimen = specimen_of(KIB)
    forged = disk_with([line(1), line(2)]).read_bytes(PATH)
    with pytest.raises(WrongStateError, match="another queue"):
        judge(specimen, forged, BOOT)


def test_pages_written_to_the_wrong_place_are_not_taken_for_the_end():
    """They hold whole commits, which follow each other; but not what stands before them."""
    content = disk_with([line(number, size=360) for number in range(40)]).read_bytes(PATH)
    end = end_of_commits(content)
    for at in range(end - 4200, end - 3000, 100):
        changed = content[:at] + content[at - 4096 : at] + b"]\n"
        disk = disk_of(changed)
        with pytest.raises(CorruptQueueError):
            open_log(disk)
        with pytest.raises(CorruptQueueError):
            lines_in(disk)
        assert disk.read_bytes(PATH) == changed


def test_an_old_commit_behind_the_end_is_damage_to_readers_too():
    content = disk_with([line(number) for number in range(4)]).read_bytes(PATH)
    second = content.index(b',{"n":1')
    reader = LogReader(PATH, filesystem=disk_of(content[: end_of_commits(content)] + content[second:]))
    with pytest.raises(CorruptQueueError, match="commit 2 stands behind it"):
        list(reader.batches())


def test_verify_says_of_a_hole_left_by_a_power_cut_what_the_next_writer_will_do():
    disk = disk_with([task(1)], close=False, filler_step=1 << 14)
    start = end_of_commits(disk.read_bytes(PATH))
    log = open_log(disk, filler_step=1 << 14)
    for number in range(2, 5):
        log.write(task(number, size=2000))
    whole = disk.read_bytes(PATH)
    content = whole[: start + 300] + b"\n" * 600 + whole[start + 900 :]
    for boot_id, verdict in ((BOOT, Verdict.DAMAGED), (NEXT_BOOT, Verdict.TORN)):
        report = verify(PATH, boot_id=boot_id, filesystem=disk_of(content))
        assert (report.verdict, report.commit, report.good_bytes) == (verdict, 1, start)
    with pytest.raises(CorruptQueueError):
        open_log(disk_of(content), boot_id=BOOT)
    assert open_log(disk_of(content), boot_id=NEXT_BOOT).commit == 1


def test_verify_tells_of_a_failed_sync_and_of_a_commit_that_went_with_it():
    for synced, verdict in ((2, Verdict.INTACT), (3, Verdict.DAMAGED)):
        disk = disk_with([task(1), task(2)])
        leave_mark(disk, PATH, FailedSync(1, synced, "EIO"))
        report = verify(PATH, boot_id=BOOT, filesystem=disk)
        assert report.verdict is verdict
        assert "EIO" in report.reason or "commit 3 was on disk" in report.reason

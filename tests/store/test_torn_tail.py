from __future__ import annotations

import json
import os
import stat

import pytest

from actorq.errors import CorruptQueueError
from actorq.store.failed_sync import FailedSync, leave_mark
from actorq.store.filesystem import REAL
from actorq.store.format import HEAD_LENGTH, RECORD_LENGTH, seal
from actorq.store.log_reader import LogReader
from actorq.testing import CrashingFilesystem
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, end_of_commits, line, lines_in, open_log

# Payloads that look like the end of something, where a careless rule would see more than a prefix.
LAST_BATCHES = {
    "one byte": b',{"n":1}\n',
    "brackets": b',{"n":[[1],[2]]}\n,{"n":"]"}\n,{"n":[{}]}\n',
    "looks like a commit": b',{"n":",{\\"commit\\":           2,"}\n',
    "a page": line(1, size=4096),
    "three pages": b"".join(line(number, size=1500) for number in range(8)),
}


def step_for(length):
    """Every byte of small ones; of large ones a coprime step, so that no alignment is left out."""
    return 1 if length < 1000 else 37


@pytest.mark.parametrize("boot_id", [BOOT, NEXT_BOOT], ids=["after a kill", "after a power cut"])
@pytest.mark.parametrize("filler", [b"", b"\n" * 700], ids=["end of file", "filler"])
@pytest.mark.parametrize("name", LAST_BATCHES)
def test_any_prefix_of_a_batch_is_cut_and_kept_aside(name, filler, boot_id):
    before = [line(7), line(8, size=300)]
    start = end_of_commits(disk_with(before).read_bytes(PATH))
    whole = disk_with([*before, LAST_BATCHES[name]]).read_bytes(PATH)
    end = end_of_commits(whole)
    # Without its last line feed a record is still a prefix; with it, it is a commit.
    for cut in [*range(start, end - 1, step_for(end - start)), end - 2]:
        torn = whole[start:cut]
        # Where the file was filled before, a prefix of nothing leaves the old bracket.
        disk = disk_of(whole[:cut] + ((filler if torn else b"]" + filler) if filler else b""))

        log = open_log(disk, boot_id=boot_id)

        assert (log.commit, log.position.offset) == (2, start), cut
        assert (log.recovered is not None) == bool(torn)
        if torn:
            assert log.recovered is not None
            assert log.recovered.aside is not None
            # A line feed at its end looks like the filler behind it.
            assert disk.read_bytes(log.recovered.aside) == torn.rstrip(b"\n")
        log.close()
        assert lines_in(disk) == before
        json.loads(disk.read_bytes(PATH))


@pytest.mark.parametrize("left", [b"", b"]", b"\n", b"\n\n\n", b"]\n\n"])
def test_a_whole_commit_counts_whatever_is_left_of_the_closing_bracket(left):
    whole = disk_with([line(0), line(1)]).read_bytes(PATH)
    disk = disk_of(whole[: end_of_commits(whole)] + left)
    log = open_log(disk)
    assert (log.commit, log.recovered) == (2, None)
    log.close()
    json.loads(disk.read_bytes(PATH))


def test_a_cut_file_takes_new_commits_in_the_place_of_the_torn_one():
    whole = disk_with([line(0), line(1, size=900)]).read_bytes(PATH)
    disk = disk_of(whole[: end_of_commits(whole) - RECORD_LENGTH - 3])
    log = open_log(disk)
    assert log.commit == 1
    log.write(line(2))
    log.close()
    assert lines_in(disk) == [line(0), line(2)]


def test_cutting_twice_is_cutting_once():
    whole = disk_with([line(0), line(1, size=900)]).read_bytes(PATH)
    for boot_id in (BOOT, NEXT_BOOT):
        disk = disk_of(whole[: end_of_commits(whole) - 30])
        open_log(disk, boot_id=boot_id).close()
        once = disk.read_bytes(PATH)
        log = open_log(disk, boot_id=boot_id)
        assert log.recovered is None
        log.close()
        assert disk.read_bytes(PATH) == once


def test_a_copy_kept_aside_is_never_overwritten():
    whole = disk_with([line(0), line(1, size=900)]).read_bytes(PATH)
    torn = whole[: end_of_commits(whole) - 30]
    disk = disk_of(torn)
    asides = []
    for _ in range(3):
        disk.write_bytes(PATH, torn)
        log = open_log(disk)
        assert log.recovered is not None
        assert log.recovered.aside is not None
        asides.append(log.recovered.aside)
        log.close()
    assert len(set(asides)) == 3
    assert {disk.read_bytes(aside) for aside in asides} == {torn[disk.read_bytes(PATH).rindex(b"]\n") :]}


def test_after_a_power_cut_a_torn_file_goes_on_as_a_new_one():
    whole = disk_with([line(0), line(1)]).read_bytes(PATH)
    for boot_id, generation in ((BOOT, 1), (NEXT_BOOT, 2)):
        disk = disk_of(whole[:-10])
        before = disk.lstat(PATH).st_ino
        log = open_log(disk, boot_id=boot_id)
        assert log.header.generation == log.position.generation == generation
        assert (disk.lstat(PATH).st_ino == before) == (generation == 1)
        log.write(line(2))
        log.close()
        assert lines_in(disk) == [line(0), line(2)]


def test_a_reader_does_not_see_a_torn_batch():
    whole = disk_with([line(0), line(1, size=200)]).read_bytes(PATH)
    start = end_of_commits(disk_with([line(0)]).read_bytes(PATH))
    for cut in range(start, end_of_commits(whole)):
        assert lines_in(disk_of(whole[:cut])) == [line(0)]
        assert lines_in(disk_of(whole[:cut] + b"\n" * 100)) in ([line(0)], [line(0), line(1, size=200)])


@pytest.mark.parametrize("unwritten", [b"\n", b"\0"], ids=["filler", "zeros"])
@pytest.mark.parametrize("size", [30, 300, 401, 402, 403, 404, 405, 700, 5000])
def test_a_lost_sector_of_the_last_batch_is_cut_after_a_power_cut_and_damage_without_one(size, unwritten):
    disk = disk_with([line(0), line(1)], close=False, filler_step=1 << 14)
    start = end_of_commits(disk.read_bytes(PATH))
    log = open_log(disk, filler_step=1 << 14)
    log.write(line(2, size=size))
    end = log.position.offset
    whole = disk.read_bytes(PATH)
    # Where filler was on disk before, the bracket was too.
    before = whole[:start] + (b"]" if unwritten == b"\n" else unwritten) + unwritten * (len(whole) - start - 1)
    for sector in range(start // 512 * 512, end, 512):
        content = whole[:sector] + before[sector : sector + 512] + whole[sector + 512 :]
        only_the_bracket_is_lost = content[: end - 1] == whole[: end - 1] and content[end - 1] in b"\n"
        disk = disk_of(content)
        log = open_log(disk, boot_id=NEXT_BOOT)
        assert log.commit == (3 if only_the_bracket_is_lost else 2), sector
        if sector + 512 < end:
            disk = disk_of(content)
            with pytest.raises(CorruptQueueError):
                open_log(disk, boot_id=BOOT)
            assert (disk.read_bytes(PATH), disk.names()) == (content, [PATH])


@pytest.mark.parametrize("unwritten", [b"]", b"\n", b"\0"], ids=["bracket", "filler", "zero"])
def test_a_lost_sector_that_holds_the_first_byte_alone_is_known_by_what_stood_there(unwritten):
    """The bracket did, or filler where the commit before it got through in two writes."""
    length = end_of_commits(disk_with([line(0, size=100)]).read_bytes(PATH))
    disk = disk_with([line(0, size=100 + (511 - length) % 512)], close=False, filler_step=1 << 14)
    start = end_of_commits(disk.read_bytes(PATH))
    assert start % 512 == 511
    log = open_log(disk, filler_step=1 << 14)
    log.write(line(1))
    whole = disk.read_bytes(PATH)
    content = whole[:start] + unwritten + whole[start + 1 :]

    assert open_log(disk_of(content), boot_id=NEXT_BOOT).commit == 1
    with pytest.raises(CorruptQueueError):
        open_log(disk_of(content), boot_id=BOOT)


def test_a_hole_in_a_commit_that_was_synced_is_damage_after_a_power_cut_too():
    batches = [line(number, size=2000) for number in range(4)]
    start, end = (end_of_commits(disk_with(batches[:number]).read_bytes(PATH)) for number in (2, 3))
    whole = disk_with(batches).read_bytes(PATH)
    content = whole[: end - 600] + b"\n" * 600 + whole[end:]
    disk = disk_of(content)
    with pytest.raises(CorruptQueueError, match="it was on disk when commit 4 was written") as caught:
        open_log(disk, boot_id=NEXT_BOOT)
    assert (caught.value.offset, caught.value.sequence) == (start, 3)
    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], content)


def test_a_hole_in_an_old_commit_is_found_by_whoever_replays_the_log():
    batches = [line(number, size=2000) for number in range(4)]
    whole = disk_with(batches).read_bytes(PATH)
    disk = disk_of(whole[:1000] + b"\n" * 600 + whole[1600:])
    open_log(disk, boot_id=NEXT_BOOT).forget()
    with pytest.raises(CorruptQueueError, match="commit 1 at byte"):
        lines_in(disk)


def test_a_hole_in_unsynced_commits_cuts_all_of_them_and_says_how_many():
    disk = disk_with([line(0)], close=False, filler_step=1 << 14)
    start = end_of_commits(disk.read_bytes(PATH))
    log = open_log(disk, filler_step=1 << 14)
    for number in range(3):
        log.write(line(number, size=2000))
    whole = disk.read_bytes(PATH)
    content = whole[: start + 300] + b"\n" * 600 + whole[start + 900 :]
    disk = disk_of(content)
    log = open_log(disk, boot_id=NEXT_BOOT)
    assert log.commit == 1
    assert log.recovered is not None
    assert log.recovered.commits == 2
    assert "2 unsynced commits behind it were cut" in str(log.recovered)
    with pytest.raises(CorruptQueueError, match="no power cut happened since; 2 later commits are there"):
        open_log(disk_of(content), boot_id=BOOT)


def test_a_reader_tells_a_hole_of_any_size_from_the_end(tmp_path):
    path = tmp_path / PATH
    log = open_log(path=path)
    for number in range(40):
        log.write(line(number, size=100_000))
    log.close()
    for hole in (600, 70_000, 300_000, 2_000_000):
        with path.open("r+b") as file:
            at = 150_000
            file.seek(at)
            kept = file.read(hole)
            file.seek(at)
            file.write(b"\n" * hole)
        with pytest.raises(CorruptQueueError) as caught:
            list(LogReader(path).batches())
        assert caught.value.sequence == 2
        with path.open("r+b") as file:
            file.seek(at)
            file.write(kept)
    assert len(lines_in(path=path)) == 40


def test_every_prefix_of_the_very_first_batch_leaves_an_empty_queue():
    empty = disk_with([]).read_bytes(PATH)
    whole = disk_with([line(0)]).read_bytes(PATH)
    for cut in range(len(empty) - 2, end_of_commits(whole) - 1):
        disk = disk_of(whole[:cut])
        log = open_log(disk)
        assert log.commit == 0
        log.write(line(5))
        log.close()
        assert lines_in(disk) == [line(5)]


def test_the_copy_and_the_cut_survive_a_power_cut_that_follows_at_once():
    whole = disk_with([line(0), line(1, size=900)]).read_bytes(PATH)
    disk = disk_of(whole[:-30])
    log = open_log(disk)
    assert log.recovered is not None
    aside = log.recovered.aside
    assert aside is not None
    for left in disk.crash_states():
        assert isinstance(left, CrashingFilesystem)
        assert left.read_bytes(aside) == disk.read_bytes(aside)
        assert left.read_bytes(PATH) == disk.read_bytes(PATH)


def test_everything_that_is_made_on_the_way_is_private_whatever_the_umask(tmp_path):
    path = tmp_path / PATH
    before = os.umask(0)
    try:
        log = open_log(path=path)
        log.write(line(0))
        log.close()
        for boot_id in (BOOT, NEXT_BOOT):
            with path.open("r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(line(1)[:20])
            open_log(path=path, boot_id=boot_id).close()
        leave_mark(REAL, path, FailedSync(1, 1, "EIO"))
        modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in os.listdir(tmp_path)}
    finally:
        os.umask(before)
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


def test_a_commit_that_claims_to_have_been_on_disk_when_it_was_written_is_none():
    content = disk_with([]).read_bytes(PATH)[:HEAD_LENGTH]
    for synced, commits in ((0, 1), (1, 0), (2, 0)):
        record, _ = seal(line(0), 0, number=1, epoch=1, synced=synced, at="2026-11-23T18:00:00.000Z")
        assert len(lines_in(disk_of(content + line(0) + record + b"]\n"))) == commits

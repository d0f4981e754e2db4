from __future__ import annotations

import errno
import itertools
import json
import resource
import signal
import subprocess
import sys

import pytest

from actorq.errors import CorruptQueueError, DiskFullError, SyncFailedError
from actorq.store.failed_sync import FailedSync, leave_mark
from actorq.store.format import CLOSING, FILLER, RECORD_LENGTH
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from actorq.testing import CrashingFilesystem
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, line, lines_in, open_log

MARK = f"{PATH}.failed-sync"


@pytest.mark.parametrize("filler_step", [0, 1024])
@pytest.mark.parametrize("size", [10, 600, 2000])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_write_that_does_not_fit_leaves_nothing(size, code, filler_step):
    probe = disk_with([line(0), line(1), line(2, size=size)], close=False, filler_step=filler_step)
    batch = len(probe.read_bytes(PATH).rstrip(b"\n")) - len(
        disk_with([line(0), line(1)], close=False).read_bytes(PATH).rstrip(b"\n")
    )
    for taken in [*range(0, batch - 1, 1 if size < 100 else 41), batch - 1]:
        disk = CrashingFilesystem()
        log = open_log(disk, filler_step=filler_step)
        log.write(line(0))
        log.write(line(1))
        log.sync()
        before = disk.read_bytes(PATH)
        disk.fail_call(len(disk.calls), code, taken=taken)

        with pytest.raises(DiskFullError):
            log.write(line(2, size=size))

        assert disk.read_bytes(PATH) == before
        assert lines_in(disk.after_kill()) == [line(0), line(1)]
        log.write(line(3))  # there is room again
        log.close()
        assert lines_in(disk) == [line(0), line(1), line(3)]


class FullDisk(CrashingFilesystem):
    """Files do not grow beyond a size."""

    size = 1 << 20

    def pwritev(self, fd, buffers, offset):
        data = b"".join(buffers)[: max(0, self.size - offset)]
        if not data:
            raise OSError(errno.ENOSPC, "no room")
        return super().pwritev(fd, [data], offset)


@pytest.mark.parametrize("has_room_at_the_end", [True, False])
def test_a_batch_whose_bracket_alone_finds_no_room_is_committed(has_room_at_the_end):
    disk = FullDisk()
    log = open_log(disk)
    disk.size = len(disk_with([line(0)]).read_bytes(PATH)) - len(CLOSING + FILLER)

    log.write(line(0))
    log.sync()
    assert lines_in(disk) == [line(0)]
    if has_room_at_the_end:
        disk.size = 1 << 20
    log.close()

    assert disk.read_bytes(PATH).endswith(CLOSING + FILLER) is has_room_at_the_end
    assert disk.names() == [PATH]  # no mark: the disk does keep what it has got
    for left in [disk.after_kill(), *disk.crash_states()]:
        log = open_log(left, boot_id=NEXT_BOOT)
        log.write(line(1))
        log.close()
        assert lines_in(left) == [line(0), line(1)]
        json.loads(left.read_bytes(PATH))


def test_without_room_for_more_the_reserve_is_there_for_what_need_not_keep_it_and_for_nothing_else():
    disk = FullDisk()
    log = LogWriter.open(PATH, filesystem=disk, boot_id=BOOT, pid=1, reserve=4096)
    log.write(line(0))
    disk.size = log.size
    before = disk.read_bytes(PATH)

    # The first step of filler is there as well, so it takes some batches to come down to the reserve.
    while disk.size - log.position.offset - 500 > 4096:
        log.write(line(1, size=200), keep=4096)
        before = disk.read_bytes(PATH)
    with pytest.raises(DiskFullError):
        log.write(line(2, size=400), keep=4096)
    assert disk.read_bytes(PATH) == before

    log.write(line(3, size=400))
    log.close()
    assert lines_in(disk)[-1] == line(3, size=400)
    assert line(2, size=400) not in lines_in(disk)


def test_behind_a_batch_whose_bracket_found_no_room_the_next_one_leaves_nothing():
    disk = FullDisk()
    log = open_log(disk)
    disk.size = len(disk_with([line(0)]).read_bytes(PATH)) - len(CLOSING + FILLER)
    log.write(line(0))
    before = disk.read_bytes(PATH)

    for more in (0, 20):
        disk.size = len(before) + more
        with pytest.raises(DiskFullError):
            log.write(line(1))
        assert disk.read_bytes(PATH) == before

    disk.size = 1 << 20
    log.write(line(2))
    log.close()
    assert lines_in(disk) == [line(0), line(2)]


class SevenBytesAtATime(CrashingFilesystem):
    def pwritev(self, fd, buffers, offset):
        return super().pwritev(fd, [b"".join(buffers)[:7]], offset)


def test_a_short_write_without_an_error_is_gone_on_with():
    disk = SevenBytesAtATime()
    log = open_log(disk)
    log.write(line(1, size=500))
    log.close()
    assert lines_in(disk) == [line(1, size=500)]
    json.loads(disk.read_bytes(PATH))


class NoRoomBeyond(CrashingFilesystem):
    """A disk on which a file can be so long and no longer."""

    limit = 0

    def pwritev(self, fd, buffers, offset):
        data = b"".join(buffers)[: max(0, self.limit - offset)]
        if not data:
            raise OSError(errno.ENOSPC, "no room")
        return super().pwritev(fd, [data], offset)


def test_filler_that_does_not_fit_is_done_without():
    disk = NoRoomBeyond()
    disk.limit = 3000
    log = open_log(disk, filler_step=1 << 20)
    written = 0
    while disk.limit - log.position.offset - 1 >= len(line(written)) + RECORD_LENGTH:
        log.write(line(written))
        written += 1
        # What fits is written, however little of the filler does.
        assert log.size <= disk.limit
    with pytest.raises(DiskFullError):
        log.write(line(written))
    assert written > 10
    log.close()
    assert lines_in(disk) == [line(number) for number in range(written)]


def test_what_was_taken_back_does_not_come_back_under_the_next_batch_in_a_power_cut():
    disk = CrashingFilesystem()
    log = open_log(disk, filler_step=8192)
    for number in range(3):
        log.write(line(number))
    log.sync()
    disk.fail_call(len(disk.calls), errno.ENOSPC, taken=2000)
    with pytest.raises(DiskFullError):
        log.write(line(8, size=2500))
    log.write(line(9, size=2500))
    for left in disk.crash_states(limit=400):
        open_log(left, boot_id=NEXT_BOOT).close()
        assert lines_in(left)[:3] == [line(0), line(1), line(2)]
        assert lines_in(left)[3:] in ([], [line(9, size=2500)])


def test_when_the_roll_back_fails_too_the_writer_stops_and_marks_the_file():
    disk = disk_with([line(0)])
    log = open_log(disk)
    disk.fail_call(len(disk.calls), errno.ENOSPC, taken=20)
    disk.fail_call(len(disk.calls) + 2, errno.EIO)
    with pytest.raises(SyncFailedError, match="taking back"):
        log.write(line(1))
    assert MARK in disk.names()
    with pytest.raises(SyncFailedError):
        log.write(line(1))
    log.close()
    log = open_log(disk)
    assert log.recovered is not None
    assert lines_in(disk) == [line(0)]


def failing(disk, code=errno.EIO):
    """Return a log whose second commit was written but whose sync fails."""
    log = open_log(disk)
    log.write(line(0))
    log.sync()
    log.write(line(1))
    disk.fail_call(len(disk.calls), code)
    with pytest.raises(SyncFailedError, match="fdatasync"):
        log.sync()
    return log


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_after_a_failed_sync_the_file_is_never_written_or_synced_again(code):
    disk = CrashingFilesystem()
    log = failing(disk, code)
    inode = disk.lstat(PATH).st_ino
    calls = len(disk.calls)
    for touch in (lambda: log.write(line(2)), log.sync):
        with pytest.raises(SyncFailedError):
            touch()
    log.close()
    open_log(disk).close()
    assert disk.calls[calls - 1 :]
    assert [call for call in disk.calls[calls - 5 :] if call == ("fdatasync", inode)] == [("fdatasync", inode)]
    assert [call for call in disk.calls[calls:] if call[1] == inode] == []


def test_after_a_failed_sync_the_mark_says_what_was_known_to_be_on_disk():
    disk = CrashingFilesystem()
    failing(disk).close()
    assert json.loads(disk.read_bytes(MARK)) == {
        "generation": 1,
        "synced": 1,
        "reason": "fdatasync: Input/output error",
        "tree": "",
    }


@pytest.mark.parametrize("is_dropped", [False, True], ids=["pages still cached", "pages dropped"])
def test_after_a_failed_sync_the_next_writer_goes_on_in_a_new_file_with_what_can_still_be_read(is_dropped):
    disk = CrashingFilesystem()
    failing(disk).close()
    before = disk.lstat(PATH).st_ino
    if is_dropped:
        disk.drop_caches()
    kept = [line(0)] if is_dropped else [line(0), line(1)]

    log = open_log(disk)

    assert disk.lstat(PATH).st_ino != before
    assert MARK not in disk.names()
    assert (log.commit, log.synced, log.header.generation) == (len(kept), len(kept), 2)
    assert log.recovered is not None
    assert "a sync had failed" in str(log.recovered)
    log.write(line(5))
    log.sync()
    for left in disk.crash_states():
        assert lines_in(left) == [*kept, line(5)]


def test_a_sync_that_fails_while_opening_takes_nothing_from_what_an_earlier_writer_promised():
    disk = disk_with([line(0), line(1)], close=False)
    disk.fail_call(len(disk.calls), errno.EIO)
    with pytest.raises(SyncFailedError):
        open_log(disk)
    assert json.loads(disk.read_bytes(MARK))["synced"] == 1  # more is not known, and more was promised
    open_log(disk).close()
    assert lines_in(disk) == [line(0), line(1)]


def test_a_reader_learns_that_the_file_has_moved():
    disk = CrashingFilesystem()
    log = failing(disk)
    reader = LogReader(PATH, filesystem=disk)
    assert len(list(reader.batches())) == 2
    log.close()
    disk.drop_caches()
    open_log(disk).close()
    assert reader.moved()
    assert len(list(LogReader(PATH, filesystem=disk).batches())) == 1


@pytest.mark.parametrize("mark", [b"", b"{", b"[]", b'{"generation":1}', b"\0\0"])
def test_a_mark_that_cannot_be_read_is_a_mark(mark):
    disk = disk_with([line(0), line(1)])
    disk.write_bytes(MARK, mark)
    log = open_log(disk)
    assert (log.commit, log.header.generation) == (2, 2)
    assert MARK not in disk.names()


def test_a_mark_of_an_earlier_file_is_removed():
    disk = disk_with([line(0), line(1)])
    disk.write_bytes(MARK, b'{"generation":0,"synced":1,"reason":"old"}')
    log = open_log(disk)
    assert (log.commit, log.recovered) == (2, None)
    assert MARK not in disk.names()


def test_a_mark_for_a_commit_that_is_gone_is_damage():
    disk = disk_with([line(0)])
    disk.write_bytes(MARK, b'{"generation":1,"synced":7,"reason":"EIO"}')
    with pytest.raises(CorruptQueueError, match="commit 7 was on disk"):
        open_log(disk)
    assert disk.names() == [PATH, MARK]


def test_a_writer_interrupted_in_a_write_does_not_write_again():
    """Its commit may be there for all to see; another one in the same place would contradict it."""
    for taken in (0, 10, 1000):
        disk = disk_with([line(0)])
        log = open_log(disk)
        disk.fail_call(len(disk.calls), KeyboardInterrupt(), taken=taken)
        with pytest.raises(KeyboardInterrupt):
            log.write(line(1))
        seen = disk.read_bytes(PATH)
        with pytest.raises(SyncFailedError, match="interrupted"):
            log.write(line(2))
        log.close()
        assert disk.read_bytes(PATH) == seen
        open_log(disk).close()
        assert lines_in(disk) == ([line(0), line(1)] if taken == 1000 else [line(0)])


def test_the_first_mark_stays():
    """What is on disk for certain does not grow by a second failure."""
    disk = CrashingFilesystem()
    failing(disk).close()
    mark = disk.read_bytes(MARK)

    assert leave_mark(disk, PATH, FailedSync(1, 7, "another")) == ""
    assert disk.read_bytes(MARK) == mark


def test_where_no_mark_can_be_left_the_error_says_so():
    disk = CrashingFilesystem()
    log = open_log(disk)
    log.write(line(0))
    disk.fail_call(len(disk.calls), errno.EIO)
    disk.fail_call(len(disk.calls) + 1, errno.EROFS)
    with pytest.raises(SyncFailedError, match="no mark could be left"):
        log.sync()


def test_recovery_without_room_changes_nothing_and_says_so():
    # On the same boot one failure is not enough: what was cut is then kept where its filler was.
    whole = disk_with([line(0), line(1, size=900)]).read_bytes(PATH)
    for boot_id in (BOOT, NEXT_BOOT):
        refused = 0
        for number in itertools.count():
            disk = disk_of(whole[:-30])
            disk.fail_call(number, errno.ENOSPC, taken=10)
            try:
                open_log(disk, boot_id=boot_id)
            except DiskFullError:
                refused += 1
            except SyncFailedError:
                assert MARK in disk.names()
            if len(disk.calls) <= number:
                break
            log = open_log(disk, boot_id=boot_id)
            assert not [name for name in disk.names() if name.endswith(".new")]
            assert log.commit == 1
            assert lines_in(disk) == [line(0)]
        assert refused


FILL_THE_DISK = """
import os, resource, signal, sys
from actorq.errors import DiskFullError
from tests.store.scenes import line, lines_in, open_log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
path = sys.argv[1]
log = open_log(path=path, filler_step=4096)
written = 0
try:
    while True:
        log.write(line(written, size=1000))
        log.sync()
        written += 1
except DiskFullError:
    pass
assert len(lines_in(path=path)) == written > 20
size = os.path.getsize(path)
for number in range(3):
    try:
        log.write(line(0, size=100_000))
    except DiskFullError:
        continue
    raise SystemExit("it fitted")
assert os.path.getsize(path) == size
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
log.write(line(written, size=1000))
log.close()
assert len(lines_in(path=path)) == written + 1
"""


def test_the_kernel_too_takes_a_part_of_a_write_and_it_is_taken_back(tmp_path):
    assert resource.RLIMIT_FSIZE is not None
    assert signal.SIGXFSZ is not None
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / PATH)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    json.loads((tmp_path / PATH).read_bytes())

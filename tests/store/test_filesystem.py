"""Reading and writing exactly so much, and what the kernel says of a file system."""

from __future__ import annotations

import errno
import os
import time
from unittest import mock

import pytest

from actorq.store.filesystem import REAL, RealFilesystem, kind_of_mount, read_exactly, write_exactly
from tests.helpers import wait_until


class AFewBytesAtATime(RealFilesystem):
    """As a file system may be over a network, or under a signal."""

    def pread(self, fd, length, offset):
        return super().pread(fd, min(length, 3), offset)

    def pwritev(self, fd, buffers, offset):
        return super().pwritev(fd, [b"".join(buffers)[:3]], offset)


class NoBytesAtAll(RealFilesystem):
    def pwritev(self, fd, buffers, offset):
        return 0


@pytest.fixture
def fd(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_what_goes_in_small_pieces_is_written_and_read_whole(fd):
    write_exactly(AFewBytesAtATime(), fd, b"0123456789", 5)

    assert os.pread(fd, 100, 0) == b"\0\0\0\0\x000123456789"
    assert read_exactly(AFewBytesAtATime(), fd, 8, 5) == b"01234567"


@pytest.mark.parametrize("filesystem", [REAL, AFewBytesAtATime()])
def test_behind_the_end_of_the_file_there_is_nothing_to_read(fd, filesystem):
    os.pwrite(fd, b"01234567", 0)

    assert read_exactly(filesystem, fd, 100, 2) == b"234567"
    assert read_exactly(filesystem, fd, 100, 8) == b""


def test_a_write_that_gets_nowhere_is_a_full_disk_and_no_endless_loop(fd):
    with pytest.raises(OSError, match="no more bytes") as caught:
        write_exactly(NoBytesAtAll(), fd, b"x", 0)
    assert caught.value.errno == errno.ENOSPC


def skip_without_nowait(fd):
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("this file system cannot say whether a page is in memory")
        raise


def test_what_the_disk_begins_with_early_stays_in_memory_for_those_who_read_it(fd):
    os.pwrite(fd, b"x" * 20_000, 0)
    os.fsync(fd)
    skip_without_nowait(fd)
    for begin in range(100, 16_000, 300):
        os.pwrite(fd, b"y" * 300, begin)
        REAL.start_writeback(fd, begin, 300)
        REAL.fdatasync(fd)
        for page in range(0, 20_000, 4096):
            # Raises BlockingIOError if it would have to ask the disk.
            assert os.preadv(fd, [bytearray(4096)], page, os.RWF_NOWAIT)


def test_a_disk_that_cannot_begin_early_says_so_in_the_sync(fd):
    other = os.dup(fd)
    os.close(other)
    REAL.start_writeback(other, 0, 100)
    with pytest.raises(OSError, match="Bad file descriptor"):
        REAL.fdatasync(other)


def test_the_kernel_tells_on_what_file_system_a_path_lies():
    assert REAL.kind("/proc") == "proc"


MOUNTS = """\
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 28 0:35 /home /home rw,relatime shared:20 - btrfs /dev/sdb1 rw,subvol=/home
41 40 0:50 / /home/far\\040away rw shared:21 - nfs4 server:/ rw
42 28 0:51 / /home/far\\040away/over rw - tmpfs tmpfs rw
43 28 0:52 / /back\\134slash rw - xfs /dev/sdc1 rw
"""


@pytest.mark.parametrize(
    ("device", "path", "kind"),
    [
        ("8:1", "/home", "ext4"),
        ("0:77", "/home/me/queues", "btrfs"),
        ("0:77", "/home", "btrfs"),
        ("0:77", "/homestead", "ext4"),
        ("0:77", "/home/far away/queues", "nfs4"),
        ("0:77", "/home/far away/over", "tmpfs"),
        ("0:77", "/back\\slash/queues", "xfs"),
    ],
)
def test_where_a_device_is_not_listed_the_mount_point_above_the_path_tells(device, path, kind):
    assert kind_of_mount(MOUNTS, device, path) == kind


CHANGES = {
    "made": lambda folder: (folder / "new").touch(),
    "removed": lambda folder: (folder / "one").unlink(),
    "renamed": lambda folder: (folder / "one").rename(folder / "new"),
    "given to another file": lambda folder: (folder / "one").replace(folder / "two"),
    "moved away": lambda folder: (folder / "one").rename(folder.parent / "one"),
    "moved in": lambda folder: (folder.parent / "aside").rename(folder / "two"),
    "linked": lambda folder: (folder / "new").hardlink_to(folder / "one"),
    "turned into a link": lambda folder: (folder / "new").symlink_to("one"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_happens_to_a_name_shows_in_its_directory_at_once(tmp_path, change):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in folder / "one", folder / "two", tmp_path / "aside":
        name.touch()
    wait_until(lambda: REAL.names_version(folder) is not None, what="a file system that renews the times of folders")
    before = REAL.names_version(folder)
    assert before is not None
    (folder / "one").write_text("no change of a name")
    assert REAL.names_version(folder) == before

    change(folder)
    os.utime(folder, ns=(before[2], before[2]))  # the time that anybody can set is not the one that counts

    assert REAL.names_version(folder) != before
    wait_until(lambda: REAL.names_version(folder) is not None)
    assert REAL.names_version(folder) != before


def test_a_change_within_the_same_tick_of_the_clock_is_not_overlooked(tmp_path):
    """As long as a second change could bear the time of the first, nothing is said."""
    for number in range(300):
        (tmp_path / str(number)).touch()
        before = REAL.names_version(tmp_path)
        (tmp_path / f"{number} too").touch()
        assert before is None or REAL.names_version(tmp_path) != before


@pytest.mark.parametrize(
    ("changed", "now", "is_told"),
    [
        (5_000_000_001, 5_004_000_000, True),
        (5_000_000_001, 5_000_000_001, False),  # the tick is not over
        (5_000_000_001, 4_996_000_000, False),  # by a clock that was put back, or a kernel that stamps more finely
        (5_000_000_000, 5_004_000_000, False),  # by a file system that counts in seconds, this one may not be over
    ],
)
def test_a_look_counts_once_the_clock_that_stamps_has_moved_on(tmp_path, changed, now, is_told):
    wait_until(lambda: REAL.names_version(tmp_path) is not None)
    status = mock.Mock(st_dev=tmp_path.stat().st_dev, st_ino=7, st_ctime_ns=changed)
    with (
        mock.patch.object(os, "stat", return_value=status),
        mock.patch.object(time, "clock_gettime_ns", return_value=now),
    ):
        version = REAL.names_version("folder")

    assert version == ((status.st_dev, 7, changed) if is_told else None)


def test_another_directory_of_the_same_name_is_another_version(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    wait_until(lambda: REAL.names_version(folder) is not None)
    before = REAL.names_version(folder)
    folder.rename(tmp_path / "old")
    folder.mkdir()

    wait_until(lambda: REAL.names_version(folder) is not None)
    assert REAL.names_version(folder) != before


def test_where_the_kernel_does_not_keep_the_times_or_there_is_nothing_it_cannot_be_told(tmp_path):
    assert REAL.names_version("/proc") is None
    assert REAL.names_version(tmp_path / "nothing") is None

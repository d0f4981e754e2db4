"""Reading and writing exactly so much, and what the kernel says of a file system."""

from __future__ import annotations

import errno
import os

import pytest

from actorq.store.filesystem import REAL, RealFilesystem, read_exactly, write_exactly


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


def test_the_kernel_tells_on_what_file_system_a_path_lies():
    assert REAL.kind("/proc") == "proc"

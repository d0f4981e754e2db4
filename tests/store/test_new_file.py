"""A file gets its name when it is whole, and never in the place of one that it should not replace."""

from __future__ import annotations

import errno

import pytest

from actorq.store.log_writer import create_file
from actorq.store.new_file import NewFile
from actorq.testing import CrashingFilesystem
from tests.store.scenes import PATH, disk_of, disk_with, line, lines_in, open_log

NO_HARD_LINKS = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK]


@pytest.mark.parametrize("code", NO_HARD_LINKS)
def test_on_a_file_system_without_hard_links_a_queue_is_created_all_the_same(code):
    disk = CrashingFilesystem()
    disk.fail_next("link", code)

    assert create_file(PATH, filesystem=disk)

    log = open_log(disk)
    log.write(line(0))
    log.close()
    assert disk.names() == [PATH]
    for left in disk.crash_states():
        assert lines_in(left) == [line(0)]


@pytest.mark.parametrize("code", [*NO_HARD_LINKS, errno.EEXIST])
def test_a_name_that_is_taken_is_not_taken_again_with_or_without_hard_links(code):
    disk = disk_of(b"somebody's")
    disk.fail_next("link", code)

    with NewFile(PATH, disk) as new:
        new.write(b"ours")
        assert not new.publish()

    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], b"somebody's")


@pytest.mark.parametrize("code", NO_HARD_LINKS)
def test_without_hard_links_a_file_is_replaced_all_the_same(code):
    disk = disk_of(b"old")
    disk.fail_next("link", code)

    with NewFile(PATH, disk) as new:
        new.write(b"new")
        new.replace()

    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], b"new")


@pytest.mark.parametrize("way", [NewFile.publish, NewFile.replace])
def test_any_other_error_of_a_link_is_one_and_leaves_nothing_of_the_new_file(way):
    disk = disk_with([line(0)])
    before = disk.read_bytes(PATH)
    disk.fail_next("link", errno.EIO)

    with NewFile(PATH, disk) as new:
        new.write(b"new")
        with pytest.raises(OSError, match="Input/output"):
            way(new)

    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], before)


def test_what_is_written_in_two_parts_is_brought_to_disk_as_one():
    disk = CrashingFilesystem()
    with NewFile(PATH, disk) as new:
        new.write(b"first, ")
        new.sync()
        new.write(b"last")
        new.patch(b"F", 0)
        assert new.publish()

    assert {left.read_bytes(PATH) for left in disk.crash_states()} == {b"First, last"}

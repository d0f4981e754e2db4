from __future__ import annotations

import pytest

from actorq.errors import CorruptQueueError, StoreError
from actorq.store.format import HEAD_LENGTH
from actorq.testing import CrashingFilesystem
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, disk_with, end_of_commits, line, lines_in, open_log

BATCHES = [line(0), line(1, size=60) + line(2), b',{"n":"J*@ JJ \xc3\x8a"}\n']


def flips(content: bytes, begin: int, end: int):
    """Return the content with every other of its bits changed in turn; `python -m tests.store.damage` changes each."""
    for offset in range(begin, end):
        for bit in range(offset % 2, 8, 2):
            changed = bytearray(content)
            changed[offset] ^= 1 << bit
            yield offset, bytes(changed)


@pytest.mark.parametrize("boot_id", [BOOT, NEXT_BOOT], ids=["same boot", "another boot"])
@pytest.mark.parametrize("filler", [b"", b"\n" * 30], ids=["closed", "filler"])
def test_a_changed_bit_is_refused_or_harmless_and_never_cut(boot_id, filler):
    content = disk_with(BATCHES).read_bytes(PATH) + filler
    end = end_of_commits(content)
    refused = 0
    for offset, changed in flips(content, 0, end):
        disk = disk_of(changed)
        try:
            log = open_log(disk, boot_id=boot_id)
            assert log.recovered is None, f"cut by a flip at {offset}"
            log.forget()
            # A start reads the tail only; whoever replays the log finds what is further ahead.
            assert lines_in(disk) == BATCHES, f"another queue by a flip at {offset}"
        except StoreError:
            refused += 1
            assert disk.names() == [PATH]
            assert disk.read_bytes(PATH) == changed
    assert refused == end * 4


@pytest.mark.parametrize("boot_id", [BOOT, NEXT_BOOT], ids=["same boot", "another boot"])
def test_a_changed_bit_behind_the_last_commit_changes_nothing(boot_id):
    content = disk_with(BATCHES).read_bytes(PATH) + b"\n" * 60
    for offset, changed in flips(content, end_of_commits(content), len(content)):
        disk = disk_of(changed)
        open_log(disk, boot_id=boot_id).close()
        assert lines_in(disk) == BATCHES, offset


def test_a_changed_bit_among_unsynced_commits_is_refused_after_a_restart_too():
    disk = CrashingFilesystem()
    log = open_log(disk)
    for batch in BATCHES:
        log.write(batch)
    content = disk.read_bytes(PATH)
    for _, changed in flips(content, HEAD_LENGTH, end_of_commits(content)):
        disk = disk_of(changed)
        with pytest.raises(CorruptQueueError):
            open_log(disk, boot_id=NEXT_BOOT)
        assert disk.read_bytes(PATH) == changed


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 64, 512])
@pytest.mark.parametrize("fill", [b"\0", b"\n", b"x", b" "], ids=["zeros", "filler", "letters", "spaces"])
def test_a_damaged_run_of_any_bytes_is_refused_on_the_same_boot(size, fill):
    batches = [line(number, size=200) for number in range(4)]
    content = disk_with(batches).read_bytes(PATH)
    end = end_of_commits(content)
    # What wipes the end of the last batch, and nothing else, looks like the prefix that a kill leaves.
    for offset in range(0, end - size - 3, 5):
        changed = content[:offset] + fill * size + content[offset + size :]
        if changed == content:
            continue
        disk = disk_of(changed)
        try:
            open_log(disk).forget()
            assert lines_in(disk) == batches
        except StoreError:
            assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], changed)
            continue
        raise AssertionError(f"{size} bytes at {offset} went unnoticed")


def open_and_look(disk):
    open_log(disk).forget()
    lines_in(disk)


def test_swapped_doubled_and_missing_blocks_are_refused():
    batches = [line(number, size=300) for number in range(12)]
    content = disk_with(batches).read_bytes(PATH)
    size = 512
    blocks = [content[at : at + size] for at in range(0, len(content), size)]
    last = len(blocks) - 1
    for here in range(last - 1):
        for changed_blocks in (
            [*blocks[:here], blocks[here + 1], blocks[here], *blocks[here + 2 :]],
            [*blocks[:here], blocks[here], *blocks[here:]],
            [*blocks[:here], *blocks[here + 1 :]],
            [*blocks[:here], blocks[here + 1], *blocks[here + 1 :]],
        ):
            changed = b"".join(changed_blocks)
            disk = disk_of(changed)
            with pytest.raises(StoreError):
                open_and_look(disk)
            assert disk.read_bytes(PATH) == changed


def test_the_error_says_where_and_what_next():
    content = disk_with([line(number) for number in range(5)]).read_bytes(PATH)
    at = content.index(b'{"n":2')
    changed = content[:at] + b"X" + content[at + 1 :]
    with pytest.raises(CorruptQueueError) as caught:
        lines_in(disk_of(changed))
    assert caught.value.sequence == 3
    assert caught.value.offset == at - 1
    assert f"commit 3 at byte {at - 1}" in str(caught.value)
    assert "commit 4 stands behind it" in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert f"actorq verify {PATH}" in str(caught.value)

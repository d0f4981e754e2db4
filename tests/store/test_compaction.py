from __future__ import annotations

import errno
import json
import os

import pytest

from actorq.errors import CorruptQueueError, DiskFullError, StoreError
from actorq.store import records
from actorq.store.compaction import Compaction, compact
from actorq.store.filesystem import REAL
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.log_on_paper import C, P, S, hello, ids
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, killed_at, open_log

PUBLISHED = records.hello_line(hello(P)) + records.publish_lines(ids(1, 6), "work", [b'{"n":%d}' % n for n in range(6)])
ASSIGNED = records.hello_line(hello(C)) + records.barrier_line(S) + records.assign_line(ids(1, 5), C, 1, S, 1)
FINISHED = [
    records.done_result_lines([(f"{P}-1", b'{"ok":[1,2]}')], 1, C, 1),
    records.failed_line(f"{P}-2", 1, C, 2, "ready", records.error_json("ValueError", "no", "Traceback ...")),
    records.done_line(ids(3, 4), 1, C, 3),
]
LATER = records.publish_lines(ids(7), "later", [b'"x"'])


def a_life(disk, path=PATH):
    log = open_log(disk, path=path)
    for batch in (PUBLISHED, ASSIGNED, *FINISHED):
        log.write(batch)
        log.sync()
    return log


def queue_on(disk, path=PATH):
    """Return what a person would say is in the queue: every task with all that is known of it."""
    reader = LogReader(path, filesystem=disk)
    state = QueueState()
    for batch in reader.batches():
        state.apply(batch)
    tasks = {str(task.id): task for task in (state.task(seq, reader.read) for seq in range(len(state)))}
    reader.close()
    return tasks, state.counts()


def squeeze(disk, path=PATH, **options):
    return compact(path, boot_id=BOOT, pid=1, filesystem=disk, **options)


def test_compaction_keeps_the_queue_and_every_promise_of_the_chain(tmp_path):
    path = tmp_path / PATH
    a_life(REAL, path).close()
    before = queue_on(REAL, path)
    queue = LogReader(path).header.queue

    done = squeeze(REAL, path)

    assert queue_on(REAL, path) == before
    reader = LogReader(path)
    assert (reader.header.queue, reader.generation, reader.header.commit) == (queue, 2, 5)
    assert (done.generation, done.tasks, done.removed) == (2, 6, 0)
    assert done.bytes_after == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [PATH]
    json.loads(path.read_bytes())


def test_finished_tasks_leave_but_are_counted():
    disk = CrashingFilesystem()
    a_life(disk).close()
    _, counts = queue_on(disk)

    done = squeeze(disk, keep_done=1)

    tasks, counts_after = queue_on(disk)
    assert (done.tasks, done.removed) == (4, 2)
    assert counts_after == counts
    assert sorted(tasks) == [f"{P}-{number}" for number in (2, 4, 5, 6)]
    squeeze(disk, keep_done=0)
    assert queue_on(disk)[1] == counts


def test_the_log_goes_on_behind_a_snapshot():
    disk = CrashingFilesystem()
    a_life(disk).close()
    squeeze(disk)
    for generation in (2, 3, 4):
        log = open_log(disk)
        assert (log.commit, log.header.generation) == (3 + generation, generation)
        log.write(records.publish_lines(ids(5 + generation), "later", [b"null"]))
        log.close()
        squeeze(disk)
    tasks, _ = queue_on(disk)
    assert list(tasks)[-3:] == [f"{P}-{number}" for number in (7, 8, 9)]


def test_a_writer_after_compaction_reads_the_last_piece_only():
    disk = CrashingFilesystem()
    a_life(disk).close()
    squeeze(disk)
    log = open_log(disk)
    batches = list(log.tail())
    assert [(batch.piece, batch.lines[:13]) for batch in batches] == [(True, b',{"sessions":')]
    log.write(LATER)
    assert [batch.piece for batch in log.tail()] == [True, False]


def test_batches_that_come_while_the_snapshot_is_made_are_copied_as_they_are():
    disk = CrashingFilesystem()
    log = a_life(disk)
    reader = LogReader(PATH, filesystem=disk)
    state = QueueState()
    for batch in reader.batches():
        state.apply(batch)
    at = batch.commit.at
    with Compaction(PATH, reader.header, reader.link, at, disk) as compaction:
        for number, piece in enumerate(state.snapshot_pieces(reader.read, None)):
            compaction.write_piece(piece)
            log.write(records.publish_lines(ids(7 + number), "while", [b"1"]))
        compaction.sync()
        assert compaction.copy_batches(reader) == 2
        log.write(records.publish_lines(ids(9), "while", [b"1"]))
        log.sync()
        assert compaction.copy_batches(reader) == 1
        before = queue_on(disk)
        old = disk.read_bytes(PATH)
        compaction.replace()
    assert queue_on(disk) == before
    new = disk.read_bytes(PATH)
    assert old.rstrip(b"\n").endswith(new[new.index(b'\n,{"publish":"%b-7' % P.encode()) :].rstrip(b"\n"))
    with pytest.raises(StoreError, match="another file"):
        log.check_file()


def test_a_new_file_that_holds_another_queue_than_the_old_one_does_not_replace_it():
    disk = CrashingFilesystem()
    a_life(disk).close()
    before = disk.read_bytes(PATH)
    reader = LogReader(PATH, filesystem=disk)
    state = QueueState()
    for batch in reader.batches():
        state.apply(batch)

    with Compaction(PATH, reader.header, reader.link, batch.commit.at, disk) as compaction:
        for piece in state.snapshot_pieces(reader.read, None):
            compaction.write_piece(piece)
        with pytest.raises(CorruptQueueError, match="the old file was kept"):
            compaction.check(QueueState().counts())

    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], before)


def test_a_torn_tail_is_kept_aside_before_the_file_is_replaced():
    disk = CrashingFilesystem()
    a_life(disk).close()
    torn = disk.read_bytes(PATH)[:-2] + LATER[:20]
    disk.write_bytes(PATH, torn)
    squeeze(disk)
    (aside,) = [name for name in disk.names() if ".torn-" in name]
    assert disk.read_bytes(aside) == LATER[:20]


def test_a_damaged_file_is_not_compacted():
    disk = CrashingFilesystem()
    a_life(disk).close()
    content = disk.read_bytes(PATH).replace(b'{"n":3}', b'{"n":4}')
    disk = disk_of(content)
    with pytest.raises(CorruptQueueError):
        squeeze(disk)
    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], content)


def test_a_power_cut_or_kill_at_any_call_leaves_the_old_queue_or_the_new_one():
    calls, generations = 0, set()
    while True:
        disk = CrashingFilesystem()
        a_life(disk).close()
        before = queue_on(disk)
        disk.fail_call(len(disk.calls) + calls, Stopped(), taken=100)
        try:
            squeeze(disk)
            break
        except Stopped:
            pass
        for left in [disk.after_kill(), *disk.crash_states(limit=20, seed=calls)]:
            open_log(left, boot_id=NEXT_BOOT).close()
            assert queue_on(left) == before
            generations.add(LogReader(PATH, filesystem=left).generation)
            squeeze(left)
            assert left.names() == [PATH]
            assert queue_on(left) == before
        calls += 1
    assert generations == {1, 2}
    assert calls > 8


@pytest.mark.parametrize(
    ("place", "generation"),
    [
        ("compaction.begun", 1),
        ("compaction.piece", 1),
        ("compaction.copied", 1),
        ("compaction.checked", 1),
        ("new_file.replacing", 1),
        ("new_file.named", 2),
        ("compaction.replaced", 2),
    ],
)
def test_whoever_is_killed_at_a_place_of_compaction_leaves_the_whole_queue_in_the_old_file_or_the_new(
    place, generation
):
    disk = CrashingFilesystem()
    a_life(disk).close()
    before = queue_on(disk)
    with killed_at(disk, place):
        squeeze(disk)

    left = disk.after_kill()
    open_log(left).close()
    assert LogReader(PATH, filesystem=left).generation == generation
    for state in [left, *disk.crash_states(limit=12)]:
        open_log(state, boot_id=NEXT_BOOT).close()
        assert queue_on(state) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_leaves_the_old_queue_and_no_temp_file(code):
    calls, errors = 0, 0
    while True:
        disk = CrashingFilesystem()
        a_life(disk).close()
        before = queue_on(disk)
        disk.fail_call(len(disk.calls) + calls, code, taken=10)
        try:
            squeeze(disk)
        except (DiskFullError, OSError, StoreError):
            errors += 1
        else:
            break
        open_log(disk).close()
        assert not [name for name in disk.names() if name.endswith(".new")]
        assert queue_on(disk) == before
        calls += 1
    assert errors == calls > 6


def open_and_look(disk):
    open_log(disk, boot_id=NEXT_BOOT).forget()
    queue_on(disk)


def test_every_changed_bit_of_a_compacted_file_is_refused():
    disk = CrashingFilesystem()
    a_life(disk).close()
    squeeze(disk)
    log = open_log(disk)
    log.write(LATER)
    log.close()
    content = disk.read_bytes(PATH)
    for offset in range(len(content) - 2):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 8
        disk = disk_of(bytes(changed))
        with pytest.raises(StoreError):
            open_and_look(disk)
        assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], bytes(changed))


def test_a_truncated_snapshot_is_refused():
    disk = CrashingFilesystem()
    a_life(disk).close()
    squeeze(disk)
    content = disk.read_bytes(PATH)
    for length in range(len(content) - 3):
        disk = disk_of(content[:length])
        with pytest.raises(StoreError):
            open_log(disk).forget()
        with pytest.raises(StoreError):
            list(LogReader(PATH, filesystem=disk).batches())

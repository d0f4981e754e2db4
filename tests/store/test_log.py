from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys

import pytest

from actorq.errors import CorruptQueueError, QueueReplacedError, SyncFailedError
from actorq.store import log_writer
from actorq.store.compaction import compact
from actorq.store.filesystem import RealFilesystem
from actorq.store.format import HEAD_LENGTH, RECORD_LENGTH
from actorq.store.log_reader import LogReader, Position, require_queue
from actorq.store.log_writer import FIRST_FILLER_STEP, LogWriter, create_file
from actorq.store.records import Hello, hello_line, publish_lines
from actorq.tasks.ids import IdRange
from actorq.testing import CrashingFilesystem
from tests.helpers import wait_until
from tests.store.scenes import BOOT, disk_with, line, lines_in, open_log, without_writer

SESSIONS = b',{"sessions":[],"barrier":null,"barrier_req":0}\n'


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Queue.json"


def test_a_new_queue_is_a_json_document_that_only_its_owner_may_read(path):
    open_log(path=path).close()

    assert json.loads(path.read_bytes())[0]["actorq"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(path.parent) == ["Queue.json"]


@pytest.mark.parametrize("filler_step", [0, 1000, 1 << 20])
def test_the_file_is_a_json_document_after_every_commit(path, filler_step):
    log = open_log(path=path, filler_step=filler_step)
    sizes = [30, 500, 5000, 100, 200_000, 40]
    for number, size in enumerate(sizes):
        log.write([line(number, size), line(number)])
        log.sync()
        document = json.loads(path.read_bytes())
        assert [record["n"] for record in document if "n" in record][-1] == number
    log.close()
    assert len(json.loads(path.read_bytes())) == 2 + 3 * len(sizes)


def test_a_reader_follows_what_is_written(path):
    log = open_log(path=path)
    reader = LogReader(path)
    assert list(reader.batches()) == []
    for number in range(200):
        log.write(line(number, size=10 * number))
        (batch,) = reader.batches()
        assert without_writer(batch.lines) == line(number, size=10 * number)
        assert reader.read(batch.start, len(batch.lines)) == batch.lines
        assert reader.position == log.position == Position(1, batch.end)
    assert reader.commit == log.commit == 200
    reader.close()
    log.close()


def test_a_batch_larger_than_every_read_comes_back_whole(path):
    log = open_log(path=path)
    large = line(1, size=9 << 20)
    for batch in (line(0), large, line(2), large):
        log.write(batch)
    assert lines_in(path=path) == [line(0), large, line(2), large]
    log.close()
    assert lines_in(path=path) == [line(0), large, line(2), large]


def test_a_clean_close_leaves_no_filler(path):
    log = open_log(path=path, filler_step=1 << 20)
    for number in range(3):
        log.write(line(number))
    assert log.size == path.stat().st_size > FIRST_FILLER_STEP
    end = log.position.offset
    log.close()
    assert path.stat().st_size == end + 2
    assert path.read_bytes().endswith(b"}\n]\n")


def test_a_single_commit_brings_no_filler_at_all(path):
    log = open_log(path=path, filler_step=1 << 20)
    log.write(line(1))
    assert path.stat().st_size == log.position.offset + 2
    log.close()


def test_a_close_brings_everything_to_disk():
    disk = CrashingFilesystem()
    log = open_log(disk)
    log.write(line(0))
    log.close()
    for left in disk.crash_states():
        assert lines_in(left) == [line(0)]


class WritesOnDuringSync(CrashingFilesystem):
    """A disk so slow that the next batch is written before the sync of the last one returns."""

    log: LogWriter | None = None

    def fdatasync(self, fd):
        super().fdatasync(fd)
        log, self.log = self.log, None
        if log is not None:
            log.write(line(1))


def test_a_sync_vouches_only_for_what_was_written_before_it_began():
    disk = WritesOnDuringSync()
    log = open_log(disk)
    log.write(line(0))
    disk.log = log
    log.sync()
    assert (log.commit, log.synced) == (2, 1)


class TellingFilesystem(RealFilesystem):
    """Tells which bytes of the file were written, begun with and synced, in order."""

    def __init__(self):
        self.calls = []

    def pwritev(self, fd, buffers, offset):
        self.calls.append(("write", offset, sum(map(len, buffers))))
        return super().pwritev(fd, buffers, offset)

    def start_writeback(self, fd, offset, length):
        self.calls.append(("begin", offset, length))
        super().start_writeback(fd, offset, length)

    def fdatasync(self, fd):
        self.calls.append(("sync",))
        super().fdatasync(fd)


def test_the_disk_begins_with_a_small_batch_that_will_be_synced_and_with_no_other(path):
    disk = TellingFilesystem()
    log = open_log(disk, path, filler_step=1 << 16)
    log.write(line(0))  # the file brings its filler with one of the first two
    log.write(line(1))
    log.sync()
    at, disk.calls = log.position.offset, []
    length = len(line(2)) + RECORD_LENGTH
    log.write(line(2), will_sync=True)
    log.sync()
    log.write(line(3))
    log.sync()
    log.write(line(4, 5000), will_sync=True)
    log.sync()

    later, last = at + length, at + 2 * length
    size = len(line(4, 5000)) + RECORD_LENGTH + 1
    assert disk.calls == [
        *[("write", at, length + 1), ("begin", at, length), ("sync",)],
        *[("write", later, length + 1), ("sync",)],
        *[("write", last, size), ("sync",)],
    ]


class CountingFilesystem(RealFilesystem):
    """Counts the bytes that are read."""

    def __init__(self):
        self.bytes_read = 0

    def pread(self, fd, length, offset):
        data = super().pread(fd, length, offset)
        self.bytes_read += len(data)
        return data


@pytest.mark.parametrize("ending", ["closed", "filled", "torn by a kill", "one commit", "compacted"])
def test_a_start_reads_the_tail_and_not_the_file(path, ending):
    log = open_log(path=path, filler_step=1 << 16)
    publisher = "publisher222"
    lines = hello_line(Hello(publisher, "publisher", 1, 2, "boot"))
    for number in range(1 if ending == "one commit" else 40):
        span = IdRange(publisher, 50 * number + 1, 50 * number + 50)
        log.write(lines + publish_lines(span, "work", [b'"%b"' % (b"x" * 1000)] * 50))
        log.sync()
        lines = SESSIONS
    if ending in {"filled", "torn by a kill"}:
        for number in range(5):
            log.write(SESSIONS + line(number, size=5000))
            log.sync()
        log.forget()
    else:
        log.close()
    if ending == "torn by a kill":
        with path.open("r+b") as file:
            file.seek(log.position.offset)
            file.write(line(0, size=5000)[:4000])
    if ending == "compacted":
        compact(path, boot_id=BOOT, pid=1)
    size = path.stat().st_size

    disk = CountingFilesystem()
    log = open_log(disk, path=path)

    assert (log.recovered is not None) == (ending == "torn by a kill")
    assert size > 2_000_000 or ending == "one commit"
    assert disk.bytes_read < (size * 2 + 14_000 if ending == "one commit" else 600_000)
    log.close()


def test_each_writer_raises_the_epoch_and_signs_its_first_batch(path):
    for number in range(3):
        log = open_log(path=path)
        assert (log.epoch, log.commit) == (number + 1, 2 * number)
        log.write(line(0))
        log.write(line(1))
        log.close()
    batches = list(LogReader(path).batches())
    assert [batch.commit.epoch for batch in batches] == [1, 1, 2, 2, 3, 3]
    assert [batch.lines.count(b'{"writer":') for batch in batches] == [1, 0, 1, 0, 1, 0]
    assert batches[2].lines.startswith(b',{"writer":2,"boot":"%b","pid":4711}\n' % BOOT.encode())


def test_every_commit_is_on_disk_when_a_writer_has_opened(path):
    log = open_log(path=path)
    log.write(line(0))
    log.write(line(1))
    assert (log.commit, log.synced) == (2, 0)
    log.sync()
    log.write(line(2))
    log.forget()

    log = open_log(path=path)
    assert (log.commit, log.synced) == (3, 3)
    log.close()
    assert [batch.commit.synced for batch in LogReader(path).batches()] == [0, 0, 2]


def test_the_tail_begins_with_the_last_checkpoint():
    disk = disk_with([line(0), SESSIONS + line(1), line(2), SESSIONS + line(3), line(4)])
    log = open_log(disk)
    assert [batch.commit.number for batch in log.tail()] == [4, 5]
    assert log.bytes_since_checkpoint == sum(len(batch.lines) + RECORD_LENGTH for batch in log.tail())

    log.write(SESSIONS)
    assert [batch.commit.number for batch in log.tail()] == [6]


def test_without_a_checkpoint_the_tail_is_everything():
    log = open_log(disk_with([line(0), line(1)]))
    assert [batch.commit.number for batch in log.tail()] == [1, 2]
    assert log.bytes_since_checkpoint == log.position.offset - HEAD_LENGTH


def test_a_checkpoint_stands_first_and_is_signed(path):
    log = open_log(path=path)
    log.write(SESSIONS + line(0))
    log.write(SESSIONS + line(1))
    for batch in LogReader(path).batches():
        assert batch.lines.startswith(SESSIONS)
        assert batch.lines.count(b'{"writer":1,') == 1
    log.close()


def test_a_checkpoint_may_be_the_first_batch_behind_a_snapshot():
    disk = disk_with([hello_line(Hello("p" * 12, "publisher", 1, 1, "boot"))])
    compact("Queue.json", boot_id=BOOT, pid=1, filesystem=disk)
    log = open_log(disk)
    log.write(SESSIONS)
    log.write(line(1))
    log.close()

    log = open_log(disk)
    assert [without_writer(batch.lines) for batch in log.tail()] == [SESSIONS, line(1)]
    log.close()


def test_a_tail_that_cannot_be_chained_to_what_stands_before_it_is_damage(path):
    log = open_log(path=path)
    log.write(line(0))
    log.write(SESSIONS)
    content = path.read_bytes()
    record = content.index(SESSIONS) - RECORD_LENGTH
    with path.open("r+b") as file:
        file.seek(record)
        file.write(b"?")

    with pytest.raises(CorruptQueueError, match="no commit record stands before a checkpoint") as caught:
        log.tail()

    assert caught.value.offset == record
    log.close()


def test_a_batch_has_a_greatest_length(monkeypatch):
    disk = CrashingFilesystem()
    log = open_log(disk)
    monkeypatch.setattr(log_writer, "MAX_BATCH", 300)
    with pytest.raises(ValueError, match="longer than 300"):
        log.write(line(0, size=301))

    log.write(line(1, size=100))
    log.close()
    assert lines_in(disk) == [line(1, size=100)]


@pytest.mark.parametrize("end", [LogWriter.close, LogWriter.forget])
def test_a_log_that_was_closed_is_closed_twice_without_harm_and_takes_nothing_more(end):
    disk = CrashingFilesystem()
    log = open_log(disk)
    log.write(line(0))
    end(log)
    before = disk.read_bytes("Queue.json")

    log.close()
    log.forget()
    for touch in (lambda: log.write(line(1)), log.sync):
        with pytest.raises(ValueError, match="is closed"):
            touch()

    assert disk.read_bytes("Queue.json") == before


def test_a_disk_that_fails_while_room_is_made_for_a_batch_is_not_written_again():
    disk = disk_with([line(0)])
    log = LogWriter.open("Queue.json", filesystem=disk, boot_id=BOOT, pid=1, reserve=4096)
    assert repr(log) == "<LogWriter Queue.json generation 1 epoch 2: commit 1, synced 1>"
    disk.fail_next("write", errno.EIO)

    with pytest.raises(SyncFailedError, match="write"):
        log.write(line(1))

    assert "failed" in repr(log)
    with pytest.raises(SyncFailedError):
        log.write(line(1))
    log.close()
    assert lines_in(disk) == [line(0)]
    assert "Queue.json.failed-sync" in disk.names()


def test_only_whole_lines_are_written():
    log = open_log(disk_with([]))
    for wrong in (b"", [], b'{"n":1}\n', b',{"n":1}', b',{"n":1}\n,', [b",[]\n"]):
        with pytest.raises(ValueError, match="not whole lines"):
            log.write(wrong)
    assert log.commit == 0


class Hours:
    """A clock on which much time passes."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        self.seconds += 3600
        return self.seconds

    wall = now


def test_a_writer_stops_when_its_file_was_replaced(path):
    log = LogWriter.open(path, boot_id=BOOT, pid=1, clock=Hours())
    log.write(line(0))
    content = path.read_bytes()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(content)
    with pytest.raises(QueueReplacedError, match="another file"):
        log.write(line(1))
    path.unlink()
    with pytest.raises(QueueReplacedError, match="removed"):
        log.write(line(1))
    assert path.with_suffix(".old").read_bytes() == content
    log.forget()


def test_a_writer_stops_when_somebody_else_has_changed_the_file(path):
    log = LogWriter.open(path, boot_id=BOOT, pid=1, clock=Hours())
    log.write(line(0))
    with path.open("ab") as other:
        other.write(b"\n")
    with pytest.raises(QueueReplacedError, match="bytes long"):
        log.write(line(1))
    log.forget()


def test_a_reader_notices_that_the_file_was_replaced(path):
    create_file(path)
    reader = LogReader(path)
    assert not reader.moved()
    path.unlink()
    assert reader.moved()
    create_file(path)
    assert reader.moved()
    assert list(reader.batches()) == []
    reader.close()
    reader.close()


def test_of_two_creators_one_wins_and_nothing_is_left_over(path):
    assert create_file(path)
    first = path.read_bytes()
    assert not create_file(path)
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["Queue.json"]


def test_opening_without_creating_leaves_nothing_behind(path):
    with pytest.raises(FileNotFoundError):
        LogWriter.open(path, boot_id=BOOT, pid=1, create=False)
    with pytest.raises(FileNotFoundError):
        LogReader(path)
    assert os.listdir(path.parent) == []


WRITE_FOREVER = """
import sys
from tests.store.scenes import line, open_log
log = open_log(path=sys.argv[1], filler_step=1 << 16)
number = 0
while True:
    log.write([line(number, size=100 + number * 7919 % 40_000)] * (1 + number % 5))
    number += 1
    if number % 10 == 0:
        log.sync()
    if number == 100:
        print("running", flush=True)
"""


def test_a_reader_follows_a_writer_in_another_process_until_it_is_killed(path):
    writer = subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, str(path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        wait_until(path.exists)
        reader = LogReader(path)
        seen = 0

        def read_on(until):
            nonlocal seen
            for batch in reader.batches():
                one = line(seen, size=100 + seen * 7919 % 40_000)
                assert without_writer(batch.lines) == one * (1 + seen % 5)
                seen += 1
                if seen >= until:  # whoever reads slower than is written would never come to the end
                    return True
            return False

        assert writer.stdout.readline() == b"running\n"
        wait_until(lambda: read_on(until=200), timeout=20)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    read_on(until=math.inf)
    reader.close()

    log = open_log(path=path)
    assert log.commit == seen
    log.write(line(0))
    log.close()
    assert len(lines_in(path=path)) == seen + 1
    json.loads(path.read_bytes())


def test_a_file_must_hold_the_queue_that_is_asked_for(path, tmp_path):
    with pytest.raises(QueueReplacedError, match="removed or renamed"):
        require_queue(path, "0" * 32)
    require_queue(path, None)  # it may be created

    open_log(path=path).close()
    reader = LogReader(path)
    assert (reader.path, repr(reader)) == (path, f"<LogReader {path} generation 1 commit 0 at {HEAD_LENGTH}>")
    require_queue(path, reader.header.queue)
    require_queue(path, None)
    with pytest.raises(QueueReplacedError, match="another queue"):
        require_queue(path, "0" * 32)
    reader.close()

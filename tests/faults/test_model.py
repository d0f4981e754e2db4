"""The public Queue against a plain list, on a disk that forgets: hypothesis looks for the story that breaks a promise.

Publishers come and go in several processes; at any call one is killed, the disk is full, a sync fails, and between any
two steps the power is cut. What is acknowledged is in the list; what failed without a word is `maybe`, and in the queue
either whole, or as far as its commits went.

A longer run: ACTORQ_EXAMPLES=1000 uv run pytest -o faulthandler_timeout=0 tests/faults/test_model.py
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actorq.errors import (
    PayloadError,
    PublishRejectedError,
    PublishUnknownError,
    SyncFailedError,
    TaskNotFoundError,
)
from actorq.store.compaction import compact
from actorq.store.filesystem import write_exactly
from actorq.store.locks import HostLock, WriterLock
from actorq.store.verify import verify
from actorq.testing import PAGE, SECTOR, CrashingFilesystem, QueueOnDisk, Stopped

EXAMPLES = int(os.environ.get("ACTORQ_EXAMPLES", "0"))
BAD = object()
SIZES = st.sampled_from([0, 30, 500, 4000, 9000])
PROCESSES = 3

FAULTS = st.one_of(
    st.none(),
    st.tuples(st.just("kill"), st.integers(0, 13), st.sampled_from([0, 1, 200, 600, 5000])),
    st.tuples(st.just("tear"), st.integers(0, 300), st.just(0)),
    st.tuples(st.just("full"), st.integers(0, 13), st.sampled_from([0, 1, 200, 600, 5000])),
    st.tuples(st.just("sync"), st.integers(0, 1), st.just(0)),
)


class QueueOnABadDisk(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "Queue.json"
        self.disk = CrashingFilesystem()
        self.boot = 0
        self.number = 0
        self.sure: dict[int, str] = {}  # serial number: id
        self.maybe: list[list[int]] = []
        self.never: set[int] = set()
        self.processes = [self.new_process() for _ in range(PROCESSES)]

    def teardown(self):
        self.folder.cleanup()

    def new_process(self):
        return QueueOnDisk(self.path, self.disk, f"boot {self.boot}")

    # -----------------------------------------------------------------------------------------------------------

    @rule(who=st.integers(0, PROCESSES - 1), size=SIZES, fault=FAULTS)
    def publish(self, who, size, fault):
        item = self.item(size)
        with self.failing(who, [item["n"]], fault):
            task_id = self.processes[who].publish(item)
            self.acknowledged([item["n"]], [task_id])

    @rule(who=st.integers(0, PROCESSES - 1), sizes=st.lists(SIZES, max_size=5), bad=st.booleans(), fault=FAULTS)
    def publish_many(self, who, sizes, bad, fault):
        items: list[object] = [self.item(size) for size in sizes]
        numbers = list(range(self.number - len(sizes) + 1, self.number + 1))
        if bad:
            items.append(BAD)
            self.number += 1
            items.append({"n": self.number})
            self.never.add(self.number)
        with self.failing(who, numbers, fault):
            if bad:
                with pytest.raises(PayloadError) as caught:
                    self.processes[who].publish_many(iter(items))
                assert caught.value.index == len(sizes)
                self.acknowledged(numbers, caught.value.published)
            else:
                self.acknowledged(numbers, self.processes[who].publish_many(iter(items)))

    @rule(fault=FAULTS)
    def compact(self, fault):
        if not self.exists():
            return
        with self.failing(0, [], fault):
            with HostLock(self.path).acquire(), WriterLock(self.path).acquire():
                compact(self.path, boot_id=f"boot {self.boot}", pid=1, filesystem=self.disk)
            self.adopted()
            assert not [name for name in self.disk.names() if name.endswith(".new")]

    @rule(chosen=st.integers(0, 1 << 16), block=st.sampled_from([SECTOR, PAGE]), seed=st.integers(0, 1 << 16))
    def cut_the_power(self, chosen, block, seed):
        states = list(self.disk.crash_states(limit=30, seed=seed, block=block, enumerate_up_to=6))
        event(f"power cut: {min(len(states), 8)} states or more")
        # Not drawn from the states: how many there are may differ by how fast items were gathered into chunks.
        self.disk = states[chosen % len(states)]
        self.boot += 1
        self.processes = [self.new_process() for _ in range(PROCESSES)]

    @rule(who=st.integers(0, PROCESSES - 1))
    def begin_anew(self, who):
        self.processes[who] = self.new_process()

    @rule()
    def lose_the_page_cache(self):
        """Memory is short: from here reading shows what the disk holds, which differs only after a failed sync."""
        if self.is_marked():
            self.disk.drop_caches()

    @rule(data=st.text("abc]}{,", max_size=40).map(lambda text: b',{"id":"' + text.encode()))
    def find_a_torn_tail(self, data):
        """Something left the beginning of a batch behind the last one."""
        if not self.exists() or self.torn():
            return
        content = self.disk.read_bytes(self.path)
        fd = self.disk.open(self.path, os.O_RDWR)
        write_exactly(self.disk, fd, data, content.rindex(b"]"))
        self.disk.fsync(fd)
        self.disk.close(fd)

    # -----------------------------------------------------------------------------------------------------------

    @invariant()
    def every_process_sees_what_was_promised_and_nothing_else(self):
        found = self.look()
        assert [n for n in found if n in self.sure] == list(self.sure), "lost, or out of order"
        assert not self.never & set(found)
        assert sorted(found) == list(found), "out of order"
        rest = set(found) - set(self.sure)
        for group in self.maybe:
            there = [n for n in group if n in rest]
            assert there == group[: len(there)], "a hole"
            rest -= set(there)
        assert not rest, "never published"
        # Between a failed sync and the next writer, a reader may know what has left the page cache since.
        for process in [] if self.is_marked() else self.processes:
            assert process.counts()["ready"] == len(found)

    @invariant()
    def each_task_is_what_was_published(self):
        if self.sure:
            for n in (min(self.sure), max(self.sure)):
                task = self.processes[n % PROCESSES].get(self.sure[n])
                assert (task.id, task.data["n"], task.state) == (self.sure[n], n, "ready")
        with pytest.raises(TaskNotFoundError):
            self.processes[0].get("aaaaaaaaaaaa-1")

    @invariant()
    def verify_finds_nothing_that_needs_a_person(self):
        if self.exists():
            report = verify(self.path, boot_id=f"boot {self.boot}", filesystem=self.disk)
            assert report.is_ok, report

    # -----------------------------------------------------------------------------------------------------------

    def item(self, size):
        self.number += 1
        return {"n": self.number, "x": "x" * size}

    def failing(self, who, numbers, fault):
        return Failing(self, who, numbers, fault)

    def acknowledged(self, numbers, ids):
        assert len(ids) == len(numbers)
        if not ids:
            return  # nothing was written
        self.adopted()
        self.sure.update(zip(numbers, ids, strict=True))
        self.sure = dict(sorted(self.sure.items()))
        orjson.loads(self.disk.read_bytes(self.path))

    def adopted(self):
        """Somebody has synced all that is there: what may have been there, and is, stays."""
        found = self.look()
        self.sure |= {n: task_id for n, task_id in found.items() if any(n in group for group in self.maybe)}
        self.sure = dict(sorted(self.sure.items()))
        self.never.update(n for group in self.maybe for n in group if n not in found)
        self.maybe.clear()

    def look(self):
        """Return what a process sees that begins now: ids by serial number, in the order of the queue."""
        view = self.new_process()._view
        state = view.refresh()
        tasks = (state.task(seq, view._log.read) for seq in range(len(state)))
        return {task.data["n"]: task.id for task in tasks}

    def exists(self):
        return str(self.path) in self.disk.names()

    def torn(self):
        end = self.disk.read_bytes(self.path).rstrip(b"\n\0")
        return not end.endswith(b"}\n]") or self.is_marked()

    def is_marked(self):
        """Say whether a sync has failed since the last writer opened the file."""
        return any(name.endswith(".failed-sync") for name in self.disk.names())


class Failing:
    """What one process does while its disk fails or it is killed, and what may be said of it afterwards."""

    def __init__(self, machine, who, numbers, fault):
        self.machine = machine
        self.who = who
        self.numbers = numbers
        self.fault = fault

    def __enter__(self):
        disk = self.machine.disk
        match self.fault:
            case ("kill", at, taken):
                disk.fail_call(len(disk.calls) + at, Stopped(), taken=taken)
            case ("full", at, taken):
                disk.fail_call(len(disk.calls) + at, errno.ENOSPC, taken=taken)
            case ("tear", taken, _):
                disk.fail_next("write", Stopped(), taken=taken)
            case ("sync", skip, _):
                disk.fail_next("fdatasync", errno.EIO, skip=skip)

    def __exit__(self, kind, error, _traceback):
        machine = self.machine
        machine.disk.heal()
        if error is None:
            return False
        event(f"{self.fault and self.fault[0]}: {kind.__name__}")
        match error:
            case PublishRejectedError() | PublishUnknownError() | SyncFailedError() | OSError() if self.fault:
                published = list(getattr(error, "published", []))
                assert not published  # one group, one commit
                if isinstance(error, PublishUnknownError):
                    machine.maybe.append(self.numbers)
                else:
                    machine.never.update(self.numbers)
            case Stopped():
                machine.maybe.append(self.numbers)
                machine.processes[self.who] = machine.new_process()
            case _:
                return False
        return True


TestQueueOnABadDisk = QueueOnABadDisk.TestCase
TestQueueOnABadDisk.settings = settings(
    max_examples=EXAMPLES or 40,
    stateful_step_count=50 if EXAMPLES else 25,
    deadline=None,
    database=None,
    derandomize=not EXAMPLES,
    suppress_health_check=list(HealthCheck),
)

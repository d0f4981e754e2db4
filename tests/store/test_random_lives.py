"""Long random lives of a queue: writers come and go, are killed, lose power, run out of room, meet failing disks."""

from __future__ import annotations

import errno
import json
import random

import pytest

from actorq.errors import CorruptQueueError, DiskFullError, StoreError
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.scenes import PATH, line, without_writer

LIVES = 40
SESSIONS = b',{"sessions":[],"barrier":null,"barrier_req":0}\n'


class Life:
    """What was written, and how much of it was promised, against what is there."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.disk = CrashingFilesystem()
        self.boot = 0
        self.written: list[bytes] = []
        self.promised = 0

    def run(self, turns):
        for _ in range(turns):
            try:
                self.turn()
            except Stopped:
                pass
            except CorruptQueueError:
                raise
            except (StoreError, DiskFullError, OSError):
                pass  # a disk that fails may end a writer's life, but nobody may take that for damage
            self.end_of_turn()

    def turn(self):
        chance = self.chance
        if chance.random() < 0.5:
            self.plant_a_fault()
        log = LogWriter.open(
            PATH, filesystem=self.disk, boot_id=f"boot {self.boot}", pid=1, filler_step=chance.choice([0, 512, 4096])
        )
        self.look(log.commit)
        self.promised = len(self.written)  # what a new writer found, it has synced
        for _ in range(chance.randrange(6)):
            batch = line(len(self.written), size=chance.choice([30, 500, 512, 3000]))
            if chance.random() < 0.3:
                batch = SESSIONS + batch
            self.written.append(batch)
            try:
                log.write(batch)
            except DiskFullError:
                self.written.pop()
                continue
            if chance.random() < 0.5:
                log.sync()
                self.promised = len(self.written)
        list(log.tail())
        if chance.random() < 0.4:
            log.close()
            self.promised = len(self.written)

    def plant_a_fault(self):
        kinds: list[int | BaseException] = [Stopped(), errno.ENOSPC, errno.EIO]
        kind = self.chance.choice(kinds)
        at = len(self.disk.calls) + self.chance.randrange(14)
        self.disk.fail_call(at, kind, taken=self.chance.choice([0, 1, 100, 600, 5000]))

    def end_of_turn(self):
        if self.chance.random() < 0.5:
            self.disk = self.disk.after_kill()
            if self.chance.random() < 0.5:
                self.disk.drop_caches()
        else:
            self.boot += 1
            states = list(self.disk.crash_states(limit=12, seed=self.chance.randrange(1 << 30)))
            self.disk = self.chance.choice(states)

    def look(self, commits):
        reader = LogReader(PATH, filesystem=self.disk)
        found = [without_writer(batch.lines) for batch in reader.batches()]
        assert len(found) == commits == reader.commit
        assert found[: self.promised] == self.written[: self.promised], "something promised is lost"
        assert found == self.written[: len(found)], "a hole, or something that was never written"
        json.loads(self.disk.read_bytes(PATH))
        del self.written[len(found) :]


@pytest.mark.parametrize("seed", range(LIVES))
def test_a_random_life_keeps_every_promise(seed):
    Life(seed).run(turns=25)

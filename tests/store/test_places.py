"""The fail points of the store change nothing by being armed; when charged, see test_killed_at_each_place.py."""

from __future__ import annotations

import errno
import re
from typing import Any

import pytest

from actorq.errors import ActorqError
from actorq.failpoints import POINTS
from actorq.store import records
from actorq.store.compaction import compact, prepare
from actorq.store.log_writer import LogWriter
from actorq.store.switch import switch
from actorq.testing import CrashingFilesystem, armed_failpoints
from tests.store.log_on_paper import P, hello, ids
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, lines_in

STORE = [name for name in POINTS if name.partition(".")[0] in ("log", "recovery", "new_file", "compaction", "switch")]


class Life:
    """What can happen to a queue file, one thing after the other."""

    def __init__(self):
        self.disk = CrashingFilesystem()
        self.number = 0
        self.log: Any = None

    def open(self, boot=BOOT):
        self.log = LogWriter.open(PATH, filesystem=self.disk, boot_id=boot, pid=1, filler_step=512)

    def append(self, size=40):
        self.number += 1
        payload = b'{"n":%d,"x":"%b"}' % (self.number, b"x" * size)
        line = records.publish_lines(ids(self.number), "work", [payload])
        self.log.write(line if self.number > 1 else records.hello_line(hello(P)) + line)
        self.log.sync()

    def tear(self):
        """A writer is killed in the middle of a batch."""
        self.log.forget()
        whole = self.disk.read_bytes(PATH).rstrip(b"\n")
        self.disk.write_bytes(PATH, whole[:-1] + b',{"id":"' + b"torn" * 30)

    def run(self):
        self.open()
        self.append()
        self.append(600)
        self.tear()
        self.open()
        self.append()
        self.tear()
        self.open(NEXT_BOOT)
        self.append()
        # There is no room behind a part of it.
        self.disk.fail_next("write", errno.ENOSPC, taken=100)
        with pytest.raises(ActorqError):
            self.append(20_000)
        self.disk.heal()
        self.append()
        self.log.close()
        compact(PATH, boot_id=NEXT_BOOT, pid=1, filesystem=self.disk)
        self.open(NEXT_BOOT)
        self.append()
        self.compact_while_it_is_open()
        self.append()
        self.disk.fail_next("fdatasync", errno.EIO)
        with pytest.raises(ActorqError):
            self.append()
        self.disk.heal()
        self.log.forget()
        self.open(NEXT_BOOT)
        self.append()
        self.log.close()

    def compact_while_it_is_open(self):
        steps = prepare(PATH, self.log.header.generation, None, filesystem=self.disk)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                self.log = switch(self.log, end.value)
                return

    def numbers(self):
        """Return the tasks that are in the file now, in order."""
        return [int(n) for lines in lines_in(self.disk) for n in re.findall(rb'\{"n":(\d+),', lines)]


@pytest.fixture(scope="module")
def undisturbed():
    life = Life()
    life.run()
    return life


def test_armed_places_change_nothing_and_all_of_them_are_passed(undisturbed):
    life = Life()
    with armed_failpoints(here=True) as points:
        life.run()
        passed = points.passed()

    assert life.numbers() == undisturbed.numbers()
    assert [call for call, *_ in life.disk.calls] == [call for call, *_ in undisturbed.disk.calls]
    assert passed >= set(STORE)

"""A log in memory for tests of the fold: batches at real offsets, and a read that knows their bytes."""

from __future__ import annotations

from actorq.store import records
from actorq.store.format import Commit
from actorq.store.log_reader import Batch
from actorq.tasks.ids import IdRange

P = "publisher222"
Q = "publisher333"
C = "consumer2222"
D = "consumer3333"
S = "scheduler222"
GAP = b'\n,{"commit":"stands here"}\n'
"""What lies between two batches; no reader may look at it."""


def ids(first, last=None, session=P):
    return IdRange(session, first, last or first)


def hello(session, names=None, **limits):
    role = records.CONSUMER if session.startswith("consumer") else records.PUBLISHER
    return records.Hello(session, role, 17, 4711, "boot", names, **limits)


def moment(number):
    return f"2026-11-23T18:{number // 60 % 60:02}:{number % 60:02}.{number % 1000:03}Z"


class Paper:
    """Bytes that grow by batches."""

    def __init__(self, generation=1):
        self.bytes = b"head of the file %d\n" % generation
        self.commits = 0
        self.batches = []

    def write(self, *lines, piece=False, at=None):
        """Append one batch, a second after the last one, and return it."""
        text = b"".join(lines)
        start = len(self.bytes)
        self.bytes += text + GAP
        self.commits += 1
        commit = Commit(self.commits, len(text), 1, 0, at or moment(self.commits), 0)
        batch = Batch(start, text, commit, len(self.bytes), piece)
        self.batches.append(batch)
        return batch

    def read(self, offset, length):
        return self.bytes[offset : offset + length]

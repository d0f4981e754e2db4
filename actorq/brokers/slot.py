"""The slot: where a consumer notes the task in hand, so that its death is charged to that task alone.

A page of shared memory that outlives its writer. It is written before each handler starts, and read only after the
kernel has said that the writer is dead, so nothing needs to be locked.

    bytes 0 to 7     the number of the task in its session; 0 while no handler runs
    bytes 8 to 19    the session that published it
"""

from __future__ import annotations

import mmap
import os
import sys

from actorq.tasks.ids import SESSION_LENGTH, parse_task_id, task_id

SLOT_BYTES = 64
_SESSION = slice(8, 8 + SESSION_LENGTH)


class Slot:
    """The consumer's end of its slot."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("actorq-slot", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SLOT_BYTES)
        self._memory = mmap.mmap(self.fd, SLOT_BYTES)
        self.number = memoryview(self._memory).cast("Q")  # aligned, so that it is there whole or not at all
        """Item 0: of the task whose handler runs, or that a new process parses. Set before that, after `enter`."""
        self.session = ""
        """Which session that is."""

    def enter(self, session: str) -> None:
        """Note that no handler runs, and that the next numbers are of this session."""
        self.clear()  # first: killed in between, it has begun nothing
        if session != self.session:
            self._memory[_SESSION] = session.encode()
            self.session = session

    def clear(self) -> None:
        """Note that no handler runs."""
        self.number[0] = 0

    def close(self) -> None:
        """Give the memory back."""
        self.number.release()
        self._memory.close()
        os.close(self.fd)


def read_slot(fd: int) -> str:
    """Return the task that a dead consumer had in hand, or "" for none; also if a handler has scribbled over it."""
    data = os.pread(fd, SLOT_BYTES, 0)
    number = int.from_bytes(data[:8], sys.byteorder)
    if not number:
        return ""
    text = task_id(data[_SESSION].decode("ascii", "replace"), number)
    try:
        parse_task_id(text)
    except ValueError:
        return ""
    return text

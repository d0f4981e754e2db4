"""The slot: where a consumer notes the task in hand, so that its death is charged to that task alone.

A page of shared memory that outlives its writer. It is written before each handler starts, and read only after the
kernel has said that the writer is dead, so nothing needs to be locked.
"""

from __future__ import annotations

import mmap
import os

SLOT_BYTES = 64
"""Room for one task id; filled up with NULs."""


class Slot:
    """The consumer's end of its slot."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("actorq-slot", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SLOT_BYTES)
        self._memory = mmap.mmap(self.fd, SLOT_BYTES)

    def take(self, task_id: str) -> None:
        """Note that the handler of this task starts."""
        self._memory[:SLOT_BYTES] = task_id.encode().ljust(SLOT_BYTES, b"\0")

    def clear(self) -> None:
        """Note that no handler runs."""
        self._memory[0] = 0

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self.fd)


def read_slot(fd: int) -> str:
    """Return the task that a dead consumer had in hand, or "" for none."""
    return os.pread(fd, SLOT_BYTES, 0).partition(b"\0")[0].decode()

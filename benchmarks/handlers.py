"""Handlers of the benchmarks. In a module of their own, because each consumer imports them by name."""

from __future__ import annotations

import functools
import itertools
import os
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actorq import Task

WAIT = struct.Struct("<d")


def nothing(task: Task) -> None:
    """Run no code: what is measured is the queue."""
    del task


def note_wait(task: Task) -> None:
    """Note in a file how long ago the task was published, in seconds: its data is when, and the file's name."""
    now = time.monotonic()
    published, path = task.data
    os.write(_opened(path), WAIT.pack(now - published))


def note_wait_of_one_in_ten(task: Task) -> None:
    """Note that of some only, where to note all of them would be most of the work."""
    if next(_count) % 10 == 0:
        note_wait(task)


@functools.cache
def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


_count = itertools.count()


def waits_in(path: str) -> list[float]:
    """Return what `note_wait` has noted."""
    with open(path, "rb") as file:  # noqa: PTH123
        return [wait for (wait,) in WAIT.iter_unpack(file.read())]


NOTE_VARIABLE = "ACTORQ_BENCHMARK_NOTE"


def note_first(task: Task) -> None:
    """Create a file when the first task is run."""
    del task
    _opened(os.environ[NOTE_VARIABLE])


def take_a_millisecond(task: Task | None) -> None:
    """Take exactly that, by the clock: a sleep alone takes some 80 us longer than it was told.

    Notes in a file, whose name is the task's data, who has run it.
    """
    end = time.monotonic() + 0.001
    if task is not None:
        os.write(_opened(task.data), b"%d\n" % os.getpid())
    time.sleep(0.0008)
    while time.monotonic() < end:
        pass


def note_start(task: Task) -> None:
    """Note who runs the task, and when it began: its data is a file's name, and for how many seconds it goes on."""
    path, seconds = task.data
    os.write(_opened(path), b"%d %.6f\n" % (os.getpid(), time.monotonic()))
    time.sleep(seconds)

"""What many tests need: waiting for a fact, with an end."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def limit(seconds: float) -> float:
    """Return how long something may take that takes less than so many seconds on a machine with nothing else to do.

    Where more wants to run than there are CPUs, everything takes longer in proportion, and no code is to blame. The
    load of the last minute tells, or what wants to run just now: another suite may have begun a second ago.
    """
    load, _, _, tasks, _ = Path("/proc/loadavg").read_text().split()
    running, _, _ = tasks.partition("/")
    return seconds * max(1.0, max(float(load), int(running)) / len(os.sched_getaffinity(0)))


def examples(few: int) -> int:
    """Return how many examples hypothesis makes up; so few, if nobody asks for more by ACTORQ_EXAMPLES."""
    return int(os.environ.get("ACTORQ_EXAMPLES", "0")) or few


def named_memory() -> set[str]:
    """Return the semaphores and the shared memory that have a name: what `multiprocessing` could leave behind.

    Other programs keep files of any name beside them, other tests that run meanwhile among them, and a semaphore that
    is made has a name for a moment.
    """
    return {name for name in os.listdir("/dev/shm") if name.startswith(("sem.", "psm_"))}


def is_running(pid: int) -> bool:
    """Whether the process is there and has not ended; one that has stays for a while if nobody asks how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(fact: Callable[[], object], timeout: float = 5.0, what: str = "") -> None:
    """Return as soon as the fact holds; fail when it does not hold within the timeout (seconds, see `limit`)."""
    deadline = time.monotonic() + limit(timeout)
    while not fact():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or fact}")
        time.sleep(0.002)

"""On what it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import timeit
from pathlib import Path

NOT_A_DISK = ("tmpfs", "ramfs")


def describe(folder: Path) -> dict[str, str]:
    """Return what a reader needs to know of this machine, in words."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("orjson", "filelock")]
    return {
        "python": f"{platform.python_version()}, {platform.python_compiler()}; a call takes {call_ns():.0f} ns",
        "packages": ", ".join(versions),
        "kernel": platform.release(),
        "cpus": f"{len(os.sched_getaffinity(0))} x {cpu_model()}",
        "file system": file_system_of(folder),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def call_ns() -> float:
    """Return how long a call of an empty function takes, in nanoseconds.

    The same Python, built with or without profile-guided optimization, differs by half, and so do queues in Python.
    """
    calls = 100_000
    return min(timeit.repeat("nothing()", "def nothing(): pass", number=calls, repeat=5)) / calls * 1e9


def cpu_model() -> str:
    """Return the name that the CPU gives itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def file_system_of(path: Path) -> str:
    """Return the type of the file system that a folder is on."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) > len(best[0]):
            best = (mount, kind)
    return best[1]

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
        "python": f"{platform.python_version()}, {platform.python_compiler()}; a step takes {step_ns():.0f} ns",
        "packages": ", ".join(versions),
        "kernel": platform.release(),
        "cpus": f"{len(os.sched_getaffinity(0))} x {cpu_model()}",
        "file system": file_system_of(folder),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def step_ns() -> float:
    """Return how long a usual step of Python takes, in nanoseconds: a tuple made and put into a dict under a new text.

    The same Python, built with or without profile-guided optimization, differs by three quarters in that, and by a
    third to a half in what a queue in Python brings.
    """
    steps = 10_000
    work = f"table = {{}}\nfor i in range({steps}): table[f'k{{i}}'] = (i, str(i))"
    return min(timeit.repeat(work, number=1, repeat=15)) / steps * 1e9


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

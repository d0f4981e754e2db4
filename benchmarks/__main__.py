"""Benchmarks of actorq: `uv run python -m benchmarks [NAME ...] [--json]`.

    disk          one write and fdatasync into room that the file already has: what every acknowledgement costs at least
    publish_one   publish one task at a time through running brokers; and directly, with none
    end_to_end    100,000 tasks by publish_many while 2 consumers run an empty handler, from the first publish to idle

Every figure is with durability="power": an acknowledgement comes after its fdatasync. Compare figures of one run only;
they refuse to run on a file system that keeps nothing (tmpfs).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from actorq import Queue, Task

if TYPE_CHECKING:
    from collections.abc import Callable

END_TO_END_TASKS = 100_000
PUBLISH_ONE_TASKS = 1_000
RUNS = 3

PAYLOAD = {"path": "/var/data/images/2026/11/23/a-fairly-usual-name.png", "width": 640, "height": 480, "tries": 3}
"""About 100 bytes of JSON."""


def nothing(task: Task) -> None:
    """Run no code: what is measured is the queue."""
    del task


def disk(folder: Path) -> dict[str, float]:
    """Write and fdatasync 400 bytes again and again into room that the file has."""
    file = os.open(folder / "disk", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(file, b"\n" * (1 << 20), 0)
    os.fsync(file)
    times = []
    for number in range(PUBLISH_ONE_TASKS):
        begin = time.perf_counter()
        os.pwrite(file, b"x" * 400, number * 400)
        os.fdatasync(file)
        times.append(time.perf_counter() - begin)
    os.close(file)
    return {"p50 ms": statistics.median(times) * 1e3, "p99 ms": statistics.quantiles(times, n=100)[98] * 1e3}


def publish_one(folder: Path) -> dict[str, float]:
    """Publish one task at a time."""
    direct = Queue(folder / "direct.json")
    brokered = Queue(folder / "brokered.json")
    result = timed_publishes(direct, "direct")
    with brokered.running(0):
        result |= timed_publishes(brokered, "brokers")
    return result


def timed_publishes(queue: Queue, label: str) -> dict[str, float]:
    """Return the latency of publishing."""
    queue.publish(PAYLOAD)
    times = []
    for _ in range(PUBLISH_ONE_TASKS):
        begin = time.perf_counter()
        queue.publish(PAYLOAD)
        times.append(time.perf_counter() - begin)
    if queue.counts()["ready"] != PUBLISH_ONE_TASKS + 1:
        raise SystemExit("publish_one lost tasks")
    quantiles = statistics.quantiles(times, n=100)
    return {f"{label} p50 ms": quantiles[49] * 1e3, f"{label} p99 ms": quantiles[98] * 1e3}


def end_to_end(folder: Path) -> dict[str, float]:
    """Publish and run: tasks a second."""
    queue = Queue(folder / "end_to_end.json")
    with queue.running(2, handler=nothing):
        begin = time.perf_counter()
        queue.publish_many(PAYLOAD for _ in range(END_TO_END_TASKS))
        published = time.perf_counter()
        queue.join(timeout=120)
        done = time.perf_counter()
    if queue.counts()["done"] != END_TO_END_TASKS:
        raise SystemExit("end_to_end lost tasks")
    return {"published/s": END_TO_END_TASKS / (published - begin), "done/s": END_TO_END_TASKS / (done - begin)}


BENCHMARKS: dict[str, Callable[[Path], dict[str, float]]] = {
    "disk": disk,
    "publish_one": publish_one,
    "end_to_end": end_to_end,
}


def main() -> int:
    """Run the benchmarks that were named, or all."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--json", action="store_true", help="print one object")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    here = Path.cwd()
    if file_system_of(here) in ("tmpfs", "ramfs"):
        parser.error(f"{here} is on {file_system_of(here)}, which keeps nothing; run from a folder on a disk")
    results: dict[str, dict[str, list[float]]] = {}
    for run in range(RUNS):
        for name in arguments.names or BENCHMARKS:
            with tempfile.TemporaryDirectory(dir=here, prefix=".benchmark-") as folder:
                figures = BENCHMARKS[name](Path(folder))
            for figure, value in figures.items():
                results.setdefault(name, {}).setdefault(figure, []).append(value)
            if not arguments.json:
                print(f"run {run + 1} of {RUNS}: {name}", file=sys.stderr)
    machine = {
        "python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count(),
        "file system": file_system_of(here),
    }  # fmt: skip
    if arguments.json:
        print(orjson.dumps({"machine": machine, "runs": results}).decode())
        return 0
    print(", ".join(f"{key} {value}" for key, value in machine.items()), f"- medians of {RUNS} (minimum .. maximum)")
    for name, measured in results.items():
        for figure, values in measured.items():
            low, middle, high = min(values), statistics.median(values), max(values)
            print(f"{name:12} {figure:16} {middle:12,.2f}   ({low:,.2f} .. {high:,.2f})")
    return 0


def file_system_of(path: Path) -> str:
    """Return the type of the file system that a folder is on."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) > len(best[0]):
            best = (mount, kind)
    return best[1]


if __name__ == "__main__":
    raise SystemExit(main())

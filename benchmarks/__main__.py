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
from pathlib import Path

import orjson

from benchmarks.measurements import BENCHMARKS

RUNS = 3


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

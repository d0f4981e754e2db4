"""The rows about a long queue: does it get slower, how much memory does it take, how long does it take to open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from actorq import Queue
from actorq.actors.linux import boot_id
from actorq.attachments import attachment_of
from actorq.store.compaction import compact
from benchmarks import handlers
from benchmarks.contest import PAYLOAD, Figures, Scale, latencies, require, timed
from benchmarks.queues import JOIN_SECONDS

MEASURED_TASKS = 20_000
"""So many are drained of a long queue; then it is left as it is."""


def growth(folder: Path, scale: Scale) -> Figures:
    """Publish and drain in front of backlogs of four lengths."""
    figures: Figures = {}
    for backlog in (scale.backlog // 1000, scale.backlog // 100, scale.backlog // 10, scale.backlog):
        place = folder / str(backlog)
        place.mkdir()
        queue = Queue(place / "Queue.json")
        queue.publish_many(PAYLOAD for _ in range(backlog))
        with queue.running(0):
            queue.publish(PAYLOAD)
            times = timed(lambda: queue.publish(PAYLOAD), scale.publishes // 2)  # noqa: B023
        figures[f"publish at {backlog:,} p50 ms"] = latencies(times)["p50 ms"]
        figures[f"drain at {backlog:,} tasks/s"] = drained(queue, min(MEASURED_TASKS, backlog))
    return figures


def drained(queue: Queue, count: int) -> float:
    """Return how many tasks a second one consumer runs, over so many of them."""
    before = queue.counts()["done"]
    with queue.running(1, handler=handlers.nothing):
        while (done := queue.counts()["done"] - before) == 0:
            time.sleep(0.001)
        begin = time.perf_counter()
        while (now := queue.counts()["done"] - before) < min(done + count, count):
            time.sleep(0.002)
        seconds = time.perf_counter() - begin
    return (now - done) / seconds if now > done else float("nan")


def memory(folder: Path, scale: Scale) -> Figures:
    """Look at the peak of each process while that many plain tasks lie ready and some are run."""
    queue = Queue(folder / "Queue.json")
    queue.publish_many(PAYLOAD for _ in range(scale.backlog))
    with queue.running(1, handler=handlers.nothing):
        target = queue.counts()["done"] + 1000
        while queue.counts()["done"] < target:
            time.sleep(0.01)
        attachment = attachment_of(queue.path)
        assert attachment is not None
        assert attachment.host is not None
        system = attachment.host.system
        pids = {child.name: child.pid for child in system.children()} | {"supervisor": system.supervisor_pid}
        return {f"{name} MB": peak_mb(pid) for name, pid in pids.items() if pid is not None}


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"process {pid} has gone")


def recovery(folder: Path, scale: Scale) -> Figures:
    """Start the brokers on a file that others have left; until the first task is acknowledged, and until one runs."""
    ready = Queue(folder / "ready.json")
    ready.publish_many(PAYLOAD for _ in range(scale.backlog))
    figures = {f"{name} with all ready": value for name, value in start_times(ready).items()}
    done = Queue(folder / "done.json")
    done.publish_many(PAYLOAD for _ in range(scale.backlog))
    with done.running(2, handler=handlers.nothing):
        done.join(timeout=JOIN_SECONDS)
    compact(done.path, boot_id=boot_id(), pid=os.getpid())
    figures |= {f"{name} with all done": value for name, value in start_times(done).items()}
    return {f"{name} s": value for name, value in figures.items()}


START = """
import os, sys, time
from actorq import Queue
from benchmarks import handlers
begin = time.monotonic()
queue = Queue(sys.argv[1])
with queue.running(1, handler=handlers.note_first):
    queue.publish(None)
    acknowledged = time.monotonic()
    while not os.path.exists(os.environ[handlers.NOTE_VARIABLE]):
        time.sleep(0.0005)
    print(acknowledged - begin, time.monotonic() - begin)
"""


def start_times(queue: Queue) -> Figures:
    """Return when, in a new process that has imported actorq, the first publish is acknowledged and a task done."""
    note = f"{queue.path}.first"
    run = subprocess.run(
        [sys.executable, "-c", START, str(queue.path)],
        env=os.environ | {handlers.NOTE_VARIABLE: note},
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=JOIN_SECONDS,
    )  # fmt: skip
    acknowledged, done = map(float, run.stdout.split())
    return {"acknowledges": acknowledged, "runs": done}


ROOT = Path(__file__).parents[1]


def compaction(folder: Path, scale: Scale) -> Figures:
    """Compact a file whose tasks are half done. No broker may run meanwhile, so all of it is a pause."""
    queue = Queue(folder / "Queue.json")
    queue.publish_many(PAYLOAD for _ in range(scale.backlog // 2))
    with queue.running(2, handler=handlers.nothing):
        queue.join(timeout=JOIN_SECONDS)
    queue.publish_many(PAYLOAD for _ in range(scale.backlog // 2))
    before = queue.path.stat().st_size
    begin = time.perf_counter()
    compact(queue.path, boot_id=boot_id(), pid=os.getpid())
    seconds = time.perf_counter() - begin
    live = scale.backlog // 2
    require(queue.counts()["ready"] == live, "compaction lost tasks")
    return {
        "pause s": seconds,
        "before bytes/task": before / live,
        "after bytes/task": queue.path.stat().st_size / live,
    }

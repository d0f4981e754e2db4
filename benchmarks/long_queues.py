"""The rows about a long queue: does it get slower, how much memory does it take, how long does it take to open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from actorq import Queue
from actorq.actors.linux import boot_id
from actorq.attachments import attachment_of
from actorq.store.compaction import compact
from benchmarks import handlers
from benchmarks.contest import PAYLOAD, Figures, Scale, alternately, latencies, require
from benchmarks.queues import JOIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

MEASURED_TASKS = 20_000
"""So many are drained of a long queue; then it is left as it is."""


def growth(folder: Path, scale: Scale) -> Figures:
    """Publish and drain in front of backlogs of four lengths: publish in turns, and drain one after the other."""
    queues = {}
    for backlog in (scale.backlog // 1000, scale.backlog // 100, scale.backlog // 10, scale.backlog):
        place = folder / str(backlog)
        place.mkdir()
        queue = queues[backlog] = Queue(place / "Queue.json")
        queue.publish_many(PAYLOAD for _ in range(backlog))
    figures: Figures = {}
    with ExitStack() as running:
        for queue in queues.values():
            running.enter_context(queue.running(0))
            queue.publish(PAYLOAD)
        times = alternately([partial(queue.publish, PAYLOAD) for queue in queues.values()], scale.publishes // 2)
        for backlog, waits in zip(queues, times, strict=True):
            figures[f"publish at {backlog:,} p50 ms"] = latencies(waits)["p50 ms"]
    for backlog, queue in queues.items():
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
    """Have a queue compact itself while it is published to and drained, with that many tasks waiting.

    Half as many again are done, and leave. Told apart are pauses before and while it is compacted: from the first byte
    of the new file until two seconds after the scheduler has let go of the old one, whose space is freed then. Each
    consumer runs a task for a millisecond.
    """
    queue = Queue(folder / "Queue.json")
    live, done = scale.backlog, scale.backlog * 3 // 2
    queue.publish_many(PAYLOAD for _ in range(done))
    queue._upkeep = queue._upkeep._replace(min_bytes=1 << 60)  # noqa: SLF001  not yet
    with queue.running(2, handler=handlers.nothing):
        queue.join(timeout=JOIN_SECONDS)
    starts = folder / "starts"
    queue.publish_many([str(starts), 0.001] for _ in range(TASKS_RUN))
    queue.publish_many(PAYLOAD for _ in range(live - TASKS_RUN))
    before = queue.path.stat()
    # It is worth it already, and will be done as soon as the file is a little longer.
    queue._upkeep = queue._upkeep._replace(min_bytes=before.st_size + (200 << 10), wait=0.1)  # noqa: SLF001
    with queue.running(2, handler=handlers.note_start):
        pids = process_ids(queue)
        published: list[tuple[float, float]] = []
        begun = switched = ended = 0.0
        deadline = time.monotonic() + JOIN_SECONDS
        while not ended or time.monotonic() < ended + 2:
            begin = time.monotonic()
            require(begin < deadline, "it was not compacted")
            queue.publish(PAYLOAD)
            now = time.monotonic()
            published.append((begin, now))
            if not begun and any(folder.glob(".*.offer")):
                begun = now
            if not switched and queue.path.stat().st_ino != before.st_ino:
                switched = now
            if switched and not ended and not has_deleted_file(pids["consumer-broker"]):
                ended = now
        begun = begun or published[0][1]
        last = ended + 2
    waiting = queue.counts()["ready"]
    require(sum(queue.counts().values()) == done + live + len(published), "compaction lost tasks")
    by_process: dict[int, list[float]] = {}
    for line in starts.read_text().splitlines():
        pid, moment = line.split()
        by_process.setdefault(int(pid), []).append(float(moment))
    gaps = [pair for moments in by_process.values() for pair in pairwise(sorted(moments))]
    return {
        "longest publish before ms": longest_ms(published, 0, begun),
        "longest publish ms": longest_ms(published, begun, last),
        "longest hand-out pause before ms": longest_ms(gaps, min(map(min, by_process.values())) + 0.2, begun),
        "longest hand-out pause ms": longest_ms(gaps, begun, last),
        "to the switch s": switched - begun,
        "to the end s": ended - begun,
        "before bytes/task": before.st_size / live,
        "after bytes/task": queue.path.stat().st_size / waiting,
    }


TASKS_RUN = 40_000


def process_ids(queue: Queue) -> dict[str, int]:
    """Return who of the processes that host the queue is which."""
    attachment = attachment_of(queue.path)
    assert attachment is not None
    assert attachment.host is not None
    return {child.name: child.pid for child in attachment.host.system.children() if child.pid is not None}


def has_deleted_file(pid: int) -> bool:
    """Tell whether a process has a file open that has no name any more."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(fd.readlink()).endswith("Queue.json (deleted)"):
                return True
    return False


def longest_ms(spans: Iterable[tuple[float, float]], begin: float, end: float) -> float:
    """Return the longest of those that lie at least partly in the given time, in milliseconds."""
    return max((to - since for since, to in spans if to > begin and since < end), default=float("nan")) * 1e3

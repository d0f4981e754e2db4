"""Four terminals: a publisher, two workers and somebody who looks, while the worker that hosts is killed, and killed.

    python -m tests.faults.takeovers --seconds 300 --every 5

Each process is started from a folder of its own, and knows nothing but the path of the queue. The worker that hosts
gets SIGKILL every few seconds, and a new one is started in its place; the other one has to take the queue over. At the
end:

    every acknowledged task is done,
    a task that ran twice did so because the process that ran it first was killed, and not before it was,
    the publisher has seen no error.

Exit status 0 if all of that is so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from actorq import Queue, TaskNotFoundError
from actorq.store.locks import is_hosted, read_owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

ROOT = Path(__file__).parents[2]

APP = """
import os, time
from actorq import Queue, Task
from actorq.linux import process_status

queue = Queue({path!r})
log = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
worker = process_status(os.getppid()).parent  # in a consumer; asked at once, because it may be killed before us

@queue.handler("work")
def work(task: Task) -> None:
    begin = time.monotonic()
    time.sleep(task.data["seconds"])
    os.write(log, f"{{task.id}} {{worker}} {{begin}} {{time.monotonic()}}\\n".encode())
"""

PUBLISHER = """
import json, random, sys, time
from actorq import Queue
queue = Queue({path!r})
dice = random.Random(1)
longest = 0.0
errors = []
print("up", flush=True)
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    begin = time.monotonic()
    try:
        task = queue.publish({{"seconds": dice.choice([0, 0, 0, 0.001, 0.05])}}, name="work")
    except Exception as error:
        errors.append(repr(error))
    else:
        print(task, flush=True)
    longest = max(longest, time.monotonic() - begin)
    time.sleep(0.005)
print(json.dumps({{"longest": longest, "errors": errors}}), flush=True)
"""

WATCHER = """
import sys, time
from actorq import Queue
queue = Queue({path!r})
print("up", flush=True)
while True:
    counts = queue.counts()
    assert min(counts.values()) >= 0, counts
    time.sleep(0.1)
"""


class Run(NamedTuple):
    """One execution of a task, by the worker with that pid; the times are of the monotonic clock."""

    worker: int
    begin: float
    end: float


class Report(NamedTuple):
    """What became of it all; times in seconds."""

    kills: int
    acknowledged: int
    lost: list[str]
    twice: int
    unexplained: list[str]
    errors: list[str]
    takeover_median: float
    takeover_worst: float
    longest_publish: float
    watcher_ended: bool

    @property
    def is_good(self) -> bool:
        """Whether nothing happened that must not happen."""
        return not (self.lost or self.unexplained or self.errors or self.watcher_ended)


class Terminals:
    """The processes, each in a session and a folder of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._number = 0

    def start(self, *arguments: str, stdout: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """Start Python with these arguments."""
        self._number += 1
        here = self.folder / f"terminal-{self._number}"
        here.mkdir()
        paths = f"{ROOT}:{self.folder}"
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=stdout, cwd=here,
            env=os.environ | {"PYTHONPATH": paths}, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(end, process)
        return process

    def worker(self) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it is ready."""
        process = self.start("-m", "actorq", "worker", "app:queue", "-w", "1")
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(b"ready"):
            raise RuntimeError(f"a worker did not become ready: {line!r}")
        return process


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, if it is still there."""
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """Yield that folder, or one that is gone afterwards."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    else:
        with tempfile.TemporaryDirectory() as made:
            yield Path(made)


def takeover_after_kill(path: Path, killed: int, deadline: float) -> float:
    """Return how long it takes until another process hosts the queue and all of its brokers run."""
    begin = time.monotonic()
    while time.monotonic() - begin < deadline:
        owner = read_owner(path) or {}
        if owner.get("pid") != killed and "door" in owner and "starting" not in owner and is_hosted(path):
            return time.monotonic() - begin
        time.sleep(0.001)
    raise TimeoutError(f"nobody has taken over from process {killed} within {deadline} s")


def run(folder: Path, seconds: float, every: float) -> Report:
    """Do it, and hold it against what must be."""
    path = folder / "queue" / "Queue.json"
    path.parent.mkdir()
    log = folder / "runs"
    (folder / "app.py").write_text(APP.format(path=str(path), log=str(log)))
    takeovers: list[float] = []
    killed: dict[int, float] = {}
    with ExitStack() as stack:
        terminals = Terminals(folder, stack)
        workers = {process.pid: process for process in (terminals.worker(), terminals.worker())}
        ids = stack.enter_context((folder / "ids").open("w+b"))
        publisher = terminals.start("-c", PUBLISHER.format(path=str(path), seconds=seconds), stdout=ids)
        watcher = terminals.start("-c", WATCHER.format(path=str(path)))
        while publisher.poll() is None:
            time.sleep(every)
            owner = read_owner(path) or {}
            host = owner.get("pid")
            if not isinstance(host, int) or host not in workers:
                raise RuntimeError(f"none of our workers hosts the queue: {owner}")
            workers[host].send_signal(signal.SIGKILL)
            workers.pop(host).wait()
            killed[host] = time.monotonic()
            takeovers.append(takeover_after_kill(path, host, 30))
            started = terminals.worker()
            workers[started.pid] = started
            print(f"{len(takeovers)} kills, worst takeover {max(takeovers):.3f} s", file=sys.stderr, flush=True)
        queue = Queue(path)
        queue.join(timeout=60)
        has_ended = watcher.poll() is not None
        for process in workers.values():
            process.send_signal(signal.SIGTERM)
        for process in workers.values():
            process.wait(30)
    *acknowledged, last = (folder / "ids").read_text().split("\n")[1:-1]
    told = json.loads(last)
    runs = runs_in(log)
    twice, unexplained = duplicates(runs, killed)
    return Report(
        kills=len(killed),
        acknowledged=len(acknowledged),
        lost=[task_id for task_id in acknowledged if not is_done(queue, task_id, runs)],
        twice=twice,
        unexplained=unexplained,
        errors=told["errors"],
        takeover_median=statistics.median(takeovers),
        takeover_worst=max(takeovers),
        longest_publish=told["longest"],
        watcher_ended=has_ended,
    )


def runs_in(log: Path) -> dict[str, list[Run]]:
    """Return the executions that came to their end, by task."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for line in log.read_text().splitlines():
        task_id, worker, begin, finish = line.split()
        runs[task_id].append(Run(int(worker), float(begin), float(finish)))
    return runs


def is_done(queue: Queue, task_id: str, runs: dict[str, list[Run]]) -> bool:
    """Tell whether the task was done, by the file, or (when it has left with compaction) by who has done it."""
    try:
        return queue.get(task_id).state == "done"
    except TaskNotFoundError:
        return task_id in runs


def duplicates(runs: dict[str, list[Run]], killed: dict[int, float]) -> tuple[int, list[str]]:
    """Return how many tasks ran to their end twice, and which of them had no reason to."""
    unexplained = []
    for task_id, all_runs in runs.items():
        in_order = sorted(all_runs, key=lambda each: each.begin)
        for first, second in itertools.pairwise(in_order):
            if first.worker not in killed or second.begin < first.end:
                unexplained.append(task_id)
    return sum(len(each) > 1 for each in runs.values()), unexplained


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--folder", type=Path, help="work and leave everything there")
    asked = parser.parse_args()
    with scratch(asked.folder) as folder:
        report = run(folder, asked.seconds, asked.every)
    print(json.dumps(report._asdict()))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())

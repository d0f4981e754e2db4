"""The rows about processes that host nothing: scripts that exit, a crowd of publishers, workers that join."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actorq import Queue
from actorq.linux import children_of
from benchmarks.contest import Figures, Scale, latencies, require, timed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]

CROWD = 50
EACH = 20
"""How many processes publish at once, and how many tasks each, one at a time."""

SCRIPTS = 20

PUBLISH = "from actorq import Queue; Queue('q.json').publish({'a': 1})"

ONE_OF_THE_CROWD = """
import sys
from actorq import Queue
queue = Queue(sys.argv[1])
print("here", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    print(queue.publish([sys.argv[3], number], timeout=120), flush=True)
"""

WORKER = """
import sys
from actorq import Queue
from benchmarks import handlers
if __name__ == "__main__":
    with Queue(sys.argv[1]).running(2, handler=handlers.nothing):
        print("here", flush=True)
        sys.stdin.readline()
"""


def script(folder: Path, scale: Scale) -> Figures:
    """Run a fresh interpreter that publishes one task and exits, with no broker running."""
    del scale
    figures = fresh_interpreters(PUBLISH, folder)
    require(Queue(folder / "q.json").counts()["ready"] == SCRIPTS + 1, "a script lost its task")
    return figures


def script_floor(folder: Path, scale: Scale) -> Figures:
    """Run a fresh interpreter that imports what actorq rests on, and exits."""
    del scale
    return fresh_interpreters("import orjson, filelock", folder)


def fresh_interpreters(code: str, folder: Path) -> Figures:
    """Run the code so many times, once before to have everything in the caches."""

    def run() -> None:
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), check=True)

    run()
    return latencies(timed(run, SCRIPTS))


def crowd_direct(folder: Path, scale: Scale) -> Figures:
    """Publish from fifty processes at once while no broker runs."""
    del scale
    return crowd(Queue(folder / "Queue.json"))


def crowd_brokered(folder: Path, scale: Scale) -> Figures:
    """Publish from fifty processes at once through the brokers of another one."""
    del scale
    queue = Queue(folder / "Queue.json")
    with queue.running(0):
        return crowd(queue)


def crowd(queue: Queue) -> Figures:
    """Let all begin at the same moment, and look for every acknowledged task in the queue, once."""
    with ExitStack() as stack:
        names = [str(number) for number in range(CROWD)]
        processes = [stack.enter_context(started(ONE_OF_THE_CROWD, str(queue.path), str(EACH), name)) for name in names]
        begin = time.monotonic()
        for process in processes:
            say_go(process)
        ids = [line for process in processes for line in lines_of(process)]
        seconds = time.monotonic() - begin
    found = sorted(map(str, (queue.get(task_id).data for task_id in ids)))
    require(found == sorted(str([name, n]) for name in names for n in range(EACH)), "the crowd lost tasks")
    require(sum(queue.counts().values()) == CROWD * EACH, "the crowd has published tasks twice")
    return {"published/s": CROWD * EACH / seconds}


@contextmanager
def joined_worker(queue: Queue) -> Iterator[list[int]]:
    """Have another process run two consumers of a queue that this one hosts; yield the pids of all its processes."""
    with started(WORKER, str(queue.path)) as process:
        yield descendants_of(process.pid)
        say_go(process)
        process.wait(timeout=30)


def descendants_of(pid: int) -> list[int]:
    """Return a process and all below it."""
    return [pid, *(below for child in children_of(pid) for below in descendants_of(child))]


@contextmanager
def started(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start an interpreter on that code, and wait until it says that it is here; it is gone at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    try:
        assert process.stdout is not None
        require(process.stdout.readline() == "here\n", "a process did not start")
        yield process
    finally:
        process.kill()
        process.communicate()


def say_go(process: subprocess.Popen[str]) -> None:
    """Let it begin, or end."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def lines_of(process: subprocess.Popen[str]) -> list[str]:
    """Return what else it says, until it ends."""
    assert process.stdout is not None
    lines = process.stdout.read().split()
    require(process.wait() == 0, "a process failed")
    return lines


def environment() -> dict[str, str]:
    """Return the environment in which this very actorq is found."""
    return os.environ | {"PYTHONPATH": str(ROOT)}

"""Cut the power of a real ext4 while the public Queue publishes, and look for every acknowledged task afterwards.

    uv run python -m tests.faults.real_power_cuts --cuts 100 --seed 1 [--json]

Needs root, mkfs.ext4 and a loop device. Each cut: publishers in processes of their own write down what they try and
what was acknowledged, in a file elsewhere. At a random moment (most are stopped first) some dirty pages are brought to
the disk and others not, the file system is shut down without a flush of its journal, the processes are killed, and the
image is mounted anew. A queue lives through many cuts, until it is large, and then a new one begins. Three ways of
publishing take turns:

- direct: two processes without brokers, which take turns at the locks,
- brokers: a host with brokers, a consumer, and two threads that publish,
- process: the same with durability="process", where a cut may take the newest tasks of each publisher, and no others.

Only what was acknowledged before the power went counts. The shutdown of a file system is not quite a power cut: it
takes some milliseconds, processes live on, and a sync that is under way meanwhile may say yes without having done it
(seen with Linux 6.18, about once in 200 cuts).

`lost`: acknowledged tasks (but for those newest ones) that are missing. `unexpected`: tasks that nobody tried to
publish. `holes`: a publisher's task that is missing although a later one of his is there. `refused`: the queue could
not be opened. The exit status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actorq import ActorqError, Queue
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from tests import handlers
from tests.faults.real_disk import Ext4, MissingMeansError, ext4, write_out
from tests.helpers import wait_until
from tests.long_run import Progress, conclude

PUBLISHER = (sys.executable, "-m", "tests.faults.real_power_cuts", "--publisher")
WAYS = ("direct", "brokers", "process")
PAGE = 4096
LARGEST_QUEUE = 8 << 20
SIZES = (10, 300, 3000)
SLOW_SYNCS = 0.1
SLOW_SYNC_SECONDS = 0.03
FIRST_TASK_SECONDS = 60.0


# ---------------------------------------------------------------------------------------------------------------
# The publishers, in processes of their own


def publish_for_ever(way: str, path: str, log: str, seed: int) -> None:
    """Publish until killed, and write down what was tried and what was acknowledged."""
    faulthandler.dump_traceback_later(FIRST_TASK_SECONDS / 2)
    if way == "direct":
        make_syncs_slow(random.Random(seed))
    queue = Queue(path, durability="process" if way == "process" else "power")
    with ExitStack() as stack:
        if way != "direct":
            # Outcomes are always synced, so with a consumer little would be left for a cut to take.
            stack.enter_context(queue.running(0 if way == "process" else 1, handler=handlers.echo))
        threads = [
            threading.Thread(target=publish_in_a_loop, args=(queue, Path(f"{log}-{number}"), f"{seed}/{number}"))
            for number in range(1 if way == "direct" else 2)
        ]
        for thread in threads:
            thread.start()
        faulthandler.cancel_dump_traceback_later()
        for thread in threads:
            thread.join()


def make_syncs_slow(chance: random.Random) -> None:
    """Let some syncs begin late, as on a busy disk, so that the power often goes between a write and its sync."""
    sync = os.fdatasync

    def sync_late(fd: Any) -> None:
        if chance.random() < SLOW_SYNCS:
            time.sleep(SLOW_SYNC_SECONDS)
        sync(fd)

    os.fdatasync = sync_late


def publish_in_a_loop(queue: Queue, log: Path, who: str) -> None:
    chance = random.Random(who)
    # At leisure, what is not synced yet lies in space that the file has already, and can be lost page by page.
    nap = chance.choice([0, 0.003])
    number = 0
    with log.open("ab", buffering=0) as file:
        while True:
            time.sleep(nap)
            count, size = chance.choice([1, 1, 1, 5, 30]), chance.choice(SIZES)
            items = [[who, number + each, "x" * size] for each in range(count)]
            file.write(b"%b\n" % json.dumps({"tried": [who, number, number + count]}).encode())
            number += count
            try:
                ids = queue.publish_many(items) if count > 1 else [queue.publish(items[0])]
            except (ActorqError, OSError):
                return  # the power has gone
            said = {"acknowledged": [who, number - count, number, ids[0]], "at": time.monotonic()}
            file.write(b"%b\n" % json.dumps(said).encode())


# ---------------------------------------------------------------------------------------------------------------
# The cuts


class Cuts:
    """A disk, one queue on it, and what was promised about it so far."""

    def __init__(self, disk: Ext4, place: Path, seed: int) -> None:
        self.disk = disk
        self.chance = random.Random(seed)
        self.tally: Counter[str] = Counter()
        self.violations: list[str] = []
        self._place = place
        self._path = disk.folder / "Queue.json"
        self._tried: dict[str, int] = {}
        self._acknowledged: dict[str, int] = {}
        self._power_went = 0.0
        self._may_go: set[str] = set()
        """Publishers that were told that it is written, and not that it is on disk."""

    def cut(self, number: int) -> None:
        """Publish, cut the power, let it come back, and look."""
        way = WAYS[number % len(WAYS)]
        logs = self._publish_and_cut(way, number)
        self.disk.remount()
        self.tally["cuts"] += 1
        self._read(way, logs)
        try:
            log = LogWriter.open(self._path, boot_id=f"boot {number}", pid=os.getpid())
        except (ActorqError, OSError) as error:
            self._note("refused", f"cut {number}, {way}: refused: {error}")
            return
        self.tally["torn"] += log.recovered is not None
        log.close()
        self._look(f"cut {number}, {way}")
        if self._path.stat().st_size > LARGEST_QUEUE:
            self._begin_anew()

    def _publish_and_cut(self, way: str, number: int) -> list[Path]:
        log = self._place / f"log-{number}"
        said = self._place / "said"
        with said.open("wb") as file:
            processes = [
                subprocess.Popen(
                    [*PUBLISHER, way, str(self._path), f"{log}-{each}", str(number * 10 + each)],
                    start_new_session=True,
                    stdout=subprocess.DEVNULL,
                    stderr=file,
                )
                for each in range(2 if way == "direct" else 1)
            ]

        def has_begun() -> bool:
            assert all(process.poll() is None for process in processes), "a publisher has ended"
            return sum(path.stat().st_size for path in self._place.glob(f"log-{number}-*")) > 0

        try:
            try:
                wait_until(has_begun, FIRST_TASK_SECONDS, "the first publish")
            except AssertionError as error:
                error.add_note(f"cut {number}, {way}; its publishers say: {said.read_text()}")
                raise
            # A random moment is the point of it.
            time.sleep(self.chance.uniform(0.01, 0.4))
            # Some of the cuts come while a sync may be under way, most while none can be.
            if self.chance.random() < 0.7:
                for process in processes:
                    os.killpg(process.pid, signal.SIGSTOP)
            self._write_some_pages_out()
            self._power_went = time.monotonic()
            self.disk.cut_power()
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return sorted(self._place.glob(f"log-{number}-*"))

    def _write_some_pages_out(self) -> None:
        """Bring some of the last pages to the disk: whatever is dirty among them, in an order of our own."""
        if not self._path.exists():
            return
        used = self._path.read_bytes().rstrip(b"\n")
        share = self.chance.choice([0, 0.2, 0.5, 0.8])
        for page in range(max(0, len(used) // PAGE - 16), len(used) // PAGE + 1):
            if self.chance.random() < share:
                write_out(self._path, page * PAGE, PAGE)

    def _read(self, way: str, logs: list[Path]) -> None:
        for log in logs:
            for line in log.read_bytes().splitlines():
                said: dict[str, Any] = json.loads(line)
                if "tried" in said:
                    who, _, end = said["tried"]
                    self._tried[who] = end
                    if way == "process":
                        self._may_go.add(who)
                elif said["at"] < self._power_went:
                    who, _, end, _ = said["acknowledged"]
                    self.tally["acknowledged"] += end - self._acknowledged.get(who, 0)
                    self._acknowledged[who] = end

    def _look(self, when: str) -> None:
        found: dict[str, list[int]] = {}
        for who, number in tasks_in(self._path):
            found.setdefault(who, []).append(number)
        for who, tried in self._tried.items():
            numbers = found.pop(who, [])
            if numbers != list(range(len(numbers))):
                self._note("holes", f"{when}: publisher {who} has {len(numbers)} tasks, with a hole")
            if len(numbers) > tried:
                self._note("unexpected", f"{when}: {len(numbers)} tasks of publisher {who}, who tried {tried}")
            missing = self._acknowledged.get(who, 0) - len(numbers)
            if missing > 0 and who in self._may_go:
                self.tally["suffix"] += missing
            elif missing > 0:
                self._note("lost", f"{when}: {missing} acknowledged tasks of publisher {who} are missing")
            # What is there now has been synced by recovery, and stays.
            self._acknowledged[who] = self._tried[who] = len(numbers)
            self._may_go.discard(who)
        if found:
            self._note("unexpected", f"{when}: nobody published {sorted(found)}")

    def _begin_anew(self) -> None:
        """Begin another queue: on a full disk there would be nothing to find."""
        for path in self.disk.folder.glob("Queue.json*"):
            path.unlink()
        os.sync()  # or the next cut brings the old queue back
        for known in (self._tried, self._acknowledged, self._may_go):
            known.clear()

    def _note(self, kind: str, text: str) -> None:
        self.tally[kind] += 1
        self.violations.append(text)


def tasks_in(path: Path) -> list[tuple[str, int]]:
    """Return the publisher and number of each task, in the order of the queue."""
    reader = LogReader(path)
    state = QueueState()
    for batch in reader.batches():
        state.apply(batch)
    tasks = [state.task(seq, reader.read).data for seq in range(len(state))]
    reader.close()
    return [(who, number) for who, number, _ in tasks]


def run_cuts(count: int, seed: int, progress: Progress | None = None) -> Cuts:
    """Do so many cuts. Raises MissingMeansError where the machine lacks what this needs."""
    with tempfile.TemporaryDirectory() as folder, ext4(Path(folder)) as disk:
        cuts = Cuts(disk, Path(folder), seed)
        for number in range(count):
            cuts.cut(number)
            if progress is not None:
                progress.say(f"{number + 1} of {count} cuts: {dict(cuts.tally)}")
        return cuts


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.real_power_cuts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="write one object as the last line")
    parser.add_argument("--publisher", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.publisher:
        way, path, log, seed = asked.publisher
        publish_for_ever(way, path, log, int(seed))
        return 0
    progress = Progress()
    try:
        cuts = run_cuts(asked.cuts, asked.seed, progress)
    except MissingMeansError as error:
        print(error, file=sys.stderr)
        return 3
    names = ("cuts", "acknowledged", "torn", "suffix", "lost", "unexpected", "holes", "refused")
    report = {name: cuts.tally[name] for name in names} | {"seed": asked.seed, "seconds": progress.seconds}
    return conclude(report, cuts.violations, as_json=asked.json)


if __name__ == "__main__":
    sys.exit(main())

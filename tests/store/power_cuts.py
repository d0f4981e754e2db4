"""What a power cut may leave of a queue, state by state, and what the next writer makes of it.

    uv run python -m tests.store.power_cuts --states 200000 --seed 1 [--json]

First all workloads of up to three operations, with and without filler, cut at every call of the last operation: each
subset of the unsynced sectors, sizes and names where those are few, of whole pages where they are more, a choice
beyond. Then random longer workloads, in which disks fill up, syncs fail, processes are killed at any call and the power
goes again and again, until so many states were checked. Of some states recovery itself is cut short, at each of its
calls, and the recovery of that, three deep.

In each state a new writer opens the file. `refused`: it would not. `lost`: something that was synced is missing.
`wrong`: a hole, something never written, or no JSON. All three are violations, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import random
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import orjson

from actorq.errors import DiskFullError, StoreError, SyncFailedError
from actorq.store import records
from actorq.store.compaction import compact
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from actorq.store.new_file import TEMP_SUFFIX
from actorq.store.sessions import SessionTable
from actorq.tasks.ids import IdRange
from actorq.testing import PAGE, SECTOR, CrashingFilesystem, Stopped
from tests.long_run import Progress, conclude, spread
from tests.store.scenes import PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PUBLISHER = "publisher222"
SIZES = {"small": 30, "sector": SECTOR, "large": PAGE + 100}
OPERATIONS = (*SIZES, "checkpoint", "sync", "close", "kill", "compact", "publish")
FAULTS = ("power cut", "killed at a call", "killed before the name is on disk", "disk full", "failed sync")
FILLER_STEPS = (0, 1024)
LONGEST = 3
# 2,048 subsets: every batch of these workloads by itself, and two of the small ones.
ENUMERATED = 11
STATES_BEYOND = 60
DEPTH = 3
MOST_VIOLATIONS = 20


@dataclass
class Tally:
    """How many states were checked, and what came of them."""

    workloads: int = 0
    states: int = 0
    of_recovery: int = 0
    recovered: int = 0
    refused: int = 0
    lost: int = 0
    wrong: int = 0
    violations: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.workloads += other.workloads
        self.states += other.states
        self.of_recovery += other.of_recovery
        self.recovered += other.recovered
        self.refused += other.refused
        self.lost += other.lost
        self.wrong += other.wrong
        self.violations = (self.violations + other.violations)[:MOST_VIOLATIONS]


class Workload:
    """A queue that operations are done to, with what it has promised, looked at from behind every power cut."""

    def __init__(self, name: str, seed: object, filler_step: int) -> None:
        self.name = name
        self.tally = Tally(workloads=1)
        self.chance = random.Random(str(seed))
        self.written: list[bytes] = []
        self.promised = 0
        self._filler_step = filler_step
        self._log: LogWriter | None = None
        self._boot = 0
        self._number = 0
        self._seen: set[int] = set()
        self._watch: Callable[[], None] | None = None
        self.disk = CrashingFilesystem()

    # -----------------------------------------------------------------------------------------------------------
    # Operations

    def do(self, operation: str, *, watch: Callable[[], None] | None = None) -> None:
        """Do one operation; ``watch`` is called before each call that it makes."""
        self._watch = self.disk.before_call = watch
        try:
            self._do(operation)
        finally:
            self._watch = self.disk.before_call = None

    def _do(self, operation: str) -> None:
        match operation:
            case "sync":
                log = self._open()
                log.sync()
                self.promised = len(self.written)
            case "close":
                self._open()
                self._close()
            case "kill":
                self._open()
                self.killed()
            case "compact":
                self._open()
                self._close()
                compact(PATH, boot_id=self.boot, pid=1, keep_done=None, filesystem=self.disk)
            case "publish":
                self._close()
                log = self._open()
                self._append(log, SIZES["small"])
                log.sync()
                self.promised = len(self.written)
                self._close()
            case "checkpoint":
                self._append(self._open(), SIZES["small"], before=SessionTable().checkpoint_line())
            case _:
                self._append(self._open(), SIZES[operation])

    def _append(self, log: LogWriter, size: int, before: bytes = b"") -> None:
        self._number += 1
        lines = records.publish_lines(
            IdRange(PUBLISHER, self._number, self._number), "task", [b'"%b"' % (b"%d" % (self._number % 10) * size)]
        )
        self.written.append(_tasks_of(lines)[0])  # from here it may be there
        try:
            log.write(before + lines)
        except DiskFullError:
            self.written.pop()
            raise

    def _open(self) -> LogWriter:
        if self._log is None:
            self._log = LogWriter.open(
                PATH, filesystem=self.disk, boot_id=self.boot, pid=1, filler_step=self._filler_step
            )
            # What a new writer found it has synced; and what it did not find was never promised.
            found = tasks_on(self.disk)
            self._hold_against_promises(found, "reopening")
            del self.written[len(found) :]
            self.promised = len(found)
        return self._log

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None
            self.promised = len(self.written)

    @property
    def boot(self) -> str:
        """The boot id of the machine as it runs now."""
        return f"boot {self._boot}"

    def killed(self) -> None:
        """The process is gone; the machine runs on."""
        self._go_on_with(self.disk.after_kill())

    def power_cut(self) -> None:
        """The machine goes, and comes up again with one of the states that this may leave."""
        states = self._some_states(self.disk)
        self._boot += 1
        self._go_on_with(self.chance.choice(states))

    def _go_on_with(self, disk: CrashingFilesystem) -> None:
        self.disk = disk
        self.disk.before_call = self._watch
        self._log = None

    @contextmanager
    def until_refused(self) -> Iterator[None]:
        """Note it, and do no more, when the queue cannot be opened in the middle of the workload."""
        try:
            yield
        except StoreError as error:
            self.tally.refused += 1
            self._note(f"refused in the workload: {error}")

    def fail(self, fault: str, operation: str) -> None:
        """Let one of the next calls fail, do the operation, and go on as its process would."""
        at = len(self.disk.calls) + self.chance.randrange(16)
        taken = self.chance.choice([0, 1, 100, 600, 5000])
        match fault:
            case "failed sync":
                self.disk.fail_next("fdatasync", errno.EIO)
            case "killed before the name is on disk":
                self.disk.fail_next("fsync_dir", Stopped())
            case "killed at a call":
                self.disk.fail_call(at, Stopped(), taken=taken)
            case _:
                self.disk.fail_call(at, errno.ENOSPC, taken=taken)
        try:
            self.do(operation, watch=self.look_at_some)
        except Stopped:
            self.killed()
        except DiskFullError:
            pass
        except (SyncFailedError, OSError):
            self.killed()  # after a failed sync nobody goes on with this file
        self.disk.heal()

    # -----------------------------------------------------------------------------------------------------------
    # Looking

    def look_at_all(self) -> None:
        """Check every state that a power cut may leave now, if they are few, else all subsets of pages and a choice."""
        disk = self.disk
        if disk.unit_count() > ENUMERATED and disk.unit_count(block=PAGE) < disk.unit_count():
            self._look(disk.crash_states(limit=STATES_BEYOND, block=PAGE, enumerate_up_to=ENUMERATED))
        self._look(disk.crash_states(limit=STATES_BEYOND, seed=len(disk.calls), enumerate_up_to=ENUMERATED))

    def look_at_some(self) -> None:
        """Check a few of these states."""
        self._look(self._some_states(self.disk))

    def _some_states(self, disk: CrashingFilesystem) -> list[CrashingFilesystem]:
        seed, block = self.chance.randrange(1 << 30), self.chance.choice([SECTOR, PAGE])
        return list(disk.crash_states(limit=8, seed=seed, block=block, enumerate_up_to=3))

    def _look(self, states: Iterable[CrashingFilesystem]) -> None:
        for left in states:
            # What is in a file that never got its name nobody reads: its states need no check of their own.
            files = [(name, b"" if name.endswith(TEMP_SUFFIX) else left.read_bytes(name)) for name in left.names()]
            key = hash((self.promised, *files))
            if key not in self._seen:
                self._seen.add(key)
                self._check(left, self._boot + 1)

    def cut_recovery_short(self, depth: int = DEPTH) -> None:
        """Of one state that a power cut may leave now, let the power go again at each call of its recovery."""
        self._cut_recovery_short(self.chance.choice(self._some_states(self.disk)), self._boot + 1, depth)

    def _cut_recovery_short(self, left: CrashingFilesystem, boot: int, depth: int) -> None:
        disk = left.after_kill()
        cut: list[CrashingFilesystem] = []
        killed: list[CrashingFilesystem] = []

        def look() -> None:
            states = self._some_states(disk)
            cut.extend(self.chance.sample(states, min(3, len(states))))
            killed.append(disk.after_kill())

        disk.before_call = look
        self._check(disk, boot)
        disk.before_call = None
        if depth > 1:
            for again, next_boot in [(each, boot + 1) for each in cut] + [(each, boot) for each in killed]:
                # Each of them one level deeper would be thousands: all are checked, some are cut short again.
                if self.chance.random() < 0.2:
                    self._cut_recovery_short(again, next_boot, depth - 1)
                else:
                    self.tally.of_recovery += 1
                    self._check(again, next_boot)

    def _check(self, left: CrashingFilesystem, boot: int) -> None:
        """Open this disk as the next writer, and hold what it finds against what was promised."""
        self.tally.states += 1
        try:
            log = LogWriter.open(PATH, filesystem=left, boot_id=f"boot {boot}", pid=1, filler_step=0)
            log.forget()
            found = tasks_on(left)
        except (StoreError, OSError) as error:
            self.tally.refused += 1
            self._note(f"refused: {error}")
            return
        self.tally.recovered += 1
        self._hold_against_promises(found, "recovery")
        try:
            orjson.loads(left.read_bytes(PATH))
        except orjson.JSONDecodeError as error:
            self.tally.wrong += 1
            self._note(f"no JSON after recovery: {error}")

    def _hold_against_promises(self, found: list[bytes], when: str) -> None:
        if found[: self.promised] != self.written[: self.promised]:
            self.tally.lost += 1
            self._note(f"lost in {when}: {self.promised} were promised, {len(found)} are there")
        elif found != self.written[: len(found)]:
            self.tally.wrong += 1
            self._note(f"wrong after {when}: a hole, or something that was never written")

    def _note(self, what: str) -> None:
        self.tally.violations.append(f"{self.name}, call {len(self.disk.calls)}, boot {self._boot}: {what}")


def tasks_on(disk: CrashingFilesystem) -> list[bytes]:
    """Return the lines of all tasks in the queue on this disk."""
    reader = LogReader(PATH, filesystem=disk)
    return [line for batch in reader.batches() for line in _tasks_of(batch.lines)]


def _tasks_of(lines: bytes) -> list[bytes]:
    return [line for line in lines.splitlines() if line.startswith(records.TASK_LINE)]


# ---------------------------------------------------------------------------------------------------------------
# All short ones, and some long ones


def short_workloads(longest: int = LONGEST) -> list[tuple[tuple[str, ...], int]]:
    """Return all workloads of up to so many operations, each with and without filler."""
    return [
        (operations, filler_step)
        for length in range(1, longest + 1)
        for operations in itertools.product(OPERATIONS, repeat=length)
        for filler_step in FILLER_STEPS
    ]


def check_short(workload: tuple[tuple[str, ...], int]) -> Tally:
    """Check all states that a power cut in the last operation may leave; those before it are other workloads'."""
    operations, filler_step = workload
    life = Workload(f"{' '.join(operations)}, filler {filler_step}", workload, filler_step)
    with life.until_refused():
        for operation in operations[:-1]:
            life.do(operation)
        life.do(operations[-1], watch=life.look_at_all)
        life.look_at_all()
        life.cut_recovery_short(depth=2)
    return life.tally


def check_long(seed: int, number: int) -> Tally:
    """Check some of the states that power cuts in a random long workload may leave."""
    life = Workload(f"random workload {number} of seed {seed}", (seed, number), 0)
    chance = life.chance
    life._filler_step = chance.choice([0, 512, 4096, 1 << 16])
    with life.until_refused():
        for _ in range(chance.randrange(4, 16)):
            operation = chance.choice(OPERATIONS)
            fault = chance.choice(FAULTS) if chance.random() < 0.4 else None
            if fault == "power cut":
                life.power_cut()
            elif fault is not None:
                life.fail(fault, operation)
            else:
                life.do(operation, watch=life.look_at_some)
            if chance.random() < 0.2:
                life.cut_recovery_short()
        life.look_at_some()
    return life.tally


def run(states: int, seed: int, longest: int = LONGEST, workers: int | None = None) -> tuple[Tally, Tally, float]:
    """Check all short workloads, then long ones until so many more states are checked; return both, and seconds."""
    progress = Progress()
    short, long = Tally(), Tally()
    workloads = short_workloads(longest)
    for tally in spread(check_short, workloads, workers):
        short.add(tally)
        progress.say(f"{short.workloads} of {len(workloads)} short workloads, {short.states:,} states")
    for tally in spread(partial(check_long, seed), itertools.count() if states else (), workers):
        long.add(tally)
        progress.say(f"{long.workloads:,} long workloads, {long.states:,} of {states:,} states")
        if long.states >= states:
            break
    return short, long, progress.seconds


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.store.power_cuts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--states", type=int, default=200_000, help="to sample from long workloads, after all short")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=LONGEST, help="of the longest workload that is exhausted")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true", help="write one object as the last line")
    asked = parser.parse_args(arguments)
    short, long, seconds = run(asked.states, asked.seed, asked.operations, asked.workers)
    both = Tally()
    both.add(short)
    both.add(long)
    report = {
        "workloads": both.workloads,
        "states": both.states,
        "exhaustive_workloads": short.workloads,
        "exhaustive_states": short.states,
        "sampled_states": long.states,
        "states_of_recovery": both.of_recovery,
        "recovered": both.recovered,
        "refused": both.refused,
        "lost": both.lost,
        "wrong": both.wrong,
        "seed": asked.seed,
        "seconds": seconds,
    }
    return conclude(report, both.violations, as_json=asked.json)


if __name__ == "__main__":
    sys.exit(main())

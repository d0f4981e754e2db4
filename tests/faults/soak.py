"""Soak: a queue under load whose processes are killed, stopped and continued at random, and a checker at the end.

    uv run python -m tests.faults.soak --seconds 60 --seed 7

Publishers in four kinds of places publish (actors of the queue's tree, threads of the host, processes without brokers),
consumers run handlers that take from 0 to 20 ms and now and then raise; and all the while every process is hit again
and again: each broker, the consumers, the publishers, the supervisor, the host, and the direct publishers with the
locks in hand. Three of four blows are kills, the others stop a process for a moment. When the host dies another one
is started on the same file.

The seed fixes the schedule: pauses, victims, blows. What a victim was doing just then is up to the kernel.

Every half minute the faults end and all work must come to its end; then everything that was written down is held
against the log, and a new queue begins. In Jepsen's words: lost and unexpected must be 0, and each duplicate must be
explained by a handler that raised or by a death that this program caused.

Exit status: 0 all was right, 1 something was not (the folder with the queue and its history is kept and named), 2 wrong
usage. ^C ends the faults at once and still judges what there is; a second one ends everything.

examples:
  uv run python -m tests.faults.soak                                     one minute
  uv run python -m tests.faults.soak --seconds 600 --seed 3 --json       ten minutes; the last line is one JSON object
  uv run python -m tests.faults.soak --kills-per-second 40 --consumers 8
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import orjson

from actorq.actors.linux import pidfd_kill
from actorq.hosting import BROKER_NAMES
from tests.faults.arena import Arena, Load
from tests.faults.checker import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from tests.faults.history import Process

ROUND_SECONDS = 30.0
KILLS_PER_SECOND = 10.0
SHARE_OF_KILLS = 0.75
STOP_SECONDS = (0.001, 0.3)
PROGRESS_SECONDS = 0.25
PLAIN_PROGRESS_SECONDS = 10.0

WEIGHTS = {"broker": 4.0, "consumer": 3.0, "publisher": 2.0, "direct": 2.0, "supervisor": 1.0, "host": 0.6}
"""How often each role is hit, against the others. Supervisor and host take most others with them, and a while to come
back, so that more would leave less to kill."""

RAM = ("tmpfs", "ramfs")


class Blow(NamedTuple):
    """One step of the schedule: after a pause (seconds), stop or kill who plays the role."""

    pause: float
    role: str
    action: str
    seconds: float
    """How long a stop lasts."""


def schedule(seed: int, kills_per_second: float, load: Load) -> Iterator[Blow]:
    """Yield the blows of a seed, for ever."""
    dice = random.Random(seed)
    roles = [*BROKER_NAMES, "supervisor", "host"]
    weights = [WEIGHTS["broker"]] * len(BROKER_NAMES) + [WEIGHTS["supervisor"], WEIGHTS["host"]]
    for kind, number in (("consumer", load.consumers), ("publisher", load.publishers), ("direct", load.direct)):
        roles += [f"{kind}-{each}" for each in range(1, number + 1)]
        weights += [WEIGHTS[kind]] * number
    while True:
        pause = dice.expovariate(kills_per_second / SHARE_OF_KILLS)
        (role,) = dice.choices(roles, weights)
        is_kill = dice.random() < SHARE_OF_KILLS
        yield Blow(pause, role, "kill" if is_kill else "stop", dice.uniform(*STOP_SECONDS))


@dataclass
class Tally:
    """What was done."""

    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Blows whose role nobody played at that moment."""
    hosts: int = 0
    rounds: int = 0
    seconds: float = 0.0


class Interruption:
    """A first ^C counts between two steps of the torment, where nothing is half read; a second one ends all at once."""

    def __init__(self) -> None:
        self.is_asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


class Torment:
    """Deals the blows of a schedule in one arena."""

    def __init__(self, arena: Arena, blows: Iterator[Blow], tally: Tally, interruption: Interruption) -> None:
        self._interruption = interruption
        self._arena = arena
        self._blows = blows
        self._tally = tally
        self._stopped: list[tuple[float, str, Process, int]] = []
        """When it goes on, who, and a pidfd of it."""

    def run(self, seconds: float, progress: Progress, kills: float = 0) -> None:
        """Torment the arena for so long, and until so many kills have landed in all."""
        arena = self._arena
        begin = last = time.monotonic()
        blow = next(self._blows)
        due = begin + blow.pause
        while (now := time.monotonic()) - begin < seconds or self._tally.kills.total() < kills:
            if self._interruption.is_asked:
                progress.say("interrupted: no more faults; the work comes to its end and is judged")
                break
            if not arena.is_started:
                arena.start_host()
            arena.start_direct_publishers()
            self._continue(now)
            if now >= due:
                self._strike(blow, now)
                blow = next(self._blows)
                due += blow.pause
            self._tally.seconds += now - last
            last = now
            progress.show(arena, self._tally)
            arena.pump(min(max(due - time.monotonic(), 0), 0.002))

    def end(self) -> None:
        """Let go on whoever is stopped."""
        self._continue(float("inf"))
        self._tally.hosts += self._arena.hosts
        self._tally.rounds += 1

    def _strike(self, blow: Blow, now: float) -> None:
        number = signal.SIGKILL if blow.action == "kill" else signal.SIGSTOP
        pidfd = self._arena.strike(blow.role, number, blow.action)
        kind = blow.role.rstrip("-0123456789")
        if pidfd is None:
            self._tally.missed += 1
        elif blow.action == "kill":
            self._tally.kills[kind] += 1
            os.close(pidfd)
        else:
            self._tally.stops[kind] += 1
            self._stopped.append((now + blow.seconds, blow.role, self._arena.roles[blow.role], pidfd))

    def _continue(self, now: float) -> None:
        for stopped in list(self._stopped):
            until, role, process, pidfd = stopped
            if until <= now:
                self._stopped.remove(stopped)
                self._arena.recorder.fault(role, process, "continue")
                pidfd_kill(pidfd, signal.SIGCONT)
                os.close(pidfd)


class Progress:
    """What is going on, on standard error: one live line on a terminal, now and then a line elsewhere."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._is_live = sys.stderr.isatty()
        self._next = 0.0

    def show(self, arena: Arena, tally: Tally) -> None:
        """Say how far it is, if it is time for that."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (PROGRESS_SECONDS if self._is_live else PLAIN_PROGRESS_SECONDS)
        done = len(arena.ledger.tasks) - arena.ledger.open
        self.say(
            f"{tally.seconds:.0f} of {self._seconds:.0f} s, round {tally.rounds + 1}: "
            f"{tally.kills.total()} kills, {tally.stops.total()} stops, {arena.hosts} hosts, "
            f"{done} of {len(arena.ledger.tasks)} tasks finished",
            lasting=False,
        )

    def say(self, text: str, *, lasting: bool = True) -> None:
        """Say something; what does not last is written over by what comes next on a terminal."""
        if not self._is_live:
            sys.stderr.write(f"{text}\n")
        else:
            sys.stderr.write(f"\r\x1b[K{text}" + ("\n" if lasting else ""))
        sys.stderr.flush()


def soak(
    folder: Path,
    seconds: float,
    seed: int,
    kills_per_second: float,
    load: Load,
    round_seconds: float,
    kills: int,
    interruption: Interruption,
) -> tuple[Report, Tally]:
    """Run it, one queue after the other in folders below this one; those in which nothing was wrong are removed."""
    report, tally, progress = Report(), Tally(), Progress(seconds)
    blows = schedule(seed, kills_per_second, load)
    rounds = math.ceil(seconds / round_seconds)
    for number in range(1, rounds + 1):
        if interruption.is_asked:
            break
        below = folder / f"round-{number}"
        below.mkdir()
        with Arena(below, load) as arena:
            torment = Torment(arena, blows, tally, interruption)
            torment.run(seconds / rounds, progress, kills * number / rounds)
            torment.end()
            found = arena.judge(arena.settle(), arena.stop())
        report.merge(found)
        if not found.violations:
            shutil.rmtree(below)
        settled = "never" if found.settled_seconds is None else f"after {found.settled_seconds:.1f} s"
        progress.say(
            f"round {number}: {found.attempted} attempted, {found.acknowledged} acknowledged, {found.lost} lost, "
            f"{found.duplicated} duplicated, settled {settled}, {len(found.violations)} violations"
        )
    return report, tally


def summary(report: Report, tally: Tally, seed: int) -> dict[str, object]:
    """Return everything as one object."""
    return {
        **report.as_json(),
        "kills": tally.kills.total(),
        "stops": tally.stops.total(),
        "missed": tally.missed,
        "hosts": tally.hosts,
        "rounds": tally.rounds,
        "seconds": round(tally.seconds, 1),
        "rate": round(report.acknowledged / tally.seconds, 1) if tally.seconds else 0.0,
        "kills_per_second": round(tally.kills.total() / tally.seconds, 1) if tally.seconds else 0.0,
        "killed": dict(sorted(tally.kills.items())),
        "seed": seed,
    }


def print_report(said: dict[str, object], violations: Sequence[str]) -> None:
    """Print what people read."""
    for name, value in said.items():
        if name not in ("violations", "killed"):
            print(f"{name.replace('_', ' '):18} {value}")
    killed = said.get("killed")
    if isinstance(killed, dict):
        print("killed            ", ", ".join(f"{role} {number}" for role, number in killed.items()))
    for line in violations:
        print(f"VIOLATION {line}")
    print("all was right" if not violations else f"{len(violations)} violations")


def file_system_of(path: Path) -> str:
    """Return the type of the file system that a folder is on."""
    from actorq.store.filesystem import REAL

    return REAL.kind(path)


def positive(text: str) -> float:
    """Return a number above 0, for an option."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def whole(text: str) -> int:
    """Return a whole number, 0 or above, for an option."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add what every program of this kind takes."""
    parser.add_argument("--seed", type=int, default=None, help="of the schedule; drawn and printed when not given")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="where the queue lies; on a real disk")
    parser.add_argument("--json", action="store_true", help="end with one line: the report as a JSON object")


def check_folder(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Refuse a folder whose files are in memory: nothing would be synced."""
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    kind = file_system_of(folder)
    if kind in RAM:
        parser.error(f"{folder} is on {kind}, which keeps nothing; give --folder on a disk")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=positive, default=60.0, help="how long faults are dealt (60)")
    parser.add_argument("--kills-per-second", type=positive, default=KILLS_PER_SECOND, help="(10)")
    parser.add_argument(
        "--kills", type=whole, default=0, help="go on, however long it takes, until so many have landed"
    )
    parser.add_argument("--round-seconds", type=positive, default=ROUND_SECONDS, help="faults for each queue (30)")
    defaults = Load()
    parser.add_argument("--consumers", type=whole, default=defaults.consumers, help=f"({defaults.consumers})")
    parser.add_argument("--publishers", type=whole, default=defaults.publishers, help="actors (2)")
    parser.add_argument("--threads", type=whole, default=defaults.threads, help="publishing, of the host (2)")
    parser.add_argument("--direct", type=whole, default=defaults.direct, help="publishers without brokers (1)")
    add_common_options(parser)
    given = parser.parse_args(arguments)
    check_folder(parser, given.folder)
    if not given.consumers:
        parser.error("without consumers the work never comes to its end")
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    load = Load(given.consumers, given.publishers, given.threads, given.direct)
    folder = Path(tempfile.mkdtemp(dir=given.folder, prefix=".soak-"))
    sys.stderr.write(f"seed {seed}\n")
    interruption = Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        report, tally = soak(
            folder, given.seconds, seed, given.kills_per_second, load, given.round_seconds, given.kills, interruption
        )
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted twice; what there is lies in {folder}\n")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = summary(report, tally, seed)
    print_report(said, report.shown())
    if report.violations:
        print(f"queue and history are kept in {folder}")
    else:
        shutil.rmtree(folder)
    if given.json:
        print(orjson.dumps(said).decode())
    return 1 if report.violations else 0


if __name__ == "__main__":
    raise SystemExit(main())

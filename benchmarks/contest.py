"""What is the same for everybody who is measured: the payload, how many, and what a figure is.

A row of the table is a contest: `end_to_end`, say. Its entries are actorq, the floor (the bare mechanism, with none of
the features) and the peers. Each is a function of an empty folder on a disk and a `Scale`, and returns figures under
the same names. A name ends in its unit: of what ends in `/s` more is better, of everything else less.

Where something short is repeated, the function is a generator that yields now and then, so that all of a row can take
turns by the millisecond: see `in_turns`.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
    from pathlib import Path


class Scale(NamedTuple):
    """How much of everything."""

    publishes: int
    """Published one at a time, each after the acknowledgement of the one before."""
    tasks: int
    """Published in bulk, and run."""
    seconds: float
    """For which tasks are published at a steady rate."""
    backlog: int
    """Of ready tasks, where a long queue is the question."""
    kills: int
    """Deaths of which the effect is timed."""
    rounds: int
    """How often all of it is done, in turns."""

    @property
    def each_of_eight(self) -> int:
        """How many each of eight publishers publishes: with fewer it would be over before they all run."""
        return self.publishes // 2


FULL = Scale(publishes=1000, tasks=100_000, seconds=10.0, backlog=1_000_000, kills=40, rounds=3)
QUICK = Scale(publishes=200, tasks=20_000, seconds=2.0, backlog=50_000, kills=5, rounds=1)

TURN = 25
"""Repetitions of something short before it is the others' turn: a few milliseconds, in which no disk drifts."""

type Figures = dict[str, float]
type Turns = Generator[None, None, Figures]
type Measure = "Callable[[Path, Scale], Figures | Turns]"

PAYLOAD = {"path": "/var/data/images/2026/11/23/a-fairly-usual-name.png", "width": 640, "height": 480, "tries": 3}
PAYLOAD_BYTES = orjson.dumps(PAYLOAD)
"""About 100 bytes of JSON, for everybody the same."""


class BenchmarkError(Exception):
    """A contestant lost tasks, ran them twice, or acknowledged too early: it has no figure."""


class Contestant(NamedTuple):
    """Somebody who takes part."""

    name: str
    settings: str
    """With which it promises to keep what it has acknowledged: `SQLite, synchronous=FULL`."""
    version: Callable[[], str]
    missing: Callable[[], str | None]
    """What has to be installed first, or None."""
    rows: Mapping[str, Measure]


def latencies(seconds: Iterable[float], prefix: str = "") -> Figures:
    """Return the median and the 99th percentile of so many waits, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"{prefix}p50 ms": cuts[49] * 1e3, f"{prefix}p99 ms": cuts[98] * 1e3}


def timed(action: Callable[[], object], count: int) -> list[float]:
    """Do something so many times, one after the other, and return how long each took, in seconds."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return times


def in_turns(action: Callable[[], object], count: int) -> Generator[None, None, list[float]]:
    """Do as `timed`, and yield after every TURN. The same commit takes 0.07 ms now and 0.09 in ten seconds."""
    times: list[float] = []
    while len(times) < count:
        times += timed(action, min(TURN, count - len(times)))
        yield
    return times


def alternately(actions: Sequence[Callable[[], object]], count: int) -> list[list[float]]:
    """Do each as `timed` does, but a TURN of one, then of the next; return the times of each."""
    times: list[list[float]] = [[] for _ in actions]
    for done in range(0, count, TURN):
        for action, own in zip(actions, times, strict=True):
            own.extend(timed(action, min(TURN, count - done)))
    return times


def at_rate(publish: Callable[[], object], rate: float, seconds: float) -> None:
    """Publish at a steady rate (per second). Who falls behind does not catch up by a burst: later ones come later."""
    due = time.perf_counter()
    end = due + seconds
    while due < end:
        now = time.perf_counter()
        if now < due:
            time.sleep(due - now)
        publish()
        due = max(due + 1 / rate, time.perf_counter() - 1 / rate)


def require(fact: bool, what: str) -> None:
    """Raise BenchmarkError unless it is so."""
    if not fact:
        raise BenchmarkError(what)

"""What the long tests share, which run as commands: work for both cores, a line of progress, a last line of JSON."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PROGRESS_SECONDS = 2.0
ROUND = 32


def spread[Item, Result](
    work: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Iterator[Result]:
    """Yield the result of each item, in the order of the items, from so many forked processes (one for each core).

    Stopping early is allowed: what is under way then is dropped.
    """
    count = workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield from map(work, items)
        return
    remaining = iter(items)
    with multiprocessing.get_context("fork").Pool(count) as pool:
        # In rounds: the pool would take an endless iterable for ever.
        while some := list(itertools.islice(remaining, count * ROUND)):
            yield from pool.imap(work, some)


class Progress:
    """One line on standard error every two seconds."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._next = self.begun + PROGRESS_SECONDS

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self.begun, 1)

    def say(self, text: str) -> None:
        """Say how far it is, if the last time is long enough ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_SECONDS
            print(f"{self.seconds:8.1f} s  {text}", file=sys.stderr, flush=True)


def conclude(report: dict[str, Any], violations: list[str], *, as_json: bool) -> int:
    """Write violations and the report, and return the exit status: 1 if anything was violated."""
    for violation in violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    if as_json:
        print(json.dumps(report), flush=True)
    else:
        for key, value in report.items():
            print(f"{key:12} {value:,}" if isinstance(value, int) else f"{key:12} {value}")
    return 1 if violations else 0

"""Processes that die where they are told to: charges at the places that `actorq.failpoints` names.

with armed_failpoints() as points, queue.running(2, handler=work):
charge = points.lay("writer.written", "kill")
queue.publish("a")                        # acknowledged all the same, by the writer's successor
points.wait_for(charge)                   # says which process died there
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from actorq import failpoints
from actorq.actors.linux import process_status
from actorq.failpoints import Charge, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTIONS = ("kill", "stop", "exit", "delay", "raise", "cut")
LOOK_SECONDS = 0.0005


class NotTakenError(AssertionError):
    """No process has come by a place in time."""


@contextmanager
def armed_failpoints(*, here: bool = False) -> Iterator[Failpoints]:
    """Arm the fail points of all processes that are started, by exec or by a host, while the block runs.

    Those that run already, this one among them, pass by their places as ever; with `here`, this one is armed as well
    until the end of the block. Whoever was stopped by a charge goes on when the block ends.
    """
    with tempfile.TemporaryDirectory(prefix="actorq-failpoints-") as folder:
        points = Failpoints(Path(folder))
        before = os.environ.get(failpoints.ENVIRONMENT_VARIABLE)
        os.environ[failpoints.ENVIRONMENT_VARIABLE] = folder
        if here:
            failpoints.arm(folder)
        try:
            yield points
        finally:
            if here:
                failpoints.disarm()
            if before is None:
                del os.environ[failpoints.ENVIRONMENT_VARIABLE]
            else:
                os.environ[failpoints.ENVIRONMENT_VARIABLE] = before
            points.close()


class Laid(NamedTuple):
    """A charge that was laid."""

    serial: str
    charge: Charge


class Taken(NamedTuple):
    """Who took a charge, and when."""

    pid: int
    start: int
    """In clock ticks since boot: with the pid an identity."""
    at: float
    """Seconds since the epoch, a few milliseconds late at most."""


class Failpoints:
    """The charges that armed processes find. For one process, which may have several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (failpoints.CHARGES, failpoints.TAKEN, failpoints.WENT_ON):
            (folder / name).mkdir(mode=0o700)
        (folder / failpoints.MEMORY_FILE).write_bytes(bytes(failpoints.MEMORY_BYTES))
        self._memory = failpoints.map_memory(folder)
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[str, Laid] = {}
        """By serial: neither taken, as far as we know, nor taken back."""
        self._stops: list[Laid] = []
        """Those that were taken."""

    def __repr__(self) -> str:
        return f"<Failpoints {self.folder}: {[laid.charge for laid in self._open.values()]}>"

    def lay(self, point: str, action: str, nth: int = 1, value: float | None = None) -> Laid:
        """Have the first process that comes by for the n-th time from now on do this, once.

        `action`: kill, stop, exit (`value`: status, 1), delay (seconds, 0.1), raise an OSError (errno, EIO; only where
        a system call comes next), or cut the write short by a kill (bytes that get through, 1; only at writes).
        """
        kind, _ = failpoints.POINTS[point]
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is none of {', '.join(ACTIONS)}")
        if (action == "raise" and kind is Kind.PLAIN) or (action == "cut" and kind is not Kind.WRITE):
            raise ValueError(f"{action} is not possible at {point}, where {failpoints.POINTS[point][1]}")
        default = {"exit": 1, "delay": 0.1, "raise": errno.EIO, "cut": 1}.get(action, 0)
        charge = Charge(point, action, nth, default if value is None else value)
        with self._lock:
            laid = Laid(f"{next(self._numbers):08}", charge)
            self._open[laid.serial] = laid
            # Whole when it gets its name: somebody may come by at any time.
            written = self.folder / laid.serial
            written.write_text(json.dumps(charge), encoding="ascii")
            written.rename(self._path_of(laid))
            self._memory[failpoints.PLACES[point]] = 1
        return laid

    def taken_by(self, laid: Laid) -> Taken | None:
        """Return which process took the charge, or None while nobody has."""
        if self._path_of(laid).exists():
            return None
        found = list((self.folder / failpoints.TAKEN).glob(f"{laid.serial}.*"))
        if not found:
            return None  # taken back
        _, pid, start = found[0].name.split(".")
        with self._lock:
            if self._open.pop(laid.serial, None) is not None:
                self._clear(laid.charge.point)
                if laid.charge.action == "stop":
                    self._stops.append(laid)
        return Taken(int(pid), int(start), found[0].stat().st_ctime)

    def wait_for(self, laid: Laid, timeout: float = 10.0) -> Taken:
        """Return which process takes the charge. Raises NotTakenError after so many seconds."""
        deadline = time.monotonic() + timeout
        while (taken := self.taken_by(laid)) is None:
            if time.monotonic() >= deadline:
                raise NotTakenError(f"nobody came by {laid.charge} within {timeout:g} s")
            time.sleep(LOOK_SECONDS)
        return taken

    def let_go_on(self, laid: Laid) -> None:
        """Have who took a stop go on, and return once it has, or has died.

        Not by one signal: it may not have stopped yet, and would do so afterwards, for ever.
        """
        taken = self.taken_by(laid)
        while taken is not None and not (self.folder / failpoints.WENT_ON / laid.serial).exists():
            status = process_status(taken.pid)
            if status is None or status.start != taken.start or status.state in "ZX":
                return
            with suppress(ProcessLookupError):
                os.kill(taken.pid, signal.SIGCONT)
            time.sleep(LOOK_SECONDS)

    def take_back(self, laid: Laid) -> bool:
        """Take the charge back; False when a process has taken it already."""
        try:
            self._path_of(laid).unlink()
        except FileNotFoundError:
            return False
        with self._lock:
            del self._open[laid.serial]
            self._clear(laid.charge.point)
        return True

    def passed(self) -> set[str]:
        """Return the places that any armed process has ever come by."""
        count = len(failpoints.PLACES)
        return {name for name, place in failpoints.PLACES.items() if self._memory[count + place]}

    def close(self) -> None:
        """Take back all charges, and let go on who was stopped."""
        for laid in list(self._open.values()):
            if not self.take_back(laid):
                self.taken_by(laid)
        for laid in self._stops:
            self.let_go_on(laid)
        self._memory.close()

    def _path_of(self, laid: Laid) -> Path:
        return self.folder / failpoints.CHARGES / f"{laid.serial}@{laid.charge.point}"

    def _clear(self, point: str) -> None:
        if not any(laid.charge.point == point for laid in self._open.values()):
            self._memory[failpoints.PLACES[point]] = 0

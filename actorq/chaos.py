"""Chaos: kills the processes of a queue at random, for as long as it is let, and sees each of them come back.

Victims are drawn from a shuffled deck that holds every broker, every consumer and the supervisor, so that each has its
turn. Now and then two die at the same instant. The same seed draws the same victims; what they were doing when they
died is up to the kernel.
"""

from __future__ import annotations

import os
import random
import re
import select
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, override

from actorq.errors import ActorError
from actorq.hosting import BROKER_NAMES
from actorq.linux import pidfd_kill, pidfd_open

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actorq.actors import ActorSystem

SUPERVISOR = "supervisor"

ENOUGH_KILLS = 20

PAUSE_SECONDS = (0.0, 0.3)
"""Between one victim's return and the next kill: from at once to long enough for the queue to get going."""

TWO_AT_ONCE = 0.2
"""The share of blows that hit two."""

RETURN_SECONDS = 20.0
"""A process that is not back by then does not come back, and the run has failed."""

LOOK_SECONDS = 0.002

STDERR = 2
OBITUARY = re.compile(rb"\(pid (\d+)\) was killed by signal 9 ")
"""What the runtime logs about a process that was killed."""


class NotBackError(ActorError):
    """A killed process was not started again."""

    def __init__(self, name: str, pid: int, seconds: float) -> None:
        super().__init__(name, pid, seconds)
        self.name = name
        self.pid = pid
        self.seconds = seconds

    @override
    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid}) was killed and is not back after {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Kill:
    """A process that was killed, and the one that took its place."""

    number: int
    name: str
    pid: int
    next_pid: int
    seconds: float
    """From the blow until the next one ran."""


class Killer:
    """A thread that kills, within a `with`; the block's end waits until the last victim is back.

    Raises what went wrong at the end of the block: NotBackError, or an error of the actor system.
    """

    def __init__(self, system: ActorSystem, seed: int, kills: list[Kill], on_kill: Callable[[Kill], None]) -> None:
        """Append each kill to the list and tell it to `on_kill`, from the thread that kills."""
        self.kills = kills
        self._system = system
        self._random = random.Random(seed)  # noqa: S311  # dice, not secrets
        self._names = [*BROKER_NAMES, SUPERVISOR, *consumers_of(system)]
        self._deck: list[str] = []
        self._on_kill = on_kill
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._rage, name="killer")

    def __repr__(self) -> str:
        return f"<Killer {len(self.kills)} kills>"

    @property
    def has_killed_enough(self) -> bool:
        """At least ENOUGH_KILLS have landed, every broker and the supervisor among them; also true after a failure."""
        victims = {kill.name for kill in self.kills}
        enough = len(self.kills) >= ENOUGH_KILLS and victims.issuperset((*BROKER_NAMES, SUPERVISOR))
        return enough or self._failure is not None

    def wait(self, seconds: float) -> None:
        """Wait so long, or until the killing has failed."""
        self._stop.wait(seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

    def _rage(self) -> None:
        try:
            while not self._stop.wait(self._random.uniform(*PAUSE_SECONDS)):
                self._strike(self._draw(2 if self._random.random() < TWO_AT_ONCE else 1))
        except Exception as error:  # noqa: BLE001  # raised again at the end of the block
            self._failure = error
            self._stop.set()

    def _draw(self, number: int) -> list[str]:
        if len(self._deck) < number:
            self._deck = self._random.sample(self._names, len(self._names))
        return [self._deck.pop() for _ in range(number)]

    def _strike(self, names: list[str]) -> None:
        """Kill the processes of these names at once, and wait until others have taken their places."""
        before = self._pids()
        supervisor = before[SUPERVISOR]
        struck = time.monotonic()
        dead = {
            name: before[name]
            for name in names
            if name in before and kill(before[name], os.getpid() if name == SUPERVISOR else supervisor)
        }
        while dead:
            now = self._pids()
            for name in [name for name, pid in dead.items() if now.get(name, pid) != pid]:
                landed = Kill(len(self.kills) + 1, name, dead.pop(name), now[name], time.monotonic() - struck)
                self.kills.append(landed)
                self._on_kill(landed)
            if dead and time.monotonic() - struck > RETURN_SECONDS:
                name, pid = dead.popitem()
                raise NotBackError(name, pid, RETURN_SECONDS)
            time.sleep(LOOK_SECONDS)

    def _pids(self) -> dict[str, int]:
        """Return the processes that run, by name; only the supervisor's while it is on its way back."""
        try:
            pids = {
                child.name: child.pid for child in self._system.children() if child.pid and child.state == "running"
            }
        except ActorError:
            if self._system.failure is not None:
                raise
            pids = {}
        return pids | {SUPERVISOR: self._system.supervisor_pid}


class OwnKillsUnsaid:
    """A `with` in which standard error does not say what is shown as a kill already.

    The runtime logs every death, from several processes, and would write across the live line. Everything else that was
    written there follows at the end of the block.
    """

    def __init__(self, kills: Sequence[Kill]) -> None:
        self._kills = kills

    def __enter__(self) -> None:
        self._said = tempfile.TemporaryFile()
        self._stderr = os.dup(STDERR)
        os.dup2(self._said.fileno(), STDERR)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._stderr, STDERR)
        os.close(self._stderr)
        pids = {kill.pid for kill in self._kills}
        with self._said:
            self._said.seek(0)
            for line in self._said:
                death = OBITUARY.search(line)
                if death is None or int(death[1]) not in pids:
                    os.write(STDERR, line)


def consumers_of(system: ActorSystem) -> list[str]:
    """Return the names of the consumers, which are numbered."""
    names = [child.name for child in system.children()]
    return [name for name in names if name.startswith("consumer-") and name.removeprefix("consumer-").isdigit()]


def kill(pid: int, parent: int) -> bool:
    """Kill a child of that parent and wait until it is dead; False if the number is not that process any more."""
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Asked while we hold the descriptor: a number that the kernel gave to somebody else is left alone.
        if parent_of(pid) != parent or not pidfd_kill(pidfd):
            return False
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(RETURN_SECONDS * 1000))
    finally:
        os.close(pidfd)


def parent_of(pid: int) -> int | None:
    """Return the pid of the process's parent, or None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(b")")[2].split()[1])

"""The processes of a running queue, seen from any other process: what each is, and how it is.

The kernel keeps 15 bytes of a process's name, so `actorq:publisher-broker` is `actorq:publishe`, and the scheduler and
all consumers are called alike. The log knows the pids of consumers and writer; of the others of that name the scheduler
is the one that has the queue's file open.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actorq.hosting import BROKER_NAMES
from actorq.linux import ACTOR_NAME, ROOT_NAME, children_of, process_status, seconds_since

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actorq.linux import ProcessStatus

HOST = "host"
SUPERVISOR = "supervisor"
WRITER = "publisher-broker"
SCHEDULER = "consumer-broker"
CONSUMER = "consumer"
STARTING = "starting"
"""Forked by the supervisor a moment ago, and still called as it is."""

STATES = {
    "R": "running",
    "S": "sleeping",
    "I": "sleeping",
    "D": "waiting for the disk",
    "T": "stopped",
    "t": "being debugged",
    "Z": "dead",
    "X": "dead",
}


@dataclass(frozen=True, slots=True)
class Process:
    """One process of the tree."""

    pid: int
    parent: int
    role: str
    """host, supervisor, the name of a broker, consumer, starting; of what handlers have started its own name."""
    state: str
    """In words."""
    seconds: float
    """How long ago it started."""
    depth: int
    """How far below the host."""


def process_tree(host: int | None, path: Path, known: Mapping[int, str]) -> list[Process]:
    """Return the host of the queue and the processes of its trees, children behind their parents, then those elsewhere.

    What else the host has started is none of the queue's; what handlers have started is shown.

    `known`: what the log says of some pids.
    """
    found: list[Process] = []

    def look_at(pid: int, depth: int) -> None:
        status = process_status(pid)
        if status is None:
            return
        role = HOST if pid == host else role_of(status, path, known, is_first=depth == 1)
        words = STATES.get(status.state, status.state)
        found.append(Process(pid, status.parent, role, words, max(0.0, seconds_since(status.start)), depth))
        for child in children_of(pid):
            if depth or is_supervisor(child):
                look_at(child, depth + 1)

    if host is not None:
        look_at(host, 0)
    below = {process.pid for process in found}
    for pid in known:
        if pid not in below:
            look_at(pid, 0)
    return found


def is_supervisor(pid: int) -> bool:
    """Say whether this child of a host is the supervisor of a tree of ours."""
    status = process_status(pid)
    return status is not None and status.name.startswith(ROOT_NAME)


def role_of(status: ProcessStatus, path: Path, known: Mapping[int, str], *, is_first: bool) -> str:
    """Return what a process below the host is; the supervisor is the first one there."""
    if not status.name.startswith(ACTOR_NAME):
        if status.name.startswith(ROOT_NAME):
            return SUPERVISOR if is_first else STARTING
        return known.get(status.pid, status.name)
    if status.pid in known:
        return known[status.pid]
    name = status.name.removeprefix(ACTOR_NAME)
    if SCHEDULER.startswith(name):
        return SCHEDULER if has_open(status.pid, path) else CONSUMER
    return next((broker for broker in BROKER_NAMES if broker.startswith(name)), name)


def has_open(pid: int, path: Path) -> bool:
    """Say whether the process has the file open, as far as we may know."""
    try:
        fds = list(Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return any(_target_of(fd) == str(path) for fd in fds)


def _target_of(fd: Path) -> str:
    try:
        return str(fd.readlink()).removesuffix(" (deleted)")
    except OSError:  # closed meanwhile
        return ""

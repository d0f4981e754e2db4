"""What was attempted, answered, begun and done to the processes: written down by those who did it, as they did it.

Each process appends to a file of its own, whole lines with one write each. So a kill loses nothing that was written
before it, and what it may tear is the last line of a file: the reader leaves that one out, and no other.

Times are those of CLOCK_MONOTONIC, one clock for all processes of the machine, in nanoseconds. A process is known by
its id and its start time together, because ids come again.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import orjson

from actorq.linux import process_start_time
from actorq.tasks.payload import encode_payload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Process(NamedTuple):
    """One process, told from an earlier one with the same id."""

    pid: int
    start: int
    """In clock ticks since boot."""


class Attempt(NamedTuple):
    """Somebody is about to publish this payload, whose `key` nobody else uses."""

    at: int
    key: str
    crc: int
    name: str


class Execution(NamedTuple):
    """A handler began, and perhaps ended: `how` is returned, raised, or empty when it never said."""

    process: Process
    task: str
    attempt: int
    begun: int
    ended: int
    how: str


class Fault(NamedTuple):
    """Something was done to a process on purpose. `action`: kill, stop, continue, or what a fail point did."""

    at: int
    boot: float
    """Seconds since boot, to be held against the start times of processes."""
    wall: float
    """Seconds since the epoch, to be held against the times of the log."""
    role: str
    process: Process
    action: str
    point: str


@dataclass
class History:
    """All that was written down."""

    attempts: dict[str, Attempt] = field(default_factory=dict)
    acknowledged: dict[str, str] = field(default_factory=dict)
    """key -> id"""
    rejected: dict[str, str] = field(default_factory=dict)
    """key -> why it is certainly not in the queue"""
    unknown: dict[str, str] = field(default_factory=dict)
    """key -> why nobody knows; besides those whose publisher died before it heard anything"""
    escaped: dict[str, str] = field(default_factory=dict)
    """key -> an error that is none of those in which a publish may end"""
    executions: list[Execution] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    last_words: dict[Process, int] = field(default_factory=dict)
    """When each process last wrote something: it was alive then."""
    torn: int = 0
    """Files whose process was killed in the middle of a line."""


class Recorder:
    """A process's own file. Make one in each process; it is not for several threads."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        pid = os.getpid()
        path = Path(folder) / f"{pid}-{time.monotonic_ns()}.jsonl"
        self._pid = pid
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._write({"process": [pid, process_start_time(pid)]})

    @property
    def is_mine(self) -> bool:
        """Whether it was made by this process and not by one that this was forked from."""
        return self._pid == os.getpid()

    def attempted(self, name: str, payloads: Sequence[dict[str, Any]]) -> None:
        """Say that these are about to be published; each has a `key`."""
        marks = [[data["key"], crc32(encode_payload(data))] for data in payloads]
        self._write({"attempted": marks, "name": name})

    def acknowledged(self, keys: Sequence[str], ids: Sequence[str]) -> None:
        """Say that these are in, under these ids."""
        self._write({"acknowledged": list(zip(keys, ids, strict=True))})

    def rejected(self, keys: Sequence[str], error: BaseException) -> None:
        """Say that these are certainly not in."""
        self._write({"rejected": list(keys), "why": type(error).__name__})

    def unknown(self, keys: Sequence[str], error: BaseException) -> None:
        """Say that these may be in or not."""
        self._write({"unknown": list(keys), "why": type(error).__name__})

    def escaped(self, keys: Sequence[str], error: BaseException) -> None:
        """Say that publishing these ended in none of the ways that it may end in."""
        self._write({"escaped": list(keys), "why": repr(error)})

    def began(self, task: str, attempt: int) -> None:
        """Say that the handler of a task begins."""
        self._write({"began": task, "attempt": attempt})

    def ended(self, task: str, how: str) -> None:
        """Say that it has ended."""
        self._write({"ended": task, "how": how})

    def fault(self, role: str, process: Process, action: str, point: str = "", wall: float | None = None) -> None:
        """Say what is about to be done to a process; or what it did to itself at a fail point, and when."""
        boot, now = time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
        ago = 0.0 if wall is None else now - wall
        self._write(
            {"fault": action, "role": role, "process_": list(process), "point": point}
            | {"boot": boot - ago, "wall": now - ago}
        )

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _write(self, event: dict[str, Any]) -> None:
        os.write(self._fd, orjson.dumps({"t": time.monotonic_ns(), **event}) + b"\n")


def read_history(folder: str | os.PathLike[str]) -> History:
    """Return what all processes wrote. Raises ValueError for a line that is not whole and not the last of its file."""
    history = History()
    for path in sorted(Path(folder).iterdir()):
        lines = path.read_bytes().split(b"\n")
        if lines.pop():
            history.torn += 1
        _take(history, map(orjson.loads, lines))
    history.executions.sort(key=lambda execution: execution.begun)
    history.faults.sort()
    return history


def _take(history: History, events: Iterable[dict[str, Any]]) -> None:
    process = Process(0, 0)
    running: Execution | None = None
    for event in events:
        at = event["t"]
        match event:
            case {"process": [pid, start]}:
                process = Process(pid, start)
            case {"attempted": marks, "name": name}:
                history.attempts |= {key: Attempt(at, key, crc, name) for key, crc in marks}
            case {"acknowledged": pairs}:
                history.acknowledged |= dict(pairs)
            case {"rejected": keys, "why": why}:
                history.rejected |= dict.fromkeys(keys, why)
            case {"unknown": keys, "why": why}:
                history.unknown |= dict.fromkeys(keys, why)
            case {"escaped": keys, "why": why}:
                history.escaped |= dict.fromkeys(keys, why)
            case {"began": task, "attempt": attempt}:
                if running is not None:
                    history.executions.append(running)
                running = Execution(process, task, attempt, at, 0, "")
            case {"ended": task, "how": how}:
                if running is None or running.task != task:
                    raise ValueError(f"{process} ended {task}, which it had not begun")
                history.executions.append(running._replace(ended=at, how=how))
                running = None
            case {"fault": action, "role": role, "process_": whom, "point": point, "boot": boot, "wall": wall}:
                history.faults.append(Fault(at, boot, wall, role, Process(*whom), action, point))
            case _:
                raise ValueError(f"not an event: {event}")
        history.last_words[process] = at
    if running is not None:
        history.executions.append(running)

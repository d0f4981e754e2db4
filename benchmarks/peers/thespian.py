"""Thespian: an actor is a process, and messages go through multiprocessing's queues or through TCP."""

from __future__ import annotations

import ctypes
import multiprocessing.resource_tracker
import os
import signal
import socket
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thespian.actors import Actor, ActorExitRequest, ActorSystem

from benchmarks.contest import require
from benchmarks.peers.actors import HOW_MANY, MORE, TIMEOUT, Actors

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIET: dict[str, Any] = {"version": 1}
"""A configuration of logging with nothing in it."""

PR_SET_CHILD_SUBREAPER = 36


class Counter(Actor):
    """Found by its name in its own process."""

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    def receiveMessage(self, message: object, sender: Any) -> None:  # noqa: N802  # its name is Thespian's
        """Count, or tell the count."""
        if message == MORE:
            self._count += 1
        elif message == HOW_MANY:
            self.send(sender, self._count)


class ThespianActors(Actors):
    """Behind an admin process."""

    def __init__(self, system: Any) -> None:
        """Keep the system, of which there is one in each process."""
        self._system = system

    def spawn(self) -> Any:
        """Start a process."""
        return self._system.createActor(Counter)

    def tell(self, actor: Any, message: object) -> None:
        """Send."""
        self._system.tell(actor, message)

    def ask(self, actor: Any, message: object) -> Any:
        """Wait for what comes next."""
        answer = self._system.ask(actor, message, timedelta(seconds=TIMEOUT))
        require(answer is not None, f"no answer within {TIMEOUT:.0f} s")
        return answer

    def stop(self, actor: Any) -> None:
        """Ask it to end."""
        self._system.tell(actor, ActorExitRequest())


@contextmanager
def queue_actors(folder: Path) -> Iterator[Actors]:
    """Start the system on queues."""
    with _running("multiprocQueueBase", {}, folder) as actors:
        yield actors


@contextmanager
def tcp_actors(folder: Path) -> Iterator[Actors]:
    """Start the system on TCP, on the loopback and on a port that is free."""
    os.environ["THESPIAN_BASE_IPADDR"] = "127.0.0.1"
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    with _running("multiprocTCPBase", {"Admin Port": port}, folder) as actors:
        yield actors


@contextmanager
def _running(base: str, capabilities: dict[str, Any], folder: Path) -> Iterator[Actors]:
    os.environ["THESPLOG_FILE"] = str(folder / "thespian.log")
    with _no_process_left():
        system = ActorSystem(base, capabilities, logDefs=QUIET)
        try:
            yield ThespianActors(system)
        finally:
            system.shutdown()


@contextmanager
def _no_process_left() -> Iterator[None]:
    """Kill what is left at the end. Its processes leave their session and their parent, and ^C ends only some."""
    multiprocessing.resource_tracker.ensure_running()
    before = _children()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        # The children of each become ours when it is gone.
        while left := _children() - before:
            for process in left:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _children() -> set[int]:
    lists = Path("/proc/self/task").glob("*/children")
    return {int(process) for each in lists for process in each.read_text().split()}

"""Taking the queue from a host that does not answer: one that was stopped (^Z, SIGSTOP, a debugger), or hangs.

Such a host keeps its locks. So whoever waits for it in vain kills its writer and the supervisor above, by pidfd, and
with them the kernel ends all of its brokers and consumers; the process that hosts is not touched. Once they are dead,
nobody can write for it any more, and the writer's lock is free. With that in hand the host's lock gets a new file, on
which the old lock counts for nothing; see `HostLock`. Comes the old host to life again, its next writer sees that, and
gives up.
"""

from __future__ import annotations

import logging
import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from actorq.errors import QueueLockedError
from actorq.linux import ACTOR_NAME, pidfd_kill, pidfd_open, process_status
from actorq.store.locks import FileIdentity, HostLock, WriterLock, is_hosted, writer_pid

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("actorq")

TAKEOVER_AFTER = 5.0
"""Seconds without an answer after which a host is not waited for any longer."""

DEATH_SECONDS = 5.0
"""How long a killed process may take to end."""

STOPPED = frozenset("Tt")
"""States of a process that does nothing until somebody continues it."""

ON_DISK = "D"
"""State of a process that waits for the disk: it will answer, and no signal reaches it before."""


class Victims(NamedTuple):
    """The writer of a host and its supervisor, by pidfd."""

    writer: int
    supervisor: int

    def kill(self) -> bool:
        """Kill both and wait for their death; False when one does not die."""
        # The supervisor first, or it would start the next writer.
        for pidfd in (self.supervisor, self.writer):
            pidfd_kill(pidfd)
        return all(select.select([pidfd], [], [], DEATH_SECONDS)[0] for pidfd in self)

    def close(self) -> None:
        """Close the pidfds."""
        for pidfd in self:
            os.close(pidfd)


def is_stopped(path: Path) -> bool:
    """Tell whether the writer of the queue is a broker that was stopped."""
    pid = writer_pid(path)
    stat = None if pid is None else process_status(pid)
    return stat is not None and stat.name.startswith(ACTOR_NAME) and stat.state in STOPPED


def depose(path: Path, suspect: FileIdentity | None) -> None:
    """End the brokers of a host that has not answered for too long, so that somebody else may host.

    `suspect` is the file of the host's lock when the silence began: nobody else is meant.
    """
    if suspect is None or not is_hosted(path):
        return
    victims = _writer_and_supervisor(path)
    if victims is not None:
        try:
            if not victims.kill():
                return
        finally:
            victims.close()
    lock = WriterLock(path)
    try:
        lock.acquire(0.1)
    except QueueLockedError:
        return  # the next writer was quicker: so there is life in it
    with lock:
        if is_hosted(path) and HostLock(path).depose(lock, suspect):
            logger.warning("host deposed path=%r: it did not answer", str(path))


def _writer_and_supervisor(path: Path) -> Victims | None:
    """Return who writes for the host, if it is a broker and does not just wait for the disk."""
    pid = writer_pid(path)
    if pid is None:
        return None
    opened: list[int] = []
    try:
        opened.append(pidfd_open(pid))
        writer = process_status(pid)
        if writer is None or not writer.name.startswith(ACTOR_NAME) or writer.state == ON_DISK:
            return None
        opened.append(pidfd_open(writer.parent))
        # The numbers mean the same processes still: it has the lock, and its parent has not changed.
        if writer_pid(path) == pid and writer.is_same(process_status(pid)):
            victims, opened = Victims(*opened), []
            return victims
    except ProcessLookupError:
        pass  # it died meanwhile, by itself
    finally:
        for fd in opened:
            with suppress(OSError):
                os.close(fd)
    return None

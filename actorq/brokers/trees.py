"""Ending the consumers of other trees, where what the log has said may not be true any more.

A failed sync may take back registrations and assignments, of tasks that run already. So all consumers must end before
anybody serves the queue again. Those of the writer's own tree end with its supervisor; those that have joined it from
other processes do not, and are ended here, by their supervisors, so that no task is charged with it.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from actorq.actors.linux import boot_id, pidfd_kill, pidfd_open, process_status
from actorq.actors.packets import close_fds, wait_readable
from actorq.brokers.messages import EventOwner
from actorq.brokers.registry import open_process
from actorq.errors import CorruptQueueError, UnsupportedFormatError
from actorq.store.filesystem import REAL, Filesystem
from actorq.store.log_reader import LogReader
from actorq.store.sessions import SessionTable

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("actorq")

DEATH_SECONDS = 5.0
"""How long a killed consumer may take to end."""


def end_other_trees(roll: list[list[Any]], own_supervisor: int | None = None) -> None:
    """End the consumers among these sessions, but for those below that supervisor, and return when they are dead."""
    boot = boot_id()
    pidfds = [
        pidfd
        for _, role, pid, start, its_boot in roll
        if role == EventOwner.CONSUMER and its_boot == boot and (pidfd := _kill_tree_of(pid, start, own_supervisor))
    ]
    for pidfd in pidfds:
        if not wait_readable(pidfd, DEATH_SECONDS):
            logger.error("a consumer of another tree was killed and does not end")
    close_fds(pidfds)


def roll_of(path: Path, filesystem: Filesystem = REAL) -> list[list[Any]]:
    """Return who is connected by what can be read of a file, which nobody has mended yet."""
    table = SessionTable()
    with suppress(CorruptQueueError, UnsupportedFormatError):  # whoever opens it sees to that
        log = LogReader(path, filesystem=filesystem)
        try:
            for batch in log.batches():
                table.apply(batch.lines)
        finally:
            log.close()
    return table.roll()


def _kill_tree_of(pid: int, start: int, own_supervisor: int | None) -> int | None:
    """Kill the supervisor of a process, and so the kernel that process; return its pidfd. None if there is no need."""
    pidfd = open_process(pid, start)
    status = None if pidfd is None else process_status(pid)
    if pidfd is None or status is None or status.parent == own_supervisor:
        close_fds([] if pidfd is None else [pidfd])
        return None
    try:
        supervisor = pidfd_open(status.parent)
    except ProcessLookupError:
        return pidfd  # then it is about to end by itself
    if status.is_same(process_status(pid)):  # so the number means its parent still
        pidfd_kill(supervisor)
    os.close(supervisor)
    return pidfd

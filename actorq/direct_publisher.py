"""Publishing without brokers: for a script that publishes and exits, and for all while nobody hosts the queue.

Each group of tasks is one commit, written and synced by the caller under both locks of the queue. Between two of them
nothing is locked, and anybody may do anything to the file; what is kept is only what makes the next one cheap.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from actorq import failpoints, on_demand
from actorq.actors.linux import boot_id
from actorq.attachments import brokers_of
from actorq.brokers.backlog import Limits
from actorq.errors import (
    ActorqError,
    FolderNotFoundError,
    PublishError,
    PublishRejectedError,
    PublishUnknownError,
    QueueFullError,
    QueueLockedError,
    SyncFailedError,
)
from actorq.publisher import DEFAULT_TIMEOUT, WINDOW, BadItemError, Chunk, HostedError, ids_of
from actorq.store import records
from actorq.store.failed_sync import has_mark
from actorq.store.filesystem import REAL, Filesystem, NamesVersion
from actorq.store.locks import DescriptorLock, HostLock, WriterLock
from actorq.store.log_writer import LogWriter
from actorq.tasks.ids import IdRange, new_session, task_id
from actorq.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from actorq.brokers.session import Finder

logger = logging.getLogger("actorq")

FIRST_NAP_SECONDS = 0.0005
LONGEST_NAP_SECONDS = 0.005
"""Between two looks whether the writer's lock is free: the kernel has no flock with a deadline."""


class DirectPublisher:
    """Publishes while no broker runs: one commit per chunk group, under both locks, durable when it returns."""

    def __init__(
        self,
        path: Path,
        limits: Limits = Limits(),  # noqa: B008  # a tuple
        filesystem: Filesystem = REAL,
        boot: str | None = None,
        way_in: Finder | None = None,
    ) -> None:
        self._path = path
        self._filesystem = filesystem
        self.desk = Desk(path, filesystem, boot or boot_id(), way_in or partial(brokers_of, path))
        self._leave = weakref.finalize(self, self.desk.close)
        self._session = new_session()
        self._number = 0
        self._limits = limits
        self._view = View(path, filesystem, weighs=True)

    def publish(self, chunks: Iterable[Chunk], name: str, timeout: float = DEFAULT_TIMEOUT) -> list[IdRange]:
        """Publish groups of up to WINDOW chunks, each in one commit.

        Raises HostedError when somebody hosts the queue, who can be reached by now.
        """
        ranges: list[IdRange] = []
        group: list[Chunk] = []
        for chunk in chunks:
            group.append(chunk)
            if len(group) >= WINDOW or chunk.error is not None:
                self._publish_group(group, name, timeout, ranges)
                group = []
            if chunk.error is not None:
                raise BadItemError(chunk.error).as_payload_error(ranges)
        if group:
            self._publish_group(group, name, timeout, ranges)
        return ranges

    def close(self) -> None:
        """Close what was kept open between commits, and leave the file as it should be at rest."""
        self._view.close()
        self._leave()

    def _publish_group(self, group: list[Chunk], name: str, timeout: float, done: list[IdRange]) -> None:
        """Publish one group and add its ids to what is done, which an error reports."""
        try:
            done += self._commit(group, name, timeout)
        except HostedError as news:
            news.ranges, news.group = done, group
            raise
        except PublishError as error:
            error.published = ids_of(done) + error.published
            raise

    def _commit(self, group: list[Chunk], name: str, timeout: float) -> list[IdRange]:
        payloads = [chunk.payloads for chunk in group if chunk.payloads]
        if not payloads:
            return []
        full = None

        def write(log: LogWriter) -> list[IdRange]:
            nonlocal full
            if self._limits:
                full = self._cut_to_room(payloads, name)
            return self._write(log, payloads, name, timeout) if payloads else []

        try:
            ranges = self.desk.use(timeout, write)
        except SyncFailedError as error:  # of the opening: what is written here is dealt with in `_write`
            raise PublishRejectedError(f"nothing was written: {error}") from error
        if full is not None:
            full.published = ids_of(ranges)
            raise full
        return ranges

    def _write(self, log: LogWriter, payloads: list[list[bytes]], name: str, timeout: float) -> list[IdRange]:
        ranges: list[IdRange] = []
        lines: list[bytes] = []
        number = self._number
        for some in payloads:
            span = IdRange(self._session, number + 1, number + len(some))
            lines.append(records.publish_lines(span, name, some))
            ranges.append(span)
            number = span.last
        # Before the write: whatever interrupts it (^C), these numbers may be in the log and must never come again.
        self._number = number
        try:
            log.write(lines)
            log.sync()
            if failpoints.ARMED:
                failpoints.hit("direct.synced")
        except SyncFailedError:
            raise PublishUnknownError(task_id(ranges[0].session, ranges[0].first), timeout) from None
        return ranges

    def _cut_to_room(self, payloads: list[list[bytes]], name: str) -> QueueFullError | None:
        """Take off what the limits leave no room for, and return the error that says so. Both locks are held."""
        state = self._view.refresh()
        tasks, size = state.pending_count, state.pending_bytes
        number = self._number
        for at, some in enumerate(payloads):
            lengths = records.task_lengths(IdRange(self._session, number + 1, number + len(some)), name, some)
            room = self._limits.room(tasks, size, lengths)
            tasks += room
            size += sum(lengths[:room])
            number += room
            if room < len(some):
                payloads[at:] = [some[:room]] if room else []
                return QueueFullError(self._path, self._limits.why_full(tasks, size))
        return None


class Desk:
    """What a direct publisher keeps from one commit to the next: the open files of both locks, and where the log ends.

    To open and read all of it anew takes longer than the commit. Nothing is locked meanwhile, and others may do what
    they like; see `LogWriter.resume`. What shows in the names of the folder is looked for only when one of them has
    changed: that both locks and the file are what they were, and that nobody has left a mark.
    """

    def __init__(self, path: Path, filesystem: Filesystem, boot: str, way_in: Finder) -> None:
        self._path = path
        self._filesystem = filesystem
        self._boot = boot
        self._locks = BothLocks(path, way_in, filesystem)
        self._log: LogWriter | None = None
        self._pid = os.getpid()
        self._user: Callable[[], _Token | None] = _nobody
        _desks.add(self)

    def _sit_down(self) -> _Token:
        """Return what keeps out whoever comes in between: a signal handler that publishes, the end of the interpreter.

        Not a lock, which would stay taken if ^C came between taking it and the `try`. The token dies in one step.
        """
        me = _Token()
        if self._user() is not None:
            raise QueueLockedError(self._path, self._pid)
        self._user = weakref.ref(me)
        return me

    def use[Result](self, timeout: float, act: Callable[[LogWriter], Result]) -> Result:
        """Act on the log with both locks in hand. Raises SyncFailedError when it cannot be opened for that reason."""
        me = self._sit_down()
        try:
            return self._locks.hold(timeout, partial(self._act_on_log, act))
        finally:
            del me

    def _act_on_log[Result](self, act: Callable[[LogWriter], Result]) -> Result:
        log = self._log_to_write_to()
        try:
            result = act(log)
        except BaseException:
            self._log = None
            self._close(log)
            raise
        log.pause()
        if failpoints.ARMED:
            failpoints.hit("direct.closed")
        # From here a power loss keeps what was written.
        return result

    def _log_to_write_to(self) -> LogWriter:
        if failpoints.ARMED:
            failpoints.hit("direct.locked")
        log = self._log
        if log is not None:
            if log.resume(undisturbed=self._locks.are_undisturbed):
                self._locks.rely_on_names()
            else:
                log.forget()
                log = self._log = None
        if log is None:
            if has_mark(self._filesystem, self._path):
                on_demand.trees.end_other_trees(on_demand.trees.roll_of(self._path, self._filesystem))
            log = self._log = LogWriter.open(
                self._path, boot_id=self._boot, pid=os.getpid(), filesystem=self._filesystem, settle=False
            )
        if failpoints.ARMED:
            failpoints.hit("direct.opened")
        return log

    def _close(self, log: LogWriter) -> None:
        try:
            log.close()
        except SyncFailedError as error:
            # Of the filler alone: what became of the tasks is known, and is said. The next to come mends it.
            logger.error("queue not closed cleanly: %s", error)  # noqa: TRY400  # one line says all of it

    def close(self) -> None:
        """Leave the file as it should be at rest: unless it is gone, or somebody else has it, who will do that.

        Also called when a thread ends, at the end of the interpreter, and in a forked child, where those of all other
        threads are thrown away.
        """
        if os.getpid() != self._pid:
            self.forget()
            return
        # Where a thread is in the middle of a commit, the process is about to end, and the kernel will close all.
        with suppress(QueueLockedError):
            me = self._sit_down()
            try:
                self._tidy_up()
            finally:
                self.forget()
                del me

    def _tidy_up(self) -> None:
        if self._log is None:
            return
        try:
            if self._log.is_in_place():  # or its locks may be gone as well, and must not come again
                self._locks.hold(0, partial(self._close_where_it_ended, self._log))
        except (QueueLockedError, HostedError, FolderNotFoundError):
            pass
        except (ActorqError, OSError) as error:
            logger.error("queue not closed cleanly: %s", error)  # noqa: TRY400  # one line says all of it

    def _close_where_it_ended(self, log: LogWriter) -> None:
        if log.resume():
            self._close(log)

    def forget(self) -> None:
        """Close the descriptors and do nothing else. In a forked child the locks are still the parent's as well."""
        self._locks.forget()
        if self._log is not None:
            self._log.forget()
            self._log = None


class _Token:
    """Whoever is at a desk."""

    __slots__ = ("__weakref__",)


def _nobody() -> None:
    """Return who is at a new desk."""


_desks: weakref.WeakSet[Desk] = weakref.WeakSet()


def _forget_desks() -> None:
    for desk in _desks:
        desk.forget()


if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(after_in_child=_forget_desks)


class BothLocks:
    """What a direct publish needs: the writer's lock, and the host's, shared, so that nobody begins to host."""

    def __init__(self, path: Path, way_in: Finder, filesystem: Filesystem = REAL) -> None:
        self._path = path
        self._folder = os.fspath(path.parent)
        self._filesystem = filesystem
        self._way_in = way_in
        self._taken: DescriptorLock | None = None
        self._locks = HostLock(path), WriterLock(path)
        self._names: NamesVersion | None = None
        self._relied_on: NamesVersion | None = None

    @property
    def are_undisturbed(self) -> bool:
        """Whether no name in the folder has changed since `rely_on_names`. Only for whoever holds both."""
        return self._names is not None and self._names == self._relied_on

    def rely_on_names(self) -> None:
        """Whoever holds both has found in order what the names in the folder lead to."""
        self._relied_on = self._names

    def hold[Result](self, timeout: float, act: Callable[[], Result]) -> Result:
        """Act with both in hand; afterwards they are free, but their files stay open.

        Nobody waits for the writer's lock with the host's in hand: a few busy publishers would then keep a host out for
        ever. Raises HostedError when there is a host, and a way to its brokers.
        """
        try:
            self._acquire(timeout)
            return act()
        finally:
            try:
                self._park()
            except BaseException:
                self._park()  # ^C came in between; a lock that stayed would keep everybody out until this process ends
                raise

    def _acquire(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        nap = FIRST_NAP_SECONDS
        while not self._take():
            if time.monotonic() >= deadline:
                raise QueueLockedError(self._path, None if self._taken is None else self._taken.holder())
            if self._taken is self._locks[0] and (brokers := self._way_in()) is not None:
                raise HostedError(brokers)
            time.sleep(nap)
            nap = min(nap * 1.5, LONGEST_NAP_SECONDS)

    def _take(self) -> bool:
        host, writer = self._locks
        while True:
            if not host.take(shared=True):
                self._taken = host
            elif not writer.take():
                self._taken = writer
            else:
                self._taken = None
                self._names = self._filesystem.names_version(self._folder)
                if self.are_undisturbed or (host.is_in_place() and writer.is_in_place()):
                    return True
            self._park()
            if not (host.forget_if_replaced() or writer.forget_if_replaced()):
                return False

    def _park(self) -> None:
        for lock in reversed(self._locks):
            lock.park()

    def forget(self) -> None:
        """Close their files."""
        for lock in self._locks:
            lock.forget()

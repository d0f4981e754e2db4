"""What can go wrong, and what to do about it.

The families, by what can be done about it:

    ActorqError
    ├── ActorError     restart it, or give up: an actor is gone, slow, or full
    ├── StoreError     call a person: the file, the disk or the lock
    ├── PublishError   ask again later: what became of a publish
    └── TaskError      mend the calling code

Errors cross process boundaries, so every one of them pickles: ``__init__`` hands its own arguments to ``super()``
and the text is made in ``__str__``.
"""

from __future__ import annotations

import os
import queue
import shlex
from typing import override


class ActorqError(Exception):
    """Base of every error that actorq raises on purpose."""


class UnsupportedPlatformError(ActorqError):
    """The call needs a Linux kernel. Importing actorq works everywhere, running it only on Linux."""

    def __init__(self, platform: str) -> None:
        super().__init__(platform)
        self.platform = platform

    @override
    def __str__(self) -> str:
        return f"actorq runs on Linux only for now; this is {self.platform!r}"


# ---------------------------------------------------------------------------------------------------------------
# Actors


class ActorError(ActorqError):
    """Base of the errors of the actor runtime."""


class ActorStoppedError(ActorError):
    """The actor does not run and will not start again; the message was certainly not handled."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @override
    def __str__(self) -> str:
        return f"actor {self.name!r} has stopped; spawn it again to talk to it"


class ActorDiedError(ActorError):
    """The actor died with the request in hand; whether it took effect is unknown. Ask again if that is safe."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    @override
    def __str__(self) -> str:
        return f"actor {self.name!r} died before it answered; whether the request took effect is unknown"


class ActorStartError(ActorError):
    """It could not be started: its class does not import, or ``__init__`` failed in a way that has no type here."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"actor {self.name!r} did not start: {self.reason}"


class MainGuardError(ActorError):
    """A script starts its system while it is being imported by a child of that system."""

    def __init__(self, script: str) -> None:
        super().__init__(script)
        self.script = script

    @override
    def __str__(self) -> str:
        return f'{self.script} starts actors whenever it is imported; put that below `if __name__ == "__main__":`'


class RemoteError(ActorError):
    """An error raised in another process whose own type could not be carried over; ``text`` is its traceback."""

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(type_name, text)
        self.type_name = type_name
        self.text = text

    @override
    def __str__(self) -> str:
        return f"{self.type_name} in another process:\n{self.text}"


class AskTimeoutError(ActorError, TimeoutError):
    """No answer in time. The actor lives and may still handle the request."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds)
        self.name = name
        self.seconds = seconds

    @override
    def __str__(self) -> str:
        return f"actor {self.name!r} did not answer within {self.seconds:g} s"


class MailboxFullError(ActorError, queue.Full):
    """The mailbox stayed full until the deadline; the message was certainly not sent."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__(name, seconds)
        self.name = name
        self.seconds = seconds

    @override
    def __str__(self) -> str:
        return f"the mailbox of {self.name!r} stayed full for {self.seconds:g} s"


class UnhandledMessageError(ActorError):
    """The actor was sent something that it does not know. Send what its `receive` matches, or match this too."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(name, message)
        self.name = name
        self.message = message

    @override
    def __str__(self) -> str:
        return f"actor {self.name!r} does not handle {self.message}"


class RestartLimitError(ActorError):
    """A supervisor gave up: a child died more than ``max_restarts`` times in ``max_seconds``."""

    def __init__(self, name: str, max_restarts: int, max_seconds: float, reason: str) -> None:
        super().__init__(name, max_restarts, max_seconds, reason)
        self.name = name
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self.reason = reason

    @override
    def __str__(self) -> str:
        return (
            f"gave up on {self.name!r}: more than {self.max_restarts} restarts in {self.max_seconds:g} s; "
            f"last end: {self.reason}"
        )


# ---------------------------------------------------------------------------------------------------------------
# The file


class StoreError(ActorqError):
    """Base of the errors about Queue.json, its disk and its locks."""


class CorruptQueueError(StoreError):
    """The file is damaged before its end. Nothing was changed; nothing will be until a person decides.

    ``offset`` is the byte at which the first damaged batch begins, ``sequence`` the commit expected there.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int, sequence: int | None, reason: str) -> None:
        super().__init__(str(path), offset, sequence, reason)
        self.path = str(path)
        self.offset = offset
        self.sequence = sequence
        self.reason = reason

    @override
    def __str__(self) -> str:
        what = "" if self.sequence is None else f"commit {self.sequence} "
        path = shlex.quote(self.path)
        return (
            f"{self.path}: {what}at byte {self.offset} is damaged ({self.reason}); nothing was changed. "
            f"Look: actorq verify {path}. See what a repair would keep and lose: actorq repair {path}"
        )


class UnsupportedFormatError(StoreError):
    """The file is not a queue of this version: an empty or foreign file, or one written by a later actorq."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.path} is not a queue that this version can open: {self.reason}"


class FoldError(StoreError):
    """The log holds a record that this version cannot follow. ``offset`` is the byte at which its line begins."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset = offset
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"the record at byte {self.offset} cannot be followed: {self.reason}"


class QueueLockedError(StoreError):
    """Another process hosts the queue and did not let go in time."""

    def __init__(self, path: str | os.PathLike[str], pid: int | None) -> None:
        super().__init__(str(path), pid)
        self.path = str(path)
        self.pid = pid

    @override
    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        return f"{self.path} is hosted by {holder}; stop it, or wait longer (timeout=)"


class NotAdmittedError(StoreError):
    """Another process hosts the queue, and this one cannot join it."""

    def __init__(self, path: str | os.PathLike[str], pid: int | None, reason: str) -> None:
        super().__init__(str(path), pid, reason)
        self.path = str(path)
        self.pid = pid
        self.reason = reason

    @override
    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        return f"{self.path} is hosted by {holder}, which this process cannot join: {self.reason}"


class HostDeposedError(StoreError):
    """The host did not answer for so long that another process has taken its place. It may join that one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(str(path))
        self.path = str(path)

    @override
    def __str__(self) -> str:
        return f"{self.path} is hosted by another process now, since this one was stopped or did not answer"


class FolderNotFoundError(StoreError):
    """The folder that the queue should lie in does not exist. Make it, or name another path."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(str(path))
        self.path = str(path)

    @override
    def __str__(self) -> str:
        folder, name = os.path.split(self.path)
        return f"there is no folder {folder} for the queue {name}; make it first: mkdir -p {shlex.quote(folder)}"


class QueueReplacedError(StoreError):
    """The file was replaced or changed behind the back of its writer, which has stopped. Start the queue again."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.path} was changed by somebody else while it was in use: {self.reason}; nothing was written to it"


class SyncFailedError(StoreError):
    """The disk refused to make a commit durable. Nothing of it was acknowledged; the file will be rewritten."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.path} could not be brought to disk ({self.reason}); start again, on what can still be trusted"


class CompactionError(StoreError):
    """The file cannot be compacted now; it stays as it is, and will be tried again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.reason}; the file stays as it is"


class LoadError(StoreError):
    """A dump cannot be loaded; nothing of it was. ``line`` is the first line that is wrong, 0 if it is none of them."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason

    @override
    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.reason}; nothing was loaded"


# ---------------------------------------------------------------------------------------------------------------
# Publishing


class PublishError(ActorqError):
    """Base of the two ways in which a publish does not succeed.

    After a publish_many, ``published`` holds the ids of the items that are certainly in the queue nevertheless.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.published: list[str] = []


class PublishRejectedError(PublishError):
    """Certainly not in the queue."""


class PayloadError(PublishRejectedError, ValueError):
    """The payload is not plain JSON. ``where`` is the path inside the value, ``index`` the item of publish_many.

    ``published`` holds the ids of the items before it, which are committed.
    """

    def __init__(
        self, reason: str, where: str = "$", index: int | None = None, published: tuple[str, ...] = ()
    ) -> None:
        super().__init__(reason, where, index, published)
        self.reason = reason
        self.where = where
        self.index = index
        self.published = list(published)

    @override
    def __str__(self) -> str:
        item = "" if self.index is None else f"item {self.index}: "
        return f"{item}{self.where}: {self.reason}"


class QueueFullError(PublishRejectedError):
    """As many tasks wait or run as may: `max_pending` or `max_pending_bytes`. Publish again when some are done."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(str(path), reason)
        self.path = str(path)
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"{self.path} is full: {self.reason}; publish again once some are done, or raise the limit"


class DiskFullError(PublishRejectedError):
    """There is no room for the task on the disk."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(str(path))
        self.path = str(path)

    @override
    def __str__(self) -> str:
        return f"no room left for {self.path}; make room and publish again"


class PublishUnknownError(PublishError, TimeoutError):
    """Not acknowledged in time: it may or may not be in the queue. ``get(task_id)`` tells later."""

    def __init__(self, task_id: str, seconds: float) -> None:
        super().__init__(task_id, seconds)
        self.task_id = task_id
        self.seconds = seconds

    @override
    def __str__(self) -> str:
        return f"no acknowledgement for {self.task_id} within {self.seconds:g} s; get({self.task_id!r}) tells later"


# ---------------------------------------------------------------------------------------------------------------
# Tasks


class TaskError(ActorqError):
    """Base of the errors about tasks and handlers."""


class TaskNotFoundError(TaskError, KeyError):
    """No task of that id is in the queue; finished ones leave it with compaction, or are purged."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    @override
    def __str__(self) -> str:
        return f"no task {self.task_id!r} in the queue"


class NoHandlerError(TaskError):
    """Tasks wait under names that no running consumer handles."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names

    @override
    def __str__(self) -> str:
        return f"no handler for {', '.join(map(repr, self.names))}; add @queue.handler(name) or pass handler="


class QueuePausedError(TaskError):
    """Nothing but paused tasks is left. ``names`` are theirs; none are given when the whole queue is paused."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(names)
        self.names = names

    @override
    def __str__(self) -> str:
        if not self.names:
            return "tasks are left and the queue is paused; let it go on: queue.resume()"
        calls = ", ".join(f"queue.resume({name!r})" for name in self.names)
        return f"tasks are left whose names are paused; let them go on: {calls}"


class SteeringUnknownError(TaskError, TimeoutError):
    """No answer in time: it may or may not have taken effect. Do it again; nothing takes effect twice."""

    def __init__(self, verb: str, seconds: float) -> None:
        super().__init__(verb, seconds)
        self.verb = verb
        self.seconds = seconds

    @override
    def __str__(self) -> str:
        return f"no answer to {self.verb} within {self.seconds:g} s; do it again, that is safe"


class InvalidTransitionError(TaskError):
    """The life cycle has no such step. ``task_id`` and ``rule``: of which task it was asked, and what is possible."""

    def __init__(self, state: str, event: str, task_id: str = "", rule: str = "") -> None:
        super().__init__(state, event, task_id, rule)
        self.state = state
        self.event = event
        self.task_id = task_id
        self.rule = rule

    @override
    def __str__(self) -> str:
        if self.task_id:
            return f"{self.task_id} is {self.state}; {self.rule}"
        return f"a task that is {self.state} cannot {self.event}"

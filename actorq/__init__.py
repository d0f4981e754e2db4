"""actorq: a durable task queue without a server. One readable Queue.json, and a small tree of supervised processes.

Reading order for whoever wants to trust it:

1. README                          the example, the picture, the guarantees
2. tasks/lifecycle.py              the words
3. store/FORMAT.md, log_writer.py  what a promise costs
4. actors/__init__.py              mailbox, actor, supervisor: no word about tasks
5. brokers/__init__.py             the drawing; then messages.py, publisher_broker.py, consumer_broker.py
6. queue.py, consumer.py           what users touch; lazy.py and on_demand.py import what a plain publish does without
7. membership.py, takeover.py      which process hosts the queue, and which one does when that one ends or hangs
8. tests/faults/                   what can go wrong, as sentences
"""

from typing import TYPE_CHECKING

from actorq.errors import (
    ActorDiedError,
    ActorError,
    ActorqError,
    ActorStartError,
    ActorStoppedError,
    AskTimeoutError,
    CorruptQueueError,
    DiskFullError,
    FolderNotFoundError,
    HostDeposedError,
    InvalidTransitionError,
    MailboxFullError,
    NoHandlerError,
    NotAdmittedError,
    PayloadError,
    PublishError,
    PublishRejectedError,
    PublishUnknownError,
    QueueFullError,
    QueueLockedError,
    QueuePausedError,
    QueueReplacedError,
    RemoteError,
    RestartLimitError,
    SteeringUnknownError,
    StoreError,
    SyncFailedError,
    TaskError,
    TaskNotFoundError,
    UnsupportedFormatError,
    UnsupportedPlatformError,
)
from actorq.lazy import in_modules, lazily

if TYPE_CHECKING:
    from actorq.actors import Actor, ActorRef, ActorSystem, ChildSpec, Down, Mailbox, Restart, Strategy, Supervisor
    from actorq.queue import Queue
    from actorq.tasks.lifecycle import TaskState
    from actorq.tasks.task import Task, TaskIn

__all__ = [
    "Actor",
    "ActorDiedError",
    "ActorError",
    "ActorRef",
    "ActorStartError",
    "ActorStoppedError",
    "ActorSystem",
    "ActorqError",
    "AskTimeoutError",
    "ChildSpec",
    "CorruptQueueError",
    "DiskFullError",
    "Down",
    "FolderNotFoundError",
    "HostDeposedError",
    "InvalidTransitionError",
    "Mailbox",
    "MailboxFullError",
    "NoHandlerError",
    "NotAdmittedError",
    "PayloadError",
    "PublishError",
    "PublishRejectedError",
    "PublishUnknownError",
    "Queue",
    "QueueFullError",
    "QueueLockedError",
    "QueuePausedError",
    "QueueReplacedError",
    "RemoteError",
    "Restart",
    "RestartLimitError",
    "SteeringUnknownError",
    "StoreError",
    "Strategy",
    "Supervisor",
    "SyncFailedError",
    "Task",
    "TaskError",
    "TaskIn",
    "TaskNotFoundError",
    "TaskState",
    "UnsupportedFormatError",
    "UnsupportedPlatformError",
]

_HOMES = {
    "actorq.actors": "Actor ActorRef ActorSystem ChildSpec Down Mailbox Restart Strategy Supervisor",
    "actorq.queue": "Queue",
    "actorq.tasks.lifecycle": "TaskState",
    "actorq.tasks.task": "Task TaskIn",
}
# A program that publishes runs no actors, and one that runs actors may have no queue.
__getattr__, __dir__ = lazily(globals(), in_modules(_HOMES))

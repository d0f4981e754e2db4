"""Hosting: the tree of processes behind a running queue.

    host (your program)
    └── supervisor
        ├── publisher-broker
        ├── router
        ├── registry
        ├── consumer-broker
        ├── compactor
        └── consumer-1 ... consumer-n

They start in this order and stop in reverse: so the Registry still hears how the last consumer ended, and the writer
still writes it down. The mailboxes of the brokers belong to the host and outlive every other process, the supervisor
included.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from actorq import failpoints, on_demand
from actorq.actors.mailbox import Mailbox
from actorq.actors.spec import ChildSpec
from actorq.actors.system import ActorSystem
from actorq.attachments import attach, attachment_of, detach
from actorq.brokers.backlog import Limits
from actorq.brokers.compactor import Compactor
from actorq.brokers.consumer_broker import ConsumerBroker
from actorq.brokers.door import door_path, open_door
from actorq.brokers.publisher_broker import PublisherBroker
from actorq.brokers.registry import Registry
from actorq.brokers.router import Router
from actorq.brokers.session import Brokers
from actorq.brokers.upkeep import Upkeep
from actorq.consumer import Consumer
from actorq.errors import ActorDiedError, ActorqError, ActorStoppedError, QueueLockedError
from actorq.store.locks import HostLock, WriterLock, host_identity
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import create_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from actorq.actors import ActorRef
    from actorq.actors.listener import Listener
    from actorq.consumer import Handler
    from actorq.tasks.policy import Policy

BROKER_NAMES = ("publisher-broker", "router", "registry", "consumer-broker", "compactor")

MAX_RESTARTS = 30
MAX_SECONDS = 60.0
"""The restart limit of the tree. It counts only deaths in a row without any work in between, which back-off spreads to
one a second: a broker that cannot start is given up after half a minute, and no killer is quick enough to get there."""

LOCK_SLICE_SECONDS = 0.005

DEFAULT_MAILBOX_BYTES = 4 << 20

PRELOAD = ("actorq.queue", *on_demand.MODULES.values(), "filelock")
"""What brokers, consumers and handlers need: imported once, before they are forked."""

FAILURE_LOOK_SECONDS = 0.01

STOP_AT_ONCE_SECONDS = 30.0

logger = logging.getLogger("actorq")

_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


def _forget_hosts() -> None:
    """In a forked child: let go of locks and mailboxes, which would else outlive the host for as long as it runs."""
    for host in _hosts:
        host.forget()


if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(after_in_child=_forget_hosts)


class Hosting(NamedTuple):
    """What a queue asks of whoever hosts it."""

    durability: str = "power"
    limits: Limits = Limits()
    upkeep: Upkeep = Upkeep()


class Team(NamedTuple):
    """The consumers that a process contributes to a queue."""

    consumers: int
    handlers: Mapping[str, Handler]
    default: Handler | None
    policy: Policy
    max_tasks: int | None
    shutdown: float
    """How long running handlers may take when it stops, in seconds."""

    def spawn(self, system: ActorSystem, path: Path, brokers: Brokers | None, notify: Mailbox | None) -> list[ActorRef]:
        """Start them in this system, for these brokers or (None) for those behind the door of the queue."""
        return [
            system.spawn(
                Consumer,
                path,
                brokers,
                dict(self.handlers),
                self.default,
                self.policy,
                self.max_tasks,
                name=f"consumer-{number}",
                shutdown=self.shutdown,
                forgive_progress=True,
                notify=notify,
            )
            for number in range(1, self.consumers + 1)
        ]


def new_system(
    specs: Sequence[ChildSpec] = (), on_failure: Callable[[], None] | None = None, *, wait: bool = True
) -> ActorSystem:
    """Start a tree that can host a queue."""
    return ActorSystem(
        specs, max_restarts=MAX_RESTARTS, max_seconds=MAX_SECONDS, preload=PRELOAD, on_failure=on_failure, wait=wait
    )


class Host:
    """Brokers and consumers of one queue, hosted from this process."""

    def __init__(
        self,
        path: Path,
        hosting: Hosting = Hosting(),  # noqa: B008  # a tuple
        *,
        mailbox_bytes: int | None = None,
        on_failure: Callable[[], None] | None = None,
        spare: ActorSystem | None = None,
    ) -> None:
        """Prepare to host; `on_failure` is called, in a thread of ours, when the supervisor gives up.

        `spare` is what `new_system` has made in time; without it a supervisor is started first.
        """
        self.path = path
        self._hosting = hosting
        self._on_failure = on_failure
        self._mailbox_bytes = mailbox_bytes or DEFAULT_MAILBOX_BYTES
        self._lock = HostLock(path)
        self._door: Listener | None = None
        self._consumers: list[ActorRef] = []
        self._boxes: tuple[Mailbox, ...] = ()
        self._pid = os.getpid()
        self.spare = spare
        """The one that was not needed, or not yet."""
        self.system: ActorSystem
        _hosts.add(self)

    def __repr__(self) -> str:
        return f"<Host of {self.path}: {len(self._consumers)} consumers>"

    @property
    def failure(self) -> ActorqError | None:
        """Why the supervisor gave up, if it did."""
        return self.system.failure

    def start(self, timeout: float) -> None:
        """Take the host lock and start the brokers. Raises QueueLockedError, CorruptQueueError and their kind."""
        self._acquire(timeout)
        system = None
        try:
            if failpoints.ARMED:
                failpoints.hit("host.locked")
            self._door = self._open_door()
            owner: dict[str, object] = {"pid": os.getpid()}
            if self._door is not None:
                owner["door"] = door_path(self.path).name
            # Whoever knocks is let in once the Registry runs, and until all is up its silence is held against nobody.
            self._lock.write_owner(owner | {"starting": True})
            queue_id = self._queue_id(timeout)
            durability, limits, upkeep = self._hosting
            boxes = {name: Mailbox(self._mailbox_bytes, name) for name in BROKER_NAMES}
            self._boxes = tuple(boxes.values())
            registry, router = boxes["registry"], boxes["router"]
            writer, scheduler, compactor = boxes["publisher-broker"], boxes["consumer-broker"], boxes["compactor"]
            self.brokers = Brokers(writer, scheduler, registry)
            arguments: dict[str, tuple[type, tuple[object, ...]]] = {
                "publisher-broker": (PublisherBroker, (self.path, scheduler, router, registry, durability)),
                "router": (Router, (registry, scheduler)),
                "registry": (Registry, (writer, router, self._door, self.brokers)),
                "consumer-broker": (ConsumerBroker, (self.path, writer, router, compactor)),
                "compactor": (Compactor, (self.path, writer)),
            }
            options: dict[str, dict[str, object]] = {
                "publisher-broker": {
                    "queue_id": queue_id,
                    "limits": limits,
                    "host": self._lock.identity,
                },
                "consumer-broker": {
                    "queue_id": queue_id,
                    "is_limited": bool(limits),
                    "upkeep": upkeep,
                },
                "compactor": {"keep_done": upkeep.keep_done},
            }
            specs = [
                ChildSpec(name, actor, args, options.get(name, {}), mailbox=boxes[name], forgive_progress=True)
                for name, (actor, args) in arguments.items()
            ]
            self.system = system = self._start_tree(specs)
            self._lock.write_owner(owner)
            if failpoints.ARMED:
                failpoints.hit("host.started")
            attach(self.path, self.brokers, self)
        except BaseException:
            detach(self.path)
            self._shut_door()
            try:
                if system is not None:
                    system.close(0)
            finally:
                self._lock.release()
            raise

    def _start_tree(self, specs: Sequence[ChildSpec]) -> ActorSystem:
        system = self.spare
        if system is None or system.failure is not None:
            return new_system(specs, self._on_failure)
        self.spare = None
        try:
            for spec in specs:
                system.start_child(spec)
        except BaseException:
            system.close()
            raise
        return system

    def _open_door(self) -> Listener | None:
        try:
            return open_door(self.path)
        except OSError as error:  # not every file system has sockets; a queue of one process needs none
            logger.warning("no door path=%r: other processes cannot join this one (%s)", str(self.path), error)
            return None

    def _shut_door(self) -> None:
        if self._door is not None:
            self._door.shut()
            self._door.close()
            if host_identity(self.path) == self._lock.identity:  # or it is the door of whoever has deposed us
                door_path(self.path).unlink(missing_ok=True)
            self._door = None

    def _queue_id(self, timeout: float) -> str:
        """Return which queue is in the file, made now if there is none: no broker ever makes another in its place."""
        while True:
            try:
                log = LogReader(self.path)
            except FileNotFoundError:
                with WriterLock(self.path).acquire(timeout):
                    create_file(self.path)
                continue
            log.close()
            return log.header.queue

    def _acquire(self, timeout: float) -> None:
        """Take the host's lock. Looks often: between busy direct publishers it is free for moments only."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > LOCK_SLICE_SECONDS:
            try:
                self._lock.acquire(LOCK_SLICE_SECONDS)
            except QueueLockedError:
                continue
            return
        self._lock.acquire(max(0.0, left))

    def start_consumers(self, team: Team) -> None:
        """Start consumers; each imports the handlers in its own process. Raises what keeps them from starting."""
        self._consumers += team.spawn(self.system, self.path, self.brokers, self.brokers.registry)

    def reason_to_stop(self, timeout: float = 5.0) -> ActorqError | None:
        """Return why the supervisor gave up; its children end a moment before it says so, so wait for that long."""
        deadline = time.monotonic() + timeout
        while self.system.failure is None and time.monotonic() < deadline:
            time.sleep(FAILURE_LOOK_SECONDS)
        return self.system.failure

    def forget(self) -> None:
        """In a forked child: close what was inherited; it stays the parent's. The child comes in by the door."""
        self._lock.forget()
        if self._door is not None:
            self._door.close()
        for mailbox in self._boxes:
            mailbox.close()
        attachment = attachment_of(self.path)
        if attachment is not None and attachment.host is self:
            detach(self.path)

    def let_go(self) -> None:
        """Free the lock once the supervisor has given up: the program may go on, and somebody else may host."""
        self._shut_door()
        self._lock.release()

    def stop_at_once(self) -> None:
        """End the consumers without waiting for their handlers; the tasks in hand go back, uncharged."""
        end_at_once(self._consumers)

    def stop(self) -> None:
        """Let the consumers finish what they run and give back the rest, then stop the brokers and free the lock."""
        if os.getpid() != self._pid:
            return  # a child that the program forked; the locks and the tree are its parent's
        try:
            self.system.stop(*self._consumers)
            if failpoints.ARMED:
                failpoints.hit("host.stopping")
        except ActorqError:
            if self.system.failure is None:
                raise  # otherwise it has given up, and everything has stopped already
        except KeyboardInterrupt:  # a second ^C: whoever sends it does not want to wait for the handlers
            self.stop_at_once()
            raise
        finally:
            with ExitStack() as last_first:  # whatever interrupts it: a program may go on after ^C
                last_first.callback(self._lock.release)
                last_first.callback(self._close_system)
                last_first.callback(self._shut_door)
                last_first.callback(detach, self.path)

    def _close_system(self) -> None:
        self.system.close()
        self._boxes = ()
        if failpoints.ARMED:
            failpoints.hit("host.stopped")


def end_at_once(consumers: list[ActorRef]) -> None:
    """Kill these consumers for good."""
    # Another thread may be stopping all of it; once the last consumer has ended, so has whoever we would ask.
    with suppress(ActorStoppedError, ActorDiedError):
        # In this order: a consumer that is to stop for good is not started again when it is killed.
        pending = [consumer.stop_later(0) for consumer in consumers]
        for consumer in consumers:
            consumer.kill()
        for each in pending:
            each.wait(STOP_AT_ONCE_SECONDS)

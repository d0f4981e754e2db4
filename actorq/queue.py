"""Queue: the one object that users hold. A path, some handlers, and verbs."""

from __future__ import annotations

import inspect
import os
import threading
import time
import weakref
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from actorq import on_demand
from actorq.actors.linux import require_linux
from actorq.actors.main_guard import check_main_is_not_being_imported
from actorq.attachments import attachment_of, brokers_of
from actorq.brokers.backlog import Limits
from actorq.brokers.upkeep import KEEP_DONE, Upkeep
from actorq.direct_publisher import DirectPublisher
from actorq.errors import ActorStoppedError, PayloadError, PublishError, QueuePausedError
from actorq.joining import WayIn
from actorq.publisher import DEFAULT_TIMEOUT, Chunk, PublishPort, RovingPublisher, chunked, ids_of
from actorq.store.steering import Wish, wishes_for
from actorq.takeover import TAKEOVER_AFTER
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.payload import encode_payload
from actorq.tasks.policy import MAX_ATTEMPTS, MAX_CRASHES, Policy
from actorq.tasks.steering import Verb
from actorq.tasks.task import DEFAULT_NAME, check_name
from actorq.view import View

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    from actorq.async_publisher import AsyncPublisher
    from actorq.brokers.session import Brokers, Finder
    from actorq.consumer import Handler
    from actorq.direct_publisher import Desk
    from actorq.membership import Member
    from actorq.steering import DirectSteering
    from actorq.store.fold import QueueState
    from actorq.tasks.ids import IdRange
    from actorq.tasks.task import Task

SHUTDOWN_SECONDS = 30.0
"""How long a running handler may take when the queue stops, before it is killed and its task put back."""


class Queue:
    """A durable task queue in one file.

    Cheap to make: nothing is opened and nothing started, so it is safe at import time. One Queue may be used by any
    number of threads; after a fork the child opens its own connections.

    Args:
        path: where the queue is; the file is made by the first publish. Two locks lie beside it.
        durability: "power" acknowledges after fdatasync; "process" after the write, so that a power cut may take the
            newest tasks (always the newest, never some in the middle).
        max_attempts: how often a task is run that raises, before it is dead.
        max_crashes: how often a task may kill its consumer, before it is dead.
        max_pending: how many tasks may be ready, scheduled or running at once; by default any number. More are refused
            with QueueFullError. While brokers run, the limits of the Queue that hosts them hold for all publishers.
            Tasks that are retried count, and are not refused.
        max_pending_bytes: the same in bytes that the lines of these tasks take in the file.
        takeover_after: seconds without an answer after which a host that was stopped is not waited for any longer: its
            brokers and consumers are killed, its own process is not, and whoever runs the queue too takes its place.
        keep_done: how many finished tasks can still be asked for; None keeps all. Older ones leave the file when it is
            compacted, which the processes that host it do by themselves; they are counted on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = "Queue.json",
        *,
        durability: Literal["power", "process"] = "power",
        max_attempts: int = MAX_ATTEMPTS,
        max_crashes: int = MAX_CRASHES,
        max_pending: int | None = None,
        max_pending_bytes: int | None = None,
        keep_done: int | None = KEEP_DONE,
        takeover_after: float = TAKEOVER_AFTER,
    ) -> None:
        if durability not in ("power", "process"):
            raise ValueError(f"durability is 'power' or 'process', not {durability!r}")
        # The folder's real name, so that one queue is one queue by whatever way it is reached; a link in place of the
        # file itself is not followed, but refused when it is opened.
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        self.path = Path(os.path.realpath(folder)) / name
        self._durability = durability
        self._policy = Policy(max_attempts, max_crashes)
        self._limits = Limits(max_pending, max_pending_bytes)
        for option, limit in self._limits._asdict().items():
            if limit is not None and (type(limit) is not int or limit < 1):
                raise ValueError(f"{option} is a number from 1 on, or None for no limit, not {limit!r}")
        if keep_done is not None and (type(keep_done) is not int or keep_done < 0):
            raise ValueError(f"keep_done is a number from 0 on, or None to keep all, not {keep_done!r}")
        if not takeover_after > 0:
            raise ValueError(f"takeover_after is a number of seconds, not {takeover_after!r}")
        self._takeover_after = takeover_after
        self._upkeep = Upkeep(keep_done)
        self._handlers: dict[str, Handler] = {}
        self._local = threading.local()
        self._async: AsyncPublisher | None = None
        self._view = self._new_view()
        self._view_lock = threading.Lock()
        _queues.add(self)

    def __repr__(self) -> str:
        return f"Queue({str(self.path)!r})"

    def publish(self, data: object, *, name: str = DEFAULT_NAME, timeout: float = DEFAULT_TIMEOUT) -> str:
        """Put a task into the queue and return its id; it is on disk then.

        Raises:
            PublishRejectedError: it is certainly not in the queue: PayloadError, QueueFullError, DiskFullError.
            PublishUnknownError: no acknowledgement within `timeout` seconds; `get` tells later.
            QueueLockedError: another process keeps the queue to itself and cannot be joined (it is being repaired).
            NotAdmittedError: the host of the queue belongs to another user, or lives in another container.
        """
        chunk = Chunk([encode_payload(data)])
        with _ReasonToStop(self.path):
            return ids_of(self._port().publish([chunk], check_name(name), timeout))[0]

    def publish_many(
        self, items: Iterable[object], *, name: str = DEFAULT_NAME, timeout: float = DEFAULT_TIMEOUT
    ) -> list[str]:
        """Put one task per item into the queue, in order, and return their ids; all are on disk then.

        The iterable is read as it goes, so it may be longer than memory. `timeout` (seconds) is for each wait, not for
        the whole.

        Raises:
            PayloadError: an item is not plain JSON: `.index` says which; all before it are in: `.published`.
            QueueFullError, DiskFullError: no room for more; those that are in are in `.published`.
            PublishUnknownError, QueueLockedError: as for `publish`.
        """
        with _ReasonToStop(self.path):
            return ids_of(self._port().publish(chunked(items), check_name(name), timeout))

    async def apublish(
        self,
        data: object,
        *,
        name: str = DEFAULT_NAME,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109  # as for `publish`: how long it tries, not how long we wait
    ) -> str:
        """Do as `publish`, without blocking the event loop. What is published at the same time shares a commit.

        A call that is cancelled (asyncio.timeout) may have published its task or not.
        """
        future = self._async_publisher().submit([encode_payload(data)], check_name(name), timeout)
        return (await on_demand.async_publisher.in_time(future))[0]

    async def apublish_many(
        self,
        items: Iterable[object] | AsyncIterable[object],
        *,
        name: str = DEFAULT_NAME,
        timeout: float = DEFAULT_TIMEOUT,  # noqa: ASYNC109
    ) -> list[str]:
        """Do as `publish_many`, without blocking the event loop; the items may come from an async generator."""
        check_name(name)
        ids: list[str] = []
        try:
            async for chunk in on_demand.async_publisher.encoded_in_pieces(items):
                if chunk.payloads:
                    future = self._async_publisher().submit(chunk.payloads, name, timeout)
                    ids += await on_demand.async_publisher.in_time(future)
                if chunk.error is not None:
                    raise PayloadError(chunk.error.reason, chunk.error.where, chunk.error.index, tuple(ids))
        except PublishError as error:
            if not isinstance(error, PayloadError):
                error.published = ids + error.published
            raise
        return ids

    def handler(self, name: str) -> Callable[[Handler], Handler]:
        """Decorate the function that runs the tasks of a name. It gets the Task; what it returns is the result."""
        check_name(name)

        def register(function: Handler) -> Handler:
            if name in self._handlers:
                raise ValueError(f"{name!r} has a handler already: {self._handlers[name]!r}")
            self._handlers[name] = check_handler(function)
            return function

        return register

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The functions that run tasks, by name; read only."""
        return MappingProxyType(self._handlers)

    @contextmanager
    def running(
        self,
        consumers: int | None = None,
        *,
        handler: Handler | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        shutdown_timeout: float = SHUTDOWN_SECONDS,
        max_tasks: int | None = None,
    ) -> Iterator[Queue]:
        """Run consumers of the queue from this process while the block runs, and its brokers, if nobody else does.

        Where another process hosts them already, the consumers join it; when it ends, by whatever means, one of those
        that have joined takes its place. At the end, running handlers may finish, and what was not begun stays in the
        queue.

        Args:
            consumers: how many processes run handlers; by default one for each CPU. 0 hosts the brokers only.
            handler: takes every name that has no handler of its own.
            timeout: seconds to wait for a host that neither answers nor ends.
            shutdown_timeout: seconds that running handlers may take at the end; then they are killed, and their tasks
                put back.
            max_tasks: after so many tasks the process of a consumer is replaced by a new one.

        Raises:
            QueueLockedError: another process keeps the queue to itself and cannot be joined; or this one runs it.
            NotAdmittedError: the host of the queue belongs to another user, or lives in another container.
            CorruptQueueError, UnsupportedFormatError: the file needs a person.
            ActorStartError: a handler cannot be imported in another process.
        """
        member = self.new_member(consumers, handler=handler, shutdown_timeout=shutdown_timeout, max_tasks=max_tasks)
        try:
            member.start(timeout)
            try:
                yield self
            finally:
                self._close_port()
        finally:
            member.stop()

    def new_member(
        self,
        consumers: int | None = None,
        *,
        handler: Handler | None = None,
        shutdown_timeout: float = SHUTDOWN_SECONDS,
        max_tasks: int | None = None,
    ) -> Member:
        """Return what `running` starts and stops, for whoever does that by hand, as `actorq worker` does."""
        require_linux()
        count = len(os.sched_getaffinity(0)) if consumers is None else consumers
        if count < 0:
            raise ValueError(f"consumers is a number of processes, not {count}")
        if max_tasks is not None and max_tasks < 1:
            raise ValueError(f"max_tasks is a number from 1 on, or None for no limit, not {max_tasks}")
        if handler is not None:
            check_handler(handler)
        check_main_is_not_being_imported()
        handlers = dict(self._handlers)
        team = on_demand.hosting.Team(count, handlers, handler, self._policy, max_tasks, shutdown_timeout)
        hosting = on_demand.hosting.Hosting(self._durability, self._limits, self._upkeep)
        return on_demand.membership.Member(self.path, hosting, team, self._takeover_after)

    def join(self, timeout: float | None = None) -> None:
        """Wait until nothing is ready, scheduled or running, as the file shows it; the last sync may be under way.

        Raises:
            TimeoutError: not within `timeout` seconds.
            NoHandlerError: what is left has names that no consumer handles.
            QueuePausedError: what is left is paused.
            RuntimeError: called by a handler of this very queue, whose task would have to end first.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        attachment = attachment_of(self.path)
        if attachment is not None and attachment.runs_tasks:
            raise RuntimeError(f"a handler of {self.path} that joins it waits for itself; publish a task that goes on")
        with _ReasonToStop(self.path):
            self._join_by_asking(deadline)

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        with self._view_lock:
            return self._view.counts()

    def get(self, task_id: str) -> Task:
        """Return a task with its state, errors, result and times; raises TaskNotFoundError."""
        with self._view_lock:
            return self._view.get(task_id)

    def tasks(
        self, state: str | Iterable[str] | None = None, name: str | None = None, *, limit: int | None = None
    ) -> Iterator[Task]:
        """Return the tasks as they are now, in the order in which they were published.

        Reads the file anew, without a lock, and one task at a time: there may be more of them than fit into memory.

        Args:
            state: only those in this state, or in one of these; by default in any.
            name: only those of this name.
            limit: only so many, the newest.

        Raises:
            ValueError: no state is called so.
        """
        try:
            states = tuple(TaskState) if state is None else [TaskState(each) for each in _several(state)]
        except ValueError as error:
            raise ValueError(f"{error}; a state is one of: {', '.join(TaskState)}") from None
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ValueError(f"limit is a number from 0 on, or None for all, not {limit!r}")
        return self._tasks(states, name, limit)

    # -- steering: from any process, whether or not brokers run; on disk when it returns

    def retry(self, *task_ids: str, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """Let dead tasks run again, in their old place, and return those that may.

        They have all attempts once more, counted from 1; the errors that they died of stay in their history.

        Raises:
            TaskNotFoundError, InvalidTransitionError: one is not here, or not dead; then nothing was done.
            SteeringUnknownError: no answer within `timeout` seconds; to do it again is safe.
            QueueLockedError, NotAdmittedError: as for `publish`.
        """
        return self._steer_tasks(Verb.RETRY, task_ids, timeout)

    def cancel(self, *task_ids: str, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """Cancel tasks that are ready or scheduled, and return those that are cancelled now: they never run.

        The others have been handed to a consumer already, or are finished.

        Raises:
            TaskNotFoundError: one is not here; then nothing was done.
            SteeringUnknownError, QueueLockedError: as for `retry`.
        """
        return self._steer_tasks(Verb.CANCEL, task_ids, timeout)

    def purge(self, *task_ids: str, timeout: float = DEFAULT_TIMEOUT) -> list[str]:
        """Forget tasks that are done, dead or cancelled, and return those that are forgotten.

        `get` does not find them any more, and the next compaction drops their bytes. `counts` tells how many were ever
        done or cancelled, so those are counted on, as when they leave with compaction; dead ones are not.

        Raises:
            TaskNotFoundError, InvalidTransitionError: one is not here, or not finished; then nothing was done.
            SteeringUnknownError, QueueLockedError: as for `retry`.
        """
        return self._steer_tasks(Verb.PURGE, task_ids, timeout)

    def pause(self, name: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Hand out no task of this name, or no task at all, until `resume` of the same; a restart makes no difference.

        Tasks may be published meanwhile. Consumers finish what they have been given; what waits behind a task that
        takes long is given back. `join` raises QueuePausedError once nothing but paused tasks is left.

        Raises:
            SteeringUnknownError, QueueLockedError: as for `retry`.
        """
        self._steer_name(Verb.PAUSE, name, timeout)

    def resume(self, name: str | None = None, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Take back `pause` of the same name; without a name that of the whole queue, and of no single name.

        Raises:
            SteeringUnknownError, QueueLockedError: as for `retry`.
        """
        self._steer_name(Verb.RESUME, name, timeout)

    def paused(self) -> list[str | None]:
        """Return the names that are paused, in order, behind a None if the whole queue is."""
        return self._look(lambda state: state.pauses())

    # -----------------------------------------------------------------------------------------------------------

    def _steer_tasks(self, verb: Verb, task_ids: Sequence[str], timeout: float) -> list[str]:
        if not task_ids:
            return []
        done = set(ids_of(self._steer(lambda state: wishes_for(state, verb, task_ids), timeout)))
        return [task_id for task_id in dict.fromkeys(task_ids) if task_id in done]

    def _steer_name(self, verb: Verb, name: str | None, timeout: float) -> None:
        wish = Wish(verb, (), None if name is None else check_name(name))
        self._steer(lambda _: [wish], timeout)

    def _steer(self, make_wishes: Callable[[QueueState], list[Wish]], timeout: float) -> list[IdRange]:
        require_linux()
        check_main_is_not_being_imported()
        with _ReasonToStop(self.path):
            way_in = WayIn(self.path, self._takeover_after)
            steer = on_demand.steering.steer
            return steer(self.path, way_in, self._look, make_wishes, timeout, self._new_direct_steering)

    def _look[Answer](self, question: Callable[[QueueState], Answer], /) -> Answer:
        with self._view_lock:
            return self._view.look(question)

    def _port(self) -> PublishPort:
        """Return this thread's way into the queue: through the brokers if this process has one, else directly."""
        brokers = brokers_of(self.path)
        key = (os.getpid(), brokers)
        held: tuple[tuple[int, Brokers | None], PublishPort] | None = getattr(self._local, "port", None)
        if held is not None:
            if held[0] == key:
                return held[1]
            if held[0][0] == key[0]:
                held[1].close()
        require_linux()
        check_main_is_not_being_imported()
        port: PublishPort
        if brokers is None:
            port = self._new_roving_publisher()
        else:
            port = on_demand.brokered_publisher.BrokeredPublisher(brokers)
        self._local.port = (key, port)
        return port

    def _tasks(self, states: Collection[TaskState], name: str | None, limit: int | None) -> Iterator[Task]:
        view = self._new_view()
        try:
            yield from view.tasks(states, name, limit)
        finally:
            view.close()

    def look_anew(self) -> None:
        """In a forked child: a thread of the parent may have been looking, and would never give the lock back."""
        self._view.close()
        self._view = self._new_view()
        self._view_lock = threading.Lock()

    def _new_view(self) -> View:
        return View(self.path)

    def _new_roving_publisher(self) -> PublishPort:
        way_in = WayIn(self.path, self._takeover_after)
        direct = self._new_direct_publisher(way_in)
        # Without a hold on this Queue: its file is closed as soon as nobody has it any more.
        return RovingPublisher(direct, partial(_join, self.path, way_in, direct.desk))

    def _new_direct_publisher(self, way_in: Finder) -> DirectPublisher:
        return DirectPublisher(self.path, self._limits, way_in=way_in)

    def _async_publisher(self) -> AsyncPublisher:
        if self._async is None or self._async.is_inherited:
            self._async = on_demand.async_publisher.AsyncPublisher(self._port, self._close_port)
        return self._async

    def _new_direct_steering(self, way_in: Finder) -> DirectSteering:
        return on_demand.steering.DirectSteering(self.path, way_in)

    def _close_port(self) -> None:
        held = getattr(self._local, "port", None)
        if held is not None:
            held[1].close()
            del self._local.port

    def _join_by_asking(self, deadline: float | None) -> None:
        way_in = WayIn(self.path, self._takeover_after)
        on_demand.waiting.wait_until_idle(self, way_in, self._is_idle, deadline)

    def _is_idle(self) -> bool:
        """Tell from the file whether all is done. Raises QueuePausedError if what is left is held back."""
        with self._view_lock:
            state = self._view.refresh()
            if state.pending_count and state.is_held_back:
                raise QueuePausedError(() if None in state.paused else tuple(sorted(state.paused_names())))
            return state.pending_count == 0


def check_handler(function: Handler) -> Handler:
    """Return a function that can handle tasks. Raises TypeError where each of its tasks would fail."""
    if not callable(function):
        raise TypeError(f"{function!r} cannot be called, so it handles nothing")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is async; a handler is a plain function, which may call asyncio.run")
    return function


_queues: weakref.WeakSet[Queue] = weakref.WeakSet()


def _look_anew() -> None:
    for queue in _queues:
        queue.look_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_look_anew)


class _ReasonToStop:
    """Where the brokers have stopped for good, raises what made them, if this process hosts them and knows."""

    def __init__(self, path: Path) -> None:
        self._attachment = attachment_of(path)  # before they stop

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ActorStoppedError) and self._attachment is not None and self._attachment.host is not None:
            reason = self._attachment.host.reason_to_stop()
            if reason is not None:
                raise reason from None


def _join(path: Path, way_in: WayIn, desk: Desk, brokers: Brokers) -> PublishPort:
    refuge = on_demand.refuge.Refuge(path, way_in, desk)
    return on_demand.brokered_publisher.BrokeredPublisher(brokers, refuge)


def _several(words: str | Iterable[str]) -> Iterable[str]:
    return (words,) if isinstance(words, str) else words

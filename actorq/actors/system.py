"""What a user's program has of its actors: it starts them, finds them, and ends them.

    host (this process)                                  one thread of ours: the warden
      │ posix_spawn                                        waits for the end of the root, starts the next one
      ▼
    root supervisor  ── forks ──▶  actor  actor  actor

The host holds both ends of the mailbox of the root and of every actor that it spawned, and their specs. So the root may
be killed like any other process: the next one starts the same actors on the same mailboxes, and every ref stays good.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import marshal
import os
import re
import select
import signal
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from multiprocessing import spawn, util
from typing import TYPE_CHECKING, Any, Self, override

from actorq import failpoints
from actorq.actors import linux
from actorq.actors.exits import ExitKind, ExitReason, exit_reason
from actorq.actors.mailbox import STOP, Mailbox
from actorq.actors.main_guard import check_main_is_not_being_imported
from actorq.actors.messages import ChildInfo, Down, ListChildren, StartChild, Started, SupervisorRequest, WhereIs
from actorq.actors.packets import PacketSocket, wait_readable
from actorq.actors.ref import DEFAULT_ASK_SECONDS, STOP_MARGIN, ActorRef, down_of
from actorq.actors.reply import decode_error, refuse_rest
from actorq.actors.restart import LAST_BACK_OFF, Restart, RestartWindow, Strategy, back_off
from actorq.actors.root import ROOT_NAME, ROOT_STOP_TOKEN, RootConfig
from actorq.actors.spec import DEFAULT_SHUTDOWN, DEFAULT_STARTUP, ChildSpec, SealedSpec
from actorq.actors.status import News, StatusReader, failure_in
from actorq.actors.supervisor import DEFAULT_MAX_RESTARTS, DEFAULT_MAX_SECONDS, LIFELINE_SECONDS
from actorq.actors.wire import pack
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import (
    ActorDiedError,
    ActorError,
    ActorqError,
    ActorStartError,
    ActorStoppedError,
    AskTimeoutError,
    RestartLimitError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from actorq.actors.actor import Actor
    from actorq.actors.reply import PendingReply

logger = logging.getLogger("actorq")

# These four are built in: nothing in the current folder can pass for them. What is imported stays; to search it for
# garbage would take a tenth of the time.
_BOOT = (
    "import gc, marshal, posix, sys; gc.disable(); sys.path[:] = marshal.loads(posix.read({fd}, 1 << 20)[1:]); "
    "from actorq.actors.root import main; main({fd})"
)


class ActorSystem:
    """A tree of actor processes. Use it in a `with`; without one it is closed when the program ends."""

    failure: ActorqError | None
    """Why it has given up, if it has: then nothing runs any more, and every call raises this."""

    def __init__(
        self,
        specs: Sequence[ChildSpec] = (),
        *,
        name: str = "actorq",
        strategy: Strategy | str = Strategy.ONE_FOR_ONE,
        max_restarts: int = DEFAULT_MAX_RESTARTS,
        max_seconds: float = DEFAULT_MAX_SECONDS,
        preload: Sequence[str] = (),
        on_failure: Callable[[], None] | None = None,
        wait: bool = True,
    ) -> None:
        """Start the root supervisor and the children of the specs, in order. Raises the first error of theirs.

        Without `wait` it returns at once: what is asked of it waits until it runs, and `failure` says if it never does.

        `preload` names modules that the root imports before it forks, so that children that need them start at once.
        Only for modules that start no threads and hold nothing: what they do on import is done once, for all.
        `on_failure` is called by a thread of the system once it has given up; `failure` says why.
        """
        linux.require_linux()
        check_main_is_not_being_imported()
        self.name = name
        self.failure = None
        self._strategy = Strategy(strategy)
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        RestartWindow(max_restarts, max_seconds)  # or it says now what is wrong with them
        self._preload = tuple(preload)
        self._on_failure = on_failure
        self._token = os.urandom(8).hex()
        self._pid = os.getpid()
        self._mailbox = Mailbox(name=f"supervisor of {name}")
        self._root_ref = ActorRef(ROOT_NAME, self._token, _writer(self._mailbox), None)
        self._lock = threading.Lock()
        self._close_lock = threading.RLock()
        self._closing = threading.Event()
        self._is_closed = False
        self._actors: dict[str, _Spawned] = {}  # what the next root has to start
        self._starting: dict[str, _Spawned] = {}  # by serial
        self._incarnation = 0
        self._has_started = False
        self._start_error: Exception | None = None
        self._reserved: set[str] = set()
        self._numbers = itertools.count(1)
        for spec in specs:
            sealed = spec.seal()
            if sealed.name in self._actors:
                raise ActorStartError(sealed.name, "the name is taken")
            self._actors[sealed.name] = _Spawned(sealed, self._ref_of(sealed))
        self._ready = threading.Event()
        self._root = self._start_root()
        self._warden = threading.Thread(target=self._guard, name=f"{name}-warden", daemon=True)
        _open_systems.add(self)
        try:
            self._warden.start()
            if wait:
                self._wait_until_ready()
        except BaseException:
            self.close()
            raise
        error = self._start_error or self.failure
        if error is not None:
            self.close()
            raise error

    def _wait_until_ready(self) -> None:
        while not self._ready.wait(0.5):
            pass  # in slices, so that ^C gets through; the warden ends it, one way or the other

    # -- the life of actors

    def spawn(
        self,
        actor: type[Actor],
        *args: Any,
        name: str | None = None,
        restart: Restart | str = Restart.PERMANENT,
        shutdown: float = DEFAULT_SHUTDOWN,
        mailbox: Mailbox | None = None,
        forgive_progress: bool = False,
        notify: ActorRef | Mailbox | None = None,
        startup: float = DEFAULT_STARTUP,
        **kwargs: Any,
    ) -> ActorRef:
        """Start an actor in a process of its own and return once its `__init__` and `on_start` are through.

        Raises what they raised. The keywords above are those of `ChildSpec`; all others go to `__init__`.
        """
        self._check_open()
        with self._reserved_name(name, actor) as chosen:
            spec = ChildSpec(
                name=chosen,
                actor=actor,
                args=args,
                kwargs=kwargs,
                restart=restart,
                shutdown=shutdown,
                mailbox=mailbox,
                forgive_progress=forgive_progress,
                notify=notify,
                startup=startup,
            )
            return self._start_reserved(spec)

    def start_child(self, spec: ChildSpec) -> ActorRef:
        """Do as `spawn` does with what a spec says."""
        self._check_open()
        with self._reserved_name(spec.name, spec.actor):
            return self._start_reserved(spec)

    def stop(self, *refs: ActorRef, timeout: float | None = None) -> None:
        """Stop these actors for good, all at the same time, and return when they are dead. See `ActorRef.stop`."""
        self._check_open()
        waiting = [(ref, self._begin_stop(ref, timeout)) for ref in refs]
        for ref, pending in waiting:
            margin = None if timeout is None else timeout + STOP_MARGIN
            root = self._root
            while pending is not None:
                try:
                    pending.wait(margin)
                except ActorDiedError:
                    # The root died meanwhile. The next one may have been told to start this actor before we were here.
                    if self._lives_on(root):
                        raise
                    root = self._root
                    pending = self._begin_stop(ref, timeout)  # noqa: PLW2901
                else:
                    pending = None  # noqa: PLW2901

    def close(self, timeout: float | None = None) -> None:
        """Stop everything, in reverse order, and return when all processes are dead.

        They are killed when that takes longer than the timeout (None: as long as their specs allow). Harmless when
        repeated, and in a child that the program has forked.
        """
        if os.getpid() != self._pid:
            return
        with self._close_lock:
            if self._is_closed:
                return
            self._closing.set()
            try:
                self._stop_root(timeout)
            finally:
                self._is_closed = True
                self._let_go()
                _open_systems.discard(self)

    # -- looking

    def whereis(self, name: str) -> ActorRef | None:
        """Return the actor of that name, or None. `a/b` is the child `b` of the supervisor `a`."""
        head, _, rest = name.partition("/")
        ref = self._find(head)
        while ref is not None and rest:
            head, _, rest = rest.partition("/")
            ref = ref.ask(WhereIs(head))
        return ref

    def ref(self, name: str) -> ActorRef:
        """Return the actor of that name; `ActorStoppedError` when there is none."""
        ref = self.whereis(name)
        if ref is None:
            raise ActorStoppedError(name)
        return ref

    def children(self) -> list[ChildInfo]:
        """Return what the root supervisor knows of its children, in start order."""
        self._check_open()
        return list(self._ask_root(ListChildren()))

    def watch(self, ref: ActorRef) -> Watch:
        """Return what will tell how the present incarnation of that actor ended."""
        try:
            return Watch(ref.name, ref.await_down())
        except ActorStoppedError:
            return Watch(ref.name, None)

    @property
    def supervisor_pid(self) -> int:
        """The process id of the present root supervisor."""
        return self._root.pid

    @property
    def supervisor_restarts(self) -> int:
        """How often the root supervisor had to be started again."""
        return self._root.number - 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @override
    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"failed: {self.failure}" if self.failure else "running"
        return f"<ActorSystem {self.name!r} {len(self._actors)} actors, supervisor {self._root.pid}, {state}>"

    # -- starting and stopping actors

    def _start_reserved(self, spec: ChildSpec) -> ActorRef:
        sealed = spec.seal()
        spawned = _Spawned(sealed, self._ref_of(sealed))
        self._start(spawned)
        return spawned.ref

    def _start(self, spawned: _Spawned) -> None:
        """Have the root start it; again when the root dies meanwhile."""
        serial = spawned.spec.serial
        with self._lock:
            self._starting[serial] = spawned
        try:
            while True:
                started: Started = self._ask_root(StartChild(spawned.spec), spawned.spec.startup + STOP_MARGIN)
                with self._lock:
                    if serial not in self._starting:
                        return  # a temporary one that has ended already
                    if started.incarnation == self._incarnation:
                        self._actors[spawned.spec.name] = spawned
                        return
                # The root that started it died before we could note it down, and the next one knows nothing of it.
        except BaseException as error:
            if isinstance(error, AskTimeoutError) or not isinstance(error, Exception):
                self._withdraw(spawned.ref)  # it may start all the same, and nobody would know of it
            raise
        finally:
            with self._lock:
                self._starting.pop(serial, None)

    def _withdraw(self, ref: ActorRef) -> None:
        with contextlib.suppress(ActorError):
            ref.stop_later(0.0).close()

    def _lives_on(self, root: _Root) -> bool:
        """Whether a root that did not answer lives: it had no descriptor left to take the request, nor will it have."""
        return root is self._root and not root.has_ended(LIFELINE_SECONDS)

    def _ask_root(self, request: SupervisorRequest, timeout: float = DEFAULT_ASK_SECONDS) -> Any:
        """Ask the root; the next one, when one dies with the request in hand."""
        while True:
            self._check_open()
            root = self._root
            try:
                return self._root_ref.ask(request, timeout)
            except ActorDiedError:
                if self._lives_on(root):
                    raise
            except ActorStoppedError:
                self._check_open()
                raise

    def _find(self, name: str) -> ActorRef | None:
        """Return a child of the root that is there for certain: its end may be known to the root and not yet to us."""
        with self._lock:
            spawned = self._actors.get(name)
        if spawned is None:
            self._check_open()
            return None
        return None if self._ask_root(WhereIs(name)) is None else spawned.ref

    def _begin_stop(self, ref: ActorRef, timeout: float | None) -> PendingReply | None:
        try:
            return ref.stop_later(timeout)
        except ActorStoppedError:
            return None  # its supervisor has stopped, and it with it

    @contextlib.contextmanager
    def _reserved_name(self, name: str | None, actor: type[Actor]) -> Iterator[str]:
        """Keep that name, or one made of the class's, from others until the actor runs or has failed."""
        if name is not None and name in self._actors and self._find(name) is None:
            with self._lock:
                self._actors.pop(name, None)
        with self._lock:
            if name is None:
                stem = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", getattr(actor, "__name__", "actor")).lower()
                name = next(
                    unused
                    for number in self._numbers
                    if (unused := f"{stem}-{number}") not in self._actors and unused not in self._reserved
                )
            elif name in self._actors or name in self._reserved:
                raise ActorStartError(name, "the name is taken")
            self._reserved.add(name)
        try:
            yield name
        finally:
            with self._lock:
                self._reserved.discard(name)

    def _ref_of(self, spec: SealedSpec) -> ActorRef:
        return ActorRef(spec.name, self._token, _writer(spec.mailbox), _writer(self._mailbox))

    def _check_open(self) -> None:
        if os.getpid() != self._pid:
            raise ActorError(f"{self!r} belongs to process {self._pid}; a child that it forked may only use refs")
        if self.failure is not None:
            raise self.failure
        if self._closing.is_set():
            raise ActorStoppedError(self.name)

    # -- the root

    def _start_root(self) -> _Root:
        ours, theirs = PacketSocket.pair(None)
        with self._lock:
            # Both at once: what was started by an earlier incarnation and is not among these has to be started again.
            self._incarnation += 1
            number = self._incarnation
            specs = [spawned.spec for spawned in self._actors.values()]
        config = RootConfig(
            name=self.name,
            token=self._token,
            host_pid=self._pid,
            incarnation=number,
            is_restart=self._has_started,
            mailbox=self._mailbox,
            strategy=self._strategy,
            max_restarts=self._max_restarts,
            max_seconds=self._max_seconds,
            log_level=logger.level,
            preload=self._preload,
            specs=len(specs),
        )
        ours.send(marshal.dumps([entry for entry in sys.path if isinstance(entry, str)]))  # others are ignored
        fd = theirs.fileno()
        target = 3 if fd != 3 else 4
        executable = spawn.get_executable()
        flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 -- as multiprocessing
        pid = os.posix_spawn(
            executable,
            [executable, *flags, "-c", _BOOT.format(fd=target)],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, fd, target),
            ],
            setsigmask=[signal.SIGINT, signal.SIGTERM],
            setsigdef=[signal.SIGCHLD],
        )
        theirs.close()
        root = _Root(number, pid, linux.pidfd_open(pid), StatusReader(ours), time.monotonic())
        try:
            for value in (config, *specs):
                data, fds = pack(value)
                ours.send(data, fds=fds, timeout=STOP_MARGIN)
        except BrokenPipeError:
            pass  # it is dead already; the warden finds that out
        return root

    def _guard(self) -> None:
        """Be the warden: wait for the end of each root, and start the next."""
        window = RestartWindow(self._max_restarts, self._max_seconds)
        deaths_without_progress = 0
        try:
            while True:
                root = self._root
                status = self._follow(root)
                if failpoints.ARMED:
                    failpoints.hit("warden.root_ended")
                if self._closing.is_set():
                    return
                reason = exit_reason(status, root.last_words)
                if root.failure is not None and (root.has_escalated or not self._has_started):
                    self._start_error = root.failure
                    self._give_up(root.failure)
                    return
                if reason.kind is not ExitKind.KILLED:
                    logger.error("the supervisor of %s ended: %s", self.name, reason)
                else:
                    logger.warning("the supervisor of %s (pid %d) was %s", self.name, root.pid, reason)
                self._end_temporary_actors()
                has_lived = reason.kind is ExitKind.KILLED or time.monotonic() - root.since >= LAST_BACK_OFF
                if root.has_started and has_lived:
                    deaths_without_progress = 0
                    window.clear()
                else:
                    deaths_without_progress += 1
                while True:
                    if deaths_without_progress and not window.admit(SYSTEM_CLOCK.now()):
                        limit = RestartLimitError("supervisor", self._max_restarts, self._max_seconds, str(reason))
                        self._give_up(limit)
                        return
                    if self._closing.wait(back_off(deaths_without_progress)):
                        return
                    try:
                        if failpoints.ARMED:
                            failpoints.hit("warden.starting_root")
                        self._root = self._start_root()
                    except OSError as error:  # no process, fd or memory to be had
                        reason = ExitReason(ExitKind.CRASH, f"the kernel refuses to start it: {error}")
                        deaths_without_progress += 1
                    else:
                        break
        except BaseException as error:
            self._give_up(ActorError(f"the warden of {self.name} failed: {error!r}"))
            raise
        finally:
            self._ready.set()

    def _follow(self, root: _Root) -> int:
        """Take the root's news until it has ended, and all below it; return its wait status."""
        poll = select.poll()
        poll.register(root.pidfd, select.POLLIN)
        poll.register(root.status.fileno(), select.POLLIN)
        has_exited = False
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left)}
            if root.status.fileno() in ready:
                self._take_news(root)
                if root.status.has_ended:
                    poll.unregister(root.status.fileno())
            if root.pidfd in ready and not has_exited:
                # Its children got SIGKILL from the kernel as it ended. The last of them is awaited: one that is still
                # on its way out could take a message that belongs to its successor.
                has_exited = True
                poll.unregister(root.pidfd)
                deadline = time.monotonic() + LIFELINE_SECONDS
                self._take_news(root)
            if has_exited and (root.status.has_ended or (deadline is not None and time.monotonic() >= deadline)):
                break
        root.status.close()
        return root.reap()

    def _take_news(self, root: _Root) -> None:
        for news, data in root.status.read():
            match news:
                case News.STARTED:
                    root.has_started = self._has_started = True
                    self._ready.set()
                case News.FAILED | News.ESCALATED:
                    root.has_escalated = news is News.ESCALATED
                    error = decode_error(failure_in(data).encoded)
                    root.failure = error if isinstance(error, Exception) else ActorError(repr(error))
                case News.GONE:
                    self._forget(data.decode())
                case News.LAST_WORDS:
                    root.last_words = data.decode(errors="replace")
                case News.PROGRESS:
                    pass  # what counts for a root is that its children run

    def _forget(self, serial: str) -> None:
        with self._lock:
            ended = [one for one in self._actors.values() if one.spec.serial == serial]
            for one in ended:
                del self._actors[one.spec.name]
            starting = self._starting.pop(serial, None)
        for one in (*ended, *([starting] if starting else [])):
            one.spec.end_mailboxes()

    def _end_temporary_actors(self) -> None:
        with self._lock:
            temporary = [one.spec.serial for one in self._actors.values() if one.spec.restart is Restart.TEMPORARY]
        for serial in temporary:
            self._forget(serial)

    def _stop_root(self, timeout: float | None) -> None:
        root = self._root
        if timeout is None:
            with self._lock:
                timeout = sum(spawned.spec.shutdown for spawned in self._actors.values()) + STOP_MARGIN
        deadline = time.monotonic() + timeout
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended by itself and let go of everything
                self._ask_root_to_stop(deadline)
            self._join_warden(deadline)
        finally:
            if self._warden.is_alive():
                # A root that was being started just now is the next `_root`; both get it.
                for each in {root, self._root}:
                    each.kill()
                self._join_warden(time.monotonic() + STOP_MARGIN)
            elif self._warden.ident is None:  # there was no thread to be had for it
                root.kill()
                root.reap()

    def _ask_root_to_stop(self, deadline: float) -> None:
        marker = _writer(self._mailbox)
        while not marker.try_send(STOP, ROOT_STOP_TOKEN) and time.monotonic() < deadline:
            self._warden.join(0.002)

    def _join_warden(self, deadline: float) -> None:
        if self._warden is threading.current_thread():
            return  # in `on_failure`: it has nothing left to do
        while self._warden.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._warden.join(min(left, 0.5))

    def _give_up(self, failure: Exception) -> None:
        self.failure = failure if isinstance(failure, ActorqError) else ActorStartError(self.name, str(failure))
        self._let_go()
        self._ready.set()
        on_failure, self._on_failure = self._on_failure, None
        if on_failure is not None:
            try:
                on_failure()
            except Exception:
                logger.exception("on_failure of %s failed", self.name)

    def _let_go(self) -> None:
        """End all mailboxes: nobody will read them again."""
        with self._lock:
            spawned = list(self._actors.values())
            self._actors.clear()
        for one in spawned:
            one.spec.end_mailboxes()
        refuse_rest(self._mailbox)


class Watch:
    """Waits for the end of one incarnation of an actor."""

    def __init__(self, name: str, pending: PendingReply | None) -> None:
        self._name = name
        self._pending = pending
        self._down: Down | None = None

    def wait(self, timeout: float | None = None) -> Down:
        """Return how it ended. `AskTimeoutError` (a `TimeoutError`) when it has not ended in time; ask again then."""
        if self._down is None:
            if self._pending is not None and not self._pending.is_answered(timeout):
                raise AskTimeoutError(self._name, timeout or 0.0)
            self._down = down_of(self._name, self._pending)
        return self._down

    def fileno(self) -> int:
        """Return an fd that is readable once it has ended; -1 when that was before the watch."""
        return -1 if self._pending is None else self._pending.fileno()

    @override
    def __repr__(self) -> str:
        return f"<Watch {self._name!r} {self._down or 'waiting'}>"


class _Root:
    """The host's view of one incarnation of the root."""

    def __init__(self, number: int, pid: int, pidfd: int, status: StatusReader, since: float) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = pidfd
        self.status = status
        self.since = since
        self.has_started = False
        self.has_escalated = False
        self.failure: Exception | None = None
        self.last_words = ""
        self._lock = threading.Lock()

    def kill(self) -> None:
        """Kill it, and all below it."""
        with self._lock:
            if self.pidfd >= 0:
                linux.pidfd_kill(self.pidfd)

    def has_ended(self, timeout: float) -> bool:
        """Whether it has ended, waiting up to the timeout for that."""
        with self._lock:
            if self.pidfd < 0:
                return True
            pidfd = os.dup(self.pidfd)
        try:
            return wait_readable(pidfd, timeout)
        finally:
            os.close(pidfd)

    def reap(self) -> int:
        """Return its wait status."""
        with self._lock:  # from here on the number of the pidfd may mean another process
            os.close(self.pidfd)
            self.pidfd = -1
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # the program ignores SIGCHLD, or waits for all children itself: nobody knows
            return int(signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class _Spawned:
    spec: SealedSpec
    ref: ActorRef


def _writer(mailbox: Mailbox) -> PacketSocket:
    assert mailbox.writer is not None
    return mailbox.writer


_open_systems: weakref.WeakSet[ActorSystem] = weakref.WeakSet()


def _close_all() -> None:
    for system in list(_open_systems):
        system.close()


atexit.register(_close_all)

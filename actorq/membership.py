"""A process that runs consumers of a queue: it hosts the brokers, or has joined those of another process.

                    the host's lock is free                    its brokers are gone, and the lock is free
    start ─────┬──────────────────────────────▶ hosting ◀─────────────────────────────────────┐
               │ somebody answers at the door                                                 │
               └──────────────────────────────▶ joined ───────────────────────────────────────┘
                                                  ▲   hosting, and deposed after not answering
                                                  └──────────────────────────────────────────

Consumers that have joined live in a tree of their own, the crew, and survive the end of the host: they hold on to their
tasks, and go on with the brokers of the next one. Which of several members that is, the host's lock decides. Each has a
spare tree for that, a supervisor that has imported all that brokers need: theirs as soon as it falls to us to host.

A thread of ours, the delegate, waits for the end of the brokers. It passes on to the Registry how consumers of the crew
have died, which their supervisor tells only this process.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from actorq.actors.mailbox import Mailbox
from actorq.actors.system import ActorSystem
from actorq.attachments import attachment_of
from actorq.brokers.messages import EventOwner
from actorq.brokers.session import Session
from actorq.errors import ActorqError, ActorStoppedError, HostDeposedError, QueueLockedError
from actorq.hosting import PRELOAD, Host, end_at_once, new_system
from actorq.joining import WayIn
from actorq.store.locks import host_pid
from actorq.takeover import is_stopped

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from actorq.actors import ActorRef
    from actorq.hosting import Hosting, Team

logger = logging.getLogger("actorq")

HOSTING_SECONDS = 0.05
"""How long to try for the host's lock, which direct publishers hold for moments, before looking for somebody there."""

NAP_SECONDS = 0.01
"""Between two looks whether somebody hosts the queue, or we may."""

LOOK_SECONDS = 25.0
"""How often a member that has joined looks whether the host was stopped."""

SPARE_SECONDS = 1.0
"""How long to have joined before a spare tree is started: whoever leaves earlier has not paid for it."""

CONNECT_SECONDS = 10.0

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""Of descriptors, memory, processes: they pass, and until then the crew waits."""

AGAIN_SECONDS = 0.5


def _nothing() -> None:
    """Nobody wants to know."""


def _nothing_about(_pid: int | None) -> None:
    """Nor that."""


class Member:
    """One process's part in running a queue."""

    def __init__(self, path: Path, hosting: Hosting, team: Team, takeover_after: float) -> None:
        self.path = path
        self.failure: ActorqError | None = None
        """Why it runs nothing any more, if it does not."""
        self.host: Host | None = None
        """Set while this process hosts the queue."""
        self.on_end: Callable[[], None] = _nothing
        """Called by a thread of ours once `failure` is set."""
        self.consumers = team.consumers
        """How many it runs."""
        self._hosting = hosting
        self._team = team
        self._way_in = WayIn(path, takeover_after)
        self._crew: ActorSystem | None = None
        self._spare: ActorSystem | None = None
        """For the brokers, should it fall to us to host: to start it then would be most of the time until they run."""
        self._consumers: list[ActorRef] = []
        self._holder: int | None = None
        self._news = Mailbox(name="news of the crew")
        self._wake_end, self._waker = os.pipe()
        self._waker_lock = threading.Lock()
        self._is_stopping = False
        self._has_given_up = False
        self._delegate = threading.Thread(target=self._watch, name="actorq-delegate", daemon=True)
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"<Member of {self.path}: {'hosting' if self.host else 'joined'}>"

    def start(self, timeout: float, on_wait: Callable[[int | None], None] = _nothing_about) -> None:
        """Host the queue or join its host, and start the consumers.

        `on_wait` is told once for which process this waits, if it has to and the kernel says.

        Raises QueueLockedError when neither is possible in time, and what keeps brokers or consumers from starting.
        """
        attachment = attachment_of(self.path)
        if attachment is not None and attachment.runs_tasks:
            self._let_go()
            raise QueueLockedError(self.path, host_pid(self.path))  # we are a consumer of it
        if _members.setdefault(self.path, self) is not self:
            self._let_go()
            raise QueueLockedError(self.path, self._pid)  # by this very process
        try:
            self._host_or_find_host(time.monotonic() + timeout, on_wait)
            self._start_team()
            self._delegate.start()
        except BaseException:
            self.stop()
            raise

    def _host_or_find_host(self, deadline: float, on_wait: Callable[[int | None], None]) -> None:
        has_told = False
        while not (self._try_to_host() or self._way_in() is not None):
            if self._has_given_up or time.monotonic() >= deadline:
                raise QueueLockedError(self.path, self._holder)
            if not has_told:
                has_told = True
                on_wait(self._holder)
            time.sleep(NAP_SECONDS)

    def give_up(self) -> None:
        """Have `start` wait no longer for a host that neither answers nor ends."""
        self._has_given_up = True

    def stop(self) -> None:
        """Let the consumers finish what they run and give back the rest; stop hosting, if we do."""
        if os.getpid() != self._pid:
            return  # a child that the program forked; all of it is its parent's
        try:
            self._stop_crew()
        except KeyboardInterrupt:  # a second ^C: whoever sends it does not want to wait for the handlers
            self.stop_at_once()
            raise
        finally:
            # The delegate last: until the crew has told its outcomes, somebody must host the queue.
            self._is_stopping = True
            self._wake()
            try:
                with ExitStack() as last_first:
                    last_first.callback(self._stop_the_rest)
                    if self._delegate.is_alive():
                        last_first.callback(self._delegate.join)  # once more, if ^C has interrupted the first time
                        self._delegate.join()
            finally:
                self.host = None  # it knows us as we know it, and has descriptors
                if _members.get(self.path) is self:
                    del _members[self.path]
                self._let_go()

    def _stop_the_rest(self) -> None:
        with ExitStack() as last_first:
            if self.host is not None:
                last_first.callback(self.host.stop)
            if self._spare is not None:
                last_first.callback(self._spare.close, 0)  # it has nothing to finish
            if self._crew is not None:
                last_first.callback(self._crew.close)

    def _let_go(self) -> None:
        self._news.close()
        with self._waker_lock:
            if self._waker >= 0:
                for fd in (self._wake_end, self._waker):
                    os.close(fd)
                self._waker = -1

    def stop_at_once(self) -> None:
        """End the consumers without waiting for their handlers; the tasks in hand go back, uncharged."""
        host = self.host
        if host is not None:
            host.stop_at_once()
        end_at_once(self._consumers)

    def _stop_crew(self) -> None:
        crew = self._crew
        if crew is not None and crew.failure is None:
            with suppress(ActorStoppedError):
                crew.stop(*self._consumers)

    def _try_to_host(self) -> bool:
        host = Host(self.path, self._hosting, on_failure=self._wake, spare=self._spare)
        try:
            host.start(HOSTING_SECONDS)
        except QueueLockedError as error:
            self._holder = error.pid
            return False
        finally:
            self._spare = host.spare
        self.host = host
        return True

    def _start_team(self) -> None:
        if self.host is not None:
            self.host.start_consumers(self._team)
            return
        self._crew = ActorSystem(name="crew", preload=PRELOAD, on_failure=self._wake)
        self._consumers = self._team.spawn(self._crew, self.path, None, self._news)

    def _wake(self) -> None:
        with self._waker_lock:  # a thread of a tree that fails may come as late as that
            if self._waker >= 0:
                os.write(self._waker, b".")

    # -- the delegate

    def _watch(self) -> None:
        try:
            self._follow()
        except ActorqError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(ActorqError(f"the delegate of {self.path} failed: {error!r}"))
            raise

    def _follow(self) -> None:
        while not self._is_stopping and self.failure is None:
            if self.host is None:
                self._be_joined()
            else:
                self._be_host(self.host)

    def _fail(self, error: ActorqError) -> None:
        logger.error("queue not run any more path=%r: %s", str(self.path), str(error))
        self.failure = error
        self.on_end()

    def _be_host(self, host: Host) -> None:
        """Wait until the host fails; after it was deposed, be a member of whoever has taken its place."""
        session = Session(host.brokers, EventOwner.PUBLISHER, greet=None)
        while not self._is_stopping and host.failure is None and self._crew_failure() is None:
            self._wait(session, None)
        if self._is_stopping:
            return
        failure = host.failure or self._crew_failure()
        if failure is not None and not isinstance(failure, HostDeposedError):
            if host.failure is not None:
                host.let_go()
            self._fail(failure)  # told, not raised: the frames of a traceback would keep all of this alive
            return
        self.host = None
        host.stop()
        logger.warning("host deposed path=%r: this process was stopped, and joins the next one", str(self.path))
        if self._crew is None and not self._is_stopping:
            self._start_team()

    def _be_joined(self) -> None:
        """Wait until the brokers are gone and it falls to us to host the queue, or to somebody else."""
        is_ready = False
        session = Session(None, EventOwner.PUBLISHER, greet=None, find=self._way_in)
        try:
            while True:
                if self._is_stopping:
                    return
                if (failure := self._crew_failure()) is not None:
                    self._fail(failure)
                    return
                if session.is_lost:
                    try:
                        if self._try_to_host():
                            logger.info("queue taken over path=%r", str(self.path))
                            return
                        session.connect(CONNECT_SECONDS)
                    except OSError as error:
                        if error.errno not in SHORTAGES:
                            raise
                        logger.error("not able to host path=%r; trying again: %s", str(self.path), error)  # noqa: TRY400
                        time.sleep(AGAIN_SECONDS)
                    if session.is_lost:
                        time.sleep(NAP_SECONDS)
                    continue
                if self._wait(session, LOOK_SECONDS if is_ready else SPARE_SECONDS):
                    session.receive(0)
                elif not is_ready:
                    self._be_ready_to_host()
                    is_ready = True
                elif is_stopped(self.path):
                    self._doubt(session)
        finally:
            session.close()

    def _be_ready_to_host(self) -> None:
        """Have a supervisor that has imported all that the brokers need."""
        if self._spare is not None and self._spare.failure is None:
            return
        try:
            # Not waited for: until the crew's news are passed on, its tasks would be charged with whatever ends it.
            self._spare = new_system(on_failure=self._wake, wait=False)
        except (ActorqError, OSError, RuntimeError) as error:  # no process or thread to be had: made when it is needed
            self._spare = None
            logger.warning("not ready to host path=%r: %s", str(self.path), error)

    def _doubt(self, session: Session) -> None:
        """Ask at the door whether a host that seems to be stopped still answers, until it does or is deposed."""
        while not self._is_stopping and self._way_in() is None and is_stopped(self.path):
            time.sleep(NAP_SECONDS)
        session.receive(0)

    def _crew_failure(self) -> ActorqError | None:
        return None if self._crew is None else self._crew.failure

    def _wait(self, session: Session, seconds: float | None) -> bool:
        """Wait for news of the brokers, passing on those of the crew; False after so many seconds."""
        poll = select.poll()
        news = self._news.reader
        assert news is not None
        for fd in (self._wake_end, news.fileno()):
            poll.register(fd, select.POLLIN)
        if seconds is not None:
            poll.register(session.fileno(), select.POLLIN)
        ready = {fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)}
        if self._wake_end in ready:
            os.read(self._wake_end, 4096)
        if news.fileno() in ready:
            while (packet := news.try_receive()) is not None:
                session.tell_registry(packet.data)
        return bool(ready)


_members: dict[Path, Member] = {}


def member_of(path: Path) -> Member | None:
    """Return what this process contributes to running the queue of this path, if anything."""
    return _members.get(path)


if hasattr(os, "register_at_fork"):  # a forked child is no member
    os.register_at_fork(after_in_child=_members.clear)

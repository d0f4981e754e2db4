"""An actor that keeps other actors running.

It forks its children, hears of their ends from the kernel (pidfds), and starts them again by the rules of restart.py.
It is single-threaded, imports nothing of the user's and never waits for a child: a start and a stop are each begun, and
their end is an event. So one child that takes a minute to start or to stop holds up nobody but its own wave.

    request ──▶ receive ──┐
    pidfd ────▶ _exited ──┼──▶ change phases and waves ──▶ _step: may_stop, may_start ──▶ marker, kill, fork
    status ───▶ _heard  ──┘

A supervisor under a supervisor is a child like any other; when it dies its children die with it.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import OrderedDict
from typing import TYPE_CHECKING, ClassVar, override

from actorq import failpoints
from actorq.actors import linux
from actorq.actors.actor import Actor
from actorq.actors.child import Incarnation, fork_child
from actorq.actors.exits import ExitKind, ExitReason, exit_reason
from actorq.actors.mailbox import DOWN, STOP
from actorq.actors.messages import (
    AwaitDown,
    ChildInfo,
    Down,
    KillChild,
    ListChildren,
    StartChild,
    Started,
    StopChild,
    Stopped,
    WhereIs,
)
from actorq.actors.outbox import Outbox
from actorq.actors.ref import ActorRef
from actorq.actors.restart import (
    ALIVE,
    LAST_BACK_OFF,
    Phase,
    RestartWindow,
    Strategy,
    back_off,
    may_start,
    may_stop,
    restarts_after,
    wave_after,
)
from actorq.actors.spec import ChildSpec, SealedSpec
from actorq.actors.status import Failure, News, failure_in
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import ActorStartError, RestartLimitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actorq.actors.reply import Reply
    from actorq.actors.timer import Timer

DEFAULT_MAX_RESTARTS = 3
DEFAULT_MAX_SECONDS = 5.0
LIFELINE_SECONDS = 2.0
"""How long the end of a supervisor's own children is awaited before it is started again; milliseconds as a rule."""
REMEMBERED_ENDS = 1024

logger = logging.getLogger("actorq")


class Supervisor(Actor):
    """Starts children in order, stops them in reverse, and starts again those that end."""

    has_children: ClassVar[bool] = True

    def __init__(
        self,
        specs: Sequence[ChildSpec | SealedSpec] = (),
        strategy: Strategy | str = Strategy.ONE_FOR_ONE,
        max_restarts: int = DEFAULT_MAX_RESTARTS,
        max_seconds: float = DEFAULT_MAX_SECONDS,
    ) -> None:
        self.incarnation = 1
        self._strategy = Strategy(strategy)
        self._window = RestartWindow(max_restarts, max_seconds)
        self._waves = itertools.count(1)
        self._children: list[_Child] = []
        self._ends: OrderedDict[str, Down] = OrderedDict()
        self._is_starting = True
        self._is_stopping = False
        self._start_failure: Failure | None = None
        self._limit_error: RestartLimitError | None = None
        self._escalation: Failure | None = None
        sealed = [spec.seal() if isinstance(spec, ChildSpec) else spec for spec in specs]
        self._first_specs = [spec.with_open_mailbox() for spec in sealed]

    # -- life

    @override
    def on_start(self) -> None:
        wave = next(self._waves)
        for spec in self._first_specs:
            if self._child(spec.name) is not None:
                raise ActorStartError(spec.name, "the name is taken")
            self._children.append(_Child(spec, self._ref_of(spec), wave, self._new_window(), is_first=True))
        self._loop.after(0, self._step)

    @override
    def receive(self, message: object) -> object:
        match message:
            case StartChild(spec):
                self._add(spec, self.reply_later())
            case StopChild(name, within):
                self._remove(name, within, self.reply_later())
            case KillChild(name):
                self._kill(name, self.reply_later())
            case AwaitDown(name):
                self._await_down(name, self.reply_later())
            case WhereIs(name):
                child = self._child(name)
                return None if child is None else child.ref
            case ListChildren():
                return tuple(child.info() for child in self._children)
            case _:
                return super().receive(message)
        return None

    @override
    def stop_requested(self) -> None:
        self._stop_all()

    # -- requests

    def _add(self, spec: SealedSpec, reply: Reply) -> None:
        if self._is_stopping:
            reply.stopped()
            return
        if self._child(spec.name) is not None:
            reply.fail(ActorStartError(spec.name, "the name is taken"))
            return
        child = _Child(spec, self._ref_of(spec), next(self._waves), self._new_window())
        child.starters.append(reply)
        self._children.append(child)
        self._step()

    def _remove(self, name: str, within: float | None, reply: Reply) -> None:
        child = self._child(name)
        if child is None:
            reply.send(Stopped())
            return
        child.stoppers.append(reply)
        child.stop_within = child.spec.shutdown if within is None else within
        child.comes_back = False
        if child.phase is Phase.STOPPING:
            self._limit_stop(child)  # it was told to stop before, and perhaps given more time
        elif child.phase is Phase.WAITING:
            self._forget(child)
        elif not child.must_stop:
            child.wave = next(self._waves)
            child.must_stop = True
        self._step()

    def _kill(self, name: str, reply: Reply) -> None:
        child = self._child(name)
        if child is None or child.incarnation is None:
            reply.send(value=False)
            return
        child.killers.append(reply)
        linux.pidfd_kill(child.incarnation.pidfd)

    def _await_down(self, name: str, reply: Reply) -> None:
        child = self._child(name)
        if child is not None and child.incarnation is not None:
            child.watchers.append(reply)
            # A watcher that no longer waits hangs up; without this it would be kept until the child ends.
            self.listen(reply.fileno(), lambda: self._unwatched(child, reply), 0)
            return
        # None is alive: how did the last one end?
        unknown = ExitReason(ExitKind.GONE, "no such actor" if child is None else "ended with its supervisor")
        reply.send_raw(self._ends.get(name, Down(name, None, unknown)).encode())

    def _unwatched(self, child: _Child, reply: Reply) -> None:
        self.unlisten(reply.fileno())
        child.watchers.remove(reply)
        reply.close()

    # -- going where the children should be

    def _step(self) -> None:
        for child in may_stop(self._children):
            self._stop_child(child)
        for child in may_start(self._children, SYSTEM_CLOCK.now()):
            self._start_child(child)
        if self._is_stopping and not any(child.phase in ALIVE for child in self._children):
            self._finish()
        elif self._is_starting and all(child.phase is Phase.RUNNING for child in self._children if child.is_first):
            self._is_starting = False
            self._status.started()

    def _start_child(self, child: _Child) -> None:
        child.phase = Phase.STARTING
        child.since = SYSTEM_CLOCK.now()
        child.progress = False
        child.last_words = ""
        child.failure = None
        try:
            if failpoints.ARMED:
                failpoints.hit("supervisor.forking")
            incarnation = fork_child(child.spec, child.ref)
        except OSError as error:  # no process, fd or memory left
            reason = f"the kernel refuses to start it: {error}"
            child.failure = Failure.of(ActorStartError(child.spec.name, reason))
            # Not at once: who called us is in the middle of something.
            self._loop.after(0, lambda: self._ended(child, None, ExitReason(ExitKind.CRASH, reason)))
            return
        if failpoints.ARMED:
            failpoints.hit("supervisor.forked")
        child.incarnation = incarnation
        self.listen(incarnation.pidfd, lambda: self._exited(child))
        self.listen(incarnation.status.fileno(), lambda: self._heard(child))
        child.deadline = self._loop.after(child.spec.startup, lambda: self._overdue(child, "start", child.spec.startup))

    def _stop_child(self, child: _Child) -> None:
        child.phase = Phase.STOPPING
        child.cancel_deadline()
        incarnation = child.incarnation
        if incarnation is None:
            return  # its fork failed; the end is on its way
        writer = child.spec.mailbox.writer
        assert writer is not None
        # Through an outbox: in a full mailbox the marker waits for room, but nobody waits for the marker.
        child.marker = Outbox(writer, STOP, child.spec.name)
        self._loop.add_outbox(child.marker)
        child.marker.send(incarnation.stop_token)
        self._limit_stop(child)

    def _limit_stop(self, child: _Child) -> None:
        within = child.stop_within
        child.cancel_deadline()
        child.deadline = self._loop.after(within, lambda: self._overdue(child, "stop", within))

    def _overdue(self, child: _Child, verb: str, seconds: float) -> None:
        if child.incarnation is None:
            return
        if seconds > 0:  # 0 means: kill it
            logger.warning(
                "actor %s (pid %d) did not %s within %g s and is killed",
                child.spec.name,
                child.incarnation.pid,
                verb,
                seconds,
            )
        if verb == "start":
            reason = f"not within {seconds:g} s"
            child.failure = Failure.of(ActorStartError(child.spec.name, reason))
        linux.pidfd_kill(child.incarnation.pidfd)

    # -- news of children

    def _heard(self, child: _Child) -> None:
        incarnation = child.incarnation
        if incarnation is None:
            return
        for news, data in incarnation.status.read():
            match news:
                case News.STARTED:
                    self._started(child, incarnation)
                case News.FAILED:
                    child.failure = failure_in(data)
                    child.last_words = _last_line_of(child.failure.text)
                case News.PROGRESS:
                    child.progress = True
                case News.LAST_WORDS:
                    child.last_words = data.decode(errors="replace")
                case News.ESCALATED:
                    # That a supervisor below gave up is one more end of it, to be answered by its own restart.
                    child.hopeless = None if child.spec.has_children else failure_in(data)
                case News.GONE:
                    pass  # for hosts
        if incarnation.status.has_ended:
            self.unlisten(incarnation.status.fileno())

    def _started(self, child: _Child, incarnation: Incarnation) -> None:
        child.has_run = True
        if child.phase is not Phase.STARTING:
            return  # told to stop meanwhile; the starters hear of that
        child.phase = Phase.RUNNING
        child.cancel_deadline()
        if failpoints.ARMED:
            failpoints.hit("supervisor.started")
        for reply in child.take(child.starters):
            reply.send(Started(incarnation.pid, self.incarnation))
        self._step()

    def _exited(self, child: _Child) -> None:
        incarnation = child.incarnation
        assert incarnation is not None
        if failpoints.ARMED:
            failpoints.hit("supervisor.exited")
        # Who asked to watch it before it died is told of this end, not of the next one.
        self._loop.handle_waiting(self)
        self._heard(child)
        if child.spec.has_children and not incarnation.status.has_ended:
            # Its own children got SIGKILL from the kernel as it ended. One that is still on its way out could take a
            # message that belongs to its successor, so the last of them is awaited.
            self.unlisten(incarnation.pidfd)
            self.listen(incarnation.status.fileno(), lambda: self._lifeline_ended(child, incarnation))
            self._loop.after(LIFELINE_SECONDS, lambda: self._reap(child, incarnation))
            return
        self._reap(child, incarnation)

    def _lifeline_ended(self, child: _Child, incarnation: Incarnation) -> None:
        incarnation.status.read()
        if incarnation.status.has_ended:
            self._reap(child, incarnation)

    def _reap(self, child: _Child, incarnation: Incarnation) -> None:
        if child.incarnation is not incarnation:
            return  # the lifeline ended in time, this is its timer
        pid, wait_status = os.waitpid(incarnation.pid, os.WNOHANG)
        if pid == 0:
            return  # alive: the supervisor must not wait for it, whatever it was told
        if failpoints.ARMED:
            failpoints.hit("supervisor.reaped")
        reason = exit_reason(wait_status, child.last_words, asked_to_stop=child.must_stop)
        self.unlisten(incarnation.pidfd)
        self.unlisten(incarnation.status.fileno())
        os.close(incarnation.pidfd)
        incarnation.status.close()
        self._ended(child, incarnation.pid, reason)

    def _ended(self, child: _Child, pid: int | None, reason: ExitReason) -> None:
        """Act on the end of an incarnation, which the kernel has confirmed."""
        child.incarnation = None
        child.cancel_deadline()
        if child.marker is not None:
            child.marker.close()
            child.marker = None
        self._tell_who_asked(child, Down(child.spec.name, pid, reason))
        if failpoints.ARMED:
            failpoints.hit("supervisor.told")
        if child.must_stop:
            self._ended_as_told(child)
        elif not child.has_run:
            self._never_started(child, reason)
        elif child.hopeless is not None:
            self._give_up(child, child.hopeless)
        elif not restarts_after(child.spec.restart, reason.kind):
            self._forget(child)
        else:
            self._restart(child, pid, reason)
        self._step()

    def _ended_as_told(self, child: _Child) -> None:
        child.must_stop = False
        child.phase = Phase.WAITING
        if not child.comes_back:
            self._forget(child)

    def _never_started(self, child: _Child, reason: ExitReason) -> None:
        failure = child.failure or Failure.of(ActorStartError(child.spec.name, str(reason)))
        for reply in child.take(child.starters):
            reply.fail_encoded(failure.encoded)
        if child.is_first:
            self._start_failure = failure
            child.phase = Phase.WAITING
            self._stop_all()
        else:
            self._forget(child)

    def _give_up(self, child: _Child, failure: Failure) -> None:
        logger.error("actor %s cannot go on: %s", child.spec.name, _last_line_of(failure.text))
        self._escalation = failure
        child.phase = Phase.WAITING
        self._stop_all()

    def _new_window(self) -> RestartWindow:
        return RestartWindow(self._window.max_restarts, self._window.max_seconds)

    def _restart(self, child: _Child, pid: int | None, reason: ExitReason) -> None:
        if child.failure is not None:
            logger.error("actor %s did not start again: %s", child.spec.name, child.failure.text)
        elif reason.kind is ExitKind.KILLED:
            logger.warning("actor %s (pid %s) was %s", child.spec.name, pid, reason)
        now = SYSTEM_CLOCK.now()
        window = self._window
        if child.spec.forgive_progress:
            # Such a child has a window to itself, which begins anew whenever it gets to work: what it must not do is
            # die again and again without having done anything in between.
            window = child.window
            if child.progress:
                window.clear()
        if not (child.spec.forgive_progress and child.progress) and not window.admit(now):
            self._limit_error = RestartLimitError(child.spec.name, window.max_restarts, window.max_seconds, str(reason))
            child.phase = Phase.WAITING
            self._stop_all()
            return
        # Whoever kills may do so as often as he likes, and an actor may end as often as it has done what it was there
        # for. One that crashes as soon as it gets to work will do so again, however often it has waited for a message
        # before: that is no progress.
        has_lived = reason.kind in (ExitKind.KILLED, ExitKind.NORMAL) or now - child.since >= LAST_BACK_OFF
        child.deaths_without_progress = 0 if child.progress and has_lived else child.deaths_without_progress + 1
        delay = back_off(child.deaths_without_progress)
        child.phase = Phase.WAITING
        child.due = now + delay
        child.restarts += 1
        if delay:
            self._loop.after(delay, self._step)
        wave = next(self._waves)
        for member in wave_after(self._strategy, self._children, child):
            member.wave = wave
            if member.phase in ALIVE and not member.must_stop:
                member.must_stop = True
                member.stop_within = member.spec.shutdown
                member.comes_back = restarts_after(member.spec.restart, ExitKind.CRASH)

    # -- ends

    def _stop_all(self) -> None:
        self._is_stopping = True
        wave = next(self._waves)
        for child in list(self._children):
            child.wave = wave
            child.comes_back = False
            if child.phase not in ALIVE:
                self._forget(child)
            elif not child.must_stop:
                child.must_stop = True
                child.stop_within = child.spec.shutdown
        self._loop.after(0, self._step)

    def _finish(self) -> None:
        if self._loop.is_stopping:
            return
        if self._limit_error is not None:
            raise self._limit_error
        if self._escalation is not None:
            self._status.last_words(_last_line_of(self._escalation.text))
            self._status.escalated(self._escalation)
            self._loop.exit_status = 1
        elif self._start_failure is not None:
            self._status.failed(self._start_failure)
            self._loop.exit_status = 1
        self._loop.stop()

    def _forget(self, child: _Child) -> None:
        """Let go of a child that will not be started again."""
        child.phase = Phase.ENDED
        self._child_is_gone(child.spec)
        self._children.remove(child)
        # Those that a supervisor was given stay usable when it ends as a whole: it may be started again, with them.
        # If it is not, whoever knows that ends them.
        dropped = 0 if self._is_stopping and child.is_first else child.spec.end_mailboxes()
        if dropped:
            logger.warning("actor %s has ended; %d messages in its mailbox are dropped", child.spec.name, dropped)
        for reply in child.take(child.starters):
            reply.stopped()
        for reply in child.take(child.stoppers):
            reply.send(Stopped())
        child.spec.mailbox.close()
        if child.notices is not None:
            child.notices.retire()

    def _child_is_gone(self, spec: SealedSpec) -> None:
        """Whoever must hear that a child will not be started again: the host, in the case of the root."""

    def _tell_who_asked(self, child: _Child, down: Down) -> None:
        self._ends[child.spec.name] = down
        self._ends.move_to_end(child.spec.name)
        if len(self._ends) > REMEMBERED_ENDS:
            self._ends.popitem(last=False)
        for reply in child.take(child.watchers):
            self.unlisten(reply.fileno())
            reply.send_raw(down.encode())
        for reply in child.take(child.killers):
            reply.send(value=True)
        if child.spec.notify is not None:
            if child.notices is None:
                child.notices = Outbox(child.spec.notify, DOWN, f"who is notified of {child.spec.name}")
                self._loop.add_outbox(child.notices)
            child.notices.send(down.encode())

    # -- small things

    def _child(self, name: str) -> _Child | None:
        return next((child for child in self._children if child.spec.name == name), None)

    def _ref_of(self, spec: SealedSpec) -> ActorRef:
        writer = spec.mailbox.writer
        assert writer is not None
        return ActorRef(spec.name, self._token_of_children(), writer, self.ref.mailbox_writer)

    def _token_of_children(self) -> str:
        return f"{self.ref.token}/{self.name}"

    @override
    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._children)} children, {self._strategy}, {self._window!r}>"


class _Child:
    """A child as its supervisor sees it; a `Standing` for the rules."""

    def __init__(
        self, spec: SealedSpec, ref: ActorRef, wave: int, window: RestartWindow, *, is_first: bool = False
    ) -> None:
        self.spec = spec
        self.window = window
        self.is_first = is_first  # one of those that the supervisor was started with
        self.ref = ref
        self.phase = Phase.WAITING
        self.wave = wave
        self.must_stop = False
        self.comes_back = True  # once it is down, having been told to stop
        self.due = 0.0
        self.since = 0.0  # when the present incarnation was forked
        self.incarnation: Incarnation | None = None
        self.has_run = False  # some incarnation got through its start
        self.progress = False
        self.restarts = 0
        self.deaths_without_progress = 0
        self.last_words = ""
        self.failure: Failure | None = None
        self.hopeless: Failure | None = None
        self.stop_within = spec.shutdown
        self.deadline: Timer | None = None
        self.marker: Outbox | None = None
        self.notices: Outbox | None = None
        self.starters: list[Reply] = []
        self.stoppers: list[Reply] = []
        self.killers: list[Reply] = []
        self.watchers: list[Reply] = []

    def info(self) -> ChildInfo:
        pid = None if self.incarnation is None else self.incarnation.pid
        return ChildInfo(self.spec.name, pid, self.phase.value, self.restarts, self.progress)

    def cancel_deadline(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def take(self, replies: list[Reply]) -> list[Reply]:
        """Return the replies and forget them: each is answered once."""
        taken = list(replies)
        replies.clear()
        return taken

    @override
    def __repr__(self) -> str:
        return f"<child {self.spec.name} {self.phase.value} wave {self.wave}{' must stop' * self.must_stop}>"


def _last_line_of(text: str) -> str:
    return text.strip().rpartition("\n")[2]

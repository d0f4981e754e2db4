"""A child process, from its fork to its end.

A child is forked by a single-threaded supervisor that has imported nothing of the user's, and it keeps nothing of the
supervisor's but what it was given. The fds that an actor holds when it starts, all of them:

    0, 1, 2                   /dev/null, and the output of the host
    mailbox, reading end      what it is sent
    mailbox, writing end      for `self.ref`
    supervisor                the writing end of its supervisor's mailbox, also for `self.ref`
    status                    what it tells its supervisor
    lifeline 1 ...            the status channels of the supervisors above it (one, if it is the root's child)
    wait set                  its epoll
    and those that came in its arguments.
"""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing.util
import os
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from actorq import failpoints
from actorq.actors import linux
from actorq.actors.loop import Loop
from actorq.actors.packets import PacketSocket
from actorq.actors.program import adopt_program, unpack_message
from actorq.actors.ref import ActorRef, this_process_is
from actorq.actors.status import Failure, Status, StatusReader
from actorq.errors import ActorStartError, MainGuardError, RestartLimitError

if TYPE_CHECKING:
    from actorq.actors.actor import Actor
    from actorq.actors.spec import SealedSpec
    from actorq.errors import ActorqError

logger = logging.getLogger("actorq")


class Incarnation(NamedTuple):
    """A running child, seen from its supervisor."""

    pid: int
    pidfd: int
    status: StatusReader
    stop_token: bytes


def fork_child(spec: SealedSpec, ref: ActorRef) -> Incarnation:
    """Fork a child that runs the spec's actor. Returns in the supervisor alone."""
    ours, theirs = PacketSocket.pair(None)
    stop_token = os.urandom(8)
    _flush_streams()  # or the child would print once more what waits in them
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_child(spec, ref, Status(theirs), stop_token, parent)
    theirs.close()
    try:
        pidfd = linux.pidfd_open(pid)
    except OSError:  # no fd left: nothing may run that we could not watch
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    return Incarnation(pid, pidfd, StatusReader(ours), stop_token)


def descriptors() -> dict[str, int]:
    """Return the fds that this process, an actor, was given, by what they are for."""
    return dict(_descriptors)


def ignore_terminal_signals() -> None:
    """Let INT and TERM pass: the host decides about the end.

    By handlers that do nothing rather than by SIG_IGN, which the programs that an actor starts would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)


def hold_lifeline(fd: int) -> None:
    """Have all processes forked from here on keep this fd open."""
    _lifelines.append(fd)


def keep_fd_limit(limit: tuple[int, int]) -> None:
    """Give this limit to all processes forked from here on: that of the host, while ours is higher."""
    _fd_limit[:] = [limit]


def run_actor(actor: Actor, loop: Loop, status: Status) -> int:
    """Run an actor that has started until its end; return the exit status of the process."""
    try:
        loop.run(actor)
        if loop.exit_status == 0:
            actor.on_stop()
            loop.flush_before_exit(_FLUSH_SECONDS)
    except RestartLimitError as error:
        logger.error("supervisor %s %s", loop.name, error)  # noqa: TRY400 -- the child's own traceback stands above
        status.last_words(str(error))
        status.escalated(Failure.of(error))
        return 1
    except SystemExit as error:
        return _status_of(error)
    except BaseException as error:
        logger.exception("actor %s ends: an error left it", loop.name)
        status.last_words(_last_line(error))
        if isinstance(error, actor.hopeless):
            status.escalated(Failure.of(error))
        return 1
    return loop.exit_status


def leave(exit_status: int) -> NoReturn:
    """End this process without returning into whatever called it."""
    try:
        if exit_status == 0:
            atexit._run_exitfuncs()  # noqa: SLF001 -- what the actor's own imports registered; os._exit skips it
        _flush_streams()
    except BaseException:  # noqa: BLE001 -- whatever it is, it must not keep the process alive
        traceback.print_exc()
        exit_status = exit_status or 1
    finally:
        os._exit(exit_status)


_FLUSH_SECONDS = 5.0
_lifelines: list[int] = []
_fd_limit: list[tuple[int, int]] = []
_descriptors: dict[str, int] = {}


def _be_child(spec: SealedSpec, ref: ActorRef, status: Status, stop_token: bytes, parent: int) -> NoReturn:
    # The stack above, and every object of the supervisor, stay as they are until os._exit: an object that were freed
    # here would close an fd by a number that means something else by then. `freeze` keeps the collector off them.
    gc.freeze()
    exit_status = 1
    try:
        if failpoints.ARMED:
            failpoints.hit("child.forked")
        linux.die_with_parent(parent)
        _forget_the_supervisor(spec, ref, status)
        linux.set_process_name(f"{linux.ACTOR_NAME}{spec.name}")
        if failpoints.ARMED:
            failpoints.hit("child.starting")
        exit_status = _live(spec, ref, status, stop_token, parent)
    except BaseException:  # noqa: BLE001 -- never into the supervisor's stack
        traceback.print_exc()
    finally:
        leave(exit_status)


def _forget_the_supervisor(spec: SealedSpec, ref: ActorRef, status: Status) -> None:
    reader, writer = spec.mailbox.reader, spec.mailbox.writer
    assert reader is not None
    assert writer is not None
    _descriptors.clear()
    _descriptors.update({"stdin": 0, "stdout": 1, "stderr": 2})
    _descriptors["mailbox, reading end"] = reader.fileno()
    _descriptors["mailbox, writing end"] = writer.fileno()
    _descriptors["supervisor"] = ref.supervisor_fd
    _descriptors["status"] = status.fileno()
    for number, fd in enumerate(_lifelines, start=1):
        _descriptors[f"lifeline {number}"] = fd
    for number, owner in enumerate(spec.fds, start=1):
        _descriptors[f"argument {number}"] = owner.fileno()
    linux.close_all_fds_except(_descriptors.values())
    hold_lifeline(status.fileno())
    for limit in _fd_limit:
        linux.set_fd_limit(limit)
    signal.set_wakeup_fd(-1)
    atexit._clear()  # noqa: SLF001 -- the supervisor's, to be run by the supervisor
    atexit.register(logging.shutdown)
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]  # noqa: SLF001 -- as its own
    multiprocessing.util._run_after_forkers()  # type: ignore[attr-defined]  # noqa: SLF001 -- children do
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]  # noqa: SLF001


def _live(spec: SealedSpec, ref: ActorRef, status: Status, stop_token: bytes, parent: int) -> int:
    reader = spec.mailbox.reader
    assert reader is not None
    hopeless: tuple[type[ActorqError], ...] = ()
    try:
        loop = Loop(spec.name, reader, status.progress, stop_token)
        _descriptors.update(loop.descriptors())
        this_process_is(ref)
        cls, args, kwargs = _load(spec)
        hopeless = cls.hopeless
        if not cls.has_children:
            os.register_at_fork(
                before=_hold_terminations, after_in_parent=_let_terminations_come, after_in_child=_leave_the_tree
            )
        loop.listen(status.fileno(), _supervisor_is_gone, 0)  # hangs up; `die_with_parent` can be lost, see below
        actor = cls.__new__(cls, *args, **kwargs)
        actor.attach_to(loop, ref, status)
        actor.__init__(*args, **kwargs)  # type: ignore[misc]  # it knows its ref and name by now
        actor.on_start()
        linux.die_with_parent(parent)  # again: the kernel forgets that when a process changes its user or group
    except Exception as error:  # noqa: BLE001 -- the spawner's
        status.failed(Failure.of(error))
        if isinstance(error, hopeless):
            status.escalated(Failure.of(error))
        return 1
    except BaseException as error:  # noqa: BLE001 -- must end this process, and not the spawner's
        status.failed(Failure.of(ActorStartError(spec.name, f"it ended with {_last_line(error)}")))
        return 1
    if failpoints.ARMED:
        failpoints.hit("child.started")
    if not actor.has_children:
        status.started()
    return run_actor(actor, loop, status)


def _supervisor_is_gone() -> None:
    os._exit(1)


def _leave_the_tree() -> None:
    """In a process that the actor's own code forked: hold no lifeline, on whose end restarts and stops wait."""
    for fd in _lifelines:
        os.dup2(0, fd, inheritable=False)  # the number stays taken: objects of the parent's still name it
    if signal.getsignal(signal.SIGTERM) is _do_nothing:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Process.terminate is how whoever forked it ends it
    _let_terminations_come()


_held = threading.local()


def _hold_terminations() -> None:
    """Until a forked process has left the tree, or one that comes at once would be lost on it."""
    _held.before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _let_terminations_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.before)


def _load(spec: SealedSpec) -> tuple[type[Actor], tuple[object, ...], dict[str, object]]:
    try:
        adopt_program(spec.program)
        loaded: tuple[type[Actor], tuple[object, ...], dict[str, object]] = unpack_message(
            spec.payload, [fd.detach() for fd in spec.fds]
        )
    except MainGuardError:
        raise
    except BaseException as error:
        reason = f"its class or its arguments cannot be imported in its process: {_last_line(error)}"
        raise ActorStartError(spec.name, reason) from error
    return loaded


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the host had closed it
            stream.flush()


def _status_of(error: SystemExit) -> int:
    """Return what the interpreter would exit with."""
    match error.code:
        case None:
            return 0
        case int(code):
            return code & 0xFF
        case text:
            sys.stderr.write(f"{text}\n")
            return 1


def _last_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]


def _do_nothing(_number: int, _frame: object) -> None:
    pass

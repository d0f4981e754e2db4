"""The root of a system: the one process that the host starts, and the supervisor of all others.

The host starts it as a fresh interpreter, so that nothing of the user's program is in it: no threads, no locks, no
modules. One fd is all that it is given; over that channel come, in this order, the host's `sys.path` (so that
this very package can be found), a `RootConfig` and the specs of the children. In the other direction it is the root's
status channel. The root ends with its host: by its pidfd, or by the end of that channel.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import select
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq import failpoints
from actorq.actors import linux
from actorq.actors.child import hold_lifeline, ignore_terminal_signals, keep_fd_limit, leave, run_actor
from actorq.actors.loop import Loop
from actorq.actors.packets import PacketSocket
from actorq.actors.ref import ActorRef, this_process_is
from actorq.actors.status import Failure, Status
from actorq.actors.supervisor import Supervisor
from actorq.actors.wire import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actorq.actors.mailbox import Mailbox
    from actorq.actors.spec import SealedSpec

ROOT_NAME = "root"
ROOT_STOP_TOKEN = b"root"
BOOT_SECONDS = 30.0


class RootConfig(NamedTuple):
    """What a root must know before it starts its first child."""

    name: str
    token: str
    host_pid: int
    incarnation: int
    is_restart: bool
    """Whether a root before this one had all its children running: then a failing start is a failing restart."""
    mailbox: Mailbox
    strategy: str
    max_restarts: int
    max_seconds: float
    log_level: int
    preload: tuple[str, ...]
    """Modules to import before the first fork."""
    specs: int
    """How many follow."""


class Root(Supervisor):
    """A supervisor whose own supervisor is the host."""

    def __init__(self, config: RootConfig, specs: Sequence[SealedSpec]) -> None:
        super().__init__(specs, config.strategy, config.max_restarts, config.max_seconds)
        self.incarnation = config.incarnation
        self._config = config

    @override
    def on_start(self) -> None:
        super().on_start()
        for child in self._children:
            child.has_run = self._config.is_restart

    def watch_host(self, channel: PacketSocket) -> None:
        """End with the host."""
        try:
            host = linux.pidfd_open(self._config.host_pid)
        except ProcessLookupError:
            self._host_is_gone()
        else:
            # Opened first, compared then: our parent cannot have changed to its namesake in between.
            if os.getppid() != self._config.host_pid:
                self._host_is_gone()
            self.listen(host, self._host_is_gone)
        # Also when the host has become another program (exec), or has closed its end in any other way.
        self.listen(channel.fileno(), self._host_is_gone, select.EPOLLRDHUP)

    def _host_is_gone(self) -> None:
        # They would die with us in any case. This way they are dead before we are.
        incarnations = [child.incarnation for child in self._children if child.incarnation is not None]
        for incarnation in incarnations:
            linux.pidfd_kill(incarnation.pidfd)
        for incarnation in incarnations:
            select.select([incarnation.pidfd], [], [], 1.0)
        os._exit(1)

    @override
    def _child_is_gone(self, spec: SealedSpec) -> None:
        self._status.gone(spec.serial)

    @override
    def _token_of_children(self) -> str:
        return self._config.token


def main(fd: int) -> None:
    """Be the root. The host's `sys.path` has been read from the channel already."""
    ignore_terminal_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # The host has blocked these two so that a ^C could not fall into the start of the interpreter.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    linux.close_all_fds_except((fd,))
    for standard in (0, 1, 2):
        _occupy(standard)
    keep_fd_limit(linux.raise_fd_limit())  # four for each child: the usual 1024 would end at some 250 of them
    exit_status = 1
    try:
        exit_status = _run(PacketSocket(fd))
    except EOFError:
        pass  # the host ended before it had told us everything
    finally:
        leave(exit_status)


def _run(channel: PacketSocket) -> int:
    config: RootConfig = _next(channel)
    specs: list[SealedSpec] = [_next(channel) for _ in range(config.specs)]
    logging.getLogger("actorq").setLevel(config.log_level)
    linux.set_process_name(f"{linux.ROOT_NAME}{config.name}")
    for module in config.preload:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    if failpoints.ARMED:
        failpoints.hit("root.starting")
    hold_lifeline(channel.fileno())
    status = Status(channel)
    mailbox = config.mailbox
    assert mailbox.reader is not None
    assert mailbox.writer is not None
    ref = ActorRef(ROOT_NAME, config.token, mailbox.writer, None)
    this_process_is(ref)
    loop = Loop(ROOT_NAME, mailbox.reader, status.progress, ROOT_STOP_TOKEN)
    root = Root.__new__(Root)
    root.attach_to(loop, ref, status)
    try:
        root.__init__(config, specs)  # type: ignore[misc]  # as for every actor: it knows its ref before
        root.watch_host(channel)
        root.on_start()
    except Exception as error:  # noqa: BLE001 -- the host's
        status.failed(Failure.of(error))
        return 1
    return run_actor(root, loop, status)


def _next(channel: PacketSocket) -> Any:
    packet = channel.receive(BOOT_SECONDS)
    if packet is None:
        raise EOFError
    return unpack(packet.data, packet.fds)


def _occupy(fd: int) -> None:
    """Let no channel get the number of a standard stream that the host had closed."""
    try:
        os.fstat(fd)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)

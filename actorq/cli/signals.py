"""What a worker does about signals, for as long as it runs."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Self

from actorq.actors.linux import ROOT_NAME, process_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from actorq.membership import Member


SAME_SECONDS = 0.1
"""Signals that come so soon after one another are one: `timeout` sends each twice, to its child and to the group."""


class StopSignals:
    """TERM and INT while a worker runs: the first asks it to stop, the second to stop at once.

    A thread of ours obeys them: what is to be done needs locks, and those must not be taken in a signal handler. The
    interpreter writes it the number as soon as the kernel delivers the signal. A handler would be called by the main
    thread alone, and that one may have gone to sleep just then, until the next signal.
    As the first process of a container, which inherits everybody's orphans, the thread also lets those go.
    A child that a module of the user's forks does about signals what was done before.
    """

    in_force: ClassVar[StopSignals | None] = None
    """The one of this process, while it is in a block."""

    def __init__(self, on_first: Callable[[], None]) -> None:
        """`on_first` is called by a thread of ours at the first signal, besides."""
        self._on_first = on_first
        self.first = threading.Event()
        """Set when the worker is to stop: by a signal, or because it has failed."""
        self.number = 0
        self.is_at_once = False
        self._member: Member | None = None
        self._count = 0
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)  # or the interpreter would not have it
        self._numbers = {signal.SIGTERM, signal.SIGINT, *([signal.SIGCHLD] if os.getpid() == 1 else [])}
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._obey, name="stop-signals")

    @property
    def name(self) -> str:
        """Name of the last signal."""
        return signal.Signals(self.number).name

    def serve(self, member: Member) -> None:
        """From here on a second signal ends the consumers of this member; before, it ends this process and so all."""
        self._member = member
        member.on_end = self.first.set
        if member.failure is not None:
            self.first.set()

    def __enter__(self) -> Self:
        self._thread.start()
        StopSignals.in_force = self
        self._wakeup_before = signal.set_wakeup_fd(self._write_end)
        for number in self._numbers:
            self._before[number] = signal.signal(number, lambda *_: None)  # without any, nothing would be written
        return self

    def __exit__(self, *_: object) -> None:
        if os.getpid() != self._pid:
            return  # a child that has come back out of the block: all is as it was already
        self._undo()
        os.close(self._write_end)
        self._thread.join()
        os.close(self._read_end)

    def leave_to_parent(self) -> None:
        """In a forked child: let go of what is the parent's, who would wait for the last end of the pipe."""
        try:
            self._undo()
        finally:
            os.close(self._write_end)
            os.close(self._read_end)

    def _undo(self) -> None:
        StopSignals.in_force = None
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wakeup_before)

    def _obey(self) -> None:
        last = -math.inf
        while read := os.read(self._read_end, 1):
            number = read[0]
            if self._wakeup_before >= 0:
                with suppress(OSError):  # full, and read in any case; or closed, and then nobody misses it
                    os.write(self._wakeup_before, read)  # a module of the user listens there
            if number not in self._numbers:
                continue
            if number == signal.SIGCHLD:
                let_orphans_go()
                continue
            if time.monotonic() - last < SAME_SECONDS:
                continue
            last = time.monotonic()
            self.number = number
            self._count += 1
            if self._count == 1:
                self.first.set()
                self._on_first()
            elif self._member is None:
                # Still starting: our processes see this one end, and end; all that was handed out is in the file.
                os._exit(128 + self.number)
            elif not self.is_at_once:
                self.is_at_once = True
                self._member.stop_at_once()


def _undo_in_child() -> None:
    if StopSignals.in_force is not None:
        StopSignals.in_force.leave_to_parent()


if hasattr(os, "register_at_fork"):  # where there is no fork, nothing is inherited
    os.register_at_fork(after_in_child=_undo_in_child)


def let_orphans_go() -> None:
    """Take the status of processes that have ended and whose parent was another one; ours are waited for elsewhere."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        stat = process_status(ended.si_pid)
        if stat is not None and stat.name.startswith(ROOT_NAME):
            return  # whoever started it takes its status; those behind it are let go with the next one
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)

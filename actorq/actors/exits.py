"""How a process ended: the kernel's word for it, and what the actor said last."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import StrEnum
from typing import override


class ExitKind(StrEnum):
    """Why an incarnation of an actor ended. OTP's words, but a kill is told from a crash."""

    NORMAL = "normal"
    """It stopped by itself, status 0."""
    SHUTDOWN = "shutdown"
    """Its supervisor stopped it, as it was asked to or with its siblings; by a kill if it took too long."""
    CRASH = "crash"
    """An error left it, or it exited with another status."""
    KILLED = "killed"
    """A signal that its supervisor did not send: somebody's kill -9, a crash in C, a kernel short of memory."""
    GONE = "gone"
    """Nobody knows any more: it ended long ago, or its supervisor ended with it."""


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Why an incarnation ended, as a word for programs and a text for people."""

    kind: ExitKind
    text: str
    """Such as `killed by signal 9 (SIGKILL)`, `exit status 3`, `normal`."""
    detail: str = ""
    """The last line of the traceback, where there was one."""

    @override
    def __str__(self) -> str:
        return f"{self.text}: {self.detail}" if self.detail else self.text


def exit_reason(wait_status: int, last_words: str = "", *, asked_to_stop: bool = False) -> ExitReason:
    """Return the reason behind a status of `waitpid`."""
    code = os.waitstatus_to_exitcode(wait_status)
    if code < 0:
        # Its supervisor kills a child that takes too long to stop: the end that was wanted, by other means.
        is_wanted = asked_to_stop and -code == signal.SIGKILL
        kind = ExitKind.SHUTDOWN if is_wanted else ExitKind.KILLED
        return ExitReason(kind, f"killed by signal {-code} ({_signal_name(-code)})")
    if code > 0:
        return ExitReason(ExitKind.CRASH, f"exit status {code}", last_words)
    if asked_to_stop:
        return ExitReason(ExitKind.SHUTDOWN, "shutdown")
    return ExitReason(ExitKind.NORMAL, "normal")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"

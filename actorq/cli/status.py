"""How a command ends: its exit status, and what is wrong in one line."""

from __future__ import annotations

import os
import sys
from enum import IntEnum

from actorq.terminal import plain


class Status(IntEnum):
    """Exit status of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOTHING = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """The command cannot do what it was asked to; the text says what to do next."""

    def __init__(self, text: str, status: Status = Status.FAILED) -> None:
        super().__init__(text, status)
        self.text = text
        self.status = status

    def __str__(self) -> str:
        return self.text


def complain(name: str, text: str, status: int) -> int:
    """Say in one line what is wrong, and return the exit status."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # Of an error with a traceback the first line says what it is, and the last one why.
    text = " ".join([lines[0], lines[-1]] if len(lines) > 1 else lines)
    print(f"{name}: {plain(text)}", file=sys.stderr)
    return status


def os_error_in_words(error: OSError) -> str:
    """Return the error without its number; what Python or we worded already stays as it is."""
    if error.strerror is None:
        return str(error)
    reason = error.strerror.lower()
    return reason if error.filename is None else f"{os.fsdecode(error.filename)}: {reason}"

"""Commands as a shell runs them: what each wrote, and the status with which it ended."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import orjson

COMMAND = [sys.executable, "-m", "actorq"]


@dataclass(frozen=True)
class Ran:
    """What a command wrote and how it ended."""

    out: str
    err: str
    status: int

    @property
    def json(self):
        return orjson.loads(self.out)

    @property
    def lines(self):
        """Of JSON, one value on each line."""
        return [orjson.loads(line) for line in self.out.splitlines()]


def environment(**more):
    clean = {key: value for key, value in os.environ.items() if key not in {"ACTORQ_QUEUE", "NO_COLOR"}}
    return clean | more


def one_line(text):
    return text.count("\n") == 1 and text.endswith("\n") and "Traceback" not in text


@contextmanager
def background(*arguments):
    """Start a command that goes on by itself; it is gone at the end of the block."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)
        for stream in filter(None, (process.stdin, process.stdout, process.stderr)):
            stream.close()


def on_a_terminal(*arguments, **env):
    """Run a command in a pseudo-terminal and return what it wrote."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=terminal, env=environment(TERM="xterm", **env))
    os.close(terminal)
    written = all_written_to(controller)
    assert process.wait(timeout=30) == 0
    return written.decode()


def all_written_to(controller):
    """Return what comes out of a pseudo-terminal until all processes have let go of it; close it then."""
    written = b""
    with suppress(OSError):  # EIO: the last one has
        while data := os.read(controller, 65536):
            written += data
    os.close(controller)
    return written

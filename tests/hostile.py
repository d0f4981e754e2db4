"""Handlers that do to their process, to their queue and to the machine what no handler should."""

from __future__ import annotations

import ctypes
import locale
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, override

from actorq import Queue, Task

# -- those that take their process with them


def segfault(task: Task) -> None:
    ctypes.string_at(0)


def abort(task: Task) -> None:
    os.abort()


def exit_0(task: Task) -> None:
    """Leave without a word, as if all were well."""
    os._exit(0)


def exit_7(task: Task) -> None:
    os._exit(7)


def killed_by_the_kernel(task: Task) -> None:
    """End as the kernel ends whom it chooses when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def real_time_signal(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 1)


def close_all_fds(task: Task) -> None:
    os.closerange(0, 1 << 20)


def take_all_fds(task: Task) -> None:
    """Leave no descriptor free, and return what needs one to be sent."""
    try:
        while True:
            _taken.append(os.dup(2))
    except OSError:
        return "r" * 200_000  # type: ignore[return-value]


_taken: list[int] = []

# -- those that end in some other way than by returning


class Odd(BaseException):
    """Not even an Exception."""


def raise_odd(task: Task) -> None:
    raise Odd("out")


def exit_by_exception(task: Task) -> None:
    sys.exit("no more")


def interrupt(task: Task) -> None:
    raise KeyboardInterrupt


def recurse(task: Task) -> None:
    recurse(task)


def take_10_gib(task: Task) -> None:
    """Ask for more memory than this process may have."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    bytearray(10 << 30)


class SilentError(Exception):
    """An error about which nothing can be said."""

    @override
    def __str__(self) -> str:
        raise ValueError("no text")

    @override
    def __repr__(self) -> str:
        raise ValueError("no text either")


def raise_silent(task: Task) -> None:
    raise SilentError


class LeavingError(Exception):
    """An error that ends whoever asks what it is."""

    @override
    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


def raise_leaving(task: Task) -> None:
    raise LeavingError


def raise_surrogates(task: Task) -> None:
    raise ValueError("\udcff and \ud800")


def raise_10_mb(task: Task) -> None:
    raise ValueError("e" * 10_000_000)


# -- those that return what cannot be kept


def too_large(task: Task) -> str:
    return "r" * (2 << 20)


def too_deep(task: Task) -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def endless(task: Task) -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def not_a_number(task: Task) -> dict[str, float]:
    return {"n": float("nan")}


class Liar:
    """Says that it is something else, and stumbles over it."""

    @property  # type: ignore[misc]  # that is the point
    @override
    def __class__(self) -> type:
        raise RuntimeError("nobody may know")


def liar(task: Task) -> object:
    return Liar()


# -- those that leave something behind


def disturb(task: Task) -> None:
    """Change everything that belongs to the process and not to the task."""
    os.chdir("/")
    os.umask(0o777)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    locale.setlocale(locale.LC_ALL, "C")
    sys.setrecursionlimit(len(_frames()) + 8)
    sys.path.clear()
    sys.stdout = sys.stderr = None
    threading.Thread(target=time.sleep, args=(3600,)).start()
    os.nice(1)


def _frames() -> list[str]:
    frame, names = sys._getframe(), []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment]
    return names


def garbage(task: Task) -> None:
    """Write what no terminal and no log should ever be sent."""
    for fd in (1, 2):
        os.write(fd, bytes(range(256)) * 16)


def hold_the_gil(task: Task) -> None:
    """Say who we are, and stay in C for a minute without ever letting go of the interpreter."""
    Path(task.data).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(60)


def leave_a_child(task: Task) -> int:
    """Fork a child that stays; return its pid."""
    pid = os.fork()
    if not pid:
        time.sleep(3600)
        os._exit(0)
    return pid


def leave_a_daemon(task: Task) -> int:
    """Fork twice: the grandchild belongs to no session and no parent of ours. Return its pid."""
    reading, writing = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(writing, str(os.getpid()).encode())
        os.close(writing)
        time.sleep(3600)
        os._exit(0)
    os.wait()
    return int(os.read(reading, 20))


# -- those that use their own queue


def publish_here(task: Task) -> str:
    return Queue(task.data).publish("more", name="innocent")


def join_here(task: Task) -> None:
    Queue(task.data).join()


def host_here(task: Task) -> None:
    with Queue(task.data).running(1, timeout=0.1):
        pass


def count_here(task: Task) -> int:
    return Queue(task.data).counts()["running"]


def crash_then_fail(task: Task) -> None:
    if task.attempt == 1:
        os._exit(1)
    raise ValueError("and then it only failed")


def raise_what_it_is_told(task: Task) -> None:
    raise ValueError(task.data)


def list_fds(task: Task) -> list[str]:
    """Return what is open in this process."""
    return [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]

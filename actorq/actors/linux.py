"""The calls that only Linux has, all of them.

Importing this module works anywhere. Each call raises `UnsupportedPlatformError` in one line where there is no Linux
kernel, so that the rest of the package can be written as if there were no other.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from actorq.errors import UnsupportedPlatformError
from actorq.stdio import STDIO, above_stdio

if TYPE_CHECKING:
    import select
    from collections.abc import Iterable, Iterator, Sequence

# The same numbers as in `select`, which lacks them elsewhere.
EPOLLIN = 0x001
EPOLLOUT = 0x004
EPOLLERR = 0x008
EPOLLHUP = 0x010

SIGKILL = 9

ACTOR_NAME = "actorq:"
ROOT_NAME = "actorq-"
"""How the names begin that actors and the supervisors of systems get with `set_process_name`, and by which others tell
that a process is one of ours."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_NAME_BYTES = 15
_SIOCOUTQ = 0x5411
_MADV_WIPEONFORK = 18
_NICE = 10
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def require_linux() -> None:
    """Raise `UnsupportedPlatformError` unless this is Linux."""
    if sys.platform != "linux":
        raise UnsupportedPlatformError(sys.platform)


# ---------------------------------------------------------------------------------------------------------------
# Processes


def fork_mark() -> memoryview:
    """Return a byte that is 1 in this process, and 0 in whatever is forked from it, in C code as well.

    The kernel wipes it in the child. To ask for the pid instead is a system call each time: 130 ns, and this takes 30.
    """
    require_linux()
    import mmap  # noqa: PLC0415

    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page.madvise(_MADV_WIPEONFORK)
    page[0] = 1
    return memoryview(page)


def pidfd_open(pid: int) -> int:
    """Return an fd that becomes readable when the process ends. `ProcessLookupError` when there is no such process."""
    require_linux()
    return os.pidfd_open(pid)


def pidfd_kill(pidfd: int, signal_number: int = SIGKILL) -> bool:
    """Signal exactly the process that the pidfd was opened for; False when it has ended already."""
    require_linux()
    try:
        signal.pidfd_send_signal(pidfd, signal_number)
    except ProcessLookupError:
        return False
    return True


def pid_of_pidfd(pidfd: int) -> int | None:
    """Return the pid behind a pidfd, None when it was reaped or lives in another pid namespace."""
    require_linux()
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:  # noqa: PTH123 -- a kernel table, not a path
        for line in info:
            if line.startswith("Pid:"):
                pid = int(line[4:])
                return pid if pid > 0 else None
    raise ValueError(f"fd {pidfd} is no pidfd")


class ProcessStatus(NamedTuple):
    """What the kernel says of a process; see proc(5)."""

    pid: int
    parent: int
    name: str
    """As `set_process_name` has it, at most 15 bytes."""
    state: str
    """A letter: R runs, S sleeps, D waits for a disk, T and t are stopped, Z is dead and was not waited for."""
    start: int
    """Clock ticks since boot: with the pid an identity."""

    def is_same(self, other: ProcessStatus | None) -> bool:
        """Tell whether the other one is of the same process, with the same parent."""
        return other is not None and self[:2] + self[4:] == other[:2] + other[4:]


def process_status(pid: int) -> ProcessStatus | None:
    """Return how the process is, or None when there is none."""
    require_linux()
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 -- a kernel table, not a path
            text = stat.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold anything, also a `)`.
    begin, end = text.index(b"(") + 1, text.rindex(b")")
    fields = text[end + 2 :].split()
    name = text[begin:end].decode(errors="replace")
    return ProcessStatus(pid, int(fields[1]), name, fields[0].decode("ascii"), int(fields[19]))


def process_start_time(pid: int) -> int | None:
    """Return when the process started, in clock ticks since boot; None when there is none. With the pid an identity."""
    require_linux()
    status = process_status(pid)
    return None if status is None else status.start


def children_of(pid: int) -> list[int]:
    """Return the processes that this one has started and that are there, none when it is not there itself."""
    require_linux()
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 -- a kernel table
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as children:  # noqa: PTH123 -- a kernel table
                found += map(int, children.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended, or one of its threads: whoever looks at processes finds them in no one moment
    return sorted(found)


def seconds_since(start: int) -> float:
    """Return how long ago a process started, from its clock ticks since boot."""
    require_linux()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start / os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """Return the kernel's name for this boot: pids and page caches of another one mean nothing."""
    require_linux()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:  # noqa: PTH123 -- a kernel table
        return file.read().strip()


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends. Only for children of single-threaded parents.

    (It fires when the *thread* that forked ends.)
    """
    _prctl(_PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:  # it ended before the call: the signal will never come
        os._exit(1)


def set_process_name(name: str) -> None:
    """Show up under this name in `ps -o comm` and `top`; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:_NAME_BYTES])


def lower_priority() -> None:
    """Let every other process go first from here on, where they want the same CPU."""
    os.nice(_NICE)


def reopen_unnamed(fd: int) -> int | None:
    """Return a second descriptor of an open file, for writing, if the file has no name any more; else None."""
    if os.fstat(fd).st_nlink:
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None  # there is no /proc here


def is_alone_with(fd: int) -> bool:
    """Tell whether nobody else has this file open: the kernel then gives a lease on it, which ends with the descriptor.

    Not every file system has leases.
    """
    import fcntl  # noqa: PLC0415

    try:
        # Who comes for the file is announced by a signal, and the usual one would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    return True


@cache
def _libc() -> Any:
    import ctypes  # noqa: PLC0415 -- 10 ms, and only the processes of a system need it

    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int | bytes) -> None:
    require_linux()
    if _libc().prctl(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}) failed")


def keep_freed_memory(limit: int) -> None:
    """Keep up to so many bytes that were freed, 32 MiB at most, for what comes next: the kernel does not get them back.

    glibc gives back what is free at the end of the heap whenever that is more than 128 KiB, so a process that handles a
    megabyte at a time gets all of its pages anew for each: a sixth of its time. Other allocators do as they please.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, limit)
        mallopt(_M_MMAP_THRESHOLD, limit)  # or each large block is of new pages as well


# ---------------------------------------------------------------------------------------------------------------
# Descriptors


def new_epoll() -> select.epoll:
    """Return an empty wait set."""
    require_linux()
    import select  # noqa: PLC0415 -- see TYPE_CHECKING above

    return select.epoll()


def seqpacket_pair(buffer_bytes: int | None) -> tuple[int, int]:
    """Return the two ends of a socket that keeps the borders of what is sent, each end with the given send buffer."""
    require_linux()
    import _socket  # noqa: PLC0415 -- that of `socket` asks the kernel four times for names that they do not have

    ends = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    if buffer_bytes is not None:
        for end in ends:
            end.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, buffer_bytes)
    one, other = (above_stdio(end.detach()) for end in ends)
    return one, other


def raise_fd_limit() -> tuple[int, int]:
    """Let this process open as many fds as it may; return the limit (soft, hard) that it had."""
    require_linux()
    import resource  # noqa: PLC0415

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    return limit


def set_fd_limit(limit: tuple[int, int]) -> None:
    """Set the limit that `raise_fd_limit` returned."""
    require_linux()
    import resource  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def unread_bytes(fd: int) -> int:
    """Return how much of the socket's send buffer is taken, by the kernel's own count."""
    require_linux()
    import fcntl  # noqa: PLC0415

    return int.from_bytes(fcntl.ioctl(fd, _SIOCOUTQ, bytes(4)), sys.byteorder)


def sealed_memfd(parts: Iterable[bytes | bytearray | memoryview]) -> int:
    """Return an fd on anonymous memory that holds the parts and that nobody can change any more."""
    require_linux()
    import fcntl  # noqa: PLC0415

    fd = above_stdio(os.memfd_create("actorq-packet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        for part in parts:
            _write_whole(fd, part)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write_whole(fd: int, part: bytes | bytearray | memoryview) -> None:
    view = memoryview(part)
    while view.nbytes:
        view = view[os.write(fd, view) :]


def read_sealed_memfd(fd: int, limit: int) -> bytes:
    """Return what `sealed_memfd` wrote. `ValueError` for any other kind of fd, or for more than `limit` bytes.

    The seals prove that it is memory, so that reading it can neither block nor be changed meanwhile by its sender.
    """
    require_linux()
    import fcntl  # noqa: PLC0415

    wanted = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & wanted != wanted:
        raise ValueError("not a sealed memfd")
    size = os.fstat(fd).st_size
    if size > limit:
        raise ValueError(f"{size} bytes, more than {limit}")
    data = bytearray()
    while len(data) < size:  # one read returns at most 2 GiB
        data += os.pread(fd, size - len(data), len(data))
    return bytes(data)


def close_all_fds_except(keep: Iterable[int]) -> None:
    """Close every fd but 0, 1, 2 and those named."""
    require_linux()
    for first, beyond in _gaps(sorted({*STDIO, *keep})):
        os.closerange(first, beyond)  # close_range(2): one call, however many there are


def _gaps(kept: Sequence[int]) -> Iterator[tuple[int, int]]:
    beyond_all = 0x7FFF_FFFF
    for fd, following in zip(kept, [*kept[1:], beyond_all], strict=True):
        if fd + 1 < following:
            yield fd + 1, following

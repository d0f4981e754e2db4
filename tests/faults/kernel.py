"""A kernel in memory: what the processes of a queue touch, in one thread at a time and from one seed.

The classes of actorq run as they are, the loop of the actors included; what is simulated lies below them: processes
with pids and tables of fds, SEQPACKET sockets that count bytes as Linux does and carry fds, epoll and poll, pidfds,
memfds, flocks, a disk that keeps apart what was synced (`CrashingFilesystem`), and one clock. `installed` puts it in
the place of the modules `os`, `time`, `select` ... inside those modules of actorq that call them.

Each process runs in a greenlet of its own. It lets another one run where it would block, and where the seed says so:
every system call is such a place, and at every one a process may be killed, stopped, or left waiting for its turn.
Whoever is dead gets `Killed` from the next call, and from every one after that: so nothing that still unwinds on its
stack, no `finally` and no handler of BaseException, has any effect on the others.
"""

from __future__ import annotations

import errno
import heapq
import inspect
import io
import itertools
import os
import select
import socket
import sys
import zlib
from array import array
from collections import deque
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, override
from unittest import mock

from greenlet import getcurrent, greenlet

import actorq.actors.linux
import actorq.actors.loop
import actorq.actors.outbox
import actorq.actors.packets
import actorq.attachments
import actorq.brokered_publisher
import actorq.brokers.channels
import actorq.brokers.compactor
import actorq.brokers.door
import actorq.brokers.publisher_broker
import actorq.brokers.registry
import actorq.brokers.session
import actorq.brokers.slot
import actorq.brokers.trees
import actorq.clock
import actorq.consumer
import actorq.direct_publisher
import actorq.joining
import actorq.publisher
import actorq.queue
import actorq.steering
import actorq.store.locks
import actorq.store.log_writer
import actorq.store.new_file
import actorq.tasks.ids
import actorq.waiting
from actorq.store.compaction import prepare
from actorq.store.failed_sync import SUFFIX
from actorq.store.filesystem import RealFilesystem
from actorq.testing import CrashingFilesystem
from actorq.testing.crashing_filesystem import SECTOR

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator, Iterator

PATH = "/queue/Queue.json"

SECONDS_PER_CALL = 3e-6
SMALLEST_BUFFER = 4608
"""What Linux makes of any smaller SO_SNDBUF."""
PACKET_OVERHEAD = 768
REMEMBERED = 400


class Killed(BaseException):
    """The process is dead. Not an Exception, because nobody can catch a kill."""


# ---------------------------------------------------------------------------------------------------------------
# What an fd stands for


class Description:
    """An open file: lives until the last fd on it, in whatever table or packet, is gone."""

    def __init__(self):
        self.refs = 0
        self.waiters: dict[Process, None] = {}
        self.polls: dict[Epoll, None] = {}

    def events(self) -> int:
        """Return what epoll would report."""
        return 0

    def released(self, kernel: Kernel) -> None:
        """The last fd on it is gone."""


class End(Description):
    """One end of a SEQPACKET pair."""

    def __init__(self, capacity):
        super().__init__()
        self.capacity = max(SMALLEST_BUFFER, capacity)
        self.used = 0  # of its own send buffer: packets that the other end has not taken
        self.queue: deque[tuple[bytes, tuple[Description, ...]]] = deque()  # what it can receive
        self.is_shut = False
        self.was_reset = False
        self.peer: End

    @override
    def events(self):
        events = 0
        if self.queue:
            events |= select.EPOLLIN
        if not self.peer.refs:
            events |= select.EPOLLIN | select.EPOLLHUP | select.EPOLLRDHUP
        elif self.is_shut:
            events |= select.EPOLLIN | select.EPOLLRDHUP
        if self.used * 4 <= self.capacity:
            events |= select.EPOLLOUT
        return events

    @override
    def released(self, kernel):
        if self.queue:
            self.peer.was_reset = True
        while self.queue:
            _, fds = self.queue.popleft()
            for description in fds:
                kernel.unref(description)
        kernel.news(self.peer)


class Pidfd(Description):
    """Readable once the process has ended."""

    def __init__(self, process):
        super().__init__()
        self.process = process

    @override
    def events(self):
        return 0 if self.process.is_alive else select.EPOLLIN


class Memory(Description):
    """A memfd."""

    def __init__(self, data=b""):
        super().__init__()
        self.data = bytearray(data)


class LockFile(Description):
    """One open of a lock file; the flock belongs to it."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    @override
    def released(self, kernel):
        kernel.flocks.get(self.path, {}).pop(self, None)


class Epoll(Description):
    """A wait set, of the process that made it."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel
        self.process = kernel.current
        self.fd = kernel.install(self.process, self)
        self.items: dict[tuple[int, Description], int] = {}

    def fileno(self):
        return self.fd

    def register(self, fd, events):
        description = self.kernel.at(fd)
        if (fd, description) in self.items:
            raise OSError(errno.EEXIST, "registered twice")
        self.items[fd, description] = events
        description.polls[self] = None

    def unregister(self, fd):
        description = self.kernel.at(fd)
        if self.items.pop((fd, description), None) is None:
            raise OSError(errno.ENOENT, "not registered")

    def forget(self, description):
        for key in [key for key in self.items if key[1] is description]:
            del self.items[key]

    def poll(self, timeout=None):
        kernel = self.kernel
        kernel.call("poll")
        if kernel.at(self.fd) is not self:  # closed, and the number is that of another file by now
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        deadline = None if timeout is None or timeout < 0 else kernel.now + timeout
        while True:
            always = select.EPOLLHUP
            ready = [
                (fd, found)
                for (fd, description), events in self.items.items()
                if (found := description.events() & (events | always))
            ]
            if ready or (deadline is not None and kernel.now >= deadline):
                if len(ready) > 1:
                    kernel.chance.shuffle(ready)
                return ready
            kernel.block([description for _, description in self.items], deadline)


# ---------------------------------------------------------------------------------------------------------------
# Processes


class Process:
    """A process: alive until it ends or is killed, whatever its thread still has on its stack."""

    def __init__(self, kernel, pid, name, parent, main):
        self.pid = pid
        self.name = name
        self.parent: Process | None = parent
        self.start = next(kernel.ticks)
        self.children: dict[Process, None] = {}
        self.table: dict[int, Description] = {}
        self.files: set[int] = set()
        self.main: Callable[[], None] | None = main
        self.on_end: Callable[[Process], None] = lambda process: None
        self.is_alive = True
        self.status: int | None = None
        self.error: BaseException | None = None
        self.attachments: dict[Any, Any] = {}
        self.works: list[Generator[Any, Any, Any]] = []
        # The scheduler's
        self.greenlet: greenlet | None = None
        self.is_blocked = False
        self.is_stopped = False
        self.wake_pending = False
        self.waits = 0
        self.waiting_on: list[Description] = []
        self.is_unwinding = False

    def __repr__(self):
        return f"{self.name}({self.pid})"


class Kernel:
    """One machine, through all its boots."""

    def __init__(self, chance: random.Random):
        self.chance = chance
        self.now = 1000.0
        self.boots = 1
        self.current: Process = None  # type: ignore[assignment]  # nobody's turn yet
        self.disk = CrashingFilesystem()
        self.flocks: dict[str, dict[LockFile, bool]] = {}
        self.processes: dict[int, Process] = {}
        self.ticks = itertools.count(1)
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.runnable: list[Process] = []
        self.following: Process | None = None
        self.hub = getcurrent()
        self.is_over = False
        self.failure: BaseException | None = None
        self.calls = 0
        self.hash = 0
        self.last: deque[str] = deque(maxlen=REMEMBERED)
        # To be set by the world
        self.next_event = 1 << 60
        """At which call `on_event` has its turn."""
        self.on_event: Callable[[Process, str], None] = lambda process, name: None
        self.on_idle: Callable[[], None] = lambda: None
        self.on_write: Callable[[str, int], None] = lambda name, inode: None
        self.standing: Callable[[], str] = str
        self.write_fault: Callable[[int, int], tuple[int, BaseException] | None] = lambda size, room: None
        self.sync_fault: Callable[[], BaseException | None] = lambda: None

    # -- what is told

    def note(self, text: str) -> None:
        """Add a line to the trace, which must be the same for the same seed."""
        self.hash = zlib.crc32(text.encode(), self.hash)
        self.last.append(f"{self.now:.6f} {text}")

    def fail(self, error: BaseException) -> None:
        """Stop everything: a promise is broken."""
        if self.failure is None:
            self.failure = error
        self.is_over = True

    # -- the scheduler

    def call(self, name: str) -> None:
        """Enter a system call: where a process learns that it is dead, and where others may have their turn."""
        process = self.current
        if process is None:
            return
        if not process.is_alive:
            raise Killed
        self.calls += 1
        self.now += SECONDS_PER_CALL
        if self.calls >= self.next_event:
            self.on_event(process, name)
            if not process.is_alive:
                raise Killed
            if self.is_over:
                self.pass_on()

    def pass_on(self) -> None:
        """Let somebody else go on, as the scheduler of a kernel may do at any time."""
        process = self.current
        self.runnable.append(process)
        self._switch(process)

    def block(self, descriptions: list[Description], deadline: float | None) -> None:
        """Sleep until there is news of one of these, or the time has come. It may wake for nothing."""
        process = self.current
        if not process.is_alive:
            raise Killed
        process.is_blocked = True
        process.waits += 1
        process.waiting_on = descriptions
        for description in descriptions:
            description.waiters[process] = None
        if deadline is not None:
            waits = process.waits
            self.at_time(deadline, lambda: self._wake(process) if process.waits == waits else None)
        self._switch(process)

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        self.call("sleep")
        deadline = self.now + seconds
        while self.now < deadline:
            self.block([], deadline)

    def news(self, description: Description) -> None:
        """Something about it has changed: whoever waits looks again."""
        for process in list(description.waiters):
            self._wake(process)

    def at_time(self, due: float, action: Callable[[], None]) -> None:
        """Have something done at a time, in nobody's name."""
        heapq.heappush(self.timers, (due, next(self.order), action))

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Have something done later, in nobody's name."""
        self.at_time(self.now + seconds, action)

    def run(self) -> None:
        """Let the processes run until somebody says that it is over."""
        self.is_over = False
        self.hub = getcurrent()
        self.following = self._pick()
        while self.following is not None:
            self.current = self.following
            self._stack_of(self.current).switch()
        self.current = None  # type: ignore[assignment]
        if self.failure is not None:
            raise self.failure

    def _wake(self, process: Process) -> None:
        if not process.is_blocked:
            return
        process.is_blocked = False
        process.waits += 1
        for description in process.waiting_on:
            description.waiters.pop(process, None)
        process.waiting_on = []
        if process.is_stopped:
            process.wake_pending = True
        else:
            self.runnable.append(process)

    def _pick(self) -> Process | None:
        """Return whose turn it is; None when it is over."""
        self.current = None  # type: ignore[assignment]
        while True:
            try:
                while self.timers and self.timers[0][0] <= self.now:
                    heapq.heappop(self.timers)[2]()
                if not self.runnable and not self.is_over:
                    self.on_idle()
            except BaseException as error:  # noqa: BLE001  it happens in the thread of some process, which is not to blame
                self.fail(error)
            if self.is_over:
                return None
            if self.runnable:
                at = self.chance.randrange(len(self.runnable)) if len(self.runnable) > 1 else 0
                process = self.runnable[at]
                self.runnable[at] = self.runnable[-1]
                self.runnable.pop()
                return process
            if not self.timers:
                self.fail(AssertionError(f"everybody waits for ever: {self.standing()}"))
                return None
            self.now = max(self.now, self.timers[0][0])

    def _stack_of(self, process: Process) -> greenlet:
        if process.greenlet is None:
            process.greenlet = greenlet(lambda: self._live(process), self.hub)
        return process.greenlet

    def _switch(self, process: Process) -> None:
        following = self._pick()
        if not process.is_alive:  # a timer has killed it, and that on its own stack: first that comes to its end
            if following is not None:
                self.runnable.append(following)
        elif following is not process:
            self.following = following
            self.hub.switch()
        self.current = process
        if not process.is_alive:
            raise Killed

    def _live(self, process: Process) -> None:
        """Be the process, from its start to its end, and say who comes next."""
        try:
            assert process.main is not None
            process.main()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001  the end of the process, not of its thread
            process.error = error
            process.status = 1
        process.greenlet = None
        if process.is_alive:
            self.end(process, 0 if process.status is None else process.status)
        if not process.is_unwinding:
            self.following = self._pick()

    # -- life and death

    def spawn(self, name: str, main: Callable[[], None] | None, parent: Process | None = None) -> Process:
        """Start a process. Without a `main` it does nothing by itself, but holds fds and dies."""
        pid = self.chance.randrange(100, 160)  # few, so that they come again
        while pid in self.processes:
            pid += 1
        process = self.processes[pid] = Process(self, pid, name, parent, main)
        if parent is not None:
            parent.children[process] = None
        self.note(f"start {process}")
        if main is not None:
            self.runnable.append(process)
        return process

    def kill(self, process: Process, status: int = -9) -> None:
        """Kill a process and, as the kernel does for us, its children. It has no effect from here on."""
        self.end(process, status)
        if process.greenlet is not None and process.greenlet is not getcurrent():
            self._unwind(process)

    def end(self, process: Process, status: int) -> None:
        """A process is gone: its fds, its locks, its children."""
        if not process.is_alive:
            return
        self.note(f"end {process} {status}")
        process.is_alive = False
        process.status = status
        del self.processes[process.pid]
        if process.parent is not None:
            process.parent.children.pop(process, None)
        if process in self.runnable:
            self.runnable.remove(process)
        for description in process.waiting_on:
            description.waiters.pop(process, None)
        process.is_blocked = False
        self._end_works(process)
        for fd in list(process.table):
            self.close_fd(process, fd)
        for fd in sorted(process.files):
            self.disk.close(fd)
        process.files.clear()
        for watcher in list(self.watchers_of(process)):
            self.news(watcher)
        process.on_end(process)
        for child in list(process.children):
            self.kill(child)

    def _end_works(self, process: Process) -> None:
        """Let the generators of a dead process end now, when that has no effect; at a collection it would have one."""
        running, self.current = self.current, process
        for work in process.works:
            if inspect.getgeneratorstate(work) != inspect.GEN_RUNNING:
                with suppress(Killed):
                    work.close()
        self.current = running

    def watchers_of(self, process: Process) -> Iterator[Description]:
        for other in self.processes.values():
            for description in other.table.values():
                if isinstance(description, Pidfd) and description.process is process:
                    yield description

    def stop(self, process: Process) -> None:
        """SIGSTOP."""
        if process.is_stopped or not process.is_alive:
            return
        process.is_stopped = True
        if process is self.current:
            process.wake_pending = True
            self._switch(process)
            return
        if process in self.runnable:
            self.runnable.remove(process)
            process.wake_pending = True

    def proceed(self, process: Process) -> None:
        """SIGCONT."""
        if process.is_stopped and process.is_alive:
            process.is_stopped = False
            if process.wake_pending:
                process.wake_pending = False
                self.runnable.append(process)

    def _unwind(self, process: Process) -> None:
        """Let the stack of a dead process come to its end; everything that it tries raises Killed."""
        running = self.current
        assert process.greenlet is not None
        process.is_unwinding = True
        process.greenlet.parent = getcurrent()  # where it goes on when that has ended
        self.current = process
        process.greenlet.switch()
        self.current = running

    def cut_power(self, disk: CrashingFilesystem) -> None:
        """End all processes at once; the machine starts again with this disk."""
        self.note("power cut")
        for process in list(self.processes.values()):
            process.on_end = lambda process: None
        for process in list(self.processes.values()):
            if process.is_alive:
                self.kill(process)
        self.flocks.clear()
        self.disk = disk
        self.boots += 1

    # -- fds

    def at(self, fd: int) -> Any:
        """Return what the fd of the running process stands for."""
        try:
            return self.current.table[fd]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def install(self, process: Process, description: Description) -> int:
        """Give a process an fd: as always the lowest that is free."""
        table = process.table
        fd = 3
        while fd in table:
            fd += 1
        table[fd] = description
        description.refs += 1
        return fd

    def close_fd(self, process: Process, fd: int) -> None:
        """Close one."""
        description = process.table.pop(fd, None)
        if description is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.unref(description)

    def unref(self, description: Description) -> None:
        """One fd less on it."""
        description.refs -= 1
        if not description.refs:
            for poll in description.polls:
                poll.forget(description)
            description.released(self)

    def pair(self, buffer_bytes: int | None) -> tuple[int, int]:
        """Return the fds of two connected ends."""
        self.call("socketpair")
        one, other = (End(425984 if buffer_bytes is None else 2 * min(buffer_bytes, 4 << 20)) for _ in range(2))
        one.peer, other.peer = other, one
        return self.install(self.current, one), self.install(self.current, other)


# ---------------------------------------------------------------------------------------------------------------
# The system calls, under the names by which actorq calls them


_kernel: Kernel = None  # type: ignore[assignment]  # the machine that runs now


def boot(kernel: Kernel) -> None:
    """Make this the machine that all calls go to."""
    global _kernel  # noqa: PLW0603
    _kernel = kernel


class SimulatedSocket:
    """`socket.socket`, of the process that made it."""

    def __init__(self, family, kind, protocol, fd):
        self._fd = fd
        self._process = _kernel.current
        self._end: End = _kernel.at(fd)

    def __del__(self):
        if self._fd >= 0 and self._process.is_alive:
            self.close()

    def gettimeout(self):
        return None

    def fileno(self):
        return self._fd

    def getsockopt(self, level, option):
        return self._end.capacity

    def _check(self):
        if self._process.table.get(self._fd) is not self._end:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def sendmsg(self, buffers, ancillary=(), flags=0):
        kernel = _kernel
        kernel.call("send")
        self._check()
        end = self._end
        peer = end.peer
        if not peer.refs or peer.is_shut:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        data = b"".join(buffers)
        if len(data) > end.capacity - 32:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        if end.used >= end.capacity:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        fds = []
        for _level, _kind, numbers in ancillary:
            for fd in array("i", numbers):
                description = kernel.at(fd)
                description.refs += 1
                fds.append(description)
        kernel.note(f"{kernel.current} sends {zlib.crc32(data):x} {len(fds)}")
        peer.queue.append((data, tuple(fds)))
        end.used += len(data) + PACKET_OVERHEAD
        kernel.news(peer)
        return len(data)

    def recvmsg(self, size, ancillary_size=0, flags=0):
        kernel = _kernel
        kernel.call("receive")
        self._check()
        end = self._end
        if end.was_reset:
            end.was_reset = False
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        if not end.queue:
            if end.is_shut or not end.peer.refs:
                return b"", [], 0, None
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        data, descriptions = end.queue.popleft()
        end.peer.used -= len(data) + PACKET_OVERHEAD
        kernel.news(end.peer)
        ancillary = []
        if descriptions:
            fds = array("i")
            for description in descriptions:
                fds.append(kernel.install(kernel.current, description))
                kernel.unref(description)
            ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, fds.tobytes()))
        return data, ancillary, 0, None

    def shutdown(self, how):
        _kernel.call("shutdown")
        self._end.is_shut = True
        _kernel.news(self._end)

    def close(self):
        fd, self._fd = self._fd, -1
        if fd < 0 or not self._process.is_alive:
            return
        if self._process.table.get(fd) is self._end:
            _kernel.close_fd(self._process, fd)

    def detach(self):
        fd, self._fd = self._fd, -1
        return fd


class SimulatedPoll:
    """`select.poll`."""

    def __init__(self):
        self._items: dict[int, int] = {}

    def register(self, fd, events):
        self._items[fd] = events

    def unregister(self, fd):
        del self._items[fd]

    def poll(self, milliseconds=None):
        kernel = _kernel
        kernel.call("poll")
        deadline = None if milliseconds is None else kernel.now + milliseconds / 1000
        descriptions = {fd: kernel.at(fd) for fd in self._items}
        while True:
            always = select.EPOLLHUP
            ready = [
                (fd, found)
                for fd, description in descriptions.items()
                if (found := description.events() & (self._items[fd] | always))
            ]
            if ready or (deadline is not None and kernel.now >= deadline):
                return ready
            kernel.block(list(descriptions.values()), deadline)


class SimulatedMemory:
    """`mmap.mmap` over a memfd."""

    def __init__(self, fd, length):
        self.content = _kernel.at(fd).data

    def __setitem__(self, where, value):
        _kernel.call("store")
        self.content[where] = value

    def close(self):
        pass


class SimulatedNumbers:
    """A `memoryview` of simulated memory, cast to numbers of eight bytes."""

    def __init__(self, memory):
        self.memory = memory

    def cast(self, form):
        assert form == "Q"
        return self

    def __getitem__(self, index):
        return int.from_bytes(self.memory.content[8 * index : 8 * index + 8], sys.byteorder)

    def __setitem__(self, index, value):
        self.memory[8 * index : 8 * index + 8] = value.to_bytes(8, sys.byteorder)

    def release(self):
        pass


class Calls:
    """Stands where actorq says `os`. What is not here would reach the real machine, so it raises."""

    O_RDONLY, O_WRONLY, O_RDWR, O_CREAT, O_EXCL = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_EXCL
    O_NOFOLLOW, O_CLOEXEC, O_NONBLOCK = os.O_NOFOLLOW, os.O_CLOEXEC, os.O_NONBLOCK
    MFD_CLOEXEC, MFD_ALLOW_SEALING = os.MFD_CLOEXEC, os.MFD_ALLOW_SEALING
    fspath, strerror, PathLike = staticmethod(os.fspath), staticmethod(os.strerror), os.PathLike

    @staticmethod
    def getpid():
        process = _kernel.current
        if not process.is_alive:
            raise Killed
        return process.pid

    @staticmethod
    def getppid():
        parent = _kernel.current.parent
        return parent.pid if parent is not None and parent.is_alive else 1

    @staticmethod
    def kill(pid, number):
        _kernel.call("kill")
        if pid not in _kernel.processes:
            raise ProcessLookupError(errno.ESRCH, "no such process")
        _kernel.kill(_kernel.processes[pid], -number)
        if not _kernel.current.is_alive:
            raise Killed

    @staticmethod
    def _exit(status):
        _kernel.call("exit")
        _kernel.end(_kernel.current, status)
        raise Killed

    @staticmethod
    def nice(increment):
        """Change nothing: whose turn it is, the seed says."""

    @staticmethod
    def close(fd):
        if not _kernel.current.is_alive:
            raise Killed
        _kernel.close_fd(_kernel.current, fd)

    @staticmethod
    def dup(fd):
        return _kernel.install(_kernel.current, _kernel.at(fd))

    @staticmethod
    def urandom(size):
        return _kernel.chance.randbytes(size)

    @staticmethod
    def memfd_create(name, flags=0):
        return _kernel.install(_kernel.current, Memory())

    @staticmethod
    def ftruncate(fd, length):
        description = _kernel.at(fd)
        if isinstance(description, Memory):
            description.data[:] = bytes(length)

    @staticmethod
    def pread(fd, length, offset):
        return bytes(_kernel.at(fd).data[offset : offset + length])

    @staticmethod
    def pwrite(fd, data, offset):
        return len(data)

    @staticmethod
    def pidfd_open(pid):
        _kernel.call("pidfd_open")
        if pid not in _kernel.processes:
            raise ProcessLookupError(errno.ESRCH, "no such process")
        return _kernel.install(_kernel.current, Pidfd(_kernel.processes[pid]))


def pidfd_send_signal(fd, number):
    _kernel.call("pidfd_send_signal")
    process = _kernel.at(fd).process
    if not process.is_alive:
        raise ProcessLookupError(errno.ESRCH, "no such process")
    if number:
        _kernel.kill(process, -number)


def open_table(path, *_args, **_kwargs):
    """Open a file of /proc."""
    if path.endswith("boot_id"):
        return io.StringIO(f"boot-{_kernel.boots}\n")
    process = _kernel.processes.get(int(path.split("/")[2]))
    if process is None:
        raise FileNotFoundError(errno.ENOENT, "no such process")
    parent = 1 if process.parent is None else process.parent.pid
    return io.BytesIO(b"%d (python) S %d %s%d 0" % (process.pid, parent, b"0 " * 17, process.start))


def _pair(buffer_bytes):
    return _kernel.pair(buffer_bytes)


def sealed_memfd(parts):
    return _kernel.install(_kernel.current, Memory(b"".join(parts)))


def read_sealed_memfd(fd, limit):
    return bytes(_kernel.at(fd).data)


def _monotonic():
    process = _kernel.current
    if process is not None and not process.is_alive:
        raise Killed
    _kernel.now += 1e-6
    return _kernel.now


def _wall():
    return 1_795_500_000.0 + _kernel.now


def _sleep(seconds):
    _kernel.sleep(seconds)


def _work(*arguments):
    work = prepare(*arguments)
    _kernel.current.works.append(work)
    return work


class Attachments:
    """The dictionary of `actorq.attachments`, of which every process has its own."""

    def __setitem__(self, path, attachment):
        _kernel.current.attachments[path] = attachment

    def get(self, path):
        return _kernel.current.attachments.get(path)

    def pop(self, path, default=None):
        return _kernel.current.attachments.pop(path, default)


class NoUnderstudy:
    """In the place of the consumer's second thread: the handlers of the simulation call `stand_in` as it would."""

    looks = 0
    is_parked = is_speaking = False

    def __init__(self, principal):
        principal.has_understudy = True

    def start(self):
        pass


# -- locks


def _open_lock_file(path):
    _kernel.call("open")
    return _kernel.install(_kernel.current, LockFile(os.fspath(path))), os.fspath(path)


def _lock(fd, *, shared):
    _kernel.call("flock")
    description = _kernel.at(fd)
    holders = _kernel.flocks.setdefault(description.path, {})
    if holders and not (shared and all(holders.values())):
        return False
    holders[description] = shared
    return True


def _unlock(fd):
    _kernel.call("unlock")
    description = _kernel.at(fd)
    _kernel.flocks.get(description.path, {}).pop(description, None)


def holds_lock(process: Process, path: str) -> bool:
    """Say whether a process holds this lock for itself."""
    return any(
        not shared and description in process.table.values()
        for description, shared in _kernel.flocks.get(path, {}).items()
    )


# -- the disk


def _open(self, path, flags, mode=0o600):
    _kernel.call("open")
    fd = _kernel.disk.open(os.fspath(path), flags, mode)
    _kernel.current.files.add(fd)
    if flags & os.O_CREAT and os.fspath(path).endswith(SUFFIX):
        _kernel.on_write("marked", -1)
    return fd


def _close(self, fd):
    process = _kernel.current
    if not process.is_alive:
        raise Killed
    process.files.discard(fd)
    _kernel.disk.close(fd)


def _pread(self, fd, length, offset):
    _kernel.call("read")
    return _kernel.disk.pread(fd, length, offset)


def _pwritev(self, fd, buffers, offset):
    kernel = _kernel
    kernel.call("write")
    data = b"".join(buffers)
    inode = kernel.disk._open_files[fd]
    kernel.on_write("write", inode)
    fault = kernel.write_fault(len(data), len(kernel.disk._inodes[inode].live) - offset)
    if fault is None:
        kernel.note(f"{kernel.current} writes {len(data)} {zlib.crc32(data):x}")
        written = kernel.disk.pwritev(fd, [data], offset)
        kernel.on_write("written", inode)
        return written
    taken, error = fault
    if taken and (offset + taken + 1) % SECTOR == 0:
        taken -= 1  # the one byte that is left of the sector, if it is lost, looks like a changed bit: README says so
    kernel.note(f"{kernel.current} writes {taken} of {len(data)}: {error!r}")
    written = kernel.disk.pwritev(fd, [data[:taken]], offset)
    if isinstance(error, Killed):
        kernel.end(kernel.current, -9)
    elif written:
        kernel.on_write("written", inode)  # it may be all of a commit, but for the bracket behind it
        return written
    raise error


def _sync(name):
    def sync(self, what):
        kernel = _kernel
        kernel.call(name)
        is_file = isinstance(what, int)
        inode = kernel.disk._open_files[what] if is_file else -1
        kernel.on_write("sync", inode)
        error = kernel.sync_fault()
        kernel.note(f"{kernel.current} {name} {error!r}")
        if error is not None:
            kernel.disk.fail_call(len(kernel.disk.calls), error)
        try:
            getattr(kernel.disk, name)(what if is_file else os.fspath(what))
        except OSError:
            kernel.on_write("sync failed", inode)
            raise
        kernel.on_write("synced", inode)

    return sync


def _ftruncate(self, fd, length):
    _kernel.call("ftruncate")
    _kernel.on_write("write", _kernel.disk._open_files[fd])
    _kernel.note(f"{_kernel.current} cuts at {length}")
    _kernel.disk.ftruncate(fd, length)


def _plain(name):
    def plain(self, *arguments):
        _kernel.call(name)
        if name in {"rename", "link", "unlink"}:
            _kernel.on_write("write", -1)
            _kernel.note(f"{_kernel.current} {name}")
        return getattr(_kernel.disk, name)(*arguments)

    return plain


_FILES = {
    "open": _open,
    "close": _close,
    "pread": _pread,
    "pwritev": _pwritev,
    "fdatasync": _sync("fdatasync"),
    "fsync": _sync("fsync"),
    "fsync_dir": _sync("fsync_dir"),
    "ftruncate": _ftruncate,
} | {name: _plain(name) for name in ("fstat", "lstat", "length", "rename", "link", "unlink", "listdir", "kind", "room")}


@contextmanager
def installed() -> Iterator[None]:
    """Let the modules of actorq call this kernel instead of Linux."""
    calls = Calls()
    clock = SimpleNamespace(monotonic=_monotonic, time=_wall, sleep=_sleep)
    places: list[tuple[Any, dict[str, Any]]] = [
        (
            actorq.actors.linux,
            {
                "os": calls,
                "open": open_table,
                "signal": SimpleNamespace(pidfd_send_signal=pidfd_send_signal),
                "seqpacket_pair": _pair,
                "new_epoll": lambda: Epoll(_kernel),
                "sealed_memfd": sealed_memfd,
                "read_sealed_memfd": read_sealed_memfd,
            },
        ),
        (
            actorq.actors.packets,
            {
                "os": calls,
                "time": clock,
                "select": SimpleNamespace(
                    poll=SimulatedPoll,
                    POLLIN=select.POLLIN,
                    POLLOUT=select.POLLOUT,
                    POLLRDHUP=select.POLLRDHUP,
                ),
                "_Socket": SimulatedSocket,
            },
        ),
        (actorq.actors.outbox, {"os": calls}),
        (actorq.actors.loop, {"time": clock}),
        (actorq.clock, {"time": clock}),
        (actorq.tasks.ids, {"os": calls}),
        (actorq.attachments, {"_attachments": Attachments()}),
        (actorq.brokers.publisher_broker, {"os": calls}),
        (actorq.brokers.compactor, {"prepare": _work, "reopen_unnamed": lambda _: None}),
        (actorq.brokers.registry, {"os": calls}),
        (actorq.brokers.trees, {"os": calls}),
        (actorq.brokers.channels, {"os": calls}),
        (actorq.brokers.session, {"os": calls, "time": clock}),
        (
            actorq.brokers.slot,
            {"os": calls, "mmap": SimpleNamespace(mmap=SimulatedMemory), "memoryview": SimulatedNumbers},
        ),
        (actorq.consumer, {"os": calls, "time": clock, "Understudy": NoUnderstudy, "warnings": mock.Mock()}),
        (actorq.publisher, {"time": clock}),
        (actorq.brokered_publisher, {"time": clock}),
        (actorq.direct_publisher, {"os": calls, "time": clock}),
        (actorq.queue, {"time": clock}),
        (actorq.waiting, {"time": clock, "is_stopped": lambda path: False}),
        (actorq.steering, {"time": clock}),
        (actorq.joining, {"time": clock, "is_starting": lambda path: True}),
        (actorq.brokers.door, {"knock": lambda path: None}),
        (actorq.store.log_writer, {"os": calls}),
        (actorq.store.new_file, {"os": calls}),
        (
            actorq.store.locks,
            {
                "os": calls,
                "time": clock,
                "_open_lock_file": _open_lock_file,
                "_lock": _lock,
                "_lock_by_filelock": lambda fd: _lock(fd, shared=False),
                "_unlock": _unlock,
                "_identity_of": os.fspath,  # nobody puts another file in its place
                "_holder_of": lambda fd: None,
            },
        ),
        (RealFilesystem, _FILES),
    ]
    missing = object()
    before = [(place, name, vars(place).get(name, missing)) for place, names in places for name in names]
    try:
        for place, names in places:
            for name, stand_in in names.items():
                setattr(place, name, stand_in)
        yield
    finally:
        for place, name, value in before:
            if value is missing:
                delattr(place, name)
            else:
                setattr(place, name, value)

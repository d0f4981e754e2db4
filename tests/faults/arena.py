"""Where a queue is tormented: a folder, a host that is started again whenever it dies, and eyes on all of it.

harness (this process: single-threaded, follows the log, deals the blows)
├── host ── supervisor ── brokers, consumers, publishers        tests/faults/host.py
└── direct publishers, which publish while nobody hosts
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import orjson

from actorq import Queue, failpoints
from actorq.actors.linux import boot_id, die_with_parent, pidfd_kill, pidfd_open, process_start_time
from actorq.chaos import parent_of
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.store.verify import verify
from tests.faults import load
from tests.faults.checker import Observed, Report, check
from tests.faults.history import Process, Recorder, read_history
from tests.faults.ledger import Ledger
from tests.helpers import named_memory

if TYPE_CHECKING:
    from collections.abc import Callable

MARK_VARIABLE = "ACTORQ_TEST_MARK"
"""In the environment of every process of one arena, so that none is overlooked."""

NOT_OF_THE_HOST = ("direct", "most_open")

SETTLE_SECONDS = 60.0
"""How long after the last fault every task must be done or dead."""

STOP_SECONDS = 60.0
LOG_FILE = "complaints.log"
TELL_AGAIN_SECONDS = 0.5
"""Whoever has just been forked may not hear it: what is raised in a callback of a fork goes no further."""

DIRECT_SECONDS = 0.03
PUMP_SECONDS = 0.002
LOG_SECONDS = 0.05


class Load(NamedTuple):
    """How much is going on."""

    consumers: int = 3
    publishers: int = 2
    threads: int = 2
    direct: int = 1
    rest: float = 0.03
    """Seconds, on average, between two publishes of each publisher."""
    most_open: int = 2000
    """Beyond so many unfinished tasks the publishers pause, so that the end of the faults is soon that of the work."""


@dataclass
class Arena:
    """One queue under torment."""

    folder: Path
    load: Load
    hosts: int = 0
    """How many have been started."""
    roles: dict[str, Process] = field(default_factory=dict)
    """Who plays which role now."""
    all_hosts: set[Process] = field(default_factory=set)
    """Every host that there was, this one included."""

    def __post_init__(self) -> None:
        self.path = self.folder / load.QUEUE_FILE
        history = self.folder / "history"
        history.mkdir()
        self._mark = secrets.token_hex(8)
        self._environment = {load.HISTORY_VARIABLE: str(history), MARK_VARIABLE: self._mark}
        os.environ.update(self._environment)
        self._semaphores = named_memory()
        self._descriptors = len(os.listdir("/proc/self/fd"))
        self.recorder = Recorder(history)
        self.ledger = Ledger()
        self._reader: LogReader | None = None
        self._next_look = 0.0
        self._host: subprocess.Popen[bytes] | None = None
        self._said = b""
        self._heard: set[str] = set()
        self._direct: dict[str, int] = {}
        self.is_paused = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of the arena."""
        if self._host is not None:
            self._host.kill()
            self._host.wait()
            self._forget_host()
        for pid in self._direct.values():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._direct.clear()
        deadline = time.monotonic() + 10
        while (alive := marked(self._mark)) and time.monotonic() < deadline:
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for name in self._environment:
            os.environ.pop(name, None)

    # -- processes

    def start_host(self) -> None:
        """Start a host; what it says is heard by `pump`."""
        assert self._host is None
        arguments = [f"--{name}={value}" for name, value in self.load._asdict().items() if name not in NOT_OF_THE_HOST]
        with (self.folder / LOG_FILE).open("ab") as log:
            self._host = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.host", str(self.path), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # ^C is for the harness alone
            )
        assert self._host.stdout is not None
        os.set_blocking(self._host.stdout.fileno(), False)
        self.hosts += 1
        self._said = b""
        self._heard.clear()
        self.roles["host"] = process_of(self._host.pid)
        self.all_hosts.add(self.roles["host"])

    @property
    def is_started(self) -> bool:
        """Whether there is a host, however far it has got."""
        return self._host is not None

    @property
    def is_hosted(self) -> bool:
        """Whether the host has said that its processes run."""
        return self._host is not None and "running" in self._heard

    def start_direct_publishers(self) -> None:
        """Start those that are missing."""
        for number in range(1, self.load.direct + 1):
            role = f"direct-{number}"
            if role not in self._direct:
                pid = os.fork()
                if pid == 0:
                    self._be_direct_publisher()
                self._direct[role] = pid
                self.roles[role] = process_of(pid)

    def _be_direct_publisher(self) -> None:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            die_with_parent(os.getppid())
            self._log_errors()
            queue, dice, mine = Queue(self.path), random.Random(), load.recorder()
            while True:
                if load.may_publish():
                    load.publish_some(queue, dice, "direct", mine, timeout=DIRECT_SECONDS)
                time.sleep(dice.uniform(0, 2 * DIRECT_SECONDS))
        finally:
            os._exit(status)

    def _log_errors(self) -> None:
        """In a child: what it complains about goes where the complaints of the host go."""
        log = os.open(self.folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 2)
        os.close(log)

    def fork(self, action: Callable[[], object], points: Path | None = None) -> int:
        """Run an action in a child of the harness, armed with these fail points; return its pid."""
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            die_with_parent(os.getppid())
            self._log_errors()
            if points is not None:
                failpoints.arm(points)
            action()
            status = 0
        except OSError:
            status = 2
        finally:
            os._exit(status)

    def strike(self, role: str, number: int, action: str) -> int | None:
        """Send a signal to who plays a role now; return a pidfd of the victim, or None if nobody does."""
        process = self.roles.get(role)
        if process is None:
            return None
        try:
            pidfd = pidfd_open(process.pid)
        except ProcessLookupError:
            return None
        if not self._plays(role, process):
            os.close(pidfd)
            return None
        self.recorder.fault(role, process, action)
        pidfd_kill(pidfd, number)
        return pidfd

    def _plays(self, role: str, process: Process) -> bool:
        """Whether the process is alive and in its place in the tree; asked while we hold a pidfd of it."""
        if process_start_time(process.pid) != process.start or is_zombie(process.pid):
            return False
        above = {"host": os.getpid(), "supervisor": self.roles["host"].pid}
        if role.startswith("direct"):
            return True
        supervisor = self.roles.get("supervisor")
        return parent_of(process.pid) == above.get(role, supervisor.pid if supervisor else 0)

    # -- eyes

    def pump(self, seconds: float = PUMP_SECONDS) -> None:
        """Wait so long; see what the host says, who has died, what is new in the log."""
        host = self._host
        if host is None or host.stdout is None:
            time.sleep(seconds)
        else:
            poll = select.poll()
            poll.register(host.stdout.fileno(), select.POLLIN)
            if poll.poll(seconds * 1000):
                self._listen(host)
            if host.poll() is not None:
                self._forget_host()
        for role, pid in list(self._direct.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._direct[role]
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOG_SECONDS
            self.read_log()
            self._hold_back()

    def _listen(self, host: subprocess.Popen[bytes]) -> None:
        assert host.stdout is not None
        data = host.stdout.read(1 << 16)
        if not data:
            host.wait(STOP_SECONDS)  # it has closed its output: it is on its way out
            return
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            value = orjson.loads(line)
            if isinstance(value, str):
                self._heard.add(value)
            else:
                for role, pid in value.items():
                    if role not in self.roles or self.roles[role].pid != pid:
                        self.roles[role] = process_of(pid)

    def _forget_host(self) -> None:
        host, self._host = self._host, None
        assert host is not None
        for stream in (host.stdin, host.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._heard.clear()
        self.roles = {role: process for role, process in self.roles.items() if role.startswith("direct")}

    def read_log(self) -> None:
        """Take into the ledger what was committed since."""
        if self._reader is None:
            if not self.path.exists():
                return
            self._reader = LogReader(self.path)
            (self.folder / load.SEEN_FILE).write_text(str(self._reader.generation))
        moved = self._reader.moved()
        for batch in self._reader.batches():
            self.ledger.apply(batch)
        if moved:
            self._reader.close()
            self._reader = None
            self.read_log()

    def pause(self, is_paused: bool) -> None:
        """Have all publishers pause, or go on."""
        self.is_paused = is_paused
        self._hold_back()

    def _hold_back(self) -> None:
        pause = self.folder / load.PAUSE_FILE
        if self.ledger.open > self.load.most_open or self.is_paused:
            pause.touch()
        else:
            pause.unlink(missing_ok=True)

    # -- the end

    def settle(self) -> float | None:
        """Let the work come to its end, without faults; return the seconds that it took, None if it did not."""
        begin = time.monotonic()
        self.pause(is_paused=True)
        told = 0.0
        asked: subprocess.Popen[bytes] | None = None
        while time.monotonic() - begin < SETTLE_SECONDS:
            if time.monotonic() - told > TELL_AGAIN_SECONDS:
                told = time.monotonic()
                for pid in self._direct.values():
                    os.kill(pid, signal.SIGTERM)
            if self._host is None:
                self.start_host()
            if asked is not self._host and self.is_hosted:
                asked = self._host
                self.tell("quiet")
            self.pump()
            if "quiet" in self._heard:
                self.read_log()
                if not self._direct and not self.ledger.open:
                    return time.monotonic() - begin
        return None

    def stop(self) -> list[str]:
        """Stop the host in order; return what is left over that should not be."""
        leftovers = [] if self._host is None else self._held_dead()
        if self._host is not None:
            self.tell("stop")
            try:
                status = self._host.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                leftovers.append(f"the host did not stop within {STOP_SECONDS:g} s")
            else:
                if status:
                    leftovers.append(f"the host ended with status {status}")
                self._forget_host()
        self.read_log()
        leftovers += [f"process {pid} still runs" for pid in self._still_running()]
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self.recorder.close()
        leftovers += [f"semaphore /dev/shm/{name}" for name in sorted(self._new_semaphores())]
        more = len(os.listdir("/proc/self/fd")) - self._descriptors
        if more > 0:
            leftovers.append(f"{more} descriptors more than before in the harness")
        allowed = re.compile(re.escape(self.path.name) + r"(\.lock|\.host|\.torn-.*)?")
        ours = {"history", LOG_FILE, load.PAUSE_FILE, load.SEEN_FILE}
        leftovers += [
            f"file {entry.name}"
            for entry in self.folder.iterdir()
            if entry.name not in ours and not allowed.fullmatch(entry.name)
        ]
        return leftovers

    def judge(self, settled_seconds: float | None, leftovers: list[str]) -> Report:
        """Hold everything against everything."""
        state = QueueState()
        reader = LogReader(self.path)
        for batch in reader.batches():
            state.apply(batch)
        reader.close()
        states = {state.id_of(seq): str(state.state_of(seq)) for seq in range(len(state))}
        # What has left with a compaction is done, and the file says how many there were.
        gone = [task for task, row in self.ledger.tasks.items() if row.state == "done" and task not in states]
        if len(gone) == state.removed.get("done", 0):
            states |= dict.fromkeys(gone, "done")
        observed = Observed(
            settled_seconds,
            states,
            self.path.read_bytes(),
            str(verify(self.path, boot_id=boot_id()).verdict),
            tuple(leftovers),
        )
        return check(read_history(self.folder / "history"), self.ledger, observed)

    def tell(self, command: str) -> None:
        """Give the host a command, if there is one."""
        if self._host is None:
            return
        assert self._host.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has just died; that is noticed elsewhere
            self._host.stdin.write(command.encode() + b"\n")
            self._host.stdin.flush()

    def _held_dead(self) -> list[str]:
        """Return which dead processes somebody keeps hold of, once the last deaths have made their way around."""
        deadline = time.monotonic() + 3
        while (found := held_dead(self.roles)) and time.monotonic() < deadline:
            self.pump(0.02)
        return found

    def _new_semaphores(self) -> set[str]:
        """Return those that stay. Other programs have some too: theirs are in use, or go within a moment."""
        deadline = time.monotonic() + 5
        while True:
            new = named_memory() - self._semaphores - shared_memory_in_use()
            if not new or time.monotonic() >= deadline:
                return new
            time.sleep(0.01)

    def _still_running(self) -> set[int]:
        deadline = time.monotonic() + 5
        while (found := marked(self._mark)) and time.monotonic() < deadline:
            time.sleep(0.01)
        return found


def process_of(pid: int) -> Process:
    """Return a process by its id; a start time of 0 when it has died already."""
    return Process(pid, process_start_time(pid) or 0)


def is_zombie(pid: int) -> bool:
    """Whether it is dead and only not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def marked(mark: str) -> set[int]:
    """Return the processes that were started with this mark in their environment, other than this one."""
    sought = f"{MARK_VARIABLE}={mark}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if sought in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def held_dead(roles: dict[str, Process]) -> list[str]:
    """Return which processes of the tree keep a descriptor of a process that is dead and reaped."""
    found = []
    for role, process in roles.items():
        if role == "host" or role.startswith("direct"):
            continue
        with contextlib.suppress(FileNotFoundError):  # it has been stopped meanwhile, with the other publishers
            for fd in Path(f"/proc/{process.pid}/fdinfo").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if "Pid:\t-1\n" in fd.read_text():
                        found.append(f"{role} keeps descriptor {fd.name}, of a process that is dead")
    return found


def wait_for_end(pidfd: int, seconds: float) -> bool:
    """Return whether the process has ended within so many seconds."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def shared_memory_in_use() -> set[str]:
    """Return the names in /dev/shm that a living process has mapped: once ours have ended, they are somebody else's."""
    names = set()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                names |= set(re.findall(r" /dev/shm/(\S+)$", (process / "maps").read_text(), re.MULTILINE))
    return names

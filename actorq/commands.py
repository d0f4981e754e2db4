"""What the commands do, apart from the demo. Each returns an exit status and writes to the terminal it is given."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from actorq.actors.linux import boot_id, process_start_time, process_stat, require_linux
from actorq.clock import SYSTEM_CLOCK, from_iso
from actorq.errors import PayloadError, PublishError, QueueLockedError
from actorq.membership import member_of
from actorq.queue import Queue
from actorq.store.compaction import compact
from actorq.store.fold import QueueState
from actorq.store.locks import HostLock, WriterLock, is_hosted, read_owner
from actorq.store.log_reader import LogReader
from actorq.store.repair import plan_repair
from actorq.store.verify import Verdict, verify
from actorq.tasks.task import check_name
from actorq.terminal import Style, ago, aligned, bytes_in_words, count_of, plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType
    from typing import BinaryIO

    from actorq.membership import Member
    from actorq.store.fold import ConsumerState
    from actorq.store.repair import Plan
    from actorq.terminal import Terminal

LOCK_SLICE_SECONDS = 0.2
"""How long a starting worker waits for the lock before it looks whether it was told to stop."""

ROOT_NAME_PREFIX = "actorq-"
"""How the names of the processes begin that a system starts and waits for by itself."""

MAX_LINE_BYTES = 8 << 20
"""Of a line of standard input: white space and escapes included, no payload needs more."""

READ_BYTES = 1 << 20

IDS_SHOWN = 20
"""Of the tasks, commits and places that a plan of repair names; JSON has all."""

TASKS_SHOWN = 3
"""Of what a consumer holds; the rest is counted."""


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


# ---------------------------------------------------------------------------------------------------------------
# worker


class WorkerOptions(NamedTuple):
    """What a worker was asked for."""

    target: str
    consumers: int | None
    timeout: float
    shutdown_timeout: float
    max_tasks: int | None


def work(options: WorkerOptions, terminal: Terminal, *, as_json: bool) -> int:
    """Run consumers for the handlers of a Queue object until TERM or INT; then let them finish what they run."""
    require_linux()
    queue = load_queue(options.target)
    names = sorted(queue.handlers)
    with StopSignals() as signals, ExitStack() as stack:
        member = run_member(queue, options, signals=signals, stack=stack, terminal=terminal)
        if member is None:
            return Status.DONE
        signals.serve(member)
        running = len(member.pids())
        if as_json:
            ready = {"event": "ready", "queue": str(queue.path), "consumers": running, "names": names}
            terminal.json(ready | {"hosting": member.host is not None})
        role = "hosts" if member.host is not None else "has joined the host of"
        terminal.line(
            f"ready: {count_of(running, 'consumer')} for {plain(', '.join(names))}; {role} {plain(str(queue.path))}; "
            "TERM or Ctrl-C lets them finish, a second one stops at once"
        )
        tell_systemd("READY=1")
        signals.first.wait()
        if member.failure is not None:
            raise member.failure
        tell_systemd("STOPPING=1")
        terminal.line(f"stopping on {signals.name}: tasks that run are finished first")
    counts = queue.counts()
    if as_json:
        terminal.json({"event": "stopped", "at_once": signals.is_at_once, "counts": counts})
    how = "stopped at once, unfinished tasks are back in the queue" if signals.is_at_once else "stopped"
    terminal.line(f"{how}: {counts_in_words(counts)}")
    return 128 + signals.number if signals.is_at_once else Status.DONE


def load_queue(target: str) -> Queue:
    """Import MODULE:QUEUE as if from the current directory. Raises CommandError."""
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise CommandError(f"{target!r} is not MODULE:QUEUE; write it like `app:queue`", Status.USAGE)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # The user's own module failed: its error and the place, without forty lines of importlib.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if "importlib" in frame.filename else f" ({frame.filename}, line {frame.lineno})"
        text = f"importing {module_name!r} failed: {type(error).__name__}: {error}{where}"
        if isinstance(error, ModuleNotFoundError):
            text += "; run this in the directory of the module, or set PYTHONPATH"
        raise CommandError(text) from error
    queue: Any = module
    for name in attribute.split("."):
        if not hasattr(queue, name):
            raise CommandError(f"{module_name!r} has no {attribute!r}; name the variable that holds its Queue")
        queue = getattr(queue, name)
    if not isinstance(queue, Queue):
        raise CommandError(f"{target} is a {type(queue).__name__}, not a Queue; name the variable that holds one")
    if not queue.handlers:
        raise CommandError(
            f"{target} has no handlers; put @{attribute}.handler(NAME) on the functions that do the work"
        )
    return queue


def run_member(
    queue: Queue, options: WorkerOptions, *, signals: StopSignals, stack: ExitStack, terminal: Terminal
) -> Member | None:
    """Run consumers for as long as the stack lives; None when told to stop while waiting for a host that hangs."""
    deadline = time.monotonic() + options.timeout
    is_first = True
    while not signals.first.is_set():
        running = queue.running(
            options.consumers,
            timeout=min(LOCK_SLICE_SECONDS, options.timeout),
            shutdown_timeout=options.shutdown_timeout,
            max_tasks=options.max_tasks,
        )
        try:
            stack.enter_context(running)
        except QueueLockedError as error:
            if time.monotonic() >= deadline:
                raise
            if is_first:
                terminal.line(f"waiting for process {error.pid or 'unknown'}, which keeps {plain(str(queue.path))}")
                is_first = False
            continue
        return member_of(queue.path)
    return None


def tell_systemd(state: str) -> None:
    """Tell a service manager that waits for it how we stand; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, suppress(OSError):
            manager.sendto(state.encode(), address.replace("@", "\0", 1))


class StopSignals:
    """TERM and INT while a worker runs: the first asks it to stop, the second to stop at once.

    The handlers only wake a thread: what is to be done needs locks, and those must not be taken in a signal handler.
    As the first process of a container, which inherits everybody's orphans, the thread also lets those go.
    """

    def __init__(self) -> None:
        self.first = threading.Event()
        """Set when the worker is to stop: by a signal, or because it has failed."""
        self.number = 0
        self.is_at_once = False
        self._member: Member | None = None
        self._count = 0
        self._read_end, self._write_end = os.pipe()
        self._before: dict[int, Any] = {}
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
        numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGCHLD] if os.getpid() == 1 else [])]
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._write_end)
        self._thread.join()
        os.close(self._read_end)

    def _note(self, number: int, _: FrameType | None) -> None:
        os.write(self._write_end, bytes([number]))

    def _obey(self) -> None:
        while number := os.read(self._read_end, 1):
            if number[0] == signal.SIGCHLD:
                let_orphans_go()
                continue
            self.number = number[0]
            self._count += 1
            if self._count == 1:
                self.first.set()
            elif self._member is None:
                # Still starting: our processes see this one end, and end; all that was handed out is in the file.
                os._exit(128 + self.number)
            elif not self.is_at_once:
                self.is_at_once = True
                self._member.stop_at_once()


def let_orphans_go() -> None:
    """Take the status of processes that have ended and whose parent was another one; ours are waited for elsewhere."""
    while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
        stat = process_stat(ended.si_pid)
        if stat is not None and stat.name.startswith(ROOT_NAME_PREFIX):
            return  # whoever started it takes its status, and that of those behind it comes up then
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


# ---------------------------------------------------------------------------------------------------------------
# publish


def publish_arguments(
    path: Path, texts: Iterable[str], name: str, timeout: float, terminal: Terminal, *, as_json: bool
) -> int:
    """Publish the arguments, all or none of which are JSON."""
    check_usable_name(name)
    values = []
    for number, text in enumerate(texts, 1):
        try:
            values.append(parse_json(text))
        except ValueError as error:
            hint = "" if text[:1] in '"[{' else """; a string needs its own quotes: '"text"'"""
            raise CommandError(f"argument {number} is not JSON ({error}){hint}", Status.USAGE) from error
    try:
        ids = Queue(path).publish_many(values, name=name, timeout=timeout)
    except PayloadError as error:
        write_ids(error.published, terminal, as_json=as_json)
        number = (error.index or 0) + 1
        raise CommandError(
            f"argument {number}: {error.where}: {error.reason}; {before(number - 1, 'argument')}"
        ) from error
    except PublishError as error:
        write_ids(error.published, terminal, as_json=as_json)
        raise
    write_ids(ids, terminal, as_json=as_json)
    return Status.DONE


def publish_stream(
    path: Path, stream: BinaryIO, name: str, timeout: float, terminal: Terminal, *, as_json: bool
) -> int:
    """Publish each line of the stream as it comes; what has come by then shares a commit."""
    check_usable_name(name)
    queue = Queue(path)
    number = 0
    for lines in lines_as_they_come(stream):
        values: list[Any] = []
        numbers: list[int] = []
        bad: CommandError | None = None
        for line in lines:
            number += 1
            if not line.strip():
                continue
            try:
                values.append(parse_json(line))
            except ValueError as error:
                bad = CommandError(f"line {number} is not JSON ({error}); {before(number - 1, 'line')}")
                break
            numbers.append(number)
        try:
            ids = queue.publish_many(values, name=name, timeout=timeout)
        except PayloadError as error:
            write_ids(error.published, terminal, as_json=as_json)
            at = numbers[error.index or 0]
            raise CommandError(f"line {at}: {error.where}: {error.reason}; {before(at - 1, 'line')}") from error
        except PublishError as error:
            write_ids(error.published, terminal, as_json=as_json)
            raise
        write_ids(ids, terminal, as_json=as_json)
        if bad is not None:
            raise bad
    return Status.DONE


def lines_as_they_come(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Yield the whole lines of a stream, as many at once as there are, without waiting for more."""
    rest = b""
    read: Any = getattr(stream, "read1", stream.read)
    while data := read(READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise CommandError(
                f"a line is longer than {bytes_in_words(MAX_LINE_BYTES)}; put one JSON value on each line"
            )
        if lines:
            yield lines
    if rest:
        yield [rest]


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError.

    The standard library's parser, because it keeps large integers, which orjson turns into floats; it is made to refuse
    what it would change in silence.
    """
    try:
        return json.loads(text, object_pairs_hook=object_of_pairs, parse_constant=refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these members, unless one would hide another."""
    members = dict(pairs)
    if len(members) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return members


def refuse_constant(text: str) -> None:
    """Refuse NaN and infinities, which Python reads and JSON does not have."""
    raise ValueError(f"{text} is not JSON")


def check_usable_name(name: str) -> None:
    """Raise CommandError unless tasks can have this name."""
    try:
        check_name(name)
    except ValueError as error:
        raise CommandError(str(error), Status.USAGE) from error


def write_ids(ids: Iterable[str], terminal: Terminal, *, as_json: bool) -> None:
    """Write an id per line; whoever reads them knows that these tasks are on disk."""
    for task_id in ids:
        if as_json:
            terminal.json({"id": task_id})
        else:
            terminal.line(task_id)


def before(number: int, noun: str) -> str:
    """Return what became of those before a bad one."""
    return f"{count_of(number, noun)} before it {'is' if number == 1 else 'are'} published, nothing after it"


# ---------------------------------------------------------------------------------------------------------------
# info


class Holder(NamedTuple):
    """A consumer that is registered, whether its process lives, and the first of the tasks that it has."""

    consumer: ConsumerState
    is_alive: bool
    tasks: list[str]


@dataclass(frozen=True, slots=True)
class Info:
    """What Queue.json and its locks say at one moment."""

    queue: str
    bytes: int
    bytes_used: int
    generation: int
    commits: int
    created: str
    last_commit: str | None
    host: dict[str, Any] | None
    counts: dict[str, int]
    waiting: list[dict[str, Any]]
    consumers: list[dict[str, Any]]


def look(path: Path) -> Info:
    """Read the queue without any lock. Raises FileNotFoundError, CorruptQueueError, UnsupportedFormatError."""
    log = LogReader(path)
    try:
        state = QueueState()
        last_commit = None
        for batch in log.batches():
            state.apply(batch)
            last_commit = batch.commit.at
        boot = boot_id()
        holders = [holder_of(consumer, state, boot) for consumer in state.consumers.values()]
        living = [holder.consumer for holder in holders if holder.is_alive]
        return Info(
            queue=str(path),
            bytes=path.stat().st_size,
            bytes_used=log.position.offset + len(b"]\n"),
            generation=log.generation,
            commits=log.commit,
            created=log.header.created,
            last_commit=last_commit,
            host=host_of(path),
            counts=state.counts(),
            waiting=[
                {
                    "name": name,
                    "ready": ready,
                    "has_handler": any(each.names is None or name in each.names for each in living),
                }
                for name, ready in sorted(state.waiting_names().items())
            ],
            consumers=[
                {
                    "session": consumer.session,
                    "pid": consumer.pid,
                    "alive": is_alive,
                    "names": None if consumer.names is None else sorted(consumer.names),
                    "running": consumer.outstanding,
                    "tasks": tasks,
                }
                for consumer, is_alive, tasks in holders
            ],
        )
    finally:
        log.close()


def holder_of(consumer: ConsumerState, state: QueueState, boot: str) -> Holder:
    """Return what a registered consumer has, and whether its process is still there."""
    is_alive = consumer.boot == boot and process_start_time(consumer.pid) == consumer.start
    tasks = [
        state.id_of(place)
        for assignment in consumer.assignments.values()
        for lo, hi in assignment.held
        for place in range(lo, min(hi, lo + TASKS_SHOWN))
    ]
    return Holder(consumer, is_alive, tasks[:TASKS_SHOWN])


def host_of(path: Path) -> dict[str, Any] | None:
    """Return what the host wrote about itself, or None when nobody hosts the queue."""
    return (read_owner(path) or {}) if is_hosted(path) else None


def show_info(path: Path, terminal: Terminal, *, as_json: bool) -> int:
    """Say how the queue stands."""
    info = look(path)
    if as_json:
        terminal.json(asdict(info))
        return Status.DONE
    now = SYSTEM_CLOCK.wall()
    last = "nothing committed yet"
    if info.last_commit is not None:
        last = f"{count_of(info.commits, 'commit')}, the last {ago(now - from_iso(info.last_commit))}"
    reserved = info.bytes - info.bytes_used
    size = bytes_in_words(info.bytes_used) + (f" and {bytes_in_words(reserved)} reserved" if reserved > 0 else "")
    if info.host is None:
        host = "nobody; start one with: actorq worker MODULE:QUEUE"
    else:
        host = f"process {info.host.get('pid', 'unknown')}"
    rows = [
        ("queue", plain(info.queue)),
        ("size", f"{size}, generation {info.generation}, created {ago(now - from_iso(info.created))}"),
        ("log", last),
        ("host", host),
    ]
    terminal.table(rows, "<<")
    terminal.line()
    states = list(info.counts)
    header, numbers = aligned([states, [f"{number:,}" for number in info.counts.values()]], ">" * len(states))
    terminal.line(terminal.styled(header, Style.DIM))
    terminal.line(terminal.styled(numbers, Style.BOLD))
    if info.waiting:
        terminal.line()
        show_waiting(info, terminal)
    if info.consumers:
        terminal.line()
        show_consumers(info, terminal)
    return Status.DONE


def show_waiting(info: Info, terminal: Terminal) -> None:
    """Write which names have ready tasks, and which of them nobody takes."""
    rows = [("waiting", "ready", "")]
    for each in info.waiting:
        # Without consumers there is nothing to say about handlers.
        is_orphan = info.consumers and not each["has_handler"]
        rows.append((plain(each["name"]), f"{each['ready']:,}", "no consumer handles this name" if is_orphan else ""))
    terminal.table(rows, "<><")


def show_consumers(info: Info, terminal: Terminal) -> None:
    """Write who is registered and what each holds."""
    rows = [("consumer", "pid", "holds", "takes", "")]
    for each in info.consumers:
        takes = "every name" if each["names"] is None else plain(", ".join(each["names"]))
        held = ", ".join(each["tasks"])
        if each["running"] > len(each["tasks"]):
            held += ", ..."
        if not each["alive"]:
            held = f"gone; its tasks go back when brokers run: {held}" if held else "gone"
        rows.append((each["session"], str(each["pid"]), f"{each['running']:,}", takes, held))
    terminal.table(rows, "<>><<")


def counts_in_words(counts: dict[str, int]) -> str:
    """Return `3 done, 1 ready`; states that nobody is in are left out."""
    return ", ".join(f"{number:,} {state}" for state, number in counts.items() if number) or "no tasks"


# ---------------------------------------------------------------------------------------------------------------
# verify, repair, compact


def verify_file(path: Path, terminal: Terminal, *, as_json: bool) -> int:
    """Check every byte of the file, and change none."""
    report = verify(path, boot_id=boot_id())
    if as_json:
        terminal.json({"ok": report.is_ok, **asdict(report), "offset": report.offset})
        return Status.DONE if report.is_ok else Status.FAILED
    rows = [("queue", plain(report.path))]
    if report.verdict is not Verdict.UNREADABLE:
        rows += [
            ("size", f"{bytes_in_words(report.size)}, generation {report.generation}"),
            ("good", f"{report.good_bytes:,} bytes, {count_of(report.records, 'record')}, to commit {report.commit:,}"),
            ("tasks", counts_in_words(report.counts)),
        ]
    verdict = terminal.styled(report.verdict, Style.GREEN if report.is_ok else Style.RED)
    rows += [("verdict", f"{verdict}: {plain(report.reason)}" if report.reason else verdict)]
    rows += [("next", plain(report.next_step))]
    terminal.table(rows, "<<")
    return Status.DONE if report.is_ok else Status.FAILED


def repair_file(
    path: Path,
    timeout: float,
    terminal: Terminal,
    *,
    truncate_at: int | None,
    keep_unverified: bool,
    is_agreed: bool,
    as_json: bool,
) -> int:
    """Show what a repair would keep and lose; do it if that was agreed to. Both need the queue for themselves."""
    require_linux()
    if not path.is_file():
        raise CommandError(f"{path} is not a file; name the queue with --queue PATH")
    make_plan = partial(plan_repair, path, boot_id=boot_id(), truncate_at=truncate_at, keep_unverified=keep_unverified)
    # Looked at before any lock, so that no lock file appears beside a file that is no queue.
    repair = make_plan()
    if repair is not None:
        deadline = time.monotonic() + timeout
        with HostLock(path).acquire(timeout), WriterLock(path).acquire(max(0.0, deadline - time.monotonic())):
            repair = make_plan()
            if repair is not None and is_agreed:
                repair.carry_out()
    if repair is None:
        if as_json:
            terminal.json({"ok": True, "repaired": False, "path": str(path)})
        terminal.line(f"{plain(str(path))}: nothing to repair; what a crash tore off, the next start mends by itself")
        return Status.NOTHING
    plan = repair.plan
    if as_json:
        terminal.json({"ok": is_agreed, "repaired": is_agreed, **asdict(plan)})
    else:
        show_plan(plan, terminal)
    return Status.DONE if is_agreed else Status.FAILED


def show_plan(plan: Plan, terminal: Terminal) -> None:
    """Write what a repair would do, or has done."""
    is_done = plan.backup is not None
    rows = [("queue", plain(plan.path))]
    rows += [("damage", f"at byte {each.offset}: {plain(each.reason)}") for each in plan.damages[:IDS_SHOWN]]
    rows += [("kept", f"{count_of(plan.commits_kept, 'commit')}; then there are {counts_in_words(plan.counts)}")]
    if plan.mended_bits:
        places = in_words([f"{offset:,}" for offset in plan.mended_bits])
        rows += [
            ("mended", f"{count_of(len(plan.mended_bits), 'changed bit')}, told by the checksum, at byte {places}")
        ]
    if plan.unproved:
        rows += [
            ("unproved", f"commit {in_words(list(map(str, plan.unproved)))}: whole, but the checksum before it is lost")
        ]
    if plan.unverified:
        rows += [("unverified", f"kept, though their payload may have changed: {in_words(plan.unverified)}")]
    rows += [("lost", f"{count_of(len(plan.lost), 'task')}{': ' if plan.lost else ''}{in_words(plan.lost)}")]
    if plan.lost_finished:
        rows += [("", f"and the results of tasks that had finished: {in_words(plan.lost_finished)}")]
    if plan.lost_commits:
        rows += [
            ("", f"and all of commits {plan.lost_commits[0]:,} to {plan.lost_commits[-1]:,}, which cannot be named")
        ]
    if plan.lost_bytes:
        rows += [("", f"{plan.lost_bytes:,} bytes are left out")]
    if plan.torn_bytes:
        rows += [("torn", f"{plan.torn_bytes:,} bytes at the end, which were never acknowledged, are left out")]
    if plan.run_again:
        rows += [("run again", f"what is not proved to be finished is ready again: {in_words(plan.run_again)}")]
    if is_done:
        rows += [("backup", f"the damaged file is {plain(str(plan.backup))}")]
    else:
        rows += [("next", "nothing was changed; do this by adding --yes, which keeps a copy of the damaged file")]
        if plan.lost:
            rows += [("", "--keep-unverified keeps what can be read of damaged commits, though it may have changed")]
    terminal.table(rows, "<<")


def in_words(ids: list[str]) -> str:
    """Return the first of many."""
    more = f" and {len(ids) - IDS_SHOWN:,} more (--json names all)" if len(ids) > IDS_SHOWN else ""
    return ", ".join(ids[:IDS_SHOWN]) + more


def compact_file(path: Path, keep_done: int | None, timeout: float, terminal: Terminal, *, as_json: bool) -> int:
    """Rewrite the file without old finished tasks, while nobody uses it."""
    require_linux()
    # Checked before any lock, so that no lock file appears beside a file that is no queue.
    LogReader(path).close()
    deadline = time.monotonic() + timeout
    with HostLock(path).acquire(timeout), WriterLock(path).acquire(max(0.0, deadline - time.monotonic())):
        done = compact(path, boot_id=boot_id(), pid=os.getpid(), keep_done=keep_done)
    if as_json:
        terminal.json(done._asdict())
        return Status.DONE
    terminal.line(
        f"{bytes_in_words(done.bytes_before)} before, {bytes_in_words(done.bytes_after)} after: "
        f"{count_of(done.tasks, 'task')} kept, {count_of(done.removed, 'finished task')} removed, "
        f"generation {done.generation}"
    )
    return Status.DONE

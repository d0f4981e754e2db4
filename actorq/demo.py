"""The demo: one task for each file below a folder, and proof at the end that every result is right.

    files ── publish ──▶ Queue.json ──▶ consumers: SHA-256, size, lines ──▶ Queue.json ──▶ compared with a direct read

With chaos, `chaos.Killer` kills the processes of the queue all the while, the files are published again and again, by
this process and by a `Publisher` actor, and every round has to come out right.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actorq.actors.linux import require_linux
from actorq.attachments import attachment_of
from actorq.brokered_publisher import Publisher
from actorq.chaos import Killer, OwnKillsUnsaid, consumers_of
from actorq.errors import ActorDiedError, TaskNotFoundError
from actorq.queue import Queue
from actorq.store.fold import CRASH
from actorq.tasks.policy import MAX_CRASHES
from actorq.tasks.task import Task, TaskIn
from actorq.terminal import Style, bytes_in_words, count_of, plain, seconds_in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from actorq.actors import ActorRef
    from actorq.chaos import Kill
    from actorq.hosting import Host
    from actorq.terminal import Terminal

TASK_NAME = "measure"

BLOCK_BYTES = 1 << 20

STATUS_SECONDS = 0.1
"""How often the progress is looked up, which reads the file as any other process could."""

CHAOS_CRASHES = 1000
"""A killed consumer charges the task that it ran with a crash; in a chaos run that is our doing, not the task's."""

CHAOS_SECONDS = 120.0
"""A chaos run that has not finished its work by then has failed."""

SLICE_TASKS = 100
"""Under chaos so many are published at once, half of them by the Publisher actor."""

BACKLOG_TASKS = 500
BACKLOG_SECONDS = 0.01
"""Under chaos nothing more is published while so many are unfinished, and so often one looks."""

MOST_SHOWN = 5
"""Problems that are written out; the rest is counted."""


# ---------------------------------------------------------------------------------------------------------------
# What the consumers run


def measure(task: Task) -> dict[str, Any]:
    """Handle one task: return SHA-256, size and number of lines of the file that it names."""
    digest = hashlib.sha256()
    size = lines = 0
    with Path(task.data["path"]).open("rb", buffering=0) as file:
        for block in iter(partial(file.read, BLOCK_BYTES), b""):
            digest.update(block)
            size += len(block)
            lines += block.count(b"\n")
    return {"sha256": digest.hexdigest(), "bytes": size, "lines": lines}


# ---------------------------------------------------------------------------------------------------------------
# What there is to do


@dataclass(frozen=True, slots=True)
class File:
    """A regular file, and by what one sees that it is still the same."""

    path: str
    identity: tuple[int, int, int]

    @classmethod
    def at(cls, path: str) -> Self:
        """Look at the file. Raises OSError."""
        about = os.lstat(path)
        return cls(path, (about.st_ino, about.st_size, about.st_mtime_ns) if stat.S_ISREG(about.st_mode) else (0, 0, 0))

    @property
    def is_regular(self) -> bool:
        """Neither folder nor link, pipe, socket or device."""
        return self.identity != (0, 0, 0)

    @property
    def has_changed(self) -> bool:
        """Whether it is gone or another one by now."""
        try:
            return File.at(self.path) != self
        except OSError:
            return True


@dataclass(slots=True)
class Findings:
    """The files below a folder, and why others were left out (reason -> how many)."""

    files: list[File] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.identity[1] for file in self.files)


def default_directory() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def find_files(directory: Path, limit: int | None = None) -> Findings:
    """Return the regular files below the folder that can be read, in the order of their paths. Raises OSError."""
    os.scandir(directory).close()  # a folder that cannot be read is an error; one below it is skipped
    findings = Findings()

    def skip_folder(_: OSError) -> None:
        findings.skipped["unreadable folder"] += 1

    for folder, subfolders, names in os.walk(directory.absolute(), onerror=skip_folder):
        subfolders.sort()
        for name in sorted(names):
            if limit is not None and len(findings.files) >= limit:
                return findings
            path = os.path.join(folder, name)  # noqa: PTH118  # Path objects would take longer than the work
            try:
                path.encode()
                file = File.at(path)
                if file.is_regular:
                    with open(path, "rb", buffering=0):  # noqa: PTH123  # likewise
                        findings.files.append(file)
            except UnicodeEncodeError:
                findings.skipped["file whose name is not UTF-8"] += 1  # no JSON text can hold it
            except OSError:
                findings.skipped["unreadable file"] += 1
    return findings


# ---------------------------------------------------------------------------------------------------------------
# The run


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for on the command line."""

    directory: Path
    queue: Path | None = None
    consumers: int | None = None
    limit: int | None = None
    chaos: bool = False
    seed: int | None = None


@dataclass(slots=True)
class Run:
    """What happened, as far as it is known before the results are checked."""

    findings: Findings
    seed: int | None = None
    consumers: int = 0
    rounds: list[list[str]] = field(default_factory=list)
    """For each round the id of each file's task, in the order of the files."""
    repeated: int = 0
    """Requests to the Publisher actor that it took to its grave, and that were made again."""
    publish_seconds: float = 0.0
    seconds: float = 0.0
    kills: list[Kill] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def published(self) -> int:
        """Tasks that were acknowledged."""
        return sum(map(len, self.rounds))


def run_demo(options: Options, terminal: Terminal) -> Report | None:
    """Run the demo and return what came out; None when there is no file to work on.

    Raises:
        OSError: the folder cannot be read, or the queue's place exists already.
        ActorqError: the queue itself failed.

    """
    require_linux()
    findings = find_files(options.directory, options.limit)
    if not findings.files:
        return None
    terminal.line(
        f"{count_of(len(findings.files), 'file')}, {bytes_in_words(findings.size)}, "
        f"below {plain(str(options.directory))}{skipped_in_words(findings)}"
    )
    run = Run(findings)
    with place_of(options.queue) as path, OwnKillsUnsaid(run.kills) if options.chaos else nullcontext():
        # Every result is checked at the end, so all of them stay.
        max_crashes = CHAOS_CRASHES if options.chaos else MAX_CRASHES
        queue = Queue(path, max_crashes=max_crashes, keep_done=None)
        try:
            with queue.running(options.consumers, handler=measure), Progress(queue, run, terminal):
                run.consumers = len(consumers_of(host_of(queue).system))
                if options.chaos:
                    run.seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
                    rounds_under_chaos(queue, run, terminal)
                else:
                    one_round(queue, run)
            run.counts = queue.counts()
            return check(queue, run, terminal)
        finally:
            terminal.end_status()


def one_round(queue: Queue, run: Run) -> None:
    """Publish every file once and wait until all is done."""
    begun = time.monotonic()
    run.rounds.append(queue.publish_many(({"path": file.path} for file in run.findings.files), name=TASK_NAME))
    run.publish_seconds = time.monotonic() - begun
    queue.join()
    run.seconds = time.monotonic() - begun


def rounds_under_chaos(queue: Queue, run: Run, terminal: Terminal) -> None:
    """Publish every file again and again while processes die, until enough have; then wait until all is done."""
    assert run.seed is not None
    host = host_of(queue)
    publisher = host.system.spawn(Publisher, host.brokers, name="publisher")
    killer = Killer(host.system, run.seed, run.kills, lambda kill: terminal.line(kill_in_words(kill, terminal)))
    terminal.line(f"seed {run.seed}: killing brokers, consumers and the supervisor while the work is repeated")
    begun = time.monotonic()
    with killer:
        while True:
            if killer.has_killed_enough:
                break
            one_round_under_chaos(queue, publisher, run, killer, begun + CHAOS_SECONDS)
        run.publish_seconds = time.monotonic() - begun
    queue.join(timeout=max(0.0, begun + CHAOS_SECONDS - time.monotonic()))
    run.seconds = time.monotonic() - begun


def one_round_under_chaos(queue: Queue, publisher: ActorRef, run: Run, killer: Killer, deadline: float) -> None:
    """Publish every file once, a few at a time, so that processes die while tasks are published, too."""
    number = len(run.rounds) + 1
    ids: list[str] = []
    data = [{"path": file.path, "round": number} for file in run.findings.files]
    for tasks in batched(data, SLICE_TASKS):
        ids += publish_by_two(queue, publisher, tasks, run)
        # The backlog stays small enough to be worked off, and never runs dry while processes die.
        wait_for_backlog(queue, killer, deadline)
    run.rounds.append(ids)


def publish_by_two(queue: Queue, publisher: ActorRef, tasks: Sequence[dict[str, Any]], run: Run) -> list[str]:
    """Publish at the same time one half from this process and one through the Publisher actor."""
    middle = len(tasks) // 2
    with ThreadPoolExecutor(1, "ask-publisher") as pool:
        others = pool.submit(publish_by_asking, publisher, [TaskIn(task, TASK_NAME) for task in tasks[middle:]], run)
        return queue.publish_many(tasks[:middle], name=TASK_NAME) + others.result()


def publish_by_asking(publisher: ActorRef, tasks: list[TaskIn], run: Run) -> list[str]:
    """Publish through the actor. What it had in hand when it died is asked for again, so it may run twice."""
    while True:
        try:
            ids: list[str] = publisher.ask(tasks, timeout=CHAOS_SECONDS)
        except ActorDiedError:
            run.repeated += 1
        else:
            return ids


def wait_for_backlog(queue: Queue, killer: Killer, deadline: float) -> None:
    """Return once few tasks are unfinished, or enough has been killed."""
    while not killer.has_killed_enough:
        counts = queue.counts()
        if counts["ready"] + counts["running"] < BACKLOG_TASKS:
            return
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the work came to a halt under chaos: {counts}")
        killer.wait(BACKLOG_SECONDS)


def host_of(queue: Queue) -> Host:
    """Return what this process hosts the queue with."""
    attachment = attachment_of(queue.path)
    assert attachment is not None
    assert attachment.host is not None
    return attachment.host


@contextmanager
def place_of(queue: Path | None) -> Iterator[Path]:
    """Give the path for the queue: the one asked for, which is kept, or one that is deleted at the end."""
    if queue is not None:
        if queue.exists():
            raise FileExistsError(f"{queue} exists already; the demo wants a queue of its own, so name a new file")
        yield queue
        return
    with tempfile.TemporaryDirectory(prefix="actorq-demo-") as directory:
        yield Path(directory, "Queue.json")


# ---------------------------------------------------------------------------------------------------------------
# The check


@dataclass(slots=True)
class Report:
    """What came out. The demo has succeeded when nothing is missing or wrong."""

    run: Run
    right: int = 0
    changed: list[str] = field(default_factory=list)
    """Files that somebody changed while the demo ran, so that there is nothing to compare with."""
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    charged_tasks: int = 0
    crashes: int = 0
    latencies: list[float] = field(default_factory=list)
    """Seconds from publish to done, in order of size."""

    @property
    def is_good(self) -> bool:
        """Every task was done and its result is that of a direct read."""
        counts = self.run.counts
        # Counted besides, because of tasks that nobody holds an id of: published by an actor that then died.
        failed = sum(counts.values()) - counts["done"]
        return not self.missing and not self.wrong and failed <= len(self.changed)

    def latency(self, share: float) -> float | None:
        """Return how long that share of the tasks took at most, in seconds."""
        if not self.latencies:
            return None
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def to_json(self) -> dict[str, Any]:
        """Return the report as one object; its members are described in `actorq demo --help`."""
        run = self.run
        members: dict[str, Any] = {
            "ok": self.is_good,
            "files": len(run.findings.files),
            "bytes": run.findings.size,
            "skipped": dict(run.findings.skipped),
            "consumers": run.consumers,
            "tasks": run.published,
            "counts": run.counts,
            "right": self.right,
            "missing": self.missing,
            "wrong": self.wrong,
            "changed": self.changed,
            "seconds": round(run.seconds, 6),
            "publish_seconds": round(run.publish_seconds, 6),
            "latency_p50": self.latency(0.50),
            "latency_p99": self.latency(0.99),
        }
        if run.seed is not None:
            members |= {
                "seed": run.seed,
                "rounds": len(run.rounds),
                "kills": [
                    {"name": kill.name, "pid": kill.pid, "next_pid": kill.next_pid, "seconds": round(kill.seconds, 6)}
                    for kill in run.kills
                ],
                "tasks_charged": self.charged_tasks,
                "crashes_charged": self.crashes,
                "requests_repeated": run.repeated,
            }
        return members

    def write(self, terminal: Terminal) -> None:
        """Write the report for people."""
        run = self.run
        done, seconds, files = run.counts["done"], max(run.seconds, 1e-9), run.findings
        size = files.size * len(run.rounds)
        terminal.line(
            f"{count_of(done, 'task')} done in {seconds_in_words(run.seconds)} "
            f"by {count_of(run.consumers, 'consumer')}: "
            f"{done / seconds:,.0f} tasks/s, {bytes_in_words(size / seconds)}/s"
        )
        if run.seed is None:
            rate = run.published / max(run.publish_seconds, 1e-9)
            terminal.line(f"published in {seconds_in_words(run.publish_seconds)}: {rate:,.0f} tasks/s, each durable")
        p50, p99 = self.latency(0.50), self.latency(0.99)
        if p50 is not None and p99 is not None:
            terminal.line(f"from publish to done: p50 {seconds_in_words(p50)}, p99 {seconds_in_words(p99)}")
        if run.seed is not None:
            self._write_chaos(terminal)
        for title, paths in (("missing", self.missing), ("wrong", self.wrong)):
            for path in paths[:MOST_SHOWN]:
                terminal.line(terminal.styled(f"{title}: {plain(path)}", Style.RED))
            if len(paths) > MOST_SHOWN:
                terminal.line(terminal.styled(f"{title}: {len(paths) - MOST_SHOWN:,} more", Style.RED))
        if self.changed:
            terminal.line(f"{count_of(len(self.changed), 'result')} not compared: the file changed meanwhile")
        if self.is_good:
            rounds = "" if run.seed is None else f" in {count_of(len(run.rounds), 'round')}"
            verdict = f"all {self.right:,} results{rounds} equal a direct read of the file"
            terminal.line(terminal.styled(verdict, Style.GREEN))
        else:
            verdict = f"FAILED: {self.right:,} right, {len(self.missing):,} missing, {len(self.wrong):,} wrong"
            terminal.line(terminal.styled(f"{verdict}; {run.counts}", Style.RED))

    def _write_chaos(self, terminal: Terminal) -> None:
        run = self.run
        victims = Counter(kill.name for kill in run.kills)
        terminal.line(
            f"{count_of(len(run.kills), 'kill')} landed: "
            + ", ".join(f"{name} {number}x" for name, number in sorted(victims.items()))
        )
        charged = f"{count_of(self.charged_tasks, 'task')} charged with a crash"
        if self.crashes > self.charged_tasks:
            charged += f" ({count_of(self.crashes, 'crash', 'crashes')} in all)"
        terminal.line(f"{charged}; {count_of(run.repeated, 'request')} to the Publisher actor made again")


def check(queue: Queue, run: Run, terminal: Terminal) -> Report:
    """Compare the result of every task with a direct read of its file in this process."""
    report = Report(run)
    checked = 0
    for index, file in enumerate(run.findings.files):
        expected = read_directly(file.path)
        for ids in run.rounds:
            checked += 1
            task = find_task(queue, ids[index])
            if task is not None:
                crashes = sum(failure.type == CRASH for failure in task.errors)
                report.crashes += crashes
                report.charged_tasks += crashes > 0
            if task is not None and task.state == "done" and task.result == expected:
                report.right += 1
                if task.published_at is not None and task.finished_at is not None:
                    report.latencies.append((task.finished_at - task.published_at).total_seconds())
            elif task is not None and task.state in ("done", "dead") and file.has_changed:
                report.changed.append(file.path)
            elif task is not None and task.state == "done":
                report.wrong.append(file.path)
            else:
                report.missing.append(file.path)
        if index % 100 == 0:
            terminal.status(f"checking {checked:,} of {run.published:,} results")
    report.latencies.sort()
    return report


def find_task(queue: Queue, task_id: str) -> Task | None:
    """Return the task, or None when it is not in the queue."""
    try:
        return queue.get(task_id)
    except TaskNotFoundError:
        return None


def read_directly(path: str) -> dict[str, Any] | None:
    """Return what `measure` should have found; None when the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            file.seek(0)
            lines = sum(block.count(b"\n") for block in iter(partial(file.read, BLOCK_BYTES), b""))
    except OSError:
        return None
    return {"sha256": sha256, "bytes": size, "lines": lines}


# ---------------------------------------------------------------------------------------------------------------
# What is seen meanwhile


class Progress:
    """A thread that says, every now and then, how far the work is. It reads the file, as any process could."""

    def __init__(self, queue: Queue, run: Run, terminal: Terminal) -> None:
        self._queue = queue
        self._run = run
        self._terminal = terminal
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._terminal.end_status()

    def _watch(self) -> None:
        begun = time.monotonic()
        files = len(self._run.findings.files)
        while not self._stop.wait(STATUS_SECONDS):
            counts = self._queue.counts()
            done, unfinished = counts["done"], counts["ready"] + counts["running"]
            rate = done / (time.monotonic() - begun)
            # More than one round, and nobody knows how many there will be.
            total = f" of {files:,} ({done / files:.0%})" if self._run.seed is None else ""
            self._terminal.status(
                f"done {done:,}{total}, {unfinished:,} in the queue, {seconds_in_words(time.monotonic() - begun)}, "
                f"{rate:,.0f} tasks/s"
            )


def kill_in_words(kill: Kill, terminal: Terminal) -> str:
    """Return a line about a process that was killed and its successor."""
    victim = terminal.styled(f"kill {kill.number:>3}", Style.RED)
    return (
        f"{victim}  {kill.name:<16} pid {kill.pid:<8} back as {kill.next_pid:<8} "
        f"after {seconds_in_words(kill.seconds):>7}"
    )


def skipped_in_words(findings: Findings) -> str:
    """Return what was left out, as the end of a sentence."""
    if not findings.skipped:
        return ""
    return "; skipped " + ", ".join(count_of(number, reason) for reason, number in sorted(findings.skipped.items()))

"""Commands that run tasks: demo, worker."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actorq import demo
from actorq.actors.linux import require_linux
from actorq.attachments import attachment_of
from actorq.chaos import consumers_of
from actorq.cli.parser import add_command, add_consumers, add_timeout, positive
from actorq.cli.status import CommandError, Status
from actorq.errors import QueueLockedError
from actorq.queue import Queue
from actorq.terminal import count_of, counts_in_words, plain

if TYPE_CHECKING:
    import argparse
    from types import FrameType

    from actorq.cli.parser import Commands
    from actorq.hosting import Host
    from actorq.terminal import Terminal

LOCK_SLICE_SECONDS = 0.2
"""How long a starting worker waits for the lock before it looks whether it was told to stop."""

FAILURE_SECONDS = 1.0
"""How often a worker looks whether its supervisor has given up."""


# ---------------------------------------------------------------------------------------------------------------
# demo


def add_demo(added: Commands) -> None:
    """Add `demo`."""
    parser = add_command(
        added,
        "demo",
        run_demo,
        summary="run one task for each file of a folder, and check every result",
        text="""\
Consumers compute SHA-256, size and number of lines of each regular file below DIR. At the end every result
is compared with a direct read of the file. The queue lies in a temporary directory and is deleted at the end,
unless --queue names a new file for it, which is kept: look into it with jq.

With --chaos, processes of the queue are killed with SIGKILL at random: brokers, consumers and the supervisor.
The files are published again and again, by this process and by a Publisher actor, until 20 kills or more have
landed and every broker and the supervisor have been hit. Then all tasks of all rounds must be there and right.

example:
  actorq demo                          the standard library of the running Python
  actorq demo ~/pictures -w 4
  actorq demo --chaos --files 500 --seed 7""",
        json_help="""\
  one object: ok, files, bytes, skipped {reason: number}, consumers, tasks, counts {state: number}, right,
  missing [path], wrong [path], changed [path], seconds, publish_seconds, latency_p50 and latency_p99 (seconds
  from publish to done); with --chaos also seed, rounds, kills [{name, pid, next_pid, seconds}], tasks_charged
  (with a crash of their consumer), crashes_charged, requests_repeated""",
    )
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="default: Python's standard library")
    add_consumers(parser)
    parser.add_argument("--chaos", action="store_true", help="kill processes at random all the while")
    parser.add_argument("--files", type=positive, metavar="N", help="stop looking after N files")
    parser.add_argument("--seed", type=int, metavar="N", help="with --chaos: draw the same victims again")
    parser.add_argument(
        "--queue", type=Path, metavar="PATH", help="put the queue there and keep it; must not exist yet"
    )


def run_demo(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Run the demo."""
    if asked.seed is not None and not asked.chaos:
        raise CommandError("--seed draws the victims of --chaos; add --chaos, or leave it out", Status.USAGE)
    directory = asked.directory or demo.default_directory()
    options = demo.Options(directory, asked.queue, asked.consumers, asked.files, asked.chaos, asked.seed)
    report = demo.run_demo(options, terminal)
    if report is None:
        raise CommandError(f"there is no file to read below {directory}; name another folder", Status.NOTHING)
    if asked.json:
        terminal.json(report.to_json())
    else:
        report.write(terminal)
    return Status.DONE if report.is_good else Status.FAILED


# ---------------------------------------------------------------------------------------------------------------
# worker


def add_worker(added: Commands) -> None:
    """Add `worker`."""
    parser = add_command(
        added,
        "worker",
        run_worker,
        summary="run consumers for the handlers of a Queue object",
        text="""\
MODULE is imported as Python would from the current directory; QUEUE is the variable in it that holds the Queue.
TERM and Ctrl-C let the tasks that run finish, within 30 seconds, give back the others, and end with exit status
0. A second one stops at once and puts back also what runs.

example: app.py holds

  from actorq import Queue, Task
  queue = Queue("Queue.json")

  @queue.handler("thumbnail")
  def thumbnail(task: Task) -> None: ...

and is run by

  actorq worker app:queue -w 4""",
        json_help="""\
  one line when it is up, {"event": "ready", queue, consumers, names}, and one at the end,
  {"event": "stopped", at_once, counts {state: number}}""",
    )
    parser.add_argument("target", metavar="MODULE:QUEUE", help="where the Queue object is")
    add_consumers(parser)
    add_timeout(parser, "how long to wait for another host to leave")


def run_worker(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Run a worker."""
    return work(asked.target, asked.consumers, asked.timeout, terminal, as_json=asked.json)


def work(target: str, consumers: int | None, timeout: float, terminal: Terminal, *, as_json: bool) -> int:
    """Run consumers for the handlers of a Queue object until TERM or INT; then let them finish what they run."""
    require_linux()
    queue = load_queue(target)
    with StopSignals() as signals, ExitStack() as stack:
        host = start_hosting(queue, consumers, timeout, signals=signals, stack=stack, terminal=terminal)
        if host is None:
            return Status.DONE
        signals.host = host
        running = len(consumers_of(host.system))
        names = sorted(queue.handlers)
        if as_json:
            terminal.json({"event": "ready", "queue": str(queue.path), "consumers": running, "names": names})
        terminal.line(
            f"ready: {count_of(running, 'consumer')} for {plain(', '.join(names))} on {plain(str(queue.path))}; "
            "TERM or Ctrl-C lets them finish, a second one stops at once"
        )
        while not signals.first.wait(FAILURE_SECONDS):
            if host.failure is not None:
                raise host.failure
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


def start_hosting(
    queue: Queue,
    consumers: int | None,
    timeout: float,
    *,
    signals: StopSignals,
    stack: ExitStack,
    terminal: Terminal,
) -> Host | None:
    """Host the queue for as long as the stack lives; None when told to stop while waiting for another host to leave."""
    deadline = time.monotonic() + timeout
    is_first = True
    while not signals.first.is_set():
        try:
            stack.enter_context(queue.running(consumers, timeout=min(LOCK_SLICE_SECONDS, timeout)))
        except QueueLockedError as error:
            if time.monotonic() >= deadline:
                raise
            if is_first:
                terminal.line(f"waiting for process {error.pid or 'unknown'}, which hosts {plain(str(queue.path))}")
                is_first = False
            continue
        attachment = attachment_of(queue.path)
        assert attachment is not None
        return attachment.host
    return None


class StopSignals:
    """TERM and INT while a worker runs: the first asks it to stop, the second to stop at once.

    The handlers only wake a thread: what is to be done needs locks, and those must not be taken in a signal handler.
    """

    def __init__(self) -> None:
        self.first = threading.Event()
        self.number = 0
        self.is_at_once = False
        self.host: Host | None = None
        """Whose consumers a second signal ends; until it is known, it ends this process, and all end with it."""
        self._count = 0
        self._read_end, self._write_end = os.pipe()
        self._before: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._obey, name="stop-signals")

    @property
    def name(self) -> str:
        """Name of the last signal."""
        return signal.Signals(self.number).name

    def __enter__(self) -> Self:
        self._thread.start()
        for number in (signal.SIGTERM, signal.SIGINT):
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
            self.number = number[0]
            self._count += 1
            if self._count == 1:
                self.first.set()
            elif self.host is None:
                # Still starting: our processes see this one end, and end; all that was handed out is in the file.
                os._exit(128 + self.number)
            elif not self.is_at_once:
                self.is_at_once = True
                self.host.stop_at_once()

"""Commands that run tasks, or have them run: demo, worker, serve."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from actorq import demo
from actorq.cli.parser import (
    Parser,
    add_command,
    add_consumers,
    add_queue,
    add_timeout,
    positive,
    queue_path,
    seconds,
)
from actorq.cli.signals import StopSignals
from actorq.cli.status import CommandError, Status
from actorq.errors import QueueLockedError
from actorq.queue import SHUTDOWN_SECONDS, Queue
from actorq.terminal import count_of, counts_in_words, plain

if TYPE_CHECKING:
    import argparse

    from actorq.cli.parser import Commands
    from actorq.terminal import Terminal

logger = logging.getLogger("actorq")


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
# worker, serve


def add_worker(added: Commands) -> None:
    """Add `worker`."""
    parser = add_command(
        added,
        "worker",
        run_worker,
        summary="run consumers for the handlers of a Queue object",
        text="""\
MODULE is imported as Python would from the current directory; QUEUE is the variable in it that holds the Queue.
The first worker of a queue hosts its brokers; every further one joins them, wherever it was started. When the
host ends, by whatever means, one of the others takes its place within a second, and nobody else notices.

TERM and Ctrl-C let the tasks that run finish, within --shutdown-timeout seconds, give back the others, and end
with exit status 0. A second one stops at once, puts back also what runs, and ends with 128 + the signal's number.
A service manager that waits to be told (systemd, Type=notify) is.

example: app.py holds

  from actorq import Queue, Task
  queue = Queue("Queue.json")

  @queue.handler("thumbnail")
  def thumbnail(task: Task) -> None: ...

and is run by

  actorq worker app:queue -w 4""",
        json_help="""\
  one line when it is up, {"event": "ready", queue, consumers, names, hosting}, and one at the end,
  {"event": "stopped", at_once, counts {state: number}}""",
    )
    parser.add_argument("target", metavar="MODULE:QUEUE", help="where the Queue object is")
    add_consumers(parser)
    add_shutdown_timeout(parser)
    parser.add_argument(
        "--max-tasks", type=positive, metavar="N", help="replace the process of a consumer after N tasks"
    )
    add_timeout(parser, HANGING_HOST)


def run_worker(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Run a worker."""
    options = WorkerOptions(asked.consumers, asked.timeout, asked.shutdown_timeout, asked.max_tasks)
    return work(load_queue(asked.target), options, terminal, as_json=asked.json)


def add_serve(added: Commands) -> None:
    """Add `serve`."""
    parser = add_command(
        added,
        "serve",
        serve,
        summary="host the brokers of a queue, and run none of its tasks",
        text="""\
For a queue whose workers come and go: they join, and the brokers stay. Where somebody hosts the queue already, this
waits in reserve, and takes its place when it ends.

TERM and Ctrl-C end it.

example:
  actorq serve --queue /var/spool/app/Queue.json""",
        json_help="""\
  one line when it is up, {"event": "ready", queue, consumers: 0, names: [], hosting}, and one at the end,
  {"event": "stopped", at_once, counts {state: number}}""",
    )
    add_queue(parser)
    add_timeout(parser, HANGING_HOST)


def serve(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Host the brokers."""
    return work(Queue(queue_path(asked)), WorkerOptions(0, asked.timeout), terminal, as_json=asked.json)


HANGING_HOST = "how long to wait for a host that neither answers nor ends"


def add_shutdown_timeout(parser: Parser) -> None:
    """Add --shutdown-timeout."""
    parser.add_argument(
        "--shutdown-timeout", type=seconds, default=SHUTDOWN_SECONDS, metavar="SECONDS",
        help="how long running tasks may take at the end before they are killed and put back (default: %(default)g)",
    )  # fmt: skip


class WorkerOptions(NamedTuple):
    """What a worker was asked for."""

    consumers: int | None
    timeout: float
    shutdown_timeout: float = SHUTDOWN_SECONDS
    max_tasks: int | None = None


def work(queue: Queue, options: WorkerOptions, terminal: Terminal, *, as_json: bool) -> int:
    """Run consumers for the handlers of a Queue object until TERM or INT; then let them finish what they run."""
    names, path = sorted(queue.handlers), plain(str(queue.path))
    member = queue.new_member(options.consumers, shutdown_timeout=options.shutdown_timeout, max_tasks=options.max_tasks)
    with StopSignals(member.give_up) as signals, ExitStack() as stack:
        try:
            member.start(
                options.timeout,
                lambda pid: terminal.line(f"waiting for process {pid or 'unknown'}, which keeps {path}"),
            )
        except QueueLockedError:
            if signals.first.is_set():
                return Status.DONE
            raise
        stack.callback(member.stop)
        signals.serve(member)
        running = member.consumers
        if as_json:
            ready = {"event": "ready", "queue": str(queue.path), "consumers": running, "names": names}
            terminal.json(ready | {"hosting": member.host is not None})
        role = "hosts" if member.host is not None else "has joined the host of"
        who = f"{count_of(running, 'consumer')} for {plain(', '.join(names))}; " if running else ""
        terminal.line(
            f"ready: {who}{role} {path}; TERM or Ctrl-C lets tasks that run finish, a second one stops at once"
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


def tell_systemd(state: str) -> None:
    """Tell a service manager that waits for it how we stand; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            try:
                manager.sendto(state.encode(), address.replace("@", "\0", 1))
            except OSError as error:  # no reason to do no work
                logger.warning("the service manager at %s does not hear us: %s", address, error)

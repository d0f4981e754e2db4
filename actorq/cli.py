"""The command line: what is asked for, and how errors are told.

Each command is described in its own `--help`. Whatever a user can do wrong ends in one line on standard error that says
what to do next; a traceback is a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, override

from actorq import commands
from actorq.commands import CommandError, Status
from actorq.demo import Options, default_directory, run_demo
from actorq.errors import ActorqError
from actorq.hosting import SHUTDOWN_SECONDS
from actorq.publisher import DEFAULT_TIMEOUT
from actorq.tasks.task import DEFAULT_NAME
from actorq.terminal import Terminal, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEEP_DONE = 10_000

EXIT_STATUS = "exit status: 0 done, 1 failed, 2 wrong usage, 3 nothing matched"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal cannot show is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # They take the same way out as Ctrl-C, so that no temporary file stays; but nohup's wish is kept.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    parser = build_parser()
    name = "actorq"
    try:
        asked = parser.parse_args(arguments)
        name = f"actorq {asked.command}"
        status: int = asked.run(asked, Terminal(sys.stdout, quiet=asked.json))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Status.FAILED
    except KeyboardInterrupt:
        return Status.INTERRUPTED
    except CommandError as error:
        return complain(name, str(error), error.status)
    except OSError as error:
        return complain(name, os_error_in_words(error), Status.FAILED)
    except ActorqError as error:
        return complain(name, str(error), Status.FAILED)
    return status


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


class ShowVersion(argparse.Action):
    """The action behind --version."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415  # takes 20 ms, which the other commands need not wait

        parser.exit(message=f"actorq {version('actorq')}\n")


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line and says where the help is."""

    @override
    def error(self, message: str) -> NoReturn:
        sys.exit(complain(self.prog, f"{message}; see: {self.prog} --help", Status.USAGE))


# ---------------------------------------------------------------------------------------------------------------
# What can be asked for


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="actorq",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A durable task queue without a server: one readable Queue.json, and processes that may die.",
        epilog=f"""example:
  actorq demo                          see it work, on the files of your own Python
  actorq publish '{{"path": "a.png"}}'   put a task into ./Queue.json
  actorq worker app:queue -w 4         run the handlers of the Queue object `queue` in app.py
  actorq info                          see how things stand

{EXIT_STATUS}""",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="write the version and exit")
    added = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    add_demo(added)
    add_worker(added)
    add_publish(added)
    add_info(added)
    add_verify(added)
    add_repair(added)
    add_compact(added)
    return parser


type Commands = "argparse._SubParsersAction[Parser]"  # noqa: SLF001  # argparse has no other name for it
type Run = "Callable[[argparse.Namespace, Terminal], int]"


def add_command(added: Commands, name: str, run: Run, *, summary: str, text: str, json_help: str) -> Parser:
    """Add a command with what all of them have."""
    parser = added.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"{text}\n\nwith --json:\n{json_help}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="write JSON, described below; its members stay as they are")
    parser.set_defaults(run=run)
    return parser


def add_queue(parser: Parser) -> None:
    """Add --queue."""
    parser.add_argument(
        "--queue", type=Path, metavar="PATH", help="the queue; by default $ACTORQ_QUEUE, else ./Queue.json"
    )


def add_path(parser: Parser) -> None:
    """Add the path as an argument, and as --queue like everywhere else."""
    parser.add_argument("path", nargs="?", type=Path, metavar="PATH", help="the queue; the same as --queue PATH")
    add_queue(parser)


def add_timeout(parser: Parser, what: str) -> None:
    """Add --timeout."""
    parser.add_argument(
        "--timeout", type=seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS", help=f"{what} (default: %(default)g)"
    )


def add_consumers(parser: Parser) -> None:
    """Add -w."""
    parser.add_argument(
        "-w", "--consumers", type=positive, metavar="N", help="processes that run handlers (default: one for each CPU)"
    )


def queue_path(asked: argparse.Namespace) -> Path:
    """Return the path of the queue that is meant."""
    argument = getattr(asked, "path", None)
    if argument is not None and asked.queue is not None and argument != asked.queue:
        raise CommandError(
            f"PATH and --queue name two queues; leave one out, see: actorq {asked.command} --help", Status.USAGE
        )
    return Path(argument or asked.queue or os.environ.get("ACTORQ_QUEUE") or "Queue.json")


def existing_queue(asked: argparse.Namespace) -> Path:
    """Return the path of the queue that is meant, or say that there is none."""
    path = queue_path(asked)
    if not os.path.lexists(path):
        raise CommandError(f"there is no queue at {path}; name another one with --queue PATH, or publish a task first")
    return path


def positive(text: str) -> int:
    """Return the number that an option gives. Raises ValueError."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def seconds(text: str) -> float:
    """Return the seconds that an option gives. Raises ValueError."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def all_or_number(text: str) -> int | None:
    """Return a number of tasks, or None for `all`. Raises ValueError."""
    if text == "all":
        return None
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


# ---------------------------------------------------------------------------------------------------------------
# demo


def add_demo(added: Commands) -> None:
    """Add `demo`."""
    parser = add_command(
        added,
        "demo",
        demo,
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


def demo(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Run the demo."""
    if asked.seed is not None and not asked.chaos:
        raise CommandError("--seed draws the victims of --chaos; add --chaos, or leave it out", Status.USAGE)
    directory = asked.directory or default_directory()
    options = Options(directory, asked.queue, asked.consumers, asked.files, asked.chaos, asked.seed)
    report = run_demo(options, terminal)
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
        worker,
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
    parser.add_argument(
        "--shutdown-timeout", type=seconds, default=SHUTDOWN_SECONDS, metavar="SECONDS",
        help="how long running tasks may take at the end before they are killed and put back (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-tasks", type=positive, metavar="N", help="replace the process of a consumer after N tasks"
    )
    add_timeout(parser, "how long to wait for a host that neither answers nor ends")


def worker(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Run a worker."""
    options = commands.WorkerOptions(
        asked.target, asked.consumers, asked.timeout, asked.shutdown_timeout, asked.max_tasks
    )
    return commands.work(options, terminal, as_json=asked.json)


# ---------------------------------------------------------------------------------------------------------------
# publish


def add_publish(added: Commands) -> None:
    """Add `publish`."""
    parser = add_command(
        added,
        "publish",
        publish,
        summary="put tasks into the queue",
        text="""\
One task for each JSON argument, or for each line of standard input with `-`. Writes the id of each task once it
is on disk. Lines are published as they come; those before a bad line stay published, and the error names it.

example:
  actorq publish --name thumbnail '{"path": "a.png"}' '{"path": "b.png"}'
  jq -c '.[]' pictures.json | actorq publish --name thumbnail -""",
        json_help="""\
  one line for each task: {"id": ...}""",
    )
    parser.add_argument(
        "payloads", nargs="+", metavar="JSON", help="a payload; or - alone: one payload on each line of stdin"
    )
    parser.add_argument(
        "--name", default=DEFAULT_NAME, help="decides which handler runs the tasks (default: %(default)s)"
    )
    add_timeout(parser, "how long to wait for an acknowledgement")
    add_queue(parser)


def publish(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Publish arguments or lines."""
    path = queue_path(asked)
    if asked.payloads == ["-"]:
        return commands.publish_stream(path, sys.stdin.buffer, asked.name, asked.timeout, terminal, as_json=asked.json)
    return commands.publish_arguments(path, asked.payloads, asked.name, asked.timeout, terminal, as_json=asked.json)


# ---------------------------------------------------------------------------------------------------------------
# info, verify, repair, compact


def add_info(added: Commands) -> None:
    """Add `info`."""
    parser = add_command(
        added,
        "info",
        info,
        summary="say how the queue stands",
        text="""\
Reads the file without a lock, whether or not brokers run: tasks in each state, names that wait and whether a
consumer handles them, size of the file, who hosts the queue, which consumers are registered and what they hold.

example:
  actorq info --queue /var/spool/app/Queue.json
  actorq info --json | jq .counts.ready""",
        json_help="""\
  one object: queue, bytes, bytes_used, generation, commits, created, last_commit (ISO 8601, or null), host
  (null, or {pid, ...}), counts {state: number}, waiting [{name, ready, has_handler}],
  consumers [{session, pid, alive, names (null: every name), running, tasks [the first ids]}]""",
    )
    add_queue(parser)


def info(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Look at the queue."""
    return commands.show_info(existing_queue(asked), terminal, as_json=asked.json)


def add_verify(added: Commands) -> None:
    """Add `verify`."""
    parser = add_command(
        added,
        "verify",
        verify,
        summary="check every byte of the file, and change none",
        text="""\
Takes no lock and works beside a running queue. A last commit that a crash tore off is no damage: it was never
acknowledged. Exit status 1 when the file is damaged; the report says at which byte, and what to do.

example:
  actorq verify backup/Queue.json""",
        json_help="""\
  one object: ok, path, verdict (intact, torn, damaged or unreadable), reason, next_step, size, generation, commit
  (the last good one), good_bytes (where it ends), pieces, records, counts {state: number}, offset (of the first
  damage, or null), damages [{offset, commit, reason}], commits_behind (whole commits behind the first damage)""",
    )
    add_path(parser)


def verify(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Check the file."""
    return commands.verify_file(existing_queue(asked), terminal, as_json=asked.json)


def add_repair(added: Commands) -> None:
    """Add `repair`."""
    parser = add_command(
        added,
        "repair",
        repair,
        summary="make a damaged file usable again, and name what is lost",
        text="""\
Without --yes it changes nothing: it says what would be kept and which tasks would be lost, and ends with status 1.
With --yes a copy of the damaged file is kept beside it, and a new file with all that still checks takes its place.
A single changed bit is put right. What is not proved to be finished is ready again: tasks may run a second time.
Needs the queue for itself: stop the worker first. Exit status 3 when there is nothing to repair: what a crash tore
off the end is mended by the next start.

example:
  actorq repair Queue.json                  look at the plan
  actorq repair Queue.json --yes            do it
  actorq repair Queue.json --truncate-at 18211 --yes""",
        json_help="""\
  one object: ok, repaired, path, damages [{offset, commit, reason}], commits_kept, mended_bits [offset],
  unproved [commit], unverified [id], lost [id], lost_finished [id], lost_bytes, lost_commits [commit],
  run_again [id], torn_bytes, counts {state: number}, backup (null while it is a plan), generation""",
    )
    add_path(parser)
    parser.add_argument("--yes", action="store_true", help="do it; without this the plan is shown")
    parser.add_argument(
        "--truncate-at",
        type=positive,
        metavar="OFFSET",
        help="keep only the commits before this byte, though others behind it may be whole",
    )
    parser.add_argument(
        "--keep-unverified",
        action="store_true",
        help="keep the tasks of damaged commits that can still be read; their payload may have changed",
    )
    add_timeout(parser, "how long to wait for the host to leave")


def repair(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Show the plan of a repair, or do it."""
    return commands.repair_file(
        existing_queue(asked),
        asked.timeout,
        terminal,
        truncate_at=asked.truncate_at,
        keep_unverified=asked.keep_unverified,
        is_agreed=asked.yes,
        as_json=asked.json,
    )


def add_compact(added: Commands) -> None:
    """Add `compact`."""
    parser = add_command(
        added,
        "compact",
        compact,
        summary="rewrite the file without old finished tasks",
        text="""\
Removes finished tasks but the newest, and the history of all; what is counted stays counted. Unfinished and dead
tasks are always kept. Needs the queue for itself: stop the worker first.

example:
  actorq compact --keep-done 1000""",
        json_help="""\
  one object: generation, bytes_before, bytes_after, tasks (kept), removed""",
    )
    add_path(parser)
    parser.add_argument(
        "--keep-done",
        type=all_or_number,
        default=KEEP_DONE,
        metavar="N|all",
        help="finished tasks to keep, the newest (default: %(default)s)",
    )
    add_timeout(parser, "how long to wait for the host to leave")


def compact(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Compact the file."""
    return commands.compact_file(existing_queue(asked), asked.keep_done, asked.timeout, terminal, as_json=asked.json)

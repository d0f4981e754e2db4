"""The command line: which commands there are, and how errors are told.

    parser.py    what all commands have in common: options, the queue that is meant, help
    status.py    exit statuses, and errors in one line
    run.py       demo, worker, serve; signals.py for the last two
    publish.py   publish
    info.py      info
    tasks.py     ls, show
    log.py       log
    steer.py     retry, cancel, purge, pause, resume
    care.py      verify, repair, compact
    copy.py      dump, load
    bench.py     bench

Each command is described in its own `--help`; its parser and what it does stand in one module. Whatever a user can do
wrong ends in one line on standard error that says what to do next; a traceback is a bug of ours.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, override

from actorq.cli.parser import EXIT_STATUS, Parser
from actorq.cli.status import CommandError, Status, complain, os_error_in_words
from actorq.errors import ActorqError
from actorq.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actorq.cli.parser import Commands

__all__ = ["build_parser", "main"]

COMMANDS = {
    "demo": "run",
    "worker": "run",
    "serve": "run",
    "publish": "publish",
    "info": "info",
    "ls": "tasks",
    "show": "tasks",
    "log": "log",
    "retry": "steer",
    "cancel": "steer",
    "purge": "steer",
    "pause": "steer",
    "resume": "steer",
    "verify": "care",
    "repair": "care",
    "compact": "care",
    "dump": "copy",
    "load": "copy",
    "bench": "bench",
}
"""In the order of the help, and in which module each is. Only the one that is called is imported."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by `>&-`
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        # A file name that the terminal cannot show is no reason to fail.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # They take the same way out as Ctrl-C, so that no temporary file stays; but nohup's wish is kept.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    given = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(given[0] if given else None)
    name = "actorq"
    try:
        asked, unknown = parser.parse_known_args(given)
        name = f"actorq {asked.command}"
        if unknown:
            return complain(name, f"unrecognized arguments: {' '.join(unknown)}; see: {name} --help", Status.USAGE)
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


class ShowVersion(argparse.Action):
    """The action behind --version."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # noqa: PLC0415  # takes 20 ms, which the other commands need not wait

        parser.exit(message=f"actorq {version('actorq')}\n")


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command, or of all of them if it is none."""
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
    for name in COMMANDS if command not in COMMANDS else (command,):
        add: Callable[[Commands], None] = getattr(import_module(f"actorq.cli.{COMMANDS[name]}"), f"add_{name}")
        add(added)
    return parser

"""What all commands have in common: options, the queue that is meant, help that teaches by example."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, override

from actorq.cli.status import CommandError, Status, complain
from actorq.publisher import DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Callable

    from actorq.terminal import Terminal

EXIT_STATUS = "exit status: 0 done, 1 failed, 2 wrong usage, 3 nothing matched"

type Commands = "argparse._SubParsersAction[Parser]"  # noqa: SLF001  # argparse has no other name for it
type Run = "Callable[[argparse.Namespace, Terminal], int]"


class Parser(argparse.ArgumentParser):
    """A parser that complains in one line and says where the help is."""

    @override
    def error(self, message: str) -> NoReturn:
        sys.exit(complain(self.prog, f"{message}; see: {self.prog} --help", Status.USAGE))


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


def number_in[Number: (int, float)](text: str, kind: Callable[[str], Number] = int) -> Number:
    """Return the number that an option gives. argparse would name the function that could not read it."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number") from None


def positive(text: str) -> int:
    """Return the number that an option gives. Raises ArgumentTypeError."""
    number = number_in(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def seconds(text: str) -> float:
    """Return the seconds that an option gives. Raises ArgumentTypeError."""
    number = number_in(text, float)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def not_negative(text: str) -> int:
    """Return the number, from 0 on, that an option gives. Raises ArgumentTypeError."""
    number = number_in(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def all_or_number(text: str) -> int | None:
    """Return a number of tasks, or None for `all`. Raises ArgumentTypeError."""
    return None if text == "all" else not_negative(text)

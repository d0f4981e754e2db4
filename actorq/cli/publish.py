"""The command that puts tasks into the queue: arguments, or lines as they come."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from actorq.cli.parser import add_command, add_queue, add_timeout, queue_path
from actorq.cli.status import CommandError, Status
from actorq.errors import PayloadError, PublishError
from actorq.queue import Queue
from actorq.tasks.strict_json import parse_json
from actorq.tasks.task import DEFAULT_NAME, check_name
from actorq.terminal import bytes_in_words, count_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from actorq.cli.parser import Commands
    from actorq.terminal import Terminal

MAX_LINE_BYTES = 8 << 20
"""Of a line of standard input: white space and escapes included, no payload needs more."""

READ_BYTES = 1 << 20


def add_publish(added: Commands) -> None:
    """Add `publish`."""
    parser = add_command(
        added,
        "publish",
        run_publish,
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


def run_publish(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Publish arguments or lines."""
    path = queue_path(asked)
    if asked.payloads == ["-"]:
        return publish_stream(path, sys.stdin.buffer, asked.name, asked.timeout, terminal, as_json=asked.json)
    return publish_arguments(path, asked.payloads, asked.name, asked.timeout, terminal, as_json=asked.json)


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

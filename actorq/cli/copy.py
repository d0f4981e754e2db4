"""Commands that copy a queue out of its file and into one: dump, load."""

from __future__ import annotations

import os
import sys
from itertools import batched, chain
from pathlib import Path
from typing import TYPE_CHECKING

from actorq.actors.linux import boot_id, require_linux
from actorq.cli.care import alone_with
from actorq.cli.parser import add_command, add_path, add_timeout, existing_queue, queue_path
from actorq.cli.status import CommandError, Status
from actorq.store.compaction import fold_all
from actorq.store.dump import dump_lines, parse_head, tasks_in
from actorq.store.filesystem import REAL
from actorq.store.load import load
from actorq.store.log_reader import LogReader
from actorq.store.new_file import NewFile
from actorq.terminal import Terminal, bytes_in_words, count_of, counts_in_words, plain, printable_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

    from actorq.cli.parser import Commands

LINES_AT_ONCE = 1000

MAX_LINE_BYTES = 64 << 20
"""Of a line of a dump: payload, result and all errors of a task."""

DUMP_FORMAT = """\
The first line is {"actorq_dump":1,"tasks":N,"removed":{"done":N}}: how many lines follow, and how many finished
tasks had left the queue before; where something is paused, also which names (null: the whole queue), as paused.
Who takes some lines out of a dump leaves the member tasks out of the first.
Every other line is a task, in the order in which they were published:
  id, name, data
  state           ready, scheduled, done, dead or cancelled; what runs is dumped as ready, and not charged
  published_at    ISO 8601 in UTC with milliseconds, like 2026-11-23T18:00:02.246Z
  started_at, finished_at    only of finished tasks: done, dead and cancelled
  failures, crashes          how often the handler raised, and how often it took its process along
  errors          [{type, message, traceback, at}], the oldest first
  result          only of done tasks
Members that have nothing to say are left out. The format stays as it is; a later one has another number."""


# ---------------------------------------------------------------------------------------------------------------
# dump


def add_dump(added: Commands) -> None:
    """Add `dump`."""
    parser = add_command(
        added,
        "dump",
        run_dump,
        summary="write a queue as lines of JSON",
        text=f"""\
All tasks as they are at this moment. Takes no lock and works beside a running queue. `load` makes the same queue of
it: dumped again it is the same bytes.

{DUMP_FORMAT}

example:
  actorq dump > backup.jsonl
  actorq dump var/Queue.json --output backup.jsonl
  actorq dump | jq -c 'select(.state == "dead" or .actorq_dump) | del(.tasks)' > dead.jsonl""",
        json_help="""\
  a dump is JSON already; with --output one object: {tasks, bytes, output}""",
    )
    add_path(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write there, all or nothing; by default to standard output"
    )


def run_dump(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Write the queue as lines of JSON."""
    if asked.output is not None and os.path.realpath(asked.output) == os.path.realpath(queue_path(asked)):
        raise CommandError("--output names the queue itself; name another file", Status.USAGE)
    path = existing_queue(asked)
    reader = LogReader(path)
    try:
        state, _ = fold_all(reader)
        progress = Progress("dumped", tasks_in(state), is_shown=asked.output is not None or not sys.stdout.isatty())
        texts = (
            "".join(printable_json(line[:-1].decode()) + "\n" for line in lines)
            for lines in batched(progress.counted(dump_lines(state, reader.read)), LINES_AT_ONCE)
        )
        if asked.output is None:
            for text in texts:
                terminal.data(text)
            return Status.DONE
        # It may hold what only the owner is to read, so it is private like the queue.
        output = Path(os.path.realpath(asked.output))  # a link stays one
        if output.exists() and not output.is_file():  # a pipe, or /dev/null: written to, not replaced
            with output.open("wb") as stream:
                size = sum(stream.write(text.encode()) for text in texts)
        else:
            with NewFile(output, REAL) as new:
                for text in texts:
                    new.write(text.encode())
                size = new.size
                new.replace()
    finally:
        reader.close()
    if asked.json:
        terminal.json({"tasks": tasks_in(state), "bytes": size, "output": str(asked.output)})
    terminal.line(f"{count_of(tasks_in(state), 'task')}, {bytes_in_words(size)}, in {plain(str(asked.output))}")
    return Status.DONE


# ---------------------------------------------------------------------------------------------------------------
# load


def add_load(added: Commands) -> None:
    """Add `load`."""
    parser = add_command(
        added,
        "load",
        run_load,
        summary="put a dump into a queue, all of it or nothing",
        text=f"""\
Reads what dump has written from standard input. The queue is made if there is none. Into one that has tasks they come
behind those; none of the ids may be there already. The first line that is wrong is named, and nothing is loaded.
Needs the queue for itself: stop the worker first.

{DUMP_FORMAT}

example:
  actorq dump old/Queue.json | actorq load new/Queue.json
  actorq load --input backup.jsonl""",
        json_help="""\
  one object: tasks (how many were loaded), queue, generation, counts {state: number} (of all that are there now)""",
    )
    add_path(parser)
    parser.add_argument("--input", type=Path, metavar="FILE", help="read this file; by default standard input")
    add_timeout(parser, "how long to wait for the host to leave")


def run_load(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Put a dump into a queue."""
    require_linux()
    path = queue_path(asked)
    if asked.input is None and sys.stdin.isatty():
        raise CommandError("a dump is read from a pipe or a file; name it with --input FILE", Status.USAGE)
    stream = sys.stdin.buffer if asked.input is None else asked.input.open("rb")
    try:
        lines = lines_of(stream)
        # Looked at before any lock, so that no lock file appears where nothing comes of it.
        head = next(lines, b"")
        tasks = parse_head(head).tasks
        if os.path.lexists(path):
            LogReader(path).close()
        progress = Progress("loaded", tasks, is_shown=True)
        with alone_with(path, asked.timeout):
            done = load(path, progress.counted(chain([head], lines)), boot_id=boot_id(), pid=os.getpid())
    finally:
        if asked.input is not None:
            stream.close()
    if asked.json:
        terminal.json({"tasks": done.tasks, "queue": str(path), "generation": done.generation, "counts": done.counts})
    terminal.line(
        f"{count_of(done.tasks, 'task')} loaded into {plain(str(path))}; now there are {counts_in_words(done.counts)}"
    )
    return Status.DONE


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream, none of which may be longer than memory."""
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES:
            raise CommandError(f"line {number} is longer than {bytes_in_words(MAX_LINE_BYTES)}; nothing was loaded")
        yield line


class Progress:
    """Says on standard error how far it has got, if that is a terminal."""

    def __init__(self, verb: str, total: int | None, *, is_shown: bool) -> None:
        self._verb = verb
        self._of = "" if total is None else f" of {total:,}"
        self._terminal = Terminal(sys.stderr)
        self._is_shown = is_shown and self._terminal.is_live

    def counted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the lines, the first of which is no task."""
        try:
            for number, line in enumerate(lines):
                if self._is_shown and number % LINES_AT_ONCE == 0:
                    self._terminal.status(f"{self._verb} {number:,}{self._of} tasks")
                yield line
        finally:
            self._terminal.end_status()

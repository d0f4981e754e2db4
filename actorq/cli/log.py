"""The command that tells what has happened, out of the file."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from actorq.cli.parser import add_command, add_queue, existing_queue, not_negative
from actorq.cli.status import CommandError, Status
from actorq.errors import TaskNotFoundError
from actorq.store.history import HistoryReader
from actorq.tasks.ids import parse_task_id
from actorq.terminal import Style, count_of, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from actorq.cli.parser import Commands
    from actorq.store.history import Event
    from actorq.terminal import Terminal

LAST = 50
"""How many events of the whole queue are shown; of one task it is all of them."""

FOLLOW_SECONDS = 0.1
"""How often `--follow` looks at the file: that takes some 20 us, and no lock."""

STYLES = {
    "failed": Style.RED,
    "crashed": Style.RED,
    "done": Style.GREEN,
    "assigned": Style.YELLOW,
    "void": Style.DIM,
    "compacted": Style.BOLD,
}


def add_log(added: Commands) -> None:
    """Add `log`."""
    parser = add_command(
        added,
        "log",
        run_log,
        summary="tell what has happened, to one task or to all",
        text="""\
One line for each event, the newest last, with the time at which it was written. Of a task:
  published   assigned (to a consumer)   done   failed (its handler raised)   crashed (and took its process along)
  returned (not begun)   released (its consumer has died; not charged)   cancelled   revived
  void (an assignment or an outcome that came too late, and was refused)
Without ID also: writer (one takes over)   scheduler   joined and left (publishers and consumers)
A file that was compacted tells how its tasks stood: compacted, published, kept; the history before that is gone.
With --follow it goes on until Ctrl-C, which is status 0. Exit status 3 when the task is not in the queue.

example:
  actorq log -n 20 --follow
  actorq log k3v9x2m4q7ab-17
  actorq log -n 0 --json | jq -r 'select(.event == "failed") | .error.type' | sort | uniq -c""",
        json_help="""\
  one line for each event: {at (ISO 8601), commit (0: from a compaction), event, tasks (a range of ids, or null),
  count, name, attempt (of one task), state (of the tasks since then), session, pid, error {type, message,
  traceback} or null, note}""",
    )
    parser.add_argument("id", nargs="?", metavar="ID", help="only of this task; by default of the whole queue")
    parser.add_argument(
        "-n",
        "--last",
        type=not_negative,
        metavar="N",
        help=f"only the last so many; 0 tells all (default: {LAST}, of one task all)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on as more happens, until Ctrl-C")
    add_queue(parser)


def run_log(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Tell what has happened."""
    path = existing_queue(asked)
    if asked.id is not None:
        require_id(asked.id)
    last = asked.last if asked.last is not None else LAST if asked.id is None else 0
    with HistoryReader(path, asked.id) as history:
        try:
            write(deque(history.events(), last) if last else history.events(), terminal, as_json=asked.json)
            if asked.id is not None and not history.knows_task:
                raise not_found(asked.id)
            if asked.follow:
                # In a function of its own: a ^C that comes as a `while` jumps back passes by the `try` around it, as
                # CPython leaves that jump out of what the `try` covers.
                follow(history, terminal, as_json=asked.json)
        except KeyboardInterrupt:
            if not asked.follow:
                raise
    return Status.DONE


def follow(history: HistoryReader, terminal: Terminal, *, as_json: bool) -> NoReturn:
    """Write what happens from here on, until ^C."""
    while True:
        time.sleep(FOLLOW_SECONDS)
        write(history.events(), terminal, as_json=as_json)


def require_id(task_id: str) -> None:
    """Raise CommandError unless this could be the id of a task."""
    try:
        parse_task_id(task_id)
    except ValueError:
        raise not_found(task_id) from None


def not_found(task_id: str) -> CommandError:
    """Return the error for a task that is not in the queue."""
    return CommandError(f"{TaskNotFoundError(task_id)}; ids are those that publish and ls write", Status.NOTHING)


def write(events: Iterable[Event], terminal: Terminal, *, as_json: bool) -> None:
    """Write a line for each event."""
    for event in events:
        if as_json:
            terminal.json(asdict(event))
        else:
            style = STYLES.get(event.event)
            word = f"{event.event:<9}"
            word = word if style is None else terminal.styled(word, style)
            terminal.line("  ".join([event.at, word, *in_words(event)]))


def in_words(event: Event) -> list[str]:
    """Return what an event was about."""
    parts = []
    if event.tasks is not None:
        parts.append(event.tasks)
        parts.append(plain(event.name or ""))
    if event.count > 1:
        parts.append(count_of(event.count, "task"))
    if event.attempt is not None and (event.attempt > 1 or event.error):
        parts.append(f"attempt {event.attempt}")
    if event.session is not None and event.event != "published":
        parts.append(f"{_ROLES.get(event.event, 'consumer')} {event.session}".strip())
    if event.pid is not None:
        parts.append(f"process {event.pid}")
    if event.error is not None:
        parts.append(plain(f"{event.error['type']}: {event.error['message']}"))
    if event.note:
        parts.append(plain(event.note))
    if event.state in _TOLD_STATES.get(event.event, ()):
        parts.append(f"then {event.state}")
    return parts


_ROLES = {"scheduler": "", "joined": "", "left": ""}
_TOLD_STATES = {
    "failed": ("ready", "dead"),
    "crashed": ("ready", "dead"),
    "kept": ("ready", "scheduled", "running", "done", "dead", "cancelled"),
}
"""Where the word for the event does not tell what the tasks are since then."""

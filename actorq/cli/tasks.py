"""Commands that look at tasks: ls, show."""

from __future__ import annotations

from itertools import batched
from typing import TYPE_CHECKING, Any

import orjson

from actorq.cli.parser import add_command, add_queue, existing_queue, not_negative
from actorq.cli.status import CommandError, Status
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import TaskNotFoundError
from actorq.queue import Queue
from actorq.tasks.lifecycle import TaskState
from actorq.terminal import Style, ago, aligned, count_of, cut, json_text, plain, seconds_in_words
from actorq.view import View

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from datetime import datetime

    from actorq.cli.parser import Commands
    from actorq.store.clients import ConsumerState
    from actorq.tasks.task import Task
    from actorq.terminal import Terminal

LIMIT = 100

ROWS_AT_ONCE = 1000
"""Of a long table the columns are laid out for so many rows: nobody wants to wait for the last one."""

NARROWEST_PAYLOAD = 12

STYLES = {
    TaskState.RUNNING: Style.YELLOW,
    TaskState.DONE: Style.GREEN,
    TaskState.DEAD: Style.RED,
    TaskState.CANCELLED: Style.DIM,
}

TASK_JSON = """\
  one line for each task: {id, name, state, attempts, errors [{type, message, traceback, at}, the oldest first],
  published_at, started_at, finished_at (ISO 8601, or null), data, result}"""


# ---------------------------------------------------------------------------------------------------------------
# ls


def add_ls(added: Commands) -> None:
    """Add `ls`."""
    parser = add_command(
        added,
        "ls",
        run_ls,
        summary="list tasks",
        text="""\
One line for each task, in the order in which they were published: the newest is the last. Of many, the newest are
shown. On a terminal the payload is cut to its width. Reads the file without a lock, whether or not brokers run.
Exit status 3 when there is no such task.

example:
  actorq ls --state dead --state cancelled
  actorq ls --name thumbnail --limit 0 --json | jq -r 'select(.attempts > 1) | .id'""",
        json_help=TASK_JSON,
    )
    parser.add_argument(
        "--state",
        action="append",
        choices=[str(state) for state in TaskState],
        metavar="S",
        help=f"only tasks in this state: {', '.join(TaskState)}; may be given several times",
    )
    parser.add_argument("--name", metavar="N", help="only tasks of this name")
    parser.add_argument(
        "--limit",
        type=not_negative,
        default=LIMIT,
        metavar="N",
        help="at most so many; 0 shows all (default: %(default)s)",
    )
    add_queue(parser)


def run_ls(asked: argparse.Namespace, terminal: Terminal) -> int:
    """List tasks."""
    queue = Queue(existing_queue(asked))
    shown = 0
    widths = [0] * 5
    for tasks in batched(queue.tasks(asked.state, asked.name, limit=asked.limit or None), ROWS_AT_ONCE):
        if asked.json:
            for task in tasks:
                terminal.json(as_json(task))
        else:
            widths = show_rows(tasks, widths, terminal, with_header=not shown)
        shown += len(tasks)
    if not shown:
        terminal.line("no such task; see how many there are of each state with: actorq info")
        return Status.NOTHING
    return Status.DONE


def show_rows(tasks: Iterable[Task], widths: list[int], terminal: Terminal, *, with_header: bool) -> list[int]:
    """Write a table in columns at least so wide, and return how wide they are."""
    now = SYSTEM_CLOCK.wall()
    rows = [("id", "name", "state", "age", "attempts")] if with_header else []
    payloads = ["payload"] if with_header else []
    for task in tasks:
        age = seconds_in_words(max(0.0, now - task.published_at.timestamp())) if task.published_at else ""
        rows.append((task.id, plain(task.name), task.state, age, f"{task.attempts}"))
        payloads.append(json_text(task.data))
    laid_out = aligned(rows, "<<<>>", least=widths)
    widths = [max(width, *(len(row[at]) for row in rows)) for at, width in enumerate(widths)]
    for row, line, payload in zip(rows, laid_out, payloads, strict=True):
        room = None if terminal.width is None else max(NARROWEST_PAYLOAD, terminal.width - len(line) - 2)
        text = f"{line}  {cut(payload, room)}"
        state, at = row[2], widths[0] + widths[1] + 4
        if state in TaskState:
            terminal.line(f"{text[:at]}{in_colour(TaskState(state), terminal)}{text[at + len(state) :]}")
        else:
            terminal.line(terminal.styled(text, Style.DIM))
    return widths


def in_colour(state: TaskState, terminal: Terminal) -> str:
    """Return the word for a state."""
    return terminal.styled(state, STYLES[state]) if state in STYLES else str(state)


def as_json(task: Task) -> dict[str, Any]:
    """Return all that is known of a task, as every command writes it."""
    return {
        "id": task.id,
        "name": task.name,
        "state": task.state,
        "attempts": task.attempts,
        "errors": [
            {"type": error.type, "message": error.message, "traceback": error.traceback, "at": iso(error.at)}
            for error in task.errors
        ],
        "published_at": iso(task.published_at),
        "started_at": iso(task.started_at),
        "finished_at": iso(task.finished_at),
        "data": task.data,
        "result": task.result,
    }


def iso(moment: datetime | None) -> str | None:
    """Return a time as it stands in the file."""
    return None if moment is None else f"{moment.isoformat(timespec='milliseconds').removesuffix('+00:00')}Z"


# ---------------------------------------------------------------------------------------------------------------
# show


def add_show(added: Commands) -> None:
    """Add `show`."""
    parser = add_command(
        added,
        "show",
        run_show,
        summary="show all that is known of tasks",
        text="""\
State and times, who has it, every error with its traceback, payload and result. Exit status 3 when one of the ids is
not in the queue; those that are there are shown all the same.

example:
  actorq show k3v9x2m4q7ab-17
  actorq ls --state dead --json | jq -r .id | xargs actorq show""",
        json_help=TASK_JSON,
    )
    parser.add_argument("ids", nargs="+", metavar="ID", help="a task, as publish and ls name it")
    add_queue(parser)


def run_show(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Show tasks."""
    view = View(existing_queue(asked))
    missing = []
    for at, task_id in enumerate(asked.ids):
        try:
            task = view.get(task_id)
        except TaskNotFoundError:
            missing.append(task_id)
            continue
        if asked.json:
            terminal.json(as_json(task))
        else:
            if at:
                terminal.line()
            show_task(task, view.holder_of(task_id), terminal)
    view.close()
    if missing:
        named = ", ".join(map(repr, missing))
        noun = "task" if len(missing) == 1 else "tasks"
        raise CommandError(f"no {noun} {named} in the queue; ids are those that publish and ls write", Status.NOTHING)
    return Status.DONE


def show_task(task: Task, holder: ConsumerState | None, terminal: Terminal) -> None:
    """Write all that is known of a task."""
    state = in_colour(task.state, terminal)
    if holder is not None:
        state += f", with consumer {holder.session} (process {holder.pid})"
    attempts = count_of(task.attempts, "attempt")
    if task.errors:
        attempts += f", {count_of(len(task.errors), 'error')}"
    rows = [("task", terminal.styled(task.id, Style.BOLD)), ("name", plain(task.name)), ("state", state)]
    times = (("published", task.published_at), ("started", task.started_at), ("finished", task.finished_at))
    rows += [(word, in_words(moment)) for word, moment in times if moment is not None]
    rows.append(("attempts", attempts))
    terminal.table(rows, "<<")
    for number, error in enumerate(task.errors, 1):
        when = f", {in_words(error.at)}" if error.at else ""
        title = f"error {number} of {len(task.errors)}{when}"
        terminal.line(terminal.styled(title, Style.DIM))
        terminal.line(f"  {terminal.styled(plain(error.type), Style.RED)}: {plain(error.message)}")
        for line in error.traceback.splitlines():
            terminal.line(f"    {plain(line)}")
    show_value("payload", task.data, terminal)
    if task.state is TaskState.DONE:
        show_value("result", task.result, terminal)


def show_value(title: str, value: object, terminal: Terminal) -> None:
    """Write JSON so that people can read it."""
    terminal.line(terminal.styled(title, Style.DIM))
    for line in orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().split("\n"):
        terminal.line(f"  {plain(line)}")


def in_words(moment: datetime) -> str:
    """Return how long ago something was, and when that was exactly."""
    return f"{ago(SYSTEM_CLOCK.wall() - moment.timestamp())} ({iso(moment)})"

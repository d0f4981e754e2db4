"""The commands that steer: retry, cancel and purge tasks; pause and resume names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actorq.cli.parser import add_command, add_queue, add_timeout, existing_queue
from actorq.cli.status import CommandError, Status
from actorq.errors import TaskNotFoundError
from actorq.joining import WayIn
from actorq.publisher import ids_of
from actorq.queue import Queue
from actorq.steering import DirectSteering, steer
from actorq.store.steering import wishes_for_all
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import STEERED, Verb
from actorq.tasks.task import check_name
from actorq.terminal import count_of, plain
from actorq.view import View

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from actorq.cli.parser import Commands, Parser
    from actorq.terminal import Terminal

ANSWER = "how long to wait for an answer"
TASKS_JSON = """\
  one line for each task for which it is so now: {"id": ...}"""
NAMES_JSON = """\
  one object: {"paused": [name, ...]}, what is paused from now on; null stands for the whole queue"""

DONE_WORDS = {Verb.RETRY: "ready again", Verb.CANCEL: "cancelled", Verb.PURGE: "purged"}


# ---------------------------------------------------------------------------------------------------------------
# retry, cancel, purge


def add_retry(added: Commands) -> None:
    """Add `retry`."""
    parser = add_command(
        added,
        "retry",
        lambda asked, terminal: run_on_tasks(Verb.RETRY, asked, terminal),
        summary="let dead tasks run again",
        text="""\
They are ready in their old place and have all attempts once more; the errors that they died of stay in their
history. Exit status 3 when there is no such task.

example:
  actorq retry k3v9x2m4q7ab-17
  actorq retry --all --name thumbnail""",
        json_help=TASKS_JSON,
    )
    add_choice(parser, {"--all": ("every dead task", STEERED[Verb.RETRY])})


def add_cancel(added: Commands) -> None:
    """Add `cancel`."""
    parser = add_command(
        added,
        "cancel",
        lambda asked, terminal: run_on_tasks(Verb.CANCEL, asked, terminal),
        summary="cancel tasks that wait",
        text="""\
A task that is ready or scheduled never runs then. One that a consumer has been handed already is let run; it is
named, and with status 3 when no task was cancelled.

example:
  actorq cancel k3v9x2m4q7ab-17 k3v9x2m4q7ab-18
  actorq cancel --all --name thumbnail""",
        json_help=TASKS_JSON,
    )
    add_choice(parser, {"--all": ("every task that waits", STEERED[Verb.CANCEL])})


def add_purge(added: Commands) -> None:
    """Add `purge`."""
    parser = add_command(
        added,
        "purge",
        lambda asked, terminal: run_on_tasks(Verb.PURGE, asked, terminal),
        summary="forget tasks that are finished",
        text="""\
Nobody finds them any more, and the next compaction drops their bytes. Those that were done or cancelled are counted
on. All tasks of a state go only with --yes; without it, it is said how many these are, and the status is 1. Exit
status 3 when there is no such task.

example:
  actorq purge k3v9x2m4q7ab-17
  actorq purge --dead --name thumbnail --yes""",
        json_help=TASKS_JSON,
    )
    states = [TaskState.DEAD, TaskState.DONE, TaskState.CANCELLED]
    add_choice(parser, {f"--{state}": (f"every task that is {state}", (state,)) for state in states})
    parser.add_argument("--yes", action="store_true", help="do it, with all tasks of a state")


def add_choice(parser: Parser, options: dict[str, tuple[str, Sequence[TaskState]]]) -> None:
    """Add ids, and options in their place."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="a task, as publish wrote it")
    for option, (summary, states) in options.items():
        parser.add_argument(
            option, dest="states", action="append_const", const=states, help=f"{summary}, instead of single ones"
        )
    parser.add_argument("--name", metavar="N", help="of these, only tasks of this name")
    add_timeout(parser, ANSWER)
    add_queue(parser)
    parser.set_defaults(options=list(options))


def run_on_tasks(verb: Verb, asked: argparse.Namespace, terminal: Terminal) -> int:
    """Steer the tasks that are meant, and write which of them are as was asked."""
    if bool(asked.ids) is (asked.states is not None):
        options = " or ".join(asked.options)
        raise CommandError(f"name tasks, or give {options}; see: actorq {verb} --help", Status.USAGE)
    if asked.ids and asked.name is not None:
        raise CommandError(f"--name goes with {' or '.join(asked.options)}; ids are of one task each", Status.USAGE)
    path = existing_queue(asked)
    done = steer_ids(verb, path, asked) if asked.ids else steer_all(verb, path, asked)
    if asked.json:
        for task_id in done:
            terminal.json({"id": task_id})
    else:
        terminal.line(f"{count_of(len(done), 'task')} {DONE_WORDS[verb]}")
        show_others([task_id for task_id in asked.ids if task_id not in set(done)], path, terminal)
    return Status.DONE if done else Status.NOTHING


def show_others(task_ids: Sequence[str], path: Path, terminal: Terminal) -> None:
    """Write why it was not done with these: of all that could be seen beforehand we have complained."""
    view = View(path)
    for task_id in task_ids:
        try:
            terminal.line(f"{plain(task_id)} is {view.get(task_id).state}, and stays so")
        except TaskNotFoundError:
            terminal.line(f"{plain(task_id)} has left the queue meanwhile")
    view.close()


def steer_ids(verb: Verb, path: Path, asked: argparse.Namespace) -> list[str]:
    """Steer the tasks that are named."""
    do: dict[Verb, Callable[..., list[str]]] = {
        Verb.RETRY: Queue(path).retry,
        Verb.CANCEL: Queue(path).cancel,
        Verb.PURGE: Queue(path).purge,
    }
    try:
        return do[verb](*asked.ids, timeout=asked.timeout)
    except TaskNotFoundError as error:
        raise CommandError(f"{error}; nothing was done", Status.NOTHING) from error


def steer_all(verb: Verb, path: Path, asked: argparse.Namespace) -> list[str]:
    """Steer all tasks of some states, chosen in the same look at the queue by which it is decided."""
    states = [state for states in asked.states for state in states]
    path = Queue(path).path
    view = View(path)
    try:
        wishes = view.look(lambda state: wishes_for_all(state, verb, states, asked.name))
        if not wishes:
            return []
        if verb is Verb.PURGE and not asked.yes:
            number = sum(ids.count for wish in wishes for ids in wish.tasks)
            raise CommandError(f"{count_of(number, 'task')} would be forgotten; to do it: --yes")
        return ids_of(
            steer(
                path,
                WayIn(path),
                view.look,
                lambda state: wishes_for_all(state, verb, states, asked.name),
                asked.timeout,
                lambda way_in: DirectSteering(path, way_in),
            )
        )
    finally:
        view.close()


# ---------------------------------------------------------------------------------------------------------------
# pause, resume


def add_pause(added: Commands) -> None:
    """Add `pause`."""
    parser = add_command(
        added,
        "pause",
        run_pause,
        summary="hand out no tasks of a name, or none at all",
        text="""\
Until `actorq resume` of the same. Tasks may be published meanwhile, and consumers finish what they run. Restarts
make no difference; `actorq info` shows what is paused.

example:
  actorq pause thumbnail
  actorq pause               the whole queue""",
        json_help=NAMES_JSON,
    )
    add_name(parser)


def add_resume(added: Commands) -> None:
    """Add `resume`."""
    parser = add_command(
        added,
        "resume",
        run_resume,
        summary="take back a pause",
        text="""\
That of the name, or without one that of the whole queue; names that are paused by themselves stay paused. Exit
status 3 when it was not paused.

example:
  actorq resume thumbnail
  actorq resume              the whole queue""",
        json_help=NAMES_JSON,
    )
    add_name(parser)


def add_name(parser: Parser) -> None:
    """Add the name."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the name of tasks; without it the whole queue is meant"
    )
    add_timeout(parser, ANSWER)
    add_queue(parser)


def run_pause(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Pause."""
    queue, name = named(asked)
    queue.pause(name, timeout=asked.timeout)
    again = "actorq resume" if name is None else f"actorq resume {plain(name)}"
    return show_paused(queue, asked, terminal, f"{in_words(name)} is paused; to let it go on: {again}")


def run_resume(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Take back a pause."""
    queue, name = named(asked)
    if name not in queue.paused():
        paused = ", ".join(map(in_words, queue.paused())) or "nothing"
        raise CommandError(f"{in_words(name)} is not paused; what is: {paused}", Status.NOTHING)
    queue.resume(name, timeout=asked.timeout)
    return show_paused(queue, asked, terminal, f"{in_words(name)} goes on")


def named(asked: argparse.Namespace) -> tuple[Queue, str | None]:
    """Return the queue and the name that are meant."""
    try:
        name = None if asked.name is None else check_name(asked.name)
    except ValueError as error:
        raise CommandError(str(error), Status.USAGE) from error
    return Queue(existing_queue(asked)), name


def show_paused(queue: Queue, asked: argparse.Namespace, terminal: Terminal, text: str) -> int:
    """Write what was done, and what is paused now."""
    if asked.json:
        terminal.json({"paused": queue.paused()})
    terminal.line(text)
    return Status.DONE


def in_words(name: str | None) -> str:
    """Return what a pause is of."""
    return "the whole queue" if name is None else plain(name)

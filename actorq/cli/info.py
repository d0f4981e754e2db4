"""The command that says how the queue stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from actorq.actors.linux import boot_id, process_start_time
from actorq.cli.parser import add_command, add_queue, existing_queue
from actorq.cli.status import Status
from actorq.clock import SYSTEM_CLOCK, from_iso
from actorq.store.fold import QueueState
from actorq.store.locks import is_hosted, read_owner
from actorq.store.log_reader import LogReader
from actorq.terminal import Style, ago, aligned, bytes_in_words, count_of, plain

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from actorq.cli.parser import Commands
    from actorq.store.fold import ConsumerState
    from actorq.terminal import Terminal

TASKS_SHOWN = 3
"""Of what a consumer holds; the rest is counted."""


def add_info(added: Commands) -> None:
    """Add `info`."""
    parser = add_command(
        added,
        "info",
        run_info,
        summary="say how the queue stands",
        text="""\
Reads the file without a lock, whether or not brokers run: tasks in each state, names that wait and whether a
consumer handles them, what is paused, size of the file, who hosts the queue, which consumers are registered and
what they hold.

example:
  actorq info --queue /var/spool/app/Queue.json
  actorq info --json | jq .counts.ready""",
        json_help="""\
  one object: queue, bytes, bytes_used, generation, commits, created, last_commit (ISO 8601, or null), host
  (null, or {pid, ...}), counts {state: number}, waiting [{name, ready, has_handler}],
  paused [name] (null: the whole queue),
  consumers [{session, pid, alive, names (null: every name), running, tasks [the first ids]}]""",
    )
    add_queue(parser)


def run_info(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Say how the queue stands."""
    info = look(existing_queue(asked))
    if asked.json:
        terminal.json(asdict(info))
        return Status.DONE
    now = SYSTEM_CLOCK.wall()
    last = "nothing committed yet"
    if info.last_commit is not None:
        last = f"{count_of(info.commits, 'commit')}, the last {ago(now - from_iso(info.last_commit))}"
    reserved = info.bytes - info.bytes_used
    size = bytes_in_words(info.bytes_used) + (f" and {bytes_in_words(reserved)} reserved" if reserved > 0 else "")
    if info.host is None:
        host = "nobody; start one with: actorq worker MODULE:QUEUE"
    else:
        host = f"process {info.host.get('pid', 'unknown')}"
    rows = [
        ("queue", plain(info.queue)),
        ("size", f"{size}, generation {info.generation}, created {ago(now - from_iso(info.created))}"),
        ("log", last),
        ("host", host),
    ]
    if info.paused:
        paused = ["the whole queue" if name is None else plain(name) for name in info.paused]
        rows.append(("paused", f"{', '.join(paused)}; to go on: actorq resume [NAME]"))
    terminal.table(rows, "<<")
    terminal.line()
    states = list(info.counts)
    header, numbers = aligned([states, [f"{number:,}" for number in info.counts.values()]], ">" * len(states))
    terminal.line(terminal.styled(header, Style.DIM))
    terminal.line(terminal.styled(numbers, Style.BOLD))
    if info.waiting:
        terminal.line()
        show_waiting(info, terminal)
    if info.consumers:
        terminal.line()
        show_consumers(info, terminal)
    return Status.DONE


class Holder(NamedTuple):
    """A consumer that is registered, whether its process lives, and the first of the tasks that it has."""

    consumer: ConsumerState
    is_alive: bool
    tasks: list[str]


@dataclass(frozen=True, slots=True)
class Info:
    """What Queue.json and its locks say at one moment."""

    queue: str
    bytes: int
    bytes_used: int
    generation: int
    commits: int
    created: str
    last_commit: str | None
    host: dict[str, Any] | None
    counts: dict[str, int]
    waiting: list[dict[str, Any]]
    paused: list[str | None]
    consumers: list[dict[str, Any]]


def look(path: Path) -> Info:
    """Read the queue without any lock. Raises FileNotFoundError, CorruptQueueError, UnsupportedFormatError."""
    log = LogReader(path)
    try:
        state = QueueState()
        last_commit = None
        for batch in log.batches():
            state.apply(batch)
            last_commit = batch.commit.at
        boot = boot_id()
        holders = [holder_of(consumer, state, boot) for consumer in state.consumers.values()]
        living = [holder.consumer for holder in holders if holder.is_alive]
        return Info(
            queue=str(path),
            bytes=path.stat().st_size,
            bytes_used=log.position.offset + len(b"]\n"),
            generation=log.generation,
            commits=log.commit,
            created=log.header.created,
            last_commit=last_commit,
            host=host_of(path),
            counts=state.counts(),
            waiting=[
                {
                    "name": name,
                    "ready": ready,
                    "has_handler": any(each.names is None or name in each.names for each in living),
                }
                for name, ready in sorted(state.waiting_names().items())
            ],
            paused=state.pauses(),
            consumers=[
                {
                    "session": consumer.session,
                    "pid": consumer.pid,
                    "alive": is_alive,
                    "names": None if consumer.names is None else sorted(consumer.names),
                    "running": consumer.outstanding,
                    "tasks": tasks,
                }
                for consumer, is_alive, tasks in holders
            ],
        )
    finally:
        log.close()


def holder_of(consumer: ConsumerState, state: QueueState, boot: str) -> Holder:
    """Return what a registered consumer has, and whether its process is still there."""
    is_alive = consumer.boot == boot and process_start_time(consumer.pid) == consumer.start
    tasks = [
        state.id_of(place)
        for assignment in consumer.assignments.values()
        for lo, hi in assignment.held
        for place in range(lo, min(hi, lo + TASKS_SHOWN))
    ]
    return Holder(consumer, is_alive, tasks[:TASKS_SHOWN])


def host_of(path: Path) -> dict[str, Any] | None:
    """Return what the host wrote about itself, or None when nobody hosts the queue."""
    return (read_owner(path) or {}) if is_hosted(path) else None


def show_waiting(info: Info, terminal: Terminal) -> None:
    """Write which names have ready tasks, and which of them nobody takes."""
    rows = [("waiting", "ready", "")]
    for each in info.waiting:
        # Without consumers there is nothing to say about handlers.
        is_orphan = info.consumers and not each["has_handler"]
        rows.append((plain(each["name"]), f"{each['ready']:,}", "no consumer handles this name" if is_orphan else ""))
    terminal.table(rows, "<><")


def show_consumers(info: Info, terminal: Terminal) -> None:
    """Write who is registered and what each holds."""
    rows = [("consumer", "pid", "holds", "takes", "")]
    for each in info.consumers:
        takes = "every name" if each["names"] is None else plain(", ".join(each["names"]))
        held = ", ".join(each["tasks"])
        if each["running"] > len(each["tasks"]):
            held += ", ..."
        if not each["alive"]:
            held = f"gone; its tasks go back when brokers run: {held}" if held else "gone"
        rows.append((each["session"], str(each["pid"]), f"{each['running']:,}", takes, held))
    terminal.table(rows, "<>><<")

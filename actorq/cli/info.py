"""The command that says how the queue stands, once or again and again."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actorq.cli.parser import add_command, add_queue, existing_queue, seconds
from actorq.cli.status import Status
from actorq.clock import SYSTEM_CLOCK, from_iso
from actorq.observer import Observer
from actorq.terminal import Style, ago, aligned, bytes_in_words, count_of, plain, seconds_in_words

if TYPE_CHECKING:
    import argparse

    from actorq.cli.parser import Commands
    from actorq.observer import Info
    from actorq.terminal import Terminal

WATCH_SECONDS = 1.0

SHORTEST_WATCH_SECONDS = 0.05

INFO_JSON = """\
  one object: at, queue, bytes, bytes_used, generation, commits, created, last_commit (ISO 8601, or null),
  host (null, or {pid, ...}), counts {state: number}, waiting [{name, ready, has_handler}],
  paused [name] (null: the whole queue),
  consumers [{session, pid, alive, names (null: every name), running, tasks [the first ids], since (when the first
  of them was handed to it, or null)}],
  processes [{pid, parent, role, state, seconds (since it started), depth, restarts, mailbox (bytes that wait
  there, by the kernel's count)}] (restarts and mailbox are null where that is not known),
  flow (null without --watch): {seconds (since the last look), published, done, failed (attempts), each per second,
  publish_to_start and start_to_done of the tasks done meanwhile: null, or {p50, p99} in seconds}
  with --watch one such line after the other"""


def add_info(added: Commands) -> None:
    """Add `info`."""
    parser = add_command(
        added,
        "info",
        run_info,
        summary="say how the queue stands",
        text="""\
Reads the file without a lock, whether or not brokers run: tasks in each state, names that wait and whether a
consumer handles them, what is paused, size of the file, who hosts the queue, which consumers are registered and what
they hold, and the processes of the host. The times of tasks are those of the commits, in milliseconds.

With --watch it looks again and again until Ctrl-C, which is status 0, and says how much has gone through since the
last look. Restarts are counted while it watches; those of the writer since the host started.

example:
  actorq info --queue /var/spool/app/Queue.json
  actorq info --watch 2
  actorq info --json | jq .counts.ready
  actorq info --watch --json | jq -c '[.at, .flow.done]'""",
        json_help=INFO_JSON,
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=watch_seconds,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"look again every so many seconds (default: {WATCH_SECONDS:g}); on a terminal in one place",
    )
    add_queue(parser)


def watch_seconds(text: str) -> float:
    """Return the seconds between two looks. Raises ValueError."""
    return max(SHORTEST_WATCH_SECONDS, seconds(text))


def run_info(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Say how the queue stands."""
    with Observer(existing_queue(asked)) as observer:
        if asked.watch is None:
            info = observer.look()
            if asked.json:
                terminal.json(asdict(info))
            for line in page(info, terminal):
                terminal.line(line)
            return Status.DONE
        try:
            while True:
                info = observer.look()
                if asked.json:
                    terminal.json(asdict(info))
                terminal.page(page(info, terminal))
                pause(asked.watch)
        except KeyboardInterrupt:
            return Status.DONE


def pause(length: float) -> None:
    """Wait so many seconds, or until the terminal has another size."""
    if not hasattr(signal, "sigtimedwait"):
        time.sleep(length)
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH])
    try:
        signal.sigtimedwait([signal.SIGWINCH], length)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------------------------------------------------
# The page


def page(info: Info, terminal: Terminal) -> list[str]:
    """Return how the queue stands, in lines for people."""
    states = list(info.counts)
    header, numbers = aligned([states, [f"{number:,}" for number in info.counts.values()]], ">" * len(states))
    parts = [
        about_the_file(info),
        [terminal.styled(header, Style.DIM), terminal.styled(numbers, Style.BOLD)],
        about_the_flow(info),
        about_names(info),
        about_consumers(info),
        about_processes(info, terminal),
    ]
    lines: list[str] = []
    for part in parts:
        if part:
            lines += ["", *part] if lines else part
    return lines


def about_the_file(info: Info) -> list[str]:
    """Return what and where it is, and who hosts it."""
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
    return aligned(rows, "<<")


def about_the_flow(info: Info) -> list[str]:
    """Return how much has gone through since the last look, and how long it took."""
    flow = info.flow
    if flow is None:
        return []
    rows = [("each second", *(f"{flow[word]:,.0f} {word}" for word in ("published", "done", "failed")))]
    for title, key in (("publish to start", "publish_to_start"), ("start to done", "start_to_done")):
        times = flow[key]
        if times is not None:
            rows.append((title, f"{seconds_in_words(times['p50'])} p50", f"{seconds_in_words(times['p99'])} p99", ""))
    return aligned(rows, "<>>>")


def about_names(info: Info) -> list[str]:
    """Return which names have ready tasks, and which of them nobody takes."""
    if not info.waiting:
        return []
    rows = [("waiting", "ready", "")]
    for each in info.waiting:
        # Without consumers there is nothing to say about handlers.
        is_orphan = info.consumers and not each["has_handler"]
        rows.append((plain(each["name"]), f"{each['ready']:,}", "no consumer handles this name" if is_orphan else ""))
    return aligned(rows, "<><")


def about_consumers(info: Info) -> list[str]:
    """Return who is registered and what each holds."""
    if not info.consumers:
        return []
    rows = [("consumer", "pid", "holds", "takes", "")]
    for each in info.consumers:
        takes = "every name" if each["names"] is None else plain(", ".join(each["names"]))
        held = held_in_words(each)
        if not each["alive"]:
            held = f"gone; its tasks go back when brokers run: {held}" if held else "gone"
        rows.append((each["session"], str(each["pid"]), f"{each['running']:,}", takes, held))
    return aligned(rows, "<>><<")


def held_in_words(consumer: dict[str, Any]) -> str:
    """Return what a consumer has, the first since when."""
    if not consumer["tasks"]:
        return ""
    first, *others = consumer["tasks"]
    since = ago(SYSTEM_CLOCK.wall() - from_iso(consumer["since"])) if consumer["since"] else ""
    more = ["..."] if consumer["running"] > len(consumer["tasks"]) else []
    return ", ".join([f"{first} ({since})" if since else first, *others, *more])


def about_processes(info: Info, terminal: Terminal) -> list[str]:
    """Return the processes below the host."""
    if not info.processes:
        return []
    rows = [("process", "pid", "state", "up", "restarts", "mailbox")]
    for each in info.processes:
        name = f"{'  ' * each['depth']}{plain(each['role'])}"
        restarts = "" if each["restarts"] is None else f"{each['restarts']:,}"
        waiting = "" if each["mailbox"] is None else bytes_in_words(each["mailbox"])
        rows.append((name, str(each["pid"]), each["state"], seconds_in_words(each["seconds"]), restarts, waiting))
    header, *lines = aligned(rows, "<><>>>")
    return [header, *(terminal.styled(line, Style.RED) if " stopped " in line else line for line in lines)]

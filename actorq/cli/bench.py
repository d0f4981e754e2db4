"""The command that measures what this disk and this machine carry."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import TYPE_CHECKING

from actorq.bench import MEMORY, Bench
from actorq.cli.parser import add_command, add_queue, positive, queue_path, seconds
from actorq.cli.status import CommandError, Status
from actorq.linux import require_linux
from actorq.terminal import Style, aligned, plain, seconds_in_words

if TYPE_CHECKING:
    import argparse

    from actorq.bench import Measure
    from actorq.cli.parser import Commands
    from actorq.terminal import Terminal

TASKS = 20_000
SECONDS = 0.5


def add_bench(added: Commands) -> None:
    """Add `bench`."""
    parser = add_command(
        added,
        "bench",
        run_bench,
        summary="measure what this disk and this machine carry",
        text="""\
Takes a few seconds, in a queue of its own in the folder of the queue that is meant, so on the same disk; that queue
is not touched, and nothing is left behind. Every acknowledgement comes after its fdatasync. Payloads have about 100
bytes, handlers do nothing. What else runs on the machine is measured as well.

  write and fdatasync   the least that one commit costs here
  publish one           one after the other, each waits for its acknowledgement
  run by two consumers  a queue that is full, until it is empty
  publish to start      from the call of publish to the first line of the handler, one task at a time
  end to end            many are published and run at the same time

example:
  actorq bench --queue /var/spool/app/Queue.json
  actorq bench --tasks 200000 --json | jq '.measures[] | {name, per_second}'""",
        json_help="""\
  one object: folder, filesystem, durable (false where a sync does nothing), cpus, python,
  measures [{name, title, count, per_second, p50, p99 (seconds for one, or null)}] with the names sync,
  publish_one, drain, publish_one_brokered, publish_to_start, publish_many, end_to_end""",
    )
    parser.add_argument(
        "--tasks", type=positive, default=TASKS, metavar="N", help="how many at once (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=SECONDS,
        metavar="SECONDS",
        help="how long to measure one after the other (default: %(default)g)",
    )
    add_queue(parser)


def run_bench(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Measure, and say what came of it."""
    require_linux()
    folder = queue_path(asked).absolute().parent
    if not folder.is_dir():
        raise CommandError(f"there is no folder {folder}; make it, or name a queue in another one with --queue PATH")

    def say(text: str) -> None:
        if terminal.is_live:
            terminal.status(f"{text} ...")

    bench = Bench(folder, asked.tasks, asked.seconds, say)
    is_durable = bench.filesystem not in MEMORY
    try:
        measures = list(bench.run())
    finally:
        terminal.end_status()
    cpus = len(os.sched_getaffinity(0))
    if asked.json:
        terminal.json(
            {
                "folder": str(folder),
                "filesystem": bench.filesystem,
                "durable": is_durable,
                "cpus": cpus,
                "python": platform.python_version(),
                "measures": [asdict(measure) for measure in measures],
            }
        )
    terminal.line(f"{plain(str(folder))} ({bench.filesystem}), {cpus} CPUs, Python {platform.python_version()}")
    if not is_durable:
        terminal.line(terminal.styled("this is memory: a sync does nothing here, and a power cut takes all", Style.RED))
    terminal.line()
    header, *lines = aligned([("", "each second", "p50", "p99"), *map(row, measures)], "<>>>")
    terminal.line(terminal.styled(header, Style.DIM))
    for line in lines:
        terminal.line(line)
    return Status.DONE


def row(measure: Measure) -> tuple[str, str, str, str]:
    """Return a figure in words."""
    rate = "" if measure.per_second is None else f"{measure.per_second:,.0f}"
    p50, p99 = ("" if each is None else precisely(each) for each in (measure.p50, measure.p99))
    return measure.title, rate, p50, p99


def precisely(length: float) -> str:
    """Return a duration with one digit more, where it is short: disks differ by that."""
    return f"{length * 1000:.2f} ms" if length < 0.00995 else seconds_in_words(length)

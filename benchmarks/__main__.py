"""Benchmarks of actorq, beside the floor of this machine and, with --peers, beside what else you might install.

    uv run python -m benchmarks [NAME ...] [--quick] [--peers] [--json FILE] [--chart FILE]

    floor         the bare mechanism with none of the features: a pipeline of five processes, the same with JSON, 8
                  clients of one committing writer, and the chain from one publisher to a handler
    disk          one write and fdatasync, at the end of a file and into room that it has
    publish_one   publish one task at a time: no broker running, and through brokers
    publish_8     the same from eight processes at once
    script        a fresh interpreter that publishes one task and exits; the floor imports orjson and filelock
    crowd         fifty processes that host nothing publish at once
    publish_many  publish in bulk
    drain         one consumer runs an empty handler on tasks that lie ready
    end_to_end    publish in bulk while two consumers run an empty handler, until the last outcome is on disk
    latency       from publish to the start of the handler, at 100 tasks a second
    half_load     the same at half of what end_to_end reaches
    mixed         end_to_end with payloads from 20 bytes to 100 kB
    busy          two consumers with a handler of one millisecond
    growth        publish_one and drain in front of a thousand to a million ready tasks
    memory        peak of each process with a million ready tasks
    recovery      starting on a million ready tasks, and on a million that are done and compacted
    compaction    of a queue in use: the longest pauses meanwhile, how long it takes, and bytes on disk for each task
    restart       a broker is killed: until the next acknowledgement; a consumer is killed: until its task runs again
    idle          wakes and CPU of a tree with nothing to do, and of a worker that has joined it
    ask, tell     between two processes, small messages
    spawn         starting an actor in a process of its own, until it has answered

Every figure is with durability="power": an acknowledgement comes after its fdatasync. All take turns, round by round
(A B A B), and the table has medians: compare figures of one run only, since disks and neighbours drift. A contestant
that loses a task or runs one twice has no figure, and the exit status is 1. Refuses a file system that keeps nothing.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from benchmarks.catalogue import BRIEF, BRIEF_TURNS, ONCE, ROWS, TOGETHER
from benchmarks.chart import draw
from benchmarks.contest import FULL, QUICK, BenchmarkError
from benchmarks.machine import NOT_A_DISK, describe, file_system_of
from benchmarks.peers import PEERS
from benchmarks.report import Results, lines_of, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from benchmarks.contest import Figures, Measure, Scale, Turns


def main(arguments: list[str] | None = None) -> int:
    """Run the rows that were named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="rows to measure (all)")
    parser.add_argument("--quick", action="store_true", help="one round of everything, smaller: to see that it works")
    parser.add_argument("--peers", action="store_true", help="measure other queues and actor libraries as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write machine, medians and all values there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw it, as .svg or .png")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in ROWS]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    here = Path.cwd()
    if file_system_of(here) in NOT_A_DISK:
        parser.error(f"{here} is on {file_system_of(here)}, which keeps nothing; run from a folder on a disk")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders and processes go
    signal.signal(signal.SIGINT, interrupt_once)
    rows = {name: dict(ROWS[name]) for name in given.names or ROWS}
    machine = describe(here)
    if given.peers:
        machine |= add_peers(rows)
    print("\n".join(f"{key:16} {value}" for key, value in machine.items()), flush=True)
    results, failures = measured(rows, QUICK if given.quick else FULL, here)
    print(table(results))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    if given.json is not None:
        lines = [line._asdict() for line in lines_of(results)]
        data = {"machine": machine, "figures": lines, "values": results, "failures": failures}
        given.json.write_bytes(orjson.dumps(data, option=orjson.OPT_INDENT_2))
    if given.chart is not None:
        try:
            draw(results, given.chart)
        except BenchmarkError as error:
            parser.exit(2, f"{parser.prog}: {error}\n")
    return 1 if failures else 0


def interrupt_once(*_: object) -> None:
    """Have ^C end the run, and a second one not end that it tidies up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def add_peers(rows: Mapping[str, dict[str, Measure]]) -> dict[str, str]:
    """Let the peers take part in these rows; return for each its version and settings, or what is missing."""
    about = {}
    for peer in PEERS:
        known = peer.rows.keys() & rows.keys()
        if not known:
            continue
        missing = peer.missing()
        about[peer.name] = f"{peer.version()}; {peer.settings}" if missing is None else f"not measured: {missing}"
        if missing is None:
            for row in known:
                rows[row][peer.name] = peer.rows[row]
    return about


def measured(rows: Mapping[str, Mapping[str, Measure]], scale: Scale, here: Path) -> tuple[Results, list[str]]:
    """Measure everybody in turns; return their figures, and who has none and why."""
    results: Results = {row: {who: {} for who in entries} for row, entries in rows.items()}
    failures: list[str] = []
    begun = time.monotonic()
    for number in range(1, scale.rounds + 1):
        for row, entries in rows.items():
            if number > 1 and row in ONCE:
                continue
            turns = BRIEF_TURNS if row in BRIEF else 1
            of_a_turn = scale._replace(seconds=scale.seconds / turns)
            one_by_one = [{who: measure} for who, measure in entries.items()] * turns
            for group in [entries] if row in TOGETHER else one_by_one:
                begin = f"{time.monotonic() - begun:5.0f} s, round {number} of {scale.rounds}"
                say(f"{begin}: {row}, {' and '.join(group)}")
                for who, outcome in outcomes_of(group, of_a_turn, here):
                    if isinstance(outcome, BenchmarkError):
                        failures.append(f"{row}, {who}: {outcome}")
                        continue
                    for figure, value in outcome.items():
                        results[row][who].setdefault(figure, []).append(value)
    say("")
    return results, failures


def outcomes_of(
    group: Mapping[str, Measure], scale: Scale, here: Path
) -> Iterator[tuple[str, Figures | BenchmarkError]]:
    """Measure them, by turns if there are several, and yield the figures of each, or why it has none."""
    with ExitStack() as stack:
        under_way: dict[str, Turns] = {}
        for who, measure in group.items():
            folder = Path(tempfile.mkdtemp(dir=here, prefix=".benchmark-"))
            stack.callback(shutil.rmtree, folder)
            try:
                found = measure(folder, scale)
            except BenchmarkError as error:
                yield who, error
                continue
            if isinstance(found, dict):
                yield who, found
            else:
                under_way[who] = found
                stack.callback(found.close)
        while under_way:
            for who, turns in list(under_way.items()):
                outcome: Figures | BenchmarkError
                try:
                    next(turns)
                    continue
                except StopIteration as end:
                    outcome = end.value
                except BenchmarkError as error:
                    outcome = error
                del under_way[who]
                yield who, outcome


def say(text: str) -> None:
    """Say how far it is: on a terminal in one line that changes."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        raise SystemExit(130) from None

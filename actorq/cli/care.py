"""Commands that care for the file: verify, repair, compact."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from actorq.actors.linux import boot_id, require_linux
from actorq.brokers.trees import end_other_trees, roll_of
from actorq.brokers.upkeep import KEEP_DONE
from actorq.cli.parser import add_command, add_path, add_timeout, all_or_number, existing_queue, positive
from actorq.cli.status import CommandError, Status
from actorq.store.compaction import compact
from actorq.store.failed_sync import has_mark
from actorq.store.filesystem import REAL
from actorq.store.locks import HostLock, WriterLock
from actorq.store.log_reader import LogReader
from actorq.store.repair import plan_repair
from actorq.store.verify import Verdict, verify
from actorq.terminal import Style, bytes_in_words, count_of, counts_in_words, plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from actorq.cli.parser import Commands
    from actorq.store.repair import Plan
    from actorq.terminal import Terminal

IDS_SHOWN = 20
"""Of the tasks, commits and places that a plan of repair names; JSON has all."""


@contextmanager
def alone_with(path: Path, timeout: float) -> Iterator[None]:
    """Keep the queue to oneself. Raises QueueLockedError when somebody has it still after so many seconds."""
    deadline = time.monotonic() + timeout
    with HostLock(path).acquire(timeout), WriterLock(path).acquire(max(0.0, deadline - time.monotonic())):
        if has_mark(REAL, path):
            end_other_trees(roll_of(path))
        yield


# ---------------------------------------------------------------------------------------------------------------
# verify


def add_verify(added: Commands) -> None:
    """Add `verify`."""
    parser = add_command(
        added,
        "verify",
        run_verify,
        summary="check every byte of the file, and change none",
        text="""\
Takes no lock and works beside a running queue. A last commit that a crash tore off is no damage: it was never
acknowledged. Exit status 1 when the file is damaged; the report says at which byte, and what to do.

example:
  actorq verify backup/Queue.json""",
        json_help="""\
  one object: ok, path, verdict (intact, torn, damaged or unreadable), reason, next_step, size, generation, commit
  (the last good one), good_bytes (where it ends), pieces, records, counts {state: number}, offset (of the first
  damage, or null), damages [{offset, commit, reason}], commits_behind (whole commits behind the first damage)""",
    )
    add_path(parser)


def run_verify(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Check every byte of the file, and change none."""
    report = verify(existing_queue(asked), boot_id=boot_id())
    if asked.json:
        terminal.json({"ok": report.is_ok, **asdict(report), "offset": report.offset})
        return Status.DONE if report.is_ok else Status.FAILED
    rows = [("queue", plain(report.path))]
    if report.verdict is not Verdict.UNREADABLE:
        rows += [
            ("size", f"{bytes_in_words(report.size)}, generation {report.generation}"),
            ("good", f"{report.good_bytes:,} bytes, {count_of(report.records, 'record')}, to commit {report.commit:,}"),
            ("tasks", counts_in_words(report.counts)),
        ]
    verdict = terminal.styled(report.verdict, Style.GREEN if report.is_ok else Style.RED)
    rows += [("verdict", f"{verdict}: {plain(report.reason)}" if report.reason else verdict)]
    rows += [("next", plain(report.next_step))]
    terminal.table(rows, "<<")
    return Status.DONE if report.is_ok else Status.FAILED


# ---------------------------------------------------------------------------------------------------------------
# repair


def add_repair(added: Commands) -> None:
    """Add `repair`."""
    parser = add_command(
        added,
        "repair",
        run_repair,
        summary="make a damaged file usable again, and name what is lost",
        text="""\
Without --yes it changes nothing: it says what would be kept and which tasks would be lost, and ends with status 1.
With --yes a copy of the damaged file is kept beside it, and a new file with all that still checks takes its place.
A single changed bit is put right. What is not proved to be finished is ready again: tasks may run a second time.
Needs the queue for itself: stop the worker first. Exit status 3 when there is nothing to repair: what a crash tore
off the end is mended by the next start.

example:
  actorq repair Queue.json                  look at the plan
  actorq repair Queue.json --yes            do it
  actorq repair Queue.json --truncate-at 18211 --yes""",
        json_help="""\
  one object: ok, repaired, path, damages [{offset, commit, reason}], commits_kept, mended_bits [offset],
  unproved [commit], unverified [id], lost [id], lost_finished [id], lost_bytes, lost_commits [commit],
  run_again [id], torn_bytes, counts {state: number}, backup (null while it is a plan), generation""",
    )
    add_path(parser)
    parser.add_argument("--yes", action="store_true", help="do it; without this the plan is shown")
    parser.add_argument(
        "--truncate-at",
        type=positive,
        metavar="OFFSET",
        help="keep only the commits before this byte, though others behind it may be whole",
    )
    parser.add_argument(
        "--keep-unverified",
        action="store_true",
        help="keep the tasks of damaged commits that can still be read; their payload may have changed",
    )
    add_timeout(parser, "how long to wait for the host to leave")


def run_repair(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Show what a repair would keep and lose; do it if that was agreed to. Both need the queue for themselves."""
    path = existing_queue(asked)
    require_linux()
    if not path.is_file():
        raise CommandError(f"{path} is not a file; name the queue with --queue PATH")
    make_plan = partial(
        plan_repair,
        path,
        boot_id=boot_id(),
        truncate_at=asked.truncate_at,
        keep_unverified=asked.keep_unverified,
    )
    # Looked at before any lock, so that no lock file appears beside a file that is no queue.
    repair = make_plan()
    if repair is not None:
        with alone_with(path, asked.timeout):
            repair = make_plan(is_alone=True)
            if repair is not None and asked.yes:
                # What is not proved to be finished becomes ready: so nobody may be at it still.
                end_other_trees(roll_of(path))
                repair.carry_out()
    if repair is None:
        if asked.json:
            terminal.json({"ok": True, "repaired": False, "path": str(path)})
        terminal.line(f"{plain(str(path))}: nothing to repair; what a crash tore off, the next start mends by itself")
        return Status.NOTHING
    plan = repair.plan
    if asked.json:
        terminal.json({"ok": asked.yes, "repaired": asked.yes, **asdict(plan)})
    else:
        show_plan(plan, terminal)
    return Status.DONE if asked.yes else Status.FAILED


def show_plan(plan: Plan, terminal: Terminal) -> None:
    """Write what a repair would do, or has done."""
    is_done = plan.backup is not None
    rows = [("queue", plain(plan.path))]
    rows += [("damage", f"at byte {each.offset}: {plain(each.reason)}") for each in plan.damages[:IDS_SHOWN]]
    rows += [("kept", f"{count_of(plan.commits_kept, 'commit')}; then there are {counts_in_words(plan.counts)}")]
    if plan.mended_bits:
        places = in_words([f"{offset:,}" for offset in plan.mended_bits])
        rows += [
            ("mended", f"{count_of(len(plan.mended_bits), 'changed bit')}, told by the checksum, at byte {places}")
        ]
    if plan.unproved:
        rows += [
            ("unproved", f"commit {in_words(list(map(str, plan.unproved)))}: whole, but the checksum before it is lost")
        ]
    if plan.unverified:
        rows += [("unverified", f"kept, though their payload may have changed: {in_words(plan.unverified)}")]
    rows += [("lost", f"{count_of(len(plan.lost), 'task')}{': ' if plan.lost else ''}{in_words(plan.lost)}")]
    if plan.lost_finished:
        rows += [("", f"and the results of tasks that had finished: {in_words(plan.lost_finished)}")]
    if plan.lost_commits:
        rows += [
            ("", f"and all of commits {plan.lost_commits[0]:,} to {plan.lost_commits[-1]:,}, which cannot be named")
        ]
    if plan.lost_bytes:
        rows += [("", f"{plan.lost_bytes:,} bytes are left out")]
    if plan.torn_bytes:
        rows += [("torn", f"{plan.torn_bytes:,} bytes at the end, which were never acknowledged, are left out")]
    if plan.run_again:
        rows += [("run again", f"what is not proved to be finished is ready again: {in_words(plan.run_again)}")]
    if is_done:
        rows += [("backup", f"the damaged file is {plain(str(plan.backup))}")]
    else:
        rows += [("next", "nothing was changed; do this by adding --yes, which keeps a copy of the damaged file")]
        if plan.lost:
            rows += [("", "--keep-unverified keeps what can be read of damaged commits, though it may have changed")]
    terminal.table(rows, "<<")


def in_words(ids: list[str]) -> str:
    """Return the first of many."""
    more = f" and {len(ids) - IDS_SHOWN:,} more (--json names all)" if len(ids) > IDS_SHOWN else ""
    return ", ".join(ids[:IDS_SHOWN]) + more


# ---------------------------------------------------------------------------------------------------------------
# compact


def add_compact(added: Commands) -> None:
    """Add `compact`."""
    parser = add_command(
        added,
        "compact",
        run_compact,
        summary="rewrite the file without old finished tasks",
        text="""\
Removes finished tasks but the newest, and the history of all; what is counted stays counted. Unfinished and dead
tasks are always kept. Needs the queue for itself: stop the worker first.

example:
  actorq compact --keep-done 1000""",
        json_help="""\
  one object: generation, bytes_before, bytes_after, tasks (kept), removed""",
    )
    add_path(parser)
    parser.add_argument(
        "--keep-done",
        type=all_or_number,
        default=KEEP_DONE,
        metavar="N|all",
        help="finished tasks to keep, the newest (default: %(default)s)",
    )
    add_timeout(parser, "how long to wait for the host to leave")


def run_compact(asked: argparse.Namespace, terminal: Terminal) -> int:
    """Rewrite the file without old finished tasks, while nobody uses it."""
    path = existing_queue(asked)
    require_linux()
    # Checked before any lock, so that no lock file appears beside a file that is no queue.
    LogReader(path).close()
    with alone_with(path, asked.timeout):
        done = compact(path, boot_id=boot_id(), pid=os.getpid(), keep_done=asked.keep_done)
    if asked.json:
        terminal.json(done._asdict())
        return Status.DONE
    terminal.line(
        f"{bytes_in_words(done.bytes_before)} before, {bytes_in_words(done.bytes_after)} after: "
        f"{count_of(done.tasks, 'task')} kept, {count_of(done.removed, 'finished task')} removed, "
        f"generation {done.generation}"
    )
    return Status.DONE

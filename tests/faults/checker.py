"""The checker: holds what was written down (history.py) against what the log says (ledger.py), in Jepsen's words.

    attempted      payloads that somebody began to publish
    acknowledged   those whose publisher was told an id
    lost           acknowledged, and not in the queue, or not as published: never allowed
    unexpected     in the queue, and never attempted, or certainly refused: never allowed
    recovered      in the queue although nobody was told: allowed, that is what "unknown" means
    retried        ran again because its handler had raised: not a duplicate, but what was asked for
    duplicated     ran again for any other reason: allowed where a death that we caused explains it
    unexplained    duplicated, and nothing explains it: never allowed

It is a function of values: no files, no clock, no processes. For queues whose consumers take every name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import orjson

from tests.faults.ledger import FINISHED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.faults.history import Execution, Fault, History, Process
    from tests.faults.ledger import HandOut, Ledger, Session

TICKS_PER_SECOND = 100
CLOCK_SLACK_SECONDS = 0.05
"""Times in the log are in milliseconds, start times of processes in clock ticks."""

ENDS_CHILDREN = ("host", "supervisor")
"""Whose end is the end of every consumer."""

HARMLESS = ("continue", "delay", "stop")
"""Faults that end nobody."""

SHOWN = 20
"""So many violations of one kind are spelled out."""


class Observed(NamedTuple):
    """What the harness saw by itself."""

    settled_seconds: float | None = 0.0
    """How long after the last fault it took until every task was done or dead; None when it did not happen in time."""
    states: Mapping[str, str] | None = None
    """id -> state, as the queue's own fold has it."""
    document: bytes = b""
    """The file at rest."""
    verdict: str = "intact"
    """Of `actorq verify`."""
    leftovers: tuple[str, ...] = ()
    """Processes, descriptors, semaphores and files that should not be there any more."""


class Violation(NamedTuple):
    """Something that must never happen."""

    kind: str
    text: str


@dataclass
class Report:
    """What the checker found."""

    attempted: int = 0
    acknowledged: int = 0
    rejected: int = 0
    unknown: int = 0
    recovered: int = 0
    started: int = 0
    done: int = 0
    dead: int = 0
    lost: int = 0
    unexpected: int = 0
    retried: int = 0
    duplicated: int = 0
    unexplained: int = 0
    torn: int = 0
    settled_seconds: float | None = None
    violations: list[Violation] = field(default_factory=list)

    def add(self, kind: str, texts: Iterable[str]) -> int:
        """Add violations of one kind; return how many."""
        found = [Violation(kind, text) for text in texts]
        self.violations += found
        return len(found)

    def merge(self, other: Report) -> None:
        """Add up the reports of two queues."""
        for name, value in vars(other).items():
            if name == "settled_seconds":
                self.settled_seconds = longest(self.settled_seconds, value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def shown(self) -> list[str]:
        """Return the violations as lines, of each kind the first few."""
        kinds = Counter(violation.kind for violation in self.violations)
        lines = []
        for kind, count in kinds.items():
            texts = [violation.text for violation in self.violations if violation.kind == kind]
            lines += [f"{kind}: {text}" for text in texts[:SHOWN]]
            if count > SHOWN:
                lines.append(f"{kind}: and {count - SHOWN} more")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {**vars(self), "violations": self.shown()}


def longest(one: float | None, other: float | None) -> float | None:
    """Return the longer of two times, of which either may not be there."""
    return max((each for each in (one, other) if each is not None), default=None)


def check(history: History, ledger: Ledger, observed: Observed) -> Report:
    """Return everything that can be said about one queue."""
    report = Report(
        attempted=len(history.attempts),
        acknowledged=len(history.acknowledged),
        rejected=len(history.rejected),
        started=len(history.executions),
        torn=history.torn,
        settled_seconds=observed.settled_seconds,
    )
    states = Counter(row.state for row in ledger.tasks.values())
    report.done, report.dead = states["done"], states["dead"]
    _check_publishes(report, history, ledger)
    _check_executions(report, history, ledger)
    report.add("log", ledger.contradictions)
    _check_ends(report, history, ledger)
    _check_observed(report, ledger, observed)
    return report


# ---------------------------------------------------------------------------------------------------------------
# What was published


def _check_publishes(report: Report, history: History, ledger: Ledger) -> None:
    by_key: dict[str, str] = {}
    for task, row in ledger.tasks.items():
        if row.key in by_key:
            report.add("twice", [f"{row.key} is in as {by_key[row.key]} and as {task}"])
        by_key[row.key] = task
        attempt = history.attempts.get(row.key)
        if attempt is None:
            report.unexpected += report.add("unexpected", [f"{task} ({row.key!r}) was never attempted"])
        elif attempt.crc != row.crc or attempt.name != row.name:
            report.add("payload", [f"{task} ({row.key!r}) is not what was published"])
    for key, task in history.acknowledged.items():
        if key not in history.attempts:
            report.add("history", [f"{key} was acknowledged and never attempted"])
        if by_key.get(key) != task:
            where = f"is in as {by_key[key]}" if key in by_key else "is not in"
            report.lost += report.add("lost", [f"{key}, acknowledged as {task}, {where}"])
    for key, why in history.rejected.items():
        if key in by_key:
            report.unexpected += report.add("unexpected", [f"{key} was refused ({why}) and is in as {by_key[key]}"])
    for error in sorted(set(history.escaped.values())):
        keys = [key for key, why in history.escaped.items() if why == error]
        report.add("publish", [f"{error} left it, which says neither in nor not in nor unknown: {keys[:3]}"])
    unanswered = history.attempts.keys() - history.acknowledged.keys() - history.rejected.keys()
    report.unknown = len(unanswered)
    report.recovered = len(unanswered & by_key.keys())


# ---------------------------------------------------------------------------------------------------------------
# What ran


def _check_executions(report: Report, history: History, ledger: Ledger) -> None:
    deaths = Deaths(history.faults)
    ran: dict[int, Execution] = {}
    by_task: dict[str, list[tuple[Execution, HandOut]]] = defaultdict(list)
    by_process: dict[Process, list[tuple[int, int]]] = defaultdict(list)
    for execution in history.executions:
        row = ledger.tasks.get(execution.task)
        if row is None:
            report.unexpected += report.add("unexpected", [f"{execution.task} ran and is not in the queue"])
            continue
        hand_out = _hand_out_of(execution, row.hand_outs)
        if hand_out is None:
            report.add("attempts", [f"{execution} was never handed to that process as that attempt"])
            continue
        if id(hand_out) in ran:
            report.unexplained += report.add("duplicated", [f"{execution.task} ran twice as one attempt: {execution}"])
        ran[id(hand_out)] = execution
        by_task[execution.task].append((execution, hand_out))
        by_process[execution.process].append((hand_out.no, row.place))
    for task, runs in by_task.items():
        for (before, hand_out), (after, _) in pairwise(runs):
            if _overlap(before, after, history):
                report.add("overlap", [f"{task} had two live executions: {before}, {after}"])
            if hand_out.ended == "failed" and before.how == "raised":
                report.retried += 1
                continue
            report.duplicated += 1
            why = _unexplained(before, hand_out, deaths)
            if why:
                report.unexplained += report.add("duplicated", [f"{task} ran again although {why}: {after}"])
    for process, places in by_process.items():
        if places != sorted(places):
            report.add("order", [f"{process} did not start its tasks in the order in which it got them"])


def _hand_out_of(execution: Execution, hand_outs: list[HandOut]) -> HandOut | None:
    fitting = [
        each for each in hand_outs if each.session.process == execution.process and each.attempt == execution.attempt
    ]
    # A task that was given back may come again, as the same attempt, to the same consumer: the one that ran counts.
    begun = [each for each in fitting if each.ended != "returned"]
    return next(reversed(begun or fitting), None)


def _unexplained(before: Execution, hand_out: HandOut, deaths: Deaths) -> str:
    """Return what is wrong with a task's running again after this one, or nothing."""
    match hand_out.ended:
        case "failed":
            return (
                "" if before.how == "raised" else f"its handler {before.how or 'never ended'} and the log says failed"
            )
        case "gone":
            return deaths.unexplained(hand_out.session)
        case "":
            return "it was never taken from the consumer that had it"
        case how:
            return f"it was {how}"


def _overlap(before: Execution, after: Execution, history: History) -> bool:
    """Say whether the first was alive for certain when the second began."""
    if before.process == after.process:
        return False
    if before.how:
        return before.ended > after.begun
    # It never said that it ended: then its process must have been dead, which writes nothing more.
    return history.last_words[before.process] > after.begun


def _fails_a_disk(fault: Fault) -> bool:
    """Say whether a call of a log was made to fail: a writer then ends its whole tree, its supervisor first."""
    return fault.action == "raise" and fault.point.startswith("log.")


class Deaths:
    """Which deaths were our doing."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        fatal = [fault for fault in faults if fault.action not in HARMLESS]
        self._victims = {fault.process for fault in fatal}
        self._of_all = [fault for fault in fatal if fault.role in ENDS_CHILDREN or _fails_a_disk(fault)]

    def unexplained(self, session: Session) -> str:
        """Return what is wrong with the death of this session's process, or nothing."""
        if session.process in self._victims:
            return ""
        started = session.process.start / TICKS_PER_SECOND
        gone = datetime.fromisoformat(session.gone).timestamp()
        for fault in self._of_all:
            if fault.boot >= started - CLOCK_SLACK_SECONDS and fault.wall <= gone + CLOCK_SLACK_SECONDS:
                return ""
        return f"nobody had killed its consumer {session.process} ({session.cause})"


# ---------------------------------------------------------------------------------------------------------------
# How it ended


def _check_ends(report: Report, history: History, ledger: Ledger) -> None:
    endings = {(each.task, each.attempt): each.how for each in history.executions}
    for task, row in ledger.tasks.items():
        last = row.hand_outs[-1] if row.hand_outs else None
        if row.state == "done":
            assert last is not None
            how = endings.get((task, last.attempt), "")
            if how != "returned":
                report.add("outcome", [f"{task} is done, and its handler {how or 'never said that it ended'}"])
        elif row.state == "dead":
            assert last is not None
            session = last.session
            if row.failures < session.max_attempts and row.crashes < session.max_crashes:
                report.add("outcome", [f"{task} is dead after {row.failures} failures and {row.crashes} crashes"])


def _check_observed(report: Report, ledger: Ledger, observed: Observed) -> None:
    open_tasks = [task for task, row in ledger.tasks.items() if row.state not in FINISHED]
    if observed.settled_seconds is None or open_tasks:
        report.add("liveness", [f"{len(open_tasks)} tasks never ended, among them {open_tasks[:3]}"])
    if observed.states is not None:
        for task in observed.states.keys() | ledger.tasks.keys():
            theirs = observed.states.get(task)
            ours = ledger.tasks[task].state if task in ledger.tasks else None
            if theirs != ours:
                report.add("fold", [f"{task} is {theirs} by the queue's own fold, and {ours} by what the log says"])
    if observed.document:
        report.add("document", wrongs_of_document(observed.document))
    if observed.verdict != "intact":
        report.add("document", [f"verify says: {observed.verdict}"])
    report.add("leak", observed.leftovers)


def wrongs_of_document(data: bytes) -> list[str]:
    """Return what is wrong with a file at rest: not one JSON document, a hole, a checksum. From FORMAT.md alone."""
    try:
        orjson.loads(data)
    except ValueError as error:
        return [f"not one JSON document: {error}"]
    _, header, *lines = data.splitlines(keepends=True)
    head = orjson.loads(header)
    pieces = head["pieces"]
    number, chain = (0, crc32(header.partition(b'"pieces":')[0] + b'"pieces":')) if pieces else _behind(head)
    body = b""
    for line in lines:
        kind = b'"piece":' if pieces else b'"commit":'
        if not line.startswith(b",{" + kind):
            body += line
            continue
        record = orjson.loads(line[1:])
        checked = line.partition(b'"crc":"')[0] + b'"crc":"'
        chain = crc32(body + checked, chain)
        number += 1
        if record[kind[1:-2].decode()] != number:
            return [f"a hole: {line[:30]!r} stands where number {number} should"]
        if record["bytes"] != len(body) or int(record["crc"], 16) != chain:
            return [f"the checksum of number {number} is wrong"]
        body = b""
        if pieces == number:
            pieces = 0
            number, chain = _behind(head)
    if body.strip(b"\n") != b"]":
        return [f"{len(body)} bytes stand behind the last commit"]
    return []


def _behind(head: dict[str, Any]) -> tuple[int, int]:
    return head["commit"], int(head["chain"], 16)

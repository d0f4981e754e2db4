"""A queue as lines of JSON: what `actorq dump` writes and `actorq load` reads.

    {"actorq_dump":1,"tasks":2,"removed":{"done":17},"paused":["thumbnail"]}
    {"id":"k3v9x2m4q7ab-1","name":"thumbnail","state":"ready","published_at":"2026-11-23T18:00:02.246Z","data":{...}}
    {"id":...,"state":"dead","published_at":...,"started_at":...,"finished_at":...,"failures":3,"errors":[...],"data":...}

One line for each task, in the order in which they were published. Members that have nothing to say are left out. What
runs is dumped as ready and not charged: in another queue nobody runs it. The same queue makes the same bytes.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from actorq.errors import LoadError, PayloadError
from actorq.tasks.ids import parse_task_id
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.payload import encode_payload
from actorq.tasks.strict_json import parse_json
from actorq.tasks.task import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actorq.store.fold import QueueState, Read

VERSION = 1
FINISHED = (TaskState.DONE, TaskState.DEAD, TaskState.CANCELLED)
MAX_COUNT = 255
"""Of failures and crashes: what the fold counts up to."""

_WINDOW_BYTES = 1 << 18


class Head(NamedTuple):
    """The first line."""

    tasks: int | None
    """How many lines follow. None for a dump of which somebody has taken some, who left the number out."""
    removed: dict[str, int]
    """Finished tasks that had left the queue with compaction, or were purged, by state."""
    paused: list[str | None]
    """Names of which no task is handed out; None is the whole queue."""


class Dumped(NamedTuple):
    """One task. What is JSON stays encoded."""

    session: str
    number: int
    name: str
    state: TaskState
    published_at: str
    data: bytes
    started_at: str | None
    finished_at: str | None
    failures: int
    crashes: int
    errors: bytes | None
    result: bytes | None


# ---------------------------------------------------------------------------------------------------------------
# Writing


def tasks_in(state: QueueState) -> int:
    """Return how many tasks a dump has."""
    return len(state) - state.purged


def dump_lines(state: QueueState, read: Read) -> Iterator[bytes]:
    """Yield the lines of a dump. `read` gives bytes of the file that the state was folded from."""
    head = {"actorq_dump": VERSION, "tasks": tasks_in(state), "removed": dict(sorted(state.removed.items()))}
    yield _line(head | ({"paused": state.pauses()} if state.paused else {}))
    window = b""
    begin = 0
    for seq in range(len(state)):
        if state.is_purged(seq):
            continue
        offset, length = state.span_of(seq, seq + 1)
        if offset + length > begin + len(window):  # task lines come one after the other
            begin, window = offset, read(offset, max(length, _WINDOW_BYTES))
        task = orjson.loads(window[offset - begin + 1 : offset - begin + length])
        yield _line(_fields(state, seq, task, read))


def _fields(state: QueueState, seq: int, task: dict[str, Any], read: Read) -> dict[str, Any]:
    word = state.state_of(seq)
    is_finished = word in FINISHED
    fields: dict[str, Any] = {
        "id": task["id"],
        "name": task["name"],
        "state": TaskState.READY if word is TaskState.RUNNING else word,
        "published_at": state.published_at(seq),
    }
    if is_finished:
        if started := state.started_at(seq):
            fields["started_at"] = started
        fields["finished_at"] = state.finished_at(seq)
    if failures := state.failures_of(seq):
        fields["failures"] = failures
    if crashes := state.crashes_of(seq):
        fields["crashes"] = crashes
    if errors := state.troubles_of(seq, read):  # also of one that was retried, and counts anew
        fields["errors"] = errors
    fields["data"] = task["data"]
    if word is TaskState.DONE:
        result = state.result_of(seq, read)
        if result is not None:
            fields["result"] = orjson.loads(result)
    return fields


def _line(fields: Mapping[str, Any]) -> bytes:
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


# ---------------------------------------------------------------------------------------------------------------
# Reading


def parse_head(line: bytes) -> Head:
    """Return what the first line says. Raises LoadError."""
    fields = _members(line, 1)
    version = fields.get("actorq_dump")
    if version is None:
        raise LoadError(1, 'it is not the beginning of a dump, {"actorq_dump":1,...}; make one with: actorq dump')
    if version != VERSION:
        raise LoadError(1, f"it has version {version!r:.20}, this is version {VERSION}; use a later actorq")
    tasks, removed = fields.get("tasks"), fields.get("removed", {})
    if not (tasks is None or _is_count(tasks)):
        raise LoadError(1, f"tasks is {tasks!r:.100}, not a number of tasks")
    states = {str(state) for state in FINISHED}
    if not (isinstance(removed, dict) and removed.keys() <= states and all(map(_is_count, removed.values()))):
        raise LoadError(1, f"removed is {removed!r:.100}, not numbers of finished tasks by state")
    paused = fields.get("paused", [])
    try:
        if type(paused) is not list:
            raise ValueError("not a list")
        for name in paused:
            if name is not None:
                check_name(name)
    except (ValueError, PayloadError):
        raise LoadError(1, f"paused is {paused!r:.100}, not a list of names") from None
    return Head(tasks, removed, paused)


def parse_task(line: bytes, at: int) -> Dumped:
    """Return the task of a line. Raises LoadError with its number, which is `at`."""
    fields = _members(line, at)
    try:
        return _task_of(fields)
    except KeyError as error:
        raise LoadError(at, f"the member {error.args[0]!r} is missing") from None
    except PayloadError as error:
        raise LoadError(at, f"{error.where}: {error.reason}") from None
    except ValueError as error:
        raise LoadError(at, str(error)) from None


def _members(line: bytes, at: int) -> dict[str, Any]:
    try:
        fields = orjson.loads(line)
        # What comes out as it went in was not changed in silence.
        is_exact = orjson.dumps(fields) == line.rstrip(b"\n")
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        is_exact = False
    if not is_exact:  # another program may have laid it out differently
        try:
            fields = parse_json(line)
        except ValueError as error:
            raise LoadError(at, f"not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise LoadError(at, "not a JSON object")
    return fields


def _task_of(fields: dict[str, Any]) -> Dumped:
    unknown = fields.keys() - _MEMBERS
    if unknown:
        raise ValueError(f"no task has a member {min(unknown)!r:.100}")
    task_id, word = fields["id"], fields["state"]
    if type(task_id) is not str:
        raise ValueError(f"the id is {task_id!r:.100}, not text")
    session, number = parse_task_id(task_id)
    if word not in _STATES:
        raise ValueError(f"the state is {word!r:.100}, not one of {', '.join(_STATES)}")
    state = TaskState(word)
    started_at, finished_at = _time(fields, "started_at"), _time(fields, "finished_at")
    if (finished_at is not None) != (state in FINISHED):
        raise ValueError(f"a task that is {state} has {'no' if finished_at else 'a'} finished_at")
    if started_at is not None and finished_at is None:
        raise ValueError(f"a task that is {state} has no started_at")
    if "result" in fields and state is not TaskState.DONE:
        raise ValueError(f"a task that is {state} has no result")
    published_at = _time(fields, "published_at")
    if published_at is None:
        raise KeyError("published_at")
    return Dumped(
        session,
        number,
        check_name(fields["name"]),
        state,
        published_at,
        encode_payload(fields["data"]),
        started_at,
        finished_at,
        _number(fields, "failures"),
        _number(fields, "crashes"),
        _errors(fields),
        encode_payload(fields["result"]) if "result" in fields else None,
    )


def _time(fields: dict[str, Any], key: str) -> str | None:
    text = fields.get(key)
    if text is None:
        return None
    if type(text) is str and _is_time(text):
        datetime.fromisoformat(text)  # raises ValueError: no such day
        return text
    raise ValueError(f"{key} is {text!r:.100}, not a time like 2026-11-23T18:00:02.246Z")


def _number(fields: dict[str, Any], key: str) -> int:
    number = fields.get(key, 0)
    if _is_count(number) and number <= MAX_COUNT:
        return int(number)
    raise ValueError(f"{key} is {number!r:.100}, not a number up to {MAX_COUNT}")


def _errors(fields: dict[str, Any]) -> bytes | None:
    errors = fields.get("errors")
    if errors is None:
        return None
    if type(errors) is not list or not errors or not all(map(_is_error, errors)):
        raise ValueError("errors is a list of objects with the texts type, message, traceback and at")
    return orjson.dumps([{key: each[key] for key in _ERROR} for each in errors])


def _is_error(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == set(_ERROR)
        and all(type(text) is str for text in value.values())
        and _is_time(value["at"]) is not None
    )


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


_ERROR = ("type", "message", "traceback", "at")
_STATES = tuple(str(state) for state in TaskState if state is not TaskState.RUNNING)
_MEMBERS = frozenset(
    "id name state published_at started_at finished_at failures crashes errors data result".split()  # noqa: SIM905
)
_is_time = re.compile(r"[0-9]{4}-(?:0[1-9]|1[0-2])-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]\.[0-9]{3}Z").fullmatch

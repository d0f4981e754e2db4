"""The lines of Queue.json that tell what happened: how each is written, and how one is read.

A line is ``,{"<record>":...}`` and a line feed; the first member names the record. What comes from users (payload,
result, error) is the last member and is spliced byte for byte, so the bytes that were checked are the bytes that stay.
Everything else here is short text of our own alphabet; names and causes are escaped by orjson.

Nothing here is state: `fold` knows what the records do.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from actorq.tasks.ids import check_session, parse_range, parse_task_id
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import STEERED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from actorq.tasks.ids import IdRange
    from actorq.tasks.steering import Verb

TASK_LINE: Final = b',{"id":"'
"""How the line of a task begins, and no other."""
PUBLISHER: Final = "publisher"
CONSUMER: Final = "consumer"
ROLES: Final = (PUBLISHER, CONSUMER)


class RecordError(ValueError):
    """The line is no record of this version."""


# ---------------------------------------------------------------------------------------------------------------
# Writing


def writer_line(epoch: int, boot: str, pid: int) -> bytes:
    """Somebody has taken the writer's lock: the first line of his first batch."""
    return b',{"writer":%d,"boot":%b,"pid":%d}\n' % (epoch, _text(boot), pid)


class Hello(NamedTuple):
    """A session makes itself known. The fields from `names` on are a consumer's; names None takes every name."""

    session: str
    role: str
    pid: int
    start: int
    boot: str
    names: tuple[str, ...] | None = None
    max_attempts: int = 3
    max_crashes: int = 3


def hello_line(hello: Hello, *, last_request: int | None = None, last_no: int | None = None) -> bytes:
    """A session is known from here. The last request and assignment numbers are for snapshots."""
    return _line({"hello": hello.session, **_hello_fields(hello, last_request, last_no)})


def publish_lines(ids: IdRange, name: str, payloads: Sequence[bytes], at: str | None = None) -> bytes:
    """Tasks become ready, in order. The payloads are checked JSON; ``at`` is for snapshots (else the commit's time)."""
    if len(payloads) != ids.count:
        raise ValueError(f"{len(payloads)} payloads do not fit the ids {ids}")
    label = _text(name)
    time = b"" if at is None else b',"at":%b' % _text(at)
    if len(payloads) == 1:
        task = str(ids).encode()
        return b',{"publish":"%b","name":%b%b}\n%b%b","name":%b,"data":%b}\n' % (
            task, label, time, TASK_LINE, task, label, payloads[0],
        )  # fmt: skip
    begin = b"%b%b-" % (TASK_LINE, ids.session.encode())
    # Four parts a task, laid out by slices instead of a loop: 0.1 us a task instead of 0.4.
    count = len(payloads)
    parts = [b"}\n" + begin] * (4 * count)
    parts[0] = b',{"publish":"%b","name":%b%b}\n%b' % (str(ids).encode(), label, time, begin)
    parts[1::4] = orjson.dumps(list(range(ids.first, ids.last + 1)))[1:-1].split(b",")
    parts[2::4] = [b'","name":%b,"data":' % label] * count
    parts[3::4] = payloads
    parts.append(b"}\n")
    return b"".join(parts)


def task_lengths(ids: IdRange, name: str, payloads: Sequence[bytes]) -> list[int]:
    """Return how long the lines of these tasks will be."""
    rest = len(TASK_LINE) + len(ids.session) + 1 + len(b'","name":,"data":}\n') + len(_text(name))
    return [rest + len(str(number)) + len(payload) for number, payload in enumerate(payloads, ids.first)]


def publish_head(ids: IdRange, name: str, at: str | None = None) -> bytes:
    """The line that announces the task lines of ``ids``; the snapshot copies those as they stand."""
    time = b"" if at is None else b',"at":%b' % _text(at)
    return b',{"publish":"%b","name":%b%b}\n' % (str(ids).encode(), _text(name), time)


def barrier_line(token: str) -> bytes:
    """A scheduler begins; requests of earlier ones are void."""
    return b',{"barrier":%b}\n' % _text(token)


def assign_line(ids: IdRange, consumer: str, no: int, scheduler: str, request: int, *, at: str | None = None) -> bytes:
    """Ready tasks are handed to a consumer, as its assignment ``no``. ``at`` is for snapshots."""
    time = "" if at is None else f',"at":"{at}"'
    return f',{{"assign":"{ids}","to":"{consumer}","no":{no},"by":"{scheduler}","req":{request}{time}}}\n'.encode()


def done_line(ids: IdRange, no: int, consumer: str, request: int) -> bytes:
    """Tasks of the assignment are done, without a result."""
    return f',{{"done":"{ids}","no":{no},"by":"{consumer}","req":{request}}}\n'.encode()


def done_result_lines(results: Iterable[tuple[str, bytes]], no: int, consumer: str, request: int) -> bytes:
    """Tasks are done, each with its result as checked JSON: pairs of id and result."""
    middle = f'","no":{no},"by":"{consumer}","req":{request},"result":'.encode()
    return b"".join([b',{"done":"%b%b%b}\n' % (task_id.encode(), middle, result) for task_id, result in results])


def failed_line(  # the members of the line, in its order
    task_id: str, no: int, consumer: str, request: int, then: str, error: bytes
) -> bytes:
    """The handler raised. ``then`` is ready or dead; ``error`` is a checked JSON object, see `error_json`."""
    head = f',{{"failed":"{task_id}","no":{no},"by":"{consumer}","req":{request},"then":"{then}","error":'
    return b"%b%b}\n" % (head.encode(), error)


def error_json(type_name: str, message: str, traceback: str = "") -> bytes:
    """Return the error of a `failed` line. Lone surrogates, which are not text, arrive as question marks."""
    error = {"type": type_name, "message": message, "traceback": traceback}
    try:
        return orjson.dumps(error)
    except orjson.JSONEncodeError:
        return orjson.dumps({key: text.encode(errors="replace").decode() for key, text in error.items()})


def returned_line(ids: IdRange, no: int, consumer: str, request: int) -> bytes:
    """Tasks are handed back unstarted: ready again in their place, charged with nothing."""
    return f',{{"returned":"{ids}","no":{no},"by":"{consumer}","req":{request}}}\n'.encode()


def steered_line(
    verb: Verb, tasks: Iterable[IdRange], name: str | None, *, scheduler: str = "", request: int = 0
) -> bytes:
    """Somebody has steered: tasks, or a name (None: the whole queue). Without brokers no scheduler has a request."""
    what = [str(ids) for ids in tasks] if verb in STEERED else name
    numbers: dict[str, object] = {"by": scheduler, "req": request} if scheduler else {}
    return _line({str(verb): what, **numbers})


def gone_line(session: str, cause: str | None = None, task_id: str | None = None) -> bytes:
    """The process of a session is dead. ``task_id`` is the task in hand, charged with the crash."""
    fields: dict[str, object] = {"gone": session}
    if cause is not None:
        fields["cause"] = cause
    if task_id is not None:
        fields["task"] = task_id
    return _line(fields)


def sessions_line(rows: Iterable[Mapping[str, object]], barrier: str | None, barrier_request: int) -> bytes:
    """The writer's own table, so that his successor need not read further back. Rows come from `session_row`."""
    return _line({"sessions": list(rows), "barrier": barrier, "barrier_req": barrier_request})


def session_row(hello: Hello, last_request: int, last_no: int | None = None) -> dict[str, object]:
    """Return one row of a `sessions` record."""
    return {"session": hello.session, **_hello_fields(hello, last_request, last_no)}


def kept_line(ids: IdRange, state: str, fields: Mapping[str, bytes]) -> bytes:
    """In a snapshot: what tasks are, other than plain ready. Values are JSON already, result the last of them."""
    parts = [f',{{"kept":"{ids}","state":"{state}"'.encode()]
    parts += [b',"%b":%b' % (key.encode(), value) for key, value in fields.items()]
    parts.append(b"}\n")
    return b"".join(parts)


def counts_line(removed: Mapping[str, int]) -> bytes:
    """In a snapshot: finished tasks that left the queue with compaction, by state."""
    return _line({"counts": dict(removed)})


def _hello_fields(hello: Hello, last_request: int | None, last_no: int | None) -> dict[str, object]:
    fields: dict[str, object] = {"as": hello.role, "pid": hello.pid, "start": hello.start, "boot": hello.boot}
    if hello.role == CONSUMER:
        fields["names"] = None if hello.names is None else list(hello.names)
        fields["max_attempts"] = hello.max_attempts
        fields["max_crashes"] = hello.max_crashes
    if last_request is not None:
        fields["n"] = last_request
    if last_no is not None:
        fields["no"] = last_no
    return fields


def _line(fields: Mapping[str, object]) -> bytes:
    return b",%b\n" % orjson.dumps(fields)


def _text(text: str) -> bytes:
    return orjson.dumps(text)


# ---------------------------------------------------------------------------------------------------------------
# Reading


def hello_of(fields: Mapping[str, Any], session: str) -> Hello:
    """Return what a parsed `hello` line, or a row of `sessions`, tells. Raises KeyError or RecordError."""
    role = fields["as"]
    if role == PUBLISHER:
        return Hello(session, role, fields["pid"], fields["start"], fields["boot"])
    if role != CONSUMER:
        raise RecordError(f"no session is a {role!r:.100}")
    names = fields["names"]
    return Hello(
        session,
        role,
        fields["pid"],
        fields["start"],
        fields["boot"],
        None if names is None else tuple(names),
        fields["max_attempts"],
        fields["max_crashes"],
    )


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the members of one whole line, checked in name and shape. Raises RecordError saying what is wrong.

    Thorough and slow, for `verify` and for tests; the fold reads what it needs.
    """
    if line[:2] != b",{" or line[-2:] != b"}\n" or line.count(b"\n") != 1:
        raise RecordError("a record is one line, a comma and an object")
    try:
        fields: dict[str, Any] = orjson.loads(line[1:])
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}") from error
    kind = next(iter(fields), "")
    shape = _SHAPES.get(kind)
    if shape is None:
        raise RecordError(f"no record is named {kind!r:.100}")
    for key, is_right in shape.items():
        required = not key.endswith("?")
        key = key.rstrip("?")  # noqa: PLW2901  # the mark belongs to the table, not to the line
        if key in fields:
            if not is_right(fields[key]):
                raise RecordError(f"{kind}: {key} is {fields[key]!r:.100}")
        elif required:
            raise RecordError(f"{kind}: {key} is missing")
    if kind == "kept" and fields["state"] in _FINISHED and "finished" not in fields:
        raise RecordError("kept: finished is missing")
    return fields


def head_of(line: bytes, last_key: bytes) -> dict[str, Any]:
    """Return the members before the spliced one, which is not parsed. The line has no line feed."""
    end = line.find(b',"%b":' % last_key)
    head: dict[str, Any] = orjson.loads(line[1:] if end < 0 else line[1:end] + b"}")
    return head


def spliced_part(line: bytes, key: bytes) -> bytes | None:
    """Return the bytes of the spliced last member, or None when the line has none.

    The first place where the key stands is the right one: only our own short fields come before it.
    """
    before, found, rest = line.rstrip(b"\n").partition(b',"%b":' % key)
    return rest[:-1] if found and before else None


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_limit(value: object) -> bool:
    return type(value) is int and value > 0


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_range(value: object) -> bool:
    return type(value) is str and _parses(parse_range, value)


def _is_id(value: object) -> bool:
    return type(value) is str and _parses(parse_task_id, value)


def _is_session(value: object) -> bool:
    return type(value) is str and _parses(check_session, value)


def _parses(parse: Callable[[str], object], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _is_names(value: object) -> bool:
    return value is None or (type(value) is list and all(map(_is_text, value)))


def _is_ranges(value: object) -> bool:
    return type(value) is list and all(map(_is_range, value))


def _is_name(value: object) -> bool:
    return value is None or _is_text(value)


def _is_time(value: object) -> bool:
    return type(value) is str and len(value) == 24 and _parses(datetime.fromisoformat, value)


def _is_errors(value: object) -> bool:
    return type(value) is list and all(
        type(each) is dict and each.keys() >= {"type", "message", "traceback", "at"} and _is_time(each["at"])
        for each in value
    )


def _is_small(value: object) -> bool:
    return _is_number(value) and value <= 255  # type: ignore[operator]


def _is_anything(_value: object) -> bool:
    return True


def _is_list(value: object) -> bool:
    return type(value) is list


def _is_object(value: object) -> bool:
    return type(value) is dict


def _is_state(value: object) -> bool:
    return value in _STATES


def _is_counts(value: object) -> bool:
    return type(value) is dict and all(_is_state(key) and _is_number(number) for key, number in value.items())


def _is_role(value: object) -> bool:
    return value in ROLES


_NUMBERED = {"no": _is_number, "by": _is_session, "req": _is_number}
_DECIDED = {"by?": _is_session, "req?": _is_number}
_SESSION_FIELDS = {
    "as": _is_role,
    "pid": _is_number,
    "start": _is_number,
    "boot": _is_text,
    "names?": _is_names,
    "max_attempts?": _is_limit,
    "max_crashes?": _is_limit,
    "n?": _is_number,
    "no?": _is_number,
}


def _is_sessions(value: object) -> bool:
    return type(value) is list and all(type(row) is dict and _is_session(row.get("session")) for row in value)


_STATES = tuple(TaskState)
_FINISHED = (TaskState.DONE, TaskState.DEAD, TaskState.CANCELLED)

# A record by its first member; "?" marks a member that may be absent.
_SHAPES: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "writer": {"writer": _is_number, "boot": _is_text, "pid": _is_number},
    "hello": {"hello": _is_session, **_SESSION_FIELDS},
    "publish": {"publish": _is_range, "name": _is_text, "at?": _is_time},
    "id": {"id": _is_id, "name": _is_text, "data": _is_anything},
    "barrier": {"barrier": _is_session},
    "assign": {"assign": _is_range, "to": _is_session, **_NUMBERED, "at?": _is_time},
    "done": {"done": _is_range, **_NUMBERED, "result?": _is_anything},
    "failed": {"failed": _is_id, **_NUMBERED, "then": lambda then: then in ("ready", "dead"), "error": _is_object},
    "returned": {"returned": _is_range, **_NUMBERED},
    "retry": {"retry": _is_ranges, **_DECIDED},
    "cancel": {"cancel": _is_ranges, **_DECIDED},
    "purge": {"purge": _is_ranges, **_DECIDED},
    "pause": {"pause": _is_name, **_DECIDED},
    "resume": {"resume": _is_name, **_DECIDED},
    "gone": {"gone": _is_session, "cause?": _is_text, "task?": _is_id},
    "sessions": {"sessions": _is_sessions, "barrier": lambda token: token is None or _is_session(token)}
    | {"barrier_req": _is_number},
    "kept": {"kept": _is_range, "state": _is_state, "failures?": _is_small, "crashes?": _is_small}
    | {"started?": _is_time, "finished?": _is_time, "errors?": _is_errors, "result?": _is_anything},
    "counts": {"counts": _is_counts},
}

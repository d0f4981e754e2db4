r"""What the processes of a queue say to each other.

Every frame is an `Event`: who speaks (`EventOwner`), what it is (`EventType`), and one frozen message. On the wire
it is a line of JSON, then the message's `body` as it is, so that payloads pass through a broker without being
looked at:

    ["publish","publisher","k3v9x2m4q7ab",1,2,"thumbnail"]\n
    {"path":"a.png"}\n{"path":"b.png"}

Requests are imperative (Publish, Assign), answers and news are past tense (Acknowledged, Committed). Nothing here is
ever pickled: what a mailbox of a broker receives is parsed as JSON, checked against the fields of its class, and
refused when it does not fit.

    to PublisherBroker   Hello, Publish, Report, Confirm, Barrier, Assign, Change, Lend, Sated, Gone, Pending,
                         RegistryStarted, Attach, Compacted
    to ConsumerBroker    Committed, Acknowledged, Gap, WriterStarted, Connected, AwaitIdle, Steer, Switched
    to Compactor         Compact, Released
    to Router            Attach, Detach, Deliver, WriterStarted, RegistryStarted
    to Registry          Connect, WriterStarted, Greeted, RouterStarted, Channel
    to a client          Acknowledged, Gap, Refused, Forgotten, WriterStarted, RouterStarted, Push, Recall, Idle,
                         Steered
"""

# Without `from __future__ import annotations`: as text they would be compiled again for every field, 3 ms in all.
from enum import StrEnum
from types import GenericAlias, UnionType
from typing import Any, NamedTuple, Self

import orjson

from actorq.errors import ActorqError


class EventOwner(StrEnum):
    """Who speaks."""

    PUBLISHER = "publisher"
    CONSUMER = "consumer"
    PUBLISHER_BROKER = "publisher_broker"
    CONSUMER_BROKER = "consumer_broker"
    REGISTRY = "registry"
    ROUTER = "router"
    COMPACTOR = "compactor"


class EventType(StrEnum):
    """What is said; one message class each."""

    HELLO = "hello"
    PUBLISH = "publish"
    REPORT = "report"
    BARRIER = "barrier"
    ASSIGN = "assign"
    CHANGE = "change"
    LEND = "lend"
    SATED = "sated"
    CONFIRM = "confirm"
    GONE = "gone"
    COMMITTED = "committed"
    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    GAP = "gap"
    REFUSED = "refused"
    FORGOTTEN = "forgotten"
    DELIVER = "deliver"
    PUSH = "push"
    RECALL = "recall"
    CONNECT = "connect"
    ATTACH = "attach"
    DETACH = "detach"
    CONNECTED = "connected"
    CHANNEL = "channel"
    WRITER_STARTED = "writer_started"
    GREETED = "greeted"
    ROUTER_STARTED = "router_started"
    REGISTRY_STARTED = "registry_started"
    AWAIT_IDLE = "await_idle"
    IDLE = "idle"
    STEER = "steer"
    STEERED = "steered"
    COMPACT = "compact"
    COMPACTED = "compacted"
    SWITCHED = "switched"
    RELEASED = "released"


class MalformedEventError(ActorqError):
    """A frame that is not an Event; whoever sent it has a bug, or is not one of ours."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)


# ---------------------------------------------------------------------------------------------------------------
# Numbered requests to the writer. Each belongs to a session and is accepted only when it is the next one.


class Hello(NamedTuple):
    """Request 0 of a session: who is behind it, so that its death can be proved. `names` None takes every name."""

    session: str
    role: str
    pid: int
    start: int
    boot: str
    names: list[str] | None = None
    max_attempts: int = 0
    max_crashes: int = 0


class Publish(NamedTuple):
    """Keep `count` tasks, numbered from `first`. The body holds their payloads, one JSON value a line."""

    session: str
    first: int
    count: int  # type: ignore[assignment]  # in place of the method of tuples
    name: str
    body: bytes = b""


class Report(NamedTuple):
    """What became of tasks: `outcomes` of [kind, range, assignment number, then]; see `OutcomeKind`.

    Those that carry JSON (a result, an error) have it in the body, one line each, in order.
    """

    session: str
    number: int
    outcomes: list[list[Any]]
    body: bytes = b""


class OutcomeKind(StrEnum):
    """The kinds of outcome inside a Report."""

    DONE = "done"
    RESULT = "result"  # done with a result, which is a line of the body
    FAILED = "failed"  # the error is a line of the body; `then` says "ready" or "dead"
    RETURNED = "returned"


class Barrier(NamedTuple):
    """Request 0 of a scheduler: from here on the writer takes assignments from this incarnation only.

    `generation`: of the file that it reads. Void if that is one which the writer has not written to; see Assign.
    """

    session: str
    generation: int


class Assign(NamedTuple):
    """Write these assignments and push them: `entries` of [range, consumer, number, failures, crashes, bytes].

    The body is the task lines of all entries, cut by `bytes`; the writer passes them on unread. `generation`: of the
    file in which the tasks are ready. Void unless this incarnation of the writer has had that file open: where a failed
    sync was the reason for a new file, that may hold less, and the request outlives its scheduler in the writer's
    mailbox. Where a compacted file has taken the place of another in its hands, both say the same.
    """

    session: str
    number: int
    generation: int
    entries: list[list[Any]]
    body: bytes = b""


class Change(NamedTuple):
    """Write that somebody has steered: `tasks` are ranges, `name` that of what pauses or goes on, "" the whole queue.

    Numbered like Assign, and void for the same reasons: what takes effect first is what the scheduler decided first.
    """

    session: str
    number: int
    generation: int
    verb: str
    tasks: list[str]
    name: str


class Lend(NamedTuple):
    """Scheduler to writer: these consumers are idle, and nothing is ready for any of them.

    So the writer may hand them one new task each, in the very commit that publishes it: `consumers` of [session,
    number of the next assignment, names or None], the longest waiting first. Not numbered and never acknowledged: it
    counts only if the log still ends where the scheduler has read to (`generation`, `offset`), and until something
    becomes ready that is not handed out so, or the scheduler assigns by itself.
    """

    session: str
    generation: int
    offset: int
    consumers: list[list[Any]]


class Sated(NamedTuple):
    """Scheduler to writer: nobody could be given one more task, so what is merely published is no news.

    Not numbered and never acknowledged: it counts only if nothing but publishes and its own assignments is in the log
    behind what the scheduler has read (`generation`, `offset`), and until something else is. Every commit of something
    else wakes the scheduler, which says so again if anything was published since.
    """

    session: str
    generation: int
    offset: int


class Confirm(NamedTuple):
    """A consumer asks whether the log has its requests up to this number: Acknowledged, or Forgotten. Not numbered.

    They were acknowledged, but a sync may have failed since, or an older file been put in the place of the queue.
    """

    session: str
    number: int


class Gone(NamedTuple):
    """The process of a session is dead. `task` is the one it had in hand, which is charged with the death."""

    session: str
    cause: str
    task: str


# ---------------------------------------------------------------------------------------------------------------
# Answers and news.


class Acknowledged(NamedTuple):
    """All requests of the session up to `number` are in the log, at its durability."""

    session: str
    number: int


class Gap(NamedTuple):
    """A request was not the next one; send again from `expected`."""

    session: str
    expected: int


class Refused(NamedTuple):
    """The request `number` is certainly not in the log and never will be: `kind` of error, item and place in it.

    Of a Publish that did not fit as a whole, `number` is the first task that is not in.
    """

    session: str
    number: int
    kind: str
    reason: str
    index: int  # type: ignore[assignment]  # in place of the method of tuples
    where: str


class Forgotten(NamedTuple):
    """The log has not what was acknowledged to the session; see `Confirm`."""

    session: str


class Committed(NamedTuple):
    """The log reaches to here, as readers see it; its sync may be under way."""

    generation: int
    offset: int


class Pending(NamedTuple):
    """Scheduler to writer, where the queue has a limit: what is not finished, as of this commit."""

    generation: int
    commit: int
    tasks: int
    bytes: int


class WriterStarted(NamedTuple):
    """A new incarnation of the writer; what it has not acknowledged must be repeated.

    `sessions` of [session, role, pid, start, boot] goes to the Registry, which proves who of them is dead.
    """

    epoch: int
    sessions: list[list[Any]]


class Greeted(NamedTuple):
    """Writer to Registry: the log knows these sessions from here on, so their processes must be watched.

    As a rule they are: a client connects before it says hello. But the Registry that it connected to may have died
    since, and the client too, before it noticed.
    """

    sessions: list[list[Any]]


class RouterStarted(NamedTuple):
    """A new incarnation of the Router; what its predecessor had in hand must be repeated."""


class RegistryStarted(NamedTuple):
    """A new incarnation of the Registry asks who is connected."""


# ---------------------------------------------------------------------------------------------------------------
# Connections. The file descriptors travel with the frame: the channel and a pidfd, for a consumer also its slot and a
# pidfd of its supervisor.


class Connect(NamedTuple):
    """A client connects for itself, with the server end of its channel and a pidfd of its own process."""

    session: str
    role: str
    pid: int


class Attach(NamedTuple):
    """Registry to Router and writer: this is the channel of a session."""

    session: str
    role: str
    pid: int


class Detach(NamedTuple):
    """Registry to Router: the session has ended."""

    session: str


class Connected(NamedTuple):
    """Router to scheduler: pushes reach this consumer from here on; those sent before may have been lost."""

    session: str


class Channel(NamedTuple):
    """Router or writer to a new Registry: a session whose channel it has. `is_routed`: it is the Router who says so."""

    session: str
    role: str
    pid: int
    is_routed: bool


class Deliver(NamedTuple):
    """Pass on frames: `entries` of [session, bytes], cut from the body in order."""

    entries: list[list[Any]]
    body: bytes = b""


class Push(NamedTuple):
    """Tasks for a consumer: `entries` of [range, number, failures, crashes, bytes]; the body is their lines."""

    entries: list[list[Any]]
    body: bytes = b""


class Recall(NamedTuple):
    """Give back what was not begun: somebody else could begin it now."""


class AwaitIdle(NamedTuple):
    """Tell the session when nothing is ready, scheduled or running any more."""

    session: str
    ticket: int


class Idle(NamedTuple):
    """Nothing is left to do, or only tasks of names without a handler, or of names that are paused.

    `paused`: of what pauses keeps tasks back, "" being that of the whole queue.
    """

    ticket: int
    waiting_names: list[str]
    paused: list[str]


class Steer(NamedTuple):
    """A client asks the scheduler to steer; see `Change` and `Wish`. Sent again until Steered comes with its ticket.

    The tickets of a session rise, and it asks the next one only when it has heard of the one before.
    """

    session: str
    ticket: int
    verb: str
    tasks: list[str]
    name: str
    died_by: str


class Steered(NamedTuple):
    """What was asked for is on disk, as far as it could be done: these ranges of the tasks are as was wished."""

    ticket: int
    tasks: list[str]


# ---------------------------------------------------------------------------------------------------------------
# A compacted file takes the place of the one in use; see compactor.py.


class Compact(NamedTuple):
    """Scheduler to Compactor: write a compacted file beside that of this generation, unless it is not there any more.

    Sent again if nothing has come of it after a while.
    """

    generation: int


class Compacted(NamedTuple):
    """Compactor to writer: the file `name` may take the place of that of this generation.

    It holds everything up to `commit`, which ends at `end` in the old file and at `size`, its own end, in the new one.
    """

    generation: int
    name: str
    commit: int
    end: int
    size: int


class Switched(NamedTuple):
    """Writer to scheduler: the file is of this generation now. What ended at `before` ends at `after` in it.

    The file before it ends there. Nothing else has changed: same commits, same writer, same sessions.
    """

    generation: int
    before: int
    after: int


class Released(NamedTuple):
    """Scheduler to Compactor: it has let go of the file before that of this generation."""

    generation: int


type ToPublisherBroker = (
    Hello
    | Publish
    | Report
    | Barrier
    | Assign
    | Change
    | Lend
    | Sated
    | Confirm
    | Gone
    | Pending
    | RegistryStarted
    | Attach
    | Compacted
)
type ToConsumerBroker = Committed | Acknowledged | Gap | WriterStarted | Connected | AwaitIdle | Steer | Switched
type ToCompactor = Compact | Released
type ToRouter = Attach | Detach | Deliver | WriterStarted | RegistryStarted
type ToRegistry = Connect | WriterStarted | Greeted | RouterStarted | Channel
type ToClient = (
    Acknowledged | Gap | Refused | Forgotten | WriterStarted | RouterStarted | Push | Recall | Idle | Steered
)
type Message = ToPublisherBroker | ToConsumerBroker | ToCompactor | ToRouter | ToRegistry | ToClient

MESSAGES: dict[EventType, type[Message]] = {
    EventType.HELLO: Hello,
    EventType.PUBLISH: Publish,
    EventType.REPORT: Report,
    EventType.BARRIER: Barrier,
    EventType.ASSIGN: Assign,
    EventType.CHANGE: Change,
    EventType.LEND: Lend,
    EventType.SATED: Sated,
    EventType.CONFIRM: Confirm,
    EventType.GONE: Gone,
    EventType.COMMITTED: Committed,
    EventType.PENDING: Pending,
    EventType.ACKNOWLEDGED: Acknowledged,
    EventType.GAP: Gap,
    EventType.REFUSED: Refused,
    EventType.FORGOTTEN: Forgotten,
    EventType.DELIVER: Deliver,
    EventType.PUSH: Push,
    EventType.RECALL: Recall,
    EventType.CONNECT: Connect,
    EventType.ATTACH: Attach,
    EventType.DETACH: Detach,
    EventType.CONNECTED: Connected,
    EventType.CHANNEL: Channel,
    EventType.WRITER_STARTED: WriterStarted,
    EventType.GREETED: Greeted,
    EventType.ROUTER_STARTED: RouterStarted,
    EventType.REGISTRY_STARTED: RegistryStarted,
    EventType.AWAIT_IDLE: AwaitIdle,
    EventType.IDLE: Idle,
    EventType.STEER: Steer,
    EventType.STEERED: Steered,
    EventType.COMPACT: Compact,
    EventType.COMPACTED: Compacted,
    EventType.SWITCHED: Switched,
    EventType.RELEASED: Released,
}


def _is_same(one: Message, other: object) -> bool:
    return type(one) is type(other) and tuple.__eq__(one, other)


def _is_other(one: Message, other: object) -> bool:
    return not _is_same(one, other)


def _hash(one: Message) -> int:
    return hash((type(one), tuple.__hash__(one)))


def _is_true(_: Message) -> bool:
    return True


# What two kinds say is never the same, also where the same values stand in both; and one without values says something.
for _cls in MESSAGES.values():
    for _name, _method in {"__eq__": _is_same, "__ne__": _is_other, "__hash__": _hash, "__bool__": _is_true}.items():
        setattr(_cls, _name, _method)


class Event(NamedTuple):
    """The envelope: who speaks, and what he says."""

    owner: EventOwner
    message: Message

    @property
    def type(self) -> EventType:
        """What kind of message is inside."""
        return EventType(_KINDS[type(self.message)][0])

    def encode(self) -> bytes:
        """Return the event as one frame."""
        return encode(*self)

    @classmethod
    def decode(cls, frame: bytes) -> Self:
        """Return the event of a frame, or raise MalformedEventError; never anything half understood."""
        return cls(*_decode(frame))


def encode(owner: EventOwner, message: Message) -> bytes:
    """Return the frame of an event that nobody needs to see: 0.3 us less than to make one."""
    kind, has_body = _KINDS[type(message)]
    values: list[Any] = [kind, owner, *message]
    body: bytes = values.pop() if has_body else b""
    return orjson.dumps(values, None, orjson.OPT_APPEND_NEWLINE) + body


def message_in(frame: bytes) -> Message:
    """Return what is said in a frame, whoever says it, or raise MalformedEventError."""
    return _decode(frame)[1]


def _decode(frame: bytes) -> tuple[EventOwner, Message]:
    end = frame.find(b"\n")
    try:
        kind, owner, *values = orjson.loads(frame[:end])
        message, types, has_body = _SHAPES[kind]
        owner = _OWNERS[owner]
    except (orjson.JSONDecodeError, KeyError, ValueError, TypeError) as error:
        raise MalformedEventError(f"not an event: {error}") from None
    if list(map(type, values)) != types and not _fits(values, types):
        names = ", ".join(message._fields[: len(types)])
        raise MalformedEventError(f"a {kind} event has the fields {names}, not {values!r:.200}")
    if has_body:
        values.append(frame[end + 1 :])
    return owner, tuple.__new__(message, values)  # 0.1 us less than to count them once more


def _fits(values: list[Any], types: list[type | UnionType]) -> bool:
    return len(values) == len(types) and all(map(isinstance, values, types))


def _shape_of(cls: type[Message]) -> tuple[type[Message], list[type | UnionType], bool]:
    hints = cls.__annotations__
    types = [_without_items(hints[name]) for name in cls._fields if name != "body"]
    return cls, types, "body" in hints


def _without_items(hint: Any) -> type | UnionType:
    if isinstance(hint, UnionType):
        return list | None
    return list if isinstance(hint, GenericAlias) else hint


_SHAPES = {kind.value: _shape_of(cls) for kind, cls in MESSAGES.items()}
"""By kind of message: its class, the types of the fields that stand in the line of JSON, and whether a body follows."""
_KINDS = {cls: (kind.value, "body" in cls._fields) for kind, cls in MESSAGES.items()}
"""By class of message: its kind, and whether a body follows."""
_OWNERS = {owner.value: owner for owner in EventOwner}

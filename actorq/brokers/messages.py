r"""What the processes of a queue say to each other.

Every frame is an `Event`: who speaks (`EventOwner`), what it is (`EventType`), and one frozen message. On the wire
it is a line of JSON, then the message's `body` as it is, so that payloads pass through a broker without being
looked at:

    ["publish","publisher","k3v9x2m4q7ab",1,2,"thumbnail"]\n
    {"path":"a.png"}\n{"path":"b.png"}

Requests are imperative (Publish, Assign), answers and news are past tense (Acknowledged, Committed). Nothing here is
ever pickled: what a mailbox of a broker receives is parsed as JSON, checked against the fields of its class, and
refused when it does not fit.

    to PublisherBroker   Hello, Publish, Report, Barrier, Assign, Change, Lend, Sated, Gone, Pending, RegistryStarted,
                         Attach, Compacted
    to ConsumerBroker    Committed, Acknowledged, Gap, WriterStarted, Connected, AwaitIdle, Steer, Switched
    to Compactor         Compact, Released
    to Router            Attach, Detach, Deliver, WriterStarted, RegistryStarted
    to Registry          Connect, WriterStarted, Greeted, RouterStarted, Channel
    to a client          Acknowledged, Gap, Refused, WriterStarted, RouterStarted, Push, Recall, Idle, Steered
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from types import UnionType
from typing import Any, ClassVar, NamedTuple, cast, get_origin, get_type_hints

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
    GONE = "gone"
    COMMITTED = "committed"
    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    GAP = "gap"
    REFUSED = "refused"
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


@dataclass(frozen=True, slots=True)
class Hello:
    """Request 0 of a session: who is behind it, so that its death can be proved. `names` None takes every name."""

    type: ClassVar = EventType.HELLO
    session: str
    role: str
    pid: int
    start: int
    boot: str
    names: list[str] | None = None
    max_attempts: int = 0
    max_crashes: int = 0


@dataclass(frozen=True, slots=True)
class Publish:
    """Keep `count` tasks, numbered from `first`. The body holds their payloads, one JSON value a line."""

    type: ClassVar = EventType.PUBLISH
    session: str
    first: int
    count: int
    name: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of tasks: `outcomes` of [kind, range, assignment number, then]; see `OutcomeKind`.

    Those that carry JSON (a result, an error) have it in the body, one line each, in order.
    """

    type: ClassVar = EventType.REPORT
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


@dataclass(frozen=True, slots=True)
class Barrier:
    """Request 0 of a scheduler: from here on the writer takes assignments from this incarnation only.

    `generation`: of the file that it reads. Void if that is one which the writer has not written to; see Assign.
    """

    type: ClassVar = EventType.BARRIER
    session: str
    generation: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Write these assignments and push them: `entries` of [range, consumer, number, failures, crashes, bytes].

    The body is the task lines of all entries, cut by `bytes`; the writer passes them on unread. `generation`: of the
    file in which the tasks are ready. Void unless this incarnation of the writer has had that file open: where a failed
    sync was the reason for a new file, that may hold less, and the request outlives its scheduler in the writer's
    mailbox. Where a compacted file has taken the place of another in its hands, both say the same.
    """

    type: ClassVar = EventType.ASSIGN
    session: str
    number: int
    generation: int
    entries: list[list[Any]]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Change:
    """Write that somebody has steered: `tasks` are ranges, `name` that of what pauses or goes on, "" the whole queue.

    Numbered like Assign, and void for the same reasons: what takes effect first is what the scheduler decided first.
    """

    type: ClassVar = EventType.CHANGE
    session: str
    number: int
    generation: int
    verb: str
    tasks: list[str]
    name: str


@dataclass(frozen=True, slots=True)
class Lend:
    """Scheduler to writer: these consumers are idle, and nothing is ready for any of them.

    So the writer may hand them one new task each, in the very commit that publishes it: `consumers` of [session,
    number of the next assignment, names or None], the longest waiting first. Not numbered and never acknowledged: it
    counts only if the log still ends where the scheduler has read to (`generation`, `offset`), and until something
    becomes ready that is not handed out so, or the scheduler assigns by itself.
    """

    type: ClassVar = EventType.LEND
    session: str
    generation: int
    offset: int
    consumers: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Sated:
    """Scheduler to writer: nobody could be given one more task, so what is merely published is no news.

    Not numbered and never acknowledged: it counts only if nothing but publishes is in the log behind what the scheduler
    has read (`generation`, `offset`), and until something else is. Every commit that is more than that wakes the
    scheduler, and it says so again.
    """

    type: ClassVar = EventType.SATED
    session: str
    generation: int
    offset: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The process of a session is dead. `task` is the one it had in hand, which is charged with the death."""

    type: ClassVar = EventType.GONE
    session: str
    cause: str
    task: str


# ---------------------------------------------------------------------------------------------------------------
# Answers and news.


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """All requests of the session up to `number` are in the log, at its durability."""

    type: ClassVar = EventType.ACKNOWLEDGED
    session: str
    number: int


@dataclass(frozen=True, slots=True)
class Gap:
    """A request was not the next one; send again from `expected`."""

    type: ClassVar = EventType.GAP
    session: str
    expected: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The request `number` is certainly not in the log and never will be: `kind` of error, item and place in it.

    Of a Publish that did not fit as a whole, `number` is the first task that is not in.
    """

    type: ClassVar = EventType.REFUSED
    session: str
    number: int
    kind: str
    reason: str
    index: int
    where: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The log reaches to here."""

    type: ClassVar = EventType.COMMITTED
    generation: int
    offset: int


@dataclass(frozen=True, slots=True)
class Pending:
    """Scheduler to writer, where the queue has a limit: what is not finished, as of this commit."""

    type: ClassVar = EventType.PENDING
    generation: int
    commit: int
    tasks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class WriterStarted:
    """A new incarnation of the writer; what it has not acknowledged must be repeated.

    `sessions` of [session, role, pid, start, boot] goes to the Registry, which proves who of them is dead.
    """

    type: ClassVar = EventType.WRITER_STARTED
    epoch: int
    sessions: list[list[Any]]


@dataclass(frozen=True, slots=True)
class Greeted:
    """Writer to Registry: the log knows these sessions from here on, so their processes must be watched.

    As a rule they are: a client connects before it says hello. But the Registry that it connected to may have died
    since, and the client too, before it noticed.
    """

    type: ClassVar = EventType.GREETED
    sessions: list[list[Any]]


@dataclass(frozen=True, slots=True)
class RouterStarted:
    """A new incarnation of the Router; what its predecessor had in hand must be repeated."""

    type: ClassVar = EventType.ROUTER_STARTED


@dataclass(frozen=True, slots=True)
class RegistryStarted:
    """A new incarnation of the Registry asks who is connected."""

    type: ClassVar = EventType.REGISTRY_STARTED


# ---------------------------------------------------------------------------------------------------------------
# Connections. The file descriptors travel with the frame: the channel and a pidfd, for a consumer also its slot and a
# pidfd of its supervisor.


@dataclass(frozen=True, slots=True)
class Connect:
    """A client connects for itself, with the server end of its channel and a pidfd of its own process."""

    type: ClassVar = EventType.CONNECT
    session: str
    role: str
    pid: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Registry to Router and writer: this is the channel of a session."""

    type: ClassVar = EventType.ATTACH
    session: str
    role: str
    pid: int


@dataclass(frozen=True, slots=True)
class Detach:
    """Registry to Router: the session has ended."""

    type: ClassVar = EventType.DETACH
    session: str


@dataclass(frozen=True, slots=True)
class Connected:
    """Router to scheduler: pushes reach this consumer from here on; those sent before may have been lost."""

    type: ClassVar = EventType.CONNECTED
    session: str


@dataclass(frozen=True, slots=True)
class Channel:
    """Router or writer to a new Registry: a session whose channel it has. `is_routed`: it is the Router who says so."""

    type: ClassVar = EventType.CHANNEL
    session: str
    role: str
    pid: int
    is_routed: bool


@dataclass(frozen=True, slots=True)
class Deliver:
    """Pass on frames: `entries` of [session, bytes], cut from the body in order."""

    type: ClassVar = EventType.DELIVER
    entries: list[list[Any]]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Push:
    """Tasks for a consumer: `entries` of [range, number, failures, crashes, bytes]; the body is their lines."""

    type: ClassVar = EventType.PUSH
    entries: list[list[Any]]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Recall:
    """Give back what was not begun: somebody else could begin it now."""

    type: ClassVar = EventType.RECALL


@dataclass(frozen=True, slots=True)
class AwaitIdle:
    """Tell the session when nothing is ready, scheduled or running any more."""

    type: ClassVar = EventType.AWAIT_IDLE
    session: str
    ticket: int


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing is left to do, or only tasks of names without a handler, or of names that are paused.

    `paused`: of what pauses keeps tasks back, "" being that of the whole queue.
    """

    type: ClassVar = EventType.IDLE
    ticket: int
    waiting_names: list[str]
    paused: list[str]


@dataclass(frozen=True, slots=True)
class Steer:
    """A client asks the scheduler to steer; see `Change` and `Wish`. Sent again until Steered comes with its ticket.

    The tickets of a session rise, and it asks the next one only when it has heard of the one before.
    """

    type: ClassVar = EventType.STEER
    session: str
    ticket: int
    verb: str
    tasks: list[str]
    name: str
    died_by: str


@dataclass(frozen=True, slots=True)
class Steered:
    """What was asked for is on disk, as far as it could be done: these ranges of the tasks are as was wished."""

    type: ClassVar = EventType.STEERED
    ticket: int
    tasks: list[str]


# ---------------------------------------------------------------------------------------------------------------
# A compacted file takes the place of the one in use; see compactor.py.


@dataclass(frozen=True, slots=True)
class Compact:
    """Scheduler to Compactor: write a compacted file beside that of this generation, unless it is not there any more.

    Sent again if nothing has come of it after a while.
    """

    type: ClassVar = EventType.COMPACT
    generation: int


@dataclass(frozen=True, slots=True)
class Compacted:
    """Compactor to writer: the file `name` may take the place of that of this generation.

    It holds everything up to `commit`, which ends at `end` in the old file and at `size`, its own end, in the new one.
    """

    type: ClassVar = EventType.COMPACTED
    generation: int
    name: str
    commit: int
    end: int
    size: int


@dataclass(frozen=True, slots=True)
class Switched:
    """Writer to scheduler: the file is of this generation now. What ended at `before` ends at `after` in it.

    The file before it ends there. Nothing else has changed: same commits, same writer, same sessions.
    """

    type: ClassVar = EventType.SWITCHED
    generation: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Released:
    """Scheduler to Compactor: it has let go of the file before that of this generation."""

    type: ClassVar = EventType.RELEASED
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
type ToClient = Acknowledged | Gap | Refused | WriterStarted | RouterStarted | Push | Recall | Idle | Steered
type Message = ToPublisherBroker | ToConsumerBroker | ToCompactor | ToRouter | ToRegistry | ToClient

MESSAGES: dict[str, type[Message]] = {
    cls.type: cls
    for cls in (
        Hello, Publish, Report, Barrier, Assign, Change, Lend, Sated, Gone, Acknowledged, Gap, Refused, Committed,
        Pending, WriterStarted, Greeted, RouterStarted, RegistryStarted, Connect, Attach, Detach, Connected, Channel,
        Deliver, Push, Recall, AwaitIdle, Idle, Steer, Steered, Compact, Compacted, Switched, Released,
    )
}  # fmt: skip


class Event(NamedTuple):
    """The envelope: who speaks, and what he says."""

    owner: EventOwner
    message: Message

    @property
    def type(self) -> EventType:
        """What kind of message is inside."""
        return self.message.type

    def encode(self) -> bytes:
        """Return the event as one frame."""
        message = self.message
        names, _, has_body = _SHAPES[message.type]
        head = [message.type, self.owner, *[getattr(message, name) for name in names]]
        if has_body:
            return orjson.dumps(head) + b"\n" + cast("Publish", message).body
        return orjson.dumps(head) + b"\n"

    @classmethod
    def decode(cls, frame: bytes) -> Event:
        """Return the event of a frame, or raise MalformedEventError; never anything half understood."""
        end = frame.find(b"\n")
        try:
            kind, owner, *values = orjson.loads(frame[:end])
            names, types, has_body = _SHAPES[kind]
            owner = EventOwner(owner)
        except (orjson.JSONDecodeError, KeyError, ValueError, TypeError) as error:
            raise MalformedEventError(f"not an event: {error}") from None
        if [type(value) for value in values] != types and not _fits(values, types):
            raise MalformedEventError(f"a {kind} event has the fields {', '.join(names)}, not {values!r:.200}")
        if has_body:
            values.append(frame[end + 1 :])
        return cls(owner, MESSAGES[kind](*values))


def _fits(values: list[Any], types: list[type | UnionType]) -> bool:
    return len(values) == len(types) and all(map(isinstance, values, types))


def _shape_of(cls: type[Message]) -> tuple[list[str], list[type | UnionType], bool]:
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls) if field.name != "body"]
    types = [list if get_origin(hints[name]) is list else hints[name] for name in names]
    types = [list | None if get_origin(kind) is UnionType else kind for kind in types]
    return names, types, "body" in hints


_SHAPES = {kind: _shape_of(cls) for kind, cls in MESSAGES.items()}
"""Per kind of message: the fields that stand in the line of JSON, their types, and whether a body follows."""

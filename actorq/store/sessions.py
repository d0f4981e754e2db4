"""Who may ask the writer for what: the sessions that are known, and the last request of each.

Every request to the writer has a session and a number; it takes only the next one. This is what he must know for that,
and all he must know: it is folded from the last checkpoint on, so a start costs the tail of the log and not the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, override

import orjson

from actorq.store import records
from actorq.tasks.ids import parse_range
from actorq.tasks.task import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MAX_REFUSED = 1024
"""How many refusals are remembered, for a client that has not heard of its own and asks again."""

REFUSED = "refused: "
"""How the cause begins in the record of a session that ended by a refusal."""


class Introduction(Protocol):
    """What a session says of itself: `records.Hello`, or a request with the same fields from another process."""

    @property
    def session(self) -> str:
        """What it is called."""

    @property
    def role(self) -> str:
        """Publisher or consumer."""

    @property
    def pid(self) -> int:
        """Its process."""

    @property
    def start(self) -> int:
        """When that process began, as the kernel counts."""

    @property
    def boot(self) -> str:
        """The boot id of its machine."""

    @property
    def names(self) -> Sequence[str] | None:
        """The names of tasks it takes; None takes every one."""

    @property
    def max_attempts(self) -> int:
        """How often a handler may raise."""

    @property
    def max_crashes(self) -> int:
        """How often a handler may kill its process."""


@dataclass(slots=True)
class SessionEntry:
    """A known session, as it said hello, and the number of its last request that was taken."""

    hello: records.Hello
    last_request: int = 0


class SessionTable:
    """The writer's table. What he writes he notes here by `greet`, `advance`, `set_scheduler` and `forget`."""

    def __init__(self) -> None:
        self.sessions: dict[str, SessionEntry] = {}
        self.scheduler: str | None = None
        self.scheduler_request = 0
        self.boot: str | None = None
        """The boot id of the last writer."""
        self.refused: dict[str, tuple[int, str]] = {}
        """Sessions that were ended because a request was refused: its number, and for what reason."""

    @override
    def __repr__(self) -> str:
        return f"<SessionTable {len(self.sessions)} sessions, scheduler {self.scheduler}>"

    def expected(self, session: str) -> int:
        """Return the number of the next request to take: 0, the hello (or barrier), when the session is not known."""
        entry = self.sessions.get(session)
        if entry is not None:
            return entry.last_request + 1
        return self.scheduler_request + 1 if session == self.scheduler else 0

    def greet(self, hello: Introduction) -> bytes:
        """Note a session that is not known yet, and return the line that tells of it. Raises ValueError: no hello."""
        names = None if hello.names is None else tuple(map(check_name, hello.names))
        fields = (hello.pid, hello.start, hello.boot, names, hello.max_attempts, hello.max_crashes)
        known = records.Hello(hello.session, hello.role, *fields)
        line = records.hello_line(known)
        records.parse_line(line)  # it came from another process
        self.sessions[hello.session] = SessionEntry(known)
        return line

    def advance(self, session: str, number: int) -> None:
        """Note that a request was taken; those of unknown sessions do not count."""
        entry = self.sessions.get(session)
        if entry is not None:
            entry.last_request = max(entry.last_request, number)
        elif session == self.scheduler:
            self.scheduler_request = max(self.scheduler_request, number)

    def set_scheduler(self, token: str) -> None:
        """Note that a scheduler began; the requests of earlier ones are not known any more."""
        self.scheduler = token
        self.scheduler_request = 0

    def forget(self, session: str) -> None:
        """Note that the process of a session is dead."""
        self.sessions.pop(session, None)

    def refuse(self, session: str, reason: str) -> bytes:
        """Note that a session has ended because its next request is refused, and return the line that tells of it."""
        self.refused[session] = self.expected(session), reason
        while len(self.refused) > MAX_REFUSED:
            self.refused.pop(next(iter(self.refused)))
        self.forget(session)
        return records.gone_line(session, REFUSED + reason)

    def is_publisher(self, session: str) -> bool:
        """Tell whether this is a known publisher."""
        entry = self.sessions.get(session)
        return entry is not None and entry.hello.role == records.PUBLISHER

    def roll(self) -> list[list[Any]]:
        """Return who must be watched: session, role, pid, start and boot id of each."""
        hellos = (entry.hello for entry in self.sessions.values())
        return [[hello.session, hello.role, hello.pid, hello.start, hello.boot] for hello in hellos]

    def checkpoint_line(self) -> bytes:
        """Return the record that holds this table."""
        rows = (records.session_row(entry.hello, entry.last_request) for entry in self.sessions.values())
        return records.sessions_line(rows, self.scheduler, self.scheduler_request)

    def apply(self, lines: bytes) -> None:
        """Take up one batch of the log, or a piece of the snapshot. The lines of tasks are skipped without a look."""
        for line in _record_lines(lines):
            kind = line[3 : line.find(b'"', 3)]
            if kind in _NUMBERED:
                match = _find_request(line)
                if match is not None:
                    self.advance(match[1].decode(), int(match[2]))
            elif kind == b"publish":
                session, _, last = parse_range(orjson.loads(line[1:])["publish"])
                self.advance(session, last)
            elif kind in _RARE:
                self._apply_rare(kind, line)

    def _apply_rare(self, kind: bytes, line: bytes) -> None:
        fields = orjson.loads(line[1:])
        if kind == b"hello":
            self._know(records.hello_of(fields, fields["hello"]), fields.get("n", 0))
        elif kind == b"barrier":
            self.set_scheduler(fields["barrier"])
        elif kind == b"gone":
            cause = fields.get("cause", "")
            if cause.startswith(REFUSED):
                self.refuse(fields["gone"], cause.removeprefix(REFUSED))
            self.forget(fields["gone"])
        elif kind == b"writer":
            self.boot = fields["boot"]
        else:
            self.sessions.clear()
            for row in fields["sessions"]:
                self._know(records.hello_of(row, row["session"]), row["n"])
            self.scheduler, self.scheduler_request = fields["barrier"], fields["barrier_req"]

    def _know(self, hello: records.Hello, last_request: int) -> None:
        # Whoever says hello twice stays as he was: the fold does the same.
        self.sessions.setdefault(hello.session, SessionEntry(hello, last_request))


_NUMBERED = frozenset({b"assign", b"done", b"failed", b"returned", b"retry", b"cancel", b"purge", b"pause", b"resume"})
_RARE = frozenset({b"hello", b"barrier", b"gone", b"writer", b"sessions"})
# The first place is ours: what users put into a line comes behind it.
_find_request = re.compile(rb'"by":"([a-z0-9]+)","req":([0-9]+)').search
# A payload may hold `,{"done":`, but never a line feed before it.
_find_records = re.compile(rb'\n,\{"(?!id":)').finditer


def _record_lines(lines: bytes) -> Iterator[bytes]:
    """Yield each line that is not a task's, without its end."""
    if lines and not lines.startswith(records.TASK_LINE):
        yield lines[: lines.find(b"\n")]
    for match in _find_records(lines):
        begin = match.start() + 1
        yield lines[begin : lines.find(b"\n", begin)]

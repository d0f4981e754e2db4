"""What the runtime itself says: requests to supervisors, their answers, and the news of an end.

Requests are imperative and go to the supervisor of the actor they are about. All are values of this package, so a
supervisor never imports what belongs to the user.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from actorq.actors.exits import ExitKind, ExitReason

if TYPE_CHECKING:
    from actorq.actors.spec import SealedSpec


class StartChild(NamedTuple):
    """Start a new child and keep it. Answered by Started once its `on_start` is through, or by its error."""

    spec: SealedSpec


class Started(NamedTuple):
    """The child runs. `incarnation` is that of the supervisor: one that was started since knows nothing of it."""

    pid: int
    incarnation: int


class StopChild(NamedTuple):
    """Let a child handle what waits, then stop it for good. Answered by Stopped when it is dead, also when it was."""

    name: str
    within: float | None = None
    """Seconds until it is killed; None: as its spec says."""


class Stopped(NamedTuple):
    """No child of that name runs, nor will be started."""


class KillChild(NamedTuple):
    """Kill the present incarnation of a child. Answered by True when it is dead, by False when none was alive."""

    name: str


class AwaitDown(NamedTuple):
    """Tell me how the present incarnation ended. Answered by Down: when it ends, or at once when none is alive."""

    name: str


class WhereIs(NamedTuple):
    """Answered by the ref of the child of that name, or None."""

    name: str


class ListChildren(NamedTuple):
    """Answered by a tuple of ChildInfo in start order."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What a supervisor knows of a child."""

    name: str
    pid: int | None
    """None while it is down."""
    state: str
    """waiting, starting, running or stopping."""
    restarts: int
    progress: bool
    """Whether the present incarnation has waited for a message at least once."""


type SupervisorRequest = StartChild | StopChild | KillChild | AwaitDown | WhereIs | ListChildren


@dataclass(frozen=True, slots=True)
class Down:
    """An incarnation of an actor has ended, says the kernel."""

    ref_name: str
    pid: int | None
    """None when it had ended before anybody asked, and nobody remembers."""
    reason: ExitReason

    def encode(self) -> bytes:
        """Return it as JSON, for actors that unpickle nothing."""
        reason = self.reason
        return json.dumps([self.ref_name, self.pid, reason.kind, reason.text, reason.detail]).encode()

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Down:
        """Return what `encode` wrote."""
        name, pid, kind, text, detail = json.loads(bytes(data))
        return cls(name, pid, ExitReason(ExitKind(kind), text, detail))

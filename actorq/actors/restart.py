"""Who is started again after an end, and in which order: OTP's rules as tables and pure functions.

A supervisor compares what is with what should be. Each child is in one `Phase`; children that must go down and come
up together form a *wave*. After every event the supervisor asks `may_stop` and `may_start` and does what they say:

    end of a child --> restarts_after? --> window.admit? --> wave_after: who goes down with it
                            | no                | no
                            v                   v
                        it is gone          escalate: all go down, then the supervisor ends with an error

Within a wave children go down one by one from the last to the first, and come up from the first to the last, each
when the one before it runs. Different waves do not wait for each other.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, override

from actorq.actors.exits import ExitKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Restart(StrEnum):
    """When a child is started again."""

    PERMANENT = "permanent"
    """Always."""
    TRANSIENT = "transient"
    """Only if it failed."""
    TEMPORARY = "temporary"
    """Never."""


class Strategy(StrEnum):
    """Who goes down and comes up with a child that is started again."""

    ONE_FOR_ONE = "one_for_one"
    """Nobody."""
    ONE_FOR_ALL = "one_for_all"
    """Everybody."""
    REST_FOR_ONE = "rest_for_one"
    """Those that were started after it."""


class Phase(Enum):
    """Where a child is."""

    WAITING = "waiting"  # down, to be started
    STARTING = "starting"  # forked, has not said yet that it runs
    RUNNING = "running"
    STOPPING = "stopping"  # told to stop, or killed; the kernel has not confirmed its end yet
    ENDED = "ended"  # down for good


# fmt: off
RESTARTS_AFTER: Mapping[Restart, frozenset[ExitKind]] = MappingProxyType({
    Restart.PERMANENT: frozenset(ExitKind),
    Restart.TRANSIENT: frozenset({ExitKind.CRASH, ExitKind.KILLED, ExitKind.GONE}),
    Restart.TEMPORARY: frozenset(),
})
# fmt: on

ALIVE = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING})


def restarts_after(restart: Restart, kind: ExitKind) -> bool:
    """Whether a child with this rule is started again after such an end."""
    return kind in RESTARTS_AFTER[restart]


def wave_after[T](strategy: Strategy, children: Sequence[T], ended: T) -> Sequence[T]:
    """Return, in start order, the children that go down and come up with the one that ended, it included."""
    match strategy:
        case Strategy.ONE_FOR_ONE:
            return [ended]
        case Strategy.ONE_FOR_ALL:
            return children
        case Strategy.REST_FOR_ONE:
            return children[children.index(ended) :]


class Standing(Protocol):
    """What the two decisions below need to know of a child."""

    @property
    def phase(self) -> Phase:
        """Where it is."""

    @property
    def wave(self) -> int:
        """With whom it goes down and comes up."""

    @property
    def must_stop(self) -> bool:
        """It has to go down first; whether it comes up again is decided when it is down."""

    @property
    def due(self) -> float:
        """Not to be started before (a time of the monotonic clock)."""


def may_stop[C: Standing](children: Sequence[C]) -> list[C]:
    """Return the children to be stopped now: of each wave the last one that is still up."""
    last_up: dict[int, C] = {}
    for child in children:
        if child.must_stop and child.phase in ALIVE:
            last_up[child.wave] = child
    return [child for child in last_up.values() if child.phase is not Phase.STOPPING]


def may_start[C: Standing](children: Sequence[C], now: float) -> list[C]:
    """Return the children to be started now: of each wave the first that is down, once all have gone down that must."""
    blocked = {child.wave for child in children if child.must_stop}
    startable = []
    for child in children:
        if child.wave in blocked:
            continue
        if child.phase in (Phase.WAITING, Phase.STARTING, Phase.STOPPING):
            blocked.add(child.wave)
        if child.phase is Phase.WAITING and child.due <= now:
            startable.append(child)
    return startable


class RestartWindow:
    """Lets `max_restarts` pass in any `max_seconds`. One more, and the supervisor gives up."""

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        if max_restarts < 0 or not max_seconds > 0:
            raise ValueError(f"{max_restarts} restarts in {max_seconds} s: not less than 0 in more than 0")
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._times: deque[float] = deque()

    def admit(self, now: float) -> bool:
        """Count a restart; False when it is one too many."""
        self._times.append(now)
        while self._times[0] <= now - self.max_seconds:
            self._times.popleft()
        return len(self._times) <= self.max_restarts

    def clear(self) -> None:
        """Begin anew."""
        self._times.clear()

    @override
    def __repr__(self) -> str:
        return f"<RestartWindow {len(self._times)} of {self.max_restarts} in {self.max_seconds:g} s>"


FIRST_BACK_OFF = 0.010
LAST_BACK_OFF = 1.0


def back_off(deaths_without_progress: int) -> float:
    """Return how long to wait before the next start: nothing at first, then 10 ms doubling to 1 s."""
    if deaths_without_progress <= 1:
        return 0.0
    return min(LAST_BACK_OFF, FIRST_BACK_OFF * 2.0 ** min(deaths_without_progress - 2, 16))

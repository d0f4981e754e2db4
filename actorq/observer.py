"""How a queue stands, from any process: what its file and its locks say, and how its processes are.

Takes no lock on the queue. To look again costs what has been committed since, and a few reads of kernel tables for each
process. How much waits in the mailboxes of the brokers tells the kernel to those who can write to them, so a look from
time to time comes in by the door, like a publisher.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from actorq.brokers.door import knock
from actorq.clock import SYSTEM_CLOCK, Clock, from_iso, to_iso
from actorq.errors import NotAdmittedError
from actorq.linux import boot_id, process_start_time
from actorq.process_tree import CONSUMER, STARTING, WRITER, process_tree
from actorq.store.follower import Follower
from actorq.store.gauge import Gauge, percentile
from actorq.store.locks import host_identity, is_hosted, read_owner

if TYPE_CHECKING:
    from actorq.brokers.session import Brokers
    from actorq.process_tree import Process
    from actorq.store.fold import ConsumerState
    from actorq.store.gauge import Flow

KNOCK_SECONDS = 0.2

TASKS_SHOWN = 3
"""Of what a consumer holds; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Info:
    """What Queue.json, its locks and its processes say at one moment."""

    at: str
    queue: str
    bytes: int
    bytes_used: int
    generation: int
    commits: int
    created: str
    last_commit: str | None
    host: dict[str, Any] | None
    counts: dict[str, int]
    waiting: list[dict[str, Any]]
    paused: list[str | None]
    consumers: list[dict[str, Any]]
    processes: list[dict[str, Any]]
    flow: dict[str, Any] | None
    """What has gone through since the last look; None at the first."""


class Observer:
    """Looks at a queue. Each look reads on from where the last one stopped."""

    def __init__(self, path: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        """Raises FileNotFoundError, CorruptQueueError, UnsupportedFormatError."""
        self._path = path
        self._clock = clock
        self._boot = boot_id()
        self._follower = Follower(path, Gauge)
        self._last_commit: str | None = None
        self._last_look: float | None = None
        self._is_watching = False
        self._seen: dict[str, set[int]] = {}
        self._brokers: Brokers | None = None
        self._host: object = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._follower.log.close()

    def look(self) -> Info:
        """Return how the queue stands now."""
        for batch, is_news in self._follower.batches():
            self._follower.state.take_up(batch, is_news=is_news)
            self._last_commit = batch.commit.at
        now = self._clock.now()
        elapsed, self._last_look = None if self._last_look is None else now - self._last_look, now
        self._is_watching = elapsed is not None
        log, state = self._follower.log, self._follower.state
        flow = state.take_flow()
        alive = {consumer.session for consumer in state.consumers.values() if self._is_alive(consumer)}
        host = host_of(self._path)
        return Info(
            at=to_iso(self._clock.wall()),
            queue=str(self._path),
            bytes=self._path.stat().st_size,
            bytes_used=log.position.offset + len(b"]\n"),
            generation=log.generation,
            commits=log.commit,
            created=log.header.created,
            last_commit=self._last_commit,
            host=host,
            counts=state.counts(),
            waiting=waiting(state, alive),
            paused=state.pauses(),
            consumers=[about(consumer, state, consumer.session in alive) for consumer in state.consumers.values()],
            processes=self._processes(host, state, alive),
            flow=None if elapsed is None else flow_per_second(flow, elapsed),
        )

    def _is_alive(self, consumer: ConsumerState) -> bool:
        return consumer.boot == self._boot and process_start_time(consumer.pid) == consumer.start

    def _processes(self, host: dict[str, Any] | None, state: Gauge, alive: set[str]) -> list[dict[str, Any]]:
        known = {each.pid: CONSUMER for each in state.consumers.values() if each.session in alive}
        pid = None if host is None else host.get("pid")
        pid = pid if isinstance(pid, int) else None
        tree = process_tree(pid, Path(self._path).resolve(), known)
        depths = self._mailboxes(pid)
        return [
            {
                **asdict(process),
                "seconds": round(process.seconds, 1),
                "restarts": self._restarts(process, tree, state),
                "mailbox": None if process.depth == 0 else depths.get(process.role),
            }
            for process in tree
        ]

    def _mailboxes(self, pid: int | None) -> dict[str, int]:
        """Return how many bytes wait in each mailbox that a client writes to; none if the host does not let us in."""
        if pid is None or not self._is_watching:
            return {}
        host = pid, host_identity(self._path)
        if self._brokers is None or self._host != host:
            with suppress(TimeoutError, NotAdmittedError):
                self._brokers, self._host = knock(self._path, KNOCK_SECONDS), host
        return {} if self._brokers is None else {mailbox.name: mailbox.unread_bytes() for mailbox in self._brokers}

    def _restarts(self, process: Process, tree: list[Process], state: Gauge) -> int | None:
        """Return how often a process was started again, as far as anybody can know who does not ask."""
        if process.role == WRITER:
            # Each writer begins an epoch. Before the host, others wrote.
            began = self._clock.wall() - max(each.seconds for each in tree)
            return max(0, sum(from_iso(at) >= began for _, at in state.epochs) - 1)
        if process.role in (CONSUMER, STARTING) or process.depth == 0:
            return None
        seen = self._seen.setdefault(process.role, set())
        seen.add(process.pid)
        return len(seen) - 1 if self._is_watching else None


def host_of(path: Path) -> dict[str, Any] | None:
    """Return what the host wrote about itself, or None when nobody hosts the queue."""
    return (read_owner(path) or {}) if is_hosted(path) else None


def waiting(state: Gauge, alive: set[str]) -> list[dict[str, Any]]:
    """Return which names have ready tasks, and whether a living consumer takes them."""
    taken = [consumer.names for consumer in state.consumers.values() if consumer.session in alive]
    return [
        {"name": name, "ready": ready, "has_handler": any(names is None or name in names for names in taken)}
        for name, ready in sorted(state.waiting_names().items())
    ]


def about(consumer: ConsumerState, state: Gauge, is_alive: bool) -> dict[str, Any]:
    """Return what a registered consumer takes and has."""
    places = [
        place
        for assignment in consumer.assignments.values()
        for lo, hi in assignment.held
        for place in range(lo, min(hi, lo + TASKS_SHOWN))
    ][:TASKS_SHOWN]
    return {
        "session": consumer.session,
        "pid": consumer.pid,
        "alive": is_alive,
        "names": None if consumer.names is None else sorted(consumer.names),
        "running": consumer.outstanding,
        "tasks": [state.id_of(place) for place in places],
        "since": state.started_at(places[0]) if places else None,
    }


def flow_per_second(flow: Flow, elapsed: float) -> dict[str, Any]:
    """Return what has gone through in so many seconds."""
    elapsed = max(elapsed, 0.001)
    return {
        "seconds": round(elapsed, 6),
        "published": round(flow.published / elapsed, 1),
        "done": round(flow.done / elapsed, 1),
        "failed": round(flow.failed / elapsed, 1),
        "publish_to_start": percentiles(flow.waits),
        "start_to_done": percentiles(flow.runs),
    }


def percentiles(weighed: list[tuple[float, int]]) -> dict[str, float | None] | None:
    """Return the median and the 99th percentile, None of nothing."""
    if not weighed:
        return None
    values = {"p50": percentile(weighed, 0.5), "p99": percentile(weighed, 0.99)}
    return {key: None if value is None else round(value, 3) for key, value in values.items()}

"""Who is measured beside actorq: queues without a server, queues with one, and libraries of actors.

Their packages are in the dependency group `bench`. Nothing of them is imported before a row of them is measured, so
that the benchmarks of actorq itself need none. A further queue is a class (see `common.PeerQueue`) and an entry here.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING, Any

from benchmarks.contest import Contestant
from benchmarks.peers import actors, common, servers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.contest import Figures, Measure, Scale, Turns

type Place = tuple[str, str]
"""A module in this folder and a name in it."""


def _queue_row(place: Place, row: str, folder: Path, scale: Scale) -> Figures | Turns:
    return common.ROWS[row](_load(place), folder, scale)


def _actor_row(place: Place, row: str, folder: Path, scale: Scale) -> Figures:
    return actors.ROWS[row](_load(place), folder, scale)


def _own_row(place: Place, row: str, folder: Path, scale: Scale) -> Figures | Turns:
    rows: Mapping[str, Measure] = _load(place)
    return rows[row](folder, scale)


def _load(place: Place) -> Any:
    module, name = place
    return getattr(import_module(f"{__name__}.{module}"), name)


def _missing(packages: tuple[str, ...], program: str | None) -> str | None:
    missing = []
    if any(find_spec(package) is None for package in packages):
        missing.append("uv sync --group bench")
    if program is not None and which(program) is None:
        missing.append(f"a {program} on the PATH")
    return ", ".join(missing) or None


def _version(distribution: str, program: str | None) -> str:
    version = metadata.version(distribution)
    return version if program is None else f"{version}, {program} {servers.version_of(program)}"


def _peer(
    name: str,
    settings: str,
    packages: tuple[str, ...],
    rows: Mapping[str, Measure],
    *,
    distribution: str | None = None,
    program: str | None = None,
) -> Contestant:
    return Contestant(
        name,
        settings,
        version=partial(_version, distribution or packages[0], program),
        missing=partial(_missing, packages, program),
        rows=rows,
    )


def _queue(module: str, name: str) -> dict[str, Measure]:
    return {row: partial(_queue_row, (module, name), row) for row in common.ROWS}


def _actors(module: str, name: str) -> dict[str, Measure]:
    return {row: partial(_actor_row, (module, name), row) for row in actors.ROWS}


def _own(module: str, name: str) -> dict[str, Measure]:
    return {row: partial(_own_row, (module, name), row) for row in actors.ROWS}


REDIS = "appendonly, appendfsync=always, unix socket"
NO_MORE = "what a worker that dies had taken is lost"
POLLED = "empty queue looked at each ms"
MEMORY = "in memory, nothing is kept"

PEERS: list[Contestant] = [
    _peer(
        "persist-queue",
        f"SQLiteAckQueue: WAL, synchronous=FULL, {POLLED}; one worker, as two get the same tasks",
        ("persistqueue",),
        _queue("persist_queue", "PersistQueue"),
        distribution="persist-queue",
    ),
    _peer("huey", f"SqliteHuey: WAL, fsync=True, {POLLED}; {NO_MORE}", ("huey",), _queue("huey", "Huey")),
    _peer(
        "litequeue",
        f"SQLite: WAL, synchronous=FULL instead of its NORMAL, {POLLED}",
        ("litequeue",),
        _queue("litequeue", "Litequeue"),
    ),
    _peer(
        "diskcache",
        f"Deque: SQLite, WAL, sqlite_synchronous=2 (FULL), {POLLED}; {NO_MORE}",
        ("diskcache",),
        _queue("diskcache", "Diskcache"),
    ),
    _peer(
        "redis streams",
        f"redis-py: {REDIS}; pipelines of 1000, 100 taken and acknowledged at once",
        ("redis",),
        _queue("redis_streams", "RedisStreams"),
        program="redis-server",
    ),
    _peer("rq", f"SimpleWorker, no fork; {REDIS}", ("rq", "redis"), _queue("rq", "Rq"), program="redis-server"),
    _peer(
        "dramatiq",
        f"one thread in each worker; {REDIS}",
        ("dramatiq", "redis"),
        _queue("dramatiq", "Dramatiq"),
        program="redis-server",
    ),
    _peer(
        "beanstalkd",
        "greenstalk: -b, -f 0 (fsync always), unix socket",
        ("greenstalk",),
        _queue("beanstalkd", "Beanstalkd"),
        program="beanstalkd",
    ),
    _peer("pykka", f"threads of one process; {MEMORY}", ("pykka",), _actors("pykka", "pykka_actors")),
    _peer(
        "thespian queues",
        f"multiprocQueueBase: a process for each actor; {MEMORY}",
        ("thespian",),
        _actors("thespian", "queue_actors"),
    ),
    _peer(
        "thespian tcp",
        f"multiprocTCPBase: a process for each actor, loopback; {MEMORY}",
        ("thespian",),
        _actors("thespian", "tcp_actors"),
    ),
    _peer("xoscar", f"two processes, loopback; {MEMORY}", ("xoscar",), _own("xoscar", "ROWS")),
]

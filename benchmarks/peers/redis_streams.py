"""A Redis stream with a group of consumers, by hand: the fastest that Redis has for this."""

from __future__ import annotations

import os
from itertools import batched
from typing import TYPE_CHECKING, Any

import orjson
from redis import Redis, ResponseError

from benchmarks.peers.common import TakingQueue
from benchmarks.peers.servers import redis_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.common import Task

STREAM, GROUP = "tasks", "workers"
PIPELINED = 1000
TAKEN_AT_ONCE = 100
WAIT_MILLISECONDS = 100


class RedisStreams(TakingQueue):
    """XADD, XREADGROUP, and XACK with XDEL, since what was acknowledged would stay in the stream."""

    serve = staticmethod(redis_server)

    def __init__(self, address: str) -> None:
        """Make stream and group, unless another process was first."""
        self._redis = Redis(unix_socket_path=address, protocol=2)
        self._name = str(os.getpid())
        try:
            self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def publish(self, task: Task) -> None:
        """Add one entry."""
        self._redis.xadd(STREAM, {"task": orjson.dumps(task)})

    def publish_many(self, tasks: Sequence[Task]) -> None:
        """Add a thousand with each round trip."""
        for some in batched(tasks, PIPELINED):
            pipeline = self._redis.pipeline(transaction=False)
            for task in some:
                pipeline.xadd(STREAM, {"task": orjson.dumps(task)})
            pipeline.execute()

    def take(self) -> Sequence[tuple[Any, Task]]:
        """Read what no other consumer was given, and wait a little for it."""
        streams = self._redis.xreadgroup(GROUP, self._name, {STREAM: ">"}, count=TAKEN_AT_ONCE, block=WAIT_MILLISECONDS)
        return [(entry, orjson.loads(fields[b"task"])) for _, entries in streams for entry, fields in entries]

    def ack(self, receipts: Sequence[Any]) -> None:
        """Acknowledge and remove them in one round trip."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.xack(STREAM, GROUP, *receipts)
        pipeline.xdel(STREAM, *receipts)
        pipeline.execute()

    def size(self) -> int:
        """Count: what was acknowledged is not in the stream any more."""
        return int(self._redis.xlen(STREAM))

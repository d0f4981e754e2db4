"""Which rows there are, who takes part in each, and which figure of the floor each of actorq's is read against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import floors, life, long_queues, processes, queues

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.contest import Measure

ACTORQ = "actorq"
FLOOR = "floor"
JSON_FLOOR = "floor, JSON"

ROWS: Mapping[str, Mapping[str, Measure]] = {
    "floor": {
        "pipeline": floors.pipeline,
        "pipeline, arrays": floors.pipeline_of_arrays,
        "pipeline, JSON": floors.pipeline_of_json,
        "8 clients": floors.commits,
        "chain": floors.chain,
    },
    "disk": {"appended": floors.appended, "preallocated": floors.preallocated},
    "publish_one": {
        "actorq, no broker": queues.publish_one_direct,
        ACTORQ: queues.publish_one,
        FLOOR: floors.preallocated,
    },
    "publish_8": {ACTORQ: queues.publish_8, FLOOR: floors.commits},
    "script": {ACTORQ: processes.script, FLOOR: processes.script_floor},
    "crowd": {"actorq, no broker": processes.crowd_direct, ACTORQ: processes.crowd_brokered},
    "publish_many": {ACTORQ: queues.publish_many, FLOOR: floors.pipeline, JSON_FLOOR: floors.pipeline_of_json},
    "drain": {ACTORQ: queues.drain, FLOOR: floors.pipeline, JSON_FLOOR: floors.pipeline_of_json},
    "end_to_end": {ACTORQ: queues.end_to_end, FLOOR: floors.pipeline, JSON_FLOOR: floors.pipeline_of_json},
    "latency": {ACTORQ: queues.latency, FLOOR: floors.chain},
    "half_load": {ACTORQ: queues.half_load},
    "mixed": {ACTORQ: queues.mixed},
    "busy": {ACTORQ: queues.busy, FLOOR: queues.busy_floor},
    "growth": {ACTORQ: long_queues.growth},
    "memory": {ACTORQ: long_queues.memory},
    "recovery": {ACTORQ: long_queues.recovery},
    "compaction": {ACTORQ: long_queues.compaction},
    "restart": {ACTORQ: life.restart},
    "idle": {ACTORQ: life.idle},
    "ask": {ACTORQ: life.ask},
    "tell": {ACTORQ: life.tell},
    "spawn": {ACTORQ: life.spawn},
}
"""Per row: who takes part, in the order of the table."""

ONCE = frozenset({"idle"})
"""Rows that take long and do not vary: measured in the first round only."""

TOGETHER = frozenset({"disk", "publish_one"})
"""Rows in which all are set up at once and take turns by the millisecond, in one process. A disk has moods that last
for seconds, and the processor that hears of it is a third faster than another one: more than what is compared."""

BRIEF = frozenset({"publish_8", "latency"})
"""Rows in which each has processes of his own, that wait for each other: on two processors they may fall on their feet,
or stay where each wake-up is a slow one for as long as they live, twice the time. So each has several short turns, with
processes anew, in each round; a 99th percentile of `latency` is then that of 200 waits, and the median of 15 such."""

BRIEF_TURNS = 5

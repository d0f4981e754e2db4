"""What keeps a queue busy while it is tormented: handlers, and publishers that write down what they were told.

They run in consumers, in actors of the queue's own tree, in threads of its host and in processes without brokers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, override

from actorq import Actor, PublishRejectedError, PublishUnknownError, Queue, QueueLockedError, Task
from actorq.attachments import attach
from actorq.brokers.upkeep import Upkeep
from actorq.errors import ActorError, PublishError
from actorq.store.log_reader import LogReader
from tests.faults.history import Recorder

if TYPE_CHECKING:
    from actorq.brokers.session import Brokers

HISTORY_VARIABLE = "ACTORQ_TEST_HISTORY"
"""The folder into which every process of a run writes what it does."""

QUEUE_FILE = "Queue.json"

PAUSE_FILE = "pause"
"""Beside the history: while it is there, nobody publishes."""

SEEN_FILE = "seen"
"""Beside the history: the generation of the file that the harness has open, and will read to its end."""

MOST_AT_ONCE = 30
SHARE_OF_SINGLE = 0.3
SHARE_OF_STREAMS = 0.1
STREAM_TASKS = 12
STREAM_CHARACTERS = 10_000
"""Two of these fill a request, so a stream has several requests in flight: what is lost in the middle leaves a gap."""
SHARE_OF_LARGE = 0.02
LARGE_BYTES = 60_000
PUBLISH_SECONDS = 30.0

HANDLER_MILLISECONDS = (0, 0, 0, 0, 0, 1, 1, 2, 5, 20)
FAILURES = (0,) * 27 + (1, 2, 3)
"""How often the handler of a task raises before it returns; three times is the end of a task."""


class Trouble(Exception):  # noqa: N818  # what a user's handler raises has a name of its own
    """What a handler raises now and then."""


_recorder: Recorder | None = None
_numbers = itertools.count(1)


def recorder() -> Recorder:
    """Return the recorder of this process."""
    global _recorder  # noqa: PLW0603  # one for each process
    if _recorder is None or not _recorder.is_mine:
        _recorder = Recorder(os.environ[HISTORY_VARIABLE])
    return _recorder


def work(task: Task) -> str | None:
    """Take some time, and raise as often as the task says."""
    mine = recorder()
    mine.began(task.id, task.attempt)
    if task.data["ms"]:
        time.sleep(task.data["ms"] / 1000)
    if task.attempt <= task.data["fails"]:
        mine.ended(task.id, "raised")
        raise Trouble(task.data["key"])
    mine.ended(task.id, "returned")
    return task.data["key"] if task.data["answers"] else None


def payload(dice: random.Random, source: str) -> dict[str, Any]:
    """Return a payload that nobody has published yet."""
    return {
        "key": f"{source}-{os.getpid()}-{next(_numbers)}-{dice.getrandbits(40):x}",
        "ms": dice.choice(HANDLER_MILLISECONDS),
        "fails": dice.choice(FAILURES),
        "answers": dice.random() < 0.3,
        "pad": "é" * (LARGE_BYTES if dice.random() < SHARE_OF_LARGE else dice.randrange(200)),
    }


def publish_some(
    queue: Queue, dice: random.Random, source: str, mine: Recorder, timeout: float = PUBLISH_SECONDS
) -> None:
    """Publish one task or many, and write down how it ended."""
    if dice.random() < SHARE_OF_STREAMS:
        pad = {"pad": "é" * STREAM_CHARACTERS}
        payloads = [payload(dice, source) | pad for _ in range(STREAM_TASKS)]
    else:
        count = 1 if dice.random() < SHARE_OF_SINGLE else dice.randrange(1, MOST_AT_ONCE)
        payloads = [payload(dice, source) for _ in range(count)]
    publish_these(queue, payloads, mine, timeout)


def publish_these(queue: Queue, payloads: list[dict[str, Any]], mine: Recorder, timeout: float) -> None:
    """Publish these, and write down how it ended."""
    keys = [data["key"] for data in payloads]
    mine.attempted("work", payloads)
    try:
        ids = queue.publish_many(payloads, name="work", timeout=timeout)
    except (PublishUnknownError, ActorError) as error:
        mine.unknown(acknowledge_first(mine, keys, error), error)
    except (PublishRejectedError, QueueLockedError, OSError) as error:
        # An OSError is one of opening the file: nothing was written.
        mine.rejected(acknowledge_first(mine, keys, error), error)
    except Exception as error:
        mine.escaped(keys, error)
        raise
    else:
        mine.acknowledged(keys, ids)


def acknowledge_first(mine: Recorder, keys: list[str], error: BaseException) -> list[str]:
    """Write down those that an error reports as published; return the others."""
    published = list(error.published) if isinstance(error, PublishError) else []
    if published:
        mine.acknowledged(keys[: len(published)], published)
    return keys[len(published) :]


def may_publish() -> bool:
    """Whether the harness has nothing against it just now."""
    return not (Path(os.environ[HISTORY_VARIABLE]).parent / PAUSE_FILE).exists()


class UpkeepOfTheSeen(Upkeep):
    """Has a file compacted only once the harness has it open: a snapshot does not tell what was committed before it."""

    __slots__ = ()

    @override
    def is_due(self, size: int, needed: int) -> bool:
        return super().is_due(size, needed) and is_seen()


def is_seen() -> bool:
    """Whether the harness has the file open that has the name of the queue now."""
    folder = Path(os.environ[HISTORY_VARIABLE]).parent
    seen = folder / SEEN_FILE
    with contextlib.closing(LogReader(folder / QUEUE_FILE)) as now:
        return seen.exists() and seen.read_text() == str(now.generation)  # it does not go away again


class LoadPublisher(Actor):
    """A publisher in a process of its own, of the queue's tree."""

    def __init__(self, path: Path, brokers: Brokers, rest: float) -> None:
        attach(path, brokers)
        self._queue = Queue(path)
        self._rest = rest
        self._dice = random.Random()

    @override
    def on_start(self) -> None:
        self.after(0, None)

    @override
    def on_timer(self, message: object) -> None:
        if may_publish():
            publish_some(self._queue, self._dice, "actor", recorder())
        self.after(self._dice.uniform(0, 2 * self._rest), None)

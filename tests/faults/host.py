"""A host to be killed: `python -m tests.faults.host QUEUE --consumers N --publishers N --threads N --rest SECONDS`.

It hosts the queue under load and says on its standard output, in a line of JSON whenever that changes, which process
plays which role. It reads commands, one a line: `burst` publishes some tasks of which one takes long, `join` waits for
the end of all work, `steer` pauses and resumes, `quiet` ends the publishing, `stop` or the end of the input stops the
queue in order.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import orjson

from actorq import ActorError, ActorStoppedError, Queue
from actorq.attachments import attachment_of
from tests.faults import load
from tests.faults.history import Recorder

if TYPE_CHECKING:
    from actorq import ActorSystem

LOOK_SECONDS = 0.005
PAUSED = "a name that nobody uses"
UPKEEP = load.UpkeepOfTheSeen(keep_done=20, min_bytes=64 << 10, wait=0.1)
"""The file is compacted every few seconds."""
MAX_CRASHES = 50
BURST_TASKS = 60
BURST_MILLISECONDS = 120
JOIN_SECONDS = 0.5
STEER_SECONDS = 2.0


class Publishing:
    """Threads of the host that publish."""

    def __init__(self, path: Path, count: int, rest: float) -> None:
        self._path = path
        self._rest = rest
        self._stop = threading.Event()
        self._is_burst_due = threading.Event()
        self._is_join_due = threading.Event()
        self._is_steering_due = threading.Event()
        others = [self._join, self._burst, self._steer]
        self._threads = [threading.Thread(target=each) for each in [self._publish] * count + others]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def publish_burst(self) -> None:
        """Have tasks published of which the first takes so long that others of the same consumer are called back."""
        self._is_burst_due.set()

    def join_queue(self) -> None:
        """Have somebody wait for the end of all work."""
        self._is_join_due.set()

    def steer_queue(self) -> None:
        """Have somebody pause a name, and let it go on."""
        self._is_steering_due.set()

    def stop(self) -> None:
        """End them, each after the publish in hand."""
        self._stop.set()
        for event in (self._is_burst_due, self._is_join_due, self._is_steering_due):
            event.set()
        for thread in self._threads:
            thread.join()

    def _publish(self) -> None:
        queue = Queue(self._path)
        dice = random.Random()
        mine = Recorder(os.environ[load.HISTORY_VARIABLE])
        while not self._stop.wait(dice.uniform(0, 2 * self._rest)):
            if load.may_publish():
                load.publish_some(queue, dice, "thread", mine)
        mine.close()

    def _burst(self) -> None:
        queue = Queue(self._path)
        dice = random.Random()
        mine = Recorder(os.environ[load.HISTORY_VARIABLE])
        while not self._stop.is_set():
            self._is_burst_due.wait()
            if not self._stop.is_set():
                self._is_burst_due.clear()
                payloads = [load.payload(dice, "burst") | {"ms": 0, "fails": 0} for _ in range(BURST_TASKS)]
                payloads[0]["ms"] = BURST_MILLISECONDS
                load.publish_these(queue, payloads, mine, load.PUBLISH_SECONDS)
        mine.close()

    def _join(self) -> None:
        queue = Queue(self._path)
        while not self._stop.is_set():
            self._is_join_due.wait()
            if not self._stop.is_set():
                self._is_join_due.clear()
                with contextlib.suppress(TimeoutError, ActorStoppedError):
                    queue.join(JOIN_SECONDS)

    def _steer(self) -> None:
        queue = Queue(self._path)
        self._go_on(queue)  # the host before us may have died in between, and while there is a pause nobody is lent
        while not self._stop.is_set():
            self._is_steering_due.wait()
            if not self._stop.is_set():
                self._is_steering_due.clear()
                with contextlib.suppress(TimeoutError, ActorError):
                    queue.pause(PAUSED, timeout=STEER_SECONDS)
                self._go_on(queue)

    def _go_on(self, queue: Queue) -> None:
        with contextlib.suppress(TimeoutError, ActorError):
            queue.resume(PAUSED, timeout=STEER_SECONDS)


class Roles:
    """Threads that tell the harness who is who; two, because the supervisor answers nothing while it is stopped."""

    def __init__(self, system: ActorSystem) -> None:
        self._system = system
        self._lock = threading.Lock()
        self._known: dict[str, int] = {}
        self._stop = threading.Event()
        for look in (self._look_at_supervisor, self._look_at_children):
            threading.Thread(target=self._follow, args=(look,), daemon=True).start()

    def _follow(self, look):
        while not self._stop.wait(LOOK_SECONDS):
            try:
                found = look()
            except ActorError:
                continue  # it is stopping
            with self._lock:
                if found.items() - self._known.items():
                    self._known |= found
                    say(self._known)

    def _look_at_supervisor(self) -> dict[str, int]:
        return {"supervisor": self._system.supervisor_pid}

    def _look_at_children(self) -> dict[str, int]:
        return {child.name: child.pid for child in self._system.children() if child.pid}


def say(value: object) -> None:
    """Say something to the harness."""
    os.write(1, orjson.dumps(value) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("queue", type=Path)
    for option in ("consumers", "publishers", "threads"):
        parser.add_argument(f"--{option}", type=int, default=0)
    parser.add_argument("--rest", type=float, default=0.02)
    given = parser.parse_args()
    queue = Queue(given.queue, max_crashes=MAX_CRASHES)
    queue._upkeep = UPKEEP
    with queue.running(given.consumers, handler=load.work, timeout=60):
        attachment = attachment_of(queue.path)
        assert attachment is not None
        assert attachment.host is not None
        system = attachment.host.system
        publishers = [
            system.spawn(
                load.LoadPublisher, queue.path, attachment.brokers, given.rest,
                name=f"publisher-{number}", forgive_progress=True,
            )
            for number in range(1, given.publishers + 1)
        ]  # fmt: skip
        with Publishing(queue.path, given.threads, given.rest) as threads:
            Roles(system)
            say("running")
            for line in sys.stdin:
                match line.strip():
                    case "burst":
                        threads.publish_burst()
                    case "join":
                        threads.join_queue()
                    case "steer":
                        threads.steer_queue()
                    case "quiet":
                        threads.stop()
                        system.stop(*publishers)
                        say("quiet")
                    case _:
                        break
    say("stopped")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

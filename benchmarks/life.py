"""The rows about processes: what a death costs, what an idle tree costs, and what the actors below cost."""

from __future__ import annotations

import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from actorq import Actor, ActorRef, ActorSystem, Queue
from actorq.attachments import attachment_of
from actorq.hosting import BROKER_NAMES
from benchmarks import handlers
from benchmarks.contest import PAYLOAD, Figures, Scale, latencies, timed
from benchmarks.echo import Echo
from benchmarks.processes import joined_worker
from benchmarks.queues import JOIN_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKLOG = 10_000
IDLE_TIMES = 12
"""A worker that has joined looks about the host every 25 seconds: so many times longer than other rows last."""
ASKS = 5000
TELLS = 100_000
SPAWNS = 30


def system_of(queue: Queue) -> ActorSystem:
    """Return the actors behind a queue that this process hosts."""
    attachment = attachment_of(queue.path)
    assert attachment is not None
    assert attachment.host is not None
    return attachment.host.system


def pids_of(system: ActorSystem) -> dict[str, int]:
    """Return who is who."""
    pids = {child.name: child.pid for child in system.children() if child.pid is not None and child.progress}
    return pids | {"supervisor": system.supervisor_pid}


def wait_for_another(system: ActorSystem, name: str, pid: int) -> None:
    """Wait until the successor of a broker has begun to work."""
    while pids_of(system).get(name) in (None, pid):
        time.sleep(0.001)


def restart(folder: Path, scale: Scale) -> Figures:
    """Kill a broker, and a consumer at work: how long until the next acknowledgement, and until its task runs again."""
    logger = logging.getLogger("actorq")
    before = logger.level
    logger.setLevel(logging.ERROR)  # that somebody was killed is a warning, and each time a line
    try:
        return broker_deaths(folder / "broker.json", scale) | consumer_deaths(folder, scale)
    finally:
        logger.setLevel(before)


def broker_deaths(path: Path, scale: Scale) -> Figures:
    """Kill each broker in turn, with tasks in the queue, and publish at once."""
    queue = Queue(path)
    queue.publish_many(PAYLOAD for _ in range(BACKLOG))
    times = []
    with queue.running(0):
        system = system_of(queue)
        queue.publish(PAYLOAD)
        for _ in range(scale.kills):
            for name in BROKER_NAMES:
                victim = pids_of(system)[name]
                begin = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                queue.publish(PAYLOAD)
                times.append(time.monotonic() - begin)
                wait_for_another(system, name, victim)
    return latencies(times, "broker ")


def consumer_deaths(folder: Path, scale: Scale) -> Figures:
    """Kill the consumer that runs a task, while another one has nothing to do."""
    queue = Queue(folder / "consumer.json", max_crashes=1000)
    notes = folder / "starts"
    notes.touch()
    times = []
    with queue.running(2, handler=handlers.note_start):
        for _ in range(scale.kills):
            notes.write_text("")
            queue.publish((str(notes), 0.2))
            victim, _ = wait_for_start(notes, 1)
            begin = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            _, started = wait_for_start(notes, 2)
            times.append(started - begin)
            queue.join(timeout=JOIN_SECONDS)
    return latencies(times, "consumer ")


def wait_for_start(notes: Path, number: int) -> tuple[int, float]:
    """Return who began to run the task for the so many-th time, and when."""
    while len(lines := notes.read_text().splitlines()) < number:
        time.sleep(0.0005)
    pid, at = lines[number - 1].split()
    return int(pid), float(at)


def idle(folder: Path, scale: Scale) -> Figures:
    """Leave a tree with two consumers alone, and a worker that has joined it with two more."""
    queue = Queue(folder / "Queue.json")
    with queue.running(2, handler=handlers.nothing), joined_worker(queue) as joined:
        queue.publish(PAYLOAD)
        queue.join(timeout=JOIN_SECONDS)
        time.sleep(1)
        tree = list(pids_of(system_of(queue)).values())
        before = {pid: usage_of(pid) for pid in tree + joined}
        seconds = scale.seconds * IDLE_TIMES
        time.sleep(seconds)
        after = {pid: usage_of(pid) for pid in tree + joined}
    wakes = {pid: (after[pid][0] - before[pid][0]) * 60 / seconds for pid in before}
    ticks = sum(after[pid][1] - before[pid][1] for pid in before)
    return {
        "most wakes per process per minute": max(wakes[pid] for pid in tree),
        "of those that joined": max(wakes[pid] for pid in joined),
        "CPU %": 100 * ticks / os.sysconf("SC_CLK_TCK") / seconds,
    }


def usage_of(pid: int) -> tuple[int, int]:
    """Return how often a process has let go of the CPU by itself, and how long it has run (ticks)."""
    status = Path(f"/proc/{pid}/status").read_text()
    switches = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("voluntary_ctxt"))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return switches, int(fields[11]) + int(fields[12])


class Asker(Actor):
    """Asks another actor from a process of its own."""

    def __init__(self, other: ActorRef) -> None:
        self._other = other

    def receive(self, message: object) -> Mapping[str, float]:
        """Take "ask" or "tell"."""
        if message == "ask":
            begin = time.perf_counter()
            times = timed(lambda: self._other.ask(1), ASKS)
            return latencies(times) | {"asks/s": ASKS / (time.perf_counter() - begin)}
        begin = time.perf_counter()
        for _ in range(TELLS):
            self._other.tell(None, timeout=JOIN_SECONDS)
        told = self._other.ask(1, timeout=JOIN_SECONDS)
        assert told >= TELLS
        return {"messages/s": TELLS / (time.perf_counter() - begin)}


def between_two(message: str) -> Figures:
    """Let one actor talk to another one."""
    with ActorSystem() as system:
        asker = system.spawn(Asker, system.spawn(Echo))
        answer: Figures = asker.ask(message, timeout=JOIN_SECONDS)
        return answer


def ask(folder: Path, scale: Scale) -> Figures:
    """Ask and get an answer, between two processes, small messages."""
    del folder, scale
    return between_two("ask")


def tell(folder: Path, scale: Scale) -> Figures:
    """Tell small messages to another process, until the last of them was handled."""
    del folder, scale
    return between_two("tell")


def spawn(folder: Path, scale: Scale) -> Figures:
    """Start an actor in a process of its own, until it has answered."""
    del folder, scale
    with ActorSystem() as system:
        system.spawn(Echo).ask(1)

        def start() -> None:
            system.spawn(Echo).ask(1)

        return latencies(timed(start, SPAWNS))

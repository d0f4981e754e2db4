"""Kill any process of the tree, at any time: nothing acknowledged is lost, nothing hangs, nothing stays behind."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from actorq import ActorError, Queue, RestartLimitError
from actorq import hosting as hosting_module
from actorq.actors.linux import boot_id
from actorq.attachments import attachment_of
from actorq.hosting import BROKER_NAMES
from actorq.store.compaction import compact
from actorq.testing import armed_failpoints
from tests import handlers
from tests.faults.doomed import WriterThatCannotStart
from tests.helpers import limit, named_memory, wait_until

KILLS = int(os.environ.get("ACTORQ_KILLS", "0"))
"""How many in each of the tests that kill brokers one after the other; without it as many as there is time for."""


def system_of(queue):
    attachment = attachment_of(queue.path)
    assert attachment is not None
    assert attachment.host is not None
    return attachment.host.system


def pids_of(queue):
    return {child.name: child.pid for child in system_of(queue).children()}


def idle_pid_of(queue, name):
    """Return the pid of a broker that has got as far as waiting for messages, or None."""
    return next((child.pid for child in system_of(queue).children() if child.name == name and child.progress), None)


def wait_for_successor(queue, name, victim):
    wait_until(lambda: idle_pid_of(queue, name) not in (None, victim), what=f"restart of {name}")


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def descendants(pid):
    """Return the pids of all living processes below one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


@contextmanager
def nothing_is_left(path):
    """Check that no process, descriptor, semaphore or file stays behind."""
    before = descendants(os.getpid()), len(os.listdir("/proc/self/fd")), named_memory()
    yield
    gc.collect()  # an error that was caught holds on to the frames that it came through
    wait_until(lambda: descendants(os.getpid()) <= before[0], what="processes left")
    assert len(os.listdir("/proc/self/fd")) <= before[1]
    wait_until(lambda: named_memory() <= before[2], what="semaphores left")
    # A torn tail is kept aside on purpose; everything else beside the queue is its two locks.
    beside = {entry.name for entry in path.parent.iterdir() if entry.name.startswith(path.name)}
    assert {name for name in beside if ".torn-" not in name} <= {
        path.name, f"{path.name}.lock", f"{path.name}.host",
    }  # fmt: skip


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "Queue.json", max_crashes=100)
    with nothing_is_left(queue.path):
        yield queue
        queue._view.close()  # the one descriptor that a Queue keeps: the file it has read


@pytest.mark.parametrize(
    ("name", "mailbox_bytes"),
    [*((name, hosting_module.DEFAULT_MAILBOX_BYTES) for name in BROKER_NAMES), ("publisher-broker", 1)],
)
def test_after_each_kill_of_an_idle_broker_a_publish_is_acknowledged_within_a_second(
    queue, monkeypatch, name, mailbox_bytes
):
    monkeypatch.setattr(hosting_module, "DEFAULT_MAILBOX_BYTES", mailbox_bytes)
    worst = 0.0
    with queue.running(1, handler=handlers.nothing):
        ids = [queue.publish(-1)]
        for n in range(KILLS or 6):
            victim = idle_pid_of(queue, name)
            kill(victim)
            begin = time.monotonic()
            ids.append(queue.publish(n))
            worst = max(worst, time.monotonic() - begin)
            wait_for_successor(queue, name, victim)
        queue.join(timeout=30)

    print(f"longest publish {worst:.3f} s")
    assert worst < limit(1)
    assert [queue.get(task_id).state for task_id in ids] == ["done"] * len(ids)
    assert queue.counts()["done"] == len(ids)


def test_what_a_killed_compaction_left_is_gone_once_brokers_run(queue):
    queue.publish(1)
    with armed_failpoints(here=True) as points:
        points.lay("compaction.piece", "exit", value=9)
        pid = os.fork()
        if pid == 0:
            compact(queue.path, boot_id=boot_id(), pid=os.getpid())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        left = [path for path in queue.path.parent.iterdir() if path.suffix == ".new"]

    with queue.running(0):
        assert [path.exists() for path in left] == [False]
        queue.publish(2)
    assert queue.counts()["ready"] == 2


def kill_at_random(queue, victims, kills, seed, stop, longest_rest=0.02):
    """Kill the named processes, about a hundred times a second, each once before the first one has its turn again.

    In another order each time. Return how many kills landed.
    """
    rng = random.Random(seed)
    landed = 0
    turns: list[str] = []
    while landed < kills and not stop.is_set():
        time.sleep(rng.uniform(0, longest_rest))
        try:
            pids = pids_of(queue) | {"supervisor": system_of(queue).supervisor_pid}
        except ActorError:
            continue  # asked while it was being killed
        turns = turns or rng.sample(victims, len(victims))
        pid = pids.get(turns.pop())
        if pid is not None and kill(pid):
            landed += 1
    return landed


@pytest.mark.parametrize(
    ("victims", "kills"),
    [
        (BROKER_NAMES, 25),
        ((*BROKER_NAMES, "consumer-1", "consumer-2", "supervisor"), 16),
    ],
    ids=["brokers", "everybody"],
)
@pytest.mark.parametrize("mailbox_bytes", [hosting_module.DEFAULT_MAILBOX_BYTES, 1], ids=["", "smallest mailboxes"])
def test_kills_under_load_lose_nothing(queue, tmp_path, monkeypatch, victims, kills, mailbox_bytes):
    monkeypatch.setattr(hosting_module, "DEFAULT_MAILBOX_BYTES", mailbox_bytes)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    kills = KILLS or kills
    worst = 0.0
    log = tmp_path / "ran"
    ids: list[str] = []
    stop = threading.Event()
    landed: list[int] = []
    with queue.running(2, handler=handlers.append_line):
        killer = threading.Thread(
            target=lambda: landed.append(kill_at_random(queue, victims, kills, seed, stop)), daemon=True
        )
        killer.start()
        n = 0
        try:
            while killer.is_alive():
                many = [{"file": str(log), "line": str(n + k)} for k in range(random.randrange(1, 60))]
                begin = time.monotonic()
                ids += queue.publish_many(many, timeout=20)
                worst = max(worst, time.monotonic() - begin)
                n += len(many)
        finally:
            stop.set()
            killer.join()
        queue.join(timeout=30)

    print(f"longest publish {worst:.3f} s")
    assert victims != BROKER_NAMES or worst < limit(1)  # with each supervisor all of them die
    assert landed == [kills]
    assert queue.counts() == {"ready": 0, "scheduled": 0, "running": 0, "done": n, "dead": 0, "cancelled": 0}
    assert len(set(ids)) == n
    ran = log.read_text().split()
    assert set(ran) == {str(k) for k in range(n)}


def test_a_broker_that_dies_again_and_again_ends_the_queue_with_an_error_that_says_why(queue, monkeypatch):
    monkeypatch.setattr(hosting_module, "PublisherBroker", WriterThatCannotStart)
    monkeypatch.setattr(hosting_module, "MAX_RESTARTS", 3)
    broken = queue.path.parent / "broken"
    with queue.running(0):
        task_id = queue.publish(1)
        broken.touch()
        kill(pids_of(queue)["publisher-broker"])

        with pytest.raises(RestartLimitError, match=r"publisher-broker.*3 restarts"):
            queue.join(timeout=20)
    broken.unlink()

    with queue.running(1, handler=handlers.nothing):
        queue.join(timeout=30)
    assert queue.get(task_id).state == "done"

"""Descriptors and memory run out, or would: clear errors, bounded brokers, and all goes on once the cause is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import orjson

from actorq import MailboxFullError, Queue
from actorq.attachments import attachment_of
from actorq.brokers.messages import EventOwner, Publish
from actorq.brokers.session import Session
from actorq.brokers.waiting_queue import MAX_CREDIT
from actorq.hosting import BROKER_NAMES
from tests import handlers
from tests.faults.test_kills import pids_of
from tests.helpers import wait_until

ROOT = Path(__file__).parents[2]

PUBLISHERS = """
import json, resource, sys, threading
from collections import Counter
from actorq import Queue
from actorq.attachments import attachment_of
from tests import handlers
soft, hard, number = map(int, sys.argv[1:])
queue = Queue("Queue.json")
outcomes, ids, leave, ended = [], [], threading.Event(), threading.Semaphore(0)

def publish():
    try:
        ids.append(queue.publish(1, timeout=2))
        outcomes.append("published")
    except Exception as error:
        outcomes.append(type(error).__name__)
    ended.release()
    leave.wait()  # a thread keeps its session for as long as it lives

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with queue.running(1, handler=handlers.nothing):
        threads = [threading.Thread(target=publish) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            ended.acquire()
        leave.set()
        for thread in threads:
            thread.join()
        for _ in range(20):
            ids.append(queue.publish(2, timeout=10))
        queue.join(timeout=30)
        restarts = {child.name: child.restarts for child in attachment_of(queue.path).host.system.children()}
    print(json.dumps({"outcomes": Counter(outcomes), "ids": ids, "restarts": restarts}))
"""


def publish_from_many_threads(folder, soft, hard, number):
    script = folder / "publishers.py"
    script.write_text(PUBLISHERS)
    run = subprocess.run(
        [sys.executable, script, str(soft), str(hard), str(number)],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return orjson.loads(run.stdout)


def test_the_brokers_of_a_host_with_few_descriptors_use_as_many_as_the_system_allows(tmp_path):
    said = publish_from_many_threads(tmp_path, soft=256, hard=4096, number=150)

    assert said["outcomes"] == {"published": 150}


def test_more_publishers_than_descriptors_get_clear_errors_and_once_some_have_left_all_goes_on(tmp_path):
    said = publish_from_many_threads(tmp_path, soft=256, hard=256, number=150)

    assert said["outcomes"].keys() == {"published", "PublishUnknownError"}
    assert said["outcomes"]["published"] > 90
    assert set(said["restarts"].values()) == {0}  # nobody had to die for it
    queue = Queue(tmp_path / "Queue.json")
    assert queue.counts()["done"] == len(said["ids"])
    assert {queue.get(task_id).state for task_id in said["ids"]} == {"done"}


SHORT_OF_FDS = """
import os, resource, sys
from actorq import Queue
queue = Queue("Queue.json")
queue.publish(0)
taken, told = [], set()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
ids = []
while taken:
    try:
        ids.append(queue.publish(len(taken), timeout=0.2))
    except OSError as error:
        told.add(error.strerror)
    os.close(taken.pop())
queue._close_port()
print(told, len(ids), len(os.listdir("/proc/self/fd")))
"""


def test_a_direct_publisher_without_descriptors_says_so_and_leaves_no_lock_half_taken(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", SHORT_OF_FDS], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )

    told, published, still_open = run.stdout.rsplit(maxsplit=2)
    assert told == "{'Too many open files'}"
    assert int(still_open) <= 5
    queue = Queue(tmp_path / "Queue.json")
    assert queue.counts()["ready"] == int(published) + 1 > 10
    queue.publish("after", timeout=0)
    with queue.running(1, handler=handlers.nothing, timeout=0):
        queue.join(timeout=30)


# ---------------------------------------------------------------------------------------------------------------
# Who does not read


def memory_of(pid):
    """Return how much memory a process uses, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def memory_of_brokers(queue):
    pids = pids_of(queue)
    return {name: memory_of(pids[name]) for name in BROKER_NAMES}


def test_a_consumer_that_never_reads_holds_up_neither_publishers_nor_brokers_nor_the_other_consumer(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    with queue.running(2, handler=handlers.nothing):
        queue.publish_many(range(20_000))  # so that each is given many at once
        queue.join(timeout=20)
        before = memory_of_brokers(queue)
        stopped = pids_of(queue)["consumer-1"]
        os.kill(stopped, signal.SIGSTOP)
        ids = queue.publish_many({"n": n, "text": "x" * 600} for n in range(40_000))
        # What it holds is its credit at most, which nothing raises while it finishes nothing.
        wait_until(lambda: queue.counts()["done"] >= 60_000 - MAX_CREDIT, timeout=40)
        grown = {name: after - before[name] for name, after in memory_of_brokers(queue).items()}
        os.kill(stopped, signal.SIGCONT)
        queue.join(timeout=20)

    # The scheduler knows every task, at some fifty bytes each; nobody keeps a task that is not under way.
    assert grown["consumer-broker"] < 40
    assert all(grown[name] < 20 for name in ("publisher-broker", "router", "registry")), grown
    assert queue.counts()["done"] == 20_000 + len(ids)


def test_a_flood_that_nobody_consumes_leaves_the_brokers_small(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    with queue.running(0):
        queue.publish("warm")
        before = memory_of_brokers(queue)
        threads = [
            threading.Thread(target=queue.publish_many, args=([{"n": n, "text": "x" * 1100} for n in range(10_000)],))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert queue.counts()["ready"] == 40_001
        grown = {name: after - before[name] for name, after in memory_of_brokers(queue).items()}

    assert queue.path.stat().st_size > 45_000_000
    assert all(grown[name] < 25 for name in ("publisher-broker", "router", "registry")), grown
    assert grown["consumer-broker"] < 40


def test_a_client_that_never_reads_its_channel_stops_nobody_else(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    with queue.running(1, handler=handlers.nothing):
        attachment = attachment_of(queue.path)
        assert attachment is not None
        assert attachment.brokers is not None
        deaf = Session(attachment.brokers, EventOwner.PUBLISHER)
        deaf.connect(5)
        wait_until(lambda: deaf.receive(0.1) is not None and deaf.requests.acknowledged == 0)
        before = memory_of(pids_of(queue)["router"])
        # Each is answered, and no answer is read: far more of them than its channel has room for.
        publish = Publish(deaf.id, 1, 1, "default", b"1")
        frame = deaf.encode(publish)
        for _ in range(30_000):
            attachment.brokers.writer.send(frame, timeout=10)
        queue.publish_many(range(1000), timeout=10)
        queue.join(timeout=30)
        assert memory_of(pids_of(queue)["router"]) - before < 20
        deaf.close()
        queue.publish(1)
        queue.join(timeout=30)

    assert queue.counts()["done"] == 1002


def repeat_until_acknowledged(session):
    """Do for a moment what a publisher does that waits; return the highest number that is acknowledged."""
    if session.receive(0.2) is None:
        session.send_again(session.requests.oldest)
    return session.requests.acknowledged


def test_the_mailbox_of_a_stopped_writer_is_full_at_a_known_size_and_what_it_holds_is_not_lost(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    with queue.running(0):
        attachment = attachment_of(queue.path)
        assert attachment is not None
        assert attachment.brokers is not None
        session = Session(attachment.brokers, EventOwner.PUBLISHER)
        session.connect(5)
        wait_until(lambda: session.receive(0.1) is not None and session.requests.acknowledged == 0)
        writer = pids_of(queue)["publisher-broker"]
        os.kill(writer, signal.SIGSTOP)
        payload = b'"' + b"x" * 1000 + b'"'
        with suppress(MailboxFullError):
            while True:
                publish = Publish(session.id, session.requests.number + 1, 1, "default", payload)
                session.send(session.requests.add(session.encode(publish)), timeout=0.05)
        sent = session.requests.number
        assert 1000 < sent < 20_000
        assert attachment.brokers.writer.unread_bytes() < 20_000_000
        os.kill(writer, signal.SIGCONT)
        wait_until(lambda: repeat_until_acknowledged(session) == sent, timeout=30)
        session.close()

    assert queue.counts()["ready"] == sent


def test_a_push_for_which_a_handler_has_left_no_descriptor_is_run_all_the_same(tmp_path):
    """One of more than fits into a packet comes with a descriptor. Lost, and nobody noticed, it stayed "running"."""
    queue = Queue(tmp_path / "Queue.json")
    queue.handler("hog")(handlers.use_up_descriptors)
    with queue.running(1, handler=handlers.nothing):
        queue.publish_many(range(3000))  # the consumer may hold more than one task from here on
        queue.join(timeout=30)
        # Nothing is pushed to a consumer whose handler has run for 40 ms. Some machines are slow; not each time.
        is_over = any(is_pushed_to_a_hog(queue, tmp_path / str(number)) for number in range(5))
        queue.join(timeout=30)

    assert is_over
    counts = queue.counts()
    assert counts["done"] == sum(counts.values())


def is_pushed_to_a_hog(queue, folder):
    """Publish both, and return whether the consumer has ended of it."""
    folder.mkdir()
    used_up = folder / "used up"
    hog = queue.publish(str(folder), name="hog")
    wait_until(lambda: used_up.exists() and used_up.read_text(), what="a handler that has used them up")
    large = queue.publish("x" * 100_000)
    with suppress(AssertionError):
        wait_until(lambda: queue.get(hog).attempts == 2, 2.0)
    (folder / "gate").touch()
    wait_until(lambda: queue.get(large).state == "done", 10.0, "the large one")
    return queue.get(hog).attempts == 2

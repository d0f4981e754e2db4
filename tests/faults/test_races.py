"""The races that kill queues of this kind, each placed on purpose: a broker ends with one thing in its hand."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson
import pytest

from actorq import PublishUnknownError, Queue, QueueLockedError, QueueReplacedError, UnsupportedFormatError, hosting
from actorq.attachments import attachment_of
from actorq.brokers.messages import EventOwner, Publish
from actorq.brokers.session import Session
from actorq.testing import armed_failpoints
from tests import handlers
from tests.faults.doomed import FOLDER, DoomedRouter, DoomedScheduler, DoomedWriter, doom
from tests.faults.test_kills import KILLS, descendants, kill, pids_of, wait_for_successor
from tests.helpers import is_running, limit, wait_until


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """Return the folder where the notes lie that doom brokers."""
    folder = tmp_path / "notes"
    folder.mkdir()
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setattr(hosting, "PublisherBroker", DoomedWriter)
    monkeypatch.setattr(hosting, "ConsumerBroker", DoomedScheduler)
    monkeypatch.setattr(hosting, "Router", DoomedRouter)
    return folder


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json", max_crashes=100)


@pytest.fixture
def gate(tmp_path):
    """Return the payload of a handler that says when it starts, and then waits."""
    return Gate(tmp_path)


class Gate:
    def __init__(self, folder):
        self.started, self.until, self.ran = folder / "started", folder / "until", folder / "ran"
        self.payload = {"started": str(self.started), "until": str(self.until), "ran": str(self.ran)}

    def wait(self):
        wait_until(lambda: self.started.exists() and self.started.read_text() != "", what="the handler to start")
        return int(self.started.read_text())

    def open(self):
        self.until.touch()

    def runs(self):
        """Return the pids of those that came to the end of the handler."""
        return [int(pid) for pid in self.ran.read_text().split()] if self.ran.exists() else []


def stop(pid):
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(pid), what=f"{pid} to stop")


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def go_on(pid):
    os.kill(pid, signal.SIGCONT)


@contextmanager
def in_thread(action):
    """Run an action meanwhile; its result is the only item of the list that is given."""
    results: list[object] = []

    def run():
        try:
            results.append(action())
        except BaseException as error:  # noqa: BLE001  # for whoever looks at the list
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield results
    thread.join(30)
    assert not thread.is_alive()


def brokers_of(queue):
    attachment = attachment_of(queue.path)
    assert attachment is not None
    return attachment.brokers


def waiting_bytes(queue, mailbox):
    return getattr(brokers_of(queue), mailbox).unread_bytes()


def payloads_in_file(queue):
    return [line["data"] for line in orjson.loads(queue.path.read_bytes()) if "data" in line]


# ---------------------------------------------------------------------------------------------------------------
# Upwards: requests and their acknowledgements


def test_a_request_that_died_in_the_writers_hand_is_not_overtaken_by_a_later_one_of_its_session(queue, notes):
    with queue.running(0):
        session = Session(brokers_of(queue), EventOwner.PUBLISHER)
        session.connect(5)
        receive_until_acknowledged(session, 0)
        writer = pids_of(queue)["publisher-broker"]
        doom(notes, "publisher-broker", b'["publish"')
        send_publish(session, b'"first"')
        wait_until(lambda: not Path(f"/proc/{writer}").exists(), what="the writer's death")

        send_publish(session, b'"second"')
        # It reaches a writer that has not seen the first: nothing may be said yet, and nothing written.
        wait_for_successor(queue, "publisher-broker", writer)
        wait_until(lambda: waiting_bytes(queue, "writer") == 0)
        assert payloads_in_file(queue) == []
        receive_until_acknowledged(session, 2)
        session.close()

    assert payloads_in_file(queue) == ["first", "second"]


def send_publish(session, payload):
    publish = Publish(session.id, session.requests.number + 1, 1, "default", payload)
    session.send(session.requests.add(session.encode(publish)), 5)


def receive_until_acknowledged(session, number):
    wait_until(lambda: session.receive(0.1) is not None and session.requests.acknowledged >= number)


@pytest.mark.parametrize("repetition", range(KILLS or 1))
def test_many_requests_in_the_writers_hand_are_repeated_in_order_and_each_counts_once(queue, notes, repetition):
    with queue.running(0):
        queue.publish("before")
        doom(notes, "publisher-broker", b'["publish"')
        ids = queue.publish_many(range(20_000), timeout=10)

    assert payloads_in_file(queue) == ["before", *range(20_000)]
    assert len(set(ids)) == 20_000


def test_an_acknowledgement_that_died_in_the_writers_hand_is_given_again(queue):
    with armed_failpoints() as points, queue.running(0):
        queue.publish("before")
        laid = points.lay("writer.acknowledging", "kill")
        begin = time.monotonic()
        task_id = queue.publish("after")
        took = time.monotonic() - begin
        assert points.taken_by(laid)

    assert queue.get(task_id).state == "ready"
    assert payloads_in_file(queue) == ["before", "after"]
    assert took < limit(1)


# ---------------------------------------------------------------------------------------------------------------
# Downwards: assignments, pushes, outcomes


def test_an_assignment_lost_in_a_killed_writer_while_the_scheduler_dies_too_is_made_again(queue, notes):
    with queue.running(1, handler=handlers.echo):
        queue.publish("warm")
        queue.join(timeout=30)
        writer, scheduler = pids_of(queue)["publisher-broker"], pids_of(queue)["consumer-broker"]
        doom(notes, "publisher-broker", b'["assign"')
        note = doom(notes, "consumer-broker", b'["writer_started"')  # it dies before it can repeat its request
        # Two for one consumer: the writer does not hand them out by itself.
        task_id, _ = queue.publish_many(["work", "more"])
        queue.join(timeout=30)
        assert writer != pids_of(queue)["publisher-broker"]
        assert scheduler != pids_of(queue)["consumer-broker"]
        assert not note.exists()

    assert (queue.get(task_id).state, queue.get(task_id).attempts) == ("done", 1)
    assert "assign" in {key for line in orjson.loads(queue.path.read_bytes()) for key in line}


@pytest.mark.parametrize("scheduler_dies_too", [False, True])
def test_a_push_lost_in_a_killed_writer_and_again_in_a_killed_router_is_made_a_third_time(
    queue, notes, gate, scheduler_dies_too
):
    with armed_failpoints() as points, queue.running(1, handler=handlers.note_and_wait):
        gate.open()
        queue.publish(gate.payload)
        queue.join(timeout=30)
        pids = pids_of(queue)
        doom(notes, "router", b'["push"')
        note = notes / "doom-consumer-broker"
        if scheduler_dies_too:
            doom(notes, "consumer-broker", b'["connected"')  # that is how it hears that a push may be lost
        points.lay("writer.written", "kill")  # the log shows the assignment, and nobody has heard of it
        task_id = queue.publish(gate.payload)
        queue.join(timeout=30)
        now = pids_of(queue)
        assert pids["publisher-broker"] != now["publisher-broker"]
        assert pids["router"] != now["router"]
        assert not note.exists()

    assert (queue.get(task_id).state, queue.get(task_id).attempts) == ("done", 1)
    assert len(gate.runs()) == 2


@pytest.mark.parametrize("also", [(), ("registry",), ("router", "registry")], ids=str)
def test_an_outcome_in_the_writers_mailbox_counts_though_scheduler_and_consumer_die_together(queue, gate, also):
    with queue.running(1, handler=handlers.note_and_wait):
        task_id = queue.publish(gate.payload)
        consumer = gate.wait()
        pids = pids_of(queue)
        writer = pids["publisher-broker"]
        stop(writer)
        empty = waiting_bytes(queue, "writer")
        gate.open()
        wait_until(lambda: waiting_bytes(queue, "writer") > empty, what="the outcome to be sent")
        for pid in (consumer, pids["consumer-broker"], *[pids[name] for name in also]):
            kill(pid)
        wait_until(lambda: not Path(f"/proc/{consumer}").exists())
        go_on(writer)
        queue.join(timeout=30)

    assert (queue.get(task_id).state, queue.get(task_id).attempts) == ("done", 1)
    assert gate.runs() == [consumer]


def test_a_consumer_and_its_registry_killed_together_the_task_goes_to_another(queue, gate):
    with queue.running(2, handler=handlers.note_and_wait):
        task_id = queue.publish(gate.payload)
        consumer = gate.wait()
        gate.started.unlink()
        registry = pids_of(queue)["registry"]
        stop(registry)  # so that it certainly does not see the death
        kill(consumer)
        kill(registry)

        assert gate.wait() != consumer
        gate.open()
        queue.join(timeout=30)

    task = queue.get(task_id)
    assert (task.state, len(gate.runs())) == ("done", 1)
    assert [error.type for error in task.errors] == ["ConsumerDied"] * (task.attempts - 1)


def test_a_death_that_died_in_the_writers_hand_is_told_again(queue, notes, gate):
    with queue.running(2, handler=handlers.note_and_wait):
        task_id = queue.publish(gate.payload)
        consumer = gate.wait()
        gate.started.unlink()
        doom(notes, "publisher-broker", b'["gone"')
        kill(consumer)

        assert gate.wait() != consumer
        gate.open()
        queue.join(timeout=30)

    assert (queue.get(task_id).state, len(gate.runs())) == ("done", 1)


def test_a_consumer_that_is_stopped_and_presumed_slow_keeps_its_task_whatever_dies_meanwhile(queue, gate):
    with queue.running(2, handler=handlers.note_and_wait):
        task_id = queue.publish(gate.payload)
        consumer = gate.wait()
        stop(consumer)
        gate.open()
        begin = time.monotonic()
        others = 0
        for name in (*hosting.BROKER_NAMES, *hosting.BROKER_NAMES[::-1]):
            victim = pids_of(queue)[name]
            kill(victim)
            queue.publish(gate.payload)
            others += 1
            wait_until(lambda: len(gate.runs()) == others, what="the other consumer to work")  # noqa: B023
            wait_for_successor(queue, name, victim)
            assert queue.get(task_id).state == "running"
        wait_until(lambda: time.monotonic() - begin >= 2)
        assert consumer not in gate.runs()
        go_on(consumer)
        queue.join(timeout=30)

    assert gate.runs().count(consumer) == 1
    assert (queue.get(task_id).state, queue.get(task_id).attempts) == ("done", 1)
    assert len(gate.runs()) == queue.counts()["done"] == others + 1


# ---------------------------------------------------------------------------------------------------------------
# The commit


def test_while_the_writer_is_stopped_between_write_and_sync_nobody_hears_yes_and_nobody_else_writes(queue, notes):
    with queue.running(0):
        queue.publish("before")
        writer = pids_of(queue)["publisher-broker"]
        (notes / "stop-before-sync").touch()
        with in_thread(lambda: queue.publish("during")) as published:
            wait_until(lambda: is_stopped(writer))
            # Everybody can read it already, but a power cut could still take it.
            assert queue.counts()["ready"] == 2
            with pytest.raises(PublishUnknownError):
                queue.publish("more", timeout=0.3)
            with pytest.raises(PublishUnknownError):
                raise_in_another_process(queue, "queue.publish(1, timeout=0.2)")
            assert published == []
            go_on(writer)

    assert queue.get(published[0]).data == "during"
    assert payloads_in_file(queue) == ["before", "during", "more"]


@pytest.mark.parametrize("moment", ["stop-before-sync", "stop-inside-write"])
def test_a_writer_killed_in_the_middle_of_a_commit_leaves_it_whole_or_not_at_all(queue, notes, moment):
    with queue.running(0):
        queue.publish("before")
        writer = pids_of(queue)["publisher-broker"]
        (notes / moment).touch()
        with in_thread(lambda: queue.publish("x" * 1000)) as published:
            wait_until(lambda: is_stopped(writer))
            kill(writer)
        assert queue.get(published[0]).data == "x" * 1000

    assert payloads_in_file(queue) == ["before", "x" * 1000]
    aside = list(queue.path.parent.glob("Queue.json.torn-*"))
    assert len(aside) == (moment == "stop-inside-write")


def raise_in_another_process(queue, statement):
    """Run a statement on the queue in a fresh interpreter; raise here too that it heard no yes."""
    code = f"from actorq import Queue\nqueue = Queue({str(queue.path)!r})\n{statement}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    if "PublishUnknownError" in run.stderr:
        raise PublishUnknownError("unknown", 0.0)
    assert run.returncode == 0, run.stderr


HOST = """
import sys
from actorq import Queue
from tests import handlers
queue = Queue({path!r})
if __name__ == "__main__":
    with queue.running(1, handler=handlers.echo):
        n = 0
        while True:
            print(queue.publish(n), flush=True)
            n += 1
"""


ORDERS = ["-".join(order) for order in itertools.permutations(["host", "supervisor", "writer"])]


@pytest.mark.parametrize(
    ("order", "at_once"),
    # As they are, the first one counts: the others die with it, or are about to.
    [*[(order, True) for order in ORDERS], *[(order, False) for order in ORDERS[::2]]],
    ids=[*[f"{order}, stopped first" for order in ORDERS], *[f"{order}, as they are" for order in ORDERS[::2]]],
)
def test_host_supervisor_and_writer_killed_in_every_order_lose_nothing(queue, tmp_path, order, at_once):
    script = tmp_path / "host.py"
    script.write_text(HOST.format(path=str(queue.path)))
    said = tmp_path / "said"
    with said.open("wb") as file:
        host = subprocess.Popen([sys.executable, script], stdout=file, env=os.environ | {"PYTHONPATH": str(ROOT)})
    wait_until(lambda: said.read_bytes().count(b"\n") >= 20, timeout=10, what="20 tasks to be acknowledged")
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(host.pid)}
    victims = {
        "host": host.pid,
        "supervisor": next(pid for pid, name in names.items() if name == "actorq-actorq"),
        "writer": next(pid for pid, name in names.items() if name.startswith("actorq:publish")),
    }
    if at_once:
        for pid in victims.values():
            os.kill(pid, signal.SIGSTOP)
    for victim in order.split("-"):
        kill(victims[victim])
    host.wait(timeout=10)
    acknowledged = said.read_text().split()

    # Whoever has ended has let go of everything. That nobody but the first process of the machine can ask how is no
    # business of ours: it may take two seconds.
    wait_until(lambda: not any(is_running(pid) for pid in names), what="the tree to end")
    begin = time.monotonic()
    with queue.running(1, handler=handlers.echo, timeout=5):
        again = queue.publish("again")
        assert time.monotonic() - begin < limit(2)
        queue.join(timeout=30)

    assert {queue.get(task_id).state for task_id in (*acknowledged, again)} == {"done"}
    # At most what was in flight is there besides: published, and killed before it could be said.
    assert queue.counts()["done"] - len(acknowledged) - 1 in (0, 1)


ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------------------------------------------------------
# Without brokers, and with two of them


DIRECT = """
import os, signal
from tests.faults.doomed import StoppingFilesystem
from pathlib import Path
from actorq import Queue
from actorq.store import log_writer
real = log_writer.LogWriter.write
def write(log, lines):
    log._filesystem = StoppingFilesystem(Path({notes!r}))
    return real(log, lines)
log_writer.LogWriter.write = write
print(Queue({path!r}).publish("in doubt"))
"""


@pytest.mark.parametrize("moment", ["stop-before-sync", "stop-inside-write"])
def test_a_direct_publisher_killed_while_it_holds_the_locks_keeps_nobody_waiting(queue, tmp_path, moment):
    queue.publish("before")
    (tmp_path / moment).touch()
    code = DIRECT.format(path=str(queue.path), notes=str(tmp_path))
    direct = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    wait_until(lambda: is_stopped(direct.pid), what="it to hold the locks")
    with pytest.raises(QueueLockedError):
        queue.publish("refused", timeout=0.1)
    with pytest.raises(QueueLockedError), queue.running(0, timeout=0.1):
        pass

    direct.kill()
    assert direct.communicate(timeout=5)[0] == b""
    begin = time.monotonic()
    queue.publish("after")
    with queue.running(1, handler=handlers.echo, timeout=1):
        queue.publish("hosted")
        queue.join(timeout=30)
    assert time.monotonic() - begin < limit(2)

    published = payloads_in_file(queue)
    assert [data for data in published if data != "in doubt"] == ["before", "after", "hosted"]
    # It was killed before it could say yes: both are right, but not twice.
    assert published.count("in doubt") == (moment == "stop-before-sync")


TURN = """
import sys, time
from pathlib import Path
from actorq import Queue
from tests import handlers
queue = Queue({path!r})
if __name__ == "__main__":
    while not Path({go!r}).exists():
        pass
    with queue.running(1, handler=handlers.echo, timeout=30):
        print(queue.publish(sys.argv[1]))
        queue.join(timeout=30)
"""


def test_of_hosts_that_start_at_the_same_instant_one_hosts_and_the_others_take_their_turn(queue, tmp_path):
    script, go = tmp_path / "turn.py", tmp_path / "go"
    script.write_text(TURN.format(path=str(queue.path), go=str(go)))
    hosts = [
        subprocess.Popen(
            [sys.executable, script, str(n)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for n in range(3)
    ]
    go.touch()
    outputs = [host.communicate(timeout=60) for host in hosts]

    assert [error for _, error in outputs] == [""] * 3
    assert [queue.get(task_id.strip()).result for task_id, _ in outputs] == ["0", "1", "2"]
    assert queue.counts()["done"] == 3
    assert orjson.loads(queue.path.read_bytes())[0]["generation"] == 1


# ---------------------------------------------------------------------------------------------------------------
# The file


def publish_until_refused(queue):
    # The writer looks at the name ten times a second; what was acknowledged before went where the file went.
    while True:
        with suppress(PublishUnknownError):
            queue.publish("too late", timeout=5)


@pytest.mark.parametrize("killed", [False, True], ids=["", "and the writer is killed"])
@pytest.mark.parametrize("deed", ["removed", "another queue", "a copy", "not a queue"])
def test_a_file_that_is_taken_away_from_running_brokers_ends_the_queue_with_an_error_that_says_so(
    queue, tmp_path, deed, killed
):
    other = Queue(tmp_path / "Other.json")
    other.publish("of the other")
    with queue.running(1, handler=handlers.echo):
        queue.publish("before")
        queue.join(timeout=30)
        mine, theirs = queue.path.read_bytes(), other.path.read_bytes()
        new = tmp_path / "new"
        match deed:
            case "removed":
                queue.path.unlink()
            case "another queue":
                other.path.rename(queue.path)
            case "a copy":
                new.write_bytes(mine)
                new.rename(queue.path)
            case "not a queue":
                new.write_bytes(b"mine\n")
                new.rename(queue.path)
        content = {"removed": None, "another queue": theirs, "a copy": mine, "not a queue": b"mine\n"}[deed]
        if killed and deed != "a copy":  # which the next writer cannot tell from the file itself
            kill(pids_of(queue)["publisher-broker"])
        with pytest.raises((QueueReplacedError, UnsupportedFormatError), match=str(queue.path)):
            publish_until_refused(queue)
        with pytest.raises((QueueReplacedError, UnsupportedFormatError)):
            queue.join(timeout=30)

    assert (queue.path.read_bytes() if queue.path.exists() else None) == content

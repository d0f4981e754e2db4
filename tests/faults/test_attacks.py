"""What a hostile reviewer tried, and what once went wrong."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from actorq import PublishUnknownError, Queue
from actorq.brokers.messages import Publish, Report, WriterStarted
from actorq.brokers.publisher_broker import PublisherBroker, RoomAgain, Writing
from actorq.brokers.requests import Requests
from actorq.brokers.session import Session
from actorq.consumer import Consumer, Repeat
from actorq.direct_publisher import DirectPublisher
from actorq.errors import MailboxFullError
from actorq.publisher import Chunk
from actorq.store.log_writer import LogWriter
from actorq.store.sessions import SessionTable
from tests import handlers
from tests.helpers import wait_until


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


def test_a_direct_publish_that_was_interrupted_never_gives_its_ids_again(queue, monkeypatch):
    queue.publish("before")
    port = DirectPublisher(queue.path)
    write = LogWriter.write

    def interrupted_after_the_write(log, lines):
        monkeypatch.setattr(LogWriter, "write", write)
        write(log, lines)
        raise KeyboardInterrupt

    monkeypatch.setattr(LogWriter, "write", interrupted_after_the_write)
    with pytest.raises(KeyboardInterrupt):
        port.publish([Chunk([b"2"])], "default")
    after = port.publish([Chunk([b"3"])], "default")

    assert queue.get(str(after[0])).data == 3
    assert queue.counts()["ready"] == 3  # the interrupted one is in as well


def test_busy_direct_publishers_do_not_keep_a_host_out(queue):
    stop = threading.Event()
    failures: list[BaseException] = []

    def publish():
        while not stop.is_set():
            try:
                queue.publish(1, timeout=10)
            except BaseException as error:  # noqa: BLE001  # shown below
                failures.append(error)

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    with queue.running(1, handler=handlers.nothing, timeout=10):
        took = time.monotonic() - begin
        stop.set()
        for thread in threads:
            thread.join()
        queue.join(timeout=30)

    assert failures == []
    assert took < 5


def test_a_direct_publish_that_meets_the_host_of_its_own_process_goes_through_the_brokers(queue):
    with queue.running(0):
        ids = queue._new_roving_publisher().publish([Chunk([b'"a"']), Chunk([b'"b"'])], "default", timeout=5)

    assert [queue.get(str(span)).data for span in ids] == ["a", "b"]


def test_a_publish_while_the_queue_stops_ends_in_one_of_its_three_ways(queue):
    ids: list[str] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def publish():
        while not stop.is_set():
            try:
                ids.append(queue.publish(1, timeout=5))
            except PublishUnknownError:
                pass
            except BaseException as error:  # noqa: BLE001  # shown below
                failures.append(error)

    with queue.running(0):
        threads = [threading.Thread(target=publish) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(ids) > 20)
    stop.set()
    for thread in threads:
        thread.join()

    assert failures == []
    assert {queue.get(task_id).state for task_id in ids} == {"ready"}


def test_a_handler_after_which_its_process_cannot_report_is_charged(queue):
    with queue.running(1, handler=handlers.close_everything):
        task_id = queue.publish(None)
        queue.join(timeout=30)

    assert (queue.get(task_id).state, queue.get(task_id).attempts) == ("dead", 3)


@pytest.mark.parametrize(("acknowledged", "repeats"), [(0, True), (3, True), (4, False), (5, False)])
def test_outcomes_are_repeated_when_the_oldest_of_them_has_waited_a_while(acknowledged, repeats):
    consumer: Any = Consumer.__new__(Consumer)
    consumer._connection = 1
    requests = Requests()
    for _ in range(7):
        requests.add(b"")
    requests.acknowledge(acknowledged)
    sent: list[int] = []
    consumer._session = SimpleNamespace(
        is_unsure=False,
        requests=requests,
        repeat_after_silence=lambda: sent.append(1),
        connections=consumer._connection,
    )
    consumer._repeat_is_set = True
    consumer._repeat_up_to, consumer._repeat_at = 4, 0.0
    consumer.after = lambda *_: None

    consumer.on_timer(Repeat())

    assert bool(sent) is repeats


@pytest.mark.parametrize(
    "request_", [
        Publish("abcdefghijkl", 0, 1, "work", b"1"),
        Publish('x","y":"', 0, 2, "work", b"1\n2"),
        Report('x","y":"', 0, [["done", "abcdefghijkl-1", 1, ""]]),
    ],
)  # fmt: skip
def test_nobody_speaks_before_he_has_said_hello(request_):
    writing = Writing(SessionTable())
    writing.accept(request_)

    assert writing.take_group().lines == []


def test_once_there_is_room_again_the_registry_repeats_the_deaths_as_well():
    broker: Any = PublisherBroker.__new__(PublisherBroker)
    told: list[tuple[str, object]] = []
    for name in ("registry", "router", "scheduler"):
        post = SimpleNamespace(is_unsure=False, send=lambda message, name=name: told.append((name, message)))
        setattr(broker, f"_{name}", post)
    broker._log = SimpleNamespace(is_unsure=False, epoch=1)
    broker._writing = Writing(SessionTable())

    broker.on_timer(RoomAgain())

    assert {name for name, message in told if isinstance(message, WriterStarted)} == {"registry", "router", "scheduler"}


def test_a_reconnect_that_finds_no_room_is_tried_again_and_not_an_error(monkeypatch):
    session: Any = Session.__new__(Session)

    def gone(_timeout):
        raise EOFError

    def full(_timeout):
        raise MailboxFullError("registry", 0.1)

    session._channel = SimpleNamespace(is_unsure=False, receive=gone)
    session._nap = 0.0
    session._find = None
    session.id = "abcdefghijkl"
    monkeypatch.setattr(session, "connect", full)

    assert session.receive(0) is None

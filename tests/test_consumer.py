"""A consumer whose handlers run long, and its understudy, who speaks for it meanwhile: nothing lost, nothing twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path

import pytest

from actorq import consumer, understudy
from actorq.actors import PacketSocket
from actorq.attachments import detach
from actorq.brokers.messages import EventOwner, OutcomeKind, Push, Recall, encode, message_in
from actorq.brokers.requests import Requests
from actorq.consumer import Consumer, Outcomes
from actorq.store.records import publish_lines
from actorq.tasks.ids import IdRange
from actorq.tasks.policy import Policy
from actorq.understudy import Understudy

P = "p" * 12
TASKS = 600
TASKS_IN_A_PUSH = 7
LOOK_SECONDS = 0.0002


class NoBrokers:
    """In the place of a session: keeps what is reported, and now and then calls back what was not begun."""

    id = "c" * 12
    connections = 0

    def __init__(self, *_):
        self.requests = Requests()
        self.reports = []
        self.channel, self._other = PacketSocket.pair()
        self._rng = random.Random(4)

    def fileno(self):
        return self.channel.fileno()

    def receive(self, timeout):
        del timeout
        return Recall() if is_understudy() and self._rng.random() < 0.5 else None

    def encode(self, message):
        return encode(EventOwner.CONSUMER, message)

    def send(self, request, timeout):
        del timeout
        self.reports.append(message_in(request.frame))


def is_understudy():
    return threading.current_thread().name == "understudy"


class SlowOutcomes(Outcomes):
    """Takes its time to note an outcome, for the other one to come in between."""

    @property
    def last(self):
        return self._last

    @last.setter
    def last(self, last):
        time.sleep(LOOK_SECONDS / 4)
        self._last = last


class OverError(Exception):
    """The understudy looks in vain."""


class UnderstudyWithAnEnd(Understudy):
    def run(self):
        with suppress(OverError):
            super().run()


class LookedAtSlowly(Consumer):
    """When the understudy has seen that its handler runs, it may be back already."""

    is_over = False

    @property
    def turn(self):
        seen = self._turn
        if is_understudy():
            if self.is_over:
                raise OverError
            time.sleep(LOOK_SECONDS / 4)
        return seen

    @turn.setter
    def turn(self, turn):
        self._turn = turn


@pytest.fixture
def alone(monkeypatch):
    """Return a consumer without brokers, and what it has run."""
    rng = random.Random(3)
    ran = []

    def handler(task):
        ran.append(task.id)
        until = time.perf_counter() + rng.choice([0, rng.random() * 20 * LOOK_SECONDS])
        while time.perf_counter() < until:
            time.sleep(0)

    monkeypatch.setattr(consumer, "Session", NoBrokers)
    monkeypatch.setattr(consumer, "Outcomes", SlowOutcomes)
    monkeypatch.setattr(consumer, "Understudy", UnderstudyWithAnEnd)
    monkeypatch.setattr(understudy, "LOOK_SECONDS", LOOK_SECONDS)
    monkeypatch.setattr(Consumer, "after", lambda *_: None)
    path = Path("no queue")
    alone = LookedAtSlowly(path, None, {}, handler, Policy(3, 3))
    alone._connection = alone._session.connections
    alone._understudy.start()
    yield alone, ran
    alone.is_over = True
    while alone._understudy.is_alive():
        alone._understudy.wake()
        alone._understudy.join(0.01)
    alone._slot.close()
    detach(path)


def fates_in(reports):
    """Return what was reported of each task."""
    fates = []
    for report in reports:
        for kind, tasks, *_ in report.outcomes:
            fates += [(task, kind) for task in IdRange.parse(tasks).ids()]
    return fates


def pushed(numbers):
    """Return these tasks in pushes."""
    pushes: list[Push] = []
    while numbers:
        some = [numbers.popleft() for _ in range(min(TASKS_IN_A_PUSH, len(numbers)))]
        span = IdRange(P, some[0], some[-1])
        _, *lines = publish_lines(span, "work", [b"1"] * span.count).splitlines(keepends=True)
        body = b"".join(lines)
        pushes.append(Push([[str(span), len(pushes) + 1, 0, 0, len(body)]], body))
    return pushes


def test_whatever_the_understudy_gives_back_meanwhile_each_task_is_run_or_given_back_once(alone):
    alone, ran = alone
    for push in pushed(deque(range(1, TASKS + 1))):
        alone._take(push)
        while alone._hand:
            alone._run_slice()

    fates = fates_in(alone._session.reports)
    assert Counter(task for task, _ in fates) == Counter(IdRange(P, 1, TASKS).ids())
    done = [task for task, kind in fates if kind == OutcomeKind.DONE]
    assert done == ran
    assert 50 < len(done) < TASKS - 50  # or the two have not met

"""A consumer whose handlers run long, and its understudy, who speaks for it meanwhile: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import weakref
from collections import Counter, deque
from contextlib import suppress
from itertools import batched
from pathlib import Path
from unittest.mock import Mock

import orjson
import pytest

from actorq import consumer, understudy
from actorq.actors import PacketSocket
from actorq.attachments import detach
from actorq.brokers.messages import EventOwner, OutcomeKind, Push, Recall, encode, message_in
from actorq.brokers.requests import Requests
from actorq.brokers.slot import read_slot
from actorq.consumer import DRAIN_SECONDS, PARSE_BYTES, Consumer, Outcomes, Repeat
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
    is_unsure = is_forgotten = False

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
    def _look_on(self):
        with suppress(OverError):
            super()._look_on()


class LookedAtSlowly(Consumer):
    """When the understudy has seen that its handler runs, it may be back already."""

    is_over = False

    @property
    def running(self):
        seen = self._running
        if is_understudy():
            if self.is_over:
                raise OverError
            time.sleep(LOOK_SECONDS / 4)
        return seen

    @running.setter
    def running(self, running):
        self._running = running


@pytest.fixture
def alone(monkeypatch):
    """Return a consumer without brokers, and its handler."""
    handler = Mock(return_value=None)
    monkeypatch.setattr(consumer, "Session", NoBrokers)
    monkeypatch.setattr(consumer, "Outcomes", SlowOutcomes)
    monkeypatch.setattr(consumer, "Understudy", UnderstudyWithAnEnd)
    monkeypatch.setattr(understudy, "LOOK_SECONDS", LOOK_SECONDS)
    monkeypatch.setattr(Consumer, "after", lambda *_: None)
    path = Path("no queue")
    alone = LookedAtSlowly(path, None, {}, handler, Policy(3, 3))
    alone._connection = alone._session.connections
    alone._understudy.start()
    yield alone, handler
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


def pushed(numbers, first=1):
    """Return these tasks in pushes, which are numbered from the first on."""
    pushes: list[Push] = []
    while numbers:
        some = [numbers.popleft() for _ in range(min(TASKS_IN_A_PUSH, len(numbers)))]
        pushes.append(push_of(IdRange(P, some[0], some[-1]), first + len(pushes)))
    return pushes


def push_of(span, no):
    _, *lines = publish_lines(span, "work", [b"1"] * span.count).splitlines(keepends=True)
    body = b"".join(lines)
    return Push([[str(span), no, 0, 0, len(body)]], body)


def tasks_in(push):
    return IdRange.parse(push.entries[0][0]).ids()


OF_ONE_SESSION = pushed(deque(range(1, TASKS + 1)))
ALL_NUMBER_1 = [push_of(IdRange(f"{P[:8]}{digits:04d}", 1, 1), digits) for digits in range(1, TASKS + 1)]


@pytest.mark.parametrize("pushes", [OF_ONE_SESSION, ALL_NUMBER_1], ids=["of one session", "of a session each"])
def test_whatever_the_understudy_gives_back_meanwhile_each_task_is_run_or_given_back_once(alone, pushes):
    alone, handler = alone
    rng = random.Random(3)

    def run(_):
        until = time.perf_counter() + rng.choice([0, rng.random() * 20 * LOOK_SECONDS])
        while time.perf_counter() < until:
            time.sleep(0)

    handler.side_effect = run
    for some in batched(pushes, max(1, len(pushes) // (TASKS // TASKS_IN_A_PUSH))):
        for push in some:
            alone._take(push)
        while alone._hand:
            alone._run_slice()

    fates = fates_in(alone._session.reports)
    assert Counter(task for task, _ in fates) == Counter(task for push in pushes for task in tasks_in(push))
    done = [task for task, kind in fates if kind == OutcomeKind.DONE]
    assert done == [call.args[0].id for call in handler.call_args_list]
    assert 50 < len(done) < TASKS - 50  # or the two have not met


def test_a_result_does_not_stay_until_the_next_handler_has_ended(alone):
    alone, handler = alone
    results: weakref.WeakSet[object] = weakref.WeakSet()
    there: list[int] = []

    def run(_):
        there.append(len(results))
        result = NoBrokers()
        results.add(result)
        return result

    handler.side_effect = run
    alone.is_over = True  # the understudy ends when it looks next
    for push in pushed(deque(range(1, TASKS_IN_A_PUSH + 1))):
        alone._take(push)
    alone._run_slice()

    assert len(there) > 1
    assert set(there) == {0}


def test_a_consumer_that_holds_a_lot_asks_for_more_long_before_it_has_run_all_of_it(alone, monkeypatch):
    alone, _ = alone
    monkeypatch.setattr(consumer, "SLICE_SECONDS", 60)
    monkeypatch.setattr(consumer, "SLICE_TASKS", 3 * TASKS_IN_A_PUSH)
    for push in pushed(deque(range(1, 9 * TASKS_IN_A_PUSH + 1))):
        alone._take(push)

    left = []
    while alone._hand:
        alone._run_slice()
        left.append(len(alone._hand))

    assert left == [6, 3, 0]
    assert len(alone._session.reports) == 3


@pytest.mark.parametrize("quick", [0, 1, 100])
def test_a_consumer_whose_tasks_become_slow_soon_looks_at_the_clock_again(alone, monkeypatch, quick):
    alone, handler = alone
    monkeypatch.setattr(consumer, "SLICE_SECONDS", 0.004)
    monkeypatch.setattr(consumer, "QUICK_SECONDS", 60)
    monkeypatch.setattr(understudy, "LOOK_SECONDS", 0.002)  # so that it never sees one of these twice
    slow = 0

    def run(_):
        nonlocal slow
        if handler.call_count > quick:
            time.sleep(0.0015)
            slow += 1

    handler.side_effect = run
    alone._take(push_of(IdRange(P, 1, quick + 40), 1))

    while alone._hand and not slow:
        alone._run_slice()

    # 4 ms, and one look of 2; without the understudy it may be sixteen of them.
    assert 0 < slow < 12


@pytest.mark.parametrize(
    ("again", "ends"),
    [
        (IdRange(P, 1, 7), False),
        (IdRange(P, 3, 5), False),
        (IdRange(P, 7, 8), True),
        (IdRange(P, 8, 9), True),
        (IdRange("q" * 12, 1, 7), True),
    ],
    ids=["the same", "a part", "more", "others", "of another session"],
)
def test_what_is_pushed_again_under_a_number_must_be_what_it_was(alone, monkeypatch, again, ends):
    alone, _ = alone
    signals = []
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    first, second = pushed(deque(range(1, 2 * TASKS_IN_A_PUSH + 1)))
    alone._take(first)
    alone._take(second)

    alone._take(push_of(again, 1))

    assert signals == [(os.getpid(), signal.SIGKILL)] * ends
    assert len(alone._hand) == 2


def test_what_is_pushed_again_and_not_in_hand_any_more_is_given_back(alone):
    alone, handler = alone
    alone.is_over = True  # the understudy ends when it looks next
    alone._understudy.wake()
    first, second = pushed(deque(range(1, 2 * TASKS_IN_A_PUSH + 1)))

    def push_again(task):
        if task.id == f"{P}-3":
            alone._take(first)  # as the understudy does meanwhile

    handler.side_effect = push_again
    alone._take(first)
    alone._take(second)
    alone._take(first)  # all of it in hand
    while alone.before_wait():
        pass
    alone._take(second)  # none of it

    (before, given_back, *rest, at_last) = (outcome for report in alone._session.reports for outcome in report.outcomes)
    assert (before[0], before[1], given_back[0], given_back[1]) == ("done", f"{P}-1..2", "returned", f"{P}-1..2")
    assert [outcome[1] for outcome in rest] == [f"{P}-3..7", f"{P}-8..14"]
    assert at_last == ["returned", f"{P}-8..14", 2, ""]


@pytest.mark.parametrize(
    ("again", "given_back"),
    [
        ((1, 7), ["1..2", "6..7"]),
        ((1, 2), ["1..2"]),
        ((2, 4), ["2"]),
        ((4, 7), ["6..7"]),
        ((7, 7), ["7"]),
        ((3, 5), []),
    ],
)
def test_of_what_is_pushed_again_neither_what_runs_nor_what_is_in_hand_is_given_back(alone, again, given_back):
    alone, _ = alone
    [push] = pushed(deque(range(1, TASKS_IN_A_PUSH + 1)))
    alone._take(push)
    [batch] = alone._hand
    batch.number, batch.last = 4, 5  # 3 runs, and the rest was called back
    alone._slot.enter(P)
    alone._slot.number[0] = 3

    alone._take(push_of(IdRange(P, *again), 1))

    outcomes = [outcome for report in alone._session.reports for outcome in report.outcomes]
    assert [tasks for _, tasks, _, _ in outcomes] == [f"{P}-{numbers}" for numbers in given_back]


def test_a_stopping_consumer_does_not_wait_for_a_log_that_has_forgotten_it(alone):
    alone, _ = alone
    for push in pushed(deque(range(1, TASKS_IN_A_PUSH + 1))):
        alone._take(push)
    alone._session.requests.add(b"never acknowledged")
    alone._session.is_forgotten = True
    alone._session.close = Mock()
    begin = time.monotonic()

    alone.on_stop()

    assert time.monotonic() - begin < DRAIN_SECONDS / 2
    alone._session.close.assert_called_once()


def test_a_consumer_that_does_not_know_whether_it_is_known_repeats_its_question(alone):
    alone, _ = alone
    alone._session.repeat_after_silence = Mock()
    alone._session.is_unsure = True
    alone._read_channel()
    assert alone._repeat_is_set

    alone._repeat_at = 0.0
    alone.on_timer(Repeat())
    assert alone._session.repeat_after_silence.call_count == 1
    alone._session.is_unsure = False
    alone._repeat_at = 0.0
    alone.on_timer(Repeat())

    assert alone._session.repeat_after_silence.call_count == 1
    assert not alone._repeat_is_set


def test_what_is_not_answered_is_repeated_while_a_handler_runs_as_well(alone):
    alone, _ = alone
    alone._session.repeat_after_silence = Mock()
    alone._session.is_unsure = True

    alone.stand_in()
    assert not alone._session.repeat_after_silence.called
    alone._repeat_at = 0.0
    alone.stand_in()
    alone.stand_in()

    assert alone._session.repeat_after_silence.call_count == 1


def test_what_assignments_were_is_not_kept_for_ever(alone, monkeypatch):
    alone, _ = alone
    monkeypatch.setattr(consumer, "REMEMBERED", 3)

    for push in pushed(deque(range(1, 9 * TASKS_IN_A_PUSH + 1))):
        alone._take(push)

    assert sorted(alone._taken) == [7, 8, 9]


def broken(push, text=b"1"):
    """Return the push with a text in the place of each payload that cannot be parsed."""
    body = push.body.replace(b":1}", b":%b]" % text)
    [[*entry, _]] = push.entries
    return Push([[*entry, len(body)]], body)


LONG = b'"%b"' % (b"x" * PARSE_BYTES)


@pytest.mark.parametrize(
    ("before", "numbers", "text", "charged"),
    [
        ([], [1], b"1", f"{P}-1"),
        ([], [1, 2], b"1", ""),
        ([1], [2], b"1", ""),
        ([1], [2], LONG, f"{P}-2"),
        ([], [1, 2], LONG, f"{P}-1"),
    ],
    ids=["the first", "one of the first", "a later one", "a long one", "the first of long ones"],
)
def test_who_dies_of_parsing_has_in_hand_what_is_the_first_or_long_and_by_itself(
    alone, monkeypatch, before, numbers, text, charged
):
    alone, _ = alone
    monkeypatch.setattr(consumer, "SLICE_SECONDS", 60)
    for push in pushed(deque(before)):
        alone._take(push)
    [push] = pushed(deque(numbers), first=len(before) + 1)
    alone._take(broken(push, text))

    with pytest.raises(orjson.JSONDecodeError):
        alone._run_slice()

    assert read_slot(alone._slot.fd) == charged

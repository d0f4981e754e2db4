"""Signals to a worker are obeyed whatever its main thread does meanwhile."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest

from actorq.cli.signals import SAME_SECONDS, StopSignals
from tests.helpers import limit, wait_until


@pytest.fixture
def calls():
    """Return what was called on the first signal."""
    return []


@pytest.fixture
def signals(calls):
    with StopSignals(lambda: calls.append("first")) as signals:
        yield signals


class Member:
    """What a second signal is for."""

    failure = None
    stopped = 0

    def stop_at_once(self):
        self.stopped += 1


@contextmanager
def waiting_child():
    """Fork a child that does nothing, and yield its pid once it has begun with that."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(10)
        os.close(reading)
        os.write(writing, b"x")
        while True:
            signal.pause()
    os.close(writing)
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    yield child


def elsewhere(number):
    """Have a thread of its own take the signal once the main thread waits, which then stays as it is."""
    main = threading.get_ident()

    def take():
        wait_until(lambda: sys._current_frames()[main].f_code.co_filename == threading.__file__)
        signal.pthread_kill(threading.get_ident(), number)

    thread = threading.Thread(target=take)
    thread.start()
    return thread


@pytest.fixture
def clock(monkeypatch):
    """Return the time that signals are told apart by, to be set."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("actorq.cli.signals.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_does_not_wake_the_main_thread_is_obeyed_all_the_same(signals, calls, number):
    thread = elsewhere(number)

    assert signals.first.wait(10)
    thread.join()
    wait_until(lambda: calls == ["first"])
    assert signals.name == number.name


def has_counted(signals, number):
    """Tell whether so many signals have counted, all that were sent having been read."""
    return not select.select([signals._read_end], [], [], 0)[0] and signals._count == number


def test_the_second_one_ends_the_consumers_at_once(signals, calls, clock):
    member = Member()
    signals.serve(member)
    for number in (1, 2, 3):
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(partial(has_counted, signals, number))
        clock.now += 2 * SAME_SECONDS
    wait_until(lambda: member.stopped)

    assert signals.is_at_once
    assert (calls, member.stopped) == (["first"], 1)


def test_the_same_one_twice_at_once_as_timeout_sends_it_is_one(signals, calls, clock):
    member = Member()
    signals.serve(member)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
        clock.now += SAME_SECONDS / 4
    wait_until(partial(has_counted, signals, 1))
    clock.now += 2 * SAME_SECONDS
    os.kill(os.getpid(), signal.SIGTERM)
    wait_until(lambda: member.stopped)

    assert (calls, signals._count) == (["first"], 2)


def test_what_listens_to_signals_by_a_wakeup_descriptor_goes_on_hearing_them():
    read_end, write_end = os.pipe()
    for end in (read_end, write_end):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(write_end)
    listener = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with StopSignals(lambda: None) as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: select.select([read_end], [], [], 0)[0])
            assert os.read(read_end, 8) == bytes([signal.SIGUSR1])
            os.write(write_end, bytes(1 << 16))  # now it is full
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.first.wait(10)
    finally:
        signal.signal(signal.SIGUSR1, listener)
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)


def test_a_wakeup_descriptor_that_its_owner_has_closed_keeps_no_signal_back():
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        with StopSignals(lambda: None) as signals:
            os.close(read_end)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.first.wait(10)
    finally:
        signal.set_wakeup_fd(before)
        os.close(write_end)


def test_signals_that_somebody_else_listens_to_are_none_of_ours(signals):
    theirs = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: theirs.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.first.wait(10)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert theirs == [signal.SIGUSR1]
    assert signals.name == "SIGTERM"


def test_a_signal_to_a_forked_child_ends_that_and_not_the_worker(signals):
    with waiting_child() as child:
        os.kill(child, signal.SIGTERM)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
    assert has_counted(signals, 0)


def test_a_forked_child_does_not_keep_the_worker_from_ending():
    with StopSignals(lambda: None), waiting_child() as child:
        begin = time.monotonic()
    seconds = time.monotonic() - begin

    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert seconds < limit(2)


def test_afterwards_all_is_as_it_was():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = signal.set_wakeup_fd(write_end)
    try:
        with StopSignals(lambda: None):
            pass
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        assert signal.set_wakeup_fd(before) == write_end
    finally:
        signal.set_wakeup_fd(before)
        os.close(read_end)
        os.close(write_end)

"""The rules of supervision."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from actorq.actors import ExitKind, Restart, Strategy
from actorq.actors.exits import exit_reason
from actorq.actors.restart import (
    RESTARTS_AFTER,
    Phase,
    RestartWindow,
    back_off,
    may_start,
    may_stop,
    restarts_after,
    wave_after,
)


def test_every_rule_has_a_row():
    assert set(RESTARTS_AFTER) == set(Restart)


@pytest.mark.parametrize("kind", ExitKind)
def test_permanent_children_always_come_back_and_temporary_ones_never(kind):
    assert restarts_after(Restart.PERMANENT, kind)
    assert not restarts_after(Restart.TEMPORARY, kind)


@pytest.mark.parametrize("kind", ExitKind)
def test_transient_children_come_back_only_after_a_failure(kind):
    assert restarts_after(Restart.TRANSIENT, kind) == (kind not in (ExitKind.NORMAL, ExitKind.SHUTDOWN))


@pytest.mark.parametrize(("strategy", "wave"), [("one_for_one", "b"), ("one_for_all", "abcd"), ("rest_for_one", "bcd")])
def test_who_goes_with_the_second_of_four(strategy, wave):
    assert list(wave_after(Strategy(strategy), "abcd", "b")) == list(wave)


def test_the_window_admits_so_many_in_any_such_time_and_not_one_more():
    window = RestartWindow(3, 5.0)
    assert [window.admit(t) for t in (0, 1, 2)] == [True, True, True]
    assert not window.admit(4.9)
    window = RestartWindow(3, 5.0)
    assert [window.admit(t) for t in (0, 1, 2, 5.0, 6.0, 7.0, 7.5)] == [True] * 6 + [False]


def test_a_window_of_none_admits_none():
    assert not RestartWindow(0, 5.0).admit(0)


def test_the_first_restart_is_immediate_and_then_it_backs_off_from_10_ms_to_1_s():
    assert [back_off(n) for n in (0, 1, 2, 3, 4)] == [0, 0, 0.010, 0.020, 0.040]
    assert back_off(9) == 1.0
    assert back_off(10_000) == 1.0


@dataclass
class Child:
    name: str
    phase: Phase
    wave: int = 1
    must_stop: bool = False
    due: float = 0.0
    trail: list[str] = field(default_factory=list)


def settle(children, comes_back=True):
    """Do as a supervisor does until nothing is left to do, each thing taking effect at once; return what was done."""
    done: list[str] = []
    for _ in range(100):
        stops, starts = may_stop(children), may_start(children, now=10.0)
        if not stops and not starts:
            return done
        for child in stops:
            done.append(f"stop {child.name}")
            child.must_stop = False
            child.phase = Phase.WAITING if comes_back else Phase.ENDED
        for child in starts:
            done.append(f"start {child.name}")
            child.phase = Phase.RUNNING
    raise AssertionError("does not settle")


def test_children_start_in_order_each_when_the_one_before_runs():
    children = [Child(name, Phase.WAITING) for name in "abc"]
    assert [c.name for c in may_start(children, 0)] == ["a"]
    children[0].phase = Phase.STARTING
    assert may_start(children, 0) == []
    children[0].phase = Phase.RUNNING
    assert [c.name for c in may_start(children, 0)] == ["b"]


def test_children_stop_in_reverse_each_when_the_one_behind_is_dead():
    children = [Child(name, Phase.RUNNING, must_stop=True) for name in "abc"]
    assert [c.name for c in may_stop(children)] == ["c"]
    children[2].phase = Phase.STOPPING
    assert may_stop(children) == []
    children[2].phase, children[2].must_stop = Phase.ENDED, False
    assert [c.name for c in may_stop(children)] == ["b"]


def test_a_wave_goes_down_in_reverse_before_it_comes_up_in_order():
    children = [
        Child("a", Phase.RUNNING, must_stop=True),
        Child("b", Phase.WAITING),
        Child("c", Phase.RUNNING, 1, True),
    ]
    assert settle(children) == ["stop c", "stop a", "start a", "start b", "start c"]


def test_waves_do_not_wait_for_each_other():
    children = [Child("slow", Phase.STARTING, 1), Child("a", Phase.WAITING, 2), Child("b", Phase.WAITING, 3)]
    assert [c.name for c in may_start(children, 0)] == ["a", "b"]


def test_nobody_starts_before_it_is_due_nor_does_what_comes_after_it():
    children = [Child("a", Phase.WAITING, due=1.0), Child("b", Phase.WAITING)]
    assert may_start(children, 0.9) == []
    assert [c.name for c in may_start(children, 1.0)] == ["a"]


def test_a_shutdown_ends_with_everybody_down():
    children = [Child(name, Phase.RUNNING, must_stop=True) for name in "abc"]
    assert settle(children, comes_back=False) == ["stop c", "stop b", "stop a"]


@pytest.mark.parametrize(
    ("status", "asked", "kind", "text"),
    [
        (0, False, ExitKind.NORMAL, "normal"),
        (0, True, ExitKind.SHUTDOWN, "shutdown"),
        (3 << 8, False, ExitKind.CRASH, "exit status 3: ValueError: no"),
        (9, False, ExitKind.KILLED, "killed by signal 9 (SIGKILL)"),
        (11, True, ExitKind.KILLED, "killed by signal 11 (SIGSEGV)"),
        (40, False, ExitKind.KILLED, "killed by signal 40 (a real-time signal)"),
    ],
)
def test_exit_reasons_name_the_signal_or_the_status(status, asked, kind, text):
    reason = exit_reason(status, "ValueError: no", asked_to_stop=asked)
    assert (reason.kind, str(reason)) == (kind, text)

"""Kill any broker or client between any two of its steps, by seed. What is real in it: see simulation.py."""

from __future__ import annotations

import pytest

from actorq.errors import FoldError
from tests.faults import simulation
from tests.faults.simulation import ViolationError, World

FOUND_SOMETHING = [
    (302, 0.05),  # a consumer said hello after its Registry had died, died too, and was watched by nobody
    (1036, 0.03),  # a new scheduler gave out assignment numbers that its predecessor had used
]


def simulate(seed, rate=None):
    world = World(seed)
    steps = world.random.randrange(100, 1500)
    world.run(steps, rate or world.random.choice([0.005, 0.02, 0.05]))
    return world


def simulate_all(seeds):
    for seed in seeds:
        simulate(seed, 0.05)


@pytest.mark.parametrize("block", range(10))
def test_whatever_is_killed_nothing_is_lost_doubled_or_stuck(block):
    for seed in range(block * 10, block * 10 + 10):
        print(f"seed {seed}")
        simulate(seed)


@pytest.mark.parametrize(("seed", "rate"), FOUND_SOMETHING)
def test_what_was_found_before_stays_mended(seed, rate):
    simulate(seed, rate)


def test_the_same_seed_gives_the_same_run():
    assert simulate(7).trace.hexdigest() == simulate(7).trace.hexdigest()
    assert simulate(7).trace.hexdigest() != simulate(8).trace.hexdigest()


def test_without_kills_every_task_runs_once_or_once_more_for_each_failure():
    world = World(3)
    world.run(0)

    assert world.deaths == 0
    assert len(world.executions) == 2 * simulation.TASKS
    assert all(len(who) <= 1 + world.failures[task] for task, who in world.executions.items())


def forget_gaps(monkeypatch):
    """Take any request that is not older than expected, as if gaps did not matter."""

    def is_next(self, session, first, last):
        if first >= self.sessions.expected(session):
            return True
        self._acknowledge(session, last)
        return False

    monkeypatch.setattr("actorq.brokers.publisher_broker.Writing._is_next", is_next)


def forget_the_barrier(monkeypatch):
    monkeypatch.setattr("actorq.brokers.consumer_broker.Scheduler.is_ready", property(lambda _: True))


def forget_to_push_again(monkeypatch):
    monkeypatch.setattr("actorq.brokers.consumer_broker.Scheduler.unfinished_pushes", lambda *_: [])


def forget_to_watch_the_logged(monkeypatch):
    monkeypatch.setattr(simulation.RegistryProcess, "watch", lambda *_: None)


@pytest.mark.parametrize(
    ("rule", "seeds"),
    [
        (forget_gaps, range(20, 90)),
        (forget_the_barrier, range(60)),
        (forget_to_push_again, range(100, 150)),
        (forget_to_watch_the_logged, range(60)),
    ],
)
def test_each_rule_is_needed_and_the_simulation_sees_its_absence(rule, seeds, monkeypatch):
    rule(monkeypatch)
    with pytest.raises((ViolationError, FoldError)):
        simulate_all(seeds)

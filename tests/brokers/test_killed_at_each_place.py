"""Whoever dies at a named place of the brokers, of a session or of the store, and his successor there once more.

The real classes live on the simulated kernel, and the real fail points end processes of that kernel. The referee holds
each record and each start of a handler against what was promised; see tests/faults/simulation.py.
"""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from unittest import mock

import pytest

from actorq import failpoints
from actorq.brokers.upkeep import Upkeep
from actorq.failpoints import POINTS, Kind
from actorq.testing import armed_failpoints
from tests.faults.kernel import Calls
from tests.faults.simulation import NEVER, World, simulated

PARTS = {
    "writer", "log", "recovery", "new_file", "compaction", "switch", "compactor", "scheduler", "router", "registry",
    "session",
}  # fmt: skip
PLACES = [name for name in POINTS if name.partition(".")[0] in PARTS]
IN_USE = {
    "writer.offered", "writer.switched", "new_file.taken_over", "switch.copied", "compactor.asked",
    "compactor.offering", "compactor.offered", "scheduler.compacting", "scheduler.following", "scheduler.swapping",
}  # fmt: skip
"""Where a compaction of a queue in use leads."""
WRITES = [name for name in PLACES if POINTS[name][0] is Kind.WRITE]

FAULTS = {
    "writer.refused": "full",
    "log.taking_back": "full",
    "recovery.torn": "torn",
    "recovery.keeping": "torn",
    "recovery.kept": "torn",
    "recovery.blanking": "torn",
    "recovery.blanked": "torn",
    "recovery.rewriting": "power",
    "recovery.rewritten": "power",
    "new_file.replacing": "retire",
    "compaction.begun": "retire",
    "compaction.piece": "retire",
    "compaction.copied": "retire",
    "compaction.checked": "retire",
    "compaction.replaced": "retire",
    "router.handing_over": "broker",
    "registry.dead": "consumer",
}
"""What else must go wrong before anybody comes by; on an ordinary day they come by the other places."""

FIRST_SEEDS = {
    "writer.refused": 7,
    "log.taking_back": 4,
    "recovery.rewriting": 6,
    "recovery.rewritten": 6,
    "router.handing_over": 4,
    "scheduler.recalling": 14,
}
"""Where to begin to look for a day that leads to the place; 2 has a short one, and little is looked for there."""


@pytest.fixture(scope="module", autouse=True)
def machine():
    with simulated():
        yield


class Day(World):
    """A life of the queue in which one thing goes wrong, and that at one place."""

    def __init__(self, seed, place, points):
        super().__init__(seed)
        self.referee.is_power = True
        self.place = place
        self.points = points
        self.charges = []
        options = self.options
        options.durability = "power"
        options.calls_of_faults = 600
        options.upkeep = Upkeep(0, 1500 if place in IN_USE else NEVER, wait=0.01)
        if place in FAULTS:
            options.faults = [FAULTS[place]]
            options.calls_to_fault = 100
        else:
            self.next_fault = NEVER
        if place == "scheduler.recalling":  # a consumer is given much and then takes long, while another one is idle
            options.handlers = ["quick"] * 10 + ["long"]
            options.consumers = [None, None]
            options.publishers = [20, 20]
            options.calls_to_turn = 40
            options.constants = [("brokers.waiting_queue", "MIN_SAMPLE_SECONDS", 0.0)]
        if place in {"log.sync_failed", "log.marked"}:
            points.lay("log.syncing", "raise", nth=5, value=errno.EIO)
            self.had_disk_fault = True

    def lay(self, action, nth=1, value=None):
        self.charges.append(self.points.lay(self.place, action, nth, value))

    def _retire(self, tree):
        if self.stage == "leaving" and self.place.startswith("registry."):
            # Nobody is started again who dies now, so nobody would note who has left; the next host does.
            for charge in self.charges:
                self.points.take_back(charge)
        super()._retire(tree)


def live_through(place, *charges):
    """Have these things happen at the place, in the first of many days that leads there, and return that day."""
    stands_in = SimpleNamespace(**vars(os) | {"kill": Calls.kill, "getpid": Calls.getpid})
    first = FIRST_SEEDS.get(place, 2)
    for seed in range(first, first + 100):
        with armed_failpoints(here=True) as points, mock.patch.object(failpoints, "os", stands_in):
            day = Day(seed, place, points)
            for charge in charges:
                day.lay(*charge)
            day.run()
            if points.taken_by(day.charges[0]) is not None:
                return day
    raise AssertionError(f"nobody comes by {place}")


@pytest.mark.parametrize("place", PLACES)
def test_whoever_is_killed_at_a_place_and_his_successor_too_no_promise_is_broken(place):
    day = live_through(place, ("kill",), ("kill", 2))

    assert day.totals.acknowledged
    assert day.stage == "leaving"


@pytest.mark.parametrize("place", WRITES)
def test_whoever_is_killed_in_the_middle_of_a_write_breaks_no_promise(place):
    day = live_through(place, ("cut",), ("cut", 2, 30))

    assert day.totals.acknowledged
    assert day.stage == "leaving"

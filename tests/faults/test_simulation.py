"""The whole queue by seeds, with a kill, a stop or a power cut between any two system calls: see simulation.py."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.faults.plants import PLANTS
from tests.faults.simulation import NEVER, FailedSeedError, World, simulate, simulate_all, simulated

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.simulation import Options

FOUND_SOMETHING = [
    4359,  # the news of a consumer's death came when its pid was another one's already, who was declared dead
    20307,  # a hello for which there was no room was never said again
    20012,  # a consumer lived on after a failed sync had taken its assignment, and its task ran twice
    107,  # a writer died while it left the mark of a failed sync, and the next one cut off a consumer that lived on
    643,  # a second name was swept away that said that the first one was not on disk, and in a power cut it was gone
    1035110,  # a scheduler had decided on an outcome that a failed sync took back, and its request outlived it
    2004132,  # a lost first byte showed one line feed, as the commit before had got through in two writes
    3200668,  # a refusal that went through the Router was overtaken by what the writer acknowledged since
    9003229,  # whoever steered looked for other brokers without a pause, and found the dead ones again and again
    9000005,  # what was pushed again after a compaction held the end of a piece, between tasks that it had parted
    9706758,  # a compaction read once more what a failed sync had lost since, and its process crashed over that
    5817,  # a consumer that had joined was forgotten in a failed sync, and waited for ever
    20529,  # a file was rewritten after a failed sync with bytes that had left the cache between two reads of them
]
"""What they found is mended. The list only grows; the bugs of which a seed no longer tells are planted (plants.py)."""

BLOCKS = 4
SEEDS_PER_BLOCK = 8


class Search(NamedTuple):
    """Where a planted bug is looked for."""

    first: int
    """Shortly before one that tells of it today; once the program has changed another one does."""
    seeds: int
    """How many of them it may live."""
    fits: Callable[[Options], bool] = lambda _: True
    """Whether a seed has to do with it at all; the others are left out."""


def steers(options):
    return options.steers > 0


def joins(options):
    return options.joined > 0


def compacts(options):
    return options.upkeep.min_bytes < NEVER


SEARCHES = {
    "drop-the-sync-of-commits": Search(5000, 40),
    "drop-the-sync-of-open": Search(5000, 500),
    "acknowledge-early": Search(5000, 200),
    "skip-the-barrier": Search(5050, 600),
    "skip-the-gap-rule": Search(5300, 1500),
    "requeue-on-eof": Search(5000, 150),
    "trust-the-tail-after-a-failed-sync": Search(5000, 150),
    "spare-those-who-have-joined": Search(15270, 600, joins),
    "forget-to-push-again": Search(5000, 100),
    "forget-to-watch-the-logged": Search(5002, 100),
    "forget-what-came-since-the-offer": Search(5030, 300, compacts),
    "leave-decisions-unsynced": Search(5000, 60),
    "lend-while-paused": Search(5325, 800, steers),
    "forget-pauses-in-a-compacted-file": Search(5010, 400, lambda options: steers(options) and compacts(options)),
}


@pytest.mark.parametrize("block", range(BLOCKS))
def test_whatever_happens_no_promise_is_broken_and_everything_comes_to_its_end(block):
    totals = simulate_all(range(block * SEEDS_PER_BLOCK, (block + 1) * SEEDS_PER_BLOCK))

    assert totals.seeds == SEEDS_PER_BLOCK
    assert totals.kills
    assert totals.acknowledged
    assert totals.joined_executions


@pytest.mark.parametrize("seed", FOUND_SOMETHING)
def test_what_was_found_before_stays_mended(seed):
    with simulated():
        simulate(seed)


@pytest.mark.parametrize("seed", [7, 99])
def test_the_same_seed_gives_the_same_run(seed):
    with simulated():
        runs = [simulate(seed).kernel for _ in range(2)]
        other = simulate(seed + 1).kernel

    assert runs[0].hash == runs[1].hash
    assert list(runs[0].last) == list(runs[1].last)
    assert runs[0].hash != other.hash


def test_the_run_does_not_depend_on_the_hashes_of_python():
    program = (
        "from tests.faults.simulation import simulate, simulated\n"
        "with simulated():\n"
        "    print([simulate(seed).kernel.hash for seed in range(3)])\n"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": salt},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    }

    assert len(runs) == 1


@pytest.mark.parametrize("plant", sorted(SEARCHES))
def test_each_planted_bug_is_found(plant):
    first, seeds, fits = SEARCHES[plant]
    with PLANTS[plant](), pytest.raises(FailedSeedError):
        simulate_all(seed for seed in range(first, first + seeds) if fits(World(seed).options))

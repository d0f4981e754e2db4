"""The slot: what a dead consumer had in hand is what it noted last, and nothing older shows through."""

from __future__ import annotations

import os

import pytest

from actorq.brokers.slot import SLOT_BYTES, Slot, read_slot

LONG, SHORT = "p" * 12 + "-1234567890", "q" * 12 + "-1"


@pytest.fixture
def slot():
    slot = Slot()
    yield slot
    slot.close()


def test_a_new_slot_names_nothing(slot):
    assert read_slot(slot.fd) == ""


def test_it_names_the_last_task_and_nothing_of_a_longer_one_before(slot):
    slot.take(LONG)
    slot.take(SHORT)
    assert read_slot(slot.fd) == SHORT

    slot.clear()
    assert read_slot(slot.fd) == ""


def test_what_was_noted_outlives_who_noted_it():
    slot = Slot()
    slot.take("x" * SLOT_BYTES)  # the longest id that it takes
    duplicate = os.dup(slot.fd)

    slot.close()

    assert read_slot(duplicate) == "x" * SLOT_BYTES
    with pytest.raises(ValueError, match="mmap closed"):
        slot.take(SHORT)
    os.close(duplicate)

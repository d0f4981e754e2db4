"""The slot: what a dead consumer had in hand is what it noted last, and nothing older shows through."""

from __future__ import annotations

import os

import pytest

from actorq.brokers.slot import SLOT_BYTES, Slot, read_slot

P, Q = "p" * 12, "q" * 12
MOST = 10**15 - 1
"""The highest number that an id may have."""


@pytest.fixture
def slot():
    slot = Slot()
    yield slot
    slot.close()


def take(slot, session, number):
    slot.enter(session)
    slot.number[0] = number


def test_a_new_slot_names_nothing(slot):
    assert read_slot(slot.fd) == ""


def test_it_names_the_last_task_and_nothing_of_those_before(slot):
    for session, number in ((P, MOST), (P, 1), (Q, 2), (P, 3)):
        take(slot, session, number)
        assert read_slot(slot.fd) == f"{session}-{number}"

    slot.clear()
    assert read_slot(slot.fd) == ""

    take(slot, P, 4)
    assert read_slot(slot.fd) == f"{P}-4"


def test_what_was_noted_outlives_who_noted_it():
    slot = Slot()
    take(slot, P, MOST)
    duplicate = os.dup(slot.fd)

    slot.close()

    assert read_slot(duplicate) == f"{P}-{MOST}"
    with pytest.raises(ValueError, match="released memoryview"):
        take(slot, P, 1)
    os.close(duplicate)


@pytest.mark.parametrize("scribble", [b"\xff" * SLOT_BYTES, b"\x01" + bytes(SLOT_BYTES - 1), b"1" * SLOT_BYTES])
def test_a_slot_that_a_handler_has_scribbled_over_names_nothing(slot, scribble):
    os.pwrite(slot.fd, scribble, 0)

    assert read_slot(slot.fd) == ""

"""bench: what a disk carries, in a queue of its own that leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cli.shell import background, on_a_terminal, one_line
from tests.helpers import wait_until

QUICK = ["--tasks", "50", "--seconds", "0"]
NAMES = [
    "sync",
    "publish_one",
    "drain",
    "publish_one_brokered",
    "publish_to_start",
    "publish_many",
    "end_to_end",
]


def test_all_is_measured_and_nothing_is_left_behind(actorq, tmp_path):
    ran = actorq("bench", *QUICK, "--json")

    assert ran.status == 0
    assert (ran.json["folder"], ran.json["durable"]) == (str(tmp_path), ran.json["filesystem"] != "tmpfs")
    measures = {measure["name"]: measure for measure in ran.json["measures"]}
    assert list(measures) == NAMES
    for name, measure in measures.items():
        assert measure["count"] == (1 if measure["p50"] is not None else 50), name
        assert (measure["per_second"] or measure["p99"]) > 0, name
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_people_in_the_folder_of_the_queue(here, tmp_path):
    (tmp_path / "spool").mkdir()

    shown = on_a_terminal("bench", *QUICK, "--queue", "spool/Queue.json")

    assert f"{tmp_path}/spool (" in shown
    assert "published and run by two consumers" in shown
    assert list((tmp_path / "spool").iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no memory to write to")
def test_memory_is_called_memory(actorq):
    before = set(Path("/dev/shm").glob(".actorq-bench-*"))

    ran = actorq("bench", *QUICK, "--queue", "/dev/shm/Queue.json")

    assert "a sync does nothing here" in ran.out
    assert set(Path("/dev/shm").glob(".actorq-bench-*")) <= before


def test_a_folder_that_is_not_there_is_one_line(actorq, tmp_path):
    ran = actorq("bench", "--queue", tmp_path / "nowhere" / "Queue.json")

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert "nowhere" in ran.err


def test_who_stops_it_finds_nothing_left(here, tmp_path):
    with background("bench", "--seconds", "30") as process:
        wait_until(lambda: list(tmp_path.glob(".actorq-bench-*")))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)

    assert process.returncode == 130
    assert err == ""
    assert list(tmp_path.iterdir()) == []

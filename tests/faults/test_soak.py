"""The soak command, shortly: what it promises of itself, and a few seconds of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.faults import arena, soak
from tests.faults.arena import Load
from tests.faults.checker import check
from tests.faults.ledger import Ledger
from tests.helpers import limit, wait_until

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.faults.soak"]
LIGHT = ["--kills-per-second", "2", "--consumers", "1", "--publishers", "1", "--threads", "0"]
"""For what is not about the faults."""


def run(*arguments, **more):
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, **more)


def first_blows(seed):
    return list(islice(soak.schedule(seed, 20, Load()), 1000))


def test_the_same_seed_gives_the_same_schedule_and_another_one_another():
    assert first_blows(7) == first_blows(7)
    assert first_blows(7) != first_blows(8)


def test_a_schedule_hits_every_role_at_the_rate_that_was_asked_for():
    blows = first_blows(7)
    kills = sum(blow.action == "kill" for blow in blows)

    assert {blow.role for blow in blows} >= {
        "publisher-broker", "consumer-broker", "registry", "router", "supervisor", "host",
        "consumer-1", "consumer-3", "publisher-2", "direct-1",
    }  # fmt: skip
    assert 17 < kills / sum(blow.pause for blow in blows) < 23


def test_a_few_seconds_under_all_faults_lose_nothing(tmp_path):
    ended = run("--seconds", "1", "--kills", "15", "--kills-per-second", "20", "--folder", str(tmp_path), "--json")
    said = json.loads(ended.stdout.splitlines()[-1])

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (said["lost"], said["unexpected"], said["unexplained"], said["violations"]) == (0, 0, 0, [])
    assert said["acknowledged"] * limit(1) > 100
    assert said["kills"] >= 15
    assert said["seed"] == int(ended.stderr.split()[1])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_run_is_judged_and_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "--seconds", "60", *LIGHT, "--folder", str(tmp_path), "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("seed")
        wait_until(lambda: sum(file.stat().st_size for file in tmp_path.rglob("Queue.json")) > 5000, timeout=20)
        os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()

    said = json.loads(out.splitlines()[-1])
    assert process.returncode == 0
    assert said["seconds"] < 20
    assert said["violations"] == []
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_the_log_is_read_leaves_nothing_unread(tmp_path, monkeypatch):
    taken = []

    def apply(ledger, batch):
        taken.append(batch)
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        apply_all(ledger, batch)

    apply_all = Ledger.apply
    monkeypatch.setattr(Ledger, "apply", apply)

    assert soak.main(["--seconds", "60", *LIGHT, "--folder", str(tmp_path)]) == 0
    assert len(taken) > 2


def test_a_violation_ends_in_status_1_and_keeps_the_evidence(tmp_path, monkeypatch, capsys):
    def loses_one(history, ledger, observed):
        ledger.tasks.popitem()
        return check(history, ledger, observed)

    monkeypatch.setattr(arena, "check", loses_one)

    assert soak.main(["--seconds", "1", *LIGHT, "--folder", str(tmp_path), "--json"]) == 1

    out = capsys.readouterr().out
    assert "VIOLATION" in out
    assert "fold" in str(json.loads(out.splitlines()[-1])["violations"])
    (kept,) = tmp_path.iterdir()
    assert str(kept) in out
    assert (kept / "round-1" / "Queue.json").exists()


@pytest.mark.parametrize("arguments", [("--seconds", "0"), ("--consumers", "0"), ("--folder", "/dev/shm"), ("more",)])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        soak.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m tests.faults.soak: error: ")


def test_help_teaches():
    text = run("--help").stdout
    assert "examples:" in text
    assert "--kills-per-second" in text

"""The aimed kills, shortly: every place once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actorq.failpoints import POINTS
from tests.faults import aimed

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "tests.faults.aimed"]


def run(*arguments):
    return subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)


def test_a_kill_at_every_place_loses_nothing(tmp_path):
    ended = run("--others", "0.1", "--folder", str(tmp_path), "--json")
    said = json.loads(ended.stdout.splitlines()[-1])

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (said["lost"], said["unexpected"], said["unexplained"], said["violations"]) == (0, 0, 0, [])
    assert (said["points"], said["never_hit"]) == (len(POINTS), [])
    assert said["kills"] >= len(POINTS)
    assert list(tmp_path.iterdir()) == []


def test_everything_that_leads_to_a_place_names_a_place():
    named = [*aimed.UNHOSTED, *aimed.HOSTED, *aimed.HOST_START, *aimed.HOST_STOP, *aimed.FULL_DISK, *aimed.CALM]
    named += [name for names in aimed.KILL_ROLE.values() for name in names]

    assert set(named) == set(POINTS)


def test_a_place_that_nobody_comes_by_ends_in_status_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aimed, "GIVE_UP_SECONDS", 0.1)
    monkeypatch.setattr(aimed.Marksman, "_run_child", lambda *_: None)

    assert aimed.main(["--only", "direct.opened", "--folder", str(tmp_path)]) == 1
    assert "never hit: direct.opened" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [("--only", "nowhere"), ("--kills", "0"), ("--folder", "/dev/shm")])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        aimed.main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("python -m tests.faults.aimed: error: ")

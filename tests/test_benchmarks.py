"""The harness of the benchmarks: what it says of itself, and what it makes of figures. Not how fast anything is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__ as command
from benchmarks.catalogue import BRIEF, ONCE, ROWS, TOGETHER
from benchmarks.contest import FULL, QUICK, TURN, BenchmarkError, Contestant, in_turns, require
from benchmarks.report import lines_of, table

ROOT = Path(__file__).parents[1]


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_table_of_contents_names_every_row_and_no_other():
    contents = command.__doc__.split("\n\n")[2]
    named = {name for line in contents.splitlines() for name in re.findall(r"^ {4}([a-z_0-9]+(?:, [a-z]+)?) {2}", line)}

    assert {name for names in named for name in names.split(", ")} == set(ROWS)
    assert set(ROWS) >= ONCE | TOGETHER | BRIEF


def test_help_shows_the_contents():
    assert "    end_to_end    publish in bulk" in run("--help").stdout


def test_an_unknown_row_is_refused_in_one_line_that_names_those_there_are():
    ended = run("no_such_row")

    assert ended.returncode == 2
    assert "no row no_such_row; there are floor, disk, publish_one" in ended.stderr.splitlines()[-1]


def test_memory_is_no_disk():
    ended = run("disk", cwd="/dev/shm")

    assert ended.returncode == 2
    assert "/dev/shm is on tmpfs, which keeps nothing" in ended.stderr.splitlines()[-1]


def test_a_run_leaves_a_table_and_the_same_as_data_and_nothing_else(tmp_path):
    ended = run("floor", "publish_one", "--quick", "--json", "figures.json", cwd=tmp_path)

    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    data = json.loads((tmp_path / "figures.json").read_text())
    assert data["failures"] == []
    assert {(line["row"], line["who"]) for line in data["figures"]} == {
        (row, who) for row in ("floor", "publish_one") for who in ROWS[row]
    }
    assert all(value > 0 for line in data["figures"] for value in (line["median"], line["low"], line["high"]))
    assert ended.stdout.count("\n") == len(data["machine"]) + 1 + len(data["figures"])


RESULTS = {
    "drain": {
        "actorq": {"tasks/s": [90.0, 100.0, 120.0]},
        "floor": {"tasks/s": [400.0]},
        "other": {"tasks/s": [20.0]},
    },
    "latency": {"actorq": {"p50 ms": [2.0]}, "floor": {"p50 ms": [1.0]}, "other": {"p50 ms": [6.0]}},
}


def test_figures_are_read_against_the_floor_and_peers_against_actorq():
    lines = {(line.row, line.who): line for line in lines_of(RESULTS)}

    assert lines["drain", "actorq"][3:] == (100.0, 90.0, 120.0, 0.25, None)
    assert lines["drain", "other"].against_actorq == 5.0
    assert lines["latency", "actorq"].against_floor == 2.0
    assert lines["latency", "other"].against_actorq == 3.0
    assert (lines["drain", "floor"].against_floor, lines["drain", "floor"].against_actorq) == (None, None)
    assert re.search(r"drain +actorq +tasks/s +100 +90 \.\. 120 +25%\n", table(RESULTS))


def test_a_peer_that_is_not_installed_is_said_to_be_missing_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    here = Contestant("here", "keeps all", lambda: "1.0", lambda: None, {"disk": lambda folder, scale: {"p50 ms": 2.0}})
    gone = Contestant("gone", "keeps all", lambda: "", lambda: "uv sync --group bench", {"disk": lambda *_: {}})
    other = Contestant("other", "", lambda: "", lambda: "no row of it is asked for", {"tell": lambda *_: {}})
    monkeypatch.setattr(command, "PEERS", [here, gone, other])
    monkeypatch.chdir(tmp_path)

    assert command.main(["disk", "--quick", "--peers"]) == 0

    said = capsys.readouterr().out
    assert re.search(r"^here +1\.0; keeps all$", said, re.MULTILINE)
    assert re.search(r"^gone +not measured: uv sync --group bench$", said, re.MULTILINE)
    assert re.search(r"here +p50 ms +2 +2 \.\. 2", said)
    assert "other" not in said


def test_who_loses_a_task_has_no_figure_and_the_run_fails(tmp_path):
    def measure(folder, scale):
        (folder / "left").touch()
        require(scale is FULL, "it lost one")
        return {"tasks/s": 1.0}

    results, failures = command.measured({"drain": {"honest": measure}}, QUICK, tmp_path)

    assert (results, failures) == ({"drain": {"honest": {}}}, ["drain, honest: it lost one"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BenchmarkError):
        require(False, "no")


def test_in_a_row_that_is_measured_together_all_take_turns_and_each_has_its_own_folder_until_it_has_ended(tmp_path):
    turns = []

    def contestant(who, folder):
        yield from in_turns(lambda: turns.append((who, folder.exists())), 2 * TURN + 1)
        require(who != "dishonest", "it lost one")
        return {"p50 ms": 1.0}

    entries = {who: lambda folder, scale, who=who: contestant(who, folder) for who in ("honest", "dishonest")}
    results, failures = command.measured({"publish_one": entries}, QUICK, tmp_path)

    one, other = ("honest", True), ("dishonest", True)
    assert turns == ([one] * TURN + [other] * TURN) * 2 + [one, other]
    assert results == {"publish_one": {"honest": {"p50 ms": [1.0]}, "dishonest": {}}}
    assert failures == ["publish_one, dishonest: it lost one"]
    assert list(tmp_path.iterdir()) == []


def test_who_is_under_way_when_a_run_ends_is_ended_before_its_folder_goes(tmp_path):
    ended = []

    def contestant(folder, scale):
        try:
            while True:
                yield
        finally:
            ended.append(folder.exists())

    def interrupted(folder, scale):
        yield
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command.measured({"publish_one": {"first": contestant, "second": interrupted}}, QUICK, tmp_path)

    assert ended == [True]
    assert list(tmp_path.iterdir()) == []

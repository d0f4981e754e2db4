"""The demo: it finds the files, proves every result, shows how far it is, and leaves nothing behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from actorq import Queue
from actorq.chaos import kill
from actorq.demo import Run, check, find_files, measure, read_directly
from actorq.hosting import BROKER_NAMES
from actorq.store.fold import CRASH
from actorq.tasks.task import Task
from actorq.terminal import Terminal
from tests import handlers
from tests.cli.shell import all_written_to
from tests.helpers import wait_until

COMMAND = [sys.executable, "-m", "actorq", "demo"]


@pytest.fixture
def folder(tmp_path):
    """A folder with files, and with what is none."""
    folder = tmp_path / "files"
    (folder / "below").mkdir(parents=True)
    for n in range(60):
        (folder / "below" / f"{n}.txt").write_text("line\n" * n)
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)) * 5000)
    (folder / "no line end").write_text("a\nb")
    (folder / "grün").write_text("ü\n")
    (folder / "link").symlink_to("empty")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    return folder


FILES = 64


def demo(*arguments, temporary):
    """Run the demo with a temporary directory of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=os.environ | {"TMPDIR": str(temporary), "ACTORQ_QUEUE": "not-for-the-demo.json"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def temporary(tmp_path):
    """Where temporary files go, and proof that none stays there, and no process either."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    yield directory
    assert list(directory.iterdir()) == []
    wait_until(lambda: processes_with(str(directory)) == [], what="processes left")


def processes_with(text):
    """Return the processes whose environment holds the text."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                if text.encode() in (entry / "environ").read_bytes():
                    found.append(entry.name)
            except OSError:
                continue  # gone meanwhile, or not ours
    return found


def test_the_demo_checks_every_regular_file_once(folder, temporary):
    ran = demo(folder, "-w", 2, "--json", temporary=temporary)

    report = orjson.loads(ran.stdout)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert report["ok"] is True
    assert report["files"] == report["tasks"] == report["right"] == report["counts"]["done"] == FILES
    assert report["consumers"] == 2
    assert report["bytes"] == sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert 0 < report["latency_p50"] <= report["latency_p99"] <= report["seconds"] + 1


def test_the_demo_tells_people_what_came_out_and_keeps_the_queue_that_is_asked_for(folder, temporary, tmp_path):
    queue = tmp_path / "Demo.json"
    ran = demo(folder, "--files", 10, "--queue", queue, temporary=temporary)

    assert ran.returncode == 0, ran
    assert "10 files" in ran.stdout
    assert "10 tasks done" in ran.stdout
    assert "all 10 results equal a direct read" in ran.stdout
    assert "\x1b" not in ran.stdout
    document = orjson.loads(queue.read_bytes())
    assert sum("data" in record for record in document) == 10
    again = demo(folder, "--queue", queue, temporary=temporary)
    assert again.returncode == 1
    assert again.stderr.count("\n") == 1


def test_a_folder_without_files_matches_nothing(tmp_path, temporary):
    (tmp_path / "empty").mkdir()

    ran = demo(tmp_path / "empty", temporary=temporary)

    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (3, "", 1)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_not_a_folder_is_told_in_one_line(tmp_path, temporary, name):
    (tmp_path / "file").touch()

    ran = demo(tmp_path / name, temporary=temporary)

    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)
    assert name in ran.stderr


def test_the_progress_is_one_live_line_on_a_terminal(folder, temporary):
    with (folder / "big").open("wb") as file:
        file.truncate(150_000_000)  # takes longer than it takes to look
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(folder), "-w", "1"],
        stdout=terminal,
        env=os.environ | {"TMPDIR": str(temporary), "TERM": "xterm"},
    )
    os.close(terminal)
    written = all_written_to(controller)

    assert process.wait(timeout=30) == 0
    assert re.search(rb"\r\x1b\[Kdone \d+ of %d .* tasks/s" % (FILES + 1), written)
    assert b"tasks/s\r\n" not in written


def test_term_leaves_no_file_and_no_process(folder, temporary):
    process = subprocess.Popen(
        [*COMMAND, str(folder), "--chaos"], stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(temporary)}
    )
    wait_until(lambda: list(temporary.glob("*/Queue.json")))

    process.terminate()

    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM


def test_under_chaos_everybody_is_hit_and_every_round_is_right(folder, temporary):
    ran = demo(folder, "--chaos", "--seed", 7, "-w", 2, "--json", temporary=temporary)

    assert (ran.returncode, ran.stderr) == (0, "")
    report = orjson.loads(ran.stdout)
    victims = Counter(kill["name"] for kill in report["kills"])
    assert report["ok"] is True
    assert report["seed"] == 7
    assert len(report["kills"]) >= 20
    assert victims.keys() >= {*BROKER_NAMES, "supervisor"}
    assert all(kill["pid"] != kill["next_pid"] for kill in report["kills"])
    assert report["right"] == report["tasks"] == FILES * report["rounds"]
    assert report["counts"]["done"] >= report["tasks"]


def test_a_number_that_belongs_to_somebody_else_by_now_is_not_killed():
    with subprocess.Popen(["sleep", "60"]) as stranger:
        assert not kill(stranger.pid, parent=1)
        assert stranger.poll() is None

        assert kill(stranger.pid, parent=os.getpid())
        assert stranger.wait(timeout=5) == -signal.SIGKILL

    assert not kill(stranger.pid, parent=os.getpid())


# ---------------------------------------------------------------------------------------------------------------
# The check itself


def test_results_that_differ_from_a_direct_read_are_wrong(folder, tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    run = Run(find_files(folder, limit=3))
    with queue.running(1, handler=handlers.echo):
        run.rounds.append(queue.publish_many({"path": file.path} for file in run.findings.files))
        queue.join(timeout=30)
    run.counts = queue.counts()

    report = check(queue, run, Terminal(sys.stdout, quiet=True))

    assert not report.is_good
    assert report.wrong == [file.path for file in run.findings.files]


def test_tasks_that_are_not_done_or_not_there_are_missing(folder, tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    run = Run(find_files(folder, limit=2))
    run.rounds.append([queue.publish({"path": run.findings.files[0].path}), "aaaaaaaaaaaa-1"])
    run.counts = queue.counts()

    report = check(queue, run, Terminal(sys.stdout, quiet=True))

    assert not report.is_good
    assert report.missing == [file.path for file in run.findings.files]


def test_a_file_that_changed_meanwhile_is_told_apart(folder, tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    run = Run(find_files(folder, limit=3))
    with queue.running(1, handler=measure):
        run.rounds.append(queue.publish_many({"path": file.path} for file in run.findings.files))
        queue.join(timeout=30)
    run.counts = queue.counts()
    changed, *_ = run.findings.files
    Path(changed.path).write_text("something else")

    report = check(queue, run, Terminal(sys.stdout, quiet=True))

    assert report.is_good
    assert (report.right, report.changed) == (2, [changed.path])


def test_a_task_that_killed_its_consumer_counts_as_charged(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    (tmp_path / "file").touch()
    run = Run(find_files(tmp_path, limit=1))
    with queue.running(1, handler=handlers.die_once):
        run.rounds.append([queue.publish({"path": str(tmp_path / "file")})])
        queue.join(timeout=30)
    run.counts = queue.counts()

    report = check(queue, run, Terminal(sys.stdout, quiet=True))

    assert (report.charged_tasks, report.crashes) == (1, 1)
    assert queue.get(run.rounds[0][0]).errors[0].type == CRASH


def test_files_are_regular_readable_and_have_a_name_that_json_can_hold(folder):
    (folder / os.fsdecode(b"\xff")).touch()

    findings = find_files(folder)

    assert len(findings.files) == FILES
    assert findings.skipped == {"file whose name is not UTF-8": 1}
    assert [file.path for file in findings.files] == [file.path for file in find_files(folder).files]


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb", b"a\r\nb\r\n", bytes(range(256)) * 9000], ids=len)
def test_both_ways_of_measuring_agree(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    path = str(tmp_path / "file")

    measured = measure(Task("aaaaaaaaaaaa-1", "measure", {"path": path}))

    assert measured == read_directly(path)
    assert (measured["bytes"], measured["lines"]) == (len(content), content.count(b"\n"))

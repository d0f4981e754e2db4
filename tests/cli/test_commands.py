"""The command line, as a shell sees it: what it writes, and the status with which it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from actorq import CorruptQueueError, Queue
from actorq.cli.signals import SAME_SECONDS
from actorq.store.locks import HostLock, WriterLock
from tests import handlers
from tests.cli.shell import Ran, background, environment, on_a_terminal, one_line
from tests.helpers import limit, wait_until

COMMANDS = [
    "demo", "worker", "serve", "publish", "info", "ls", "show", "log", "verify", "repair", "compact", "dump", "load",
]  # fmt: skip
COMMANDS += ["bench", "retry", "cancel", "purge", "pause", "resume"]

APP = """
    import time
    from pathlib import Path
    from actorq import Queue, Task

    queue = Queue("Queue.json")
    not_a_queue = {}
    idle = Queue("Other.json")

    @queue.handler("echo")
    def echo(task: Task) -> object:
        return task.data

    @queue.handler("slow")
    def slow(task: Task) -> str:
        Path("started").touch()
        while not Path("until").exists():
            time.sleep(0.001)
        return "finished"
"""


@contextmanager
def a_worker(tmp_path, *more):
    """Start a worker for APP and wait until it says that it is ready."""
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    with background("worker", "app:queue", "-w", 2, *more) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline(), process.communicate()
        yield process


# ---------------------------------------------------------------------------------------------------------------
# Usage


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_teaches_by_example_and_describes_its_json(actorq, command):
    ran = actorq(command, "--help")

    assert ran.status == 0
    assert f"  actorq {command}" in ran.out
    assert "with --json:" in ran.out
    assert "exit status:" in ran.out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["info", "--frobnicate"],
        ["publish"],
        ["ls", "--state", "waiting"],
        ["ls", "--limit", "-1"],
        ["show"],
        ["log", "-n", "-1"],
        ["dump", "--output", "Queue.json"],
        ["load", "a.json", "--queue", "b.json"],
        ["bench", "--tasks", "0"],
        ["info", "--watch", "often"],
        ["publish", "{bad"],
        ["publish", "1", "--name", ""],
        ["worker"],
        ["worker", "app"],
        ["worker", ":queue"],
        ["demo", "-w", "0"],
        ["demo", "-w", "two"],
        ["demo", "--seed", "7"],
        ["compact", "--keep-done", "-1"],
        ["verify", "a.json", "--queue", "b.json"],
        ["repair", "--truncate-at", "0"],
        ["repair", "--skip"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_2(actorq, tmp_path, arguments):
    ran = actorq(*arguments)

    assert ran.status == 2
    assert one_line(ran.err), ran
    assert ran.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--version"], ["frobnicate"]], ids=" ".join)
def test_the_installed_command_and_the_module_are_the_same(shell, actorq, arguments):
    installed = subprocess.run(
        [Path(sys.executable).with_name("actorq"), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert Ran(installed.stdout, installed.stderr, installed.returncode) == shell(*arguments) == actorq(*arguments)


@pytest.mark.parametrize("command", ["info", "ls", "show", "log", "verify", "repair", "compact", "dump"])
def test_a_queue_that_is_not_there_is_told_in_one_line(actorq, tmp_path, command):
    ran = actorq(command, *(["aaaaaaaaaaaa-1"] if command == "show" else []))

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert "Queue.json" in ran.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "ls", "log", "verify", "compact", "dump", "load", "publish"])
def test_a_foreign_file_is_refused_in_one_line_and_left_alone(actorq, tmp_path, command):
    settings = tmp_path / "Queue.json"
    settings.write_text('{"my": "settings"}')

    ran = actorq(command, *(["1"] if command == "publish" else []), stdin=b'{"actorq_dump":1}\n')

    assert ran.status == 1
    assert one_line(ran.err) or command == "verify", ran
    assert "Traceback" not in ran.err
    assert settings.read_text() == '{"my": "settings"}'


# ---------------------------------------------------------------------------------------------------------------
# publish


def test_publish_writes_the_ids_of_tasks_that_are_in_the_file(actorq):
    ran = actorq("publish", "--name", "thumbnail", '{"path": "a.png"}', "null")

    queue = Queue("Queue.json")
    tasks = [queue.get(task_id) for task_id in ran.out.split()]
    assert ran.status == 0
    assert [(task.name, task.data, task.state) for task in tasks] == [
        ("thumbnail", {"path": "a.png"}, "ready"),
        ("thumbnail", None, "ready"),
    ]


def test_publish_json_writes_one_object_per_task(actorq):
    ran = actorq("publish", "1", "2", "--json")

    ids = [orjson.loads(line)["id"] for line in ran.out.splitlines()]
    assert [Queue("Queue.json").get(task_id).data for task_id in ids] == [1, 2]


def test_the_queue_is_the_option_else_the_environment_else_the_directory(actorq, tmp_path):
    actorq("publish", "1", "--queue", tmp_path / "a.json", ACTORQ_QUEUE=str(tmp_path / "b.json"))
    actorq("publish", "1", ACTORQ_QUEUE=str(tmp_path / "b.json"))
    actorq("publish", "1")

    assert {path.name for path in tmp_path.iterdir() if path.suffix == ".json"} == {"a.json", "b.json", "Queue.json"}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("thumbnail", "quotes"),
        ("NaN", "NaN"),
        ('{"a": 1, "a": 2}', "twice"),
        ("1e999", "argument 2"),
        ("18446744073709551616", "argument 2"),
        (r'"\ud800"', "argument 2"),
        ("[" * 100_000, "nested"),
    ],
)
def test_what_json_cannot_carry_unchanged_is_refused_by_argument(actorq, text, hint):
    ran = actorq("publish", "1", text)

    assert ran.status in {1, 2}
    assert one_line(ran.err), ran
    assert hint in ran.err
    assert "argument 2" in ran.err


def test_lines_are_published_as_they_come(here):
    with background("publish", "-", "--name", "line") as process:
        queue = Queue("Queue.json")
        for number in range(3):
            process.stdin.write(f'{{"n": {number}}}\n\n')
            process.stdin.flush()
            task = queue.get(process.stdout.readline().strip())
            assert (task.name, task.data) == ("line", {"n": number})
        process.stdin.write("3")  # the last line may lack its end
        process.stdin.close()
        assert queue.get(process.stdout.readline().strip()).data == 3
        assert process.wait(timeout=10) == 0


def test_many_lines_share_commits(actorq):
    ran = actorq("publish", "-", stdin=b"".join(b'{"n": %d}\n' % n for n in range(20_000)))

    info = actorq("info", "--json").json
    assert ran.status == 0
    assert len(ran.out.split()) == info["counts"]["ready"] == 20_000
    assert info["commits"] < 200


@pytest.mark.parametrize("bad", [b"{bad", b"[NaN]", b"18446744073709551616", b"\xff"])
def test_a_bad_line_is_named_and_those_before_it_are_published(actorq, bad):
    ran = actorq("publish", "-", stdin=b"1\n\n2\n" + bad + b"\n3\n")

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert "line 4" in ran.err
    assert [Queue("Queue.json").get(task_id).data for task_id in ran.out.split()] == [1, 2]
    assert Queue("Queue.json").counts()["ready"] == 2


def test_nothing_on_standard_input_is_nothing_to_do(actorq, tmp_path):
    ran = actorq("publish", "-")

    assert (ran.status, ran.out, ran.err) == (0, "", "")


def test_a_reader_that_goes_away_ends_the_command_quietly(here):
    ran = subprocess.run(
        ["sh", "-c", f"seq 100000 | {sys.executable} -m actorq publish - | head -1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.stderr == ""
    assert Queue("Queue.json").get(ran.stdout.strip()).data == 1


# ---------------------------------------------------------------------------------------------------------------
# worker


def test_a_worker_runs_what_is_published_and_drains_on_term(actorq, tmp_path):
    actorq("publish", "--name", "echo", "1", "2")
    with a_worker(tmp_path) as process:
        queue = Queue("Queue.json")
        wait_until(lambda: queue.counts()["done"] == 2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)

    assert process.returncode == 0, (out, err)
    assert err == ""
    assert "2 done" in out


def test_term_lets_a_running_task_finish(actorq, tmp_path):
    actorq("publish", "--name", "slow", "1")
    with a_worker(tmp_path) as process:
        wait_until((tmp_path / "started").exists)
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stdout.readline()
        (tmp_path / "until").touch()
        out, err = process.communicate(timeout=20)

    assert process.returncode == 0, (out, err)
    assert Queue("Queue.json").counts()["done"] == 1


def test_ctrl_c_which_all_its_processes_get_lets_a_running_task_finish(actorq, tmp_path):
    actorq("publish", "--name", "slow", "1")
    with a_worker(tmp_path) as process:
        wait_until((tmp_path / "started").exists)
        os.killpg(process.pid, signal.SIGINT)
        assert "stopping" in process.stdout.readline()
        (tmp_path / "until").touch()
        out, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (0, ""), out
    assert Queue("Queue.json").counts()["done"] == 1


def test_a_second_signal_stops_at_once_and_puts_the_task_back_uncharged(actorq, tmp_path):
    task_id = actorq("publish", "--name", "slow", "1").out.strip()
    with a_worker(tmp_path) as process:
        wait_until((tmp_path / "started").exists)
        process.send_signal(signal.SIGINT)
        assert "stopping" in process.stdout.readline()
        time.sleep(SAME_SECONDS)  # sooner it would be the first one told twice
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=5)

    task = Queue("Queue.json").get(task_id)
    assert process.returncode == 128 + signal.SIGINT, (out, err)
    assert "at once" in out
    assert err == ""
    assert (task.state, task.errors) == ("ready", ())


def test_a_worker_speaks_json_lines(here, tmp_path):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    with background("worker", "app:queue", "-w", 1, "--json") as process:
        ready = orjson.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)

    queue = str(tmp_path / "Queue.json")
    names = ["echo", "slow"]
    assert ready == {"event": "ready", "queue": queue, "consumers": 1, "names": names, "hosting": True}
    assert orjson.loads(out)["event"] == "stopped"
    assert err == ""


@pytest.mark.parametrize(
    ("target", "status", "hint"),
    [
        ("nowhere:queue", 1, "nowhere"),
        ("app:nothing", 1, "nothing"),
        ("app:not_a_queue", 1, "dict"),
        ("app:idle", 1, "handler"),
        ("broken:queue", 1, "line 2"),
        ("syntax:queue", 1, "syntax"),
    ],
)
def test_a_worker_says_in_one_line_what_it_cannot_run(actorq, tmp_path, monkeypatch, target, status, hint):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    (tmp_path / "broken.py").write_text("import app\n1 / 0\n")
    (tmp_path / "syntax.py").write_text("def (:\n")
    monkeypatch.setattr(sys, "path", list(sys.path))

    ran = actorq("worker", target)
    for module in ("app", "broken", "syntax"):
        sys.modules.pop(module, None)

    assert ran.status == status
    assert one_line(ran.err), ran
    assert hint in ran.err


def test_a_second_worker_joins_the_first_and_takes_its_place_when_it_leaves(here, tmp_path):
    queue = Queue("Queue.json")
    with a_worker(tmp_path) as first, background("worker", "app:queue", "-w", 1) as second:
        assert "has joined" in second.stdout.readline()
        first.send_signal(signal.SIGTERM)
        assert first.wait(timeout=20) == 0
        begin = time.monotonic()
        task_id = queue.publish("after", name="echo")
        queue.join(timeout=20)
        assert time.monotonic() - begin < limit(5)
        assert queue.get(task_id).result == "after"
        second.send_signal(signal.SIGTERM)
        assert second.wait(timeout=20) == 0


def test_a_worker_that_can_neither_host_nor_join_gives_up_after_its_timeout_and_names_who_is_in_the_way(
    shell, tmp_path
):
    (tmp_path / "app.py").write_text(textwrap.dedent(APP))
    with HostLock(tmp_path / "Queue.json").acquire():
        ran = shell("worker", "app:queue", "--timeout", "0.1")

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert str(os.getpid()) in ran.err


# ---------------------------------------------------------------------------------------------------------------
# info


def test_info_tells_counts_names_and_file_while_nobody_runs(actorq):
    queue = Queue("Queue.json")
    queue.publish_many(range(3), name="thumbnail")
    queue.publish(1, name="resize")

    info = actorq("info", "--json").json
    words = actorq("info").out

    assert info["counts"] == {"ready": 4, "scheduled": 0, "running": 0, "done": 0, "dead": 0, "cancelled": 0}
    assert info["waiting"] == [
        {"name": "resize", "ready": 1, "has_handler": False},
        {"name": "thumbnail", "ready": 3, "has_handler": False},
    ]
    assert info["host"] is None
    assert info["consumers"] == []
    assert (info["generation"], info["commits"]) == (1, 2)
    assert info["bytes"] == Path("Queue.json").stat().st_size
    assert info["last_commit"].endswith("Z")
    assert "nobody" in words
    assert "thumbnail" in words
    assert "just now" in words or "ago" in words
    assert "\x1b" not in words


def test_info_of_another_process_tells_who_hosts_and_who_holds_what(actorq, tmp_path):
    task_id = actorq("publish", "--name", "slow", "1").out.strip()
    actorq("publish", "--name", "orphan", "1")
    with a_worker(tmp_path) as process:
        wait_until((tmp_path / "started").exists)
        wait_until(lambda: len(actorq("info", "--json").json["consumers"]) == 2, what="both consumers registered")
        info = actorq("info", "--json").json
        words = actorq("info").out

    assert info["host"]["pid"] == process.pid
    assert [consumer["alive"] for consumer in info["consumers"]] == [True, True]
    assert [consumer["names"] for consumer in info["consumers"]] == [["echo", "slow"]] * 2
    assert [consumer["tasks"] for consumer in info["consumers"] if consumer["running"]] == [[task_id]]
    assert info["waiting"] == [{"name": "orphan", "ready": 1, "has_handler": False}]
    assert f"process {process.pid}" in words
    assert task_id in words
    assert "no consumer handles this name" in words


def test_info_has_colours_on_a_terminal_only_and_not_with_no_color(here):
    Queue("Queue.json").publish(1)

    assert "\x1b[1m" in on_a_terminal("info")
    assert "\x1b[1m" not in on_a_terminal("info", NO_COLOR="1")


# ---------------------------------------------------------------------------------------------------------------
# verify, compact


@pytest.fixture(scope="module")
def used(tmp_path_factory):
    """The file of a queue with 40 done tasks and 5 ready ones, over several commits."""
    queue = Queue(tmp_path_factory.mktemp("used") / "Queue.json")
    with queue.running(1, handler=handlers.echo):
        for n in range(4):
            queue.publish_many(range(n * 10, n * 10 + 10))
        queue.join(timeout=30)
    queue.publish_many(["r"] * 5)
    return queue.path


@pytest.fixture
def used_queue(used, tmp_path):
    """A copy of it."""
    return Queue(shutil.copy(used, tmp_path))


def test_verify_finds_a_good_file_good(actorq, used_queue):
    before = used_queue.path.read_bytes()
    words, report = actorq("verify"), actorq("verify", used_queue.path, "--json")

    assert (words.status, report.status) == (0, 0)
    assert words.err == ""
    assert report.json["ok"] is True
    assert used_queue.path.read_bytes() == before


def test_verify_names_the_byte_of_damage_and_changes_nothing(actorq, used_queue):
    data = bytearray(used_queue.path.read_bytes())
    place = data.index(b'"data":17}')
    data[place + 7] = ord("9")
    used_queue.path.write_bytes(data)

    words, report = actorq("verify"), actorq("verify", "--json")

    assert (words.status, report.status) == (1, 1)
    assert report.json["ok"] is False
    assert 0 < report.json["offset"] <= place
    assert f"{report.json['offset']}" in words.out.replace(",", "")
    assert used_queue.path.read_bytes() == data


@pytest.fixture
def damaged_queue(used_queue):
    """That queue, with some bytes of the last commit but one changed."""
    ids = used_queue.publish_many(["first", "second"])
    used_queue.publish("third")
    data = bytearray(used_queue.path.read_bytes())
    place = data.index(b'"data":"second"}')
    data[place + 8 : place + 11] = b"SEC"
    used_queue.path.write_bytes(data)
    return Queue(used_queue.path), ids


def test_repair_first_shows_a_plan_and_changes_nothing(actorq, damaged_queue):
    queue, ids = damaged_queue
    before = queue.path.read_bytes()

    words, report = actorq("repair"), actorq("repair", queue.path, "--json")

    assert (words.status, report.status) == (1, 1)
    assert "--yes" in words.out
    assert all(task_id in words.out for task_id in ids)
    assert report.json["lost"] == ids
    assert report.json["repaired"] is False
    assert report.json["backup"] is None
    assert queue.path.read_bytes() == before
    assert not list(queue.path.parent.glob("*.damaged-*"))


def test_repair_with_consent_keeps_all_that_checks_and_the_damaged_file(actorq, damaged_queue):
    queue, ids = damaged_queue
    before = queue.path.read_bytes()
    inode = queue.path.stat().st_ino

    report = actorq("repair", "--yes", "--json")

    assert report.status == 0, report
    assert (report.json["repaired"], report.json["lost"]) == (True, ids)
    assert Path(report.json["backup"]).read_bytes() == before
    assert queue.path.stat().st_ino != inode
    assert queue.path.stat().st_mode & 0o777 == 0o600
    assert actorq("verify").status == 0
    assert queue.counts() == {"ready": 6, "scheduled": 0, "running": 0, "done": 40, "dead": 0, "cancelled": 0}
    with queue.running(1, handler=handlers.echo):
        queue.join(timeout=30)
    assert queue.counts()["done"] == 46


def test_repair_keeps_what_can_be_read_of_a_damaged_commit_on_demand(actorq, damaged_queue):
    queue, ids = damaged_queue

    report = actorq("repair", "--yes", "--keep-unverified")

    assert report.status == 0
    assert "their payload may have changed" in report.out
    assert [queue.get(task_id).data for task_id in ids] == ["first", "SECond"]


def test_the_error_that_tells_of_damage_tells_the_command_that_repairs_it(actorq, damaged_queue):
    queue, _ = damaged_queue
    with pytest.raises(CorruptQueueError) as caught:
        queue.counts()
    command = re.findall(r"(actorq repair \S+)", str(caught.value))[-1].split()
    assert actorq("verify").out.count("actorq repair") == 1

    assert actorq(*command[1:], "--yes").status == 0

    assert queue.counts()["ready"] == 6


@pytest.mark.parametrize("mark", [b'"data":"5 of 5', b'"crc":"', b'{"actorq":'], ids=["last", "checksum", "header"])
def test_whatever_verify_calls_damaged_can_be_repaired(actorq, tmp_path, mark):
    queue = Queue(tmp_path / "Queue.json")
    ids = [queue.publish(f"{number} of 5") for number in range(1, 6)]
    content = bytearray(queue.path.read_bytes())
    at = content.rindex(mark) + len(mark)
    content[at] ^= 1
    queue.path.write_bytes(content)
    assert actorq("verify").status == 1

    plan = actorq("repair", "--json").json
    done = actorq("repair", "--yes", "--json")

    assert (done.status, done.err, done.json["repaired"]) == (0, "", True)
    assert plan["lost"] == done.json["lost"] == []
    assert actorq("verify").status == 0
    assert [queue.get(task_id).data for task_id in ids] == [f"{number} of 5" for number in range(1, 6)]


def test_repair_says_when_there_is_nothing_to_repair(actorq, used_queue):
    assert actorq("repair").status == 3
    torn = used_queue.path.read_bytes().rstrip(b"]\n") + b'\n,{"publish":"'
    used_queue.path.write_bytes(torn)

    ran = actorq("repair", "--yes", "--json")

    assert ran.status == 3
    assert ran.json["repaired"] is False
    assert used_queue.path.read_bytes() == torn


def test_repair_refuses_while_a_host_or_a_writer_is_at_work(actorq, damaged_queue):
    queue, _ = damaged_queue
    before = queue.path.read_bytes()
    for lock in (HostLock, WriterLock):
        with lock(queue.path).acquire():
            ran = actorq("repair", "--yes", "--timeout", "0.1")
        assert ran.status == 1
        assert one_line(ran.err), ran
        assert str(os.getpid()) in ran.err
    assert queue.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b'{"tasks": []}\n'])
def test_repair_does_not_touch_what_is_no_queue_and_says_what_to_do(actorq, tmp_path, content):
    path = tmp_path / "Queue.json"
    path.write_bytes(content)

    ran = actorq("repair", "--yes")

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert "backup" in ran.err
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["Queue.json"]


def test_compact_keeps_what_is_unfinished_and_the_newest_of_what_is_done(actorq, used_queue):
    report = actorq("compact", "--keep-done", 10, "--json")

    after = Queue(used_queue.path)
    assert report.status == 0, report
    assert report.json["bytes_after"] < report.json["bytes_before"]
    assert (report.json["tasks"], report.json["removed"]) == (15, 30)
    assert after.counts() == used_queue.counts()
    assert actorq("info", "--json").json["generation"] == 2
    assert actorq("verify").status == 0


def test_compact_refuses_while_a_host_runs(actorq, used_queue):
    with used_queue.running(0):
        ran = actorq("compact", "--timeout", "0.1")

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert str(os.getpid()) in ran.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ls", "--limit", "many"], "'many' is no whole number"),
        (["info", "--watch", "often"], "'often' is no number"),
        (["ls", "--state", "lost"], "choose from ready, scheduled, running, done, dead, cancelled"),
        (["ls", "--lim", "3"], "actorq ls --help"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_user(actorq, arguments, complaint):
    ran = actorq(*arguments)

    assert ran.status == 2
    assert complaint in ran.err.replace("'ready', 'scheduled', 'running', 'done', 'dead', 'cancelled'", complaint[12:])
    assert "TaskState" not in ran.err


def test_a_command_whose_streams_are_closed_does_what_it_is_told(tmp_path):
    command = f"{sys.executable} -m actorq publish 1 --queue {tmp_path / 'Queue.json'}"

    for closed in ("<&-", ">&-", "<&- >&- 2>&-"):
        subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], env=environment(), check=True)

    assert Queue(tmp_path / "Queue.json").counts()["ready"] == 3


def test_an_output_that_is_full_is_not_taken_for_the_disk_of_the_queue(tmp_path):
    command = f"{sys.executable} -m actorq publish 1 --queue {tmp_path / 'Queue.json'} > /dev/full"

    ran = subprocess.run(["/bin/sh", "-c", command], env=environment(), capture_output=True, text=True, check=False)

    assert ran.returncode == 1
    assert "what was to be said found no way out: no space left" in ran.stderr

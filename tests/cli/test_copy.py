"""dump and load, as a shell pipes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import orjson
import pytest

from actorq import Queue
from actorq.store.locks import HostLock
from tests import handlers
from tests.cli.shell import COMMAND, environment, on_a_terminal, one_line
from tests.helpers import wait_until


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory):
    """A queue with tasks that are done, dead and ready."""
    queue = Queue(tmp_path_factory.mktemp("queue") / "Queue.json", max_attempts=1)
    queue.publish({"wörd": "\x85\u2028", "float": 1e300}, name="echo")
    queue.publish("bad", name="fail")
    queue.handler("echo")(handlers.echo)
    queue.handler("fail")(handlers.fail)
    with queue.running(1):
        queue.join(timeout=30)
    queue.publish_many(range(20), name="later")
    return queue


def test_dump_load_dump_gives_the_same_bytes(actorq, tmp_path, lived_in):
    first = actorq("dump", lived_in.path)

    loaded = actorq("load", "New.json", "--json", stdin=first.out.encode())
    again = actorq("dump", "New.json")

    assert (first.status, loaded.status, again.status) == (0, 0, 0)
    assert again.out == first.out
    assert first.out.isascii() or first.out.replace("\n", "").isprintable()
    counts = lived_in.counts()
    assert loaded.json == {"tasks": 22, "queue": "New.json", "generation": 1, "counts": counts}
    new = Queue("New.json", max_attempts=1)
    assert list(new.tasks()) == list(lived_in.tasks())
    assert new.counts() == counts
    assert (tmp_path / "New.json").stat().st_mode & 0o777 == 0o600
    assert actorq("verify", "New.json").status == 0
    with new.running(1, handler=handlers.echo):
        new.join(timeout=30)
    assert new.counts()["done"] == 21


def test_what_is_no_file_is_written_to_and_not_replaced(actorq, tmp_path, lived_in):
    os.mkfifo(tmp_path / "pipe")
    taken = []
    reader = threading.Thread(target=lambda: taken.append((tmp_path / "pipe").read_text()))
    reader.start()
    (tmp_path / "link").symlink_to("backup.jsonl")

    assert actorq("dump", lived_in.path, "--output", "pipe").status == 0
    assert actorq("dump", lived_in.path, "--output", "link").status == 0

    reader.join()
    assert taken == [actorq("dump", lived_in.path).out] == [(tmp_path / "backup.jsonl").read_text()]
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()


def test_a_path_that_is_no_text_is_told_as_json_all_the_same(actorq, tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.json")
    Queue(path).publish(1)

    for command, status in (("verify", 0), ("info", 0), ("repair", 3)):
        shown = actorq(command, "--queue", path, "--json")
        assert shown.status == status
        assert str(path) in json.loads(shown.out).values()


def test_a_file_takes_the_dump_and_gives_it_back(actorq, tmp_path, lived_in):
    written = actorq("dump", lived_in.path, "--output", "backup.jsonl", "--json")

    assert written.json == {"tasks": 22, "bytes": (tmp_path / "backup.jsonl").stat().st_size, "output": "backup.jsonl"}
    assert (tmp_path / "backup.jsonl").read_text() == actorq("dump", lived_in.path).out
    assert (tmp_path / "backup.jsonl").stat().st_mode & 0o777 == 0o600
    loaded = actorq("load", "--input", "backup.jsonl")
    assert "22 tasks loaded" in loaded.out
    again = actorq("load", "--input", "backup.jsonl")
    assert (again.status, again.out) == (1, "")
    assert one_line(again.err), again
    assert "22 of 22 tasks" in again.err
    assert len(list(Queue("Queue.json").tasks())) == 22


def test_a_part_of_a_dump_can_be_loaded(actorq, lived_in):
    lines = [orjson.loads(line) for line in actorq("dump", lived_in.path).out.splitlines()]
    del lines[0]["tasks"]
    part = [lines[0], *(line for line in lines[1:] if line["state"] == "dead")]

    ran = actorq("load", stdin=b"\n".join(map(orjson.dumps, part)))

    assert ran.status == 0
    assert Queue("Queue.json").counts()["dead"] == 1


@pytest.mark.parametrize("dump", [b"", b"garbage\n", b'{"actorq_dump":1}\n{"id":\n'])
def test_what_cannot_be_loaded_is_one_line_and_leaves_no_queue(actorq, tmp_path, dump):
    ran = actorq("load", stdin=dump)

    assert (ran.status, ran.out) == (1, "")
    assert one_line(ran.err), ran
    assert "line " in ran.err
    assert not (tmp_path / "Queue.json").exists()


def test_what_runs_is_dumped_as_ready(actorq, tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    started, until = tmp_path / "started", tmp_path / "until"
    with queue.running(1, handler=handlers.wait_for_file):
        task_id = queue.publish({"started": str(started), "until": str(until)})
        wait_until(started.exists)
        dump = actorq("dump")
        until.touch()
        queue.join(timeout=30)

    task = orjson.loads(dump.out.splitlines()[1])
    assert (task["id"], task["state"], "started_at" in task) == (task_id, "ready", False)


def test_load_refuses_while_a_host_runs(actorq, lived_in):
    dump = actorq("dump", lived_in.path).out.encode()
    with HostLock("New.json").acquire():
        ran = actorq("load", "New.json", "--timeout", "0.1", stdin=dump)

    assert ran.status == 1
    assert one_line(ran.err), ran
    assert str(os.getpid()) in ran.err


def test_a_shell_pipes_one_into_the_other(here, lived_in):
    command = f"{sys.executable} -m actorq dump {lived_in.path} | {sys.executable} -m actorq load New.json"
    ran = subprocess.run(["sh", "-c", command], env=environment(), capture_output=True, text=True, timeout=60)

    assert (ran.returncode, ran.stderr) == (0, "")
    assert "22 tasks loaded" in ran.stdout


def test_on_a_terminal_the_dump_is_safe_to_look_at(lived_in):
    shown = on_a_terminal("dump", str(lived_in.path))

    assert shown.count("\r\n") == 23
    assert shown.replace("\r\n", "").isprintable()


def test_load_from_a_terminal_says_where_a_dump_comes_from(here):
    controller, terminal = os.openpty()
    ran = subprocess.run([*COMMAND, "load"], stdin=terminal, capture_output=True, text=True, timeout=30)
    os.close(controller)
    os.close(terminal)

    assert ran.returncode == 2
    assert one_line(ran.stderr), ran
    assert "--input" in ran.stderr

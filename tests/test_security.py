"""Who may do what: payloads, names and errors are data and nothing else; files are private; what is planted is refused.

Whoever can write into the queue's folder as its owner can run its handlers with arguments of his choice, and no more.
"""

from __future__ import annotations

import ast
import os
import pickle
import socket
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import actorq
from actorq import (
    ActorqError,
    NoHandlerError,
    PayloadError,
    Queue,
    StoreError,
    UnsupportedFormatError,
)
from actorq.attachments import attachment_of
from actorq.brokers.messages import Barrier, Hello, MalformedEventError, Publish, Report
from actorq.brokers.publisher_broker import Writing
from actorq.cli import main
from actorq.store.compaction import compact
from actorq.store.failed_sync import SUFFIX
from actorq.store.fold import QueueState
from actorq.store.format import Commit
from actorq.store.locks import WriterLock
from actorq.store.log_reader import Batch
from actorq.store.log_writer import LogWriter
from actorq.store.sessions import SessionTable
from actorq.terminal import plain
from tests import handlers, hostile
from tests.faults.test_kills import descendants, pids_of
from tests.helpers import limit, wait_until

ROOT = Path(actorq.__file__).parent
P, C, S = (letter * 12 for letter in "pcs")


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


# ---------------------------------------------------------------------------------------------------------------
# Nothing in a record names code


READS_RECORDS = (
    "brokers",
    "store",
    "tasks",
    "consumer.py",
    "brokered_publisher.py",
    "publisher.py",
    "queue.py",
    "refuge.py",
    "view.py",
    "understudy.py",
)
MAKES_CODE_OF_DATA = {
    "pickle",
    "importlib",
    "runpy",
    "code",
    "codeop",
    "shelve",
    "dill",
    "imp",
    "pkgutil",
    "subprocess",
}
CALLS_THAT_DO = {"eval", "exec", "compile", "__import__", "globals", "vars", "system", "popen", "loads", "load"}
MAY_CALL = {"re.compile", "orjson.loads", "json.loads"}
MAY_LIST_THEIR_FIELDS = {"policy.py"}


def modules_that_read_records():
    for name in READS_RECORDS:
        path = ROOT / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("path", list(modules_that_read_records()), ids=lambda path: str(path.relative_to(ROOT)))
def test_whatever_reads_records_has_no_means_to_make_code_of_them(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not MAKES_CODE_OF_DATA & {name.split(".")[0] for name in names}, f"line {node.lineno}"
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute):
                is_known = isinstance(called.value, ast.Name) and f"{called.value.id}.{called.attr}" in MAY_CALL
                assert is_known or called.attr not in CALLS_THAT_DO, f"line {node.lineno}"
            elif isinstance(called, ast.Name):
                assert called.id not in CALLS_THAT_DO, f"line {node.lineno}"
                # By a name in the source, or over the fields of one's own class: never by one that came from elsewhere.
                if called.id == "getattr" and path.name not in MAY_LIST_THEIR_FIELDS:
                    assert isinstance(node.args[1], ast.Constant), f"line {node.lineno}"


def test_a_name_is_a_key_of_the_handlers_and_nothing_else(queue, tmp_path):
    names = [
        "os.system",
        "tests.handlers.nothing",
        "__import__('os').system",
        "echo.__globals__",
        "\u0435cho",
        "../echo",
    ]
    queue.handler("echo")(handlers.echo)
    with queue.running(1):
        ids = [queue.publish(f"touch {tmp_path}/owned", name=name) for name in names]
        with pytest.raises(NoHandlerError) as info:
            queue.join(timeout=30)

    assert sorted(info.value.names) == sorted(names)
    assert {queue.get(task_id).state for task_id in ids} == {"ready"}
    assert not (tmp_path / "owned").exists()


def test_an_error_is_kept_as_text_and_comes_back_as_text(queue):
    with queue.running(1, handler=hostile.raise_odd):
        task_id = queue.publish(None)
        queue.join(timeout=30)

    assert {type(part) for error in queue.get(task_id).errors for part in (error.type, error.message)} == {str}


# ---------------------------------------------------------------------------------------------------------------
# What may arrive at a broker


class Exploit:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_broker_unpickles_nothing_whatever_comes_into_its_mailbox(queue, tmp_path):
    mark = tmp_path / "mark"
    assert pickle.loads(pickle.dumps(Exploit(tmp_path / "proof"))) is None
    assert (tmp_path / "proof").exists()
    with queue.running(1, handler=handlers.echo):
        before = pids_of(queue)
        attachment = attachment_of(queue.path)
        assert attachment is not None
        brokers = attachment.brokers
        assert brokers is not None
        for mailbox in (brokers.writer, brokers.scheduler, brokers.registry):
            mailbox.put(Exploit(mark))
            mailbox.send(pickle.dumps(Exploit(mark)))
            for garbage in (
                b"",
                b"\n",
                b"[]\n",
                b"\x80\x04.",
                b'["publish"]\n',
                b"[" * 100_000,
                b'{"a":1}\n',
                b"\xff" * 999,
            ):
                mailbox.send(garbage)
            head = b'["hello","publisher","aaaaaaaaaaaa","consumer",1,1,"boot",['
            mailbox.send(head + b'"x",' * 9999 + b'"x"],1,1]\n')
        queue.publish(1)
        queue.join(timeout=30)
        wait_until(lambda: brokers.registry.unread_bytes() == 0, what="the registry to read all of it")
        assert pids_of(queue) == before  # nor does anything of it end one

    assert not mark.exists()
    assert queue.counts()["done"] == 1


def test_the_door_is_the_only_socket_of_the_tree_at_which_anybody_can_knock(queue):
    with queue.running(2, handler=handlers.nothing):
        queue.publish(1)
        queue.join(timeout=30)
        tree = descendants(os.getpid())
        inodes = {
            os.fstat(int(fd.name)).st_ino if pid == os.getpid() else fd.stat().st_ino
            for pid in tree
            for fd in Path(f"/proc/{pid}/fd").iterdir()
            if str(fd.readlink()).startswith("socket:")
        }
        assert inodes
        unix = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
        ours = [fields for fields in unix if int(fields[6]) in inodes]
        others = Path("/proc/net/tcp").read_text() + Path("/proc/net/udp").read_text()
        inet = {int(line.split()[9]) for line in others.splitlines() if line.split()[9].isdigit()}

        door = queue.path.with_name("Queue.json.door")
        assert stat.S_IMODE(door.lstat().st_mode) == 0o600
    named = {fields[7].rpartition("/")[2] for fields in ours if len(fields) > 7}
    assert named == {door.name}
    assert not inodes & inet


def test_a_consumer_holds_nothing_of_the_queues_file_or_its_locks(queue):
    with queue.running(1, handler=hostile.list_fds):
        task_id = queue.publish(None)
        queue.join(timeout=30)

    assert not [target for target in queue.get(task_id).result if str(queue.path) in target]


# ---------------------------------------------------------------------------------------------------------------
# Payloads


def written_by(*requests):
    """Return what the writer would write for requests, and its answers."""
    writing = Writing(SessionTable())
    for request in (Hello(P, "publisher", 1, 1, "boot"), Hello(C, "consumer", 2, 2, "boot", None, 3, 3), Barrier(S, 1)):
        writing.accept(request)
    writing.accept(Publish(P, 1, 2, "before", b'"one"\n"two"'))
    for request in requests:
        with suppress(MalformedEventError, ValueError, TypeError):
            writing.accept(request)
    group = writing.take_group()
    return b"".join(group.lines), group


def folded(lines):
    state = QueueState()
    state.apply(Batch(0, lines, Commit(1, len(lines), 1, 0, "2026-11-23T18:00:00.000Z", 0), len(lines), piece=False))
    return state


STRUCTURE = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\\"]
PIECES = [b"\\u000a", b"1", b"null", b'"id"', b'"data"', b"\0", b"\xff", b',{"gone":"', b'}\n,{"barrier":"x"}']
RECORD = b',{"done":"%b-1","no":1,"by":"%b","req":1}\n' % (P.encode(), C.encode())
JSON_LIKE = st.lists(st.sampled_from([*STRUCTURE, *PIECES, RECORD]), max_size=12).map(b"".join)


@given(body=st.one_of(st.binary(max_size=60), JSON_LIKE), count=st.integers(1, 3))
def test_no_bytes_sent_as_payloads_change_anything_beyond_their_own_tasks(body, count):
    lines, _ = written_by(Publish(P, 3, count, "work", body), Publish(P, 3 + count, 1, "after", b'"end"'))
    state = folded(lines)

    tasks = [state.task(seq, lambda offset, length: lines[offset : offset + length]) for seq in range(len(state))]
    assert [(task.id, task.name, task.data) for task in tasks[:2]] == [
        (f"{P}-1", "before", "one"),
        (f"{P}-2", "before", "two"),
    ]
    assert {task.state for task in tasks} == {"ready"}
    assert (state.scheduler, set(state.consumers), set(state.publishers)) == (S, {C}, {P})
    payloads = body.split(b"\n")
    if len(tasks) > 2:
        assert [(task.id, task.name) for task in tasks[2:-1]] == [(f"{P}-{3 + n}", "work") for n in range(count)]
        assert [task.data for task in tasks[2:-1]] == [orjson.loads(payload) for payload in payloads]
        assert b"".join(b',"data":%b}\n' % payload for payload in payloads[:1]) in lines
    table = SessionTable()
    table.apply(lines)
    assert table.expected(P) == len(tasks) + 1


@given(
    name=st.text(max_size=12)
    | st.sampled_from(['a","data":1}\n,{"gone":"x', "\x1b[2J", "\u202eevil", "a\nb", "\ud800"])
)
def test_no_name_changes_anything_but_the_name(name):
    lines, _ = written_by(Publish(P, 3, 1, name, b"3"))
    state = folded(lines)

    assert len(state) in (2, 3)
    if len(state) == 3:
        assert state.name_of(2) == name
        assert name.isprintable()


@given(result=st.one_of(st.binary(max_size=40), JSON_LIKE), kind=st.sampled_from(["result", "failed"]))
def test_no_bytes_sent_as_a_result_or_error_change_anything_beyond_the_task(result, kind):
    lines, _ = written_by(Report(C, 1, [[kind, f"{P}-1", 1, "ready"]], result))
    state = folded(lines)

    assert state.counts()["ready"] == 2  # it was never assigned, so the outcome is void
    assert (state.scheduler, set(state.consumers), set(state.publishers)) == (S, {C}, {P})


HOSTILE_JSON = {
    "a million arrays": b"[" * 1_000_000 + b"]" * 1_000_000,
    "half a million arrays": b"[" * 500_000 + b"]" * 500_000,
    "a million objects": b'{"":' * 200_000 + b"1" + b"}" * 200_000,
    "arrays that never end": b"[" * 1_000_000,
    "65 arrays": b"[" * 65 + b"]" * 65,
    "a number beyond all": b"1e400",
    "a long number": b"9" * 300_000 + b".5e" + b"9" * 1000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "a lone surrogate": b'"\\ud800"',
    "a raw surrogate": b'"\xed\xa0\x80"',
    "a raw control byte": b'"\x1b[2J"',
    "a raw line feed": b"[1,\n2]",
    "a tab between": b"[1,\t2]",
    "bytes behind": b"1 2",
    "a comma behind": b"1,",
    "a record behind": b'1}\n,{"gone":"' + P.encode() + b'"}',
    "two values": b"1][2",
    "nothing": b"",
    "a NUL": b"1\0",
    "a byte order mark": b"\xef\xbb\xbf1",
    "latin": b'"\xe9"',
    "overlong": b'"\xc0\xaf"',
    "a comment": b"1//2",
    "single quotes": b"'1'",
    "more than a megabyte": b'"' + b"x" * (1 << 20) + b'"',
}


@pytest.mark.parametrize("what", HOSTILE_JSON)
def test_hostile_json_sent_to_the_writer_is_refused_quickly_and_is_not_in_the_log(what):
    payload = HOSTILE_JSON[what]
    begin = time.process_time()
    lines, group = written_by(Publish(P, 3, payload.count(b"\n") + 1, "work", payload))
    took = time.process_time() - begin

    assert took < limit(1)
    assert len(folded(lines)) == 2
    assert [answer.kind for _, answer in group.answers] == ["payload"]


def test_odd_json_that_is_json_is_kept_byte_for_byte():
    keys = b"{" + b",".join(b'"%d":%d' % (n, n) for n in range(60_000)) + b"}"
    for payload in (keys, b'{"a":1,"a":2}', b"18446744073709551616", b"1E5", b'"\\u001b[2J"', b'"\\u2028"', b" 1 "):
        lines, _ = written_by(Publish(P, 3, 1, "work", payload))
        assert b'"data":%b}\n' % payload in lines


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**64, -(2**63) - 1, "\ud800", {1: 2}, b"bytes", {"a"}])
def test_what_json_would_change_is_refused_and_never_kept_as_something_else(queue, value):
    with pytest.raises(PayloadError):
        queue.publish({"value": value})
    assert not queue.path.exists()


def test_a_hostile_file_is_refused_and_never_obeyed(queue, tmp_path):
    """A file with right checksums and wrong records, as only its owner could write it."""
    hostile_lines = [
        b',{"publish":"aaaaaaaaaaaa-1","name":"x"}\n,{"id":"aaaaaaaaaaaa-1","name":"x","data":' + b"[" * 10**6 + b"}\n",
        b',{"publish":"aaaaaaaaaaaa-1..999999999999","name":"x"}\n',
        b',{"exec":"import os; os.mkdir(\'%b\')"}\n' % str(tmp_path / "owned").encode(),
        b',{"assign":"../../etc/passwd","to":"x","no":1,"by":"y","req":1}\n',
        b',{"hello":"x","as":"root","pid":1,"start":1,"boot":""}\n',
        b',{"kept":"aaaaaaaaaaaa-1","state":"owned"}\n',
    ]  # fmt: skip
    for line in hostile_lines:
        with suppress(FileNotFoundError):
            queue.path.unlink()
        with WriterLock(queue.path).acquire():
            log = LogWriter.open(queue.path, boot_id="boot", pid=1)
            log.write(line)
            log.sync()
            log.close()
        before = queue.path.read_bytes()
        fresh = Queue(queue.path)
        with suppress(StoreError, ActorqError, ValueError):  # some of it only shows when it is used
            fresh.counts()
            fresh.get("aaaaaaaaaaaa-1")
            with pytest.raises(ActorqError), fresh.running(1, handler=handlers.nothing):
                fresh.join(timeout=5)
        assert queue.path.read_bytes().startswith(before[:-2])
    assert not (tmp_path / "owned").exists()


# ---------------------------------------------------------------------------------------------------------------
# Files


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o022])
def test_files_are_private_under_any_umask(queue, mask, tmp_path):
    before = os.umask(mask)
    try:
        queue.publish_many(range(100))
        with queue.running(1, handler=handlers.echo):
            queue.join(timeout=30)
        with queue.path.open("r+b") as file:  # as if torn
            file.seek(-2, os.SEEK_END)
            file.write(b',{"publish":"aaa')
        queue.publish(1)
        with HostingLocks(queue):
            compact(queue.path, boot_id="boot", pid=1, keep_done=0)
    finally:
        os.umask(before)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 4, modes
    assert set(modes.values()) == {0o600}


class HostingLocks(WriterLock):
    """The writer's lock, taken where it is needed."""

    def __init__(self, queue):
        super().__init__(queue.path)

    def __enter__(self):
        return self.acquire()


PLANTED = ("symlink", "dangling symlink", "fifo", "directory", "hard link", "socket")


def plant(kind, name, canary):
    match kind:
        case "symlink":
            name.symlink_to(canary)
        case "dangling symlink":
            name.symlink_to(canary.with_name("nothing-here"))
        case "fifo":
            os.mkfifo(name)
        case "directory":
            name.mkdir()
        case "hard link":
            os.link(canary, name)
        case "socket":
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(name))
            server.close()


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("suffix", ["", ".lock", ".host", SUFFIX])
def test_what_is_planted_under_a_name_of_ours_is_refused_at_once_and_stays_as_it_is(tmp_path, kind, suffix):
    folder, canary = tmp_path / "q", tmp_path / "canary"
    folder.mkdir()
    queue = Queue(folder / "Queue.json")
    canary.write_bytes(b"" if suffix in (".lock", ".host") else b"precious")
    content = canary.read_bytes()
    if suffix:
        queue.publish("before")
    name = folder / f"Queue.json{suffix}"
    name.unlink(missing_ok=True)
    plant(kind, name, canary)
    before = os.lstat(name)

    begin = time.monotonic()
    if (kind, suffix) == ("hard link", SUFFIX):
        # A regular file of that name is a mark, whatever it says: the queue is copied to a new file, the name removed.
        queue.publish(1, timeout=2)
        assert canary.read_bytes() == content
        assert not name.exists()
        return
    with pytest.raises((UnsupportedFormatError, OSError)):
        queue.publish(1, timeout=2)
    with pytest.raises((ActorqError, OSError)), queue.running(0, timeout=2):
        pass
    assert time.monotonic() - begin < 10

    assert canary.read_bytes() == content
    assert not canary.with_name("nothing-here").exists()
    after = os.lstat(name)
    assert (after.st_ino, after.st_mode, after.st_size) == (before.st_ino, before.st_mode, before.st_size)
    if suffix:
        name.rmdir() if kind == "directory" else name.unlink()
        queue.publish("after")
        assert queue.counts()["ready"] == 2


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_where_a_torn_tail_goes_is_left_alone(tmp_path, kind):
    queue, canary = Queue(tmp_path / "Queue.json"), tmp_path / "canary"
    queue.publish("before")
    canary.write_bytes(b"precious")
    end = queue.path.stat().st_size - 2
    plant(kind, tmp_path / f"Queue.json.torn-1-{end}", canary)
    with queue.path.open("r+b") as file:
        file.seek(end)
        file.write(b',{"publish":"aaa')

    queue.publish("after")

    assert canary.read_bytes() == b"precious"
    assert (tmp_path / f"Queue.json.torn-1-{end}.2").read_bytes() == b',{"publish":"aaa'
    assert queue.counts()["ready"] == 2


def test_a_queue_with_a_second_name_is_refused(queue, tmp_path):
    queue.publish(1)
    os.link(queue.path, tmp_path / "Other.json")

    for path in (queue.path, tmp_path / "Other.json"):
        with pytest.raises(UnsupportedFormatError, match="hard link"):
            Queue(path).publish(2)


# ---------------------------------------------------------------------------------------------------------------
# What a person sees


NASTY = "\x1b]52;c;cm0gLXJm\x07\x1b[2J\x9b31m\r\nforged line\u202e\u2066\u2028\x85\x00\x7f\ufeff\u200b"


def only_prints(text):
    return all(char.isprintable() or char == "\n" for char in text)


def test_nothing_but_text_is_left_of_what_is_escaped():
    assert only_prints(plain(NASTY))
    assert "\n" not in plain(NASTY)
    assert plain("größer → ok") == "größer → ok"


def test_errors_of_the_command_line_are_one_line_of_text_whatever_they_quote(tmp_path, capsys):
    evil = tmp_path / f"evil{NASTY.replace(chr(0), '')}"
    evil.mkdir()
    (evil / "Queue.json").write_bytes(b"not a queue")
    for arguments in (
        ["verify", str(evil / "Queue.json")],
        ["info", "--queue", str(evil / "Queue.json")],
        ["publish", "--queue", str(evil / "Queue.json"), "1"],
        ["publish", "--queue", str(tmp_path / "Queue.json"), "--name", NASTY, "1"],
        ["publish", "--queue", str(tmp_path / "Queue.json"), f'"{NASTY}'],
        ["worker", f"{NASTY}:queue"],
        [NASTY],
    ):
        with suppress(SystemExit):
            assert main(arguments) != 0
        said = capsys.readouterr()
        assert only_prints(said.out + said.err), arguments
        assert "\nforged line" not in said.err


def test_what_commands_say_is_text_and_their_json_is_json(tmp_path, capsys):
    queue = Queue(tmp_path / f"evil{NASTY.replace(chr(0), '')}.json")
    dead = queue.publish(NASTY, name="größer")
    with queue.running(1, handler=hostile.raise_what_it_is_told):
        queue.join(timeout=30)
    queue.publish(NASTY, name="waits")
    capsys.readouterr()

    assert main(["info", "--queue", str(queue.path)]) == 0
    assert only_prints(capsys.readouterr().out)
    assert main(["info", "--queue", str(queue.path), "--json"]) == 0
    out = capsys.readouterr().out
    assert only_prints(out)
    assert orjson.loads(out)["counts"]["dead"] == 1
    for arguments in (["verify"], ["ls"], ["show", dead], ["log"], ["dump"]):
        for more in ([], ["--json"]):
            assert main([*arguments, *more, "--queue", str(queue.path)]) == 0
            out = capsys.readouterr().out
            assert only_prints(out), arguments
            assert not more or all(map(orjson.loads, out.splitlines())), arguments


def test_log_lines_are_lines_whatever_the_path_is_called(tmp_path, caplog, capfd):
    folder = tmp_path / f"evil{NASTY.replace(chr(0), '')}"
    folder.mkdir()
    queue = Queue(folder / "Queue.json")
    queue.publish(1)
    with queue.path.open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b',{"publish":"aaa')
    with queue.running(1, handler=hostile.raise_what_it_is_told):
        queue.publish(NASTY)
        queue.join(timeout=30)

    said = capfd.readouterr().err
    assert "queue recovered" in said
    assert only_prints(said)
    assert only_prints(caplog.text)


SECRET = "s3cr3t-t0k3n-canary"


def test_payloads_results_and_errors_are_in_the_file_and_nowhere_else(tmp_path):
    script = tmp_path / "app.py"
    script.write_text(
        f"""
import logging
from actorq import PayloadError, Queue
from tests import handlers, hostile
logging.basicConfig(level=logging.DEBUG)
queue = Queue("Queue.json")
queue.handler("echo")(handlers.echo)
queue.handler("fail")(hostile.raise_what_it_is_told)
queue.handler("die")(handlers.die)
if __name__ == "__main__":
    with queue.running(2):
        for name in ("echo", "fail", "die"):
            queue.publish({{"password": "{SECRET}"}}, name=name)
        try:
            queue.publish({{"password": {{"{SECRET}"}}}})
        except PayloadError as error:
            print(error)
        queue.join(timeout=20)
"""
    )
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
    )

    assert "SIGSEGV" in run.stderr  # the log is on
    assert SECRET not in run.stdout + run.stderr
    holding = {path.name for path in tmp_path.iterdir() if path.is_file() and SECRET.encode() in path.read_bytes()}
    assert holding == {"Queue.json", "app.py"}

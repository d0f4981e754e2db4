from __future__ import annotations

import json
import os
import socket
from itertools import count
from pathlib import Path

import pytest

from actorq.errors import CorruptQueueError, UnsupportedFormatError
from actorq.store.filesystem import REAL
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import create_file
from actorq.store.new_file import sweep
from actorq.testing import CrashingFilesystem
from tests.store.scenes import PATH, disk_of, disk_with, line, lines_in, open_log

GOOD = disk_with([line(0), line(1)]).read_bytes(PATH)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n", "not written by actorq"),
        (b"[]\n", "not written by actorq"),
        (b"hello", "not written by actorq"),
        (b'{"tasks": []}', "not written by actorq"),
        (b"\0" * 4096, "not written by actorq"),
        (b"\xef\xbb\xbf" + GOOD, "byte order mark"),
        (GOOD.decode().encode("utf-16"), "byte order mark"),
        (GOOD.replace(b"\n", b"\r\n"), "CR LF"),
        (json.dumps(json.loads(GOOD)).encode(), "reformatted or edited"),
        (json.dumps(json.loads(GOOD), indent=2).encode(), "reformatted or edited"),
        (json.dumps(json.loads(GOOD), sort_keys=True, indent=0).encode(), "reformatted or edited"),
        (GOOD[:100], "ends inside its header"),
        (GOOD.replace(b'"actorq":1,', b'"actorq":2,', 1), "format version 2"),
    ],
    ids=count(),
)
def test_a_file_that_is_no_queue_of_this_version_is_refused_and_left_alone(content, reason):
    disk = disk_of(content)
    with pytest.raises(UnsupportedFormatError, match=reason):
        open_log(disk)
    with pytest.raises(UnsupportedFormatError, match=reason):
        LogReader(PATH, filesystem=disk)
    assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], content)


def test_a_damaged_header_is_damage_and_no_foreign_file():
    with pytest.raises(CorruptQueueError, match="at byte 0"):
        open_log(disk_of(GOOD.replace(b'"created":"2', b'"created":"1', 1)))


def test_an_edited_line_is_refused():
    disk = disk_of(GOOD.replace(b'{"n":0', b'{"n":9'))
    open_log(disk).forget()
    with pytest.raises(CorruptQueueError):
        lines_in(disk)


@pytest.mark.parametrize("ending", [b"]", b"]\n", b"]\n\n\n"])
def test_line_feeds_behind_the_bracket_are_accepted(ending):
    assert lines_in(disk_of(GOOD.rstrip(b"]\n") + b"\n" + ending)) == [line(0), line(1)]


@pytest.fixture(params=["log writer", "log reader"])
def opened(request):
    return (lambda path: open_log(path=path)) if request.param == "log writer" else LogReader


def test_a_directory_is_refused(tmp_path, opened):
    (tmp_path / PATH).mkdir()
    with pytest.raises(UnsupportedFormatError, match=r"directory|regular"):
        opened(tmp_path / PATH)


def test_a_pipe_is_refused_without_waiting_for_its_other_end(tmp_path, opened):
    os.mkfifo(tmp_path / PATH)
    with pytest.raises(UnsupportedFormatError, match="not a regular file"):
        opened(tmp_path / PATH)


def test_a_socket_is_refused(tmp_path, opened, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(PATH)
        with pytest.raises(UnsupportedFormatError, match="socket"):
            opened(tmp_path / PATH)


def test_a_symbolic_link_is_refused(tmp_path, opened):
    create_file(tmp_path / "real.json")
    (tmp_path / PATH).symlink_to(tmp_path / "real.json")
    with pytest.raises(UnsupportedFormatError, match="symbolic link"):
        opened(tmp_path / PATH)


def test_a_link_to_nowhere_is_not_taken_for_a_new_queue(tmp_path):
    (tmp_path / PATH).symlink_to(tmp_path / "canary")
    with pytest.raises(UnsupportedFormatError, match="symbolic link"):
        open_log(path=tmp_path / PATH)
    assert not (tmp_path / "canary").exists()


def test_a_writer_refuses_a_file_of_two_names(tmp_path):
    create_file(tmp_path / PATH)
    (tmp_path / "other.json").hardlink_to(tmp_path / PATH)
    with pytest.raises(UnsupportedFormatError, match="hard link"):
        open_log(path=tmp_path / PATH)


def test_a_second_name_left_by_a_creator_that_was_killed_is_removed(tmp_path):
    create_file(tmp_path / PATH)
    left = tmp_path / f".{PATH}.0123456789abcdef.new"
    left.hardlink_to(tmp_path / PATH)
    open_log(path=tmp_path / PATH).close()
    assert os.listdir(tmp_path) == [PATH]


def test_sweeping_removes_only_our_own_leavings(tmp_path):
    keep = [".Queue.json.notes.new", "Queue.json.torn-1-203", ".Other.json.0123456789abcdef.new", "Queue.json.lock"]
    for name in [*keep, ".Queue.json.0123456789abcdef.new"]:
        (tmp_path / name).touch()
    sweep(tmp_path / PATH, REAL)
    assert sorted(os.listdir(tmp_path)) == sorted(keep)


class OtherMachine(CrashingFilesystem):
    def kind(self, path):
        return "nfs4"


def test_a_queue_is_not_created_on_a_network_file_system():
    disk = OtherMachine()
    with pytest.raises(UnsupportedFormatError, match="nfs4"):
        open_log(disk)
    assert disk.names() == []


def test_the_kernel_says_what_a_file_system_is(tmp_path):
    known = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    assert REAL.kind(tmp_path) in known
    assert REAL.kind("/proc") == "proc"

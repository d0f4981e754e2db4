"""What the kernel tells a process of itself."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from actorq.actors.linux import fork_mark, is_alone_with, reopen_unnamed

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["in Python", "in C"])
def test_a_copy_of_a_process_is_told_from_it_whoever_has_forked(fork):
    is_original = fork_mark()

    pid = fork()
    if pid == 0:
        os._exit(is_original[0])

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_original[0] == 1


def test_a_file_that_has_no_name_is_opened_once_more_for_writing_and_one_that_has_is_not(tmp_path):
    path = tmp_path / "file"
    path.write_text("words")
    with path.open() as reader:
        assert reopen_unnamed(reader.fileno()) is None
        path.unlink()
        again = reopen_unnamed(reader.fileno())
        assert again is not None
        os.ftruncate(again, 2)
        os.close(again)
        assert reader.read() == "wo"


def test_whoever_alone_has_a_file_open_is_told_from_others(tmp_path):
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDWR)
    with path.open():
        assert not is_alone_with(fd)
    assert is_alone_with(fd)
    os.close(fd)


def test_a_file_that_another_process_has_open_is_not_had_alone(tmp_path):
    path = tmp_path / "file"
    path.touch()
    code = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        fd = os.open(path, os.O_RDWR)
        assert not is_alone_with(fd)
        other.communicate()
    assert is_alone_with(fd)
    os.close(fd)

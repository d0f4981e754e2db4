"""What the kernel tells a process of itself."""

from __future__ import annotations

import ctypes
import os

import pytest

from actorq.actors.linux import fork_mark

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork], ids=["in Python", "in C"])
def test_a_copy_of_a_process_is_told_from_it_whoever_has_forked(fork):
    is_original = fork_mark()

    pid = fork()
    if pid == 0:
        os._exit(is_original[0])

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_original[0] == 1

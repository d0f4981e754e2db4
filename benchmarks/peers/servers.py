"""The servers that some peers need: started in the folder of the benchmark, on a socket in it, and ended with it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from actorq.linux import die_with_parent
from benchmarks.contest import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

START_TIMEOUT = 10.0
STOP_TIMEOUT = 30.0


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run a redis that answers after its fdatasync. Give the path of its socket."""
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", "", "--dir", "."]
    command = [_program("redis-server"), "--port", "0", "--unixsocket", "redis.sock", *durable]
    with _running(command, folder / "redis.sock") as address:
        yield address


@contextmanager
def beanstalkd(folder: Path) -> Iterator[str]:
    """Run a beanstalkd that answers after its fsync. Give the path of its socket."""
    command = [_program("beanstalkd"), "-l", "unix:beanstalkd.sock", "-b", ".", "-f", "0"]
    with _running(command, folder / "beanstalkd.sock") as address:
        yield address


def version_of(program: str) -> str:
    """Return the first number in what a server says about its version."""
    answer = subprocess.run([_program(program), "-v"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\d+(\.\d+)+", answer)
    return version[0] if version else answer.strip()


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise BenchmarkError(f"there is no {name} on the PATH")
    return path


@contextmanager
def _running(command: Sequence[str], address: Path) -> Iterator[str]:
    with (address.parent / "server.log").open("wb") as log:
        end_with_us = partial(die_with_parent, os.getpid())
        server = subprocess.Popen(command, cwd=address.parent, stdout=log, stderr=log, preexec_fn=end_with_us)  # noqa: PLW1509 -- no other thread runs yet
    try:
        _wait_until_it_answers(server, address)
        yield str(address)
    finally:
        server.terminate()
        try:
            server.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_it_answers(server: subprocess.Popen[bytes], address: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None and time.monotonic() < deadline:
        with closing(socket.socket(socket.AF_UNIX)) as attempt:
            if attempt.connect_ex(str(address)) == 0:
                return
        time.sleep(0.01)
    raise BenchmarkError(f"{server.args!r} does not answer: {(address.parent / 'server.log').read_text()}")

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time

import filelock
import pytest
from filelock import UnixFileLock

from actorq.errors import QueueLockedError, UnsupportedFormatError
from actorq.store.locks import HostLock, LastingWriterLock, WriterLock, is_hosted, read_owner
from tests.helpers import limit, wait_until

HOLD = """
import sys, time
from actorq.store.locks import HostLock, LastingWriterLock, WriterLock
lock = {"writer": WriterLock, "lasting writer": LastingWriterLock, "host": HostLock}[sys.argv[2]]
held = lock(sys.argv[1]).acquire(timeout=5)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "Queue.json"


@pytest.fixture
def holder(path):
    """Return a function that starts a process that holds a lock."""
    started = []

    def start(kind):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("kind", "lock"),
    [("writer", WriterLock), ("writer", LastingWriterLock), ("lasting writer", WriterLock), ("host", HostLock)],
)
def test_a_lock_held_elsewhere_names_its_holder_and_is_free_once_that_is_killed(path, holder, kind, lock):
    process = holder(kind)
    with pytest.raises(QueueLockedError) as caught:
        lock(path).acquire(timeout=0.01)
    assert (caught.value.pid, caught.value.path) == (process.pid, str(path))

    process.kill()

    with lock(path).acquire(timeout=5) as mine:
        assert mine.is_held
    assert not mine.is_held


def test_waiting_ends_at_its_deadline(path):
    with WriterLock(path).acquire():
        begin = time.monotonic()
        with pytest.raises(QueueLockedError):
            WriterLock(path).acquire(timeout=0.1)
        assert 0.1 <= time.monotonic() - begin < limit(1)


def test_the_lock_files_are_private_and_stay(path):
    for lock in (WriterLock(path), HostLock(path)):
        lock.acquire().release()
        assert stat.S_IMODE(lock.path.stat().st_mode) == 0o600
    assert sorted(os.listdir(path.parent)) == ["Queue.json.host", "Queue.json.lock"]


@pytest.mark.parametrize("lock", [WriterLock, LastingWriterLock])
def test_other_programs_exclude_us_by_filelock_and_we_them(path, lock):
    with UnixFileLock(f"{path}.lock", mode=0o600), pytest.raises(QueueLockedError):
        lock(path).acquire()
    with lock(path).acquire(), pytest.raises(filelock.Timeout):
        UnixFileLock(f"{path}.lock", mode=0o600).acquire(timeout=0)


@pytest.mark.parametrize(("lock", "call"), [(WriterLock, "_lock"), (LastingWriterLock, "_lock_by_filelock")])
def test_a_lock_on_a_file_that_was_deleted_meanwhile_does_not_count(path, monkeypatch, lock, call):
    from actorq.store import locks

    first = lock(path).acquire()
    real = getattr(locks, call)

    def delete_first(fd, **options):
        if first.is_held:
            first.path.unlink()
            first.release()
        return real(fd, **options)

    monkeypatch.setattr(locks, call, delete_first)
    second = lock(path).acquire(timeout=1)
    with pytest.raises(QueueLockedError):
        lock(path).acquire()
    second.release()


def test_direct_publishers_share_the_host_lock_and_a_host_waits_for_them(path):
    one = HostLock(path).acquire(shared=True)
    two = HostLock(path).acquire(shared=True)
    assert not is_hosted(path)
    with pytest.raises(QueueLockedError):
        HostLock(path).acquire()
    one.release()
    two.release()
    with HostLock(path).acquire():
        assert is_hosted(path)
        with pytest.raises(QueueLockedError):
            HostLock(path).acquire(shared=True)


def test_the_host_says_who_it_is(path):
    assert read_owner(path) is None
    assert not is_hosted(path)
    with HostLock(path).acquire() as host:
        assert read_owner(path) is None
        host.write_owner({"pid": 123456, "epoch": 10, "door": "/run/user/0/actorq/door"})
        assert read_owner(path) == {"pid": 123456, "epoch": 10, "door": "/run/user/0/actorq/door"}
        host.write_owner({"pid": 7})
        assert read_owner(path) == {"pid": 7}
        assert host.path.read_bytes() == b'{"pid":7}\n'
    # What a dead host wrote is still there; whether somebody hosts is another question.
    assert read_owner(path) == {"pid": 7}
    assert not is_hosted(path)


@pytest.mark.parametrize("lock", [WriterLock, HostLock])
def test_a_link_or_a_pipe_in_the_place_of_a_lock_file_is_not_followed(path, lock):
    canary = path.parent / "canary"
    canary.write_text("alive")
    planted = lock(path).path
    planted.symlink_to(canary)
    with pytest.raises(UnsupportedFormatError):
        lock(path).acquire()
    planted.unlink()
    planted.hardlink_to(canary)
    with pytest.raises(UnsupportedFormatError):
        lock(path).acquire()
    planted.unlink()
    os.mkfifo(planted)
    with pytest.raises(UnsupportedFormatError):
        lock(path).acquire()
    assert canary.read_text() == "alive"


def test_a_forked_child_that_forgets_leaves_the_lock_to_its_parent(path):
    lock = WriterLock(path).acquire()
    child = os.fork()
    if not child:
        lock.forget()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(QueueLockedError):
        WriterLock(path).acquire()
    lock.release()
    WriterLock(path).acquire().release()


def test_what_one_process_forgets_is_held_until_the_last_one_that_has_it_lets_go(path):
    lock = WriterLock(path).acquire()
    parents = os.dup(lock._fd)  # as after a fork
    assert repr(lock) == f"<WriterLock {path}.lock: held>"

    lock.forget()
    lock.forget()
    lock.release()

    assert repr(lock) == f"<WriterLock {path}.lock: free or held elsewhere>"
    with pytest.raises(QueueLockedError):
        WriterLock(path).acquire()
    os.close(parents)
    WriterLock(path).acquire().release()


def test_release_frees_the_lock_although_a_child_has_the_descriptor(path):
    lock = WriterLock(path).acquire()
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    lock.release()
    WriterLock(path).acquire().release()
    os.close(go)
    wait_until(lambda: os.waitpid(child, os.WNOHANG)[0] == child)

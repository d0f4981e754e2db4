"""A publish without brokers ends in one of its three ways, whatever the disk does meanwhile."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from unittest import mock

import orjson
import pytest

from actorq import DiskFullError, PublishRejectedError, PublishUnknownError, Queue, QueueLockedError
from actorq.actors.linux import boot_id
from actorq.publisher import CHUNK_TASKS, WINDOW
from actorq.store.compaction import compact
from actorq.store.failed_sync import FailedSync, has_mark, leave_mark
from actorq.store.filesystem import REAL, RealFilesystem
from actorq.store.locks import HostLock, WriterLock, host_identity, is_hosted, is_written
from actorq.store.log_writer import LogWriter
from actorq.store.verify import verify
from actorq.testing import armed_failpoints
from tests.helpers import limit, wait_until


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    queue.publish("before")
    return queue


@pytest.fixture
def points():
    with armed_failpoints(here=True) as points:
        yield points


def test_a_sync_that_fails_before_anything_is_written_means_rejected(queue, points):
    with queue.path.open("ab") as file:
        file.truncate(queue.path.stat().st_size - len("]\n"))
        file.write(b',{"publish":"torn')  # by a publisher that was killed; it is cut, and the cut has to be on disk
    points.lay("log.syncing", "raise", value=errno.EIO)
    with pytest.raises(PublishRejectedError, match="nothing was written"):
        queue.publish("refused")

    queue.publish("after")
    assert queue.counts()["ready"] == 2


def test_a_sync_that_fails_behind_the_write_means_unknown(queue, points):
    points.lay("log.syncing", "raise", value=errno.EIO)
    with pytest.raises(PublishUnknownError) as unknown:
        queue.publish("perhaps")

    queue.publish("after")
    assert queue.get(unknown.value.task_id).data == "perhaps"
    assert queue.counts()["ready"] == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_filler_that_cannot_be_taken_off_does_not_hide_that_the_task_is_in(queue, points, number, caplog):
    points.lay("log.closing", "raise", value=number)
    task_id = queue.publish("in")
    queue._close_port()

    assert queue.get(task_id).data == "in"
    assert "not closed cleanly" in caplog.text
    queue.publish("after")
    assert queue.counts()["ready"] == 3


@pytest.mark.parametrize("relied", [False, True], ids=["looks at all names", "relies on the folder"])
def test_between_two_publishes_the_file_is_anybodys(queue, relied):
    """Whatever others did to it meanwhile, the next publish goes on behind it."""
    other = Queue(queue.path)
    other.publish("by another")
    expected: list[object] = ["before", "by another"]
    for meanwhile in (
        lambda: None,
        other._close_port,
        lambda: compact(queue.path, boot_id=boot_id(), pid=os.getpid()),
        lambda: tear(queue.path),
        lambda: tear_and_mend(queue.path),
        lambda: Path(f"{queue.path}.lock").unlink(),
        lambda: Path(f"{queue.path}.host").unlink(),
        lambda: leave_mark(REAL, queue.path, FailedSync(None, None, "a test")),
        lambda: host_for_a_moment(other),
        lambda: depose_nobody(queue.path),
        lambda: replace_by_a_copy(queue.path),
        lambda: replace_folder_by_a_copy(queue.path.parent),
    ):
        if relied:
            rely_on_the_folder(queue)
            expected += ["opens", "looks", "relies"]
        meanwhile()
        if relied:
            settle(queue.path.parent)
        queue.publish(len(expected))
        expected.append(len(expected))

        assert [task["data"] for task in orjson.loads(queue.path.read_bytes()) if "data" in task] == expected
        assert verify(queue.path).verdict == "intact"
        assert not has_mark(REAL, queue.path)
        for lock in HostLock(queue.path), WriterLock(queue.path):
            lock.acquire().release()


@pytest.mark.parametrize("suffix", [".host", ".lock"])
def test_a_lock_that_was_replaced_in_the_meantime_keeps_a_publisher_out_as_well(queue, suffix):
    """Whoever relied on the folder would take the lock on a file that is gone, which is free."""
    rely_on_the_folder(queue)
    Path(f"{queue.path}{suffix}").unlink()
    lock = HostLock(queue.path) if suffix == ".host" else WriterLock(queue.path)
    with lock.acquire():
        settle(queue.path.parent)
        with pytest.raises(QueueLockedError) as caught:
            queue.publish("refused", timeout=0)

    assert caught.value.pid == os.getpid()
    queue.publish("after", timeout=0)


def settle(folder):
    """Wait until a look at the folder tells whether a name in it has changed."""
    wait_until(lambda: REAL.names_version(folder) is not None)


def rely_on_the_folder(queue):
    """Publish three tasks, of which the last looks at no name but the folder's."""
    settle(queue.path.parent)
    queue.publish("opens")
    queue.publish("looks")
    with mock.patch.object(os, "lstat", wraps=os.lstat) as lstat:
        queue.publish("relies")
    looked_at = {Path(call.args[0]) for call in lstat.call_args_list}
    # Besides the file itself, ten times a second. What the finalizer of another test's queue looks at does not count.
    assert {path for path in looked_at if path.parent == queue.path.parent} <= {queue.path}


def tear(path):
    """Leave what a publisher leaves that is killed in the middle of its write."""
    whole = path.read_bytes().rstrip(b"\n")
    path.write_bytes(whole[:-1] + b',{"publish":"torn')


def tear_and_mend(path):
    """Do as a publisher that finds what another has torn, and is killed before it has published."""
    tear(path)
    LogWriter.open(path, boot_id=boot_id(), pid=os.getpid(), settle=False).forget()


def depose_nobody(path):
    with WriterLock(path).acquire() as lock:
        host = host_identity(path)
        assert host is not None
        assert HostLock(path).depose(lock, host)


def replace_by_a_copy(path):
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


def replace_folder_by_a_copy(folder):
    old = folder.with_name(f"{folder.name} before")
    folder.rename(old)
    shutil.copytree(old, folder)


def host_for_a_moment(queue):
    with queue.running(0):
        pass


def test_the_file_is_left_as_it_should_be_at_rest_by_who_exits_and_by_who_closes(tmp_path):
    path = tmp_path / "Queue.json"
    code = f"from actorq import Queue\nqueue = Queue({str(path)!r})\nfor n in range(5): queue.publish(n)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes().endswith(b"}\n]\n")


def test_a_queue_that_nobody_has_any_more_lets_go_of_its_file_at_once(queue):
    held = os.listdir("/proc/self/fd")
    gc.disable()  # it would only hide that something still has the queue
    try:
        Queue(queue.path).publish("and gone")
        assert os.listdir("/proc/self/fd") == held
    finally:
        gc.enable()


def test_who_exits_when_the_queue_is_gone_brings_nothing_back(tmp_path):
    path = tmp_path / "folder" / "Queue.json"
    code = (
        f"import shutil, sys\nfrom pathlib import Path\nfrom actorq import Queue\npath = Path({str(path)!r})\n"
        "path.parent.mkdir()\nqueue = Queue(path)\nqueue.publish(1)\nqueue.publish(2)\n"
        "shutil.rmtree(path.parent)\n"
        "if sys.argv[1] == 'empty': path.parent.mkdir()\n"
    )
    for left in ("empty", "nothing"):
        done = subprocess.run([sys.executable, "-c", code, left], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert path.parent.exists() == (left == "empty")
        if left == "empty":
            assert list(path.parent.iterdir()) == []
            path.parent.rmdir()


def test_a_fork_keeps_no_lock_of_a_publisher_that_dies(queue):
    """Parent and child share the descriptors of the locks; were the child's still open, it would hold what it took."""
    queue.publish("opened")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent has published
        os._exit(len(open_files_of(queue.path)))
    os.close(reader)
    queue.publish("in the parent")
    os.close(writer)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def open_files_of(path):
    """Return which files of the queue this process has open."""
    targets = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.exists()]
    return sorted(target for target in targets if target.startswith(str(path)))


def test_a_full_disk_in_the_middle_of_many_says_which_are_in(queue, points):
    points.lay("log.writing", "raise", nth=2, value=errno.ENOSPC)
    with pytest.raises(DiskFullError) as full:
        queue.publish_many(range(CHUNK_TASKS * WINDOW * 2))

    assert len(full.value.published) == queue.counts()["ready"] - 1 > 0
    assert [queue.get(task_id).data for task_id in full.value.published[:3]] == [0, 1, 2]


FORKS_WHILE_THREADS_PUBLISH = """
import os, random, sys, threading, time, warnings
from actorq import Queue

warnings.simplefilter("ignore", DeprecationWarning)  # that a child of many threads may deadlock: it leaves at once
queue = Queue(sys.argv[1])
done, counts = threading.Event(), []


def publish():
    number = 0
    while not done.is_set():
        queue.publish("x")
        number += 1
        time.sleep(random.random() / 1000)
    counts.append(number)


threads = [threading.Thread(target=publish) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    time.sleep(random.random() / 500)
done.set()
for thread in threads:
    thread.join()
print(sum(counts))
"""


def test_children_that_are_forked_while_threads_publish_touch_nothing(queue):
    """In the child all other threads are gone, and with each its publisher, which would tidy up the file."""
    acknowledged = run(FORKS_WHILE_THREADS_PUBLISH, queue.path, "60")

    assert queue.counts()["ready"] == 1 + int(acknowledged)
    assert verify(queue.path).verdict == "intact"


INTERRUPTED = """
import random, signal, sys
from actorq import Queue

queue = Queue(sys.argv[1])
chance = random.Random(7)
interrupts = 0
signal.signal(signal.SIGALRM, signal.default_int_handler)
while interrupts < 120:
    try:
        # Again after a while: one that comes in a finalizer is reported by the interpreter and goes no further.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(0.0001, 0.002), 0.5)
        while True:
            queue.publish("x")
    except KeyboardInterrupt:
        interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    Queue(sys.argv[1]).publish("by somebody else, who needs the locks", timeout=0)
    queue.publish("and again", timeout=0)
"""


def test_whenever_a_publish_is_interrupted_the_locks_are_free_and_the_next_one_works(queue):
    run(INTERRUPTED, queue.path, allowed="Exception ignored in")

    assert verify(queue.path).verdict == "intact"


def test_a_publish_in_the_middle_of_another_one_is_refused_and_disturbs_it_not(queue, points):
    errors = []

    def publish_inside():
        with pytest.raises(QueueLockedError) as caught:
            queue.publish("inside", timeout=0)
        errors.append(caught.value)
        assert is_written(queue.path)

    with mock.patch.object(LogWriter, "sync", wrapped(LogWriter.sync, publish_inside)):
        queue.publish("outside")

    assert [error.pid for error in errors] == [os.getpid()]
    assert not is_written(queue.path)
    assert not is_hosted(queue.path)
    assert queue.counts()["ready"] == 2


ENDS_IN_A_COMMIT = """
import sys, threading, time, weakref
from unittest import mock
from actorq import Queue
from actorq.store.filesystem import RealFilesystem
from actorq.store.locks import is_written

queue = Queue(sys.argv[1])
write, is_writing = RealFilesystem.pwritev, threading.Event()


def write_slowly(self, *args):
    is_writing.set()
    time.sleep(1)
    return write(self, *args)


def publish():
    queue.publish("first")
    with mock.patch.object(RealFilesystem, "pwritev", write_slowly):
        queue.publish("the interpreter ends meanwhile")


# The younger ones come first at the end, so the publisher's own before this one.
weakref.finalize(queue, lambda: print("held" if is_written(sys.argv[1]) else "free"))
threading.Thread(target=publish, daemon=True).start()
is_writing.wait()
"""


def test_the_end_of_the_interpreter_leaves_the_locks_to_a_thread_that_is_in_a_commit(queue):
    assert run(ENDS_IN_A_COMMIT, queue.path) == "held\n"

    queue.publish("after")
    assert verify(queue.path).verdict == "intact"


def test_an_earlier_copy_that_was_put_back_is_seen_though_it_ends_at_the_same_place(queue):
    """The length of the file and the bracket at its end prove nothing; the chain of commits does."""
    copy = queue.path.read_bytes()
    publisher = Queue(queue.path)
    publisher.publish("x" * (20 - len(str(os.getpid()))))  # its first commit names its process
    length = queue.path.read_bytes().rindex(b"]")
    queue.path.write_bytes(copy)  # into the same inode, as `cp` does
    script = "import os, sys; from actorq import Queue; Queue(sys.argv[1]).publish('y' * (20 - len(str(os.getpid()))))"
    run(script, queue.path)
    assert queue.path.read_bytes().rindex(b"]") == length

    task_id = publisher.publish("z")

    assert publisher.get(task_id).data == "z"
    assert verify(queue.path).verdict == "intact"


def test_a_publisher_that_does_nothing_does_not_keep_the_space_of_a_file_that_was_compacted(queue):
    queue.publish("one")

    assert open_files_of(queue.path) == [f"{queue.path}.host", f"{queue.path}.lock"]


def test_what_was_cut_but_may_not_be_on_disk_is_synced_before_anything_is_written_behind_it(queue):
    tear(queue.path)
    log = LogWriter.open(queue.path, boot_id=boot_id(), pid=os.getpid())  # cuts it
    log.forget()
    calls = []

    def noted(name):
        method = getattr(RealFilesystem, name)

        def call(*args):
            calls.append(name)
            return method(*args)

        return mock.patch.object(RealFilesystem, name, call)

    with noted("fdatasync"), noted("pwritev"):
        Queue(queue.path).publish("after")

    assert calls == ["fdatasync", "pwritev", "fdatasync"]


PUBLISHES_AND_TELLS = """
import sys
from actorq import Queue

queue = Queue(sys.argv[1])
while True:
    print(queue.publish("x"), flush=True)
"""


def test_publishers_that_are_killed_while_others_compact_and_host_lose_nothing(queue, tmp_path_factory):
    """They rely on the folder for as long as nothing happens there, and find what happened."""
    told = tmp_path_factory.mktemp("told")
    kills = publishers_at_once = 3

    def start():
        path = told / str(len(list(told.iterdir())))
        with path.open("wb") as file:
            return subprocess.Popen([sys.executable, "-c", PUBLISHES_AND_TELLS, queue.path], stdout=file), path

    def wait_until_all_have_gone_on():
        before = {path: path.stat().st_size for _, path in publishers}
        wait_until(lambda: all(path.stat().st_size > size + 500 for path, size in before.items()), timeout=20)

    publishers = deque(start() for _ in range(publishers_at_once))
    try:
        for _ in range(kills):
            wait_until_all_have_gone_on()
            oldest, _ = publishers.popleft()
            oldest.kill()
            oldest.wait()
            compacting = [sys.executable, "-m", "actorq", "compact", str(queue.path), "--timeout", "20"]
            done = subprocess.run(compacting, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            publishers.append(start())
            wait_until_all_have_gone_on()
            host_for_a_moment(queue)
        wait_until_all_have_gone_on()
        assert [publisher.poll() for publisher, _ in publishers] == [None] * publishers_at_once
    finally:
        for publisher, _ in publishers:
            publisher.kill()
            publisher.wait()

    # Where a kill comes between two pages of a file, half of the last line is written: that told nobody.
    acknowledged = [line for path in told.iterdir() for line in path.read_text().rpartition("\n")[0].split()]
    ids = Counter(task.id for task in queue.tasks())
    assert [task_id for task_id in acknowledged if ids[task_id] != 1] == []
    # Besides the one from before, what nobody lived to tell.
    assert 1 <= len(ids) - len(acknowledged) <= 1 + kills + publishers_at_once
    assert max(ids.values()) == 1
    assert verify(queue.path).verdict == "intact"


def run(script, path, *args, allowed=""):
    """Run a script with the path of the queue; return what it prints. Fails when it complains of else, or hangs."""
    done = subprocess.run(
        [sys.executable, "-c", script, path, *args], capture_output=True, text=True, timeout=limit(60), check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or (allowed and done.stderr.startswith(allowed))
    return done.stdout


def wrapped(method, before):
    """Return the method, with a call of something before it the first time."""
    calls = []

    def call(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            before()
        return method(*args, **kwargs)

    return call

"""The kernel's own disks: the power of an ext4 is cut, a disk of a few KiB is full, a system call fails or is the last.

Needs root, and for some of it strace. `python -m tests.faults.real_power_cuts` does the first for as long as asked.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from actorq import DiskFullError, Queue
from actorq.store.verify import Verdict, verify
from tests.faults.real_disk import MissingMeansError, tmpfs
from tests.faults.real_power_cuts import run_cuts

PUBLISH = """
import sys
from actorq import Queue
from actorq.store.compaction import compact
from actorq.store.locks import HostLock, WriterLock

queue = Queue(sys.argv[1])
for number in range(3):
    print(queue.publish(["x" * 3000, number]), flush=True)
with HostLock(queue.path).acquire(), WriterLock(queue.path).acquire():
    compact(queue.path, boot_id=open("/proc/sys/kernel/random/boot_id").read().strip(), pid=1)
print(queue.publish(["x" * 3000, 3]), flush=True)
"""


def publish_until_full(queue, data, ids):
    while True:
        try:
            ids.append(queue.publish(data))
        except DiskFullError:
            return


def test_the_power_of_a_real_disk_goes_and_every_acknowledged_task_is_there(tmp_path):
    try:
        cuts = run_cuts(3, seed=11)
    except MissingMeansError as error:
        pytest.skip(str(error))
    assert cuts.violations == []
    assert cuts.tally["cuts"] == 3
    assert cuts.tally["acknowledged"] > 10


@pytest.mark.parametrize("kib", [12, 16, 24, 40])
def test_a_disk_of_a_few_kib_is_full_and_what_was_acknowledged_is_there(tmp_path, kib):
    try:
        with tmpfs(tmp_path / "small", f"{kib}k") as folder:
            queue = Queue(folder / "Queue.json")
            ids: list[str] = []
            publish_until_full(queue, "x" * 700, ids)
            with pytest.raises(DiskFullError):
                queue.publish("x" * 100_000)
            assert queue.counts()["ready"] == len(ids)
            assert [queue.get(task_id).data for task_id in ids] == ["x" * 700] * len(ids)
            json.loads(queue.path.read_bytes())
            assert verify(queue.path).verdict is Verdict.INTACT
            assert not [name for name in os.listdir(folder) if name.endswith((".new", ".failed-sync"))]
    except MissingMeansError as error:
        pytest.skip(str(error))


def test_a_limit_of_file_size_is_a_full_disk_and_lifts(tmp_path):
    """The kernel takes a part of the write that crosses it, which is taken back."""
    queue = Queue(tmp_path / "Queue.json")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    ids: list[str] = []
    try:
        for limit in range(4000, 9000, 777):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            publish_until_full(queue, "x" * 300, ids)
            assert queue.path.stat().st_size <= limit
            json.loads(queue.path.read_bytes())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    ids.append(queue.publish("again"))
    assert [queue.get(task_id).id for task_id in ids] == ids
    assert queue.counts()["ready"] == len(ids)


# ---------------------------------------------------------------------------------------------------------------
# System calls that fail, or are the last


def publish_under_strace(folder, injection):
    """Run the publishing program while the kernel does that to one of its calls; return the ids that it wrote."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace, to inject errors and kills into system calls")
    path = folder / "Queue.json"
    call = injection.partition(":")[0]
    program = [sys.executable, "-c", PUBLISH, path]
    done = subprocess.run(
        ["strace", "-f", "-qq", "-o", folder / "trace", "-e", f"trace={call}", "-e", f"inject={injection}", *program],
        capture_output=True,
        text=True,
        timeout=50,
    )
    trace = (folder / "trace").read_text()
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    return path, done, trace


CALLS = {
    "pwritev": "pwritev,pwritev2",
    "fdatasync": "fdatasync",
    "fsync": "fsync",
    "rename": "rename,renameat,renameat2",
    "link": "link,linkat",
    "unlink": "unlink,unlinkat",
}


NUMBERS: dict[str, tuple[int, ...]] = dict.fromkeys(CALLS, (1, 3)) | {"rename": (1,), "link": (1,)}
"""Which of the calls it is; there is one rename, and there are two links."""
if "ACTORQ_CALLS" in os.environ:  # 20 are all of them
    NUMBERS = dict.fromkeys(CALLS, tuple(range(1, int(os.environ["ACTORQ_CALLS"]) + 1)))


@pytest.mark.parametrize("effect", ["error=EIO", "error=ENOSPC", "signal=SIGKILL"])
@pytest.mark.parametrize("call", CALLS)
def test_whatever_a_system_call_does_nothing_acknowledged_is_lost(tmp_path, call, effect):
    happened = 0
    for number in NUMBERS[call]:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        path, done, trace = publish_under_strace(folder, f"{CALLS[call]}:{effect}:when={number}")
        if "INJECTED" not in trace and "killed by SIGKILL" not in trace:
            break  # there are not so many of these calls
        happened += 1
        ids = done.stdout.split()
        if effect == "signal=SIGKILL":
            assert done.returncode == -signal.SIGKILL or done.returncode == 128 + signal.SIGKILL, done
        queue = Queue(path)
        after = queue.publish("afterwards")
        assert [queue.get(task_id).data[1] for task_id in ids] == list(range(len(ids)))
        # What nobody was told of may be there, as a whole: of each interrupted publish one task.
        assert len(ids) + 1 <= queue.counts()["ready"] <= len(ids) + 2
        assert queue.get(after).state == "ready"
        assert verify(path).verdict is Verdict.INTACT
        json.loads(path.read_bytes())
        assert not list(folder.glob("*.failed-sync"))
    assert happened > 0


def test_after_a_failed_sync_the_file_is_never_synced_again(tmp_path):
    path, done, trace = publish_under_strace(tmp_path, "fdatasync:error=EIO:when=2")
    calls = [line for line in trace.splitlines() if "fdatasync(" in line]
    assert [number for number, line in enumerate(calls, 1) if "INJECTED" in line] == [2]
    assert len(calls) == 2
    assert "PublishUnknownError" in done.stderr
    assert Queue(path).counts()["ready"] == 2
    before = path.stat().st_ino
    Queue(path).publish("afterwards")
    assert path.stat().st_ino != before

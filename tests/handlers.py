"""Handlers that tests give to consumers; they are imported by name in the consumers' processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from actorq import Queue, Task, TaskState


def nothing(task: Task) -> None:
    """Do nothing."""


def echo(task: Task) -> object:
    return task.data


def fail(task: Task) -> None:
    raise ValueError(f"cannot do {task.data}")


def fail_once(task: Task) -> str:
    if task.attempt == 1:
        raise ValueError("the first time")
    return "better"


def not_json(task: Task) -> object:
    return {"when": object()}


def die(task: Task) -> None:
    """Kill this process as a bug in C would."""
    os.kill(os.getpid(), signal.SIGSEGV)


def die_once(task: Task) -> str:
    if task.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def die_if_told(task: Task) -> object:
    if task.data == "die":
        os._exit(0)
    return task.data


def leave(task: Task) -> None:
    sys.exit(3)


def fork_and_come_back(task: Task) -> int:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return pid and 1


def append_line(task: Task) -> None:
    """Append the task's line to its file: one write, so that several processes may do it."""
    with Path(task.data["file"]).open("ab", buffering=0) as file:
        file.write(task.data["line"].encode() + b"\n")


def wait_for_file(task: Task) -> int:
    """Say that we run, and run until a file appears."""
    Path(task.data["started"]).write_text(str(os.getpid()))
    while not Path(task.data["until"]).exists():
        time.sleep(0.001)
    return os.getpid()


def note_and_wait(task: Task) -> int:
    """Do as `wait_for_file`, and note at the end that we got there."""
    wait_for_file(task)
    with Path(task.data["ran"]).open("ab", buffering=0) as file:
        file.write(b"%d\n" % os.getpid())
    return os.getpid()


def publish_more(task: Task) -> str:
    return Queue(task.data["queue"]).publish({"n": 1}, name="more")


def hold_the_gil(task: Task) -> None:
    """Sleep in C without letting go of the interpreter."""
    ctypes.PyDLL(None).usleep(int(task.data["seconds"] * 1e6))


def big_result_after(task: Task) -> str:
    """Run until a file appears, and return more than is reserved in the queue's file."""
    wait_for_file(task)
    return "r" * 900_000


def sleep(task: Task) -> None:
    """Take so many seconds."""
    time.sleep(task.data)


def sleep_and_tell(task: Task) -> int:
    """Sleep for so many seconds, and return who has."""
    time.sleep(task.data)
    return os.getpid()


def quick_or_long(task: Task) -> None:
    """Do nothing, or wait for a file."""
    if task.data is not None:
        wait_for_file(task)


def close_everything(task: Task) -> None:
    """Leave a process that can neither hear nor report."""
    os.closerange(3, 200)


def use_up_descriptors(task: Task) -> None:
    """Leave no descriptor to this process, say so, and wait for a gate; at the second attempt do nothing."""
    if task.attempt > 1:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    said = os.open(Path(task.data, "used up"), os.O_WRONLY | os.O_CREAT)
    opened = []
    with suppress(OSError):
        while True:
            opened.append(os.open("/dev/null", os.O_RDONLY))
    os.write(said, b"yes")
    while not Path(task.data, "gate").exists():
        time.sleep(0.001)
    for fd in opened:
        os.close(fd)


def note_pid(task: Task) -> None:
    """Write a line into the folder that the task names, in a file named after this process."""
    with Path(task.data["folder"], f"pid-{os.getpid()}").open("a") as file:
        file.write(f"{os.getpid()}\n")


def note_pid_and_wait(task: Task) -> None:
    """Do the same, and wait until there is a gate."""
    note_pid(task)
    while not Path(task.data["folder"], "gate").exists():
        time.sleep(0.001)


def cancel_another(task: Task) -> list[str]:
    """Cancel all tasks of the name `second`."""
    queue = Queue(task.data["queue"])
    state = queue._view.refresh()
    return queue.cancel(*[state.id_of(seq) for seq in state.places_in(TaskState.READY)])

"""The actors that the tests of the runtime start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, override

from actorq.actors import Actor, ActorRef, Down, Mailbox, Packet, Reply
from actorq.actors.child import descriptors
from actorq.errors import ActorqError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Add:
    n: int


@dataclass(frozen=True, slots=True)
class Total:
    pass


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """Have any of the actor's methods, or a plain function, called in its process."""

    function: object
    args: tuple[object, ...] = ()


class LocalTroubleError(Exception):
    """Has a text, and pickles."""


class LostError(ActorqError):
    """Nothing can be done about it."""


class StubbornError(Exception):
    """Pickles, but cannot be made again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("only one")
        self.both = one, two


class Counter(Actor):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @override
    def receive(self, message: object) -> object:
        match message:
            case Add(n):
                self.total += n
            case Total():
                return self.total
            case Sleep(seconds):
                time.sleep(seconds)
            case "pid":
                return os.getpid()
            case "stop":
                self.stop()
            case "crash":
                raise LocalTroubleError("as told")
            case "crash with many words":
                raise LocalTroubleError("x" + "é" * 5000)
            case "leave a program":
                return terminate_a_fork()
            case "exit 3":
                sys.exit(3)
            case "kill yourself":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stubborn":
                raise StubbornError(1, 2)
            case "unpicklable":
                return lambda: None
            case "big answer":
                return b"x" * (10 << 20)
            case "descriptors":
                return sorted(map(int, os.listdir("/proc/self/fd"))), descriptors()
            case "name":
                return self.name, self.ref
            case Call(function, args) if callable(function):
                return function(*args)
            case ActorRef() as other:
                other.tell(Add(1))
            case Mailbox() as mailbox:
                mailbox.put("from the actor")
            case _:
                return super().receive(message)
        return None


def terminate_a_fork() -> int | None:
    """Fork a process as `multiprocessing` does by default in this version, terminate it, and return how it ended."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(20)
    return process.exitcode


class Diary(Actor):
    """Writes what happens to it into a file, one word a line."""

    def __init__(self, path: Path, name: str = "", fail_in: str = "", slow_stop: float = 0.0) -> None:
        self.path = path
        self.label = name or self.name
        self.fail_in = fail_in
        self.slow_stop = slow_stop
        self.write("init")
        if fail_in == "init":
            raise LocalTroubleError("in __init__")

    def write(self, word: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.label}:{word}\n")

    @override
    def on_start(self) -> None:
        self.write("start")
        if self.fail_in == "on_start":
            raise LocalTroubleError("in on_start")

    @override
    def receive(self, message: object) -> object:
        if message == "crash":
            raise SystemExit(1)
        if message == "pid":
            return os.getpid()
        self.write(str(message))
        return None

    @override
    def on_stop(self) -> None:
        time.sleep(self.slow_stop)
        self.write("stop")


class FailsWhenToldSo(Actor):
    """Starts only if a file does not exist."""

    def __init__(self, forbidden: Path) -> None:
        if forbidden.exists():
            raise LocalTroubleError("forbidden")

    @override
    def receive(self, message: object) -> object:
        if message == "crash":
            raise SystemExit(1)
        return os.getpid()


class GivesUp(Actor):
    """Starts only if a file does not exist, and knows that it would not start the next time either."""

    hopeless = (LostError,)

    def __init__(self, forbidden: Path) -> None:
        if forbidden.exists():
            raise LostError("forbidden")

    @override
    def receive(self, message: object) -> object:
        if message == "despair":
            self.after(0, message)  # an error that leaves a timer ends the actor
            return None
        raise SystemExit(1)

    @override
    def on_timer(self, message: object) -> None:
        raise LostError(str(message))


class Watcher(Actor):
    """Watches whom it is told to and remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[Down] = []

    @override
    def receive(self, message: object) -> object:
        match message:
            case "heard":
                return self.heard
            case ("watch", ActorRef() as ref):
                self.watch(ref)
            case ("unwatch", ActorRef() as ref):
                self.unwatch(ref)
            case Down():
                self.heard.append(message)
            case _:
                return super().receive(message)
        return None


class Alarm(Actor):
    """Has timers."""

    def __init__(self) -> None:
        self.rung: list[object] = []
        self.after(0.02, "second")
        self.after(0.01, "first")
        self.after(0.015, "never").cancel()

    @override
    def receive(self, message: object) -> object:
        if message == "rung":
            return self.rung
        self.rung.append(message)
        return None


class CrashesSoon(Actor):
    """Waits for messages once, which counts as progress, and crashes before it does again."""

    @override
    def before_wait(self) -> bool:
        self.after(0.0, "crash")
        return False

    @override
    def receive(self, message: object) -> object:
        sys.exit(1)


class LaterAnswers(Actor):
    """Answers the ask before the last one."""

    def __init__(self) -> None:
        self.waiting: list[Reply] = []

    @override
    def receive(self, message: object) -> object:
        for reply in self.waiting:
            reply.send(("answered while handling", message))
        self.waiting = [self.reply_later()]
        return None


class Framer(Actor):
    """Takes frames; says what it got in a mailbox."""

    frames = True

    def __init__(self, out: Mailbox) -> None:
        self.out = self.outbox(out)
        self.batches: list[int] = []

    @override
    def on_start(self) -> None:
        self.after(0, "timer")

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        self.batches.append(0)
        for frame in frames:
            self.batches[-1] += 1
            self.out.send(frame.data, fds=frame.fds)
            for fd in frame.fds:
                os.close(fd)

    @override
    def on_timer(self, message: object) -> None:
        self.out.send(b"timer " + str(message).encode())

    @override
    def on_down(self, down: Down) -> None:
        self.out.send(f"down {down.ref_name} {down.pid} {down.reason}".encode())

    @override
    def on_stop(self) -> None:
        self.out.send(b"batches " + str(sorted(self.batches)).encode())


class Listener(Actor):
    """Listens to a pipe."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.read, self.write = os.pipe()
        self.listen(self.read, self.on_readable)

    def on_readable(self) -> None:
        self.got.append(os.read(self.read, 100))
        if len(self.got) == 2:
            self.unlisten(self.read)

    @override
    def receive(self, message: object) -> object:
        match message:
            case bytes():
                os.write(self.write, message)
            case "got":
                return self.got
        return None


class Forever(Actor):
    """Never gets anywhere."""

    def __init__(self, where: str) -> None:
        self.where = where
        if where == "init":
            time.sleep(3600)

    @override
    def receive(self, message: object) -> object:
        if self.where == "receive":
            time.sleep(3600)
        return None

    @override
    def on_stop(self) -> None:
        if self.where == "stop":
            time.sleep(3600)


class Nobody(Counter):
    """Gives up its privileges."""

    @override
    def on_start(self) -> None:
        os.setgid(65534)
        os.setuid(65534)

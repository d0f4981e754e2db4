"""The whole queue in one thread: one seed decides who takes the next step, and who dies, stops or loses power when.

    uv run python -m tests.faults.simulation --seeds 200000 [--first 0] [--workers 2] [--json] [--plant NAME]

The real classes run on a simulated kernel (kernel.py): the brokers, their loops, consumers, sessions, publishers, the
host's lock, compaction at rest and in use. What the supervisor does is done here, by its rules: it starts the brokers
in order, starts again who dies, tells the Registry how a consumer ended, and takes all with it when it dies itself.
Some consumers may have joined from another tree: the host dies or leaves, they go on with the brokers of the next one.

Each seed has a workload and a mix of faults of its own. It has two phases: first anything may happen, and whatever does
must break no promise (referee.py); then faults stop, and everything must come to its end. A third of the seeds lives
without the safety net of repetition after silence: there, each loss must be announced.
"""

from __future__ import annotations

import argparse
import errno
import gc
import itertools
import json
import logging
import random
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import actorq.actors.loop
import actorq.brokered_publisher
import actorq.brokers.consumer_broker
import actorq.brokers.post
import actorq.brokers.publisher_broker
import actorq.brokers.session
import actorq.consumer
import actorq.publisher
import actorq.queue
import actorq.store.log_writer  # noqa: F401  its constants are set by name
from actorq.actors import Down, ExitKind, Mailbox, PacketSocket
from actorq.actors.child import run_actor
from actorq.actors.exits import ExitReason
from actorq.actors.linux import boot_id
from actorq.actors.loop import Loop
from actorq.actors.mailbox import DOWN, STOP
from actorq.attachments import attach, attachment_of, detach
from actorq.brokered_publisher import BrokeredPublisher
from actorq.brokers.compactor import Compactor
from actorq.brokers.consumer_broker import ConsumerBroker
from actorq.brokers.publisher_broker import PublisherBroker
from actorq.brokers.registry import Registry
from actorq.brokers.router import Router
from actorq.brokers.session import Brokers
from actorq.brokers.upkeep import Upkeep
from actorq.consumer import Consumer
from actorq.direct_publisher import DirectPublisher
from actorq.errors import (
    ActorStoppedError,
    CorruptQueueError,
    DiskFullError,
    InvalidTransitionError,
    NoHandlerError,
    PublishError,
    PublishRejectedError,
    PublishUnknownError,
    QueueLockedError,
    QueuePausedError,
    SteeringUnknownError,
    SyncFailedError,
    TaskNotFoundError,
)
from actorq.hosting import BROKER_NAMES
from actorq.publisher import Chunk, ids_of
from actorq.queue import Queue
from actorq.store.compaction import compact
from actorq.store.locks import HostLock, WriterLock
from actorq.tasks.policy import Policy
from tests.faults.kernel import PATH, End, Kernel, Killed, Process, boot, installed
from tests.faults.plants import PLANTS
from tests.faults.referee import Referee, ViolationError
from tests.long_run import spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from actorq.brokers.channels import Channels

QUEUE = Path(PATH)
NAMES = ("a", "b", "c")
CALM_SECONDS = 300.0
"""Of virtual time, from the last fault on: until then everything must have come to its end."""
MAX_CALLS = 400_000
SEEDS_THAT_STEER = {0, 2, 5}
"""Of eight. The others live as they did before anybody could steer, so that each tells what it has told."""
SEEDS_THAT_JOIN = {2, 9, 10, 15}
"""Of sixteen. In these some consumers live in a tree of their own, which has joined the queue and outlives its host."""
SUPERVISOR_OF_CREW = "supervisor-joined"
NEVER = 1 << 60
NO_NET = 1e5
"""Repetition after silence, where there must be no need of it: later than any seed lasts."""


@dataclass
class Options:
    """What one seed is about."""

    durability: str
    consumers: list[list[str] | None]
    """Their names; None takes every one."""
    publishers: list[int]
    """How many tasks each has."""
    max_attempts: int
    max_crashes: int
    mailboxes: dict[str, int]
    has_net: bool
    calls_of_faults: int
    """How many system calls the phase of faults lasts."""
    calls_to_fault: float
    calls_to_turn: float
    faults: list[str]
    """Those that this seed knows, often ones several times."""
    constants: list[tuple[str, str, Any]]
    """Sizes and times that this seed sets: module, name, value."""
    handlers: list[str]
    upkeep: Upkeep
    steers: int = 0
    """How often somebody retries, cancels, purges, pauses or resumes."""
    joined: int = 0
    """How many of the consumers, the last ones, live in a tree that has joined."""

    @classmethod
    def draw(cls, chance: random.Random) -> Options:
        """Choose: few things at a time, and not always the same ones."""
        size = chance.choice([1, 1, 4 << 10, 64 << 10, 4 << 20])
        has_net = size < 64 << 10 or chance.random() < 0.4
        consumers = [
            None if chance.random() < 0.6 else sorted(chance.sample(NAMES, chance.randint(1, 2)))
            for _ in range(chance.choice([1, 1, 2, 2, 3]))
        ]
        kinds = ["broker"] * 4 + ["consumer"] * 2 + ["self", "self", "publisher", "supervisor", "host", "power"]
        kinds += ["stop", "stop", "slow", "torn", "sync", "eio", "full", "retire"]
        faults = [kind for kind in kinds if chance.random() < 0.6] or ["self"]
        # Sometimes brokers alone die, and all the time: only then are two schedulers in a row hit as they begin.
        is_storm = chance.random() < 0.15
        constants: list[tuple[str, str, Any]] = [
            ("store.log_writer", "FIRST_FILLER_STEP", chance.choice([512, 4096, 16384])),
        ]
        window = chance.choice([1, 2, 3, 16])
        constants += [(module, "WINDOW", window) for module in ("brokered_publisher", "direct_publisher")]
        if chance.random() < 0.5:
            constants.append(("brokers.publisher_broker", "CHECKPOINT_BYTES", chance.choice([1, 1000, 4000])))
        if chance.random() < 0.3:
            constants.append(("brokers.publisher_broker", "MAX_BATCH_BYTES", chance.choice([1, 300])))
        if chance.random() < 0.3:
            constants.append(("actors.loop", "BATCH_MESSAGES", chance.choice([1, 2, 5])))
        if chance.random() < 0.2:
            constants.append(("consumer", "MAX_REPORT_BYTES", 1))
        if chance.random() < 0.2:
            constants.append(("brokers.consumer_broker", "MAX_ASSIGNMENT_BYTES", 100))
        if chance.random() < 0.5:
            constants.append(("store.snapshot", "PIECE_BYTES", chance.choice([1, 500, 2000])))
        if chance.random() < 0.5:
            constants.append(("store.compaction", "CLOSE_ENOUGH", chance.choice([0, 500])))
        if not has_net:
            places = ("brokers.session", "consumer", "brokered_publisher")
            constants += [(module, "REPEAT_SECONDS", NO_NET) for module in places]
        handlers = ["quick"] * 6 + [
            "short",
            "short",
            "long",
            "raise",
            "result",
            "exit",
            "die",
            "publish",
            "bad",
            "close",
        ]
        return cls(
            durability="power" if chance.random() < 0.8 else "process",
            consumers=consumers,
            publishers=[chance.randint(1, 6) for _ in range(chance.choice([1, 1, 2, 3]))],
            max_attempts=chance.randint(1, 3),
            max_crashes=chance.randint(1, 3),
            mailboxes={name: size if chance.random() < 0.8 else 4 << 20 for name in BROKER_NAMES},
            has_net=has_net,
            calls_of_faults=3000 if is_storm else chance.choice([300, 1000, 3000]),
            calls_to_fault=25 if is_storm else chance.choice([25, 60, 150, 400]),
            calls_to_turn=chance.choice([3, 10, 40]),
            faults=["broker"] if is_storm else faults,
            constants=constants,
            handlers=[kind for kind in handlers if chance.random() < 0.6] or ["quick"],
            upkeep=Upkeep(
                chance.choice([0, 1, None]), chance.choice([1500, 3000, 6000, NEVER]), chance.choice([0.01, 0.3])
            ),
        )


@dataclass
class Totals:
    """What a run came to."""

    seeds: int = 0
    calls: int = 0
    kills: int = 0
    stops: int = 0
    power_cuts: int = 0
    failed_syncs: int = 0
    full_disks: int = 0
    compactions: int = 0
    switches: int = 0
    tasks: int = 0
    acknowledged: int = 0
    executions: int = 0
    joined_executions: int = 0
    """Those of consumers that have joined."""
    steered: int = 0
    seconds: float = 0.0
    virtual_seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Count these in."""
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


class Silent:
    """In the place of the channel by which a child tells its supervisor how it is."""

    def __init__(self):
        self.words = ""

    def last_words(self, text):
        self.words = text


class Child:
    """What the supervisor keeps running under a name."""

    def __init__(self, name):
        self.name = name
        self.process: Process | None = None
        self.actor: Any = None
        self.token = b""
        self.has_started = False
        self.is_wanted = True
        self.deaths_in_a_row = 0

    @property
    def is_up(self):
        return self.has_started and self.process is not None and self.process.is_alive

    @property
    def is_consumer(self):
        return self.name.startswith("consumer-") and self.name != "consumer-broker"


class Tree:
    """What a process runs: mailboxes, a supervisor, its children. Of who has joined these are consumers only."""

    def __init__(self, host, *, has_joined=False):
        self.host = host
        self.has_joined = has_joined
        self.boxes: list[Mailbox] = []  # kept: who drops them closes them
        self.ends: dict[str, tuple[End, End]] = {}
        self.supervisor: Process | None = None
        self.children: list[Child] = []
        self.is_leaving = False


class Client:
    """A publisher: what it has still to publish, through all its incarnations."""

    def __init__(self, name, left):
        self.name = name
        self.left = left
        self.process: Process | None = None


def fds_of(channels: Channels) -> int:
    """Return how many descriptors came with the clients."""
    return sum(1 + len(client.other_fds) for client in channels)


def sessions_of(broker: Router | Registry | PublisherBroker) -> list[str]:
    """Return whose channels a broker has."""
    if isinstance(broker, Registry):
        return [session for session, client in broker._clients.items() if client.channel is not None]
    return [client.attach.session for client in broker._channels]


class World:
    """One seed."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)
        self.options = Options.draw(self.chance)
        if seed % 8 in SEEDS_THAT_STEER:
            self.options.steers = self.chance.choice([3, 10, 30])
        if seed % 16 in SEEDS_THAT_JOIN:
            self.options.joined = self.chance.randint(1, len(self.options.consumers))
        self.kernel = Kernel(self.chance)
        self.referee = Referee(self.kernel, self.options.durability)
        self.totals = Totals(seeds=1)
        self.policy = Policy(self.options.max_attempts, self.options.max_crashes)
        self.clients = [Client(f"publisher-{n}", left) for n, left in enumerate(self.options.publishers, start=1)]
        self.steers_left = self.options.steers
        self.may_be_paused: set[str | None] = set()
        self.were_paused: set[str | None] = set()
        """Ever: a power cut may take the end of a pause that was acknowledged, unless each is synced."""
        self.steerer: Process | None = None
        self.tree: Tree | None = None
        self.host: Process | None = None
        self.crew: Tree | None = None
        self.joined: Process | None = None
        self.drops_after: Process | None = None
        """The writer that has seen a sync fail and ends all others, before the disk shows what it has lost.

        Who has joined and registered in commits that are lost is not found, if the disk shows that earlier and this
        writer dies as well (README, "Limits and weaknesses"). It may run what others run, too, until it hears that it
        is not known any more; then the referee is lenient.
        """
        self.is_calm = False
        self.calm_since = 0.0
        self.stage = "working"
        self.next_fault = self._calls_to(self.options.calls_to_fault)
        self.sync_error: OSError | None = None
        self.full_until = 0.0
        self.is_torn = self.is_failing = self.is_killing = False
        self.had_disk_fault = False
        self.closers: set[Process] = set()  # consumers whose handler has closed all their fds
        kernel = self.kernel
        kernel.on_event = self._on_event
        kernel.on_idle = self._on_idle
        kernel.standing = self._standing
        kernel.on_write = self._on_write
        kernel.write_fault = self._write_fault
        kernel.sync_fault = self._sync_fault

    def run(self) -> None:
        """Live through both phases. Raises ViolationError, or whatever a broken queue ran into."""
        boot(self.kernel)
        with constants_set([*self.options.constants, ("consumer", "find_brokers", self._knock)]):
            self._start_host()
            self._start_crew()
            for client in self.clients:
                self._start_client(client)
            self._start_steerer()
            self._plan_event()
            try:
                self.kernel.run()
            finally:
                self.kernel.on_event = lambda process, name: None
                self.kernel.next_event = NEVER
                for process in list(self.kernel.processes.values()):
                    process.on_end = lambda process: None
                for process in list(self.kernel.processes.values()):
                    if process.is_alive:
                        self.kernel.kill(process)
        self.totals.calls = self.kernel.calls
        self.totals.tasks = self.referee.tasks
        self.totals.switches = self.referee.switches
        self.totals.acknowledged = len(self.referee.acknowledged)
        executions = [each for several in self.referee.executions.values() for each in several]
        self.totals.executions = len(executions)
        self.totals.joined_executions = sum(
            each.process.parent is not None and each.process.parent.name == SUPERVISOR_OF_CREW for each in executions
        )
        self.totals.virtual_seconds = self.kernel.now - 1000.0

    # -- chance

    def _calls_to(self, mean):
        return self.kernel.calls + 1 + int(self.chance.expovariate(1 / mean))

    def _plan_event(self):
        self.next_turn = self._calls_to(self.options.calls_to_turn)
        self.kernel.next_event = min(self.next_turn, self.next_fault)

    def _on_event(self, process: Process, name: str) -> None:
        kernel = self.kernel
        if kernel.calls > MAX_CALLS:
            kernel.fail(ViolationError(f"no end: {self._standing()}"))
        if not self.is_calm and kernel.calls > self.options.calls_of_faults:
            self._calm_down()
        try:
            if kernel.calls >= self.next_fault and not self.is_calm and not self._is_marking(process):
                self.next_fault = self._calls_to(self.options.calls_to_fault)
                self._fault(self.chance.choice(self.options.faults), process, name)
        except ViolationError as error:
            kernel.fail(error)
        turn = kernel.calls >= self.next_turn
        self._plan_event()
        if turn and process.is_alive:
            kernel.pass_on()

    def _fault(self, kind: str, process: Process, name: str) -> None:
        kernel = self.kernel
        kernel.note(f"fault {kind} at {name} of {process}")
        match kind:
            case "self":
                self._kill(process)
            case "torn":
                self.is_torn = True  # whoever writes next dies in the middle of it
            case "broker" | "consumer" | "publisher" | "supervisor" | "host":
                wanted = BROKER_NAMES if kind == "broker" else (kind,)
                victims = [
                    each
                    for each in kernel.processes.values()
                    if each.name in wanted or (each.name.startswith(kind) and each.name not in BROKER_NAMES)
                ]
                if victims:
                    self._kill(self.chance.choice(victims))
            case "stop":
                victim = self.chance.choice(list(kernel.processes.values()))
                self.totals.stops += 1
                seconds = self.chance.expovariate(1 / self.chance.choice([0.01, 0.3, 3.0]))
                kernel.after(seconds, lambda: kernel.proceed(victim))
                kernel.stop(victim)
            case "slow":
                kernel.now += self.chance.expovariate(1 / 0.05)
            case "eio":
                self.is_failing = True  # the next write
            case "sync":
                self.sync_error = OSError(self.chance.choice([errno.EIO, errno.ENOSPC]), "the disk fails")
            case "full":
                self.totals.full_disks += 1
                self.full_until = kernel.now + self.chance.expovariate(1 / 0.3)
            case "power":
                self._cut_power()
            case "retire":
                self._retire(self.tree)

    def _is_marking(self, process: Process) -> bool:
        """Tell whether somebody has seen a sync fail and is about to leave the mark, and the writer to end all others.

        Killed in between, he would take with him what nobody else can know: to the next one the disk says that all is
        well. That is the one moment at which a failing disk and a kill together may lose what was acknowledged.
        """
        return self.referee.unmarked is not None and self.referee.unmarked.is_alive

    def _kill(self, victim: Process) -> None:
        self.totals.kills += 1
        self.is_killing = True
        self.kernel.kill(victim)
        self.is_killing = False

    def _on_write(self, what: str, inode: int) -> None:
        try:
            self.referee.on_write(what, inode)
        except Exception as error:  # noqa: BLE001  the process is not to blame
            self._report(error)
        if what == "sync failed" and self.chance.random() < 0.5:
            if self.options.joined and self.chance.random() < 0.5:
                self.drops_after = self.kernel.current
            else:
                self.referee.is_lenient = self.options.joined > 0
                self._later(0.001, self._drop_caches)

    def _drop_caches(self) -> None:
        """Let reading show what the disk holds: after a failed sync less than what was written."""
        self.kernel.note("caches dropped")
        self.kernel.disk.drop_caches()
        self.referee.caches_are_dropped()

    def _write_fault(self, size: int, room: int) -> tuple[int, BaseException] | None:
        """Return how many bytes are taken, and what happens then. `room`: so many overwrite what the file has."""
        if self.is_torn:
            self.is_torn = False
            self.totals.kills += 1
            return self.chance.randint(0, size), Killed()
        if self.is_failing:
            self.is_failing = False
            self.had_disk_fault = True
            return self.chance.randint(0, size - 1), OSError(errno.EIO, "the disk fails")
        if self.kernel.now < self.full_until and size > room:
            self.had_disk_fault = True
            return self.chance.randint(max(0, room), size - 1), OSError(errno.ENOSPC, "no room")
        return None

    def _sync_fault(self) -> BaseException | None:
        error, self.sync_error = self.sync_error, None
        if error is not None:
            self.had_disk_fault = True
            self.totals.failed_syncs += 1
        return error

    def _cut_power(self) -> None:
        self.totals.power_cuts += 1
        kernel = self.kernel
        disk = kernel.disk.after_power_cut(self.chance)
        kernel.cut_power(disk)
        self.referee.power_is_cut()
        self.tree = self.host = self.crew = self.joined = None
        self.is_torn = self.is_failing = False
        self.full_until = 0.0
        for client in self.clients:
            self._later(0.1, self._start_client, client)
        self._later(0.1, self._start_host)
        self._later(0.1, self._start_crew)
        if self.options.durability == "process":
            self.may_be_paused |= self.were_paused
        self._later(0.1, self._start_steerer)

    def _calm_down(self) -> None:
        kernel = self.kernel
        kernel.note("calm")
        self.is_calm = True
        self.calm_since = kernel.now
        self.next_fault = NEVER
        self.sync_error = None
        self.full_until = 0.0
        self.is_torn = self.is_failing = False
        for process in list(kernel.processes.values()):
            kernel.proceed(process)

    def _later(self, mean, action, *arguments):
        boots = self.kernel.boots
        self.kernel.after(
            self.chance.expovariate(1 / mean), lambda: action(*arguments) if self.kernel.boots == boots else None
        )

    # -- the host

    def _start_host(self) -> None:
        if self.host is not None or self.stage == "leaving":
            return
        self.host = self.kernel.spawn("host", self._be_host)
        self.host.on_end = self._host_ended

    def _be_host(self) -> None:
        lock = HostLock(QUEUE)
        try:
            lock.acquire(timeout=2.0)
        except QueueLockedError:
            return
        lock.write_owner({"pid": 1})
        ours, _ = self._consumers()
        self.tree = self._new_tree([*BROKER_NAMES, *ours])
        self._run(self.tree)

    def _consumers(self) -> tuple[list[str], list[str]]:
        """Return the names of the host's consumers, and of those that have joined."""
        names = [f"consumer-{number}" for number in range(1, len(self.options.consumers) + 1)]
        first = len(names) - self.options.joined
        return names[:first], names[first:]

    def _new_tree(self, names: list[str], *, has_joined: bool = False) -> Tree:
        tree = Tree(self.kernel.current, has_joined=has_joined)
        for name in names:
            box = Mailbox(self.options.mailboxes.get(name, 4 << 20), name)
            tree.ends[box.name] = self._end_of(box.reader), self._end_of(box.writer)
            tree.children.append(Child(box.name))
            tree.boxes.append(box)
        return tree

    def _run(self, tree: Tree) -> None:
        self._start_supervisor(tree)
        while True:
            self.kernel.block([], None)

    def _end_of(self, socket: Any) -> Any:
        return self.kernel.at(socket.fileno())

    def _host_ended(self, host: Process) -> None:
        self.host = None
        if self.tree is not None and self.tree.host is host:
            self.tree = None
        if self.stage == "leaving":
            return
        if self.chance.random() < 0.3:
            self._later(0.05, self._start_compactor)
        self._later(0.2, self._start_host)

    # -- who has joined

    def _start_crew(self) -> None:
        if self.options.joined and self.joined is None and self.stage in {"working", "asking"}:
            self.joined = self.kernel.spawn("host-joined", self._be_joined)
            self.joined.on_end = self._joined_ended

    def _be_joined(self) -> None:
        _, theirs = self._consumers()
        self.crew = self._new_tree(theirs, has_joined=True)
        self._run(self.crew)

    def _joined_ended(self, process: Process) -> None:
        del process
        self.joined = self.crew = None
        self._later(0.2, self._start_crew)

    def _knock(self, path: Any) -> Brokers | None:
        """Let a consumer that has joined in to the brokers of whoever hosts the queue: what the door is for."""
        del path
        self.kernel.call("knock")
        tree = self.tree
        if tree is None or not tree.host.is_alive:
            return None
        if not any(child.is_up for child in tree.children if child.name == "registry"):
            return None  # nobody answers
        return self._mailboxes_of(tree, self.kernel.current)

    def _trees(self) -> list[Tree]:
        return [tree for tree in (self.tree, self.crew) if tree is not None]

    def _start_compactor(self) -> None:
        process = self.kernel.spawn("compaction", self._compact)
        process.on_end = self._compactor_ended

    def _compact(self) -> None:
        try:
            with HostLock(QUEUE).acquire(0.01), WriterLock(QUEUE).acquire(0.01):
                keep = self.chance.choice([0, 1, None])
                compact(QUEUE, boot_id=boot_id(), pid=1, keep_done=keep)
                self.totals.compactions += 1
                self.kernel.note("compacted")
        except (QueueLockedError, FileNotFoundError):
            pass

    def _compactor_ended(self, process: Process) -> None:
        if process.error is not None and not self._is_excused(process.error):
            self.kernel.fail(process.error)

    def _is_excused(self, error: BaseException) -> bool:
        """Tell whether a disk that failed or was full explains it."""
        return self.had_disk_fault and isinstance(error, DiskFullError | SyncFailedError | OSError)

    # -- the supervisor

    def _start_supervisor(self, tree: Tree) -> None:
        if not tree.host.is_alive or tree.is_leaving:
            return
        kernel = self.kernel
        name = SUPERVISOR_OF_CREW if tree.has_joined else "supervisor"
        supervisor = tree.supervisor = kernel.spawn(name, None, tree.host)
        supervisor.on_end = lambda process: self._supervisor_ended(tree)
        for ends in tree.ends.values():
            for end in ends:
                kernel.install(supervisor, end)
        for child in tree.children:
            child.process = None
            child.has_started = False
        self._start_next(tree, supervisor)

    def _supervisor_ended(self, tree: Tree) -> None:
        if not self.is_killing and self.kernel.current is self.drops_after is not None:
            self._drop_caches()
        if tree.host.is_alive:
            self._later(0.02, self._host_leaves if tree.is_leaving else self._start_supervisor, tree)

    def _start_next(self, tree: Tree, supervisor: Process) -> None:
        """Start the children one after the other, each when the one before has started."""
        for child in tree.children:
            if child.process is None:
                self._start_child(tree, supervisor, child)
                return
            if not child.has_started:
                return

    def _start_child(self, tree: Tree, supervisor: Process, child: Child) -> None:
        if not supervisor.is_alive or not child.is_wanted or child.process is not None:
            return
        kernel = self.kernel
        child.token = self.chance.randbytes(8)
        fds: dict[str, int] = {}
        status = Silent()
        process = kernel.spawn(child.name, lambda: self._be_child(tree, child, fds, status), supervisor)
        child.process = process
        child.actor = None
        child.has_started = False
        fds["own"] = kernel.install(process, tree.ends[child.name][0])
        for name in () if tree.has_joined else BROKER_NAMES:
            fds[name] = kernel.install(process, tree.ends[name][1])
        process.on_end = lambda _: self._child_ended(tree, supervisor, child, process, status)

    def _be_child(self, tree: Tree, child: Child, fds: dict[str, int], status: Any) -> None:
        kernel = self.kernel
        process = kernel.current
        reader = PacketSocket(fds["own"])
        boxes = {name: Mailbox.of_ends(name, None, PacketSocket(fd)) for name, fd in fds.items() if name != "own"}
        writer, router, registry, scheduler, compactor = (boxes.get(name) for name in BROKER_NAMES)
        brokers = None if writer is None else Brokers(writer, scheduler, registry)  # type: ignore[arg-type]  # all or none
        cls: type[Any]
        arguments: tuple[Any, ...]
        options: dict[str, Any] = {}
        match child.name:
            case "publisher-broker":
                cls, arguments = PublisherBroker, (QUEUE, scheduler, router, registry, self.options.durability)
            case "router":
                cls, arguments = Router, (registry, scheduler)
            case "registry":
                cls, arguments = Registry, (writer, router)
            case "consumer-broker":
                cls, arguments = ConsumerBroker, (QUEUE, writer, router, compactor)
                options = {"upkeep": self.options.upkeep}
            case "compactor":
                cls, arguments = Compactor, (QUEUE, writer)
                options = {"keep_done": self.options.upkeep.keep_done}
            case name:
                names = self.options.consumers[int(name.removeprefix("consumer-")) - 1]
                handler = self._handler_of(child)
                handlers = dict.fromkeys(names or (), handler)
                default = handler if names is None else None
                cls, arguments = Consumer, (QUEUE, brokers, handlers, default, self.policy)
        loop = Loop(child.name, reader, lambda: None, child.token)
        actor = cls.__new__(cls)
        ref: Any = child
        actor.attach_to(loop, ref, status)
        actor.__init__(*arguments, **options)  # type: ignore[misc]  # as in child.py: it knows its name by now
        if child.is_consumer:
            self.referee.processes[process.pid, process.start] = process
        actor.on_start()
        child.actor = actor
        child.has_started = True
        if not tree.is_leaving and process.parent is not None and tree.supervisor is process.parent:
            self._start_next(tree, process.parent)
        process.status = run_actor(actor, loop, status)

    def _child_ended(self, tree: Tree, supervisor: Process, child: Child, process: Process, status: Any) -> None:
        kernel = self.kernel
        if child.is_consumer:
            self._remember_slot(child, process)
        has_crashed = process.status == 1
        if has_crashed and not self._may_crash(process, process.error, status.words):
            kernel.fail(process.error or ViolationError(f"{process} has crashed: {status.words}"))
        if not supervisor.is_alive:
            return
        self._later(0.003, self._supervise, tree, supervisor, child, process)

    def _supervise(self, tree: Tree, supervisor: Process, child: Child, process: Process) -> None:
        """Do as the supervisor does once it has heard that a child has ended."""
        if not supervisor.is_alive:
            return
        child.process = None
        if child.is_consumer:
            words = {0: ExitKind.NORMAL, 1: ExitKind.CRASH}
            kind = words.get(process.status or 0, ExitKind.KILLED) if child.is_wanted else ExitKind.SHUTDOWN
            down = Down(child.name, process.pid, ExitReason(kind, f"status {process.status}"))
            if not tree.has_joined:
                self._post(tree, supervisor, "registry", DOWN + down.encode())
            elif self.tree is not None:  # its delegate tells the brokers that there are; others do not miss it
                self._post(self.tree, tree.host, "registry", DOWN + down.encode())
        if tree.is_leaving:
            self._leave(tree)
            return
        child.deaths_in_a_row = child.deaths_in_a_row + 1 if process.status == 1 else 0
        delay = 0.0 if child.deaths_in_a_row <= 1 else 0.01 * 2 ** min(child.deaths_in_a_row, 7)
        self.kernel.after(delay, lambda: self._start_child(tree, supervisor, child))

    def _may_crash(self, process: Process, error: BaseException | None, words: str) -> bool:
        if process in self.closers:
            return True
        if error is not None and self._is_excused(error):
            return True
        return self.had_disk_fault and words.partition(":")[0].rpartition(".")[2] in {
            "DiskFullError",
            "SyncFailedError",
            "OSError",
        }

    def _remember_slot(self, child: Child, process: Process) -> None:
        if child.actor is not None:
            memory = child.actor._slot._memory.content
            number = int.from_bytes(memory[:8], sys.byteorder)
            text = f"{memory[8:20].decode()}-{number}" if number else ""
            self.referee.in_hand[process.pid, process.start] = text

    def _post(self, tree: Tree, sender: Process, name: str, data: bytes) -> None:
        """Send a packet in the name of a supervisor, or of who has joined, as soon as there is room."""
        if not sender.is_alive or name not in tree.ends:
            return
        end = tree.ends[name][1]
        if end.used >= end.capacity:
            self._later(0.002, self._post, tree, sender, name, data)
            return
        end.peer.queue.append((b"\0" + data, ()))
        end.used += len(data)
        self.kernel.news(end.peer)

    # -- stopping in order

    def _retire(self, tree: Tree | None) -> None:
        if tree is None or tree.is_leaving or not all(child.has_started for child in tree.children):
            return
        self.kernel.note(f"{tree.host} leaves")
        tree.is_leaving = True
        self._leave(tree)

    def _leave(self, tree: Tree) -> None:
        supervisor = tree.supervisor
        if supervisor is None or not supervisor.is_alive:
            self._host_leaves(tree)
            return
        up = [child for child in tree.children if child.process is not None]
        consumers = [child for child in up if child.is_consumer]
        for child in consumers or up[-1:]:
            if child.is_wanted:
                child.is_wanted = False
                assert child.process is not None
                self._post(tree, supervisor, child.name, STOP + child.token)
                process = child.process
                self.kernel.after(30.0, lambda process=process: self._kill_late(process))  # type: ignore[misc]
        if not up:
            self._host_leaves(tree)

    def _kill_late(self, process: Process) -> None:
        if process.is_alive:
            self.kernel.kill(process)

    def _host_leaves(self, tree: Tree) -> None:
        if tree.host.is_alive:
            self.kernel.kill(tree.host, 0)

    # -- handlers

    def _handler_of(self, child: Child) -> Any:
        return lambda task: self._handle(child.actor, task)

    def _handle(self, consumer: Consumer, task: Any) -> Any:
        kernel = self.kernel
        process = kernel.current
        kernel.call("handler")
        try:
            execution = self.referee.begin(process, consumer._session.id, task)
        except ViolationError as error:
            self._report(error)
            raise
        kernel.note(f"{process} runs {task.id}")
        kind = self.chance.choice(self.options.handlers)
        if self.is_calm and kind in {"die", "close"}:
            kind = "quick"
        match kind:
            case "short":
                kernel.sleep(self.chance.expovariate(1 / 0.002))
            case "long":
                for _ in range(self.chance.randint(1, 5)):
                    kernel.sleep(self.chance.expovariate(1 / 0.03))
                    self._stand_in(consumer)
            case "die":
                self._kill(process)
            case "close":
                # As a handler may that wants no fds of others: its process is alive, and the brokers see EOF.
                self.closers.add(process)
                for fd in list(process.table):
                    kernel.close_fd(process, fd)
                kernel.sleep(self.chance.expovariate(1 / 0.5))
            case "publish":
                self._publish_inside(process)
        kernel.call("handler")
        execution.ended = "failed" if kind in {"raise", "exit", "bad"} else "done"
        match kind:
            case "raise":
                raise ValueError("the handler raises")
            case "exit":
                raise SystemExit(1)
            case "bad":
                return {1, 2}
            case "result":
                return {"result": task.data["n"]}
        return None

    def _stand_in(self, consumer: Consumer) -> None:
        with consumer.lock:
            consumer.stand_in()

    def _publish_inside(self, process: Process) -> None:
        attachment = attachment_of(QUEUE)
        if attachment is None or attachment.brokers is None or self.referee.tasks > 60:
            return
        port = BrokeredPublisher(attachment.brokers)
        try:
            self._publish(port, 1)
        finally:
            port.close()

    # -- publishers

    def _start_client(self, client: Client) -> None:
        if client.process is None or not client.process.is_alive:
            client.process = self.kernel.spawn(client.name, lambda: self._be_client(client))
            client.process.on_end = lambda process: self._client_ended(client, process)

    def _client_ended(self, client: Client, process: Process) -> None:
        if process.error is not None and not self._is_excused(process.error):
            self.kernel.fail(process.error)
        if client.left:
            self._later(0.01, self._start_client, client)

    def _be_client(self, client: Client) -> None:
        port: BrokeredPublisher | DirectPublisher | None = None
        tree = None
        try:
            while client.left:
                if self.tree is not tree or port is None:
                    if port is not None:
                        port.close()
                    tree = self.tree
                    brokers = self._brokers_for(self.kernel.current)
                    port = DirectPublisher(QUEUE) if brokers is None else BrokeredPublisher(brokers)
                count = min(client.left, self.chance.randint(1, 4))
                client.left -= count  # those of an attempt that failed are not tried again: each payload is sent once
                self._publish(port, count)
                if self.chance.random() < 0.5:
                    self.kernel.sleep(self.chance.expovariate(1 / 0.02))
            if port is not None:
                port.close()
        finally:
            if isinstance(port, DirectPublisher):
                # A killed process closes nothing. It would do so here, in somebody else's name, at the next collection.
                port._leave.detach()

    def _brokers_for(self, process: Process) -> Brokers | None:
        """Hand a process the writing ends of the brokers' mailboxes, if there are any, as its attachment."""
        tree = self.tree
        if tree is None or not tree.host.is_alive or tree.is_leaving:
            detach(QUEUE)
            return None
        brokers = self._mailboxes_of(tree, process)
        attach(QUEUE, brokers)
        return brokers

    def _mailboxes_of(self, tree: Tree, process: Process) -> Brokers:
        ends = [tree.ends[name][1] for name in ("publisher-broker", "consumer-broker", "registry")]
        return Brokers(*[Mailbox.of_ends("", None, PacketSocket(self.kernel.install(process, end))) for end in ends])

    def _publish(self, port: Any, count: int) -> list[str]:
        """Publish some tasks in one call, and tell the referee what the publisher was told; return the ids."""
        name = self.chance.choice(NAMES)
        payloads = [self.referee.attempt(name) for _ in range(count)]
        cuts = sorted({0, count, *[self.chance.randint(0, count) for _ in range(2)]})
        chunks = [Chunk(payloads[begin:end]) for begin, end in itertools.pairwise(cuts)]
        timeout = self.chance.choice([0.05, 1.0, 30.0]) if not self.is_calm else 60.0
        if isinstance(port, DirectPublisher):
            timeout = min(timeout, 0.1)  # it looks whether the lock is free all that time
        is_calm = self.is_calm
        told: list[str] = []
        certain: list[bytes] = []
        try:
            told = ids_of(port.publish(chunks, name, timeout))
        except PublishRejectedError as error:
            self.kernel.note(f"told {error!r}")
            told = list(error.published)
            certain = payloads[len(told) : len(told) + 1]
        except PublishUnknownError as error:
            self.kernel.note(f"told {error!r}")
            told = list(error.published)
            if is_calm and timeout > 30 and self.stage == "asking":
                self._report(ViolationError(f"not answered within {timeout} s: {error}"))
        except PublishError as error:
            told = list(error.published)
        except (QueueLockedError, ActorStoppedError) as error:
            self.kernel.note(f"told {error!r}")
            certain = payloads[-1:]  # a direct publish may have committed some before
        self.kernel.call("told")
        try:
            for task, payload in zip(told, payloads, strict=False):
                self.referee.acknowledge(task, payload)
            for payload in certain:
                self.referee.refuse(payload)
        except ViolationError as error:
            self._report(error)
        return told

    def _report(self, error: Exception) -> None:
        """Stop here, in the process that saw it."""
        self.kernel.fail(error)
        self.kernel.pass_on()

    # -- who steers

    def _start_steerer(self) -> None:
        if self._has_to_steer() and (self.steerer is None or not self.steerer.is_alive):
            self.steerer = self.kernel.spawn("steerer", self._be_steerer)
            self.steerer.on_end = self._steerer_ended

    def _has_to_steer(self) -> bool:
        return self.steers_left > 0 or bool(self.may_be_paused)

    def _steerer_ended(self, process: Process) -> None:
        if process.error is not None and not self._is_excused(process.error):
            self.kernel.fail(process.error)
        self._later(0.05, self._start_steerer)

    def _be_steerer(self) -> None:
        """Steer so many times; at last let everything go on that may be paused."""
        queue = Queue(PATH)
        while self._has_to_steer():
            self.kernel.sleep(self.chance.expovariate(1 / 0.05))
            brokers = self._brokers_for(self.kernel.current)
            timeout = 60.0 if self.is_calm else self.chance.choice([0.05, 1.0, 30.0])
            if brokers is None:
                timeout = min(timeout, 0.1)  # it looks whether the lock is free all that time
            verb = self.chance.choice(["retry", "cancel", "cancel", "purge", "pause", "resume"])
            if self.steers_left <= 0:
                verb = "resume"
            self.steers_left -= 1
            if verb in {"pause", "resume"}:
                self._steer_name(queue, verb, timeout)
            else:
                self._steer_tasks(queue, verb, timeout)

    def _steer_name(self, queue: Queue, verb: str, timeout: float) -> None:
        paused = sorted(self.may_be_paused, key=str)
        name = self.chance.choice(paused if verb == "resume" and paused else [None, *NAMES])
        if verb == "pause":
            self.may_be_paused.add(name)
            self.were_paused.add(name)
        answer = self._try_to_steer(verb, name, {}, lambda: getattr(queue, verb)(name, timeout=timeout))
        if verb == "resume" and answer is not None:
            self.may_be_paused.discard(name)

    def _steer_tasks(self, queue: Queue, verb: str, timeout: float) -> None:
        self.referee.look()
        wanted = {"retry": {"dead"}, "cancel": {"ready", "running"}, "purge": {"done", "dead", "cancelled"}}[verb]
        known = [task for task, there in self.referee.naive.tasks.items() if there["state"] in wanted]
        tasks = self.chance.sample(known, min(len(known), self.chance.randint(1, 3)))
        asked = {task: len(self.referee.naive.tasks[task]["errors"]) for task in tasks}
        if tasks:
            self._try_to_steer(verb, None, asked, lambda: getattr(queue, verb)(*tasks, timeout=timeout))

    def _try_to_steer(self, verb: str, name: str | None, asked: dict[str, int], steer: Any) -> list[str] | None:
        """Steer, and tell the referee what was said; return it, or None if nothing was."""
        self.kernel.note(f"{verb} {name} {list(asked)}")
        try:
            answer: list[str] = steer() or []
        except (TaskNotFoundError, InvalidTransitionError, SteeringUnknownError) as error:
            self.kernel.note(f"told {error!r}")
            return None
        except (QueueLockedError, ActorStoppedError, PublishRejectedError) as error:
            self.kernel.note(f"told {error!r}")
            return None
        except CorruptQueueError as error:
            # Nobody has mended yet what a power cut or a failed sync has left, and whoever reads takes it for damage.
            self.kernel.note(f"told {error!r}")
            if not self.referee.is_in_doubt:
                raise
            return None
        self.kernel.call("told")
        self.totals.steered += 1
        try:
            self.referee.steered(verb, name, asked, answer)
        except ViolationError as error:
            self._report(error)
        return answer

    # -- the end

    def _children(self) -> list[Child]:
        return [child for tree in self._trees() for child in tree.children]

    def _handled(self) -> set[str] | None:
        if None in self.options.consumers:
            return None
        return {name for names in self.options.consumers for name in names or ()}

    def _is_settled(self) -> bool:
        children = self._children()
        if self.tree is None or self.tree.is_leaving or not all(child.is_up for child in children):
            return False
        if self.options.joined and self.crew is None and self.stage != "parting":
            return False
        if any(client.left for client in self.clients) or self._has_to_steer():
            return False
        if self.steerer is not None and self.steerer.is_alive:
            return False
        if any(client.process is not None and client.process.is_alive for client in self.clients):
            return False
        self.referee.look()
        naive = self.referee.naive
        sessions = {child.actor._session.id for child in children if child.is_consumer}
        # A session that was closed while nobody could note it is remembered until its process ends.
        alive = all(self._is_alive(session) for session in naive.publishers)
        return set(naive.consumers) == sessions and alive and not self.referee.unfinished(self._handled())

    def _is_alive(self, session: str) -> bool:
        pid, start = self.referee.roles[session]
        process = self.kernel.processes.get(pid)
        return process is not None and process.start == start

    def _standing(self) -> str:
        naive = self.referee.naive
        tasks = {
            task: (there["state"], there["holder"], there["name"])
            for task, there in naive.tasks.items()
            if there["state"] in {"ready", "running"}
        }
        children = [(child.process, child.has_started) for child in self._children()]
        clients = [(client.process, client.left) for client in self.clients]
        clients.append((self.steerer, self.steers_left))
        return (
            f"stage {self.stage}, host {self.host}, children {children}, clients {clients}, unfinished {tasks}, "
            f"consumers {list(naive.consumers)}, publishers {list(naive.publishers)}"
        )

    def _on_idle(self) -> None:
        kernel = self.kernel
        if not self.is_calm:
            if kernel.now > 1000.0 + CALM_SECONDS or not kernel.timers or self._is_settled():
                self._calm_down()
            else:
                return
        if kernel.now > self.calm_since + CALM_SECONDS:
            amiss = self._fds_amiss() if self.stage == "asking" else ""
            raise ViolationError(f"still not at its end: {self._standing()} {amiss}")
        match self.stage:
            case "working" if self._is_settled():
                self.stage = "asking"
                client = Client("publisher-last", 0)
                self.clients.append(client)
                client.process = kernel.spawn(client.name, self._ask_at_the_end)
                client.process.on_end = lambda process: self._client_ended(client, process)
            case "asking" | "parting" if self._is_settled():
                complaint = self._fds_amiss()
                if complaint:
                    if kernel.timers:
                        return  # those who have died may not be noticed by all yet
                    raise ViolationError(complaint)
                if self.crew is not None:
                    self.stage = "parting"
                    self._retire(self.crew)
                    return
                self.stage = "leaving"
                self._retire(self.tree)
            case "leaving" if not kernel.processes:
                state = self.referee.check_file()
                if state.consumers or state.publishers:
                    raise ViolationError(f"the log knows who is dead: {state.consumers} {state.publishers}")
                kernel.is_over = True

    def _ask_at_the_end(self) -> None:
        brokers = self._brokers_for(self.kernel.current)
        assert brokers is not None
        port = BrokeredPublisher(brokers)
        told = self._publish(port, 2)
        port.close()
        if len(told) != 2:
            self._report(ViolationError("the last publish was not acknowledged"))
        for _ in range(20):
            # While a tree starts anew, a join may hear that a name has no handler: its consumer is not back yet.
            with suppress(NoHandlerError):
                try:
                    Queue(PATH)._join_by_asking(self.kernel.now + CALM_SECONDS)
                    break
                except QueuePausedError as error:
                    if self.options.durability == "power":
                        raise
                    # A power cut has taken the end of a pause that was acknowledged, as it then may.
                    for name in error.names or (None,):
                        Queue(PATH).resume(name)
            self.kernel.sleep(0.1)
        if self.referee.unfinished(self._handled()):
            self._report(ViolationError(f"a join has ended: {self._standing()}"))

    def _fds_amiss(self) -> str:
        """Hold the fds of each broker against what it should have."""
        assert self.tree is not None
        live = sum(each.is_consumer for each in self._children())
        for child in self.tree.children[: len(BROKER_NAMES)]:
            assert child.process is not None
            expected = 1 + len(BROKER_NAMES) + 1  # its mailbox, the mailboxes of all, its epoll
            match child.actor:
                case Router():
                    expected += fds_of(child.actor._channels)
                case Registry():
                    expected += sum(len(client.fds()) for client in child.actor._clients.values())
                case PublisherBroker():
                    expected += 1 + fds_of(child.actor._channels)  # the lock
            files = 1 if isinstance(child.actor, PublisherBroker | ConsumerBroker) else 0
            if isinstance(child.actor, Router | Registry | PublisherBroker):
                # A session that was closed while nobody could note it is watched by pidfd until its process ends.
                known = [each for each in sessions_of(child.actor) if each not in self.referee.naive.publishers]
                if len(known) != live:
                    return f"{child.process} has channels to {known}, and {live} consumers live"
            if len(child.process.table) != expected or len(child.process.files) != files:
                return f"{child.process} has {child.process.table} {child.process.files}"
        return ""


@contextmanager
def constants_set(constants: list[tuple[str, str, Any]]) -> Iterator[None]:
    """Let constants of actorq be others for a while."""
    before = [(sys.modules[f"actorq.{module}"], name) for module, name, _ in constants]
    values = [getattr(module, name) for module, name in before]
    try:
        for (module, name), (_, _, value) in zip(before, constants, strict=True):
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in zip(before, values, strict=True):
            setattr(module, name, value)


# ---------------------------------------------------------------------------------------------------------------
# Running


@contextmanager
def simulated() -> Iterator[None]:
    """Prepare for many seeds: the kernel in its place, no logging, no collector that runs when it likes."""
    was_disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    had_gc = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        with installed():
            yield
    finally:
        logging.disable(was_disabled)
        gc.unfreeze()
        if had_gc:
            gc.enable()


class FailedSeedError(AssertionError):
    """A seed has found something."""

    def __init__(self, seed: int, world: World, error: BaseException):
        super().__init__(seed)
        self.seed = seed
        self.report = "\n".join(
            [*world.kernel.last, f"seed {seed}", f"{world.options}", f"{type(error).__name__}: {error}"]
        )

    def __str__(self):
        return self.report


def simulate(seed: int) -> World:
    """Run one seed, inside `simulated`. Raises FailedSeedError."""
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        raise FailedSeedError(seed, world, error) from error
    if seed % COLLECT_EVERY == 0:
        gc.collect()
    return world


COLLECT_EVERY = 50
PROGRESS_SECONDS = 10.0


def simulate_all(seeds: Iterable[int]) -> Totals:
    """Run these seeds. Raises FailedSeedError at the first that finds something."""
    totals = Totals()
    begun = time.monotonic()
    with simulated():
        for seed in seeds:
            totals.add(simulate(seed).totals)
    totals.seconds = time.monotonic() - begun
    return totals


def _simulate_block(block: tuple[range, str | None]) -> Totals | tuple[int, str]:
    """Do one worker's share; a process of its own."""
    seeds, plant = block
    try:
        if plant is None:
            return simulate_all(seeds)
        with PLANTS[plant]():
            return simulate_all(seeds)
    except FailedSeedError as failed:
        return failed.seed, failed.report


BLOCK = 100


def main(arguments: list[str] | None = None) -> int:
    """Run seeds until one finds something."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--workers", type=int, default=1, help="how many processes do it")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="break this on purpose, and see how soon it is found")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args(arguments)
    begun = shown = time.monotonic()
    beyond = options.first + options.seeds
    blocks = [
        (range(first, min(first + BLOCK, beyond)), options.plant) for first in range(options.first, beyond, BLOCK)
    ]
    totals = Totals()
    failed = None
    for result in spread(_simulate_block, blocks, options.workers):
        if isinstance(result, tuple):
            failed = result
            break
        totals.add(result)
        if time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            print(f"{totals.seeds} seeds, {totals.kills} kills, {shown - begun:.0f} s", file=sys.stderr)
    totals.seconds = time.monotonic() - begun
    summary = {key: round(value, 1) for key, value in asdict(totals).items()}
    if failed is not None:
        seed, report = failed
        print(report, file=sys.stderr)
        summary |= {"failed_seed": seed, "after_seeds": seed - options.first + 1}
    summary["plant"] = options.plant
    print(json.dumps(summary) if options.json else ", ".join(f"{key} {value}" for key, value in summary.items()))
    return 0 if failed is None else 1


if __name__ == "__main__":
    sys.exit(main())

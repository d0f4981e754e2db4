"""The brokers in one thread: one seed decides who takes the next small step, and who is killed between two of them.

The parts that decide (`Writing`, `SessionTable`, `Scheduler`, `QueueState`, `Requests`) and the messages are the real
ones. Around them stand mailboxes that survive their readers, channels that live as long as somebody holds them, and a
log in memory. What a process has in hand, or in an outbox, dies with it. There are no timers: every known loss must be
announced, so nothing may depend on the safety net below.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict, deque

import orjson

from actorq.brokers.consumer_broker import Scheduler
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    Attach,
    Barrier,
    Channel,
    Committed,
    Connect,
    Connected,
    Detach,
    Gap,
    Gone,
    Greeted,
    Hello,
    OutcomeKind,
    Publish,
    Push,
    Recall,
    RegistryStarted,
    Report,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.publisher_broker import Writing, fold_sessions
from actorq.brokers.requests import Requests
from actorq.consumer import Outcomes
from actorq.store.fold import QueueState
from actorq.store.format import Commit
from actorq.store.log_reader import Batch

TASKS = 14
ERROR = b'{"type":"E","message":"","traceback":""}'
MAX_CRASHES = 250


class ViolationError(AssertionError):
    """The protocol has broken a promise."""


class Pipe:
    """A channel: what was sent to a client, and whether anybody could still send."""

    def __init__(self):
        self.packets: deque[object] = deque()
        self.is_open = True  # at the client's end
        self.pid = 0
        self.slot = None

    def has_holder(self, world):
        holders = [world.brokers["registry"], world.brokers["router"]]
        if any(self is pipe for broker in holders for pipe in broker.pipes()):
            return True
        waiting = [*world.boxes["registry"], *world.boxes["router"]]
        return any(isinstance(item, tuple) and item[1] is self for item in waiting)


class World:
    """All processes, their mailboxes, and the file."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.trace = hashlib.sha256()
        self.now = 0.0
        self.file = b"head\n"
        self.batches = []
        self.boxes: dict[str, deque[object]] = {name: deque() for name in ("writer", "scheduler", "router", "registry")}
        self.sessions = 0
        self.pids = 0
        self.alive = set()
        self.deaths = 0
        self.running: Counter[str] = Counter()
        self.executions = defaultdict(list)  # task -> the consumers that began it
        self.failures: Counter[str] = Counter()
        self.acknowledged = set()
        self.last_no = defaultdict(int)  # by consumer; None once it is gone
        self.brokers = {}
        for name, kind in KINDS.items():
            self.brokers[name] = kind(self, name)
        self.clients = [PublisherProcess(self, TASKS) for _ in range(2)] + [ConsumerProcess(self) for _ in range(2)]

    def new_session(self):
        self.sessions += 1
        text = ""
        number = self.sessions
        for _ in range(12):
            number, digit = divmod(number, 26)
            text = chr(97 + digit) + text
        return text

    def append(self, lines):
        start = len(self.file)
        body = b"".join(lines)
        commit = Commit(len(self.batches) + 1, len(body), 1, len(self.batches), "2026-11-23T18:00:00.000Z", 0)
        self.file += body + b",commit\n"
        for line in body.splitlines():
            if line.startswith(b',{"assign":'):
                self.check_assignment(**orjson.loads(line[1:]))
            elif line.startswith(b',{"gone":'):
                self.last_no[orjson.loads(line[1:])["gone"]] = None
        self.batches.append(Batch(start, body, commit, len(self.file), piece=False))

    def check_assignment(self, *, assign, to, no, **_):
        """One is void only when its consumer is gone: a void one must not reach anybody."""
        last = self.last_no[to]
        if last is not None and no != last + 1:
            raise ViolationError(f"{assign} is given to {to} as number {no}, after {last}")
        if last is not None:
            self.last_no[to] = no

    def read(self, offset, length):
        return self.file[offset : offset + length]

    def fold(self):
        state = QueueState()
        for batch in self.batches:
            state.apply(batch)
        return state

    def kill(self, victim):
        self.deaths += 1
        if isinstance(victim, Broker):
            self.brokers[victim.name] = KINDS[victim.name](self, victim.name)
            return
        victim.die()
        place = self.clients.index(victim)
        self.clients[place] = type(victim)(self) if isinstance(victim, ConsumerProcess) else victim.successor()

    def run(self, faulty_steps, rate=0.02):
        """Run a phase with kills, then one without until nothing moves; check what must be true then."""
        steps = idle = 0
        while True:
            steps += 1
            self.now += 0.001
            everybody = [*self.brokers.values(), *self.clients]
            who = self.random.choice(everybody)
            if steps < faulty_steps and self.random.random() < rate:
                self.trace.update(f"kill {who}".encode())
                self.kill(who)
                continue
            moved = who.step()
            self.trace.update(f"{who} {moved}".encode())
            idle = 0 if moved else idle + 1
            if steps > faulty_steps and idle > 60 and not any(each.may_move() for each in everybody):
                break
            if steps > 40_000:
                raise ViolationError("no end")
        self.check()

    def check(self):
        state = self.fold()
        counts = state.counts()
        if counts["ready"] or counts["running"]:
            raise ViolationError(f"stuck: {counts}, {state.consumers}")
        for client in self.clients:
            if len(client.requests):
                raise ViolationError(f"{client} was never answered: {client.requests}")
        for task in self.acknowledged:
            if state.seq_of(task) is None:
                raise ViolationError(f"{task} was acknowledged and is lost")
        for task, who in self.executions.items():
            dead = sum(consumer.pid not in self.alive for consumer in who)
            if len(who) - 1 > dead + self.failures[task]:
                raise ViolationError(
                    f"{task} ran {len(who)} times, with {dead} deaths and {self.failures[task]} failures"
                )
        if set(state.consumers) != {client.session for client in self.clients if isinstance(client, ConsumerProcess)}:
            raise ViolationError(f"the log knows other consumers than there are: {state.consumers}")


class Process:
    """Something that takes small steps and may be killed between two. Its outboxes go one packet at a time."""

    def work(self):
        """Take a step; False when there is nothing to do."""
        raise NotImplementedError

    def has_work(self):
        """Whether there is something to do."""
        raise NotImplementedError

    def __init__(self, world):
        self.world = world
        self.out = defaultdict(deque)

    def send(self, box, item):
        self.out[box].append(item)

    def flush_one(self):
        boxes = [box for box, items in self.out.items() if items]
        if not boxes or self.world.random.random() < 0.2:
            return False
        box = self.world.random.choice(boxes)
        self.world.boxes[box].append(self.out[box].popleft())
        return True

    def step(self):
        return self.flush_one() or self.work()

    def may_move(self):
        return any(self.out.values()) or self.has_work()


class Broker(Process):
    """A broker: takes what waits into its hand in one step, and acts on it in the next."""

    def __init__(self, world, name):
        super().__init__(world)
        self.name = name
        self.hand = []

    def __repr__(self):
        return self.name

    def act(self, messages):
        """Do what follows from the messages in hand."""
        raise NotImplementedError

    def pipes(self):
        """Return the channels that die with this process."""
        return [item[1] for item in self.hand if isinstance(item, tuple)] + [
            item[1] for items in self.out.values() for item in items if isinstance(item, tuple)
        ]

    def has_work(self):
        return bool(self.hand or self.world.boxes[self.name])

    def work(self):
        box = self.world.boxes[self.name]
        if self.hand:
            self.act(self.hand)
            self.hand = []
            return True
        for _ in range(min(len(box), self.world.random.randint(1, 4))):
            self.hand.append(box.popleft())
        return bool(self.hand)

    def deliver(self, session, message):
        self.send("router", ("deliver", None, session, message))


class WriterProcess(Broker):
    """Mirrors PublisherBroker."""

    def __init__(self, world, name):
        super().__init__(world, name)
        self.writing = Writing(fold_sessions(world.batches))
        self.group = None
        self.announce()

    def announce(self):
        self.tell_registry()
        self.send("router", WriterStarted(1, []))
        self.send("scheduler", WriterStarted(1, []))

    def tell_registry(self):
        self.send("registry", WriterStarted(1, self.writing.sessions.roll()))

    def has_work(self):
        return self.group is not None or super().has_work()

    def work(self):
        if self.group is None:
            return super().work()
        group, self.group = self.group, None  # written before, and killed perhaps before anything was said
        for consumer, (entries, bodies) in group.pushes.items():
            self.deliver(consumer, Push(entries, b"".join(bodies)))
        for session, number in group.acknowledged.items():
            self.answer(session, Acknowledged(session, number))
        for session, message in group.answers:
            self.answer(session, message)
        if group.greeted:
            self.send("registry", Greeted(group.greeted))
        if group.lines:
            self.send("scheduler", Committed(1, 0))
        return True

    def act(self, messages):
        for message in messages:
            if isinstance(message, RegistryStarted):
                self.tell_registry()
            else:
                self.writing.accept(message)
        self.group = self.writing.take_group()
        if self.group.lines:
            self.world.append(self.group.lines)

    def answer(self, session, message):
        if session == self.writing.sessions.scheduler:
            self.send("scheduler", message)
        else:
            self.deliver(session, message)


class SchedulerProcess(Broker):
    """Mirrors ConsumerBroker."""

    def __init__(self, world, name):
        super().__init__(world, name)
        self.scheduler = Scheduler(world.new_session(), QueueState())
        self.batches = 0
        self.has_begun = False
        self.push_again = set()
        self.read_on()
        self.send("writer", self.keep(Barrier(self.scheduler.token)))

    def keep(self, message):
        return self.scheduler.requests.add(message).frame

    def read_on(self):
        for batch in self.world.batches[self.batches :]:
            self.scheduler.state.apply(batch)
        self.batches = len(self.world.batches)
        self.scheduler.catch_up(self.world.now)

    def act(self, messages):
        scheduler = self.scheduler
        for message in messages:
            match message:
                case Acknowledged(session, number) if session == scheduler.token:
                    scheduler.requests.acknowledge(number)
                case Gap(session, expected) if session == scheduler.token:
                    self.repeat(expected)
                case WriterStarted():
                    self.push_again.update(scheduler.state.consumers)
                    self.repeat(0)
                case Connected(session):
                    self.push_again.add(session)
        self.read_on()
        if not scheduler.is_ready:
            return
        if not self.has_begun:
            self.has_begun = True
            self.push_again.update(scheduler.state.consumers)
        for session in sorted(self.push_again):
            for push in scheduler.unfinished_pushes(session, self.world.read):
                self.deliver(session, push)
        self.push_again.clear()
        entries = []
        bodies = []
        for choice in scheduler.choose(self.world.now):
            entries.append(scheduler.entry_of(choice))
            bodies.append(self.world.read(*scheduler.state.span_of(choice.lo, choice.hi)))
        if entries:
            assign = Assign(scheduler.token, scheduler.requests.number + 1, entries, b"".join(bodies))
            self.send("writer", self.keep(assign))
        if self.world.random.random() < 0.1:
            for session in scheduler.recall(self.world.now):
                self.deliver(session, Recall())

    def repeat(self, number):
        for request in self.scheduler.requests.since(number):
            self.send("writer", request.frame)


class RouterProcess(Broker):
    """Mirrors Router."""

    def __init__(self, world, name):
        self.clients = {}
        super().__init__(world, name)
        self.send("registry", RouterStarted())

    def pipes(self):
        return [*super().pipes(), *(pipe for _, pipe in self.clients.values())]

    def act(self, messages):
        for message in messages:
            match message:
                case ("deliver", _, session, inner):
                    if session in self.clients:
                        self.clients[session][1].packets.append(inner)
                case (Attach() as attach, pipe):
                    self.clients[attach.session] = attach, pipe
                    pipe.packets.append(RouterStarted())
                    if attach.role == "consumer":
                        self.send("scheduler", Connected(attach.session))
                case Detach(session):
                    self.clients.pop(session, None)
                case WriterStarted():
                    for _, pipe in self.clients.values():
                        pipe.packets.append(message)
                case RegistryStarted():
                    for attach, pipe in self.clients.values():
                        self.send("registry", (Channel(attach.session, attach.role, attach.pid), pipe))


class RegistryProcess(Broker):
    """Mirrors Registry. A client is (role, pid, pipe or None)."""

    def __init__(self, world, name):
        self.clients = {}
        self.ended = {}
        super().__init__(world, name)
        self.send("router", RegistryStarted())
        self.send("writer", RegistryStarted())

    def pipes(self):
        return [*super().pipes(), *(pipe for _, _, pipe in self.clients.values() if pipe)]

    def find_ended(self):
        for session, (_role, pid, pipe) in self.clients.items():
            if pid not in self.world.alive or (pipe and not pipe.is_open):
                return session
        return None

    def has_work(self):
        return super().has_work() or self.find_ended() is not None

    def work(self):
        ended = self.find_ended()
        if ended is None or self.hand or self.world.random.random() < 0.5:
            return super().work()
        role, _pid, pipe = self.clients.pop(ended)
        task = pipe.slot[0] if pipe and role == "consumer" else ""
        self.ended[ended] = Gone(ended, "died", task)
        self.send("writer", self.ended[ended])
        self.send("router", Detach(ended))
        return True

    def act(self, messages):
        for message in messages:
            match message:
                case (Connect(session, role, pid), pipe):
                    self.clients[session] = role, pid, pipe
                    self.send("router", (Attach(session, role, pid), pipe))
                case RouterStarted():
                    for session, (role, pid, pipe) in self.clients.items():
                        if pipe:
                            self.send("router", (Attach(session, role, pid), pipe))
                case (Channel(session, role, pid), pipe):
                    if session not in self.clients or self.clients[session][2] is None:
                        self.clients[session] = role, pid, pipe
                case WriterStarted(_, sessions):
                    logged = {session for session, *_ in sessions}
                    self.ended = {session: gone for session, gone in self.ended.items() if session in logged}
                    for session, role, pid, *_ in sessions:
                        self.watch(session, role, pid)
                case Greeted(sessions):
                    for session, role, pid, *_ in sessions:
                        self.watch(session, role, pid)

    def watch(self, session, role, pid):
        if session in self.clients:
            return
        if session in self.ended:
            self.send("writer", self.ended[session])
        elif pid not in self.world.alive:
            self.send("writer", Gone(session, "found dead", ""))
        else:
            self.clients[session] = role, pid, None


KINDS = {"writer": WriterProcess, "router": RouterProcess, "registry": RegistryProcess, "scheduler": SchedulerProcess}


class ClientProcess(Process):
    """Mirrors Session: a channel, numbered requests, and their repetition."""

    role = ""

    def __init__(self, world):
        super().__init__(world)
        self.session = world.new_session()
        world.pids += 1
        self.pid = world.pids
        world.alive.add(self.pid)
        self.slot = [""]
        self.requests = Requests()
        self.keep(Hello(self.session, self.role, self.pid, 1, "boot", None, 3, MAX_CRASHES))
        self.connect()

    def __repr__(self):
        return f"{self.role} {self.session[-3:]}"

    def connect(self):
        self.pipe = Pipe()
        self.pipe.pid = self.pid
        self.pipe.slot = self.slot
        self.send("registry", (Connect(self.session, self.role, self.pid), self.pipe))

    def keep(self, message, count=1):
        # The whole message, where the real one is encoded.
        return self.requests.add(message, count).frame

    def request(self, message, count=1):
        self.send("writer", self.keep(message, count))

    def has_eof(self):
        in_outbox = any(item[1] is self.pipe for item in self.out["registry"])
        return not self.pipe.packets and not in_outbox and not self.pipe.has_holder(self.world)

    def listen(self):
        """Take one message; True when there was one."""
        if self.pipe.packets:
            self.hear(self.pipe.packets.popleft())
            return True
        if self.has_eof():
            self.connect()
            return True
        return False

    def has_more(self):
        """Whether there is something to do besides listening."""
        raise NotImplementedError

    def has_work(self):
        return bool(self.pipe.packets) or self.has_eof() or self.has_more()

    def hear(self, message):
        match message:
            case Acknowledged(_, number):
                self.requests.acknowledge(number)
            case Gap(_, expected):
                self.repeat(expected)
            case RouterStarted() | WriterStarted():
                self.repeat(0)

    def repeat(self, number):
        for request in self.requests.since(number):
            self.send("writer", request.frame)

    def die(self):
        self.world.alive.discard(self.pid)
        self.pipe.is_open = False


class PublisherProcess(ClientProcess):
    """Publishes in chunks, with a window of three."""

    role = "publisher"

    def __init__(self, world, left):
        self.left = left
        super().__init__(world)

    def successor(self):
        return PublisherProcess(self.world, self.left)

    def has_more(self):
        return self.left > 0 and len(self.requests) < 3

    def work(self):
        if self.listen():
            return True
        if not self.has_more() or self.requests.oldest == 0:
            return False
        first = self.requests.number + 1
        count = min(self.left, self.world.random.randint(1, 3))
        self.left -= count
        body = b"\n".join(b'{"n":%d}' % n for n in range(count))
        self.request(Publish(self.session, first, count, "work", body), count)
        return True

    def hear(self, message):
        super().hear(message)
        if isinstance(message, Acknowledged):
            self.world.acknowledged |= {f"{self.session}-{n}" for n in range(1, message.number + 1)}


class ConsumerProcess(ClientProcess):
    """Mirrors Consumer: takes assignments by number, runs them one by one, reports now and then."""

    role = "consumer"

    def __init__(self, world):
        super().__init__(world)
        self.last_no = 0
        self.early = {}
        self.tasks: deque[tuple[str, int, int]] = deque()
        self.current = None
        self.outcomes = Outcomes()

    def has_more(self):
        return bool(self.tasks or self.current or self.outcomes)

    def hear(self, message):
        super().hear(message)
        if isinstance(message, Push):
            self.take(message)
        elif isinstance(message, Recall):
            for task, no, _ in self.tasks:
                self.outcomes.add(task, no, OutcomeKind.RETURNED)
            self.tasks.clear()
            self.report()

    def take(self, push):
        at = 0
        for tasks, no, failures, _crashes, length in push.entries:
            if no > self.last_no:
                self.early[no] = tasks, failures, push.body[at : at + length]
            at += length
        while self.last_no + 1 in self.early:
            self.last_no += 1
            _, failures, lines = self.early.pop(self.last_no)
            for line in lines.splitlines():
                self.tasks.append((line[8 : line.index(b'"', 8)].decode(), self.last_no, failures))

    def report(self):
        if self.outcomes:
            outcomes, values = self.outcomes.take()
            self.request(Report(self.session, self.requests.number + 1, outcomes, b"\n".join(values)))

    def work(self):
        chance = self.world.random.random()
        if chance < 0.5 and self.listen():
            return True
        if self.current:
            if chance < 0.8:
                return True
            self.finish(*self.current)
            return True
        if self.outcomes and (not self.tasks or chance < 0.6):
            self.report()
            self.slot[0] = ""
            return True
        if self.tasks:
            self.begin()
            return True
        return self.listen()

    def begin(self):
        self.current = self.tasks.popleft()
        task = self.slot[0] = self.current[0]
        self.world.running[task] += 1
        self.world.executions[task].append(self)
        if self.world.running[task] > 1:
            raise ViolationError(f"two live executions of {task}")

    def finish(self, task, no, failures):
        self.current = None
        self.world.running[task] -= 1
        if self.world.random.random() < 0.1:
            self.world.failures[task] += 1
            self.outcomes.add(task, no, OutcomeKind.FAILED, "dead" if failures == 2 else "ready", ERROR)
        else:
            self.outcomes.add(task, no, OutcomeKind.DONE)

    def die(self):
        super().die()
        if self.current:
            self.world.running[self.current[0]] -= 1

"""ConsumerBroker: the scheduler. Gives ready tasks to consumers that wait.

It writes nothing. It folds the log, decides, and asks the writer to write each assignment, who passes it to the
Router; so an assignment reaches its consumer only after the log shows it. What it knows of tasks is what the log says,
plus the assignments that it has asked for and not yet read there.

A new incarnation begins with a barrier: a request that travels through the writer's mailbox. Once it reads its barrier
in the log, everything that its predecessor asked for is either in the log before it or will never be.

While nothing is ready, it lends the idle consumers to the writer, who hands a new task to one of them in the commit
that publishes it. Whoever is lent is ours to choose again as soon as the log shows something ready for him, for the
writer gives to nobody from that commit on; see `Scheduler.lendable` and `Writing`.

While nobody could take one more task, it says so, and the writer does not wake it for what is merely published.

Whoever wants to have tasks retried, cancelled or purged, or names paused, asks here, for nobody else knows what is
about to be handed out; see wishes.py.

`Scheduler` decides, without I/O, clock or randomness; `ConsumerBroker` around it reads, measures and sends.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.linux import keep_freed_memory
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    AwaitIdle,
    Barrier,
    Change,
    Committed,
    Compact,
    Connected,
    EventOwner,
    Gap,
    Idle,
    Lend,
    MalformedEventError,
    Pending,
    Push,
    Recall,
    Released,
    Sated,
    Steer,
    Switched,
    WriterStarted,
    encode,
)
from actorq.brokers.post import ENTRY_BYTES, KEPT_MEMORY_BYTES, Post, messages_in
from actorq.brokers.requests import Request, Requests
from actorq.brokers.upkeep import Patience, Upkeep
from actorq.brokers.waiting_queue import Seat, WaitingQueue
from actorq.brokers.wishes import Wishes
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import CorruptQueueError, FoldError, QueueReplacedError, UnsupportedFormatError
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader, require_queue
from actorq.store.spliced_log import Refolding, SplicedLog
from actorq.tasks.ids import IdRange, new_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from actorq.actors.mailbox import Mailbox
    from actorq.actors.packets import Packet
    from actorq.store.steering import Wish

logger = logging.getLogger("actorq")

ME = EventOwner.CONSUMER_BROKER

MAX_ASSIGNMENT_BYTES = 74 << 10
"""Task lines in one assignment: what fits into one packet on each of its hops, and as a rule all of one publish."""

RECALL_SECONDS = 0.04
"""A consumer that finishes nothing for so long, while another one idles, gives back what it has not begun.

So does one that, after that time, holds more than twice what it would get at the speed at which it works now.
"""

RETURN_SECONDS = 2.0
"""So long after the end of a consumer it may be replaced by one that takes the same names."""

REFOLD_SECONDS = 0.005
"""When the file was compacted, the new one is folded for so long at a time, ..."""

REST_SECONDS = 0.001
"""... and then for so long nothing is done but what else there is to do. One piece of a snapshot takes some 10 ms."""

type Read = "Callable[[int, int], bytes]"


class Choice(NamedTuple):
    """Give the tasks lo .. hi-1 to a consumer as its assignment `no`."""

    seat: Seat
    no: int
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class RefoldOn:
    """There is more to be folded of a file that was compacted."""


@dataclass(frozen=True, slots=True)
class LookAtSize:
    """We began, or asked for a compaction, a while ago."""


@dataclass(frozen=True, slots=True)
class LookForHoarders:
    """A consumer was idle a moment ago while another one held more than it ran."""


class Scheduler:
    """Who gets what. Knows the fold, and what it has asked for that the fold does not show yet."""

    def __init__(self, token: str, state: QueueState) -> None:
        self.token = token
        self.state = state
        self.requests = Requests()
        self.wishes = Wishes()
        self._seats: dict[str, Seat] = {}
        self._waiting = WaitingQueue()
        self._left: dict[frozenset[str] | None, float] = {}
        """Which names a consumer took that has ended, and when the last such one did."""
        self._requested: dict[str, dict[int, IdRange]] = {}
        """Per consumer: the assignments asked for and not in the log yet, number -> tasks."""

    def __repr__(self) -> str:
        return f"<Scheduler {self.state.counts()}, {len(self._seats)} consumers, {self._waiting}>"

    @property
    def is_ready(self) -> bool:
        """Whether the log shows our barrier: from then on nobody else assigns."""
        return self.state.scheduler == self.token

    @property
    def is_idle(self) -> bool:
        """Nothing ready, scheduled or running, and nothing on its way."""
        return self.state.pending_count == 0

    def stuck_names(self, now: float) -> list[str]:
        """Return the names that nobody handles, once nothing but their tasks is left."""
        if not self._seats or self.state.pending_count != self.state.ready_count:
            return []
        names = self.state.waiting_names().keys() - self.state.paused_names()
        since = now - RETURN_SECONDS  # whoever has ended a moment ago is replaced, as a rule
        taken = [seat.names for seat in self._seats.values()]
        taken += [left for left, at in self._left.items() if at > since]
        if any(some is None or not some.isdisjoint(names) for some in taken):
            return []
        return sorted(names)

    def keeping_back(self, now: float) -> list[str]:
        """Return the pauses that keep back tasks, "" being that of the whole queue, once nothing else can be done."""
        state = self.state
        names = state.paused_names()
        if not state.is_held_back and not (names and self.stuck_names(now)):
            return []
        return [""] if None in state.paused else sorted(names)

    def catch_up(self, now: float) -> None:
        """Follow the fold: consumers that came, went, or finished something."""
        consumers = self.state.consumers
        for session in [session for session in self._seats if session not in consumers]:
            self._left[self._seats.pop(session).names] = now
            self._requested.pop(session, None)
            self._waiting.leave(session)
        for session, consumer in consumers.items():
            seat = self._seats.get(session)
            if seat is None:
                seat = self._seats[session] = Seat(session, consumer.names, consumer.last_no + 1)
                self._requested[session] = {}
            # Before our barrier, a predecessor's assignments may still come in.
            seat.next_no = max(seat.next_no, consumer.last_no + 1)
            requested = self._requested[session]
            for no in [no for no in requested if no <= consumer.last_no]:
                del requested[no]
            held = consumer.outstanding + _count(requested)
            if held < seat.held:
                seat.moved = now
                if seat.is_recalled:
                    seat.is_recalled = False
                    seat.credit.shrink()
                else:
                    seat.credit.finished(seat.held - held, now, ran_dry=held == 0)
            elif held > seat.held:  # the writer has handed it out; see `lendable`
                if not seat.held:
                    seat.moved = now
                seat.credit.busy(now)
            seat.held = held
            self._waiting.join(seat)

    def choose(self, now: float) -> list[Choice]:
        """Give ready tasks to waiting consumers, in publish order, shared evenly when there are few."""
        choices: list[Choice] = []
        state = self.state
        if self.wishes.hold_up(state.scheduler_request):
            return []
        left = state.open_count - sum(map(_count, self._requested.values()))
        makes_progress = True
        while left > 0 and makes_progress:
            makes_progress = False
            served: list[Seat] = []
            # One round: each who waits gets a share, so that few tasks do not all go to the first.
            while left > 0 and (seat := self._waiting.take_first()):
                if not seat.room:
                    continue  # its credit has shrunk since it began to wait; it waits again once it has finished more
                if _is_slow(seat, now):
                    continue  # nothing is put behind what it runs that another one could begin
                served.append(seat)
                share = -(-left // (len(self._waiting) + 1))
                run = state.next_ready_run(seat.names, limit=min(seat.room, share))
                if run is None:
                    continue
                makes_progress = True
                lo, hi = self._cut(*run)
                state.reserve(lo, hi)
                choices.append(Choice(seat, seat.next_no, lo, hi))
                self._requested[seat.session][seat.next_no] = state.range_of(lo, hi)
                seat.next_no += 1
                if not seat.held:
                    seat.moved = now
                seat.held += hi - lo
                left -= hi - lo
                seat.credit.busy(now)
            for seat in served:
                self._waiting.join(seat)
        self._waiting.nothing_to_do()
        return choices

    def decide(self) -> list[tuple[Wish, list[IdRange]]]:
        """Decide on what was wished, once no assignment is on its way. Each is the writer's next request."""
        if any(self._requested.values()):
            return []
        return self.wishes.decide(self.state, self.requests.number + 1)

    def move_to(self, state: QueueState) -> None:
        """Go on with another fold of the same commits, in which the tasks have other places."""
        self.state = state
        for requested in self._requested.values():
            for tasks in requested.values():
                place = state.index.locate(tasks.session, tasks.first, tasks.last)
                if place is not None:
                    state.reserve(*place)

    def lendable(self) -> list[Seat]:
        """Return the idle consumers for whom nothing is ready, the longest waiting first: the writer may give to them.

        None while an assignment is on its way: if it is void, tasks become ready that the writer does not know of. So
        whenever `choose` has something for one of these, the log shows it, and the writer gives to nobody since then.
        None while anything is paused: the writer does not know what.
        """
        if any(self._requested.values()) or self.state.paused or self.wishes.hold_up(self.state.scheduler_request):
            return []
        return [seat for seat in self._waiting.idle() if not seat.is_recalled and self._has_nothing_for(seat)]

    def is_sated(self, now: float) -> bool:
        """Tell whether nobody could be given one more task, whatever its name, before he has finished something."""
        return all(not seat.room or _is_slow(seat, now) for seat in self._seats.values())

    def hoarders(self) -> list[Seat]:
        """Return the consumers that hold tasks behind the one they run, while an equal one has nothing to do.

        Or while these are paused.
        """
        idle = {seat.names for seat in self._waiting.idle() if self._has_nothing_for(seat)}
        return [
            seat
            for seat in self._seats.values()
            if seat.held > 1 and (seat.names in idle or self._holds_what_is_paused(seat))
        ]

    def _has_nothing_for(self, seat: Seat) -> bool:
        return self.state.next_ready_run(seat.names, limit=1) is None

    def _holds_what_is_paused(self, seat: Seat) -> bool:
        state = self.state
        return bool(state.paused) and any(
            state.is_paused(state.name_of(lo))
            for assignment in state.consumers[seat.session].assignments.values()
            for lo, _ in assignment.held
        )

    def recall(self, now: float) -> list[str]:
        """Return the hoarders whose tasks take longer than was thought, and expect them to give back the rest."""
        recalled = [
            seat
            for seat in self.hoarders()
            if now - seat.moved >= RECALL_SECONDS or (seat.has_slowed_down and not seat.is_recalled)
        ]
        for seat in recalled:
            seat.is_recalled = True
            seat.moved = now
        return [seat.session for seat in recalled]

    def _cut(self, lo: int, hi: int) -> tuple[int, int]:
        """Shorten a run to what one assignment may hold: so many bytes, and one attempt number for all."""
        state = self.state
        if state.attempts_in(lo, hi) is not None:
            return lo, lo + 1
        if state.span_of(lo, hi)[1] > MAX_ASSIGNMENT_BYTES:
            hi = state.index.fitting(lo, hi, MAX_ASSIGNMENT_BYTES)
        return lo, hi

    def entry_of(self, choice: Choice) -> list[object]:
        """Return the choice as an entry of an Assign."""
        _, length = self.state.span_of(choice.lo, choice.hi)
        tasks, no, failures, crashes, length = self._entry(choice.no, choice.lo, choice.hi, length)
        return [tasks, choice.seat.session, no, failures, crashes, length]

    def _entry(self, no: int, lo: int, hi: int, length: int) -> list[Any]:
        state = self.state
        return [str(state.range_of(lo, hi)), no, state.failures_of(lo), state.crashes_of(lo), length]

    def unfinished_pushes(self, session: str, read: Read) -> list[Push]:
        """Return everything that a consumer may not have got, to be pushed again; it takes each number once."""
        consumer = self.state.consumers.get(session)
        if consumer is None:
            return []
        pushes = []
        for no, assignment in sorted(consumer.assignments.items()):
            # A compaction may have cut the group in two since, and then their lines do not touch any more.
            parts = self.state.index.groups_in(assignment.lo, assignment.hi)
            lines = b"".join(read(*self.state.span_of(lo, hi)) for _, lo, hi in parts)
            pushes.append(Push([self._entry(no, assignment.lo, assignment.hi, len(lines))], lines))
        return pushes


def _is_slow(seat: Seat, now: float) -> bool:
    """Tell whether what a consumer runs takes long."""
    return seat.is_recalled or (seat.held > 0 and now - seat.moved >= RECALL_SECONDS)


def _count(requested: dict[int, IdRange]) -> int:
    return sum(tasks.count for tasks in requested.values())


class ConsumerBroker(Actor):
    """The actor around `Scheduler`: follows the log and sends what was decided."""

    frames = True
    hopeless = (CorruptQueueError, FoldError, QueueReplacedError, UnsupportedFormatError)

    def __init__(
        self,
        path: Path,
        writer: Mailbox,
        router: Mailbox,
        compactor: Mailbox,
        *,
        queue_id: str | None = None,
        is_limited: bool = False,
        upkeep: Upkeep = Upkeep(),  # noqa: B008  # a tuple
    ) -> None:
        self._path = path
        self._queue_id = queue_id
        self._is_limited = is_limited
        self._upkeep = upkeep
        self._patience = Patience(upkeep.wait)
        self._told: Pending | None = None
        self._lent: Lend | None = None
        self._published = -1
        """How many tasks there were when the writer last heard that we are sated."""
        self._clock = SYSTEM_CLOCK
        self._writer = Post(self, writer, ME)
        self._router = Post(self, router, ME)
        self._compactor = Post(self, compactor, ME)
        self._idle_waiters: dict[str, int] = {}
        self._look_is_due = False
        self._writer_epoch = 0
        self._push_again: set[str] = set()
        """Consumers that may have missed a push."""

    @override
    def on_start(self) -> None:
        keep_freed_memory(KEPT_MEMORY_BYTES)
        self._begin()

    def _begin(self) -> None:
        """Replay the log and send the barrier, behind which no earlier incarnation assigns."""
        self._has_begun = False
        require_queue(self._path, self._queue_id)
        self._log: LogReader | SplicedLog = LogReader(self._path)
        self._scheduler = Scheduler(new_session(), QueueState(weighs=True))
        self._refolding: Refolding | None = None
        self._old_requests = -1
        self._told = self._lent = None
        self._read_on()
        if failpoints.ARMED:
            failpoints.hit("scheduler.replayed")
        barrier = Barrier(self._scheduler.token, self._log.position.generation)
        self._send([self._scheduler.requests.add(encode(ME, barrier))])
        self.after(self._patience.began(self._clock.now()), LookAtSize())
        if failpoints.ARMED:
            failpoints.hit("scheduler.begun")

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        if failpoints.ARMED:
            failpoints.hit("scheduler.received")
        for message, _ in messages_in(frames):
            self._receive(message)
        # Whatever was said, what the log says comes first.
        self._read_on()
        if failpoints.ARMED:
            failpoints.hit("scheduler.up_to_date")
        if self._scheduler.is_ready:
            if not self._has_begun:
                # The predecessor may have died with something to push again in hand.
                self._has_begun = True
                self._push_again.update(self._scheduler.state.consumers)
            for session in sorted(self._push_again):  # so that the same messages are answered the same way
                if failpoints.ARMED:
                    failpoints.hit("scheduler.pushing_again")
                for push in self._scheduler.unfinished_pushes(session, self._log.read):
                    self._router.deliver(session, push)
            self._push_again.clear()
            self._answer_wishes()
            self._decide()
            self._assign()
            self._lend()
            self._say_if_sated()
            self._look_for_hoarders()
            self._look_at_size()
        if self._is_limited:
            self._tell_pending()
        self._tell_idle()
        self._router.flush()

    def _lend(self) -> None:
        """Let the writer give the next tasks to those who are idle, so that we are not on their way."""
        idle = [
            [seat.session, seat.next_no, None if seat.names is None else sorted(seat.names)]
            for seat in self._scheduler.lendable()
        ]
        lend = Lend(self._scheduler.token, self._log.generation, self._log.link.offset, idle)
        if idle and lend != self._lent:
            self._lent = lend
            self._writer.send(lend)
            if failpoints.ARMED:
                failpoints.hit("scheduler.lent")

    def _say_if_sated(self) -> None:
        """Spare us the news of what is merely published; while nothing is, that would be one message more."""
        scheduler, log = self._scheduler, self._log
        published = len(scheduler.state)
        if published != self._published and scheduler.is_sated(self._clock.now()):
            self._published = published
            self._writer.send(Sated(scheduler.token, log.generation, log.link.offset))

    def _tell_pending(self) -> None:
        """Tell the writer what is not finished; it cannot know, and keeps the limit."""
        state, log = self._scheduler.state, self._log
        pending = Pending(log.generation, log.commit, state.pending_count, state.pending_bytes)
        if pending != self._told:
            self._told = pending
            self._writer.send(pending)

    def _look_for_hoarders(self) -> None:
        if not self._look_is_due and self._scheduler.hoarders():
            self._look_is_due = True
            self.after(RECALL_SECONDS, LookForHoarders())

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case LookForHoarders():
                self._look_is_due = False
                self._read_on()  # the writer may have handed something out to whoever seems to be idle
                for session in self._scheduler.recall(self._clock.now()):
                    if failpoints.ARMED:
                        failpoints.hit("scheduler.recalling")
                    self._router.deliver(session, Recall())
                self._look_for_hoarders()
                self._router.flush()
            case RefoldOn():
                self._refold()
            case LookAtSize():
                self._look_at_size()

    def _receive(self, message: object) -> None:
        requests = self._scheduler.requests
        match message:
            case Committed():
                pass  # receive_frames reads on in any case
            case Acknowledged(session, number) if session == self._scheduler.token:
                requests.acknowledge(number)
            case Gap(session, expected) if session == self._scheduler.token:
                self._send(requests.since(expected))
            case WriterStarted(epoch, _):
                self._told = self._lent = None
                # The same one asks for what it had no room for. Nor has a second one of the same epoch lost a push: the
                # first has not written anything.
                if epoch != self._writer_epoch:
                    self._writer_epoch = epoch
                    self._push_again.update(self._scheduler.state.consumers)
                # It found reason to rewrite the file, or will not take what was asked for in view of an older one.
                if self._log.moved() or requests.oldest <= self._old_requests:
                    self._log.close()
                    self._begin()
                else:
                    self._send(requests.since())
            case Switched(generation, before, after):
                self._follow(generation, before, after)
            case Connected(session):
                self._push_again.add(session)
            case AwaitIdle(session, ticket):
                self._idle_waiters[session] = ticket
            case Steer():
                self._ask(message)
            case Acknowledged() | Gap():
                pass  # for an earlier incarnation
            case _:
                logger.error("message dropped: not for the scheduler: %r", message)

    def _read_on(self) -> None:
        for batch in self._log.batches():
            self._scheduler.state.apply(batch)
        self._scheduler.catch_up(self._clock.now())

    # -- when the file grows, and when a compacted one has taken its place

    def _look_at_size(self) -> None:
        """Ask for a compaction when it is due."""
        if self._log.position.offset < self._upkeep.min_bytes or self._refolding is not None or not self._has_begun:
            return
        state, now = self._scheduler.state, self._clock.now()
        if not self._patience.may_ask(now):
            return
        needed = state.needed_bytes(self._upkeep.keep_done)
        if self._upkeep.is_due(self._log.position.offset, needed):
            if failpoints.ARMED:
                failpoints.hit("scheduler.compacting")
            self._compactor.send(Compact(self._log.generation))
            self.after(self._patience.asked(now), LookAtSize())

    def _follow(self, generation: int, before: int, after: int) -> None:
        """Read on in a compacted file, with what was folded of the old one, and begin to fold the new one beside that.

        To fold it first would keep all consumers waiting, a second for a million tasks.
        """
        log = self._log
        if generation <= log.generation:
            return  # we have begun with that one
        self._read_on()
        new = LogReader(self._path)
        if not isinstance(log, LogReader) or new.generation != generation or log.position.offset != before:
            new.close()
            log.close()
            self._begin()
            return
        self._log = SplicedLog(log, new, after)
        self._refolding = Refolding(new, weighs=True)
        # What was asked for in view of the old file is taken by this writer, who knows that they say the same.
        self._old_requests = self._scheduler.requests.number
        self._patience.came()
        self.after(0, RefoldOn())
        if failpoints.ARMED:
            failpoints.hit("scheduler.following")

    def _refold(self) -> None:
        refolding = self._refolding
        if refolding is None:
            return  # we have begun anew meanwhile
        end = self._clock.now() + REFOLD_SECONDS
        while self._clock.now() < end:
            if not refolding.step():
                self._swap(refolding)
                return
        self.after(REST_SECONDS, RefoldOn())

    def _swap(self, refolding: Refolding) -> None:
        """The new file is folded up to its last commit, or nearly: go on with that, and let go of the old one."""
        self._read_on()
        refolding.reach(self._log.commit)
        if failpoints.ARMED:
            failpoints.hit("scheduler.swapping")
        assert isinstance(self._log, SplicedLog)
        self._scheduler.move_to(refolding.state)
        self._log.close_old()
        self._compactor.send(Released(refolding.log.generation))
        self._log = refolding.log
        self._refolding = None
        self._look_at_size()

    # -- what is wished

    def _ask(self, steer: Steer) -> None:
        try:
            answer = self._scheduler.wishes.ask(steer)
        except (ValueError, MalformedEventError):
            logger.exception("message dropped: it is malformed")  # whoever sent it is never answered
            return
        if answer is not None:
            self._router.deliver(steer.session, answer)

    def _decide(self) -> None:
        requests, generation = self._scheduler.requests, self._log.generation
        for wish, tasks in self._scheduler.decide():
            if failpoints.ARMED:
                failpoints.hit("scheduler.deciding")
            change = Change(
                self._scheduler.token,
                requests.number + 1,
                generation,
                wish.verb,
                [str(ids) for ids in tasks],
                wish.name or "",
            )
            self._send([requests.add(encode(ME, change))])
            if failpoints.ARMED:
                failpoints.hit("scheduler.decided")

    def _answer_wishes(self) -> None:
        scheduler = self._scheduler
        for session, answer in scheduler.wishes.answer(scheduler.state, scheduler.requests.acknowledged):
            if failpoints.ARMED:
                failpoints.hit("scheduler.answering")
            self._router.deliver(session, answer)

    # -- what is asked of the writer

    def _assign(self) -> None:
        entries: list[list[object]] = []
        bodies: list[bytes] = []
        size = 0
        for choice in self._scheduler.choose(self._clock.now()):
            offset, length = self._scheduler.state.span_of(choice.lo, choice.hi)
            if entries and size + length + ENTRY_BYTES > MAX_ASSIGNMENT_BYTES:
                self._request(entries, bodies)
                entries, bodies, size = [], [], 0
            entries.append(self._scheduler.entry_of(choice))
            bodies.append(self._log.read(offset, length))
            size += length + ENTRY_BYTES
        if entries:
            self._request(entries, bodies)

    def _request(self, entries: list[list[object]], bodies: list[bytes]) -> None:
        if failpoints.ARMED:
            failpoints.hit("scheduler.chosen")
        requests = self._scheduler.requests
        generation = self._log.generation
        assign = Assign(self._scheduler.token, requests.number + 1, generation, entries, b"".join(bodies))
        self._send([requests.add(encode(ME, assign))])
        if failpoints.ARMED:
            failpoints.hit("scheduler.asked")

    def _send(self, requests: list[Request]) -> None:
        for request in requests:
            self._writer.send_frame(request.frame)

    def _tell_idle(self) -> None:
        if not self._idle_waiters:
            return
        now = self._clock.now()
        stuck, paused = self._scheduler.stuck_names(now), self._scheduler.keeping_back(now)
        if self._scheduler.is_idle or stuck or paused:
            if failpoints.ARMED:
                failpoints.hit("scheduler.idle")
            for session, ticket in self._idle_waiters.items():
                self._router.deliver(session, Idle(ticket, stuck, paused))
            self._idle_waiters.clear()

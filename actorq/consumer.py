"""Consumer: the actor that runs handlers, one task at a time, in a process of its own.

    Router ══ push ══▶ channel ──▶ tasks in hand ──▶ handler ──▶ outcomes ──▶ PublisherBroker's mailbox

It registers with the names that it handles, gets tasks pushed through its channel, reports what became of them,
and thereby becomes available for more. Outcomes are reported in groups: at the latest after a few milliseconds,
or as soon as nothing is left to do. The death of any broker does not disturb a running handler.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, override

import orjson

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.linux import fork_mark
from actorq.attachments import attach
from actorq.brokers.door import find_brokers
from actorq.brokers.messages import EventOwner, OutcomeKind, Push, Recall, Report
from actorq.brokers.session import REPEAT_SECONDS, Brokers, Session
from actorq.brokers.slot import Slot
from actorq.brokers.waiting_queue import MAX_CREDIT
from actorq.errors import MailboxFullError, NoHandlerError, PayloadError
from actorq.store.records import error_json
from actorq.tasks.ids import IdRange, split_range, task_id
from actorq.tasks.lifecycle import TaskEvent
from actorq.tasks.payload import encode_payload
from actorq.tasks.policy import Policy, after_failure
from actorq.tasks.task import Task, tasks_in_hand
from actorq.understudy import Understudy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from actorq.brokers.messages import Hello

logger = logging.getLogger("actorq")

type Handler = "Callable[[Task], Any]"

SLICE_SECONDS = 0.010
"""Short handlers run back to back for so long before their outcomes are reported and new messages looked at.

What a consumer that is killed has finished in that time runs again. Each report costs the brokers 0.3-1 ms of work, so
in half of the time they would do it twice. It holds twice as much work as a rule, so that the next push is there before
it runs dry.
"""

SLICE_TASKS = MAX_CREDIT // 4
"""And so many at most, or a quick consumer would run all that it may hold before anybody hears that it needs more."""

STRIDE = 16
QUICK_SECONDS = 0.0005
"""While so many tasks take less than that, nobody looks at the clock in between, but for the understudy: a look is a
fifteenth of what the shortest task costs."""

MAX_REPORT_BYTES = 40 << 10

PARSE_BYTES = 64 << 10
"""Tasks are parsed together up to this size. A longer one is parsed by itself, so it is known who has died of what."""

MAX_ERROR_CHARS = 8_000
"""Of a message or a traceback in a record; the end of a traceback is what says where it happened."""

MAX_PART_CHARS = 2_000
"""Of each part of a traceback: a frame, or the text of an error."""

REMEMBERED = 1000
"""Of so many assignments it is known what they were. Of older ones something was reported, and that is asked for."""

DRAIN_SECONDS = 4.0
"""How long a stopping consumer waits for its last outcomes to be acknowledged."""


class Repeat(NamedTuple):
    """Something was said a while ago and may not be answered yet."""


class Batch:
    """What is left of the tasks that one assignment has brought, none of it begun.

    They are parsed piece by piece, each when its first one begins. All that is in hand would be megabytes of objects,
    which have left the processor's cache by then and which the garbage collector looks through; one consumer runs a
    tenth more without.
    """

    __slots__ = ("_at", "_lines", "attempt", "failures", "last", "no", "number", "session", "tasks")

    def __init__(self, entry: list[Any], lines: bytes) -> None:
        ids, self.no, self.failures, crashes, _ = entry
        self.session, self.number, self.last = split_range(ids)
        """The session that published them, the number of the next one, and that of the last."""
        self.attempt = self.failures + crashes + 1
        self._lines, self._at = lines, 0
        self.tasks: list[Task] = []
        """Those that are parsed, the last one first. All have one name."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left."""
        return not self.tasks and self._at == len(self._lines)

    def take_piece(self) -> bytes:
        """Take off the lines that are parsed next, as many as fit and one at least."""
        lines, begin = self._lines, self._at
        self._at = lines.rfind(b"\n", begin, begin + PARSE_BYTES) + 1 or lines.find(b"\n", begin) + 1
        return lines[begin : self._at]

    def clear(self) -> None:
        """Leave nothing."""
        self.tasks.clear()
        self._at = len(self._lines)


class Consumer(Actor):
    """One process that runs handlers for a queue."""

    def __init__(
        self,
        path: Path,
        brokers: Brokers | None,
        handlers: Mapping[str, Handler],
        default: Handler | None,
        policy: Policy,
        max_tasks: int | None = None,
    ) -> None:
        """Run tasks of these brokers, or (None) of those that are to be found at the door of the queue.

        After `max_tasks` tasks the process ends, to be started anew.
        """
        self._handlers = dict(handlers)
        self._default = default
        self._policy = policy
        self._slot = Slot()
        find = partial(find_brokers, path) if brokers is None else None
        self._session = Session(brokers, EventOwner.CONSUMER, self._slot, self._introduce, find)
        self._tasks_left = math.inf if max_tasks is None else max_tasks
        self._last_no = 0
        self._taken: dict[int, IdRange] = {}
        """Which tasks the last REMEMBERED assignments have brought."""
        self._early: dict[int, tuple[list[Any], bytes]] = {}
        """Pushes that came before one with a lower number; that one is on its way again."""
        self._hand: deque[Batch] = deque()
        self._outcomes = Outcomes()
        self.turn = self.running = 0
        self._is_fresh = True
        self.lock = threading.Lock()
        self._understudy = Understudy(self)
        self._repeat_is_set = False
        self._repeat_up_to, self._repeat_at = 0, 0.0
        self._is_stopping = False
        self._is_original = fork_mark()
        attach(path, brokers, runs_tasks=True)  # handlers may publish

    def _introduce(self, hello: Hello) -> Hello:
        names = None if self._default is not None else sorted(self._handlers)
        return hello._replace(names=names, max_attempts=self._policy.max_attempts, max_crashes=self._policy.max_crashes)

    @override
    def on_start(self) -> None:
        self._connect()
        self._repeat_later(0)  # the hello: there may be no room for it when the Router has greeted
        # The thread that this warning is about is ours, and a process that a handler forks can do without it.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of", DeprecationWarning)
        self._understudy.start()

    @override
    def stop_requested(self) -> None:
        self._is_stopping = True  # what was not begun is given back, not run
        super().stop_requested()

    @override
    def before_wait(self) -> bool:
        if self._is_stopping:
            return False
        self._run_slice()
        if self._tasks_left <= 0:
            self.stop()
        return bool(self._hand)  # look at the mailbox and the channel, then go on

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case Repeat():
                self._repeat_what_is_due()
                self._repeat_is_set = self._session.is_unsure or bool(self._session.requests)
                if self._repeat_is_set:
                    self.after(max(0.0, self._repeat_at - time.monotonic()), Repeat())

    @override
    def on_stop(self) -> None:
        """Give back what was not begun, and see the outcomes into the log."""
        self._give_back()
        if failpoints.ARMED:
            failpoints.hit("consumer.stopping")
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._session.requests and not self._session.is_forgotten and (left := deadline - time.monotonic()) > 0:
            if self._session.receive(min(left, REPEAT_SECONDS)) is None:
                self._session.send_again()
        self._session.close()

    def _connect(self) -> None:
        self._session.connect(REPEAT_SECONDS * 10)
        self._listen()

    def _listen(self) -> None:
        self._connection = self._session.connections
        self._channel = self._session.fileno()
        self.listen(self._channel, self._read_channel)

    def _listen_again(self) -> None:
        """Listen to the channel that has taken the place of another, if one has."""
        if self._session.connections != self._connection:
            self.unlisten(self._channel)
            self._listen()

    def _read_channel(self) -> None:
        """Take everything that the brokers have said."""
        while True:
            message = self._session.receive(0)
            if self._session.is_forgotten:
                self._end_as_forgotten()
            self._listen_again()
            if message is None:
                if self._session.is_unsure:
                    self._repeat_later(self._session.requests.number)
                return
            if isinstance(message, Push):
                self._take(message)
            elif isinstance(message, Recall):
                self._give_back()

    def _end_as_forgotten(self) -> None:
        """End at once, whatever handler runs: others may have what we hold. Nobody is charged with it."""
        logger.critical("consumer ends, as the log does not know it any more session=%s", self._session.id)
        os.kill(os.getpid(), signal.SIGKILL)

    def fileno(self) -> int:
        """Return the descriptor of the channel."""
        return self._session.fileno()

    def stand_in(self) -> None:
        """Talk to the brokers while a handler runs long; called by the understudy, with the lock."""
        self._read_channel()
        self._report()
        if self._repeat_is_set:
            self._repeat_what_is_due()

    def _give_back(self) -> None:
        """Return what was not begun, for others to run."""
        if failpoints.ARMED:
            failpoints.hit("consumer.giving_back")
        for batch in self._hand:
            if batch.number <= batch.last:
                self._outcomes.add_returned(IdRange(batch.session, batch.number, batch.last), batch.no)
            batch.clear()
        self._hand.clear()
        self._report()

    def _take(self, push: Push) -> None:
        """Take assignments in the order of their numbers, each once.

        Each new scheduler pushes again what the log shows unfinished, perhaps without what a compaction has taken away.
        But if it is of other tasks, it is another log: it would wait for ever for us to run them.
        """
        if failpoints.ARMED:
            failpoints.hit("consumer.pushed")
        at = 0
        for entry in push.entries:
            ids, no, *_, length = entry
            if no > self._last_no:
                self._early[no] = entry, push.body[at : at + length]
            elif no in self._taken:
                tasks = IdRange.parse(ids)
                if not self._taken[no].covers(tasks):
                    self._end_as_forgotten()
                self._return_what_is_gone(no, tasks)
            at += length
        while (early := self._early.pop(self._last_no + 1, None)) is not None:
            self._last_no += 1
            batch = Batch(*early)
            self._hand.append(batch)
            self._taken[self._last_no] = IdRange(batch.session, batch.number, batch.last)
            self._taken.pop(self._last_no - REMEMBERED, None)

    def _return_what_is_gone(self, no: int, tasks: IdRange) -> None:
        """Give back what is pushed again and is not in our hand any more.

        As a rule the log has by now what we said of it, and this is void. But a log that had lost the assignment has
        taken that for void; if it then makes the same one anew, it would wait for ever.
        """
        held = [(batch.number, batch.last) for batch in self._hand if batch.no == no]
        running = self._slot.number[0]  # 0 between two slices
        if self._slot.session == tasks.session and tasks.first <= running <= tasks.last:
            held.insert(0, (running, running))
        first = tasks.first
        for begin, end in (*held, (tasks.last + 1, tasks.last)):
            last = min(begin - 1, tasks.last)
            if first <= last:
                self._outcomes.add_returned(IdRange(tasks.session, first, last), no)
            first = max(first, end + 1)
        self._report()

    def _run_slice(self) -> None:
        """Run tasks until the slice is over or none is left, then report."""
        hand = self._hand
        if not hand:
            return
        self.turn += 1
        if self._understudy.is_parked:
            self._understudy.wake()
        ran = 0
        until = time.monotonic() + SLICE_SECONDS
        is_over = False
        while hand and not is_over:
            batch = hand[0]
            count, is_over = self._run_piece(batch, until)
            ran += count
            self._is_fresh = False
            is_over = is_over or ran >= SLICE_TASKS
            if batch.is_finished and hand and hand[0] is batch:  # else the understudy has given back all of the hand
                hand.popleft()
        try:
            self._report()
        except OSError:
            # A handler has closed or used up our descriptors. If it is not known which one, nobody is charged: it will
            # be the first to run in our successor, and alone, as that one begins with a credit of one.
            if ran > 1:
                self._slot.clear()
            raise
        # Not before: a handler after which its process cannot even report is charged with that. A death in between
        # charges nobody, since the log has the outcome by then.
        self._slot.clear()
        self.turn += 1

    def _run_piece(self, batch: Batch, until: float) -> tuple[int, bool]:
        """Run the next piece of the first batch in hand; return how many tasks, and whether the slice is over.

        Each step of this loop is part of what the shortest task costs. So they stand in one function and read local
        names: with one function for each it took a fifth more.
        """
        outcomes, understudy, is_original = self._outcomes, self._understudy, self._is_original
        tasks, in_hand = batch.tasks or self._parse(batch), self._slot.number
        handler = self._handlers.get(tasks[0].name, no_handler if self._default is None else self._default)
        first = number = batch.number
        last = first + self._tasks_left - 1
        is_over = False
        look: float = number
        looked, looks = 0.0, understudy.looks
        while tasks and not is_over:
            task = tasks.pop()
            in_hand[0] = number
            batch.number = number + 1
            if failpoints.ARMED:
                failpoints.hit("consumer.starting")
            self.running = number
            try:
                result = handler(task)
                outcome = DONE if result is None else done(result)
            except BaseException as error:  # noqa: BLE001  # SystemExit and its like end a task, not the consumer
                outcome = self._failed(error, batch)
            if failpoints.ARMED:
                failpoints.hit("consumer.handled")
            if not is_original[0]:
                # A copy of this process that the handler made by fork, and that came back instead of leaving.
                os._exit(0)
            result = None  # the next handler may need the memory
            self.running = 0
            if understudy.is_speaking:
                with self.lock:  # until it has finished: it may be giving back what is in our hand
                    pass
            if outcome is DONE and outcomes.batch is batch:
                outcomes.last = number
            else:
                outcomes.add(batch, number, *outcome)
                is_over = outcomes.size >= MAX_REPORT_BYTES
            if number >= look or understudy.looks != looks:
                now = time.monotonic()
                is_over = is_over or number == last or now >= until
                look = min(last, number + (STRIDE if now - looked < QUICK_SECONDS else 1))
                looked, looks = now, understudy.looks
            number += 1
        ran = number - first
        self._tasks_left -= ran
        return ran, is_over

    def _parse(self, batch: Batch) -> list[Task]:
        """Parse the next piece; return its tasks, the last one first.

        A process that dies of that is charged to a task whose text is long, or the first that the process has had, if
        that came alone. Of several nobody knows which one it was, and short ones need no memory to speak of: what they
        do not find, some handler has used up before.
        """
        self._slot.enter(batch.session)
        piece = batch.take_piece()
        if len(piece) > PARSE_BYTES or (self._is_fresh and batch.number == batch.last):
            self._slot.number[0] = batch.number
        # Each line is `,{...}` and a line feed: as they stand they are the inside of an array.
        batch.tasks = tasks_in_hand(orjson.loads(b"[" + piece[1:] + b"]"), batch.attempt)
        batch.tasks.reverse()
        return batch.tasks

    def _failed(self, error: BaseException, batch: Batch) -> Outcome:
        is_last = after_failure(batch.failures + 1, self._policy.max_attempts) is TaskEvent.BURY
        return failed(error, "dead" if is_last else "ready")

    def _report(self) -> None:
        if not self._outcomes:
            return
        if failpoints.ARMED:
            failpoints.hit("consumer.reporting")
        outcomes, values = self._outcomes.take()
        number = self._session.requests.number + 1
        report = Report(self._session.id, number, outcomes, b"\n".join(values))
        request = self._session.requests.add(self._session.encode(report))
        try:
            self._session.send(request, timeout=REPEAT_SECONDS)
        except MailboxFullError:
            logger.warning("writer is slow: %d outcomes wait", len(self._session.requests))
        if failpoints.ARMED:
            failpoints.hit("consumer.reported")
        self._repeat_later(number)

    def _repeat_later(self, number: int) -> None:
        """See that what was said up to this number is repeated, unless it is answered before.

        Every known loss is announced; this is for the unknown ones, and for a mailbox that was full.
        """
        if not self._repeat_is_set:
            self._repeat_is_set = True
            self._repeat_up_to, self._repeat_at = number, time.monotonic() + REPEAT_SECONDS
            self.after(REPEAT_SECONDS, Repeat())

    def _repeat_what_is_due(self) -> None:
        now, session = time.monotonic(), self._session
        if now < self._repeat_at:
            return
        if session.is_unsure or session.requests.oldest <= self._repeat_up_to:
            session.repeat_after_silence()
            self._listen_again()
        self._repeat_up_to, self._repeat_at = session.requests.number, now + REPEAT_SECONDS


class Outcomes:
    """Outcomes that are not reported yet; tasks that are done without a result are gathered into ranges."""

    def __init__(self) -> None:
        self._outcomes: list[list[Any]] = []
        self._values: list[bytes] = []
        self.batch: Batch | None = None
        """Whose tasks are being gathered, from `_first` to `last`; to add its next one, `last` may be set instead."""
        self._first = self.last = 0
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._outcomes) or self.batch is not None

    def add(self, batch: Batch, number: int, kind: OutcomeKind, then: str, value: bytes | None) -> None:
        """Add the outcome of one task of a batch, with its JSON if it has any."""
        self._close_range()
        if value is None:
            self.batch, self._first, self.last = batch, number, number
        else:
            self._add([kind, task_id(batch.session, number), batch.no, then], len(value))
            self._values.append(value)

    def add_returned(self, tasks: IdRange, no: int) -> None:
        """Add that tasks of an assignment go back."""
        self._close_range()
        self._add([OutcomeKind.RETURNED, str(tasks), no, ""])

    def take(self) -> tuple[list[list[Any]], list[bytes]]:
        """Return all outcomes and their JSON, in order, and begin anew."""
        self._close_range()
        taken = self._outcomes, self._values
        self._outcomes, self._values, self.size = [], [], 0
        return taken

    def _close_range(self) -> None:
        if self.batch is not None:
            tasks = IdRange(self.batch.session, self._first, self.last)
            self._add([OutcomeKind.DONE, str(tasks), self.batch.no, ""])
            self.batch = None

    def _add(self, outcome: list[Any], more: int = 0) -> None:
        self._outcomes.append(outcome)
        self.size += 60 + more


type Outcome = tuple[OutcomeKind, str, bytes | None]

DONE: Outcome = (OutcomeKind.DONE, "", None)


def no_handler(task: Task) -> None:
    """Stand in for the handler of a name that has none."""
    raise NoHandlerError((task.name,))


def done(result: object) -> Outcome:
    """Return the outcome of a handler that returned something."""
    try:
        return OutcomeKind.RESULT, "", encode_payload(result)
    except PayloadError as error:  # it would return the same again, so it is not tried again
        error.__context__ = error.__cause__ = None  # it says what is wrong, and no frame is the handler's
        return failed(error.with_traceback(None), "dead")
    except Exception as error:  # noqa: BLE001  # an odd object may raise anything when looked at
        return failed(error, "dead")


def failed(error: BaseException, then: str) -> Outcome:
    """Return the outcome of a handler that raised; `then` is ready or dead."""
    return OutcomeKind.FAILED, then, encode_error(error)


def encode_error(error: BaseException) -> bytes:
    """Return what a record keeps of an error: its type, its text and the end of its traceback."""
    return error_json(type.__getattribute__(type(error), "__qualname__"), text_of(error), traceback_of(error))


def text_of(error: BaseException) -> str:
    """Return what an error says of itself; it is the user's code that says it, and may do anything."""
    try:
        return str(error)[:MAX_ERROR_CHARS]
    except BaseException as another:  # noqa: BLE001  # whatever it is, it must not end the consumer
        return f"<no text: str() of it raised {type(another).__name__}>"


def traceback_of(error: BaseException) -> str:
    """Return the end of a traceback, each part of it shortened first: a long text must not push out the frames."""
    try:
        parts = traceback.format_exception(error)
    except BaseException:  # noqa: BLE001  # it asks the error for its text, and its causes for theirs
        parts = ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    short = [part if len(part) <= MAX_PART_CHARS else f"{part[:MAX_PART_CHARS]} ...\n" for part in parts]
    return "".join(short)[-MAX_ERROR_CHARS:]

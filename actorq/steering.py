"""Steering: how a wish to retry, cancel, purge, pause or resume gets into the log, and the answer back.

    BrokeredSteering   asks the scheduler, again and again until it answers; see brokers/wishes.py
    DirectSteering     no broker runs: takes the locks, decides and writes by itself, in one commit

Both return the tasks that are as was wished, and by then that is on disk.
"""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from actorq import failpoints
from actorq.actors.linux import boot_id
from actorq.attachments import brokers_of
from actorq.brokers.messages import EventOwner, RouterStarted, Steer, Steered, WriterStarted
from actorq.brokers.session import REPEAT_SECONDS, SHORT_NAP_SECONDS, Session
from actorq.direct_publisher import Desk
from actorq.errors import CorruptQueueError, MailboxFullError, SteeringUnknownError, SyncFailedError
from actorq.membership import member_of
from actorq.publisher import HostedError
from actorq.store import records
from actorq.store.filesystem import REAL, Filesystem
from actorq.store.steering import Wish, decide, fulfilled
from actorq.tasks.ids import IdRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from actorq.brokers.session import Brokers, Finder
    from actorq.store.fold import QueueState
    from actorq.store.log_writer import LogWriter

    type MakeWishes = Callable[[QueueState], list[Wish]]


class Look(Protocol):
    """Answers a question by what the file says now."""

    def __call__[Answer](self, question: Callable[[QueueState], Answer], /) -> Answer:
        """Return the answer."""


class BrokersGoneError(Exception):
    """There are no brokers any more, and nobody knows what they have done of the wishes. Never leaves this module."""


def steer(
    path: Path,
    way_in: Finder,
    look: Look,
    make_wishes: MakeWishes,
    timeout: float,
    new_direct_steering: Callable[[Finder], DirectSteering],
) -> list[IdRange]:
    """Steer the queue of this path, through the brokers that run, wherever they do, or directly while there are none.

    `look` answers by what the file says; `make_wishes` raises what is to be refused before anything is done.
    """
    deadline = time.monotonic() + timeout
    brokers = brokers_of(path)
    while True:
        try:
            if brokers is None:
                return new_direct_steering(way_in).steer(look, make_wishes, max(0.0, deadline - time.monotonic()))
            wishes = look(make_wishes)
            make_wishes = partial(_the_same, wishes)  # if it is done again, then what was decided now
            return BrokeredSteering(path, brokers, way_in).steer(wishes, timeout)
        except HostedError as news:
            brokers = news.brokers
        except BrokersGoneError:
            if time.monotonic() >= deadline:
                raise SteeringUnknownError(wishes[0].verb, timeout) from None
            time.sleep(SHORT_NAP_SECONDS)  # they may be found again as they were, until somebody knows that they ended
            brokers = None


def _the_same(wishes: list[Wish], _: QueueState) -> list[Wish]:
    return wishes


class BrokeredSteering:
    """Asks the scheduler, one wish at a time, in a session of its own."""

    def __init__(self, path: Path, brokers: Brokers, way_in: Finder) -> None:
        self._path = path
        self._brokers = brokers
        self._way_in = way_in

    def steer(self, wishes: Sequence[Wish], timeout: float) -> list[IdRange]:
        """Have the wishes come true, in order. `timeout` is for each of them, in seconds."""
        done: list[IdRange] = []
        if not wishes:
            return done
        session = Session(self._brokers, EventOwner.PUBLISHER, greet=None, find=self._way_in)
        try:
            try:
                session.connect(timeout)
            except MailboxFullError:
                raise SteeringUnknownError(wishes[0].verb, timeout) from None
            self._wait(session, min(timeout, REPEAT_SECONDS), 0)  # an answer needs the channel
            for ticket, wish in enumerate(wishes, start=1):
                done += self._ask(session, ticket, wish, timeout)
        finally:
            session.close()
        return done

    def _ask(self, session: Session, ticket: int, wish: Wish, timeout: float) -> list[IdRange]:
        question = Steer(session.id, ticket, wish.verb, [str(ids) for ids in wish.tasks], wish.name or "", wish.died_by)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                session.ask_scheduler(question, min(left, REPEAT_SECONDS))
                answer = self._wait(session, min(left, REPEAT_SECONDS), ticket)
            except MailboxFullError:
                continue
            if answer is not None:
                return [IdRange.parse(text) for text in answer.tasks]
        raise SteeringUnknownError(wish.verb, timeout)

    def _wait(self, session: Session, seconds: float, ticket: int) -> Steered | None:
        """Wait for the answer, but not beyond the news that a broker has started: it may have been lost with one."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            member = member_of(self._path)
            if member is not None and member.failure is not None:
                raise member.failure
            if session.is_lost:
                raise BrokersGoneError
            match session.receive(left):
                case Steered() as answer if answer.ticket == ticket:
                    return answer
                case RouterStarted() | WriterStarted():
                    return None
        return None


class DirectSteering:
    """Decides and writes under both locks."""

    def __init__(self, path: Path, way_in: Finder, filesystem: Filesystem = REAL, boot: str | None = None) -> None:
        self._desk = Desk(path, filesystem, boot or boot_id(), way_in)

    def steer(self, look: Look, make_wishes: MakeWishes, timeout: float) -> list[IdRange]:
        """Have all wishes come true in one commit. Raises HostedError, and as a direct publish does."""
        # Whoever asks for what cannot be waits for no lock, and has no file made. What a power cut has left may look
        # damaged until a writer mends it; that will be us, and if it is damaged, we hear of it then.
        with suppress(CorruptQueueError):
            look(make_wishes)
        try:
            return self._desk.use(timeout, partial(_write, look, make_wishes, timeout))
        finally:
            self._desk.close()


def _write(look: Look, make_wishes: MakeWishes, timeout: float, log: LogWriter) -> list[IdRange]:
    wishes = look(make_wishes)
    if not wishes:
        return []
    lines = look(lambda state: [records.steered_line(wish.verb, decide(state, wish), wish.name) for wish in wishes])
    try:
        log.write(lines)
        log.sync()
    except SyncFailedError:
        raise SteeringUnknownError(wishes[0].verb, timeout) from None
    # From here a power loss keeps it.
    if failpoints.ARMED:
        failpoints.hit("direct.steered")
    return look(lambda state: [ids for wish in wishes for ids in fulfilled(state, wish)])

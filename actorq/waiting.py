"""Waiting until nothing is left to do, whoever hosts the queue meanwhile, or nobody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actorq.brokers.messages import AwaitIdle, EventOwner, Idle, RouterStarted, WriterStarted
from actorq.brokers.session import REPEAT_SECONDS, Session
from actorq.errors import MailboxFullError, NoHandlerError, QueuePausedError
from actorq.membership import member_of
from actorq.publisher import DEFAULT_TIMEOUT
from actorq.takeover import is_stopped

if TYPE_CHECKING:
    from collections.abc import Callable

    from actorq.joining import WayIn
    from actorq.queue import Queue

FOLLOW_SECONDS = 0.02
"""How often a join looks at the file while nobody hosts the queue and could be asked."""


def wait_until_idle(queue: Queue, way_in: WayIn, is_idle: Callable[[], bool], deadline: float | None) -> None:
    """Ask the scheduler, whichever host it belongs to; without one, look at the file until somebody hosts it.

    `is_idle` tells from the file whether all is done.
    """
    session = Session(None, EventOwner.PUBLISHER, greet=None, find=way_in)
    ticket = 0
    try:
        while True:
            left = seconds_left(deadline, queue)
            member = member_of(queue.path)
            if member is not None and member.failure is not None:
                raise member.failure
            if session.is_lost:
                session.connect(min(left, DEFAULT_TIMEOUT))
                if session.is_lost:
                    if member is None and is_idle():
                        return  # otherwise this process hosts it in a moment, or knows why not
                    time.sleep(min(FOLLOW_SECONDS, left))
                    continue
            try:
                # Asked again and again: a scheduler that starts anew knows nothing of who waits.
                session.ask_scheduler(AwaitIdle(session.id, ticket), min(left, REPEAT_SECONDS))
            except MailboxFullError:
                continue
            match _answer(session, min(left, REPEAT_SECONDS)):
                case Idle() as idle:
                    if idle.paused:
                        raise QueuePausedError(tuple(name for name in idle.paused if name))
                    if idle.waiting_names:
                        raise NoHandlerError(tuple(idle.waiting_names))
                    return
                case None if is_stopped(queue.path):
                    way_in()  # nobody answers there; after a while it sees to that
    finally:
        session.close()


def _answer(session: Session, seconds: float) -> Idle | WriterStarted | RouterStarted | None:
    """Return the answer, or the news after which to ask at once; None when there was neither in time."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        message = session.receive(left)
        if isinstance(message, Idle | WriterStarted | RouterStarted):
            return message
    return None


def seconds_left(deadline: float | None, queue: Queue) -> float:
    """Return the seconds to the deadline (an hour if there is none), or raise TimeoutError."""
    if deadline is None:
        return 3600.0
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"tasks are left in {queue.path}: {queue.counts()}")
    return left

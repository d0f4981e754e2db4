"""Going on without brokers: what becomes of requests that were not acknowledged when the last broker ended."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from actorq.brokered_publisher import refusal
from actorq.brokers.messages import Publish, Refused, message_in
from actorq.errors import PublishUnknownError, QueueLockedError, SyncFailedError
from actorq.publisher import HostedError
from actorq.store import records
from actorq.store.sessions import SessionTable
from actorq.tasks.ids import IdRange, task_id

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.brokers.session import Session
    from actorq.direct_publisher import Desk
    from actorq.joining import WayIn
    from actorq.store.log_writer import LogWriter


class Refuge:
    """What a publisher does whose brokers are gone: finds others, or brings to an end by itself what it began."""

    def __init__(self, path: Path, way_in: WayIn, desk: Desk) -> None:
        self._path = path
        self.find = way_in
        self.worry = way_in.worry
        self._desk = desk

    def settle(self, session: Session, timeout: float) -> bool:
        """Write what is not acknowledged, and the end of the session, in one commit; False if the queue is not free.

        What the log shows already is not written again, but synced: the writer may have died before it did that.

        Raises PublishRejectedError for what the log shows as refused, and PublishUnknownError, which says how long
        (`timeout`) was tried, when it cannot be told, or the disk does not keep it.
        """
        requests = session.requests
        unknown = PublishUnknownError(task_id(session.id, max(1, requests.oldest)), timeout)
        try:
            expected, refused = self._desk.use(0, partial(_write_what_is_missing, session))
        except (QueueLockedError, HostedError):
            return False
        except SyncFailedError:
            raise unknown from None
        # From here a power loss keeps what the log shows; only now may anybody hear of it.
        if refused is not None:
            number, kind = refused
            requests.acknowledge(number - 1)
            raise refusal(Refused(session.id, number, kind, "it was full a moment ago", 0, str(self._path)))
        if not expected and requests.acknowledged >= 0:
            raise unknown  # it was known once: somebody has declared it dead, with or without its requests
        requests.acknowledge(requests.number)  # not even the hello got in, or all of it is in now
        return True


def _write_what_is_missing(session: Session, log: LogWriter) -> tuple[int, tuple[int, str] | None]:
    """Return what the log expected of the session, and which request of it was refused, if one was."""
    table = SessionTable()
    for batch in log.tail():
        table.apply(batch.lines)
    refused = table.refused.get(session.id)
    expected = table.expected(session.id)
    if refused is None and expected:
        log.write([*missing(session, expected), records.gone_line(session.id, "settled without brokers")])
    log.sync()
    return expected, refused


def missing(session: Session, expected: int) -> list[bytes]:
    """Return the records of what the session has asked for and the log, which expects this number, does not show."""
    lines = []
    for request in session.requests.since(expected):
        publish = message_in(request.frame)
        assert isinstance(publish, Publish)  # the hello is known, and a publisher asks for nothing else
        ids = IdRange(publish.session, publish.first, publish.first + publish.count - 1)
        lines.append(records.publish_lines(ids, publish.name, publish.body.split(b"\n")))
    return lines

"""Compactor: writes a compacted file beside the one in use, and offers it to the writer.

    scheduler ── Compact ──▶ Compactor ── Compacted ──▶ writer ── Switched ──▶ scheduler
                  it is due      │ reads Queue.json,       │ copies the rest,     reads on in the new file
                                 ▼ writes beside it        ▼ renames
                         .Queue.json.<hex>.offer ───▶ Queue.json

It knows nothing until it is asked, and ends when it has answered: the supervisor starts another one, as small as this
one was before it read a queue of a million tasks. It may die at any time. Then nothing has happened: the file that it
was about is removed by the next one, before that writes its own.

What it does, it does a little at a time, so that it hears when it is to stop, and that nobody waits for the disk behind
it: a sync of what the writer has just written takes as long as what others have written before it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, override

from actorq import failpoints
from actorq.actors import Actor, Mailbox, Packet
from actorq.actors.linux import lower_priority
from actorq.brokers.messages import Compact, Compacted, EventOwner
from actorq.brokers.post import Post, messages_in
from actorq.brokers.upkeep import KEEP_DONE
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import ActorqError
from actorq.store.compaction import prepare

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from actorq.store.switch import Offer

logger = logging.getLogger("actorq")

ME = EventOwner.COMPACTOR

STEP_SECONDS = 0.005
"""After so much work without a sync it looks whether there is a message."""

REST_SHARE = 1.0
"""After each sync it leaves the disk alone for so much of the time that this took: others have half of it."""


@dataclass(frozen=True, slots=True)
class GoOn:
    """Do the next step."""


class Compactor(Actor):
    """The actor around `compaction.prepare`."""

    frames = True

    def __init__(self, path: Path, writer: Mailbox, *, keep_done: int | None = KEEP_DONE) -> None:
        self._path = path
        self._keep_done = keep_done
        self._writer = Post(self, writer, ME)
        self._clock = SYSTEM_CLOCK
        self._work: Generator[int, None, Offer] | None = None

    @override
    def receive_frames(self, frames: list[Packet]) -> None:
        for message, _ in messages_in(frames):
            match message:
                case Compact(generation) if self._work is None:
                    if failpoints.ARMED:
                        failpoints.hit("compactor.asked")
                    lower_priority()
                    self._work = prepare(self._path, generation, self._keep_done)
                    self.after(0, GoOn())
                case Compact():
                    pass  # it is at it
                case _:
                    logger.error("message dropped: not for the compactor: %r", message)

    @override
    def on_timer(self, message: object) -> None:
        assert self._work is not None
        begin = now = self._clock.now()
        written = 0
        try:
            while not written and now <= begin + STEP_SECONDS:
                written = next(self._work)
                now = self._clock.now()
        except StopIteration as end:
            self._offer(end.value)
            return
        except (ActorqError, OSError) as error:
            logger.error("file not compacted path=%r reason=%s", str(self._path), error)  # noqa: TRY400 -- one line
            self.stop()
            return
        self.after(REST_SHARE * (now - begin) if written else 0, GoOn())

    def _offer(self, offer: Offer) -> None:
        if failpoints.ARMED:
            failpoints.hit("compactor.offering")
        self._writer.send(Compacted(*offer))
        if failpoints.ARMED:
            failpoints.hit("compactor.offered")
        self.stop()

    @override
    def on_stop(self) -> None:
        if self._work is not None:
            self._work.close()  # removes what it has written, unless that was offered

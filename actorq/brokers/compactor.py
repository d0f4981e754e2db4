"""Compactor: writes a compacted file beside the one in use, and offers it to the writer.

    scheduler ── Compact ──▶ Compactor ── Compacted ──▶ writer ── Switched ──▶ scheduler
                  it is due      │ reads Queue.json,       │ copies the rest,     reads on in the new file
                                 ▼ writes beside it        ▼ renames
                         .Queue.json.<hex>.offer ───▶ Queue.json

It knows nothing until it is asked, and ends when that has been dealt with: the supervisor starts another one, as small
as this one was before it read a queue of a million tasks. It may die at any time. Then nothing has happened, and the
next one removes what it has left.

The last thing that it does is to keep the old file open until the scheduler has let go of it. Whoever closes a file
that has no name any more waits until its space is free: 70 ms for 400 MB, in which the scheduler could hand out none,
and a disk that is told which space is free (mount option `discard`) takes no sync of the writer. So the file is made
shorter a little at a time, unless somebody else has it open, who may still read there.

What it does, it does a little at a time, so that it hears when it is to stop, and that nobody waits for the disk behind
it: a sync of what the writer has just written takes as long as what others have written before it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple, override

from actorq import failpoints
from actorq.actors.actor import Actor
from actorq.actors.linux import is_alone_with, lower_priority, reopen_unnamed
from actorq.brokers.messages import Compact, Compacted, EventOwner, Released
from actorq.brokers.post import Post, messages_in
from actorq.brokers.upkeep import KEEP_DONE
from actorq.clock import SYSTEM_CLOCK
from actorq.errors import ActorqError
from actorq.store.compaction import prepare
from actorq.store.filesystem import REAL
from actorq.store.log_reader import LogReader
from actorq.store.new_file import OFFER_SUFFIX, sweep

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from actorq.actors.mailbox import Mailbox
    from actorq.actors.packets import Packet
    from actorq.actors.timer import Timer
    from actorq.store.switch import Offer

logger = logging.getLogger("actorq")

ME = EventOwner.COMPACTOR

STEP_SECONDS = 0.005
"""After so much work without a sync it looks whether there is a message."""

REST_SHARE = 1.0
"""After each piece it leaves the disk alone for so much of the time that this took: others have half of it."""

LINGER_SECONDS = 30.0
"""How long it keeps the old file open at most, while nobody says anything."""

FREE_BYTES = 4 << 20
"""How much of the old file is freed at a time: 1 ms in which nobody else is served by the disk."""

FREE_SECONDS = 0.01
"""From each time to the next."""


class GoOn(NamedTuple):
    """Do the next step."""


class Leave(NamedTuple):
    """Nobody has said that the old file is not needed any more; nobody will."""


class Free(NamedTuple):
    """Make the old file shorter."""


class Compactor(Actor):
    """The actor around `compaction.prepare`."""

    frames = True

    def __init__(self, path: Path, writer: Mailbox, *, keep_done: int | None = KEEP_DONE) -> None:
        self._path = path
        self._keep_done = keep_done
        self._writer = Post(self, writer, ME)
        self._clock = SYSTEM_CLOCK
        self._work: Generator[int, None, Offer] | None = None
        self._old: LogReader | None = None
        """The file that it has offered another one for."""
        self._unnamed = -1
        """That file again, once nobody else has it open, and none can open it any more."""
        self._leave: Timer | None = None

    @override
    def on_start(self) -> None:
        # Left by one that was killed. If it had offered it a moment ago and the writer has not come to that, he hears
        # that it is gone, and another one will be asked for.
        sweep(self._path, REAL, suffix=OFFER_SUFFIX)

    @override
    def receive_frames(self, frames: Iterator[Packet]) -> None:
        is_released = False
        for message, _ in messages_in(frames):
            match message:
                case Compact(generation):
                    self._begin(generation)
                case Released():
                    is_released = True
                case _:
                    logger.error("message dropped: not for the compactor: %r", message)
        if is_released and self._old is not None and self._old.moved():
            self._free(self._old)

    def _begin(self, generation: int) -> None:
        if self._work is not None:
            return  # it is at it
        if failpoints.ARMED:
            failpoints.hit("compactor.asked")
        if self._leave is not None:
            self._leave.cancel()
        self._let_go_of_old()
        lower_priority()
        self._work = prepare(self._path, generation, self._keep_done)
        self.after(0, GoOn())

    @override
    def on_timer(self, message: object) -> None:
        match message:
            case GoOn():
                self._go_on()
            case Free():
                self._free_a_little()
            case Leave():
                self.stop()

    def _go_on(self) -> None:
        assert self._work is not None
        begin = now = self._clock.now()
        written = 0
        try:
            while not written and now <= begin + STEP_SECONDS:
                written = next(self._work)
                now = self._clock.now()
        except StopIteration as end:
            self._offer(end.value)
        except (ActorqError, OSError) as error:
            logger.error("file not compacted path=%r reason=%s", str(self._path), error)  # noqa: TRY400 -- one line
            self.stop()
        else:
            self.after(REST_SHARE * (now - begin) if written else 0, GoOn())

    def _offer(self, offer: Offer) -> None:
        if failpoints.ARMED:
            failpoints.hit("compactor.offering")
        self._work = None
        self._old = LogReader(self._path)
        self._writer.send(Compacted(*offer))
        self._leave = self.after(LINGER_SECONDS, Leave())
        if failpoints.ARMED:
            failpoints.hit("compactor.offered")

    def _free(self, old: LogReader) -> None:
        if self._leave is not None:
            self._leave.cancel()  # a large file takes longer than that
        unnamed = reopen_unnamed(old.fileno())
        self._let_go_of_old()
        if unnamed is not None:
            self._unnamed = unnamed
            if is_alone_with(unnamed):
                self._free_a_little()
                return
        self.stop()

    def _free_a_little(self) -> None:
        if self._unnamed < 0:
            return  # it was asked for another file meanwhile
        left = os.fstat(self._unnamed).st_size - FREE_BYTES
        if left <= 0:
            self.stop()
            return
        os.ftruncate(self._unnamed, left)
        self.after(FREE_SECONDS, Free())

    def _let_go_of_old(self) -> None:
        if self._old is not None:
            self._old.close()
            self._old = None
        if self._unnamed >= 0:
            os.close(self._unnamed)
            self._unnamed = -1

    @override
    def on_stop(self) -> None:
        if self._work is not None:
            self._work.close()  # removes what it has written, unless that was offered
        self._let_go_of_old()

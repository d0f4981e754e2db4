"""Understudy: speaks for a consumer while its handler runs long.

A consumer has one thread for handlers and talk alike, so that short tasks cost no switch between two. While a handler
runs for longer than a moment, this second thread reads the channel in its place: it reports what was finished before,
repeats what a dead broker lost, and gives back tasks that another consumer could begin at once.

It looks at the consumer a few times a second while there is work, and not at all while there is none.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

logger = logging.getLogger("actorq")

LOOK_SECONDS = 0.02
"""A handler that runs at two looks in a row runs long."""


class Principal(Protocol):
    """Whom it stands in for."""

    turn: int
    """Changes when it begins to run tasks and when it ends; odd meanwhile."""
    running: int
    """The number of the task whose handler runs, 0 while none does. Tasks of two sessions may have the same."""

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held by the understudy while it speaks."""

    def fileno(self) -> int:
        """Return the descriptor on which the brokers speak."""

    def stand_in(self) -> None:
        """Do what the consumer would do between two tasks, except running one."""


class Understudy(threading.Thread):
    """The second thread of a consumer."""

    def __init__(self, principal: Principal) -> None:
        super().__init__(name="understudy", daemon=True)
        self._principal = principal
        self._work = threading.Event()
        self._pause = threading.Event()  # never set: a sleep that says what it is
        self.looks = 0
        """Grows each time that it looks; the principal looks at the clock then."""
        self.is_parked = False
        self.is_speaking = False
        """The principal looks here after each handler, once none is running, and waits for the lock if so."""

    def wake(self) -> None:
        """Look again: there is work. For the principal, when `is_parked`."""
        self._work.set()

    def run(self) -> None:
        """Look until the process ends, and end it if that fails: a consumer that hears nothing would keep its tasks.

        Its own thread would end by the same error; so the handler that leaves no means to talk (it may have used up the
        descriptors) is charged by either.
        """
        try:
            self._look_on()
        except BaseException:
            logger.critical("consumer ends, as it cannot talk to the brokers while a handler runs", exc_info=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def _look_on(self) -> None:
        """Look, stand in, look again; park when nothing happens."""
        turn_before = running_before = -1
        while True:
            turn, running = self._principal.turn, self._principal.running
            if running and running == running_before:
                self._stand_in(running)
            elif turn == turn_before and not turn % 2:
                self._park(turn)
            turn_before, running_before = turn, running
            self._pause.wait(LOOK_SECONDS)
            self.looks += 1

    def _stand_in(self, running: int) -> None:
        poll = select.poll()
        while True:
            with self._principal.lock:
                # Declared first, looked at then, as in `_park`: either we see that the handler is back, or the
                # principal sees that we speak. To take the lock for each task would be a tenth of its cost.
                self.is_speaking = True
                try:
                    if self._principal.running != running:
                        return
                    self._principal.stand_in()
                    channel = self._principal.fileno()
                finally:
                    self.is_speaking = False
            poll.register(channel, select.POLLIN)
            poll.poll(LOOK_SECONDS * 1000)
            poll.unregister(channel)

    def _park(self, turn: int) -> None:
        self._work.clear()
        self.is_parked = True
        # Declared first, looked at then: a principal that begins a turn in between sees that we are parked.
        if self._principal.turn == turn:
            self._work.wait()
        self.is_parked = False

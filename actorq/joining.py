"""Joining: how a process that hosts nothing finds its way into a queue that others may host, or nobody."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from actorq import on_demand
from actorq.attachments import brokers_of
from actorq.store.locks import FileIdentity, host_identity, is_starting
from actorq.takeover import TAKEOVER_AFTER, depose, is_stopped

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.brokers.session import Brokers


class WayIn:
    """The way to the brokers of a queue, wherever they run."""

    def __init__(self, path: Path, takeover_after: float = TAKEOVER_AFTER) -> None:
        self._path = path
        self._takeover_after = takeover_after
        self._silent_since: float | None = None
        self._suspect: FileIdentity | None = None

    def __call__(self) -> Brokers | None:
        """Return the brokers that run now, if they can be reached: those of this process, or by the door."""
        own = brokers_of(self._path)
        if own is not None:
            return own
        try:
            brokers = on_demand.door.knock(self._path)
        except TimeoutError:
            self.worry(on_demand.door.KNOCK_SECONDS)
            return None
        self._silent_since = None
        return brokers

    def worry(self, seconds: float) -> None:
        """Hear that the brokers have not answered for so long; after too long, end them."""
        if is_starting(self._path) and not is_stopped(self._path):
            return  # on a slow machine, or with a long queue, that takes its time
        now = time.monotonic()
        identity = host_identity(self._path)
        if self._silent_since is None:
            self._silent_since, self._suspect = now - seconds, identity
        elif identity != self._suspect:
            self._silent_since, self._suspect = now, identity  # the silence of the one before is none of his
        if now - self._silent_since >= self._takeover_after:
            depose(self._path, self._suspect)
            self._silent_since = None

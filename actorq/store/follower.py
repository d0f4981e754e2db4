"""Follows a queue through all files that it will ever have: from its first batch on, over compactions, to what comes.

A file that was compacted takes the place of the one that is being read. It begins with a snapshot, which says again
what is known already; so whoever follows gets a new state to fold it into, and is told which batches are news.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from actorq.errors import QueueReplacedError
from actorq.store.filesystem import REAL, Filesystem, StrPath
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from actorq.store.log_reader import Batch


class Follower[State: QueueState]:
    """A log, and the state that its batches are folded into by whoever asks for them."""

    def __init__(self, path: StrPath, new_state: Callable[[], State], *, filesystem: Filesystem = REAL) -> None:
        self._path = path
        self._new_state = new_state
        self._filesystem = filesystem
        self._known = 0
        """Up to which commit all was told before this file was opened."""
        self.log = LogReader(path, filesystem=filesystem)
        self.state = new_state()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def batches(self) -> Iterator[tuple[Batch, bool]]:
        """Yield what was committed since the last time, and whether it is news. The caller applies it to the state.

        Raises QueueReplacedError when the file is gone, or holds another queue.
        """
        if self.log.moved():
            self._go_over()
        for batch in self.log.batches():
            yield batch, not (self._known and (batch.piece or batch.commit.number <= self._known))

    def _go_over(self) -> None:
        try:
            log = LogReader(self._path, filesystem=self._filesystem)
        except FileNotFoundError as error:
            raise QueueReplacedError(self._path, "it was removed or renamed") from error
        before, self.log = self.log, log
        before.close()
        if log.header.queue != before.header.queue:
            raise QueueReplacedError(self._path, "another queue has its name now")
        self.state = self._new_state()
        # If it begins behind what was read, some of the history is lost: then all that it has is news.
        self._known = before.commit if log.header.commit <= before.commit else 0

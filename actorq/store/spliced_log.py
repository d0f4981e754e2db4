"""A log that goes on in another file: the old one to its end, then the one that has taken its place.

    old file   [............................]                   offsets as they are
    new file   [snapshot │ commits │........]........
                                            └── offsets go on from the old file's end

Whoever has folded the old file keeps his state, offsets included, and follows the new one from the commit at which it
took over. That costs nothing; the disk has both files for as long as it lasts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actorq.store.fold import QueueState
from actorq.store.log_reader import Batch, LogReader, Position

if TYPE_CHECKING:
    from collections.abc import Iterator

    from actorq.store.log_reader import Link


class SplicedLog:
    """Reads like a `LogReader` that nothing has happened to."""

    def __init__(self, old: LogReader, new: LogReader, after: int) -> None:
        """`old` stands at its end, which is the offset `after` in the new file. Both are ours to close."""
        link = old.link
        self._old = old
        self._new = new
        self._end = link.offset
        self._shift = link.offset - after
        self._tail = new.behind(link._replace(offset=after))

    def __repr__(self) -> str:
        return f"<SplicedLog {self._old!r}, then {self._tail!r}>"

    @property
    def generation(self) -> int:
        """That of the new file."""
        return self._new.generation

    @property
    def commit(self) -> int:
        """The number of the last commit that was read."""
        return self._tail.commit

    @property
    def position(self) -> Position:
        """Behind the last batch that was read, as if the old file had grown."""
        return Position(self.generation, self._tail.link.offset + self._shift)

    @property
    def link(self) -> Link:
        """Where it stands in the chain; the offset is that in the new file."""
        return self._tail.link

    def batches(self) -> Iterator[Batch]:
        """Return what was committed since, oldest first."""
        for batch in self._tail.batches():
            yield batch._replace(start=batch.start + self._shift, end=batch.end + self._shift)

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of lines that begin there. Those of two files are never asked for at once."""
        if offset < self._end:
            return self._old.read(offset, length)
        return self._new.read(offset - self._shift, length)

    def moved(self) -> bool:
        """Say whether the path names yet another file."""
        return self._new.moved()

    def close_old(self) -> None:
        """Let go of the old file, whose space on the disk is free then. Whoever calls this goes on with the new one."""
        self._old.close()

    def close(self) -> None:
        """Let go of both files."""
        self._old.close()
        self._new.close()


class Refolding:
    """The state of a file, folded from its start in small steps by somebody who has other things to do."""

    def __init__(self, log: LogReader, *, weighs: bool) -> None:
        self.log = log
        self.state = QueueState(weighs=weighs)
        self._batches = log.batches()

    def __repr__(self) -> str:
        return f"<Refolding {self.log!r}>"

    def step(self) -> bool:
        """Take up one batch or piece; False when there was none, for now."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = self.log.batches()
            return False
        self.state.apply(batch)
        return True

    def reach(self, commit: int) -> None:
        """Take up what is missing through this commit, which somebody has read in the same file."""
        while self.log.link.piece or self.log.commit < commit:
            self.step()

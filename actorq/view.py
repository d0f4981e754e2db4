"""What Queue.json says, read without any lock: for counts, get, tasks, info, and a join from another process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from actorq.errors import TaskNotFoundError
from actorq.store.filesystem import REAL, Filesystem
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from pathlib import Path

    from actorq.store.clients import ConsumerState
    from actorq.tasks.lifecycle import TaskState
    from actorq.tasks.task import Task


class View:
    """The state of the queue as of the last whole commit. Each question reads on from where the last one stopped."""

    def __init__(self, path: Path, filesystem: Filesystem = REAL, *, weighs: bool = False) -> None:
        self._path = path
        self._filesystem = filesystem
        self._weighs = weighs
        self._log: LogReader | None = None
        self.state = QueueState(weighs=weighs)

    def refresh(self) -> QueueState:
        """Read on to the last whole commit; from the start when the file was rewritten. Raises CorruptQueueError."""
        if self._log is not None and (self._log.moved() or not self._log.is_as_read()):
            self.close()
        if self._log is None:
            self.state = QueueState(weighs=self._weighs)
            try:
                self._log = LogReader(self._path, filesystem=self._filesystem)
            except FileNotFoundError:
                return self.state  # nothing was ever published
        for batch in self._log.batches():
            self.state.apply(batch)
        return self.state

    def look[Answer](self, question: Callable[[QueueState], Answer], /) -> Answer:
        """Return the answer to a question about the state as it is now."""
        return question(self.refresh())

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        return self.refresh().counts()

    def get(self, task_id: str) -> Task:
        """Return everything known of a task, or raise TaskNotFoundError."""
        state = self.refresh()
        try:
            seq = state.seq_of(task_id)
        except ValueError:  # not even an id
            seq = None
        if seq is None or self._log is None:
            raise TaskNotFoundError(task_id)
        return state.task(seq, self._log.read)

    def tasks(self, states: Collection[TaskState], name: str | None, limit: int | None) -> Iterator[Task]:
        """Yield the tasks in these states as they are now, in publish order; of many only the newest, `limit` of them.

        Nothing else may be asked of this view meanwhile.
        """
        state = self.refresh()
        if self._log is None:
            return
        places: Iterable[int] = state.places(states, name)
        for seq in places if limit is None else deque(places, limit):
            yield state.task(seq, self._log.read)

    def holder_of(self, task_id: str) -> ConsumerState | None:
        """Return the consumer that had the task when the file was last read, if one had it."""
        seq = self.state.seq_of(task_id)
        for consumer in self.state.consumers.values():
            for assignment in consumer.assignments.values():
                if any(seq is not None and lo <= seq < hi for lo, hi in assignment.held):
                    return consumer
        return None

    def close(self) -> None:
        """Let go of the file."""
        if self._log is not None:
            self._log.close()
            self._log = None

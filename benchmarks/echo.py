"""The actor that the rows about actors start and talk to. In a module of its own: its processes import little else."""

from __future__ import annotations

from actorq import Actor


class Echo(Actor):
    """Answers what it is asked, and counts what it is told."""

    def __init__(self) -> None:
        self._told = 0

    def receive(self, message: object) -> object:
        """None: one more. Anything else: an answer."""
        if message is None:
            self._told += 1
            return None
        return self._told

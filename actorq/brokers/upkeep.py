"""When a queue in use is worth compacting.

The scheduler knows how much of the file is still needed, so it decides; the Compactor does it.
"""

from __future__ import annotations

from typing import NamedTuple

KEEP_DONE = 10_000

MIN_BYTES = 4 << 20
"""A smaller file is not worth the trouble: it is read in a third of a second, if its tasks came one by one."""

FIRST_WAIT_SECONDS = 3.0
LAST_WAIT_SECONDS = 600.0
"""How long until it is asked for again, if nothing has come of it; doubled each time."""


class Upkeep(NamedTuple):
    """What is kept, and how long nothing is done."""

    keep_done: int | None = KEEP_DONE
    """So many finished tasks stay, the newest; None keeps all."""
    min_bytes: int = MIN_BYTES
    """Smaller files stay as they are."""
    wait: float = FIRST_WAIT_SECONDS
    """How long until a compaction is asked for by who has just begun, or again if nothing has come; see `Patience`."""

    def is_due(self, size: int, needed: int) -> bool:
        """Tell whether a file of this size is worth compacting, which would come out so long.

        When half of it goes. So what is freed is at least what is written for it, and all compactions together write no
        more than was ever published; and a queue that stays as long as it is doubles its file in between.
        """
        return size >= self.min_bytes and 2 * needed <= size


class Patience:
    """When to ask: not just after a start, and for what has not come after a while, each time a longer one.

    After a start there is more urgent work; and a compaction that ends the tree is not begun again and again without
    anything being done in between.
    """

    def __init__(self, first_wait: float = FIRST_WAIT_SECONDS) -> None:
        self._first_wait = self._wait = first_wait
        self._not_before = 0.0

    def __repr__(self) -> str:
        return f"<Patience not before {self._not_before:.3f}>"

    def may_ask(self, now: float) -> bool:
        """Tell whether the time has come."""
        return now >= self._not_before

    def began(self, now: float) -> float:
        """Note that everything has begun anew; return after how many seconds to look for the first time."""
        self._not_before = now + self._first_wait
        return self._first_wait

    def asked(self, now: float) -> float:
        """Note that it was asked for; return after how many seconds to look again."""
        wait, self._wait = self._wait, min(2 * self._wait, LAST_WAIT_SECONDS)
        self._not_before = now + wait
        return wait

    def came(self) -> None:
        """Note that it has come."""
        self._wait = self._first_wait
        self._not_before = 0.0

"""The parts of a queue that a plain publish does without. Each is imported when it is first asked for.

    from actorq import on_demand

    on_demand.hosting.Host(path)

Two thirds of what can be imported are for hosting a queue, running its tasks, or talking to those who do; whoever puts
a task into a file that nobody hosts has no need of it, and ends sooner.

To be asked for inside of functions only; see `lazy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actorq.lazy import lazily

if TYPE_CHECKING:
    from actorq import async_publisher, brokered_publisher, hosting, membership, refuge, steering, waiting
    from actorq.brokers import door, trees

__all__ = [
    "MODULES",
    "async_publisher",
    "brokered_publisher",
    "door",
    "hosting",
    "membership",
    "refuge",
    "steering",
    "trees",
    "waiting",
]

MODULES = {
    "async_publisher": "actorq.async_publisher",
    "brokered_publisher": "actorq.brokered_publisher",
    "door": "actorq.brokers.door",
    "hosting": "actorq.hosting",
    "membership": "actorq.membership",
    "refuge": "actorq.refuge",
    "steering": "actorq.steering",
    "trees": "actorq.brokers.trees",
    "waiting": "actorq.waiting",
}
"""The full names of the parts."""

__getattr__, __dir__ = lazily(globals(), MODULES)

"""Which queues this process belongs to: those that it hosts, and the one whose tasks it runs.

Every other queue it reaches like any other process: through the door of its host, or directly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.brokers.session import Brokers
    from actorq.hosting import Host


class Attachment(NamedTuple):
    """What this process is to a queue."""

    brokers: Brokers | None
    """Those of its own tree; None in a consumer that has joined the brokers of another process."""
    host: Host | None = None
    runs_tasks: bool = False
    """It is a consumer of the queue."""


_attachments: dict[Path, Attachment] = {}


def attach(path: Path, brokers: Brokers | None, host: Host | None = None, *, runs_tasks: bool = False) -> None:
    """From here on, every Queue of this (absolute) path in this process talks to these brokers."""
    _attachments[path] = Attachment(brokers, host, runs_tasks)


def detach(path: Path) -> None:
    """The brokers of this path are going away, or are not ours."""
    _attachments.pop(path, None)


def attachment_of(path: Path) -> Attachment | None:
    """Return what this process is to the queue of this path, if anything."""
    return _attachments.get(path)


def brokers_of(path: Path) -> Brokers | None:
    """Return the brokers of this process's own tree."""
    attachment = attachment_of(path)
    return None if attachment is None else attachment.brokers

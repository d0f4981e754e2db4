"""Which queues this process can reach through brokers: those it hosts, and the one whose consumer it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.brokers.session import Brokers
    from actorq.hosting import Host


class Attachment(NamedTuple):
    """The way from this process to the brokers of a queue."""

    brokers: Brokers
    host: Host | None


_attachments: dict[Path, Attachment] = {}


def attach(path: Path, brokers: Brokers, host: Host | None = None) -> None:
    """From here on, every Queue of this (absolute) path in this process talks to these brokers."""
    _attachments[path] = Attachment(brokers, host)


def detach(path: Path) -> None:
    """The brokers of this path are going away."""
    _attachments.pop(path, None)


def attachment_of(path: Path) -> Attachment | None:
    """Return the way to the brokers of this path, if this process has one."""
    return _attachments.get(path)

"""The door: how a process that is no child of the host reaches the brokers.

    knocking process                         Registry
        │ connect ──────────────────────────▶ │  who is it? the kernel says: the same user, and a pid that we see
        │ ◀── welcome, and three mailboxes ── │  hangs up; from here on the other one is a client like all
        │ Connect, hello, publish ... ───────▶ the mailboxes

Nothing is ever read at the door: so nobody can keep it waiting, or make it parse anything. What comes in by the
mailboxes is parsed as JSON, as always. Whoever is let in could write the file as well: it belongs to the same user.

Where the door is stands in the file of the host's lock, relative to the folder of the queue. The host makes it and
keeps it open over restarts of the Registry, at which clients wait in the kernel's queue meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from typing import TYPE_CHECKING

import orjson

from actorq.actors.listener import MAX_NAME_BYTES, Listener, Peer, connect
from actorq.actors.mailbox import Mailbox
from actorq.actors.packets import PacketSocket
from actorq.brokers.session import Brokers
from actorq.errors import NotAdmittedError
from actorq.store.locks import host_identity, host_pid, read_owner

if TYPE_CHECKING:
    from pathlib import Path

    from actorq.actors.packets import Packet
    from actorq.store.locks import FileIdentity

logger = logging.getLogger("actorq")

PROTOCOL = 1
"""What host and clients must agree on: the messages, and what is sent at the door."""

SUFFIX = ".door"

KNOCK_SECONDS = 1.0
"""How long an answer may take; a Registry that has to start anew takes less."""

LOOK_SECONDS = 0.05
"""How often whoever waits for an answer looks whether it is still the host that ought to give it."""


def door_path(queue_path: Path) -> Path:
    """Return where the host of a queue makes its door."""
    name = os.fsencode(queue_path.name)
    if len(name) + len(SUFFIX) > MAX_NAME_BYTES:
        name = b"%s~%08x" % (name[: MAX_NAME_BYTES - len(SUFFIX) - 9], zlib.crc32(name))
    return queue_path.with_name(os.fsdecode(name) + SUFFIX)


def open_door(queue_path: Path) -> Listener:
    """Make the door. Only for the holder of the host's lock."""
    return Listener.bind(door_path(queue_path))


def answer(channel: PacketSocket, peer: Peer, brokers: Brokers) -> None:
    """Let somebody in who has knocked, or say why not, and hang up."""
    reason = why_not(peer)
    fds = () if reason else tuple(_writing_end(mailbox).fileno() for mailbox in brokers)
    welcome = orjson.dumps({"actorq": PROTOCOL, "pid": peer.pid, "refused": reason})
    try:
        channel.try_send(welcome, fds=fds)
    except BrokenPipeError:
        pass  # it did not wait for the answer
    finally:
        channel.close()
    if reason:
        logger.warning("process not let in pid=%d uid=%d: %s", peer.pid, peer.uid, reason)


def why_not(peer: Peer) -> str:
    """Return why that process must not come in; empty if it may."""
    if peer.uid != os.geteuid():
        return f"it runs as user {peer.uid}, the queue as user {os.geteuid()}"
    if peer.pid <= 0:
        return OTHER_NAMESPACE
    return ""


NO_SENSE = "its answer makes no sense"
OTHER_NAMESPACE = "it lives in another pid namespace (another container), where nobody here could see it die"


def knock(queue_path: Path, timeout: float = KNOCK_SECONDS) -> Brokers | None:
    """Return the brokers of the process that hosts the queue; None when nobody does.

    Raises:
        TimeoutError: somebody hosts it and does not answer.
        NotAdmittedError: the host belongs to somebody else, or cannot deal with this process.
    """
    owner = read_owner(queue_path)
    door = None if owner is None else owner.get("door")
    if not isinstance(door, str) or not door.endswith(SUFFIX) or "/" in door:
        return None  # nobody hosts it, or not yet, or it is not a door of ours
    identity = host_identity(queue_path)
    try:
        connected = connect(queue_path.with_name(door))
    except BlockingIOError:
        raise TimeoutError(f"{queue_path}: its host does not answer") from None
    except PermissionError as error:
        raise NotAdmittedError(queue_path, host_pid(queue_path), "it belongs to another user") from error
    if connected is None:
        return None
    channel, peer = connected
    try:
        if peer.uid != os.geteuid():
            reason = f"it runs as user {peer.uid}, this process as {os.geteuid()}"
            raise NotAdmittedError(queue_path, host_pid(queue_path), reason)
        packet = _answer(channel, queue_path, identity, timeout)
    except (EOFError, ConnectionError):
        return None  # whoever answers died meanwhile
    finally:
        channel.close()
    if packet is None:
        return None  # it has been deposed
    mailboxes = [
        Mailbox.of_ends(name, None, PacketSocket(fd))
        for name, fd in zip(("publisher-broker", "consumer-broker", "registry"), packet.fds, strict=False)
    ]
    reason = _why_not_admitted(packet.data, len(packet.fds))
    if reason:
        raise NotAdmittedError(queue_path, host_pid(queue_path), reason)
    return Brokers(*mailboxes)


def _answer(channel: PacketSocket, queue_path: Path, identity: FileIdentity | None, timeout: float) -> Packet | None:
    """Return what the host sends, None if another one has its place meanwhile, or raise TimeoutError."""
    deadline = time.monotonic() + timeout
    while (packet := channel.receive(LOOK_SECONDS)) is None:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{queue_path}: its host does not answer")
        if host_identity(queue_path) != identity:
            return None
    return packet


def find_brokers(queue_path: Path) -> Brokers | None:
    """Return the brokers of whoever hosts the queue and answers, for those who will ask again."""
    try:
        return knock(queue_path)
    except TimeoutError:
        return None


def _why_not_admitted(said: bytes, mailboxes: int) -> str:
    try:
        welcome = orjson.loads(said)
    except orjson.JSONDecodeError:
        return NO_SENSE
    if not isinstance(welcome, dict):
        return NO_SENSE
    if welcome.get("actorq") != PROTOCOL:
        return "it runs another version of actorq"
    refused = welcome.get("refused")
    if refused:
        return str(refused)
    if welcome.get("pid") != os.getpid():
        return OTHER_NAMESPACE
    return "" if mailboxes == len(Brokers._fields) else NO_SENSE


def _writing_end(mailbox: Mailbox) -> PacketSocket:
    assert mailbox.writer is not None
    return mailbox.writer

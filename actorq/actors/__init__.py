"""Processes that own their state and talk by messages. No word about tasks.

    from actorq.actors import Actor, ActorSystem

    class Counter(Actor):
        def __init__(self, start: int = 0) -> None:
            self.total = start
        def receive(self, message: object) -> object:      # the return value answers an ask
            match message:
                case Add(n): self.total += n
                case Total(): return self.total
                case _: return super().receive(message)    # loud, not lost

    with ActorSystem() as system:
        counter = system.spawn(Counter, 10, name="counter")    # its own process
        counter.tell(Add(5))
        assert counter.ask(Total(), timeout=1) == 15

What holds, whatever is killed and when:

* A message is in the mailbox whole or not at all; once `tell` has returned, it is. One sender's stay in order.
* An actor that dies is started again by its supervisor on the same mailbox. The message in hand dies with it; its asker
  gets `ActorDiedError` at once. Those behind it are handled by the next incarnation.
* Nobody waits for the dead: an ask ends with an answer, an error, or its timeout.
* Children die with their supervisor, the supervisor with the program. Nothing is left over.

To read it, in this order:

    packets.py     whole packets between processes, with fds
    mailbox.py     the Queue on top of them
    wire.py        objects as bytes plus fds
    reply.py       the answer to an ask
    ref.py         tell, ask, stop, kill
    actor.py       what users write; loop.py runs it
    restart.py     the rules of supervision, as tables and pure functions
    supervisor.py  what acts on them; child.py forks, status.py is what a child tells
    root.py        the first process of a tree
    system.py      the host's side: ActorSystem
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actorq.actors.actor import Actor
    from actorq.actors.exits import ExitKind, ExitReason
    from actorq.actors.mailbox import Mailbox
    from actorq.actors.messages import ChildInfo, Down
    from actorq.actors.outbox import Outbox
    from actorq.actors.packets import Packet, PacketSocket
    from actorq.actors.ref import ActorRef
    from actorq.actors.reply import PendingReply, Reply
    from actorq.actors.restart import Restart, Strategy
    from actorq.actors.spec import ChildSpec
    from actorq.actors.supervisor import Supervisor
    from actorq.actors.system import ActorSystem, Watch
    from actorq.actors.timer import Timer
    from actorq.actors.wire import Fd

__all__ = [
    "Actor",
    "ActorRef",
    "ActorSystem",
    "ChildInfo",
    "ChildSpec",
    "Down",
    "ExitKind",
    "ExitReason",
    "Fd",
    "Mailbox",
    "Outbox",
    "Packet",
    "PacketSocket",
    "PendingReply",
    "Reply",
    "Restart",
    "Strategy",
    "Supervisor",
    "Timer",
    "Watch",
]

_HOMES = {
    "actor": "Actor",
    "exits": "ExitKind ExitReason",
    "mailbox": "Mailbox",
    "messages": "ChildInfo Down",
    "outbox": "Outbox",
    "packets": "Packet PacketSocket",
    "ref": "ActorRef",
    "reply": "PendingReply Reply",
    "restart": "Restart Strategy",
    "spec": "ChildSpec",
    "supervisor": "Supervisor",
    "system": "ActorSystem Watch",
    "timer": "Timer",
    "wire": "Fd",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: whoever needs `linux` alone, to publish, ends sooner."""
    for home, names in _HOMES.items():
        if name in names.split():
            globals()[name] = getattr(import_module(f"actorq.actors.{home}"), name)
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

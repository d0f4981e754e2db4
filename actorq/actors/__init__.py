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

from typing import TYPE_CHECKING

from actorq.lazy import in_modules, lazily

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
    "actorq.actors.actor": "Actor",
    "actorq.actors.exits": "ExitKind ExitReason",
    "actorq.actors.mailbox": "Mailbox",
    "actorq.actors.messages": "ChildInfo Down",
    "actorq.actors.outbox": "Outbox",
    "actorq.actors.packets": "Packet PacketSocket",
    "actorq.actors.ref": "ActorRef",
    "actorq.actors.reply": "PendingReply Reply",
    "actorq.actors.restart": "Restart Strategy",
    "actorq.actors.spec": "ChildSpec",
    "actorq.actors.supervisor": "Supervisor",
    "actorq.actors.system": "ActorSystem Watch",
    "actorq.actors.timer": "Timer",
    "actorq.actors.wire": "Fd",
}
# Whoever needs `linux` alone, to publish, ends sooner.
__getattr__, __dir__ = lazily(globals(), in_modules(_HOMES))

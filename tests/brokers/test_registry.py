"""The Registry: nobody is dead before the kernel says so, and what it cannot do now it does later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from actorq.actors import Down, ExitKind, Mailbox, Packet, PacketSocket
from actorq.actors.exits import ExitReason
from actorq.actors.linux import boot_id, pidfd_open, process_start_time
from actorq.brokers.messages import (
    Attach,
    Barrier,
    Channel,
    Connect,
    Detach,
    Event,
    EventOwner,
    Gone,
    Greeted,
    RouterStarted,
    WriterStarted,
)
from actorq.brokers.registry import (
    MAX_ENDED,
    AttachAgain,
    CauseTimer,
    HangUpTimer,
    Registry,
    WatchAgain,
)
from actorq.brokers.slot import Slot
from tests.brokers.stage import Stage, limits_kept, no_descriptor_left, packets

P, Q, C, D = (letter * 12 for letter in "pqcd")


class Scene:
    """A Registry, the mailboxes that it sends to, and the clients that have connected."""

    def __init__(self):
        self.writer, self.router = Mailbox(1 << 20, "writer"), Mailbox(1 << 16, "router")
        self.stage = Stage(Registry, self.writer, self.router)
        self.give = self.stage.give
        self.registry = self.stage.actor
        self.clients = {}
        self.given_to_writer = []
        packets(self.writer)
        packets(self.router)

    def connect(self, session, pid=None, role="publisher", slot=None, supervisor=None):
        """Connect a session of this process, or of another one; the supervisor of a consumer is us, or that pid."""
        mine, its = PacketSocket.pair(1 << 16)
        self.clients[session] = mine
        pidfds = [pidfd_open(each or os.getpid()) for each in (pid, supervisor)]
        fds = [its.fileno(), pidfds[0], *([] if slot is None else [slot.fd, pidfds[1]])]
        self.give(Connect(session, role, pid or os.getpid()), fds=fds)
        its.close()
        for pidfd in pidfds:
            os.close(pidfd)

    def hang_up(self, session):
        """Close the channel of a session, and let the Registry find that there is no other one."""
        pidfd = self.registry._clients[session].pidfd
        self.clients[session].close()
        self.stage.turn()
        self.registry.on_timer(HangUpTimer(session, pidfd))

    def heard_by_writer(self):
        """Return what the writer was told, without the channels that it was given: those are in `given_to_writer`."""
        self.stage.turn()
        found = messages_of(packets(self.writer))
        self.given_to_writer += [message.session for message in found if isinstance(message, Attach)]
        return [message for message in found if not isinstance(message, Attach)]

    def heard_by_router(self):
        return messages_of(packets(self.router))


def messages_of(found):
    """Return the messages; the descriptors are closed."""
    for packet in found:
        for fd in packet.fds:
            os.close(fd)
    return [Event.decode(packet.data).message for packet in found]


@pytest.fixture
def scene():
    with limits_kept():
        scene = Scene()
        yield scene
        scene.heard_by_router()
        scene.heard_by_writer()
        for session in list(scene.registry._clients):
            scene.registry._forget(session)


@pytest.fixture
def sleeper():
    """Return a process that does nothing until it is killed."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


def logged(session, pid=None, start=None, boot=None, role="publisher"):
    """Return a session as the writer knows it from the log."""
    pid = os.getpid() if pid is None else pid
    return [session, role, pid, process_start_time(pid) if start is None else start, boot or boot_id()]


def killed(process):
    process.kill()
    process.wait()


def down(process, kind, text):
    return Down("consumer-1", process.pid, ExitReason(kind, text))


def test_who_connects_is_attached_and_who_hangs_up_has_ended(scene):
    scene.connect(P)
    assert scene.heard_by_router() == [Attach(P, "publisher", os.getpid())]

    scene.hang_up(P)

    assert scene.heard_by_writer() == [Gone(P, "closed", "")]
    assert scene.given_to_writer == [P]
    assert scene.heard_by_router() == [Detach(P)]


def test_a_new_writer_is_given_all_channels_and_a_new_router_too(scene):
    scene.connect(P)
    scene.connect(C, role="consumer")
    scene.heard_by_writer(), scene.heard_by_router()

    scene.give(WriterStarted(2, []))
    scene.heard_by_writer()
    assert (scene.given_to_writer, scene.heard_by_router()) == ([P, C] * 2, [])

    scene.give(RouterStarted())
    scene.heard_by_writer()
    assert [message.session for message in scene.heard_by_router()] == [P, C]
    assert scene.given_to_writer == [P, C] * 2


@pytest.mark.parametrize("is_routed", [True, False])
def test_a_channel_that_one_of_them_hands_over_is_given_to_the_other(scene, is_routed):
    mine, its = PacketSocket.pair(1 << 16)
    pidfd = pidfd_open(os.getpid())

    scene.give(Channel(P, "publisher", os.getpid(), is_routed), fds=[its.fileno(), pidfd])

    scene.heard_by_writer()
    assert (scene.given_to_writer, len(scene.heard_by_router())) == (([P], 0) if is_routed else ([], 1))
    mine.close()
    its.close()
    os.close(pidfd)


def test_of_those_that_the_log_knows_only_the_dead_are_declared_dead(scene):
    scene.give(
        Greeted([logged(P), logged(Q, start=1), logged(C, boot="another boot"), logged(D, pid=4_194_305, start=1)])
    )

    assert scene.heard_by_writer() == [Gone(session, "found dead", "") for session in (Q, C, D)]
    scene.give(RouterStarted())
    assert scene.heard_by_router() == []  # it lives, and has no channel that could be attached


def test_a_channel_that_the_router_hands_over_goes_to_who_has_none(scene):
    scene.give(Greeted([logged(P)]))
    mine, its = PacketSocket.pair(1 << 16)
    pidfd = pidfd_open(os.getpid())
    before = len(os.listdir("/proc/self/fd"))

    scene.give(Channel(P, "publisher", os.getpid(), True), fds=[its.fileno(), pidfd])
    scene.heard_by_writer()
    kept = len(os.listdir("/proc/self/fd"))
    scene.give(Channel(P, "publisher", os.getpid(), True), fds=[its.fileno(), pidfd])

    assert kept == before + 1  # the channel; the pidfd replaces the one that it had
    assert len(os.listdir("/proc/self/fd")) == kept
    scene.give(RouterStarted())
    assert scene.heard_by_router() == [Attach(P, "publisher", os.getpid())]
    mine.close()
    its.close()
    os.close(pidfd)


@pytest.mark.parametrize("stray", [b"no event\n", b'["connect","publisher"]\n', Barrier(P, 1)])
def test_what_is_no_message_for_it_is_dropped_and_reported_and_what_comes_behind_is_handled(scene, stray, caplog):
    scene.give(stray, Greeted([logged(P, start=1)]))

    assert scene.heard_by_writer() == [Gone(P, "found dead", "")]
    assert "message dropped" in caplog.text


def test_a_death_is_charged_to_the_task_in_hand_and_told_once_however_it_becomes_known(scene, sleeper):
    slot = Slot()
    slot.enter(P)
    slot.number[0] = 7
    scene.connect(C, sleeper.pid, "consumer", slot)
    killed(sleeper)
    scene.stage.turn()
    assert scene.heard_by_writer() == []  # the supervisor may still say how

    scene.registry.on_down(down(sleeper, ExitKind.KILLED, "killed by signal 9 (SIGKILL)"))
    scene.registry.on_timer(CauseTimer(C))

    assert scene.heard_by_writer() == [Gone(C, "killed by signal 9 (SIGKILL)", f"{P}-7")]
    slot.close()


@pytest.mark.parametrize(
    ("kind", "text", "gone"),
    [
        (ExitKind.NORMAL, "normal", Gone(C, "exit status 0", f"{P}-7")),
        (ExitKind.SHUTDOWN, "shutdown", Gone(C, "shutdown", "")),
    ],
)
def test_who_leaves_by_himself_is_charged_and_who_is_stopped_is_not(scene, sleeper, kind, text, gone):
    slot = Slot()
    slot.enter(P)
    slot.number[0] = 7
    scene.connect(C, sleeper.pid, "consumer", slot)
    killed(sleeper)

    scene.registry.on_down(down(sleeper, kind, text))

    assert scene.heard_by_writer() == [gone]
    slot.close()


def test_a_consumer_of_whose_end_nobody_says_more_has_died_and_one_between_two_tasks_had_none_in_hand(scene, sleeper):
    slot = Slot()
    slot.enter(P)
    slot.number[0] = 7
    slot.clear()
    scene.connect(C, sleeper.pid, "consumer", slot)
    killed(sleeper)
    scene.stage.turn()

    scene.registry.on_timer(CauseTimer(C))

    assert scene.heard_by_writer() == [Gone(C, "process died", "")]
    slot.close()


def test_who_dies_with_its_supervisor_has_a_task_that_is_not_to_blame(scene, sleeper):
    slot = Slot()
    slot.enter(P)
    slot.number[0] = 7
    with subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"]) as supervisor:
        scene.connect(C, sleeper.pid, "consumer", slot, supervisor.pid)
        supervisor.kill()
    killed(sleeper)
    for _ in range(2):  # the death of the one is news, and then that of the other
        scene.stage.turn()

    assert scene.heard_by_writer() == [Gone(C, "its supervisor died", "")]
    slot.close()


def test_a_publisher_that_has_made_a_new_channel_before_it_closed_the_old_one_has_not_ended(scene):
    scene.connect(P)
    before, pidfd = scene.clients[P], scene.registry._clients[P].pidfd

    scene.connect(P)
    before.close()
    scene.stage.turn()
    scene.registry.on_timer(HangUpTimer(P, pidfd))

    assert scene.heard_by_writer() == []


def test_late_news_of_a_pid_that_is_another_ones_by_now_ends_nobody(scene, sleeper):
    scene.connect(C, sleeper.pid, "consumer")

    scene.registry.on_down(down(sleeper, ExitKind.KILLED, "killed"))

    assert scene.heard_by_writer() == []


def test_a_consumer_that_closes_its_channel_and_lives_on_is_killed(scene, sleeper):
    scene.connect(C, sleeper.pid, "consumer")
    scene.clients[C].close()
    scene.stage.turn()
    assert scene.heard_by_writer() == []

    scene.registry.on_timer(HangUpTimer(C, scene.registry._clients[C].pidfd))

    assert sleeper.wait(5) == -signal.SIGKILL


def test_a_consumer_that_has_connected_anew_by_then_lives(scene, sleeper):
    scene.connect(C, sleeper.pid, "consumer")

    scene.registry.on_timer(HangUpTimer(C, -1))  # another pidfd than that of its present connection
    scene.registry.on_timer(HangUpTimer(D, -1))  # which has ended

    assert sleeper.poll() is None


def test_without_a_descriptor_nobody_is_declared_dead_and_all_are_watched_later(scene, sleeper):
    alive, dead = logged(P, sleeper.pid), logged(Q, start=1)
    with no_descriptor_left():
        scene.give(Greeted([alive, dead]))
        assert scene.heard_by_writer() == []

    scene.registry.on_timer(WatchAgain([alive, dead]))
    assert scene.heard_by_writer() == [Gone(Q, "found dead", "")]
    killed(sleeper)
    assert scene.heard_by_writer() == [Gone(P, "process died", "")]


def test_a_channel_for_which_there_is_neither_room_nor_a_descriptor_is_passed_on_later(scene):
    while scene.router.try_send(b"x" * 1000):
        pass
    mine, its = PacketSocket.pair(1 << 16)
    fds = (os.dup(its.fileno()), pidfd_open(os.getpid()))
    with no_descriptor_left():
        scene.registry.receive_frames(
            [Packet(Event(EventOwner.PUBLISHER, Connect(P, "publisher", os.getpid())).encode(), fds)]
        )
    packets(scene.router)

    scene.registry.on_timer(AttachAgain(Q))  # which has ended meanwhile
    scene.registry.on_timer(AttachAgain(P))

    assert scene.heard_by_router() == [Attach(P, "publisher", os.getpid())]
    mine.close()
    its.close()


def test_a_new_writer_hears_again_of_the_deaths_that_the_log_does_not_show_and_only_of_those(scene):
    scene.give(Greeted([logged(P, start=1), logged(Q, start=1)]))
    scene.connect(C)
    scene.hang_up(C)
    assert scene.heard_by_writer() == [
        Gone(P, "found dead", ""),
        Gone(Q, "found dead", ""),
        Gone(C, "closed", ""),
    ]

    scene.give(WriterStarted(2, [logged(C)]))
    assert scene.heard_by_writer() == [Gone(C, "closed", "")]
    scene.give(WriterStarted(3, []), WriterStarted(4, [logged(C)]))
    assert scene.heard_by_writer() == []  # that was another one, and it is alive: it is this process


def test_only_the_last_deaths_are_remembered_so_many_of_them(scene):
    sessions = [f"{number:012}" for number in range(MAX_ENDED + 1)]
    for session in sessions:
        scene.connect(session)
        scene.hang_up(session)
        scene.heard_by_writer()
        scene.heard_by_router()

    scene.give(WriterStarted(2, [logged(session) for session in sessions]))

    assert [gone.session for gone in scene.heard_by_writer()] == sessions[1:]

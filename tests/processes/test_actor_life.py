"""Actors as processes: start, talk, stop, die."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest

from actorq.actors import ActorSystem, ExitKind, Mailbox
from actorq.errors import (
    ActorDiedError,
    ActorError,
    ActorStartError,
    ActorStoppedError,
    AskTimeoutError,
    MailboxFullError,
    RemoteError,
    UnhandledMessageError,
)
from tests.actors.cast import (
    Add,
    Alarm,
    Call,
    Counter,
    Diary,
    Forever,
    Framer,
    LaterAnswers,
    Listener,
    LocalTroubleError,
    Sleep,
    Total,
    Watcher,
)
from tests.helpers import limit, wait_until


@pytest.fixture(scope="module")
def system():
    with ActorSystem(name="life", max_restarts=1000) as system:
        yield system


@pytest.fixture
def heard():
    """Start systems whose processes write into what `capfd` reads: only those that the test itself starts do."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(ActorSystem(name="heard"))


@pytest.fixture
def counter(system):
    ref = system.spawn(Counter)
    yield ref
    ref.stop()


# ---------------------------------------------------------------------------------------------------------------
# Start


def test_the_example_of_the_documentation_works(system):
    counter = system.spawn(Counter, 10, name="counter")
    counter.tell(Add(5))
    assert counter.ask(Total(), timeout=1) == 15
    counter.stop()


def test_spawn_returns_once_init_and_on_start_are_through(system, tmp_path):
    path = tmp_path / "diary"
    ref = system.spawn(Diary, path, name="diary")
    assert path.read_text().split() == ["diary:init", "diary:start"]
    ref.stop()
    assert path.read_text().split()[2:] == ["diary:stop"]


@pytest.mark.parametrize("where", ["init", "on_start"])
def test_spawn_raises_what_they_raise_and_keeps_nothing(heard, tmp_path, where, capfd):
    system = heard()
    before = system.children()
    with pytest.raises(LocalTroubleError) as caught:
        system.spawn(Diary, tmp_path / "diary", name="fails", fail_in=where)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "cast.py" in caught.value.__cause__.text
    assert system.children() == before
    assert system.whereis("fails") is None
    assert capfd.readouterr().err == ""


def test_every_actor_is_its_own_process_and_bears_its_name(system, counter):
    pid = counter.ask("pid")
    assert pid not in (os.getpid(), system.supervisor_pid)
    assert counter.pid() == pid
    assert Path(f"/proc/{pid}/comm").read_text().strip() == f"actorq:{counter.name}"[:15]
    assert counter.ask("name") == (counter.name, counter)


def test_unnamed_actors_are_numbered_by_class(system):
    one, two = system.spawn(Counter), system.spawn(Counter)
    stems, numbers = zip(*(ref.name.split("-") for ref in (one, two)), strict=True)
    assert stems == ("counter", "counter")
    assert int(numbers[0]) < int(numbers[1])
    system.stop(one, two)


def test_a_name_can_be_taken_once_and_again_after_the_stop(system):
    for _ in range(5):
        ref = system.spawn(Counter, name="single")
        with pytest.raises(ActorStartError, match="'single' did not start: the name is taken"):
            system.spawn(Counter, name="single")
        assert system.whereis("single") == ref == system.ref("single")
        ref.stop()
        assert system.whereis("single") is None
        with pytest.raises(ActorStoppedError):
            system.ref("single")


def one_line(error):
    return "\n" not in str(error)


def test_a_class_that_cannot_be_imported_raises_at_once_in_one_line(system):
    class Local(Counter):
        pass

    with pytest.raises(ActorStartError, match="cannot be sent to a process") as caught:
        system.spawn(Local)
    assert one_line(caught.value)
    with pytest.raises(ActorStartError, match="cannot be sent to a process") as caught:
        system.spawn(Counter, lambda: 0)
    assert one_line(caught.value)


class OnlyHere(Counter):
    """Its module looks different in the actor's process."""


def test_a_class_that_the_child_cannot_find_raises_at_once_in_one_line(system, monkeypatch):
    monkeypatch.setattr(OnlyHere, "__module__", "no_such_module")
    import sys
    import types

    module = types.ModuleType("no_such_module")
    module.OnlyHere = OnlyHere  # type: ignore[attr-defined] # made on the spot
    monkeypatch.setitem(sys.modules, "no_such_module", module)
    with pytest.raises(ActorStartError, match="cannot be imported in its process: ModuleNotFoundError") as caught:
        system.spawn(OnlyHere)
    assert one_line(caught.value)


def test_a_start_that_takes_too_long_is_ended(heard, capfd):
    system = heard()
    with pytest.raises(ActorStartError, match=r"not within 0.1 s"):
        system.spawn(Forever, "init", startup=0.1)
    assert "is killed" in capfd.readouterr().err


def test_a_slow_start_holds_up_nobody(system):
    def start_slowly():
        with pytest.raises(ActorStartError):
            system.spawn(Forever, "init", name="slow", startup=1.0)

    slow = threading.Thread(target=start_slowly)
    slow.start()
    wait_until(lambda: any(child.name == "slow" for child in system.children()))
    begin = time.monotonic()
    system.spawn(Counter).stop()
    assert time.monotonic() - begin < limit(0.8)
    slow.join()


def test_a_spawn_that_is_interrupted_leaves_nothing(system, monkeypatch):
    from actorq.actors.reply import PendingReply

    wait = PendingReply.wait

    def interrupted(self, timeout):
        monkeypatch.setattr(PendingReply, "wait", wait)
        raise KeyboardInterrupt

    monkeypatch.setattr(PendingReply, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        system.spawn(Counter, name="interrupted")
    wait_until(lambda: all(child.name != "interrupted" for child in system.children()))
    system.spawn(Counter, name="interrupted").stop()


def test_several_threads_may_spawn(system):
    refs = []
    threads = [threading.Thread(target=lambda: refs.append(system.spawn(Counter))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({ref.ask("pid") for ref in refs}) == 8
    system.stop(*refs)


# ---------------------------------------------------------------------------------------------------------------
# Talk


def test_messages_of_one_sender_are_handled_in_order(system, tmp_path):
    ref = system.spawn(Diary, tmp_path / "diary", name="order")
    for number in range(100):
        ref.tell(number)
    ref.stop()
    words = (tmp_path / "diary").read_text().split()
    assert words[2:-1] == [f"order:{number}" for number in range(100)]


def test_an_error_reaches_the_asker_as_itself_and_the_actor_lives_on(counter):
    counter.tell(Add(7))
    with pytest.raises(LocalTroubleError, match="as told") as caught:
        counter.ask("crash")
    assert isinstance(caught.value.__cause__, RemoteError)
    assert counter.ask(Total()) == 7


def test_an_error_that_cannot_travel_reaches_the_asker_as_text(counter):
    with pytest.raises(RemoteError, match="StubbornError in another process"):
        counter.ask("stubborn")


def test_an_answer_that_does_not_pickle_is_an_error_for_the_asker(counter):
    with pytest.raises((pickle.PicklingError, AttributeError, RemoteError), match="lambda"):
        counter.ask("unpicklable")
    assert counter.ask(Total()) == 0


def test_a_message_that_does_not_pickle_raises_in_the_caller(counter):
    for send in (counter.tell, counter.ask):
        with pytest.raises((pickle.PicklingError, AttributeError)):
            send(lambda: None)


def test_large_messages_and_answers_arrive(counter):
    assert len(counter.ask("big answer")) == 10 << 20
    data = os.urandom(1 << 20) * 64
    assert counter.ask(Call(len, (data,)), timeout=20) == len(data)


def test_refs_and_mailboxes_travel_in_messages(system, counter):
    other = system.spawn(Counter)
    counter.ask(other)
    assert other.ask(Total()) == 1
    box = Mailbox()
    counter.tell(box)
    assert box.get(timeout=5) == "from the actor"
    assert counter.ask(Call(type(other).ask, (other, Total()))) == 1
    other.stop()


def test_nobody_can_ask_himself(counter):
    with pytest.raises(ActorError, match="would wait for itself"):
        counter.ask(Call(type(counter).ask, (counter, Total())))
    with pytest.raises(ActorError, match="own end"):
        counter.ask(Call(type(counter).stop, (counter,)))


def test_what_nobody_handles_is_loud(heard, capfd):
    system = heard()
    counter = system.spawn(Counter)
    with pytest.raises(UnhandledMessageError, match="does not handle 'what is this'"):
        counter.ask("what is this")
    counter.tell("what is that")
    assert counter.ask(Total()) == 0
    assert f"actor '{counter.name}' does not handle 'what is that'" in capfd.readouterr().err


def test_an_ask_that_takes_too_long_says_which(counter):
    begin = time.monotonic()
    with pytest.raises(AskTimeoutError, match=f"'{counter.name}' did not answer within 0.1 s"):
        counter.ask(Sleep(0.3), timeout=0.1)
    assert 0.09 < time.monotonic() - begin < limit(0.29)
    assert counter.ask(Total()) == 0  # the late answer went nowhere


def test_an_answer_may_come_later(system):
    ref = system.spawn(LaterAnswers)
    first = ref.ask_later("first")
    ref.ask_later("second").close()
    assert first.wait(5) == ("answered while handling", "second")
    ref.stop()


def tell_until_full(ref, message):
    for told in itertools.count():
        try:
            ref.tell(message, timeout=0.02)
        except MailboxFullError:
            return told
    return None


def test_a_full_mailbox_refuses_at_the_deadline_and_loses_nothing(system):
    ref = system.spawn(Counter, mailbox=Mailbox(1))
    ref.tell(Sleep(0.3))
    told = tell_until_full(ref, Add(1))
    with pytest.raises(MailboxFullError):
        ref.ask(Total(), timeout=0.02)
    assert ref.ask(Total()) == told
    ref.stop()


def test_timers_ring_in_order_and_not_when_cancelled(system):
    ref = system.spawn(Alarm)
    wait_until(lambda: len(ref.ask("rung")) == 2)
    time.sleep(0.02)
    assert ref.ask("rung") == ["first", "second"]
    ref.stop()


def has_got(ref, word):
    return word in ref.ask("got")


def test_an_actor_listens_to_further_fds(system):
    ref = system.spawn(Listener)
    for word in (b"one", b"two"):
        ref.tell(word)
        wait_until(functools.partial(has_got, ref, word))
    ref.tell(b"unheard")
    assert ref.ask("got") == [b"one", b"two"]
    ref.stop()


def next_of(mailbox):
    packet = mailbox.receive(5)
    assert packet is not None
    return packet


def test_frames_come_in_batches_and_are_never_unpickled(system):
    out = Mailbox()
    ref = system.spawn(Framer, out)
    assert next_of(out).data == b"timer timer"
    os.kill(ref.pid(), signal.SIGSTOP)
    read, write = os.pipe()
    for number in range(300):
        ref.send(b"%d" % number, fds=[write] if number == 0 else ())
    os.close(write)
    with pytest.raises(AskTimeoutError):
        ref.ask("a pickle", timeout=0.05)
    os.kill(ref.pid(), signal.SIGCONT)
    first = next_of(out)
    os.write(first.fds[0], b"alive")
    assert os.read(read, 10) == b"alive"
    for fd in (read, *first.fds):
        os.close(fd)
    assert [next_of(out).data for _ in range(299)] == [b"%d" % number for number in range(1, 300)]
    with pytest.raises(UnhandledMessageError, match="frames only"):
        ref.ask("a pickle")
    ref.stop()
    assert next_of(out).data == b"batches [44, 256]"


def test_a_frame_to_an_actor_of_messages_is_loud(heard, capfd):
    system = heard()
    counter = system.spawn(Counter)
    counter.send(b"frame")
    assert counter.try_send(b"frame")
    assert counter.ask(Total()) == 0
    assert "a frame of 5 bytes, but frames is False" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------------------
# Stop


def test_stop_handles_what_was_sent_before_and_ends_it_for_good(system, tmp_path):
    ref = system.spawn(Diary, tmp_path / "diary", name="drains")
    for number in range(1000):
        ref.tell(number)
    ref.stop()
    assert (tmp_path / "diary").read_text().split()[-2:] == ["drains:999", "drains:stop"]
    assert not ref.is_alive()
    assert ref.pid() is None
    for send in (ref.tell, ref.ask):
        with pytest.raises(ActorStoppedError):
            send("hello")
    ref.stop()


def test_stop_gets_through_a_full_mailbox(system, tmp_path):
    ref = system.spawn(Diary, tmp_path / "diary", name="full", mailbox=Mailbox(1))
    os.kill(ref.pid(), signal.SIGSTOP)
    told = tell_until_full(ref, "x")
    stopping = ref.stop_later()
    os.kill(ref.pid(), signal.SIGCONT)
    stopping.wait(5)
    assert (tmp_path / "diary").read_text().split()[2:] == ["full:x"] * told + ["full:stop"]


@pytest.mark.parametrize("where", ["receive", "stop"])
def test_an_actor_that_does_not_stop_in_its_time_is_killed(heard, where, capfd):
    system = heard()
    ref = system.spawn(Forever, where, shutdown=0.1)
    watch = system.watch(ref)
    ref.tell("go")
    begin = time.monotonic()
    ref.stop()
    assert 0.09 < time.monotonic() - begin < limit(1)
    down = watch.wait(1)
    assert (down.reason.kind, str(down.reason)) == (ExitKind.SHUTDOWN, "killed by signal 9 (SIGKILL)")
    assert "did not stop within 0.1 s and is killed" in capfd.readouterr().err


def test_asks_left_in_the_mailbox_of_a_stopped_actor_are_answered(system):
    ref = system.spawn(Forever, "receive", shutdown=0.1)
    in_hand = ref.ask_later("handled forever")
    waiting = [ref.ask_later("waits") for _ in range(3)]
    begin = time.monotonic()
    ref.stop()
    with pytest.raises(ActorDiedError):
        in_hand.wait(1)
    for pending in waiting:
        with pytest.raises(ActorStoppedError):
            pending.wait(1)
    assert time.monotonic() - begin < limit(1)


def test_several_are_stopped_at_the_same_time(system, tmp_path):
    refs = [system.spawn(Diary, tmp_path / str(n), slow_stop=0.2) for n in range(4)]
    begin = time.monotonic()
    system.stop(*refs)
    assert time.monotonic() - begin < limit(0.6)
    assert not any(ref.is_alive() for ref in refs)


def test_an_actor_may_stop_itself(system):
    ref = system.spawn(Counter, restart="transient")
    watch = system.watch(ref)
    ref.tell("stop")
    assert str(watch.wait(1).reason) == "normal"
    wait_until(lambda: system.whereis(ref.name) is None)


# ---------------------------------------------------------------------------------------------------------------
# Death


@pytest.mark.parametrize("message", ["kill yourself", "exit 3"])
def test_the_asker_of_an_actor_that_dies_hears_of_it_at_once(counter, message):
    begin = time.monotonic()
    with pytest.raises(ActorDiedError):
        counter.ask(message, timeout=5)
    assert time.monotonic() - begin < limit(0.5)


@pytest.mark.parametrize(
    ("message", "kind", "text"),
    [
        ("kill yourself", "killed", "killed by signal 9 (SIGKILL)"),
        ("exit 3", "crash", "exit status 3"),
        ("crash", "crash", "exit status 1: tests.actors.cast.LocalTroubleError: as told"),
        ("stop", "normal", "normal"),
    ],
)
def test_a_watch_names_the_reason(system, counter, message, kind, text):
    watch = system.watch(counter)
    pid = counter.pid()
    with pytest.raises(AskTimeoutError):
        watch.wait(0)
    counter.tell(message)
    down = watch.wait(2)
    assert (down.ref_name, down.pid) == (counter.name, pid)
    assert (down.reason.kind, str(down.reason)) == (kind, text)
    assert watch.wait(0) == down


def test_a_watch_fires_within_10_ms_of_the_death(system, counter):
    times = []
    for _ in range(5):
        watch = system.watch(counter)
        pid = counter.ask("pid")
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        watch.wait(1)
        times.append(time.monotonic() - begin)
    assert sorted(times)[2] < limit(0.01), times


def test_a_watch_that_was_asked_for_before_the_death_tells_of_that_death(system):
    ref = system.spawn(Counter)
    root = system.supervisor_pid
    for _ in range(15):
        pid = ref.ask("pid")
        os.kill(root, signal.SIGSTOP)  # it will find the request and the death at the same time
        watch = system.watch(ref)
        os.kill(pid, signal.SIGKILL)
        os.kill(root, signal.SIGCONT)
        down = watch.wait(2)
        assert (down.pid, down.reason.kind) == (pid, "killed")
    ref.stop()


def test_who_is_dead_already_is_reported_with_its_reason(system):
    ref = system.spawn(Counter, restart="temporary")
    ref.kill()
    down = system.watch(ref).wait(1)
    assert str(down.reason) == "killed by signal 9 (SIGKILL)"
    assert down.pid is not None


def test_an_actor_watches_another_once(system, counter):
    watcher = system.spawn(Watcher)
    for _ in range(2):
        watcher.ask(("watch", counter))
    counter.kill()
    wait_until(lambda: watcher.ask("heard"))
    counter.kill()
    (down,) = watcher.ask("heard")
    assert (down.ref_name, str(down.reason)) == (counter.name, "killed by signal 9 (SIGKILL)")
    watcher.ask(("watch", counter))
    watcher.ask(("unwatch", counter))
    counter.kill()
    assert len(watcher.ask("heard")) == 1
    watcher.stop()


def test_kill_returns_when_the_process_is_dead_and_the_next_has_the_backlog(counter):
    pid = counter.ask("pid")
    os.kill(pid, signal.SIGSTOP)
    for _ in range(10):
        counter.tell(Add(1))
    counter.kill()
    assert not Path(f"/proc/{pid}").exists()
    assert counter.ask(Total()) == 10
    assert counter.ask("pid") != pid


def test_a_crash_is_logged_with_its_traceback(heard, capfd):
    system = heard()
    counter = system.spawn(Counter)
    counter.tell("crash")
    assert counter.ask(Total()) == 0
    err = capfd.readouterr().err
    assert f"actor {counter.name} ends: an error left it" in err
    assert "LocalTroubleError: as told" in err


def test_exactly_the_named_descriptors_are_open_in_a_child(system, counter):
    fds, named = counter.ask("descriptors")
    # Two more while this ask is answered: the Pipe for the answer, and the folder that is listed.
    assert set(named.values()) <= set(fds)
    assert len(fds) == len(named) + 2
    assert list(named) == [
        "stdin",
        "stdout",
        "stderr",
        "mailbox, reading end",
        "mailbox, writing end",
        "supervisor",
        "status",
        "lifeline 1",
        "wait set",
    ]


def test_the_host_keeps_no_fd_and_no_process_of_those_that_have_gone(system):
    import gc

    def fds():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    def root_fds():
        return len(os.listdir(f"/proc/{system.supervisor_pid}/fd"))

    def zombies():
        return [p for p in Path("/proc").glob("[0-9]*/stat") if is_zombie_of(p, system.supervisor_pid)]

    system.spawn(Counter).stop()
    before, root_before = fds(), root_fds()
    for _ in range(4):
        refs = [system.spawn(Counter) for _ in range(3)]
        system.watch(refs[0])
        refs[1].kill()
        with pytest.raises(LocalTroubleError):
            system.spawn(Diary, Path("/dev/null"), fail_in="init")
        system.stop(*refs)
        del refs
    wait_until(lambda: fds() == before, what=f"{fds()} fds, {before} before")
    wait_until(lambda: root_fds() == root_before)
    assert zombies() == []


def is_zombie_of(path, parent):
    try:
        fields = path.read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] == "Z" and int(fields[1]) in (parent, os.getpid())

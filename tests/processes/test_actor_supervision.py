"""Who is started again, and who gives up."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from actorq.actors import ActorRef, ActorSystem, ChildSpec, Mailbox, Supervisor
from actorq.actors.linux import children_of
from actorq.errors import ActorDiedError, ActorError, ActorStartError, ActorStoppedError, RestartLimitError
from tests.actors.cast import (
    Add,
    Counter,
    CrashesSoon,
    Diary,
    FailsWhenToldSo,
    Forever,
    Framer,
    GivesUp,
    LocalTroubleError,
    LostError,
    Nobody,
    Total,
)
from tests.helpers import is_running, limit, wait_until


def words(path):
    return path.read_text().split()


def diaries(path, names="abc", **options):
    return [ChildSpec(name, Diary, (path,), **options) for name in names]


def settled(system, path, count):
    """Wait until so many words are written and all children run."""
    wait_until(lambda: len(words(path)) >= count, what=f"{count} words")
    wait_until(lambda: all(child.state == "running" for child in system.children()))
    return words(path)


@pytest.fixture(scope="module")
def shared_system():
    with ActorSystem(name="shared", max_restarts=1000) as system:
        yield system


@pytest.fixture
def system(shared_system):
    """One without children."""
    yield shared_system
    shared_system.stop(*(shared_system.ref(child.name) for child in shared_system.children()))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "diary"


# ---------------------------------------------------------------------------------------------------------------
# Order and strategies


def test_children_start_in_order_and_stop_in_reverse(path):
    with ActorSystem(diaries(path)):
        started = words(path)
    assert started == ["a:init", "a:start", "b:init", "b:start", "c:init", "c:start"]
    assert words(path)[len(started) :] == ["c:stop", "b:stop", "a:stop"]


def kill_b(strategy, path):
    with ActorSystem(diaries(path), strategy=strategy) as system:
        before = len(words(path))
        pids = {child.name: child.pid for child in system.children()}
        system.ref("b").kill()
        wait_until(lambda: system.ref("b").pid() not in (None, pids["b"]))
        wait_until(lambda: all(child.state == "running" for child in system.children()))
        after = {child.name: child.pid for child in system.children()}
        said = words(path)[before:]
    return said, {name for name in pids if pids[name] != after[name]}


def test_one_for_one_starts_only_the_one_that_died(path):
    assert kill_b("one_for_one", path) == (["b:init", "b:start"], {"b"})


def test_one_for_all_stops_the_others_in_reverse_and_starts_all_in_order(path):
    said, changed = kill_b("one_for_all", path)
    assert said == ["c:stop", "a:stop", "a:init", "a:start", "b:init", "b:start", "c:init", "c:start"]
    assert changed == {"a", "b", "c"}


def test_rest_for_one_takes_those_started_later_along(path):
    said, changed = kill_b("rest_for_one", path)
    assert said == ["c:stop", "b:init", "b:start", "c:init", "c:start"]
    assert changed == {"b", "c"}


def test_a_sibling_that_will_not_come_back_is_not_started_by_a_wave(path):
    specs = [*diaries(path, "ab"), ChildSpec("c", Diary, (path,), restart="temporary")]
    with ActorSystem(specs, strategy="one_for_all") as system:
        system.ref("a").kill()
        wait_until(lambda: words(path).count("b:start") == 2)
        assert [child.name for child in system.children()] == ["a", "b"]
        assert system.whereis("c") is None


@pytest.mark.parametrize(
    ("restart", "message", "comes_back"),
    [
        ("permanent", "stop", True),
        ("permanent", "crash", True),
        ("transient", "stop", False),
        ("transient", "exit 3", True),
        ("transient", "kill yourself", True),
        ("temporary", "kill yourself", False),
    ],
)
def test_the_restart_rule(system, restart, message, comes_back):
    ref = system.spawn(Counter, restart=restart)
    pid = ref.pid()
    ref.tell(message)
    if comes_back:
        assert ref.ask("pid") != pid
        ref.stop()
    else:
        wait_until(lambda: system.whereis(ref.name) is None)
        with pytest.raises(ActorStoppedError):
            ref.tell("hello")


def test_a_child_is_started_from_a_spec_as_it_is_spawned(system):
    ref = system.start_child(ChildSpec("counter", Counter, (7,), restart="transient"))

    assert ref == system.whereis("counter")
    assert ref.ask(Total()) == 7
    with pytest.raises(ActorStartError, match="the name is taken"):
        system.start_child(ChildSpec("counter", Counter))
    ref.stop()
    assert system.start_child(ChildSpec("counter", Counter)).ask(Total()) == 0


def test_a_system_that_is_not_waited_for_can_be_used_at_once():
    with ActorSystem(wait=False) as system:
        assert system.spawn(Counter, 3).ask(Total()) == 3


def test_without_a_thread_to_be_had_there_is_an_error_and_no_process(monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    before = children_of(os.getpid())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        ActorSystem()

    assert children_of(os.getpid()) == before


# ---------------------------------------------------------------------------------------------------------------
# Mailboxes and names outlive everything


def test_a_restarted_actor_keeps_its_name_its_refs_and_its_mailbox(system):
    ref = system.spawn(Counter, name="counter")
    for round_number in range(20):
        os.kill(ref.ask("pid"), signal.SIGKILL)
        for _ in range(5):
            ref.tell(Add(1))
        assert ref.ask(Total()) == 5, round_number
        assert system.whereis("counter") == ref


def test_a_given_mailbox_is_used_and_the_giver_may_close_his_copy(system):
    box = Mailbox(name="mine")
    box.put(Add(3))
    ref = system.spawn(Counter, mailbox=box)
    box.put(Add(4))
    box.close()
    assert ref.ask(Total()) == 7


def next_frame(mailbox):
    packet = mailbox.receive(5)
    assert packet is not None
    return packet.data.decode()


def test_whoever_is_to_be_notified_hears_of_every_end(system):
    heard = Mailbox()
    framer = system.spawn(Framer, heard)
    next_frame(heard)
    counter = system.spawn(Counter, name="watched", notify=framer)
    pids = [counter.ask("pid")]
    counter.kill()
    pids.append(counter.ask("pid"))
    counter.stop()
    said = [next_frame(heard) for _ in range(2)]
    assert said == [f"down watched {pids[0]} killed by signal 9 (SIGKILL)", f"down watched {pids[1]} shutdown"]


# ---------------------------------------------------------------------------------------------------------------
# Limits


def test_a_limit_that_is_exceeded_ends_the_system_and_says_why(path, capfd):
    specs = [*diaries(path, "ab"), ChildSpec("c", Counter)]
    with ActorSystem(specs, max_restarts=2, max_seconds=5) as system:
        ref = system.ref("c")
        waiting = [system.ref("c").ask_later("nothing special") for _ in range(1)]
        for _ in range(3):
            ref.tell("exit 3")
        waiting += [ref.ask_later("too late") for _ in range(3)]
        wait_until(lambda: system.failure is not None)
        assert str(system.failure) == "gave up on 'c': more than 2 restarts in 5 s; last end: exit status 3"
        for pending in waiting[1:]:
            with pytest.raises(ActorStoppedError):
                pending.wait(1)
        for use in (lambda: system.spawn(Counter), system.children, lambda: system.whereis("a")):
            with pytest.raises(RestartLimitError):
                use()
        with pytest.raises(ActorStoppedError):
            ref.tell("hello")
        wait_until(lambda: not Path(f"/proc/{system.supervisor_pid}").exists())
    assert words(path)[-2:] == ["b:stop", "a:stop"]
    assert "supervisor root gave up on 'c'" in capfd.readouterr().err


def test_kills_spread_over_time_are_no_reason_to_give_up():
    with ActorSystem(max_restarts=1, max_seconds=0.05) as system:
        ref = system.spawn(Counter)
        for _ in range(4):
            ref.kill()
            ref.ask(Total())
            time.sleep(0.06)  # the window is this long
        assert system.failure is None


def test_progress_is_forgiven_where_it_is_asked_for():
    with ActorSystem(max_restarts=0) as system:
        ref = system.spawn(Counter, forgive_progress=True)
        for _ in range(10):
            ref.ask(Total())
            wait_until(lambda: system.children()[0].progress)
            ref.kill()
        assert ref.ask(Total()) == 0
        assert system.children()[0].restarts == 10
        assert system.failure is None


def test_one_that_crashes_as_soon_as_it_gets_to_work_is_slowed_down_but_not_given_up():
    with ActorSystem(max_restarts=3) as system:
        ref = system.spawn(CrashesSoon, forgive_progress=True)
        wait_until(lambda: system.children()[0].restarts >= 4)
        time.sleep(0.3)  # at full speed that would be another 50
        assert system.children()[0].restarts < 10
        assert system.failure is None
        ref.stop()


def test_deaths_before_any_progress_count_all_the_same(tmp_path):
    forbidden = tmp_path / "forbidden"
    with ActorSystem(max_restarts=5) as system:
        ref = system.spawn(FailsWhenToldSo, forbidden, forgive_progress=True)
        forbidden.touch()
        begin = time.monotonic()
        ref.kill()
        wait_until(lambda: system.failure is not None)
        # 0 + 10 + 20 + 40 + 80 ms of back-off
        assert 0.15 < time.monotonic() - begin < limit(2)
        assert "LocalTroubleError: forbidden" in str(system.failure)


def test_a_start_that_fails_again_is_tried_again(system, tmp_path):
    forbidden = tmp_path / "forbidden"
    ref = system.spawn(FailsWhenToldSo, forbidden)
    other = system.spawn(Counter)
    forbidden.touch()
    ref.kill()
    pending = ref.ask_later("pid")
    wait_until(lambda: system.children()[0].restarts > 3)
    assert other.ask(Total()) == 0  # nobody waits for the one that cannot start
    forbidden.unlink()
    assert pending.wait(5) > 0


def test_a_stop_of_an_actor_that_is_waiting_to_be_started_again_is_immediate(system, tmp_path):
    forbidden = tmp_path / "forbidden"
    ref = system.spawn(FailsWhenToldSo, forbidden)
    forbidden.touch()
    ref.kill()
    wait_until(lambda: system.children()[0].restarts > 5)
    begin = time.monotonic()
    ref.stop()
    assert time.monotonic() - begin < limit(0.3)
    assert system.children() == []


# ---------------------------------------------------------------------------------------------------------------
# Supervisors under supervisors


def test_a_supervisor_is_an_actor_that_can_be_spawned(system, path):
    ref = system.spawn(Supervisor, diaries(path), strategy="rest_for_one", name="team")
    assert words(path) == ["a:init", "a:start", "b:init", "b:start", "c:init", "c:start"]
    b = system.ref("team/b")
    pid = b.ask("pid")
    assert system.whereis("team/nobody") is None
    b.kill()
    assert b.ask("pid") != pid
    assert b != system.spawn(Counter, name="b")
    ref.stop()
    assert words(path)[-3:] == ["c:stop", "b:stop", "a:stop"]
    with pytest.raises(ActorStoppedError):
        b.tell("hello")


def test_a_supervisor_has_as_long_to_stop_as_its_children_together():
    inner = [ChildSpec("a", Counter, shutdown=20), ChildSpec("b", Counter, shutdown=30)]
    assert ChildSpec("team", Supervisor, (inner,)).seal().shutdown == 50


def test_a_second_stop_may_shorten_the_first(system):
    ref = system.spawn(Forever, "stop", shutdown=60)
    first = ref.stop_later()
    begin = time.monotonic()
    ref.stop(timeout=0.1)
    first.wait(1)
    assert time.monotonic() - begin < limit(1)


def test_a_supervisor_whose_child_does_not_start_does_not_start(system, path):
    specs = [*diaries(path, "ab"), ChildSpec("c", Diary, (path, "c"), {"fail_in": "init"})]
    with pytest.raises(LocalTroubleError, match="in __init__"):
        system.spawn(Supervisor, specs, name="team")
    assert words(path)[-3:] == ["c:init", "b:stop", "a:stop"]
    assert system.children() == []


def test_so_does_a_system(path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LocalTroubleError, match="in on_start"):
        ActorSystem([*diaries(path, "a"), ChildSpec("b", Diary, (path, "b"), {"fail_in": "on_start"})])
    assert words(path)[-1] == "a:stop"
    import gc

    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_two_specs_of_one_name_are_refused():
    with pytest.raises(ActorStartError, match="the name is taken"):
        ActorSystem([ChildSpec("a", Counter), ChildSpec("a", Counter)])
    with ActorSystem() as system, pytest.raises(ActorStartError, match="the name is taken"):
        system.spawn(Supervisor, [ChildSpec("a", Counter), ChildSpec("a", Counter)])


def test_a_limit_of_a_supervisor_is_a_crash_for_the_one_above(system, path, capfd):
    team = system.spawn(Supervisor, [*diaries(path, "a"), ChildSpec("c", Counter)], max_restarts=1, name="team")
    c = system.ref("team/c")
    watch = system.watch(team)
    for _ in range(2):
        c.tell("exit 3")
    down = watch.wait(2)
    assert down.reason.kind == "crash"
    assert "gave up on 'c': more than 1 restarts" in down.reason.detail
    assert c.ask(Total()) == 0  # the next supervisor has started it on the same mailbox
    assert words(path).count("a:stop") == 1


def test_a_killed_supervisor_takes_its_children_along_and_they_come_back_with_their_mailboxes(system):
    team = system.spawn(Supervisor, [ChildSpec(name, Counter) for name in "abc"], name="team")
    refs = [system.ref(f"team/{name}") for name in "abc"]
    for _ in range(5):
        pids = [ref.ask("pid") for ref in refs]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for ref in refs:
            ref.tell(Add(2))
        team.kill()
        wait_until(functools.partial(none_runs, pids), timeout=1)
        assert [ref.ask(Total()) for ref in refs] == [2, 2, 2]


def none_runs(pids):
    return not any(is_running(pid) for pid in pids)


# ---------------------------------------------------------------------------------------------------------------
# The root


def test_a_killed_root_is_started_again_with_the_same_actors_names_and_backlogs(path):
    with ActorSystem(diaries(path, "ab")) as system:
        counter = system.spawn(Counter, 7, name="counter")
        for round_number in range(3):
            pids = [child.pid for child in system.children()]
            root = system.supervisor_pid
            os.kill(counter.ask("pid"), signal.SIGSTOP)
            counter.tell(Add(1))
            os.kill(root, signal.SIGKILL)
            assert counter.ask(Total()) == 8
            assert system.supervisor_pid != root
            assert system.supervisor_restarts == round_number + 1
            wait_until(functools.partial(none_runs, pids), timeout=1)
            assert [child.name for child in system.children()] == ["a", "b", "counter"]
            assert system.whereis("counter") == counter
        counter.stop()
        assert [child.name for child in system.children()] == ["a", "b"]


def test_the_ask_in_hand_of_a_dying_tree_ends_at_once():
    from tests.actors.cast import Sleep

    with ActorSystem() as system:
        counter: ActorRef = system.spawn(Counter)
        pending = counter.ask_later(Sleep(60))
        wait_until(lambda: is_sleeping(counter.pid()))
        watch = system.watch(counter)
        assert system.children()  # the watch stood before it in the mailbox
        begin = time.monotonic()
        os.kill(system.supervisor_pid, signal.SIGKILL)
        with pytest.raises(ActorDiedError):
            pending.wait(5)
        assert str(watch.wait(1).reason) == "ended with its supervisor"
        assert time.monotonic() - begin < limit(0.5)


def is_sleeping(pid):
    return pid is not None and "nanosleep" in Path(f"/proc/{pid}/wchan").read_text()


def test_temporary_actors_do_not_come_back_with_a_new_root():
    with ActorSystem() as system:
        temporary = system.spawn(Counter, restart="temporary", name="temporary")
        permanent = system.spawn(Counter)
        os.kill(system.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: system.supervisor_restarts == 1)  # or the one that is about to die could take the ask
        assert permanent.ask(Total()) == 0
        assert system.whereis("temporary") is None
        with pytest.raises(ActorStoppedError):
            temporary.tell("hello")


def test_a_transient_actor_that_has_finished_does_not_come_back_with_a_new_root():
    with ActorSystem() as system:
        done = system.spawn(Counter, restart="transient", name="done")
        done.tell("stop")
        wait_until(lambda: system.whereis("done") is None)
        os.kill(system.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: system.supervisor_restarts == 1)
        assert system.children() == []


def test_spawn_and_stop_get_through_while_roots_are_killed():
    import threading

    with ActorSystem(max_restarts=100) as system:
        is_over = threading.Event()

        def rage():
            while not is_over.wait(0.25):
                with contextlib.suppress(ProcessLookupError):  # the next one is not there yet
                    os.kill(system.supervisor_pid, signal.SIGKILL)

        killer = threading.Thread(target=rage)
        killer.start()
        try:
            number = 0
            while system.supervisor_restarts < 3:
                number += 1
                ref = system.spawn(Counter, number)
                assert ask_until_answered(ref) == number
                system.stop(ref)
        finally:
            is_over.set()
            killer.join()
        assert system.children() == []


def ask_until_answered(ref):
    while True:
        try:
            return ref.ask(Total())
        except ActorError:
            continue


def test_a_root_that_dies_again_and_again_is_given_up(tmp_path, capfd):
    forbidden = tmp_path / "forbidden"
    with ActorSystem(max_restarts=2) as system:
        system.spawn(FailsWhenToldSo, forbidden)
        forbidden.touch()
        os.kill(system.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: system.failure is not None)
        assert isinstance(system.failure, RestartLimitError)
        assert "forbidden" in str(system.failure)


@pytest.mark.parametrize("at", ["work", "its next start"])
def test_an_error_after_which_no_new_incarnation_could_do_better_ends_all_at_once_and_is_what_the_host_sees(
    tmp_path, capfd, at
):
    forbidden = tmp_path / "forbidden"
    with ActorSystem(max_restarts=1000) as system:
        other = system.spawn(Counter)
        ref = system.spawn(GivesUp, forbidden)
        if at == "work":
            ref.tell("despair")
        else:
            forbidden.touch()
            ref.tell("crash")
        wait_until(lambda: system.failure is not None)
        assert isinstance(system.failure, LostError)
        assert str(system.failure) == ("despair" if at == "work" else "forbidden")
        with pytest.raises(ActorStoppedError):
            other.tell(Add(1))
        with pytest.raises(LostError):
            system.spawn(Counter)


def test_such_an_error_at_the_first_start_is_the_spawners_alone(tmp_path):
    with ActorSystem() as system:
        with pytest.raises(LostError):
            system.spawn(GivesUp, tmp_path)
        assert system.failure is None


def test_last_words_that_are_cut_in_the_middle_of_a_character_disturb_nobody_else(system):
    talker, other = system.spawn(Counter), system.spawn(Counter)
    before = other.ask("pid")

    for _ in range(2):  # cut at an even byte or an odd one
        talker.tell("crash with many words")
    wait_until(lambda: talker.ask(Total(), timeout=20) == 0, timeout=20)

    assert other.ask("pid") == before


def test_a_process_that_an_actor_has_forked_can_be_terminated(system):
    assert system.spawn(Counter).ask("leave a program", timeout=30) == -signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_an_actor_that_has_become_somebody_else_ends_with_its_supervisor_all_the_same(tmp_path):
    with ActorSystem() as own:
        nobody = own.spawn(Nobody)
        pid = nobody.ask("pid")
        [root] = [root for root in children_of(os.getpid()) if pid in children_of(root)]
        os.kill(root, signal.SIGKILL)
        wait_until(lambda: not is_running(pid), what="its end")

        assert nobody.ask("pid", timeout=20) != pid


@pytest.mark.parametrize("seconds", [25 * 86400.0, float("inf")])
def test_times_beyond_what_the_kernel_can_wait_for_are_waited_for(seconds):
    with ActorSystem() as own:
        counter = own.spawn(Counter, shutdown=seconds, startup=seconds)
        assert counter.ask(Total(), timeout=seconds) == 0
        counter.stop()
        assert not own.children()


def test_a_root_that_lives_and_cannot_take_a_request_is_not_asked_for_ever(monkeypatch):
    with ActorSystem() as own:
        asked = []

        def lost(_ref, request, timeout):
            asked.append((request, timeout))
            raise ActorDiedError("root")

        with monkeypatch.context() as patch:
            patch.setattr(ActorRef, "ask", lost)
            with pytest.raises(ActorDiedError):
                own.spawn(Counter)
        assert len(asked) == 1


def test_a_window_in_which_nothing_can_happen_is_refused():
    with pytest.raises(ValueError, match="in more than 0"):
        ActorSystem(max_seconds=0)


def test_a_callback_that_fails_or_closes_the_system_is_called_once_and_hides_no_failure(caplog):
    called = []

    def on_failure():
        called.append(own.failure)
        own.close()
        raise LocalTroubleError("in the callback")

    own = ActorSystem(max_restarts=0, on_failure=on_failure)
    own.spawn(Counter).tell("crash")
    wait_until(lambda: "on_failure" in caplog.text, what="the callback")

    assert [type(failure) for failure in called] == [RestartLimitError]
    assert type(own.failure) is RestartLimitError
    own.close()

"""Processes that are no children of the host: they publish, run consumers, and take the queue over when it ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from actorq import CorruptQueueError, PublishError, Queue, QueueFullError, QueueLockedError
from actorq.errors import RestartLimitError
from actorq.hosting import BROKER_NAMES, new_system
from actorq.membership import member_of
from actorq.store.locks import HostLock
from tests import handlers
from tests.helpers import limit, wait_until

ROOT = Path(__file__).parents[2]

WORKER = """
import sys
from actorq import Queue
from tests import handlers
queue = Queue({path!r}, takeover_after={takeover_after})
if __name__ == "__main__":
    with queue.running({consumers}, handler=handlers.{handler}):
        print("up", flush=True)
        for line in sys.stdin:
            pass
"""


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json", takeover_after=2.0)


@contextmanager
def another(queue, consumers=1, handler="note_pid_and_wait", takeover_after=2.0):
    """Run the queue in a process of another session and another folder, as from another terminal."""
    code = WORKER.format(path=str(queue.path), consumers=consumers, handler=handler, takeover_after=takeover_after)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        yield process
        if process.poll() is None:
            process.stdin.close()
            assert process.wait(timeout=20) == 0
    finally:
        with_group(process, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def with_group(process, number):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def host_here(queue):
    """Return the host in this process, if it hosts the queue."""
    member = member_of(queue.path)
    return None if member is None else member.host


def the_member(queue):
    """Return what this process contributes, which there has to be."""
    member = member_of(queue.path)
    assert member is not None
    return member


def the_host_here(queue):
    """Wait until this process hosts the queue."""
    wait_until(lambda: the_member(queue).host is not None, what="a host here")
    return the_member(queue).host


def the_crew_here(queue):
    crew = the_member(queue)._crew
    assert crew is not None
    return crew.children()


def pids_noted(queue):
    return {path.name for path in queue.path.parent.glob("pid-*")}


def gated(queue, count):
    return [{"folder": str(queue.path.parent)}] * count


def open_gate(queue):
    (queue.path.parent / "gate").touch()


def test_a_process_that_hosts_nothing_publishes_through_the_brokers_and_hears_when_all_is_done(queue):
    with another(queue, handler="echo"):
        ids = queue.publish_many({"n": n} for n in range(300))
        assert queue.publish("one more") not in ids
        queue.join(timeout=20)

        assert queue.counts()["done"] == 301
        assert queue.get(ids[-1]).result == {"n": 299}


def test_consumers_of_two_processes_share_the_work(queue):
    with another(queue), queue.running(1, handler=handlers.note_pid_and_wait):
        queue.publish_many(gated(queue, 2))
        wait_until(lambda: len(pids_noted(queue)) == 2, what="both to run one")
        assert host_here(queue) is None
        open_gate(queue)
        queue.join(timeout=20)

    assert queue.counts()["done"] == 2


@pytest.mark.parametrize("is_known", [False, True], ids=["knows no consumer", "knows less of it"])
def test_consumers_that_have_joined_are_replaced_after_an_older_file_was_put_in_the_place_of_the_queue(
    tmp_path, is_known
):
    queue = Queue(tmp_path / "Queue.json", takeover_after=600)  # the host lets go by itself, though its program goes on
    queue.publish(0)
    copy = tmp_path / "copy"
    shutil.copy(queue.path, copy)
    with another(queue, 0, takeover_after=600) as host, queue.running(1, handler=handlers.echo):
        queue.join(timeout=20)
        if is_known:
            shutil.copy(queue.path, copy)
            queue.publish(1)
            queue.join(timeout=20)
        [stranger] = (child.pid for child in the_crew_here(queue))
        copy.replace(queue.path)

        def hosts_after_a_publish():
            # The host sees what has happened when it writes, not before a tenth of a second; then it gives up.
            with suppress(PublishError, QueueLockedError):
                queue.publish("more", timeout=1)
            return host_here(queue) is not None

        wait_until(hosts_after_a_publish, timeout=20, what="a host here")
        last = queue.publish("last")
        queue.join(timeout=20)
        assert host.poll() is None
        host.kill()
        host.wait()

        assert queue.get(last).result == "last"
        assert [child.pid for child in the_crew_here(queue)] != [stranger]


@pytest.mark.parametrize("opens", ["before", "after"])
def test_a_consumer_that_holds_a_task_which_an_older_file_does_not_show_is_replaced(tmp_path, opens):
    queue = Queue(tmp_path / "Queue.json", takeover_after=600)
    [task] = gated(queue, 1)
    open_gate(queue)
    queue.publish(task)
    with another(queue, 0, takeover_after=600) as host, queue.running(1, handler=handlers.note_pid_and_wait):
        queue.join(timeout=20)
        copy = tmp_path / "copy"
        shutil.copy(queue.path, copy)
        (tmp_path / "gate").unlink()
        for note in tmp_path.glob("pid-*"):
            note.unlink()
        queue.publish(task)
        wait_until(lambda: pids_noted(queue), what="its handler")
        copy.replace(queue.path)
        if opens == "before":
            open_gate(queue)

        def hosts_after_a_publish():
            with suppress(PublishError, QueueLockedError):
                queue.publish(task, timeout=1)
            return host_here(queue) is not None

        wait_until(hosts_after_a_publish, timeout=20, what="a host here")
        last = queue.publish(task)
        open_gate(queue)
        queue.join(timeout=20)
        host.kill()
        host.wait()

        assert queue.get(last).state == "done"


def test_what_a_consumer_has_run_while_an_older_file_did_not_show_that_it_had_it_is_run_again(tmp_path):
    """Its word is void; then it gets the same task under the same number, and must not take that for a repetition."""
    queue = Queue(tmp_path / "Queue.json", takeover_after=600)
    [task] = gated(queue, 1)
    open_gate(queue)
    with another(queue, 0, takeover_after=600) as host, queue.running(1, handler=handlers.note_pid_and_wait):
        queue.publish(task)
        queue.join(timeout=20)
        (tmp_path / "gate").unlink()
        for note in tmp_path.glob("pid-*"):
            note.unlink()
        queue.pause()
        task_id = queue.publish(task)
        shutil.copy(queue.path, tmp_path / "copy")
        queue.resume()
        wait_until(lambda: pids_noted(queue), what="its handler")
        (tmp_path / "copy").replace(queue.path)

        def hosts_after_a_publish():
            with suppress(PublishError, QueueLockedError):
                queue.publish(task, timeout=1)
            return host_here(queue) is not None

        wait_until(hosts_after_a_publish, timeout=20, what="a host here")
        open_gate(queue)
        word = b'"done":"%b"' % task_id.encode()
        wait_until(lambda: word in queue.path.read_bytes(), what="what it says of a task that it does not have")
        assert queue.get(task_id).state == "ready"
        queue.resume()
        queue.join(timeout=20)
        host.kill()
        host.wait()

        assert queue.get(task_id).state == "done"


def test_the_host_is_killed_and_another_takes_its_place_within_a_second_while_its_handler_runs_on(queue):
    with another(queue) as host, queue.running(1, handler=handlers.note_pid_and_wait):
        ids = queue.publish_many(gated(queue, 2))
        wait_until(lambda: len(pids_noted(queue)) == 2, what="both to run one")
        published = []
        stop = threading.Event()

        def publish():
            while not stop.is_set():
                published.append(queue.publish(*gated(queue, 1), timeout=10))

        thread = threading.Thread(target=publish)
        thread.start()
        begin = time.monotonic()
        host.kill()
        host.wait()
        wait_until(lambda: host_here(queue) is not None, what="a new host")
        assert time.monotonic() - begin < limit(1)
        before = len(published)
        wait_until(lambda: len(published) > before, what="a publish after it")
        stop.set()
        thread.join()
        open_gate(queue)
        queue.join(timeout=20)

    attempts = sorted(queue.get(task_id).attempts for task_id in ids)
    assert attempts in ([1, 1], [1, 2])  # that of the dead consumer again
    assert [queue.get(task_id).errors for task_id in ids] == [(), ()]
    assert len(pids_noted(queue)) >= 2
    assert {queue.get(task_id).state for task_id in [*ids, *published]} == {"done"}


def spare_of(queue):
    """Return the tree that is ready to host the queue, once there is one."""
    wait_until(lambda: the_member(queue)._spare is not None, what="a spare tree")
    spare = the_member(queue)._spare
    assert spare is not None
    return spare


def test_whoever_has_joined_has_the_supervisor_ready_under_which_the_brokers_run_if_the_host_is_killed(queue):
    with another(queue, handler="echo") as host, queue.running(1, handler=handlers.echo):
        spare = spare_of(queue)
        assert spare.children() == []
        supervisor = spare.supervisor_pid
        host.kill()
        host.wait()
        task_id = queue.publish("after", timeout=10)
        queue.join(timeout=20)

        assert the_host_here(queue).system is spare
        assert spare.supervisor_pid == supervisor
        assert the_member(queue)._spare is None
        assert [child.name for child in spare.children()] == list(BROKER_NAMES)
        os.kill(supervisor, signal.SIGKILL)  # and they start anew as those of any host
        again = queue.publish("again", timeout=10)
        queue.join(timeout=20)

    assert [queue.get(each).state for each in (task_id, again)] == ["done", "done"]
    assert not is_alive(supervisor)


def test_a_spare_supervisor_that_was_killed_is_started_again_and_one_that_has_given_up_is_not_needed(queue):
    with another(queue) as host, queue.running(1, handler=handlers.echo):
        spare = spare_of(queue)
        before = spare.supervisor_pid
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: spare.supervisor_pid != before, what="another one")
        spare.failure = RestartLimitError("supervisor", 30, 60.0, "for the sake of the test")
        host.kill()
        host.wait()
        task_id = queue.publish("after", timeout=10)
        queue.join(timeout=20)
        assert the_host_here(queue).system is not spare
        spare.close()

    assert queue.get(task_id).state == "done"


def test_a_worker_that_leaves_takes_its_spare_supervisor_with_it(queue):
    with another(queue):
        with queue.running(1, handler=handlers.echo):
            supervisor = spare_of(queue).supervisor_pid
            assert is_alive(supervisor)
        assert not is_alive(supervisor)


def test_whoever_leaves_at_once_has_not_begun_with_a_spare_supervisor(queue, monkeypatch):
    started = []
    monkeypatch.setattr("actorq.membership.new_system", lambda **_options: started.append(1))
    with another(queue), queue.running(1, handler=handlers.echo):
        queue.publish("here and gone")
        queue.join(timeout=20)

    assert started == []


def test_a_spare_supervisor_that_does_not_come_up_keeps_nobody_waiting_and_no_news_back(queue, monkeypatch):
    def stopped(**options):
        spare = new_system(**options)
        os.kill(spare.supervisor_pid, signal.SIGSTOP)
        return spare

    monkeypatch.setattr("actorq.membership.new_system", stopped)
    with another(queue, consumers=0):
        member = queue.new_member(1, handler=handlers.note_pid_and_wait)
        member.start(20)
        try:
            task_id = queue.publish(*gated(queue, 1))
            wait_until(lambda: len(pids_noted(queue)) == 1)
            supervisor = spare_of(queue).supervisor_pid
            member.stop_at_once()
            wait_until(lambda: queue.counts()["ready"] == 1)
        finally:
            begin = time.monotonic()
            member.stop()

        assert time.monotonic() - begin < limit(2)
        assert not is_alive(supervisor)
        assert queue.get(task_id).errors == ()


@pytest.mark.parametrize(
    "reason", [OSError(errno.EAGAIN, "Resource temporarily unavailable"), RuntimeError("can't start new thread")]
)
def test_without_a_process_to_be_had_for_a_spare_supervisor_the_host_is_followed_all_the_same(
    queue, monkeypatch, caplog, reason
):
    def refuse(**_options):
        raise reason

    with another(queue) as host:
        with monkeypatch.context() as patch:
            patch.setattr("actorq.membership.new_system", refuse)
            member = queue.new_member(1, handler=handlers.echo)
            member.start(20)
            wait_until(lambda: "not ready to host" in caplog.text)
        try:
            host.kill()
            host.wait()
            task_id = queue.publish("after", timeout=10)
            queue.join(timeout=20)
        finally:
            member.stop()

    assert queue.get(task_id).state == "done"


def test_a_damaged_file_ends_whoever_takes_over_with_the_reason_and_the_spare_supervisor_as_well(queue):
    with another(queue, handler="echo") as host, queue.running(1, handler=handlers.echo):
        for text in ("first", "second"):
            queue.publish(text)
            queue.join(timeout=20)
        member, supervisor = the_member(queue), spare_of(queue).supervisor_pid
        with_group(host, signal.SIGSTOP)  # its writer, too: nobody writes any more
        queue.path.write_bytes(queue.path.read_bytes().replace(b'"data":"first"', b'"data":"fIRst"'))
        with_group(host, signal.SIGKILL)
        wait_until(lambda: member.failure is not None, timeout=20, what="the reason")

        assert isinstance(member.failure, CorruptQueueError)
        assert not is_alive(supervisor)


def is_alive(pid):
    return Path(f"/proc/{pid}").exists()


def test_a_worker_that_has_joined_is_killed_as_a_whole_and_its_task_is_not_to_blame(queue):
    with queue.running(0), another(queue) as worker:
        task_id = queue.publish(*gated(queue, 1))
        wait_until(lambda: len(pids_noted(queue)) == 1)
        worker.kill()
        worker.wait()
        wait_until(lambda: queue.counts()["ready"] == 1, what="the task to go back")

        assert queue.get(task_id).errors == ()


def test_a_consumer_that_has_joined_and_kills_itself_is_charged_and_started_again(queue):
    with queue.running(0), another(queue, handler="die_once"):
        task_id = queue.publish(1)
        queue.join(timeout=20)

    (error,) = queue.get(task_id).errors
    assert "SIGKILL" in error.message


def test_a_host_that_is_stopped_is_deposed_and_joins_when_it_goes_on(queue):
    with another(queue, handler="echo") as host:
        queue.publish("before")
        queue.join(timeout=20)
        with_group(host, signal.SIGSTOP)

        begin = time.monotonic()
        first = queue.publish("while it is stopped")
        assert 1.5 < time.monotonic() - begin < limit(4)
        with queue.running(1, handler=handlers.echo):
            assert host_here(queue) is not None
            queue.join(timeout=20)
            with_group(host, signal.SIGCONT)
            with pytest.raises(QueueLockedError), Queue(queue.path).running(0, timeout=0):
                pass  # this process runs it
            queue.publish("after")
            queue.join(timeout=20)

        # We are gone, and the one that was stopped hosts it again.
        last = queue.publish("last")
        queue.join(timeout=20)

    assert [queue.get(task_id).state for task_id in (first, last)] == ["done", "done"]


def test_who_starts_to_run_the_queue_while_the_host_is_stopped_takes_its_place(queue):
    with another(queue, handler="echo") as host:
        with_group(host, signal.SIGSTOP)
        waited_for: list[int | None] = []
        member = queue.new_member(1, handler=handlers.echo)
        try:
            member.start(20, waited_for.append)
            assert host_here(queue) is not None
            task_id = queue.publish("taken over")
            queue.join(timeout=20)
            with_group(host, signal.SIGCONT)
        finally:
            member.stop()

    assert waited_for == [host.pid]
    assert queue.get(task_id).state == "done"


def test_who_waits_for_a_host_may_give_up(queue):
    member = queue.new_member(0)
    with HostLock(queue.path).acquire(), pytest.raises(QueueLockedError):
        member.start(60, lambda _: member.give_up())


def test_only_its_writer_is_stopped_and_the_host_is_deposed_as_well(queue):
    with another(queue, handler="echo"):
        queue.publish("before")
        writer = next(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_writer(pid, queue))
        os.kill(writer, signal.SIGSTOP)

        task_id = queue.publish("after", timeout=20)
        queue.join(timeout=20)

        assert queue.get(task_id).state == "done"


def is_writer(pid, queue):
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
        files = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    except (OSError, ProcessLookupError):
        return False
    return name.startswith("actorq:publishe") and f"{queue.path}.lock" in files


def test_a_forked_child_goes_through_the_door_like_everybody_else(queue):
    with queue.running(1, handler=handlers.echo):
        queue.publish("parent")
        pid = os.fork()
        if pid == 0:
            try:
                Queue(queue.path).publish("another object", timeout=10)
                queue.publish("the same object", timeout=10)
                os._exit(0)
            except BaseException:  # noqa: BLE001  # the status says so
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        queue.join(timeout=20)

    assert queue.counts()["done"] == 3


def test_a_consumer_is_replaced_after_so_many_tasks(queue):
    with queue.running(1, handler=handlers.note_pid, max_tasks=5):
        queue.publish_many(gated(queue, 20))
        queue.join(timeout=20)

    counts = sorted(len(path.read_text().split()) for path in queue.path.parent.glob("pid-*"))
    assert counts == [5, 5, 5, 5]
    assert queue.counts()["done"] == 20


def test_a_process_for_each_task_takes_the_time_of_its_start_and_no_more(queue):
    begin = time.monotonic()
    with queue.running(1, handler=handlers.note_pid, max_tasks=1):
        queue.publish_many(gated(queue, 25))
        queue.join(timeout=60)

    assert len(list(queue.path.parent.glob("pid-*"))) == 25
    assert time.monotonic() - begin < limit(8)


def test_running_handlers_are_killed_after_the_shutdown_timeout_and_their_tasks_put_back_uncharged(queue):
    begin = time.monotonic()
    with queue.running(1, handler=handlers.note_pid_and_wait, shutdown_timeout=0.2):
        task_id = queue.publish(*gated(queue, 1))
        wait_until(lambda: len(pids_noted(queue)) == 1)

    assert time.monotonic() - begin < limit(5)
    assert (queue.get(task_id).state, queue.get(task_id).errors) == ("ready", ())


def test_a_publisher_without_anybody_to_take_over_goes_on_directly(queue):
    with another(queue, consumers=0) as host:
        first = queue.publish(1)
        host.kill()
        host.wait()
        second = queue.publish(2, timeout=5)

    assert [queue.get(task_id).state for task_id in (first, second)] == ["ready", "ready"]


def test_in_a_publish_many_hosts_may_come_and_go(queue):
    def items():
        yield from range(2000)
        host.kill()
        host.wait()
        yield from range(2000, 4000)
        with another(queue, consumers=0):
            yield from range(4000, 6000)
        yield from range(6000, 8000)

    with another(queue, consumers=0) as host:
        ids = queue.publish_many(items())

    assert [queue.get(task_id).data for task_id in ids[::500]] == list(range(0, 8000, 500))
    assert len(set(ids)) == 8000
    assert queue.counts()["ready"] == 8000


def test_where_no_socket_can_be_made_one_process_runs_the_queue_and_says_that_others_cannot_join(
    queue, monkeypatch, caplog
):
    def refuse(_path):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("actorq.hosting.open_door", refuse)
    with queue.running(1, handler=handlers.echo):
        task_id = queue.publish("alone")
        queue.join(timeout=20)
        assert "other processes cannot join" in caplog.text

    assert queue.get(task_id).result == "alone"


@pytest.mark.parametrize("value", [0, -1])
def test_max_tasks_and_takeover_after_are_positive(queue, value):
    with pytest.raises(ValueError, match="max_tasks"), queue.running(1, handler=handlers.echo, max_tasks=value):
        pass
    with pytest.raises(ValueError, match="takeover_after"):
        Queue(queue.path, takeover_after=value)


def test_a_program_that_is_refused_keeps_no_descriptor(queue):
    with queue.running(0):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            with pytest.raises(QueueLockedError), queue.running(1, handler=handlers.echo):
                pass

        assert len(os.listdir("/proc/self/fd")) == before


def test_a_child_that_is_forked_while_another_thread_looks_can_look_as_well(queue):
    queue.publish_many(range(3000))
    stop = threading.Event()

    def look():
        while not stop.is_set():
            queue.counts()

    thread = threading.Thread(target=look)
    thread.start()
    statuses = set()
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            os._exit(queue.counts()["ready"] != 3000)
        statuses.add(os.waitpid(pid, 0)[1])
    stop.set()
    thread.join()

    assert statuses == {0}


@pytest.mark.parametrize("is_hosted", [False, True])
def test_a_generator_that_publishes_itself_while_its_items_are_published_gets_its_own_answers(tmp_path, is_hosted):
    queue = Queue(tmp_path / "Queue.json", max_pending=7)
    inner: list[str | None] = []

    def items():
        for number in range(20):
            try:
                inner.append(queue.publish(["inner", number], timeout=10))
            except QueueFullError:
                inner.append(None)
            yield ["outer", number]

    with queue.running(0) if is_hosted else nullcontext(), pytest.raises(QueueFullError) as caught:
        queue.publish_many(items(), timeout=10)

    assert inner[0] is not None
    said = [task_id for task_id in inner if task_id is not None] + caught.value.published
    assert sorted(said) == sorted(task.id for task in queue.tasks())
    assert [queue.get(task_id).data[0] for task_id in caught.value.published] == ["outer"] * len(caught.value.published)


INTERRUPTED = """
import os, signal, sys, threading, time
from actorq import Queue
from actorq.testing import armed_failpoints
from tests import handlers

if __name__ == "__main__":
    queue = Queue("Queue.json")
    with armed_failpoints(here=True) as points:
        laid = points.lay(sys.argv[1], "delay", value=0.6)

        def press():
            points.wait_for(laid)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press).start()
        try:
            with queue.running(1, handler=handlers.echo):
                queue.publish("before")
                queue.join(timeout=20)
        except KeyboardInterrupt:
            print("^C")
    queue.publish("after", timeout=10)
    with queue.running(1, handler=handlers.echo, timeout=10):
        queue.join(timeout=20)
    print(queue.counts()["ready"], threading.active_count())
"""


@pytest.mark.parametrize("place", ["host.started", "writer.stopping", "host.stopping", "host.stopped"])
def test_after_an_interrupt_while_the_queue_starts_or_stops_the_program_can_go_on_with_it(tmp_path, place):
    (tmp_path / "program.py").write_text(INTERRUPTED)

    ran = subprocess.run(
        [sys.executable, "program.py", place],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )

    assert ran.stdout.splitlines() == ["^C", "0 1"], ran.stderr


SHORT_OF_DESCRIPTORS = """
import os, resource, sys, time
from actorq import Queue
from tests import handlers

if __name__ == "__main__":
    queue = Queue("Queue.json")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with queue.running(1, handler=handlers.echo):
        time.sleep(1.2)  # what it will need as a host is started by then
        hoard = []
        try:
            while True:
                hoard.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        print("short", flush=True)
        sys.stdin.readline()
        time.sleep(1)
        for fd in hoard:
            os.close(fd)
        queue.publish("afterwards", timeout=20)
        queue.join(timeout=20)
        print("done", flush=True)
"""


def test_a_member_that_is_short_of_descriptors_when_its_host_dies_takes_over_once_it_has_some(tmp_path):
    (tmp_path / "program.py").write_text(SHORT_OF_DESCRIPTORS)
    queue = Queue(tmp_path / "Queue.json")
    with (
        another(queue, 0) as host,
        subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as program,
    ):
        assert program.stdout is not None
        assert program.stdout.readline() == "short\n"
        host.kill()
        host.wait()
        said, complaint = program.communicate("the host is dead\n", timeout=limit(60))

    assert said == "done\n", complaint
    assert "trying again" in complaint

"""The queue as its users see it: real processes, real files."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest

from actorq import (
    ActorStartError,
    CorruptQueueError,
    FolderNotFoundError,
    NoHandlerError,
    PayloadError,
    Queue,
    QueueLockedError,
    TaskNotFoundError,
    UnsupportedFormatError,
)
from tests import handlers
from tests.helpers import limit, wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def queue(tmp_path):
    return Queue(tmp_path / "Queue.json")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a task for each of these handlers, by its name, once all have ended; in one queue."""
    queue = Queue(tmp_path_factory.mktemp("ended") / "Queue.json")
    culprits = handlers.fail, handlers.fail_once, handlers.not_json, handlers.leave, handlers.die, handlers.nothing
    for handler in culprits:
        queue.handler(handler.__name__)(handler)
    with queue.running(1):
        ids = {handler.__name__: queue.publish("it", name=handler.__name__) for handler in culprits}
        queue.join(timeout=30)
    return {name: queue.get(task_id) for name, task_id in ids.items()}


def whole_document(queue):
    return orjson.loads(queue.path.read_bytes())


def test_making_a_queue_opens_and_creates_nothing(tmp_path):
    Queue(tmp_path / "Queue.json")

    assert list(tmp_path.iterdir()) == []


def test_a_queue_in_a_folder_that_is_not_there_says_which_one_to_make(tmp_path):
    queue = Queue(tmp_path / "no such" / "Queue.json")
    text = (
        f"there is no folder {tmp_path}/no such for the queue Queue.json; make it first: mkdir -p '{tmp_path}/no such'"
    )

    for action in (lambda: queue.publish(1), lambda: queue.running(1).__enter__()):
        with pytest.raises(FolderNotFoundError) as caught:
            action()
        assert str(caught.value) == text
    queue.path.parent.mkdir()
    assert queue.get(queue.publish(1)).data == 1


def test_a_published_task_is_in_the_file_before_anything_runs(queue):
    task_id = queue.publish({"path": "a.png"})

    lines = [line for line in whole_document(queue) if line.get("id") == task_id]
    assert lines == [{"id": task_id, "name": "default", "data": {"path": "a.png"}}]
    assert queue.get(task_id).state == "ready"
    assert queue.counts() == {"ready": 1, "scheduled": 0, "running": 0, "done": 0, "dead": 0, "cancelled": 0}


def test_tasks_published_before_and_while_running_are_done_with_their_results(queue):
    before = queue.publish({"n": 1})

    with queue.running(2, handler=handlers.echo):
        meanwhile = queue.publish({"n": 2})
        queue.join(timeout=30)

    assert queue.get(before).result == {"n": 1}
    assert queue.get(meanwhile).result == {"n": 2}
    assert queue.counts()["done"] == 2


def test_a_finished_task_tells_its_times_and_attempts(ended):
    task = ended["nothing"]
    assert (task.state, task.attempts, task.errors, task.result) == ("done", 1, (), None)
    assert task.published_at <= task.started_at <= task.finished_at


def test_publish_many_keeps_order_and_streams(queue):
    with queue.running(2, handler=handlers.nothing):
        ids = queue.publish_many({"n": n} for n in range(5000))
        queue.join(timeout=20)

    assert len(set(ids)) == 5000
    in_file = [line["id"] for line in whole_document(queue) if "data" in line]
    assert in_file == ids
    assert queue.counts()["done"] == 5000


def test_tasks_start_in_publish_order_with_one_consumer(queue, tmp_path):
    log = tmp_path / "log"
    lines = [str(n) for n in range(300)]
    with queue.running(1, handler=handlers.append_line):
        queue.publish_many({"file": str(log), "line": line} for line in lines)
        queue.join(timeout=30)

    assert log.read_text().split() == lines


def test_each_name_goes_to_its_handler(queue):
    queue.handler("echo")(handlers.echo)
    queue.handler("nothing")(handlers.nothing)
    with queue.running(2):
        first = queue.publish(1, name="echo")
        second = queue.publish(2, name="nothing")
        queue.join(timeout=30)

    assert queue.get(first).result == 1
    assert queue.get(second).result is None


def test_a_name_without_a_handler_waits_blocks_nobody_and_join_says_so(queue):
    queue.handler("echo")(handlers.echo)
    with queue.running(1):
        orphan = queue.publish(1, name="orphan")
        behind = queue.publish(2, name="echo")
        with pytest.raises(NoHandlerError, match="orphan"):
            queue.join(timeout=30)

    assert queue.get(orphan).state == "ready"
    assert queue.get(behind).state == "done"


def test_two_handlers_for_one_name_are_refused(queue):
    queue.handler("echo")(handlers.echo)

    with pytest.raises(ValueError, match="echo"):
        queue.handler("echo")(handlers.nothing)


def test_a_handler_that_raises_is_tried_three_times_and_leaves_its_tracebacks(ended):
    task = ended["fail"]
    assert (task.state, task.attempts) == ("dead", 3)
    assert [error.type for error in task.errors] == ["ValueError"] * 3
    assert "cannot do it" in task.errors[0].message
    assert "handlers.py" in task.errors[0].traceback


def test_a_handler_that_raises_once_is_done_the_second_time(ended):
    task = ended["fail_once"]
    assert (task.state, task.attempts, task.result) == ("done", 2, "better")


def test_a_result_that_is_not_json_fails_the_task_without_retry_and_says_so(ended):
    task = ended["not_json"]
    assert (task.state, task.attempts) == ("dead", 1)
    assert "$.when" in task.errors[0].message


def test_a_handler_that_exits_is_a_failure_like_any_other(ended):
    assert ended["leave"].state == "dead"
    assert ended["leave"].errors[0].type == "SystemExit"


def test_a_handler_that_kills_its_process_is_dead_after_three_crashes_and_others_go_on(queue):
    with queue.running(2, handler=handlers.die_if_told):
        before = queue.publish("a")
        poison = queue.publish("die")
        after = queue.publish_many(["b"] * 50)
        queue.join(timeout=20)

    task = queue.get(poison)
    assert task.state == "dead"
    assert len(task.errors) == 3
    assert {queue.get(other).state for other in [before, *after]} == {"done"}


def test_the_record_of_a_crash_names_the_signal(ended):
    assert "SIGSEGV" in str(ended["die"].errors[0])


def test_a_task_whose_consumer_is_killed_runs_on_another_at_once(queue, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    queue = Queue(queue.path, max_crashes=10)
    with queue.running(2, handler=handlers.wait_for_file):
        task_id = queue.publish({"started": str(started), "until": str(until)})
        took = []
        for _ in range(3):
            wait_until(lambda: started.exists() and started.read_text() != "")
            victim = int(started.read_text())
            started.unlink()
            begin = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            wait_until(started.exists)
            took.append(time.monotonic() - begin)

        until.touch()
        queue.join(timeout=30)

    task = queue.get(task_id)
    assert (task.state, task.attempts) == ("done", 4)
    assert task.result != victim
    assert statistics.median(took) < limit(0.1), took


def test_tasks_do_not_wait_behind_a_long_one_while_another_consumer_idles(queue, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    long = {"started": str(started), "until": str(until)}
    with queue.running(2, handler=handlers.quick_or_long):
        # Quick ones first, so that each consumer has got the credit to hold many.
        queue.publish_many([None] * 20_000)
        queue.publish_many([long, *[None] * 2000])
        wait_until(lambda: queue.counts()["done"] == 22_000, timeout=20)
        assert queue.counts()["running"] == 1

        until.touch()
        queue.join(timeout=30)


def test_tasks_that_are_longer_than_those_before_are_shared_all_the_same(queue):
    with queue.running(2, handler=handlers.sleep_and_tell):
        queue.publish_many([0] * 2000)
        queue.join(timeout=30)
        queue.publish_many([0] * 2000)
        ids = queue.publish_many([0.02] * 100)
        queue.join(timeout=30)

    who = Counter(queue.get(task_id).result for task_id in ids)
    assert max(who.values()) <= 75


def test_what_was_finished_is_recorded_while_the_next_one_runs_long(queue, tmp_path):
    started, until = tmp_path / "started", tmp_path / "until"
    long = {"started": str(started), "until": str(until)}
    with queue.running(1, handler=handlers.quick_or_long):
        queue.publish_many([None] * 20_000)
        queue.publish_many([*[None] * 100, long])
        wait_until(started.exists, timeout=20)

        wait_until(lambda: queue.counts()["done"] == 20_100)

        until.touch()
        queue.join(timeout=30)


def test_a_fork_that_comes_back_from_a_handler_finishes_nothing(queue):
    with queue.running(1, handler=handlers.fork_and_come_back):
        task_id = queue.publish(None)
        queue.join(timeout=30)

    task = queue.get(task_id)
    assert (task.state, task.attempts, task.result) == ("done", 1, 1)


def test_a_handler_may_publish(queue):
    queue.handler("start")(handlers.publish_more)
    queue.handler("more")(handlers.echo)
    with queue.running(2):
        first = queue.publish({"queue": str(queue.path)}, name="start")
        queue.join(timeout=30)

    assert queue.get(queue.get(first).result).result == {"n": 1}


def test_a_bad_item_of_publish_many_is_named_and_all_before_it_are_in(queue):
    with pytest.raises(PayloadError) as info:
        queue.publish_many([1, 2, {"a": [float("nan")]}, 4])

    assert info.value.index == 2
    assert info.value.where == "$.a[0]"
    assert [queue.get(task_id).data for task_id in info.value.published] == [1, 2]
    assert queue.counts()["ready"] == 2


def test_a_bad_item_is_named_while_brokers_run_too_and_publishing_goes_on(queue):
    with queue.running(1, handler=handlers.echo):
        with pytest.raises(PayloadError) as info:
            queue.publish_many([1, {"s": {1, 2}}])
        assert len(info.value.published) == 1
        with pytest.raises(PayloadError):
            queue.publish(object())
        good = queue.publish("good")
        queue.join(timeout=30)

    assert queue.get(good).state == "done"
    assert queue.counts()["done"] == 2


def test_payloads_arrive_as_they_were_sent(queue):
    payloads: list[object] = [
        None,
        True,
        -(2**63),
        2**64 - 1,
        1.5,
        "ü\u2028\x00\n",
        [],
        {},
        {"a": [1, {"b": None}]},
        "x" * 900_000,
    ]
    with queue.running(2, handler=handlers.echo):
        ids = queue.publish_many(payloads)
        queue.join(timeout=30)

    assert [queue.get(task_id).result for task_id in ids] == payloads


def test_threads_share_a_queue(queue):
    ids: list[str] = []

    def publish():
        for n in range(50):
            ids.append(queue.publish(n))  # noqa: PERF401  # one at a time is the point

    with queue.running(1, handler=handlers.nothing):
        threads = [threading.Thread(target=publish) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        queue.join(timeout=30)

    assert len(set(ids)) == 400
    assert queue.counts()["done"] == 400


def test_threads_share_a_queue_without_brokers(queue):
    threads = [threading.Thread(target=queue.publish_many, args=([1, 2, 3],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert queue.counts()["ready"] == 24


def test_what_was_done_stays_done_over_a_restart(queue):
    with queue.running(1, handler=handlers.echo):
        first = queue.publish(1)
        queue.join(timeout=30)
    with queue.running(1, handler=handlers.echo):
        second = queue.publish(2)
        queue.join(timeout=30)

    assert queue.counts()["done"] == 2
    assert [queue.get(first).result, queue.get(second).result] == [1, 2]


def test_an_unknown_task_is_not_found(queue):
    queue.publish(1)

    for unknown in ("aaaaaaaaaaaa-1", "nonsense", ""):
        with pytest.raises(TaskNotFoundError):
            queue.get(unknown)


def test_another_process_reads_while_brokers_run(queue):
    with queue.running(1, handler=handlers.echo):
        task_id = queue.publish({"a": 1})
        queue.join(timeout=30)
        code = f"""from actorq import Queue; q = Queue({str(queue.path)!r})
print(q.counts()['done'], q.get({task_id!r}).result)"""
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)

    assert second.stdout.split() == ["1", "{'a':", "1}"]


def test_one_process_runs_a_queue_once(queue):
    with queue.running(0), pytest.raises(QueueLockedError), queue.running(0, timeout=0.1):
        pass


def test_a_handler_that_cannot_be_imported_raises_at_the_start_in_one_line(queue):
    with pytest.raises(ActorStartError) as info, queue.running(1, handler=lambda task: None):
        pass

    assert "\n" not in str(info.value)


def test_a_damaged_file_is_refused_at_the_start(queue):
    queue.publish_many(range(100))
    queue.publish_many(range(100))
    data = bytearray(queue.path.read_bytes())
    data[data.index(b'"data":5}') + 7] = ord("6")
    queue.path.write_bytes(data)

    with pytest.raises(CorruptQueueError) as info, queue.running(1, handler=handlers.nothing):
        pass

    assert info.value.offset > 0
    assert "verify" in str(info.value)
    assert queue.path.read_bytes() == data


def test_a_foreign_file_is_refused_not_overwritten(queue):
    for content in (b"", b"[]\n", b'{"my": "settings"}', b"\x00" * 4096):
        queue.path.write_bytes(content)
        with pytest.raises(UnsupportedFormatError):
            queue.publish(1)
        assert queue.path.read_bytes() == content


def test_parameters_of_later_versions_do_not_exist_yet(queue):
    with pytest.raises(TypeError):
        queue.publish(1, delay=5)
    with pytest.raises(TypeError):
        queue.publish(1, priority=5)


def test_the_file_is_one_json_document_while_nothing_is_written(queue):
    with queue.running(2, handler=handlers.echo):
        for n in range(20):
            queue.publish(n)
            queue.join(timeout=30)
            assert whole_document(queue)[0]["actorq"] == 1


def test_modes_are_private(queue):
    queue.publish(1)

    for path in queue.path.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_a_script_without_the_main_guard_is_told_in_one_line(tmp_path):
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent("""
            from actorq import Queue
            queue = Queue("Queue.json")
            @queue.handler("default")
            def work(task): pass
            with queue.running(1):
                queue.publish(1)
                queue.join(timeout=30)
        """)
    )

    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert run.returncode == 1
    assert "__main__" in run.stderr.strip().splitlines()[-1]


def test_a_script_with_handlers_in_main_works(tmp_path):
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent("""
            from actorq import Queue
            queue = Queue("Queue.json")
            @queue.handler("default")
            def work(task): return task.data * 2
            if __name__ == "__main__":
                with queue.running(2):
                    task_id = queue.publish(21)
                    queue.join(timeout=30)
                print(queue.get(task_id).result)
        """)
    )

    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=30)

    assert (run.stdout, run.stderr, run.returncode) == ("42\n", "", 0)


def test_one_queue_is_one_queue_by_whatever_way_it_is_reached(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    with Queue(real / "Queue.json").running(1, handler=handlers.nothing):
        task_id = Queue(link / "Queue.json").publish(1, timeout=5)
        Queue(link / ".." / "real" / "Queue.json").join(timeout=30)

    assert Queue(real / "Queue.json").get(task_id).state == "done"


def test_a_second_ctrl_c_does_not_wait_for_handlers_and_puts_their_tasks_back(tmp_path):
    script = tmp_path / "app.py"
    script.write_text(
        textwrap.dedent("""
            import time
            from pathlib import Path
            from actorq import Queue
            queue = Queue("Queue.json")
            @queue.handler("default")
            def work(task):
                Path("started").touch()
                time.sleep(60)
            if __name__ == "__main__":
                with queue.running(1):
                    queue.publish(1)
                    queue.join(timeout=60)
        """)
    )
    program = subprocess.Popen([sys.executable, script], cwd=tmp_path, stderr=subprocess.PIPE)
    wait_until((tmp_path / "started").exists, timeout=20)

    program.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        program.wait(timeout=0.5)
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=10)

    assert program.returncode == -signal.SIGINT
    queue = Queue(tmp_path / "Queue.json")
    assert queue.counts()["ready"] == 1
    with queue.running(1, handler=handlers.nothing):
        queue.join(timeout=30)
    [task] = [line["id"] for line in whole_document(queue) if "data" in line]
    assert queue.get(task).errors == ()


def test_an_older_file_that_was_written_over_the_queue_while_nobody_hosts_is_seen_by_who_has_read_it(queue, tmp_path):
    limited = Queue(queue.path, max_pending=150)
    queue.publish_many(range(100))
    shutil.copyfile(queue.path, tmp_path / "backup")
    limited.publish_many(range(50))
    assert queue.counts()["ready"] == 150

    shutil.copyfile(tmp_path / "backup", queue.path)  # as `cp` does: it is the same file, with other contents
    assert queue.counts()["ready"] == 100
    ids = limited.publish_many(range(50))

    assert queue.get(ids[-1]).data == 49
    assert queue.counts()["ready"] == 150
    assert Queue(queue.path).counts() == queue.counts()


@pytest.mark.parametrize("is_named", [False, True])
def test_what_cannot_handle_a_task_is_refused_before_any_task_fails_of_it(queue, is_named):
    async def waits(task):
        return task.data

    for unfit, reason in ((waits, "is async; a handler is a plain function"), (5, "cannot be called")):
        take = queue.handler("work") if is_named else lambda function: queue.new_member(1, handler=function)
        with pytest.raises(TypeError, match=reason):
            take(unfit)


def test_a_program_that_has_closed_its_standard_streams_has_no_file_of_the_queue_in_their_place(tmp_path):
    program = textwrap.dedent("""
        import os
        from actorq import Queue
        from actorq.store.filesystem import REAL
        from tests import handlers

        if __name__ == "__main__":
            queue = Queue("Queue.json")
            queue.publish(1)
            queue.counts()
            kept = [fd for fd in range(3) if os.path.lexists(f"/proc/self/fd/{fd}")]
            written = REAL.open("Queue.json", os.O_RDWR)
            with open("said", "w") as file:
                file.write(f"{kept} {written > 2}")
    """)
    (tmp_path / "program.py").write_text(program)
    closed = "exec <&- >&- 2>&-; exec " + f"{sys.executable} program.py"

    subprocess.run(["/bin/sh", "-c", closed], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)

    assert (tmp_path / "said").read_text() == "[] True"

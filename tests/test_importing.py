"""`import actorq` is quick, and what it leaves out is there for whoever asks, in every process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

import actorq
import actorq.actors
from actorq import Queue, on_demand


def run(code, folder):
    """Run a program in the folder; return what it says, which must not include a complaint."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_plain_publish_imports_nothing_that_hosts_joins_or_runs_tasks(tmp_path):
    code = """
import json, sys
import actorq
before = list(sys.modules)
actorq.Queue("Queue.json").publish(1)
print(json.dumps([before, list(sys.modules)]))
"""
    imported, after_publish = json.loads(run(code, tmp_path))

    assert "actorq.errors" in imported
    assert "actorq.queue" not in imported
    assert "actorq.direct_publisher" in after_publish
    assert not {*on_demand.MODULES.values()} & set(after_publish)
    without = {"actorq.actors.actor", "actorq.brokers.messages", "multiprocessing", "socket", "asyncio", "filelock"}
    assert not without & set(after_publish)


def test_no_process_of_a_user_gets_an_audit_hook_in_all_that_it_does(tmp_path):
    code = """
import sys
from actorq import Queue
queue = Queue("Queue.json")
if __name__ == "__main__":
    with queue.running(0):
        queue.publish(1)
    Queue("Other.json").publish(1)
    print("filelock" in sys.modules)
"""
    assert run(code, tmp_path) == "False\n"


@pytest.mark.parametrize("package", [actorq, actorq.actors], ids=lambda package: package.__name__)
def test_every_name_is_found_listed_and_by_a_star(tmp_path, package):
    name = package.__name__
    code = f"from {name} import *; import {name} as p; print(*{{*p.__all__}} & {{*globals()}} & {{*dir(p)}})"

    assert sorted(run(code, tmp_path).split()) == sorted(package.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'actorq' has no attribute 'Broker'"):
        _ = actorq.Broker
    with pytest.raises(AttributeError, match=r"'actorq\.on_demand' has no attribute 'broker'"):
        _ = on_demand.broker


def use_the_queue(task):
    """Do in a consumer what needs most of actorq; return what had to be imported for it, and what was there before."""
    before = set(sys.modules)
    queue = Queue(task.data)
    queue.publish(0, name="nobody")
    queue.pause("nobody")
    queue.get(task.id)
    asyncio.run(queue.apublish(0, name="nobody"))
    Queue(f"{task.data}.other").publish(0)
    return [sorted(set(sys.modules) - before), sorted(before)]


def test_a_consumer_finds_all_that_it_needs_imported_before_it_was_forked(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    queue.handler("use")(use_the_queue)
    with queue.running(1):
        task_id = queue.publish(str(queue.path), name="use")
        with pytest.raises(actorq.QueuePausedError):
            queue.join(timeout=30)

    imported, before = queue.get(task_id).result

    assert imported == []
    assert {*on_demand.MODULES.values()} <= set(before)


@pytest.mark.parametrize("asked", ["actorq.on_demand.hosting", "actorq.Queue"])
def test_a_process_forked_while_a_thread_imports_a_part_does_not_wait_for_it_for_ever(tmp_path, asked):
    code = """
import os, signal, sys, threading, warnings
import actorq.on_demand
warnings.simplefilter("ignore")  # of the threads: they are the point
begun, forked = threading.Event(), threading.Event()
class InTheMiddle:
    def find_spec(name, *_):
        if name in ("actorq.consumer", "actorq.tasks.payload"):
            begun.set()
            forked.wait(0.2)  # which has to wait for us
sys.meta_path.insert(0, InTheMiddle)
thread = threading.Thread(target=lambda: ASKED)
thread.start()
begun.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(10)
    ASKED
    os._exit(0)
forked.set()
thread.join()
print(os.waitpid(pid, 0)[1])
"""
    assert run(code.replace("ASKED", asked), tmp_path) == "0\n"

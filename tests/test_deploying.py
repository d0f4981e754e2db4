"""The README's examples of a deployment, run as they stand there."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from actorq import NotAdmittedError, Queue
from actorq.cli import build_parser
from actorq.linux import process_status
from tests.helpers import limit, wait_until

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
ACTORQ = [sys.executable, "-m", "actorq"]


def block(language, mention=""):
    """Return the block of the README in that language that mentions something."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    (found,) = [text for text in blocks if mention in text]
    return found


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop.py").write_text(block("python", "Flask"))
    return tmp_path


@contextmanager
def started(command, folder, **options):
    """Run a command in a folder until the block ends; it must then end by TERM, with status 0."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONUNBUFFERED": "1"} | options.pop("env", {})
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, **options,
    )  # fmt: skip
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0, out
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def command_after(name):
    """Return the command of the README that begins so, without its comment."""
    lines = [line.partition("#")[0].strip() for line in TEXT.splitlines() if line.startswith(name)]
    assert lines
    return [shlex.split(line) for line in lines]


@pytest.mark.parametrize("gunicorn", command_after("gunicorn "), ids=["prefork", "threads"])
def test_a_web_application_publishes_from_all_its_processes_and_threads_while_a_worker_runs(shop, gunicorn):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    web = [sys.executable, "-m", *gunicorn, "--bind", address, "--no-control-socket"]
    (worker,) = command_after("actorq worker shop:queue")
    queue = Queue(shop / "Queue.json")
    with started(web, shop):
        before = [post(address, f"{number}.png") for number in range(5)]  # nobody hosts the queue yet
        with started([*ACTORQ, *worker[1:]], shop) as running:
            assert "ready" in running.stdout.readline()
            after = [post(address, f"{number}.png") for number in range(5, 30)]
            queue.join(timeout=20)

    results = [queue.get(task_id).result for task_id in before + after]
    assert results == [f"{number}.small.png" for number in range(30)]


def post(address, path):
    request = urllib.request.Request(
        f"http://{address}/pictures", json.dumps({"path": path}).encode(), {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + limit(10)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.status == 202
                return json.loads(answer.read())["task"]
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # the server is starting


def test_a_line_of_a_crontab_publishes(shop):
    line = block("crontab").strip()
    command = line.split(maxsplit=5)[5].replace("/srv/shop", str(shop)).replace("actorq", shlex.join(ACTORQ), 1)
    assert "%" not in command  # which cron would take for the end of a line
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(shop)}

    ran = subprocess.run(
        ["/bin/sh", "-c", command], env=environment, cwd="/", capture_output=True, text=True, timeout=20
    )

    assert (ran.returncode, ran.stderr) == (0, "")
    assert Queue(shop / "Queue.json").get(ran.stdout.strip()).data == {"path": "logo.png"}


def test_two_workers_under_systemd_say_when_they_are_ready_and_end_in_time(shop):
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    service = unit["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert Path(program).name == "actorq"
    asked = build_parser().parse_args(arguments)
    assert asked.shutdown_timeout < float(service["TimeoutStopSec"])
    assert service["WorkingDirectory"] == str(Path(program).parents[2])

    with manager(shop) as notices, started([*ACTORQ, *arguments], shop, env={"NOTIFY_SOCKET": notices.getsockname()}):
        assert notices.recv(100) == b"READY=1"
        with started([*ACTORQ, *arguments], shop, env={"NOTIFY_SOCKET": notices.getsockname()}):
            assert notices.recv(100) == b"READY=1"
            queue = Queue(shop / "Queue.json")
            task_id = queue.publish({"path": "a.png"}, name="thumbnail")
            queue.join(timeout=20)
        assert notices.recv(100) == b"STOPPING=1"

    assert queue.get(task_id).result == "a.small.png"


@contextmanager
def manager(folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.settimeout(20)
        notices.bind(os.path.relpath(folder / "notify") if len(str(folder)) > 80 else str(folder / "notify"))
        yield notices


def test_in_a_container_it_is_the_first_process_hears_term_and_lets_orphans_go(shop):
    (command,) = [json.loads(text) for text in re.findall(r"^CMD (.*)$", block("dockerfile"), re.MULTILINE)]
    (shop / "orphans.py").write_text(
        "import os, shop\n\n\n"
        "@shop.queue.handler('orphan')\n"
        "def orphan(task):\n"
        "    if os.fork() == 0:\n"
        "        if os.fork() == 0:\n"
        "            os._exit(0)  # its parent is gone, or about to go\n"
        "        os._exit(0)\n"
        "    os.wait()\n\n\n"
        "queue = shop.queue\n"
    )
    arguments = ["orphans:queue" if each == "shop:queue" else each for each in command[1:]]
    namespace = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*namespace, "true"], capture_output=True).returncode != 0:
        pytest.skip("the kernel gives this user no pid namespace")
    queue = Queue(shop / "Queue.json")
    with contained([*namespace, *ACTORQ, *arguments], shop) as (outer, out):
        assert "ready" in out.readline()
        (first,) = [pid for pid in pids() if (stat := process_status(pid)) and stat.parent == outer]
        with pytest.raises(NotAdmittedError, match="pid namespace"):
            queue.publish({}, name="orphan")  # from outside, where we see its processes, but it does not see ours
        container = subprocess.run(
            ["nsenter", f"--user=/proc/{first}/ns/user", f"--pid=/proc/{first}/ns/pid", "--preserve-credentials",
             sys.executable, "-c", FIVE],
            cwd=shop, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert container.returncode == 0, container.stderr
        assert queue.counts()["done"] == 5
        wait_until(lambda: not zombies_of(first), what="the orphans to be let go")
        os.kill(first, signal.SIGTERM)
        assert "stopping" in out.readline()


FIVE = "from actorq import Queue; q = Queue('Queue.json'); [q.publish({}, name='orphan') for _ in range(5)]; q.join(20)"


@contextmanager
def contained(command, folder):
    process = subprocess.Popen(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process.pid, process.stdout
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.communicate()


def pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def zombies_of(parent):
    stats = [process_status(pid) for pid in pids()]
    return [stat for stat in stats if stat is not None and stat.parent == parent and stat.state == "Z"]

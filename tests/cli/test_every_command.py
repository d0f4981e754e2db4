"""Every command on a terminal, one after the other as somebody would type them. Those in a pipe stand elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

from actorq.cli import build_parser
from tests.cli.shell import all_written_to, environment

SESSION = """
id=$(actorq publish --name resize '{"path": "a.png"}')
actorq publish --name thumbnail '{"path": "b.png"}' '"c.png"' > /dev/null
actorq publish --name resize 1
actorq info
actorq ls --state ready
actorq show $id
actorq log
actorq pause resize
actorq resume resize
actorq cancel $id
actorq purge $id
actorq retry --all || echo "status $?"
actorq verify
actorq repair || echo "status $?"
actorq compact
actorq dump --output dumped
actorq load Other.json --input dumped
"""
"""`demo`, `worker`, `serve` and `bench` have terminals of their own."""

SAID = [
    r"-1\r?$", "3 commits", "thumbnail", "0  1\r?$", "published  just now|published .* ago", '"path": "a.png"',
    "published .* thumbnail  2 tasks", "resize is paused", "resize goes on", "1 task cancelled", "1 task purged",
    "status 3", "intact", "nothing to repair", "status 3", "3 tasks kept", "3 tasks, .* in dumped", "3 tasks loaded",
]  # fmt: skip
"""What stands in the output, in this order."""


def typed(script, folder):
    """Run a shell script on a terminal, and return what is to be read there; its `actorq` is ours."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        ["sh", "-ec", f'actorq() {{ "{sys.executable}" -m actorq "$@"; }}\n{script}'],
        cwd=folder,
        env=environment(TERM="xterm"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    written = all_written_to(controller)
    assert process.wait(timeout=60) == 0, written.decode()
    return written.decode()


def test_each_command_says_what_it_did_one_after_the_other(here):
    said = typed(SESSION, here)

    at = 0
    for expected in SAID:
        found = re.search(expected, said[at:], re.MULTILINE)
        assert found, (expected, said[at:])
        at += found.end()
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [["serve"], ["worker", "app:queue", "-w", "1"]], ids=["serve", "worker"])
def test_what_runs_until_it_is_told_to_stop_ends_cleanly_by_ctrl_c_on_its_terminal(here, command):
    (here / "app.py").write_text(
        textwrap.dedent("""
        from actorq import Queue
        queue = Queue("Queue.json")
        @queue.handler("work")
        def work(task): ...
        """)
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "actorq", *command], environment(TERM="xterm"))
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 4096)
    os.write(terminal, b"\x03")
    said += all_written_to(terminal)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said.decode()
    assert b"stopping on SIGINT" in said
    assert b"Traceback" not in said


def test_no_command_is_missing_here():
    commands = next(action for action in build_parser()._actions if action.dest == "command")
    elsewhere = {"demo", "worker", "serve", "bench"}

    assert set(re.findall(r"actorq (\w+)", SESSION)) | elsewhere == set(commands.choices or ())

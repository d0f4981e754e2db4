"""The README's programs run, and its commands are what the project's own scripts rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from actorq.cli import build_parser

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_readme_begins_with_a_program_of_about_ten_lines():
    first = [line for line in PROGRAMS[0].splitlines() if line.strip()]

    assert len(first) <= 12
    assert TEXT.index("```python") < 100


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_each_program_runs_as_it_stands(program, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(program)

    folders = os.environ | {"TMPDIR": str(tmp_path)}  # one of them makes a folder of its own
    ran = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=folders, capture_output=True, text=True, timeout=30, check=False
    )

    # One of them kills an actor, and the runtime says so.
    errors = [line for line in ran.stderr.splitlines() if "was killed by signal 9" not in line]
    assert (ran.returncode, errors) == (0, [])
    said = re.search(r"print\(.*#(.*)$", program, re.MULTILINE)
    assert ran.stdout.strip() == (said.group(1).strip() if said else "")


@pytest.mark.parametrize("command", ["pip install uv && uv run actorq demo", "pip install uv && uv run pytest"])
def test_the_two_commands_for_a_fresh_machine_stand_on_lines_of_their_own(command):
    assert command in TEXT.splitlines()


def test_the_table_of_commands_names_all_that_exist():
    described = set(re.findall(r"^\| `actorq (\w+)", TEXT, re.MULTILINE))
    commands = next(action for action in build_parser()._actions if action.dest == "command")
    exist = set(commands.choices or ())

    assert described == exist


def test_the_files_it_points_to_exist():
    names = re.findall(r"\]\(([\w./]+)\)", TEXT) + re.findall(r"`((?:actorq|tests)/[\w/]+(?:\.\w+)?/?)`", TEXT)

    assert names
    assert [name for name in names if not (README.parent / name).exists()] == []

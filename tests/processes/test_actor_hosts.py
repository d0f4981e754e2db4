"""Programs that use actors: scripts, modules, threads, forks, terminals. And what they leave behind: nothing."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from actorq.actors import ActorSystem
from tests.actors.cast import Add, Counter, Total
from tests.helpers import named_memory, wait_until

ROOT = Path(__file__).parents[2]

SCENE = """
import os, signal, sys, threading, time
from actorq.actors import Actor, ActorSystem, ChildSpec
class Mine(Actor):
    def receive(self, message):
        return [os.getpid(), message, __name__]
class Mood:
    def __repr__(self):
        return "a mood of main"
"""


@pytest.fixture
def program(tmp_path):
    """Return a function that writes a script and starts it; whatever it leaves is killed at the end."""
    started = []

    def start(body, *flags, scene=SCENE, name="program.py", run=None, **options):
        path = tmp_path / name
        path.write_text(scene + textwrap.dedent(body))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACTORQ_TEST_MARK": str(tmp_path)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path} | options
        process = subprocess.Popen([sys.executable, *flags, *(run or [str(path)])], env=environment, **options)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    for pid in marked(tmp_path):
        os.kill(pid, signal.SIGKILL)


def marked(mark):
    """Return the processes that a program of this test has left."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"ACTORQ_TEST_MARK={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def outcome(process):
    out, err = process.communicate(timeout=20)
    return process.returncode, out.split("\n")[:-1], err


# ---------------------------------------------------------------------------------------------------------------
# Kinds of programs

MAIN = """
if __name__ == "__main__":
    with ActorSystem() as system:
        ref = system.spawn(Mine)
        pid, message, name = ref.ask(Mood())
        print(pid != os.getpid(), message, name)
"""


def test_a_script_whose_classes_live_in_main(program, tmp_path):
    assert outcome(program(MAIN)) == (0, ["True a mood of main __mp_main__"], "")
    assert marked(tmp_path) == []


@pytest.mark.parametrize("flags", [["-X", "dev", "-W", "error"], ["-O"], ["-I"], ["-P"]], ids=" ".join)
def test_a_script_under_the_flags_of_its_interpreter(program, flags):
    scene = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + SCENE
    assert outcome(program(MAIN, *flags, scene=scene)) == (0, ["True a mood of main __mp_main__"], "")


def test_a_module(program):
    assert outcome(program(MAIN, run=["-m", "program"])) == (0, ["True a mood of main __mp_main__"], "")


def test_a_package_with_a_main_of_its_own(program, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "actors.py").write_text(SCENE)
    body = "from package.actors import *\n" + textwrap.dedent(MAIN.replace('if __name__ == "__main__":', "if True:"))
    process = program(body, scene="", name="package/__main__.py", run=["-m", "package"])
    assert outcome(process) == (0, ["True a mood of main package.actors"], "")


def test_a_program_that_starts_far_from_where_its_files_are(program, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    body = """
    if __name__ == "__main__":
        os.chdir("elsewhere")
        with ActorSystem() as system:
            print(system.spawn(Mine).ask(Mood())[1])
    """
    assert outcome(program(body, run=["program.py"])) == (0, ["a mood of main"], "")


def test_files_in_the_current_folder_cannot_pass_for_the_standard_library(program, tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("pickle", "socket", "logging", "os", "marshal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('hijacked')")
    assert outcome(program(MAIN, name="scripts/program.py")) == (0, ["True a mood of main __mp_main__"], "")


def test_a_script_without_the_guard_is_told_so_in_one_line(program):
    body = """
    with ActorSystem() as system:
        system.spawn(Mine)
    """
    code, out, err = outcome(program(body))
    assert (code, out) == (1, [])
    last = err.strip().splitlines()[-1]
    assert last.startswith("actorq.errors.MainGuardError: ")
    assert 'put that below `if __name__ == "__main__":`' in last


def test_main_is_not_imported_where_nothing_mentions_it(program):
    body = """
    from tests.actors.cast import Counter, Total
    print("main runs")
    if __name__ == "__main__":
        with ActorSystem() as system:
            counter = system.spawn(Counter)
            print(counter.ask(Total()))
    """
    assert outcome(program(body)) == (0, ["main runs", "0"], "")


def test_a_message_that_mentions_main_has_it_imported_then(program):
    body = """
    from tests.actors.cast import Call, Counter
    def in_main(mood):
        return repr(mood)
    if __name__ == "__main__":
        with ActorSystem() as system:
            counter = system.spawn(Counter)
            print(counter.ask(Call(in_main, (Mood(),))))
    """
    assert outcome(program(body)) == (0, ["a mood of main"], "")


def test_a_text_that_only_says_main_does_not_have_it_imported(program):
    body = """
    from tests.actors.cast import Call, Counter
    print("main runs")
    with ActorSystem() as system:
        counter = system.spawn(Counter)
        print(counter.ask(Call(repr, ("if __name__ == '__main__':",))))
    """
    assert outcome(program(body)) == (0, ["main runs", "\"if __name__ == '__main__':\""], "")


def test_an_actor_comes_up_again_after_the_current_folder_was_removed(program, tmp_path):
    (tmp_path / "release").mkdir()
    body = """
    from tests.actors.cast import Counter
    if __name__ == "__main__":
        os.chdir("release")
        with ActorSystem() as system:
            counter = system.spawn(Counter)
            before = counter.ask("pid")
            os.rmdir("../release")
            counter.kill()
            print(counter.ask("pid", timeout=20) != before)
    """
    code, out, err = outcome(program(body, run=["program.py"]))
    assert (code, out) == (0, ["True"]), err


def test_code_typed_in_has_no_file_to_import_and_is_told_so(program):
    body = SCENE + "with ActorSystem() as system:\n    system.spawn(Mine)\n"
    code, _, err = outcome(program("", run=["-c", body]))
    assert code == 1
    assert "cannot be imported in its process: AttributeError" in err.strip().splitlines()[-1]


def test_a_program_that_never_closes_its_system(program, tmp_path):
    body = """
    if __name__ == "__main__":
        system = ActorSystem()
        print(system.spawn(Mine).ask("hello")[1])
    """
    assert outcome(program(body, "-X", "dev")) == (0, ["hello"], "")
    assert marked(tmp_path) == []


def test_a_program_that_ends_with_an_error(program, tmp_path):
    body = """
    if __name__ == "__main__":
        with ActorSystem() as system:
            system.spawn(Mine)
            sys.exit("on purpose")
    """
    assert outcome(program(body)) == (1, [], "on purpose\n")
    assert marked(tmp_path) == []


def test_a_program_with_its_standard_streams_closed(program, tmp_path):
    body = """
    if __name__ == "__main__":
        for fd in (0, 1, 2):
            os.close(fd)
        with ActorSystem() as system:
            ref = system.spawn(Mine)
            with open("result", "w") as file:
                file.write(ref.ask("hello")[1])
    """
    program(body).wait(20)
    assert (tmp_path / "result").read_text() == "hello"


def test_a_program_that_ignores_sigchld(program):
    body = """
    if __name__ == "__main__":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with ActorSystem() as system:
            ref = system.spawn(Mine)
            ref.kill()
            print(ref.ask("hello")[1])
    """
    assert outcome(program(body))[:2] == (0, ["hello"])


def test_a_program_with_a_default_timeout_for_sockets(program):
    body = """
    import socket
    if __name__ == "__main__":
        socket.setdefaulttimeout(0.01)
        with ActorSystem() as system:
            ref = system.spawn(Mine)
            time.sleep(0.05)
            print(ref.ask("hello")[1])
    """
    assert outcome(program(body)) == (0, ["hello"], "")


def test_a_low_limit_of_fds_holds_for_the_actors_and_not_for_their_supervisor(program):
    body = """
    import resource
    class Limit(Actor):
        def receive(self, message):
            return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if __name__ == "__main__":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))
        with ActorSystem() as system:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            refs = [system.spawn(Limit) for _ in range(8)]
            print({ref.ask("limit") for ref in refs})
    """
    assert outcome(program(body)) == (0, ["{32}"], "")


def test_what_an_actor_prints_comes_once_and_what_it_registers_runs(program):
    body = """
    import atexit
    class Talker(Actor):
        def __init__(self):
            atexit.register(print, "registered")
            print("init")
        def receive(self, message):
            print(message)
    if __name__ == "__main__":
        print("before")
        with ActorSystem() as system:
            ref = system.spawn(Talker)
            ref.tell("message")
            ref.stop()
        print("after")
    """
    assert sorted(outcome(program(body))[1]) == ["after", "before", "init", "message", "registered"]


def test_the_level_of_the_logger_holds_in_the_actors(program):
    body = """
    import logging
    if __name__ == "__main__":
        logging.getLogger("actorq").setLevel(logging.CRITICAL)
        with ActorSystem() as system:
            ref = system.spawn(Mine)
            ref.kill()
            ref.send(b"a frame")
            ref.ask("hello")
    """
    assert outcome(program(body)) == (0, [], "")


# ---------------------------------------------------------------------------------------------------------------
# Threads and forks


def test_a_system_started_in_a_thread_that_ends_lives_on():
    systems = []
    thread = threading.Thread(target=lambda: systems.append(ActorSystem()))
    thread.start()
    thread.join()
    with systems[0] as system:
        refs = []
        thread = threading.Thread(target=lambda: refs.append(system.spawn(Counter)))
        thread.start()
        thread.join()
        time.sleep(0.05)  # a death signal bound to the thread would have arrived by now
        assert refs[0].ask(Total()) == 0
        assert system.supervisor_restarts == 0


def test_it_works_among_busy_threads():
    is_over = threading.Event()
    threads = [threading.Thread(target=lambda: [None for _ in iter(is_over.is_set, True)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        with ActorSystem() as system:
            refs = [system.spawn(Counter) for _ in range(3)]
            for ref in refs:
                ref.tell(Add(1))
            assert [ref.ask(Total()) for ref in refs] == [1, 1, 1]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_may_use_refs_and_ends_without_ending_the_system(program):
    body = """
    if __name__ == "__main__":
        system = ActorSystem()
        ref = system.spawn(Mine, name="mine")
        if os.fork() == 0:
            ok = ref.ask("from the child")[1]
            try:
                system.spawn(Mine)
            except Exception as error:
                print(ok, type(error).__name__, flush=True)
            system.close()
            sys.exit()  # atexit runs here too
        os.wait()
        print(ref.ask("still there")[1])
    """
    code, out, _ = outcome(program(body, "-W", "ignore"))
    assert (code, out) == (0, ["from the child ActorError", "still there"])


def test_an_actor_may_have_a_system_of_its_own(program, tmp_path):
    body = """
    class Boss(Actor):
        def __init__(self):
            self.system = ActorSystem()
            self.worker = self.system.spawn(Mine)
        def receive(self, message):
            return self.worker.ask(message)
    if __name__ == "__main__":
        with ActorSystem() as system:
            boss = system.spawn(Boss)
            print(boss.ask(Mood())[1])
            boss.kill()
            print(boss.ask(Mood())[1])
    """
    code, out, _ = outcome(program(body))
    assert (code, out) == (0, ["a mood of main", "a mood of main"])
    wait_until(lambda: marked(tmp_path) == [], timeout=1)


# ---------------------------------------------------------------------------------------------------------------
# Ends

WAITS = """
if __name__ == "__main__":
    with ActorSystem([ChildSpec("a", Mine), ChildSpec("b", Mine)]) as system:
        refs = [system.spawn(Mine) for _ in range(3)]
        print(*(ref.pid() for ref in refs), flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_host_dies_the_whole_tree_is_gone_within_a_second(program, tmp_path, blow):
    process = program(WAITS)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(marked(tmp_path)) == 7
    os.kill(pids[0], signal.SIGSTOP)  # one that could not end by itself
    process.send_signal(blow)
    process.wait()
    wait_until(lambda: marked(tmp_path) == [], timeout=1)


def test_when_the_host_becomes_another_program_the_tree_ends(program, tmp_path):
    body = """
    if __name__ == "__main__":
        system = ActorSystem([ChildSpec("a", Mine)])
        print("up", flush=True)
        os.execv("/bin/sleep", ["sleep", "60"])
    """
    process = program(body)
    process.stdout.readline()
    wait_until(lambda: marked(tmp_path) == [process.pid], timeout=1)


def test_a_host_that_is_killed_while_it_starts_leaves_nothing(program, tmp_path):
    for delay in (0.0, 0.04, 0.12):
        process = program(WAITS)
        wait_until(lambda: len(marked(tmp_path)) > 1)
        time.sleep(delay)  # somewhere in the start of the interpreter of the root
        process.kill()
        process.wait()
        wait_until(lambda: marked(tmp_path) == [], timeout=1)


def in_terminal(program, body, *flags):
    """Start a program as the foreground of a terminal; return it and the terminal."""
    terminal, theirs = pty.openpty()
    process = program(
        body,
        *flags,
        stdin=theirs,
        stdout=theirs,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(theirs)
    return process, terminal


def read_line(terminal, timeout=10):
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([terminal], [], [], timeout)[0]
        line += os.read(terminal, 1)
    return line.decode().strip()


def test_ctrl_c_in_a_terminal_ends_everything_and_prints_nothing(program, tmp_path):
    body = """
    class Slow(Mine):
        def on_stop(self):
            print("stopped in order", flush=True)
    if __name__ == "__main__":
        try:
            with ActorSystem() as system:
                refs = [system.spawn(Slow)]
                print("up", flush=True)
                while True:
                    # A ^C between two instructions is not heard by the sleep that comes next, in any Python program.
                    time.sleep(0.05)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    process, terminal = in_terminal(program, body)
    assert read_line(terminal) == "up"
    os.write(terminal, b"\x03")
    assert process.wait(10) == 130
    assert process.stderr.read() == ""
    assert read_line(terminal) == "^Cstopped in order"
    assert marked(tmp_path) == []
    os.close(terminal)


def test_ctrl_c_while_it_starts_shows_one_traceback_of_the_host_alone(program, tmp_path):
    body = """
    if __name__ == "__main__":
        try:
            print("go", flush=True)  # in here: the answer may come before the next line is reached
            for _ in range(100):
                with ActorSystem() as system:
                    system.spawn(Mine)
        except KeyboardInterrupt:
            sys.exit(130)
    """
    for delay in (0.0, 0.06, 0.2):
        process, terminal = in_terminal(program, body)
        assert read_line(terminal) == "go"
        time.sleep(delay)
        os.write(terminal, b"\x03")
        assert process.wait(10) == 130
        assert process.stderr.read() == ""
        assert marked(tmp_path) == []
        os.close(terminal)


def test_no_semaphore_and_no_file_is_left(program):
    before = named_memory()
    outcome(program(MAIN))
    wait_until(lambda: named_memory() <= before, what="semaphores left")


# ---------------------------------------------------------------------------------------------------------------
# Elsewhere


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_the_import_works_and_the_first_use_says_so_in_one_line(program, platform):
    body = f"""
    import signal, select, os, socket
    import multiprocessing.queues, multiprocessing.connection, subprocess, tempfile, logging, dataclasses
    import sys
    sys.platform = {platform!r}
    for module, names in ((select, ["epoll", "EPOLLIN"]), (os, ["pidfd_open", "register_at_fork", "posix_spawn"]),
                          (signal, ["pthread_sigmask", "SIGKILL", "SIGCHLD"]), (socket, ["AF_UNIX"])):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    from actorq.actors import Actor, ActorSystem, Mailbox, PacketSocket
    for call in (ActorSystem, Mailbox, PacketSocket.pair):
        try:
            call()
        except Exception as error:
            print(type(error).__name__, error)
    """
    line = f"UnsupportedPlatformError actorq runs on Linux only for now; this is {platform!r}"
    assert outcome(program(body, scene="")) == (0, [line] * 3, "")

"""Aimed: kills at each place that `actorq.failpoints` names, one by one, in a queue that goes on all the while.

    uv run python -m tests.faults.aimed --kills 5000 --seed 1

A random kill hardly ever meets the moment between two system calls. Here a charge is laid at a place, whatever leads
there is brought about (a publish, the death of a consumer, a disk that is full), and the next process that comes by
dies there. Every place has its turn once in each round; besides, processes are stopped there, delayed, made to exit, or
have a system call fail. What follows is the next aim: nobody waits until the queue has recovered.

At the end of each round all work must come to its end, and everything that was written down is held against the log.

Exit status: 0 all was right and every place was hit, 1 something was not (the folder with the queue and its history is
kept and named), 2 wrong usage.

examples:
  uv run python -m tests.faults.aimed                                    every place once
  uv run python -m tests.faults.aimed --kills 5000 --seed 1 --json       the last line is one JSON object
  uv run python -m tests.faults.aimed --only recovery --kills 200        the places whose names begin so
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from actorq import Queue
from actorq.actors.linux import boot_id
from actorq.direct_publisher import BothLocks
from actorq.failpoints import POINTS, Kind
from actorq.store.compaction import compact
from actorq.testing import armed_failpoints
from tests.faults import load
from tests.faults.arena import Arena, Load
from tests.faults.checker import Report
from tests.faults.history import Process
from tests.faults.soak import add_common_options, check_folder, positive, print_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from actorq.testing import Failpoints, Laid, Taken

LIGHT = Load(consumers=3, publishers=2, threads=0, direct=0, rest=0.05, most_open=200)
"""The host itself publishes nothing, or it would come by at many places and be dead most of the time."""

OTHER_BLOWS = 0.3
"""For each kill so many blows that are none: stops, delays, exits, errors."""

AGAIN_SECONDS = 0.5
LONGEST_PATIENCE_SECONDS = 2.0
"""A place that nobody has come by for so long is led to once more; the time doubles up to the longest."""

LOOK_SECONDS = 0.01
PUMP_SECONDS = 0.002
GIVE_UP_SECONDS = 20.0
STOP_SECONDS = (0.001, 0.05)
DELAY_SECONDS = (0.001, 0.1)
CUT_BYTES = (1, 2, 7, 60, 137, 300)

KILL_ROLE = {
    "consumer-": (
        "writer.greeted", "writer.attached", "router.received", "router.attaching", "router.attached",
        "router.detaching", "registry.connecting",
        "registry.received", "registry.attaching", "registry.dead", "registry.ended", "session.connecting",
        "session.connected", "supervisor.forking", "supervisor.forked", "supervisor.started",
        "supervisor.exited", "supervisor.reaped", "supervisor.told", "child.forked", "child.starting",
        "child.started",
    ),
    "publisher-broker": ("writer.locked", "writer.opened", "writer.announced", "log.opened", "router.delivering"),
    "consumer-broker": ("scheduler.replayed", "scheduler.begun", "scheduler.pushing_again"),
    "router": ("router.starting",),
    "registry": ("registry.starting", "router.handing_over", "writer.handing_over"),
    "supervisor": ("warden.root_ended", "warden.starting_root", "root.starting"),
}  # fmt: skip
"""Whose death leads to a place."""

BURST = ("scheduler.recalling", "scheduler.lent", "consumer.giving_back")
"""Where a consumer with a long task, and more behind it, leads to, while the others have nothing to do."""
CALM = (*BURST, "scheduler.idle")
"""Where nobody comes by while publishers are busy."""

STEERING = ("scheduler.deciding", "scheduler.decided", "scheduler.answering")
"""Where somebody who steers leads to."""

FULL_DISK = ("log.taking_back", "writer.refused")
FAILED_SYNC = (
    "log.sync_failed", "log.marked", "recovery.rewriting", "recovery.rewritten", "new_file.opened", "new_file.writing",
    "new_file.syncing", "new_file.synced", "new_file.replacing", "new_file.named", "new_file.settled",
)  # fmt: skip
TORN_WRITE = ("recovery.torn", "recovery.keeping", "recovery.kept", "recovery.blanking", "recovery.blanked")
HOST_START = ("host.locked", "host.started")
HOST_STOP = ("consumer.stopping", "writer.stopping", "host.stopping", "host.stopped")
COMPACTION = tuple(name for name in POINTS if name.startswith("compaction."))
IN_USE = (
    "writer.offered", "writer.switched", "new_file.taken_over", "switch.copied", "compactor.asked",
    "compactor.offering", "compactor.offered", "scheduler.compacting", "scheduler.following", "scheduler.swapping",
)  # fmt: skip
"""Where the compaction of a running queue leads, every few seconds."""
DIRECT = tuple(name for name in POINTS if name.startswith("direct."))
UNHOSTED = (*DIRECT, *COMPACTION, *FAILED_SYNC, *TORN_WRITE, "log.taking_back", "log.closing")
"""Where processes without brokers come by; faster to be had than in a running queue."""
HOSTED = tuple(name for name in POINTS if name not in (*DIRECT, *COMPACTION, "log.closing", *HOST_START, *HOST_STOP))
SHARE_HOSTED = 0.15
"""How often a place that has both is aimed at in a running queue."""

SUPERVISORS = ("supervisor.", "root.")
FATAL = ("kill", "exit", "cut")

SHARE_COMPACTING = 0.3
"""How often a new file is that of a compaction, rather than of a recovery."""


@dataclass
class Hits:
    """What was hit."""

    kills: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    """Aims that nobody came by in time."""
    hosts: int = 0
    seconds: float = 0.0


class Marksman:
    """Aims at the places of one arena."""

    def __init__(
        self,
        arena: Arena,
        points: Failpoints,
        dice: random.Random,
        hits: Hits,
        *,
        others: float = OTHER_BLOWS,
        is_verbose: bool,
    ) -> None:
        self._others = others
        self._is_verbose = is_verbose
        self._arena = arena
        self._points = points
        self._dice = dice
        self._hits = hits
        self._child = 0
        """Pid of one that was stopped at a place and has not ended; 0 when there is none."""

    # -- what to aim at

    def round(self, names: Sequence[str]) -> None:
        """Aim once at each of these places, and now and then do something milder there."""
        order = self._dice.sample(names, len(names))
        unhosted = [
            name for name in order if name in UNHOSTED and (name not in HOSTED or self._dice.random() >= SHARE_HOSTED)
        ]
        self._aim_unhosted(unhosted)
        self._aim_at_start([name for name in order if name in HOST_START])
        hosted = [name for name in order if name in HOSTED and name not in unhosted]
        for name in hosted:
            if self._dice.random() < self._others:
                self._aim_hosted(name, self._milder(name))
            self._aim_hosted(name, self._deadly(name))
        self._aim_at_stop([name for name in order if name in HOST_STOP])

    def _aim_unhosted(self, names: Sequence[str]) -> None:
        self._wait_until_unhosted()
        self._run_child(self._publish)  # so that there is a file
        for name in names:
            if self._dice.random() < self._others:
                self._aim_at_child(name, self._milder(name))
            self._aim_at_child(name, self._deadly(name))

    def _aim_at_start(self, names: Sequence[str]) -> None:
        for name in names:
            laid = self._lay(name, "kill")
            self._wait(laid, self._need_host)
        self._need_host()

    def _aim_hosted(self, name: str, action: str) -> None:
        self._arena.pause(name in CALM)
        laid = self._lay(name, action, nth=self._dice.choice((1, 1, 2, 3)) if self._is_busy(name) else 1)
        helpers: list[Laid] = []
        self._wait(laid, lambda: self._provoke(name, laid, helpers))
        self._settle_helpers(helpers)
        self._arena.pause(is_paused=False)

    def _aim_at_stop(self, names: Sequence[str]) -> None:
        # One end of a host leads to all of them but that the host dies at one, and comes no further.
        last = [name for name in names if name.startswith("host.")]
        for name in last or names[:1]:
            self._need_running()
            before = [each for each in names if each not in last and name == (last or names)[0]]
            laid = [self._lay(each, "kill") for each in dict.fromkeys([*before, name])]
            for each in laid:
                self._wait(each, self._stop_host)
            self._wait_until_unhosted()

    # -- how it is brought about

    def _is_busy(self, name: str) -> bool:
        """Whether everyday work passes there all the time."""
        return name not in (*CALM, *STEERING, *IN_USE, *FULL_DISK, *FAILED_SYNC, *TORN_WRITE) and not any(
            name in names for names in KILL_ROLE.values()
        )

    def _provoke(self, name: str, laid: Laid, helpers: list[Laid]) -> bool:
        """Do what leads to a place in a running queue; False when it could not be done just now."""
        if not self._need_running(laid):
            return False
        for role, names in KILL_ROLE.items():
            if name in names:
                victim = f"{role}{self._dice.randint(1, LIGHT.consumers)}" if role.endswith("-") else role
                pidfd = self._arena.strike(victim, signal.SIGKILL, "kill")
                if pidfd is not None:
                    os.close(pidfd)
                return pidfd is not None
        if name in CALM:
            self._arena.tell("burst" if name in BURST else "join")
        if name in STEERING:
            self._arena.tell("steer")
        self._lay_helper(name, helpers)
        return True

    def _lay_helper(self, name: str, helpers: list[Laid]) -> None:
        """Lay the charge that has to go off before anybody comes by."""
        self._settle_helpers(helpers)
        if name in FULL_DISK:
            helpers.append(self._lay("log.writing", "raise", errno.ENOSPC))
        elif name in FAILED_SYNC:
            helpers.append(self._lay("log.syncing", "raise", errno.EIO))
        elif name in TORN_WRITE:
            helpers.append(self._lay("log.writing", "cut", self._dice.choice(CUT_BYTES)))

    def _settle_helpers(self, helpers: list[Laid]) -> None:
        """Take back the charges that were to lead somewhere, or note who took them."""
        while helpers:
            helper = helpers.pop()
            if not self._points.take_back(helper):
                taken = self._points.taken_by(helper)
                assert taken is not None
                self._note(helper, taken)

    def _aim_at_child(self, name: str, action: str) -> None:
        laid = self._lay(name, action)
        helpers: list[Laid] = []
        self._wait(laid, lambda: self._lead_children(name, helpers))
        self._settle_helpers(helpers)
        self._end_child()

    def _lead_children(self, name: str, helpers: list[Laid]) -> None:
        """Run the child that comes by; before it, where that is needed, one for what has to go wrong before."""
        if name in COMPACTION or (name.startswith("new_file.") and self._dice.random() < SHARE_COMPACTING):
            self._run_child(self._compact)
            return
        if name == "direct.steered":
            self._run_child(self._steer)
            return
        self._lay_helper(name, helpers)
        self._run_child(self._publish)
        if helpers:
            self._run_child(self._publish)

    def _run_child(self, action: Callable[[], object]) -> None:
        """Run it until it has ended or is stopped."""
        self._end_child()
        self._arena.read_log()  # before it is compacted: a snapshot does not tell what happened
        self._child = self._arena.fork(action, self._points.folder)
        while not (ended := os.waitpid(self._child, os.WNOHANG | os.WUNTRACED))[0]:
            self._arena.pump(PUMP_SECONDS)
        if not os.WIFSTOPPED(ended[1]):
            self._child = 0

    def _end_child(self) -> None:
        """Wait for the end of a child that was stopped."""
        while self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGCONT)
            if os.waitpid(self._child, os.WNOHANG)[0]:
                self._child = 0
            self._arena.pump(PUMP_SECONDS)

    def _publish(self) -> None:
        """Publish a task; in a child."""
        queue, dice, mine = Queue(self._arena.path), random.Random(), load.recorder()
        load.publish_these(queue, [load.payload(dice, "direct") | {"ms": 0}], mine, timeout=20)

    def _steer(self) -> None:
        """Take back a pause that there is not; in a child."""
        Queue(self._arena.path).resume(timeout=20)

    def _compact(self) -> None:
        """Rewrite the file; in a child."""
        path = self._arena.path
        BothLocks(path, lambda: None).hold(
            20, lambda: compact(path, boot_id=boot_id(), pid=os.getpid(), keep_done=None)
        )

    # -- blows

    def _deadly(self, name: str) -> str:
        if POINTS[name][0] is Kind.WRITE and self._dice.random() < 0.5:
            return "cut"
        return "exit" if self._dice.random() < 0.1 else "kill"

    def _milder(self, name: str) -> str:
        return self._dice.choice(("stop", "delay") if POINTS[name][0] is Kind.PLAIN else ("stop", "delay", "raise"))

    def _lay(self, name: str, action: str, value: float | None = None, nth: int = 1) -> Laid:
        if value is None:
            match action:
                case "cut":
                    value = self._dice.choice(CUT_BYTES)
                case "delay":
                    value = self._dice.uniform(*DELAY_SECONDS)
                case "raise":
                    refused = name in ("supervisor.forking", "warden.starting_root")
                    value = errno.EAGAIN if refused else self._dice.choice((errno.EIO, errno.ENOSPC))
        return self._points.lay(name, action, nth, value)

    def _wait(self, laid: Laid, lead: Callable[[], object]) -> None:
        """Wait until somebody comes by, leading there anew now and then; note who it was."""
        begin = time.monotonic()
        again = begin
        patience = AGAIN_SECONDS
        while (taken := self._points.taken_by(laid)) is None:
            now = time.monotonic()
            if now >= again:
                if lead() is False:
                    again = now + LOOK_SECONDS
                else:
                    # Longer each time: on a busy machine the way there may take longer than the first time allows.
                    again = now + patience
                    patience = min(patience * 2, LONGEST_PATIENCE_SECONDS)
            elif now - begin >= GIVE_UP_SECONDS and self._points.take_back(laid):
                self._hits.missed[laid.charge.point] += 1
                return
            self._arena.pump(PUMP_SECONDS)
        self._note(laid, taken)
        if self._is_verbose:
            sys.stderr.write(f"{time.monotonic() - begin:6.3f} s {laid.charge} by {taken.pid}\n")

    def _note(self, laid: Laid, taken: Taken) -> None:
        point, action = laid.charge.point, laid.charge.action
        process = Process(taken.pid, taken.start)
        role = "other"
        if process in self._arena.all_hosts or point.startswith(("host.", "warden.")):
            role = "host"
        elif point.startswith(SUPERVISORS):
            role = "supervisor"
        elif point == "log.syncing" and action == "raise":
            role = "supervisor"  # whom the writer takes with it then
        self._arena.recorder.fault(role, process, action, point, wall=taken.at)
        (self._hits.kills if action in FATAL else self._hits.others)[point] += 1
        if action == "stop":
            self._arena.pump(self._dice.uniform(*STOP_SECONDS))
            self._points.let_go_on(laid)

    # -- the host

    def _need_host(self) -> None:
        if not self._arena.is_started:
            self._arena.start_host()

    def _need_running(self, laid: Laid | None = None) -> bool:
        """Wait until the host runs; return False if somebody was met on the way there, who may hold it up."""
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while not self._arena.is_hosted and time.monotonic() < deadline:
            if laid is not None and self._points.taken_by(laid) is not None:
                return False
            self._need_host()
            self._arena.pump()
        return self._arena.is_hosted

    def _stop_host(self) -> None:
        self._need_running()
        self._arena.tell("stop")

    def _wait_until_unhosted(self) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while self._arena.is_started and time.monotonic() < deadline:
            self._arena.tell("stop")
            self._arena.pump()


def aimed(
    folder: Path, kills: int, seed: int, names: Sequence[str], *, others: float = OTHER_BLOWS, is_verbose: bool = False
) -> tuple[Report, Hits]:
    """Run rounds, one queue after the other, until so many kills have landed."""
    report, hits, dice = Report(), Hits(), random.Random(seed)
    number = 0
    begin = time.monotonic()
    while hits.kills.total() < kills:
        number += 1
        below = folder / f"round-{number}"
        below.mkdir()
        with armed_failpoints() as points, Arena(below, LIGHT) as arena:
            Marksman(arena, points, dice, hits, others=others, is_verbose=is_verbose).round(names)
            found = arena.judge(arena.settle(), arena.stop())
            hits.hosts += arena.hosts
        report.merge(found)
        hits.seconds = time.monotonic() - begin
        if not found.violations:
            shutil.rmtree(below)
        sys.stderr.write(
            f"round {number}: {hits.kills.total()} kills in {hits.seconds:.0f} s, {found.acknowledged} acknowledged, "
            f"{found.lost} lost, {found.duplicated} duplicated, {len(found.violations)} violations\n"
        )
        if hits.missed:
            break
    return report, hits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.aimed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=positive, default=1, help="go on until so many have landed (one round)")
    parser.add_argument(
        "--others", type=float, default=OTHER_BLOWS, help="blows that are no kills, for each kill (0.3)"
    )
    parser.add_argument("--only", default="", metavar="BEGINNING", help="aim only at places whose names begin so")
    parser.add_argument("--verbose", action="store_true", help="say of each aim how long it took")
    add_common_options(parser)
    given = parser.parse_args(arguments)
    check_folder(parser, given.folder)
    names = [name for name in POINTS if name.startswith(given.only)]
    if not names:
        parser.error(f"no place begins with {given.only}; there are {', '.join(POINTS)}")
    seed = random.randrange(1 << 32) if given.seed is None else given.seed
    folder = Path(tempfile.mkdtemp(dir=given.folder, prefix=".aimed-"))
    sys.stderr.write(f"seed {seed}\n")
    try:
        report, hits = aimed(folder, int(given.kills), seed, names, others=given.others, is_verbose=given.verbose)
    except KeyboardInterrupt:
        sys.stderr.write(f"\ninterrupted; what there is lies in {folder}\n")
        return 130
    never = [name for name in names if not hits.kills[name]]
    for name in names:
        print(f"{name:26} {hits.kills[name]:5} kills {hits.others[name]:5} others   {POINTS[name][1]}")
    said = {
        **report.as_json(), "kills": hits.kills.total(), "others": hits.others.total(), "hosts": hits.hosts,
        "points": len(names), "never_hit": never, "fewest": min(hits.kills[name] for name in names),
        "most": max(hits.kills[name] for name in names), "seconds": round(hits.seconds, 1),
        "kills_per_second": round(hits.kills.total() / hits.seconds, 1), "seed": seed,
    }  # fmt: skip
    print_report(said, report.shown())
    if report.violations or never:
        print(f"queue and history are kept in {folder}" if report.violations else f"never hit: {', '.join(never)}")
    if not report.violations:
        shutil.rmtree(folder)
    if given.json:
        print(orjson.dumps(said).decode())
    return 1 if report.violations or never else 0


if __name__ == "__main__":
    raise SystemExit(main())

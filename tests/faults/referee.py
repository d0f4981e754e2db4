"""What must be true of a simulated queue, checked as it goes: by each record of the log, by each start of a handler.

The referee reads the file as it grows, with a fold of its own (`NaiveFold`), and is told what publishers were promised
and what handlers do. It knows what no process knows: what is on disk for certain, who is really dead, who really ran.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.store.records import parse_line
from tests.faults import kernel as simulated
from tests.faults.kernel import PATH, Kernel, Process
from tests.store.naive_fold import NaiveFold, view_of

if TYPE_CHECKING:
    from actorq.store.log_reader import Batch


COMPACTOR = "compactor"


class ViolationError(AssertionError):
    """The queue has broken a promise."""


class Execution:
    """One run of a handler."""

    def __init__(self, process, holder):
        self.process = process
        self.holder = holder  # session and number of the assignment
        self.ended = ""  # "done" or "failed" once it has returned or raised


class Referee:
    """The one who knows what was promised."""

    def __init__(self, kernel: Kernel, durability: str):
        self.kernel = kernel
        self.is_power = durability == "power"
        self.tasks = 0
        self.attempted: dict[int, str] = {}  # payload -> name
        self.acknowledged: dict[str, int] = {}  # task -> payload
        self.refused: set[int] = set()
        self.executions: defaultdict[str, list[Execution]] = defaultdict(list)
        self.history: list[tuple[bytes, str]] = []  # commits, from the queue's first on: lines and time
        self.durable = 0
        self.cancelled: set[str] = set()  # those of which somebody was told so
        self.in_hand: dict[tuple[int, int], str] = {}  # pid and start of the dead: what their slot said
        self.processes: dict[tuple[int, int], Process] = {}
        self.is_lenient = False
        """Whether consumers may run what the log does not show: it has lost that they are there at all."""
        self.unmarked: Process | None = None
        """Who has seen a sync of the file fail, and has not left the mark yet."""
        self._inode = -1
        self._tainted: set[int] = set()
        self._reader: LogReader | None = None
        self.switches = 0
        """How often a compacted file has taken the place of one in use."""
        self._may_shrink = False
        """Whether commits that nobody had synced may have gone, with the power or after a failed sync."""
        self.is_in_doubt = False
        """Whether the next writer has still to say what is left."""
        self._forget_fold()

    def _forget_fold(self):
        self.naive = NaiveFold()
        self.naive_commits = 0
        self.commit_of: dict[int, int] = {}  # payload -> commit
        self.handed_out: set[str] = set()
        self.roles: dict[str, tuple[int, int]] = {}  # consumer session -> pid and start

    # -- what is told

    def attempt(self, name: str) -> bytes:
        """Return a payload that nobody has published yet, and expect it."""
        self.tasks += 1
        self.attempted[self.tasks] = name
        return b'{"n":%d,"x":"%b"}' % (self.tasks, b"x" * self.kernel.chance.choice([0, 0, 20, 500]))

    def acknowledge(self, task: str, payload: bytes) -> None:
        """Hear that a publisher was told yes."""
        self.look()
        number = _number_of(payload)
        there = self.naive.tasks.get(task)
        if there is None and not self.is_power and self._may_shrink:
            return  # promised for as long as the disk takes what is written
        self.acknowledged[task] = number
        if there is None or there["data"]["n"] != number:
            raise ViolationError(f"{task} was acknowledged and is not in the log")
        if self.is_power and self.commit_of[number] > self.durable:
            raise ViolationError(f"{task} was acknowledged and is not on disk")

    def refuse(self, payload: bytes) -> None:
        """Hear that a publisher was told no, for certain."""
        self.refused.add(_number_of(payload))
        self.look()
        if _number_of(payload) in self.commit_of:
            raise ViolationError(f"{payload!r:.40} was refused and is in the log")

    def steered(self, verb: str, name: str | None, asked: dict[str, int], answer: list[str]) -> None:
        """Hear that somebody was told: it is done. `asked`: the tasks, and how often each had failed before."""
        self.look()
        folds = [self.naive]
        if self.is_power:
            folds.append(self._on_disk())
        elif self._may_shrink:
            return  # promised for as long as the disk takes what is written
        for fold in folds:
            if verb in {"pause", "resume"} and (name in fold.paused) is not (verb == "pause"):
                raise ViolationError(f"{verb} {name} was acknowledged, and paused is {fold.paused}")
            for task in answer:
                there = fold.tasks[task]
                is_as_told = {
                    "cancel": there["state"] == "cancelled",
                    "retry": there["state"] != "dead" or len(there["errors"]) > asked[task],
                    # Those done and cancelled may have left the file before.
                    "purge": there["state"] in {"purged", "done", "cancelled"},
                }
                if not is_as_told[verb]:
                    raise ViolationError(f"{verb} {task} was acknowledged, and it is {there}")
        if verb == "cancel":
            self.cancelled.update(answer)

    def _on_disk(self) -> NaiveFold:
        """Return what would be left if the power went now."""
        fold = NaiveFold()
        for lines, at in self.history[: self.durable]:
            for line in lines.splitlines(keepends=True):
                fields = parse_line(line)
                getattr(fold, f"on_{next(iter(fields))}")(fields, at)
        return fold

    def begin(self, process: Process, session: str, task: Any) -> Execution:
        """Hear that a handler starts."""
        self.look()
        there = self.naive.tasks.get(task.id)
        if self.is_lenient and (there is None or there["holder"] is None or there["holder"][0] != session):
            return Execution(process, None)
        if there is None:
            raise ViolationError(f"{task.id} runs and is not in the log")
        if task.id in self.cancelled:
            raise ViolationError(f"{task.id} runs and was cancelled")
        if there["state"] != "running" or there["holder"][0] != session:
            raise ViolationError(f"{task.id} runs in {session}, but the log says {there['state']} {there['holder']}")
        if task.data != there["data"] or task.name != there["name"]:
            raise ViolationError(f"{task.id} is not what was published")
        if task.attempts != there["failures"] + there["crashes"] + 1:
            raise ViolationError(f"{task.id} runs as attempt {task.attempts}: {there}")
        for before in [] if self.is_lenient else self.executions[task.id]:
            if before.process.is_alive and not before.ended:
                raise ViolationError(f"two live executions of {task.id}: {before.process}, {process}")
            if before.process.is_alive and before.ended == "done":
                raise ViolationError(f"{task.id} was finished by {before.process} and runs again")
            if before.process is process and before.holder == there["holder"]:
                raise ViolationError(f"assignment {before.holder} of {task.id} is run twice")
        execution = Execution(process, there["holder"])
        self.executions[task.id].append(execution)
        return execution

    def power_is_cut(self) -> None:
        """Hear that all processes are dead and what was not synced may be gone."""
        self._may_shrink = True
        self.is_in_doubt = True
        self._inode = -1
        self._tainted.clear()
        self._reader = None
        self.unmarked = None

    def caches_are_dropped(self) -> None:
        """Hear that reading may show less than before: a sync has failed."""
        self._may_shrink = True
        self.is_in_doubt = True
        self._inode = -1
        self._reader = None

    def on_write(self, what: str, inode: int) -> None:
        """Hear of a call that changes the disk, before it ("write", "sync") and after it."""
        kernel = self.kernel
        process = kernel.current
        if what == "marked":
            if process.name != "publisher-broker":  # which has still to end all who may have read too much
                self.unmarked = None
            return
        if what in {"write", "sync"}:
            if process.name == COMPACTOR:  # it writes what nobody reads before the writer has taken it over
                if inode == kernel.disk._names.get(PATH):
                    raise ViolationError(f"{process} writes to the file in use")
                return
            if not simulated.holds_lock(process, f"{PATH}.lock"):
                raise ViolationError(f"{process} writes without the lock")
            return
        if inode != kernel.disk._names.get(PATH):
            return
        if what == "sync failed":
            self._tainted.add(inode)
            self.unmarked = process
            return
        self.is_in_doubt = False
        self.look()
        if what == "synced" and inode not in self._tainted:
            self.durable = len(self.history)

    # -- the log

    def look(self) -> None:
        """Read what was committed since the last look."""
        disk = self.kernel.disk
        inode = disk._names.get(PATH)
        if inode is None or self.is_in_doubt:
            return
        if inode != self._inode:
            self._inode = inode
            self._reader = LogReader(PATH, filesystem=disk)
            process = self.kernel.current
            if self._reader.header.pieces and process is not None and process.name == "publisher-broker":
                self.switches += 1
            if self._reader.header.commit > len(self.history):
                raise ViolationError("a new file claims commits that never were")
        assert self._reader is not None
        for batch in self._reader.batches():
            if not batch.piece:
                self._take(batch)
        if self._reader.commit < len(self.history):
            self._cut(self._reader.commit)

    def _take(self, batch: Batch) -> None:
        number = batch.commit.number
        if number <= len(self.history):
            if self.history[number - 1][0] == batch.lines:
                return
            if number <= self.durable or not self._may_shrink:
                raise ViolationError(f"commit {number} has changed")
            self._cut(number - 1)
        if number != len(self.history) + 1:
            raise ViolationError(f"a hole: commit {number} after {len(self.history)}")
        at = batch.commit.at
        self.history.append((batch.lines, at))
        for line in batch.lines.splitlines(keepends=True):
            fields = parse_line(line)
            kind = next(iter(fields))
            check = getattr(self, f"_check_{kind}", None)
            if check is not None:
                check(fields)
            getattr(self.naive, f"on_{kind}")(fields, at)
            if kind == "hello":
                self.roles[fields["hello"]] = fields["pid"], fields["start"]

    def _cut(self, commits: int) -> None:
        """Forget commits that a power cut has taken."""
        if commits < self.durable or not self._may_shrink:
            raise ViolationError(f"commits {commits + 1} to {len(self.history)} are lost, {self.durable} were on disk")
        kept = self.history[:commits]
        self.history = []
        self._forget_fold()
        for lines, at in kept:
            self.history.append((lines, at))
            for line in lines.splitlines(keepends=True):
                fields = parse_line(line)
                kind = next(iter(fields))
                if kind == "id":
                    self.commit_of[fields["data"]["n"]] = len(self.history)
                elif kind == "assign":
                    self.handed_out.update(self.naive.ids(fields["assign"]))
                elif kind == "hello":
                    self.roles[fields["hello"]] = fields["pid"], fields["start"]
                getattr(self.naive, f"on_{kind}")(fields, at)
        for task in [task for task in self.acknowledged if task not in self.naive.tasks]:
            if self.is_power:
                raise ViolationError(f"{task} was acknowledged and is lost")
            del self.acknowledged[task]
        for task in [task for task in self.cancelled if self._state_of(task) not in {"cancelled", "purged"}]:
            if self.is_power:
                raise ViolationError(f"{task} was cancelled, and that is lost")
            self.cancelled.discard(task)

    def _state_of(self, task: str) -> str | None:
        there = self.naive.tasks.get(task)
        return None if there is None else there["state"]

    # -- one record

    def _check_id(self, fields):
        number = fields["data"]["n"]
        if self.attempted.get(number) != fields["name"]:
            raise ViolationError(f"nobody has published {fields}")
        if number in self.commit_of:
            raise ViolationError(f"{fields} is in the log twice")
        if number in self.refused:
            raise ViolationError(f"{fields} was refused and is in the log")
        self.commit_of[number] = len(self.history)

    def _check_assign(self, fields):
        ids = self.naive.ids(fields["assign"])
        consumer = self.naive.consumers.get(fields["to"])
        if consumer is None:  # it has died meanwhile
            self.handed_out.update(ids)
            return
        if fields["no"] != consumer["last_no"] + 1:
            raise ViolationError(f"{fields} comes after number {consumer['last_no']}")
        for task in ids:
            if task not in self.naive.tasks or self.naive.tasks[task]["state"] != "ready":
                raise ViolationError(f"{fields} hands out {task}: {self.naive.tasks.get(task)}")
            if self._is_paused(self.naive.tasks[task]):
                raise ViolationError(f"{fields} hands out {task}, and paused is {self.naive.paused}")
        for task, there in self.naive.tasks.items():
            if task == ids[0]:
                break
            is_wanted = consumer["names"] is None or there["name"] in consumer["names"]
            is_wanted = is_wanted and not self._is_paused(there)
            if is_wanted and there["state"] == "ready" and task not in self.handed_out:
                raise ViolationError(f"{fields} passes over {task}")
        self.handed_out.update(ids)

    def _is_paused(self, there):
        return not self.naive.paused.isdisjoint({None, there["name"]})

    def _reported(self, fields, ids):
        """Return the executions that a report speaks of; nothing when the log does not believe it."""
        tasks = [(task, self.naive.tasks.get(task)) for task in self.naive.ids(ids)]
        holder = fields["by"], fields["no"]
        if not all(there and there["holder"] == holder for _, there in tasks):
            return []
        return [
            (task, [each for each in self.executions[task] if each.holder == holder and self._is(each, holder[0])])
            for task, _ in tasks
        ]

    def _is(self, execution, session):
        process = execution.process
        return self.roles.get(session) == (process.pid, process.start)

    def _check_done(self, fields):
        for task, executions in self._reported(fields, fields["done"]):
            if not any(each.ended == "done" for each in executions):
                raise ViolationError(f"{task} is done, but its handler has not returned")

    def _check_failed(self, fields):
        for task, executions in self._reported(fields, fields["failed"]):
            if not any(each.ended == "failed" for each in executions):
                raise ViolationError(f"{task} has failed, but its handler has not raised")

    def _check_returned(self, fields):
        for task, executions in self._reported(fields, fields["returned"]):
            if executions:
                raise ViolationError(f"{task} is given back, but its handler has started")

    def _check_gone(self, fields):
        who = self.roles.get(fields["gone"], (0, 0))
        if fields["gone"] in self.naive.consumers:
            if who in self.processes and self.processes[who].is_alive:
                raise ViolationError(f"{fields}, but {self.processes[who]} lives")
            if "task" in fields and self.in_hand.get(who) != fields["task"]:
                raise ViolationError(f"{fields} is charged, but in hand was {self.in_hand.get(who)!r}")

    # -- the end

    def check_file(self) -> QueueState:
        """Hold the file against the naive fold of everything that ever was written; return its state."""
        self.look()
        state = QueueState()
        reader = LogReader(PATH, filesystem=self.kernel.disk)
        for batch in reader.batches():
            state.apply(batch)
        seen, expected = view_of(state, reader.read), self.naive.view()
        gone = [task for task in expected["tasks"] if task not in seen["tasks"]]
        purged = [task for task in self.naive.tasks.values() if task.get("was") in {"done", "cancelled"}]
        if len(gone) + len(purged) != sum(state.removed.values()) or any(
            expected["tasks"][task]["state"] not in {"done", "cancelled"} for task in gone
        ):
            raise ViolationError(f"tasks have disappeared: {gone}, {state.removed}")
        for task in gone:
            del expected["tasks"][task]
        if seen != expected:
            raise ViolationError(f"the file says\n{seen}\nbut its history\n{expected}")
        reader.close()
        for task in self.acknowledged:
            if task not in self.naive.tasks:
                raise ViolationError(f"{task} was acknowledged and is lost")
        return state

    def unfinished(self, handled: set[str] | None) -> list[str]:
        """Return the tasks that somebody should still run; `handled` None: all names have a handler."""
        return [
            task
            for task, there in self.naive.tasks.items()
            if there["state"] == "running"
            or (there["state"] == "ready" and (handled is None or there["name"] in handled))
        ]


def _number_of(payload: bytes) -> int:
    return int(payload[5 : payload.index(b",")])

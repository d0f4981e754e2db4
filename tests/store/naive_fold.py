"""The rules of the log once more, one task at a time and in dictionaries: slow, and short enough to believe."""

from __future__ import annotations

from actorq.store.fold import CRASH
from actorq.store.records import parse_line
from actorq.tasks.ids import parse_range


class NaiveFold:
    """What `QueueState` must be equal to."""

    def __init__(self):
        self.tasks = {}
        self.consumers = {}
        self.publishers = {}
        self.scheduler = None
        self.scheduler_request = 0
        self.paused = set()

    def apply(self, batch):
        for line in batch.lines.splitlines(keepends=True):
            fields = parse_line(line)
            getattr(self, f"on_{next(iter(fields))}")(fields, batch.commit.at)

    def ids(self, text):
        session, first, last = parse_range(text)
        return [f"{session}-{number}" for number in range(first, last + 1)]

    def on_writer(self, fields, at):
        pass

    def on_sessions(self, fields, at):
        pass

    def on_hello(self, fields, at):
        session = fields["hello"]
        if fields["as"] == "publisher":
            self.publishers.setdefault(session, 0)
        else:
            names = None if fields["names"] is None else frozenset(fields["names"])
            consumer = {"names": names, "last_request": 0, "last_no": 0, "max_crashes": fields["max_crashes"]}
            self.consumers.setdefault(session, consumer)

    def on_barrier(self, fields, at):
        self.scheduler, self.scheduler_request = fields["barrier"], 0

    def on_publish(self, fields, at):
        session, _, last = parse_range(fields["publish"])
        if session in self.publishers:
            self.publishers[session] = last

    def on_id(self, fields, at):
        self.tasks[fields["id"]] = {
            "name": fields["name"],
            "data": fields["data"],
            "state": "ready",
            "holder": None,
            "failures": 0,
            "crashes": 0,
            "errors": [],
            "result": None,
            "published_at": at,
            "started_at": None,
            "finished_at": None,
        }

    def on_assign(self, fields, at):
        if fields["by"] == self.scheduler:
            self.scheduler_request = max(self.scheduler_request, fields["req"])
        consumer = self.consumers.get(fields["to"])
        if consumer is None or fields["no"] != consumer["last_no"] + 1:
            return
        consumer["last_no"] += 1
        wanted = self.ids(fields["assign"])
        if not all(each in self.tasks and self.tasks[each]["state"] == "ready" for each in wanted):
            return
        places = [list(self.tasks).index(each) for each in wanted]
        if places[-1] - places[0] != len(places) - 1:
            return
        for each in wanted:
            self.tasks[each].update(state="running", holder=(fields["to"], fields["no"]), started_at=at)

    def reported(self, fields, ids):
        consumer = self.consumers.get(fields["by"])
        if consumer is None:
            return []
        consumer["last_request"] = max(consumer["last_request"], fields["req"])
        tasks = [self.tasks.get(each) for each in self.ids(ids)]
        holder = fields["by"], fields["no"]
        return tasks if all(task and task["holder"] == holder for task in tasks) else []

    def on_done(self, fields, at):
        for task in self.reported(fields, fields["done"]):
            task.update(state="done", holder=None, finished_at=at, result=fields.get("result"))

    def on_failed(self, fields, at):
        for task in self.reported(fields, fields["failed"]):
            task.update(holder=None, failures=task["failures"] + 1)
            task["errors"].append((fields["error"]["type"], fields["error"]["message"], at))
            self.settle(task, fields["then"], at)

    def on_returned(self, fields, at):
        for task in self.reported(fields, fields["returned"]):
            task.update(state="ready", holder=None, started_at=None)

    def on_gone(self, fields, at):
        self.publishers.pop(fields["gone"], None)
        consumer = self.consumers.pop(fields["gone"], None)
        for task_id, task in self.tasks.items():
            if task["holder"] and task["holder"][0] == fields["gone"]:
                task["holder"] = None
                then = "ready"
                if task_id == fields.get("task"):
                    task["crashes"] += 1
                    task["errors"].append((CRASH, fields.get("cause", ""), at))
                    then = "dead" if task["crashes"] >= consumer["max_crashes"] else "ready"
                self.settle(task, then, at)

    def steered(self, fields, verb, states):
        if fields.get("by") == self.scheduler is not None:
            self.scheduler_request = max(self.scheduler_request, fields["req"])
        for ids in fields[verb]:
            for each in self.ids(ids):
                if each in self.tasks and self.tasks[each]["state"] in states:
                    yield self.tasks[each]

    def on_retry(self, fields, at):
        for task in self.steered(fields, "retry", ("dead",)):
            task.update(state="ready", failures=0, crashes=0, started_at=None, finished_at=None)

    def on_cancel(self, fields, at):
        for task in self.steered(fields, "cancel", ("ready", "scheduled")):
            task.update(state="cancelled", started_at=None, finished_at=at)

    def on_purge(self, fields, at):
        for task in self.steered(fields, "purge", ("done", "dead", "cancelled")):
            task.update(state="purged", was=task["state"])  # it keeps its place, like its line in the file

    def on_pause(self, fields, at):
        list(self.steered(fields | {"pause": []}, "pause", ()))
        self.paused.add(fields["pause"])

    def on_resume(self, fields, at):
        list(self.steered(fields | {"resume": []}, "resume", ()))
        self.paused.discard(fields["resume"])

    def settle(self, task, then, at):
        task["state"] = then
        if then == "dead":
            task["finished_at"] = at
        else:
            task["started_at"] = None

    def view(self):
        """Return what can be compared."""
        tasks = {}
        for task_id, task in self.tasks.items():
            if task["state"] == "purged":
                continue
            shown = {key: value for key, value in task.items() if key not in ("failures", "crashes")}
            is_begun = task["state"] in ("running", "done")
            shown["attempts"] = task["failures"] + task["crashes"] + is_begun
            tasks[task_id] = shown
        return {
            "tasks": tasks,
            "consumers": {
                session: (each["names"], each["last_request"], each["last_no"])
                for session, each in self.consumers.items()
            },
            "publishers": self.publishers,
            "scheduler": (self.scheduler, self.scheduler_request),
            "paused": self.paused,
        }


def view_of(state, read):
    """Return the same of a QueueState, having checked what it counts against what it holds."""
    holders: dict[str, tuple[str, int]] = {}
    for consumer in state.consumers.values():
        places = [
            (no, seq)
            for no, assignment in consumer.assignments.items()
            for lo, hi in assignment.held
            for seq in range(lo, hi)
        ]
        holders |= {state.id_of(seq): (consumer.session, no) for no, seq in places}
        assert consumer.outstanding == len(places)
        assert all(
            assignment.left == sum(hi - lo for lo, hi in assignment.held) > 0
            for assignment in consumer.assignments.values()
        )
    tasks = {}
    counted = dict.fromkeys(state.counts(), 0) | state.removed
    waiting: dict[str, int] = {}
    for seq in range(len(state)):
        if state.is_purged(seq):
            assert state.seq_of(state.id_of(seq)) is None
            continue
        task = state.task(seq, read)
        assert state.seq_of(task.id) == seq
        assert state.state_of(seq) == task.state
        assert state.name_of(seq) == task.name
        assert state.attempt_of(seq) == task.attempts + (task.state in ("ready", "dead", "cancelled"))
        counted[task.state] += 1
        if task.state == "ready":
            waiting[task.name] = waiting.get(task.name, 0) + 1
        tasks[task.id] = {
            "name": task.name,
            "data": task.data,
            "state": str(task.state),
            "holder": holders.get(task.id),
            "errors": [(each.type, each.message, text(each.at)) for each in task.errors],
            "result": task.result,
            "published_at": text(task.published_at),
            "started_at": text(task.started_at),
            "finished_at": text(task.finished_at),
            "attempts": task.attempts,
        }
    assert state.counts() == counted
    assert (state.ready_count, state.running_count) == (counted["ready"], counted["running"])
    assert state.waiting_names() == waiting
    held_back = [name for name in waiting if state.is_paused(name)]
    assert sorted(state.paused_names()) == sorted(held_back)
    assert state.open_count == counted["ready"] - sum(waiting[name] for name in held_back)
    return {
        "tasks": tasks,
        "consumers": {each.session: (each.names, each.last_request, each.last_no) for each in state.consumers.values()},
        "publishers": {each.session: each.last_request for each in state.publishers.values()},
        "scheduler": (state.scheduler, state.scheduler_request),
        "paused": state.paused,
    }


def text(at):
    return at and at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

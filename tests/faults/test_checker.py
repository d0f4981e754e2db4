"""The checker sees each thing that must never happen: one bad history for each, beside a good one that is let pass."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from zlib import crc32

import orjson
import pytest

from actorq import Queue
from actorq.store.compaction import compact
from actorq.store.format import Commit
from actorq.store.log_reader import Batch, LogReader
from tests.faults.checker import Observed, check, wrongs_of_document
from tests.faults.history import Attempt, Execution, Fault, History, Process, Recorder, read_history
from tests.faults.ledger import Ledger

PUBLISHER, ONE, TWO = Process(10, 1000), Process(11, 1001), Process(12, 1002)
P, A, B, S = "publisherrrr", "consumerrone", "consumerrtwo", "schedulerrrr"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp()


class Story:
    """Two tasks, two consumers: the same told to the history and to the log, until something goes wrong."""

    def __init__(self):
        self.history = History()
        self.ledger = Ledger()
        self.now = 0
        self.commit = 0
        self.log(
            {"hello": P, "as": "publisher", **self.of(PUBLISHER)},
            {"hello": A, "as": "consumer", **self.of(ONE), "names": None, "max_attempts": 3, "max_crashes": 3},
            {"hello": B, "as": "consumer", **self.of(TWO), "names": None, "max_attempts": 3, "max_crashes": 3},
            {"barrier": S},
        )

    def of(self, process):
        return {"pid": process.pid, "start": process.start, "boot": "b"}

    def tick(self):
        self.now += 1_000_000
        return self.now

    def log(self, *records, number=None):
        self.commit = self.commit + 1 if number is None else number
        at = datetime.fromtimestamp(NOON + self.tick() / 1e9, UTC).isoformat(timespec="milliseconds")
        lines = b"".join(b"," + orjson.dumps(record) + b"\n" for record in records)
        self.ledger.apply(Batch(0, lines, Commit(self.commit, len(lines), 1, 0, at, 0), 0, piece=False))

    def attempt(self, key):
        data = {"key": key}
        self.history.attempts[key] = Attempt(self.tick(), key, crc32(orjson.dumps(data)), "work")
        self.history.last_words[PUBLISHER] = self.now

    def write(self, key, number, data=None):
        task = f"{P}-{number}"
        self.log({"publish": task, "name": "work"}, {"id": task, "name": "work", "data": data or {"key": key}})

    def publish(self, key, number):
        self.attempt(key)
        self.write(key, number)
        self.history.acknowledged[key] = f"{P}-{number}"

    def assign(self, tasks, to, no, by=S):
        self.log({"assign": f"{P}-{tasks}", "to": to, "no": no, "by": by, "req": 1})

    def run(self, number, process, attempt=1, how="returned"):
        begun = self.tick()
        ended = self.tick() if how else 0
        self.history.executions.append(Execution(process, f"{P}-{number}", attempt, begun, ended, how))
        self.history.last_words[process] = self.now

    def report(self, kind, number, by, no, **more):
        self.log({kind: f"{P}-{number}", "no": no, "by": by, "req": 1, **more})

    def done(self, number, by, no):
        self.report("done", number, by, no)

    def failed(self, number, by, no, then="ready"):
        self.report("failed", number, by, no, then=then, error={})

    def kill(self, process, role="consumer", action="kill", point=""):
        boot = process.start / 100 + 1
        self.history.faults.append(Fault(self.tick(), boot, NOON + self.now / 1e9, role, process, action, point))

    def gone(self, session, task=None):
        self.log({"gone": session, "cause": "killed by signal 9"} | ({"task": f"{P}-{task}"} if task else {}))

    def found(self, **observed):
        report = check(self.history, self.ledger, Observed(**observed))
        return report, [violation.kind for violation in report.violations]


@pytest.fixture
def story():
    """The first task is done by the first consumer, the second is published."""
    story = Story()
    story.publish("a", 1)
    story.assign(1, A, 1)
    story.run(1, ONE)
    story.done(1, A, 1)
    story.publish("b", 2)
    return story


def finish(story, number=2, attempt=1, no=1):
    story.assign(number, B, no)
    story.run(number, TWO, attempt)
    story.done(number, B, no)


def test_a_good_history_is_let_pass(story):
    finish(story)
    report, kinds = story.found()

    assert kinds == []
    assert (report.attempted, report.acknowledged, report.done, report.duplicated, report.recovered) == (2, 2, 2, 0, 0)


def test_lost(story):
    finish(story)
    story.attempt("c")
    story.history.acknowledged["c"] = f"{P}-3"
    report, kinds = story.found()
    assert (report.lost, kinds) == (1, ["lost"])


def test_unexpected_because_never_attempted(story):
    story.write("stranger", 3)
    story.assign("2..3", B, 1)
    for number in (2, 3):
        story.run(number, TWO)
        story.done(number, B, 1)
    report, kinds = story.found()
    assert (report.unexpected, kinds) == (1, ["unexpected"])


def test_unexpected_because_it_was_refused(story):
    finish(story)
    del story.history.acknowledged["b"]
    story.history.rejected["b"] = "DiskFullError"
    report, kinds = story.found()
    assert (report.unexpected, kinds) == (1, ["unexpected"])


def test_unexpected_because_it_ran_and_is_not_in_the_queue(story):
    finish(story)
    story.run(7, TWO)
    assert story.found()[1] == ["unexpected"]


def test_recovered_is_allowed(story):
    finish(story)
    del story.history.acknowledged["b"]
    report, kinds = story.found()
    assert (report.unknown, report.recovered, kinds) == (1, 1, [])


def test_a_publish_that_ends_in_another_way(story):
    finish(story)
    del story.history.acknowledged["b"]
    story.history.escaped["b"] = "OSError(5)"
    assert story.found()[1] == ["publish"]


def test_published_twice(story):
    finish(story)
    story.write("b", 3)
    finish(story, 3, no=2)
    assert "twice" in story.found()[1]


def test_a_payload_that_changed():
    story = Story()
    story.attempt("a")
    story.write("a", 1, {"key": "a", "more": 1})
    story.history.acknowledged["a"] = f"{P}-1"
    finish(story, 1)
    assert story.found()[1] == ["payload"]


def test_a_rerun_after_a_handler_that_raised_is_no_duplicate(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="raised")
    story.failed(2, A, 2)
    finish(story, attempt=2)
    report, kinds = story.found()
    assert (report.retried, report.duplicated, report.unexplained, kinds) == (1, 0, 0, [])


def test_a_rerun_after_a_death_that_we_caused_is_explained(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(ONE)
    story.gone(A, 2)
    finish(story, attempt=2)
    report, kinds = story.found()
    assert (report.duplicated, report.unexplained, kinds) == (1, 0, [])


def test_a_rerun_after_the_end_of_the_supervisor_is_explained_and_charged_to_nobody(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(PUBLISHER, role="supervisor")
    story.gone(A)
    finish(story)
    assert story.found()[1] == []


@pytest.mark.parametrize(
    ("point", "kinds"), [("log.taking_back", []), ("log.syncing", []), ("supervisor.forking", ["duplicated"])]
)
def test_a_rerun_after_the_disk_failed_a_writer_is_explained_and_after_another_failed_call_is_not(story, point, kinds):
    """The writer ends its supervisor then, of which nobody but itself writes anything down."""
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(PUBLISHER, role="other", action="raise", point=point)
    story.gone(A)
    finish(story)
    assert story.found()[1] == kinds


def test_duplicated_after_a_death_that_nobody_caused(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.gone(A, 2)
    finish(story, attempt=2)
    report, kinds = story.found()
    assert (report.unexplained, kinds) == (1, ["duplicated"])


@pytest.mark.parametrize("action", ["stop", "continue", "delay"])
def test_duplicated_after_a_fault_that_ends_nobody(story, action):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(ONE, action=action)
    story.gone(A, 2)
    finish(story, attempt=2)
    assert story.found()[1] == ["duplicated"]


def test_duplicated_after_a_kill_of_the_supervisor_before_the_consumer_was_born(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(Process(PUBLISHER.pid, ONE.start - 200), role="supervisor")
    story.gone(A)
    finish(story)
    assert story.found()[1] == ["duplicated"]


def test_duplicated_although_its_handler_returned(story):
    story.assign(2, A, 2)
    story.run(2, ONE)
    story.failed(2, A, 2)
    finish(story, attempt=2)
    assert story.found()[1] == ["duplicated"]


def test_duplicated_although_it_was_given_back_as_not_begun(story):
    story.assign(2, A, 2)
    story.run(2, ONE)
    story.report("returned", 2, A, 2)
    finish(story)
    assert story.found()[1] == ["duplicated"]


def test_run_twice_as_one_attempt(story):
    finish(story)
    story.run(2, TWO)
    report, kinds = story.found()
    assert report.unexplained == 2
    assert set(kinds) == {"duplicated"}


def test_run_by_somebody_whom_it_was_not_handed_to(story):
    finish(story)
    story.run(2, ONE)
    assert "attempts" in story.found()[1]


def test_a_wrong_number_of_the_attempt(story):
    finish(story, attempt=2)
    assert "attempts" in story.found()[1]


def test_two_live_executions_of_which_the_first_ends_later(story):
    story.assign(2, A, 2)
    story.kill(ONE)
    story.gone(A, 2)
    story.assign(2, B, 1)
    execution = Execution(ONE, f"{P}-2", 1, story.now - 10, story.now + 9_000_000, "returned")
    story.history.executions.append(execution)
    story.run(2, TWO, 2)
    story.done(2, B, 1)
    assert story.found()[1] == ["overlap"]


def test_two_live_executions_of_which_the_first_process_writes_something_later(story):
    story.assign(2, A, 2)
    story.run(2, ONE, how="")
    story.kill(ONE)
    story.gone(A, 2)
    finish(story, attempt=2)
    story.history.last_words[ONE] = story.now + 1
    assert story.found()[1] == ["overlap"]


def test_started_in_another_order_than_handed_out(story):
    story.publish("c", 3)
    story.assign("2..3", B, 1)
    story.run(3, TWO)
    story.run(2, TWO)
    story.done("2..3", B, 1)
    assert story.found()[1] == ["order"]


def test_handed_out_in_another_order_than_published(story):
    story.publish("c", 3)
    finish(story, 3)
    finish(story, 2, no=2)
    report, kinds = story.found()
    assert kinds == ["log"]
    assert "out of order" in report.violations[0].text


def test_done_and_handed_out_again(story):
    finish(story)
    story.assign(2, A, 2)
    report, kinds = story.found()
    assert kinds == ["log"]
    assert "although it is done" in report.violations[0].text


def test_assigned_behind_a_barrier(story):
    story.log({"barrier": "schedulertwo"})
    story.assign(2, B, 1)
    assert "log" in story.found()[1]


def test_reported_and_never_published(story):
    finish(story)
    story.done(7, B, 2)
    assert story.found()[1] == ["log"]


def test_gone_twice(story):
    finish(story)
    story.gone(A)
    story.gone(A)
    assert story.found()[1] == ["log"]


def test_a_hole_in_the_commits(story):
    story.commit += 1
    finish(story)
    report, kinds = story.found()
    assert kinds == ["log"]
    assert "hole" in report.violations[0].text


def test_done_without_a_handler_that_returned(story):
    story.assign(2, B, 1)
    story.run(2, TWO, how="raised")
    story.done(2, B, 1)
    assert story.found()[1] == ["outcome"]


def test_dead_too_early(story):
    story.assign(2, B, 1)
    story.run(2, TWO, how="raised")
    story.failed(2, B, 1, then="dead")
    assert story.found()[1] == ["outcome"]


def test_dead_after_its_last_attempt_is_allowed(story):
    for no in (1, 2, 3):
        story.assign(2, B, no)
        story.run(2, TWO, attempt=no, how="raised")
        story.failed(2, B, no, then="ready" if no < 3 else "dead")
    report, kinds = story.found()
    assert (report.dead, kinds) == (1, [])


def test_a_task_that_never_ends(story):
    assert story.found()[1] == ["liveness"]


def test_a_queue_that_did_not_settle_in_time(story):
    finish(story)
    assert story.found(settled_seconds=None)[1] == ["liveness"]


def test_a_fold_that_says_something_else(story):
    finish(story)
    assert story.found(states={f"{P}-1": "done", f"{P}-2": "ready"})[1] == ["fold"]


def test_leftovers_and_a_verdict(story):
    finish(story)
    assert story.found(leftovers=("process 12 still runs",), verdict="damaged")[1] == ["document", "leak"]


def without_second_commit(data):
    first, second, _, rest = data.split(b',{"commit":')
    return b',{"commit":'.join([first, second, rest])


def compacted(path):
    compact(path, boot_id="b", pid=1)


@pytest.fixture
def document(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    for n in range(3):
        queue.publish(n)
    queue._close_port()
    return queue.path.read_bytes()


def test_a_good_document(document):
    assert wrongs_of_document(document) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda data: data[:-2], "not one JSON document"),
        (lambda data: data.replace(b'"data":1', b'"data":7'), "checksum of number 2"),
        (without_second_commit, "a hole"),
        (lambda data: data[:-2] + b',{"writer":1}\n]\n', "behind the last commit"),
    ],
)
def test_a_bad_document(document, change, found):
    (wrong,) = wrongs_of_document(change(document))
    assert found in wrong


def test_a_compacted_document(document, tmp_path):
    path = tmp_path / "Queue.json"
    compacted(path)
    Queue(path).publish(4)

    assert b'"piece":' in path.read_bytes()
    assert wrongs_of_document(path.read_bytes()) == []
    assert wrongs_of_document(path.read_bytes().replace(b'"data":1', b'"data":7')) != []


def test_a_ledger_reads_what_a_queue_writes_and_goes_on_behind_a_compaction(tmp_path):
    queue = Queue(tmp_path / "Queue.json")
    ids = [queue.publish({"key": str(n)}) for n in range(3)]
    ledger = Ledger()
    for _ in range(2):
        reader = LogReader(queue.path)
        for batch in reader.batches():
            ledger.apply(batch)
        reader.close()
        if len(ids) == 3:
            compacted(queue.path)
            ids.append(queue.publish({"key": "3"}))

    assert list(ledger.tasks) == ids
    assert [row.key for row in ledger.tasks.values()] == ["0", "1", "2", "3"]
    assert ledger.contradictions == []


def test_a_history_is_read_back_and_only_the_last_line_of_a_file_may_be_torn(tmp_path):
    recorder = Recorder(tmp_path)
    recorder.attempted("work", [{"key": "a"}, {"key": "b"}, {"key": "c"}])
    recorder.acknowledged(["a"], ["id-1"])
    recorder.rejected(["b"], ValueError())
    recorder.unknown(["c"], TimeoutError())
    recorder.escaped(["c"], OSError(5))
    recorder.began("id-1", 1)
    recorder.ended("id-1", "returned")
    recorder.began("id-1", 2)
    recorder.fault("consumer", ONE, "kill")
    os.write(recorder._fd, b'{"t":12,"began":"id-')
    recorder.close()
    history = read_history(tmp_path)

    assert set(history.attempts) == {"a", "b", "c"}
    assert history.attempts["a"].crc == crc32(b'{"key":"a"}')
    assert (history.acknowledged, history.rejected) == ({"a": "id-1"}, {"b": "ValueError"})
    assert (history.unknown, history.escaped) == ({"c": "TimeoutError"}, {"c": "OSError(5)"})
    assert [(each.task, each.attempt, each.how) for each in history.executions] == [
        ("id-1", 1, "returned"), ("id-1", 2, ""),
    ]  # fmt: skip
    assert [(each.process, each.action) for each in history.faults] == [(ONE, "kill")]
    assert history.torn == 1
    assert time.monotonic_ns() >= history.last_words[history.executions[0].process]

    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match="unexpected"):
        read_history(tmp_path)

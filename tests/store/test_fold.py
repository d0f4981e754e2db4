"""The fold: every record, every rule, and the whole against a slow one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorq.errors import FoldError
from actorq.store import records
from actorq.store.fold import CRASH, QueueState
from actorq.store.records import error_json
from actorq.tasks.lifecycle import TaskState
from actorq.tasks.steering import Verb
from tests.helpers import examples
from tests.store.log_on_paper import GAP, C, D, P, Paper, Q, S, hello, ids, moment
from tests.store.naive_fold import NaiveFold, view_of

ERROR = error_json("ValueError", "no such file", "Traceback ...")


class Scene:
    """A log and the state after it, with a publisher, a consumer and a scheduler."""

    def __init__(self, **limits):
        self.paper = Paper()
        self.state = QueueState()
        self.write(records.hello_line(hello(P)), records.hello_line(hello(C, **limits)), records.barrier_line(S))

    def write(self, *lines):
        self.state.apply(self.paper.write(*lines))

    def publish(self, first, last, name="work", session=P):
        self.write(publish(first, last, name, session))

    def assign(self, first, last, no, to=C):
        self.write(records.assign_line(ids(first, last), to, no, S, no))

    def states(self):
        return [str(self.state.state_of(seq)) for seq in range(len(self.state))]

    def task(self, number, session=P):
        seq = self.state.seq_of(f"{session}-{number}")
        assert seq is not None
        return self.state.task(seq, self.paper.read)

    @property
    def consumer(self):
        return self.state.consumers[C]


def publish(first, last, name="work", session=P):
    payloads = [b'{"n":%d}' % number for number in range(first, last + 1)]
    return records.publish_lines(ids(first, last, session), name, payloads)


@pytest.fixture
def scene():
    return Scene()


# ---------------------------------------------------------------------------------------------------------------
# One record after the other


def test_an_empty_log_is_an_empty_queue():
    state = QueueState()

    assert set(state.counts().values()) == {0}
    assert state.next_ready_run(None, limit=1) is None
    assert state.seq_of(f"{P}-1") is None
    assert state.last_request(P) is None


def test_published_tasks_are_ready_in_order(scene):
    scene.publish(1, 3)
    scene.publish(4, 4, name="mail")

    assert scene.states() == ["ready"] * 4
    assert scene.state.counts()["ready"] == scene.state.ready_count == 4
    assert scene.state.waiting_names() == {"work": 3, "mail": 1}
    assert [scene.state.id_of(seq) for seq in range(4)] == ids(1, 4).ids()
    assert scene.state.last_request(P) == 4
    assert scene.task(2).data == {"n": 2}
    assert scene.task(4).name == "mail"


def test_the_span_of_a_run_is_its_lines(scene):
    scene.publish(1, 5)

    offset, length = scene.state.span_of(1, 4)

    assert scene.paper.read(offset, length).splitlines(keepends=True) == publish(1, 5).splitlines(keepends=True)[2:5]


def test_position_and_commit_follow_the_batches(scene):
    scene.publish(1, 1)

    assert scene.state.position == len(scene.paper.bytes)
    assert scene.state.commit == scene.paper.commits == 2


def test_assigned_tasks_run_at_their_consumer(scene):
    scene.publish(1, 5)

    scene.assign(2, 4, no=1)

    assert scene.states() == ["ready", "running", "running", "running", "ready"]
    assert scene.consumer.outstanding == scene.state.running_count == 3
    assert scene.consumer.assignments[1].held == [(1, 4)]
    assert (scene.consumer.last_no, scene.state.scheduler_request) == (1, 1)
    assert scene.state.waiting_names() == {"work": 2}
    assert scene.task(2).attempt == 1


@pytest.mark.parametrize(
    ("line", "last_no"),
    [
        (records.assign_line(ids(1, 2), C, 3, S, 9), 1),  # a number too far
        (records.assign_line(ids(1, 2), C, 1, S, 9), 1),  # a number it has had
        (records.assign_line(ids(3, 4), C, 2, S, 9), 2),  # one of them runs already
        (records.assign_line(ids(4, 5), C, 2, S, 9), 2),  # one of them does not exist
        (records.assign_line(ids(1, 2), D, 1, S, 9), 1),  # nobody of that name
        (records.assign_line(ids(1, 2, session=Q), C, 2, S, 9), 2),
    ],
)
def test_a_void_assignment_moves_no_task_and_still_counts(scene, line, last_no):
    scene.publish(1, 4)
    scene.assign(3, 3, no=1)

    scene.write(line)

    assert scene.states() == ["ready", "ready", "running", "ready"]
    assert scene.consumer.last_no == last_no
    assert list(scene.consumer.assignments) == [1]
    assert scene.state.scheduler_request == 9


def test_tasks_that_are_not_side_by_side_are_not_assigned_together(scene):
    scene.publish(1, 2)
    scene.write(records.hello_line(hello(Q)), publish(1, 1, session=Q))
    scene.publish(3, 4)

    scene.assign(2, 3, no=1)

    assert scene.states() == ["ready"] * 5
    assert scene.consumer.last_no == 1


def test_done_tasks_are_done_for_good(scene):
    scene.publish(1, 5)
    scene.assign(1, 5, no=1)

    scene.write(records.done_line(ids(2, 3), 1, C, 1))
    scene.write(records.done_line(ids(2, 3), 1, C, 2))
    scene.write(records.failed_line(f"{P}-2", 1, C, 3, "dead", ERROR))

    assert scene.states() == ["running", "done", "done", "running", "running"]
    assert scene.consumer.assignments[1].held == [(0, 1), (3, 5)]
    assert scene.consumer.assignments[1].left == scene.consumer.outstanding == 3
    assert scene.consumer.last_request == scene.state.last_request(C) == 3
    assert scene.task(2).attempts == 1
    assert scene.task(2).result is None
    assert scene.task(2).finished_at.second == 4


def test_an_assignment_ends_with_its_last_task(scene):
    scene.publish(1, 2)
    scene.assign(1, 2, no=1)

    scene.write(records.done_line(ids(2), 1, C, 1), records.done_line(ids(1), 1, C, 2))

    assert scene.consumer.assignments == {}
    assert scene.consumer.last_no == 1


def test_results_are_kept(scene):
    scene.publish(1, 2)
    scene.assign(1, 2, no=1)

    results = [(f"{P}-1", b'{"x":[1,"\\",\\"result\\":2}"]}'), (f"{P}-2", b"null")]
    scene.write(records.done_result_lines(results, 1, C, 1))

    assert scene.task(1).result == {"x": [1, '","result":2}']}
    assert scene.task(2).result is None


def test_a_long_result_is_read_whole(scene):
    scene.publish(1, 1)
    scene.assign(1, 1, no=1)

    scene.write(records.done_result_lines([(f"{P}-1", b'"' + b"x" * 70_000 + b'"')], 1, C, 1))

    assert scene.task(1).result == "x" * 70_000


@pytest.mark.parametrize(("then", "runs"), [("ready", (0, 1)), ("dead", None)])
def test_a_failure_is_counted_and_told(scene, then, runs):
    scene.publish(1, 1)
    scene.assign(1, 1, no=1)

    scene.write(records.failed_line(f"{P}-1", 1, C, 1, then, ERROR))

    task = scene.task(1)
    assert (task.state, task.attempts) == (then, 1)
    assert [(each.type, each.message, each.traceback) for each in task.errors] == [
        ("ValueError", "no such file", "Traceback ...")
    ]
    assert task.errors[0].at.second == 4
    assert (task.finished_at is None) == (then == "ready")
    assert scene.state.next_ready_run(None, limit=9) == runs
    assert scene.consumer.outstanding == 0


def test_a_failure_of_several_tasks_at_once_is_no_record_of_ours(scene):
    scene.publish(1, 2)
    scene.assign(1, 2, no=1)

    with pytest.raises(FoldError, match="one by one"):
        scene.write(records.failed_line(f"{P}-1..2", 1, C, 1, "dead", ERROR))


def test_what_it_knows_can_be_read_off_it(scene):
    scene.publish(1, 3)
    scene.assign(1, 2, no=1)

    assert repr(scene.state).endswith(": 1 ready, 2 running; 1 consumers>")
    assert repr(scene.consumer.assignments[1]) == "<Assignment 0..1, 2 left>"


def test_the_bytes_of_what_is_unfinished_are_those_of_its_lines():
    state, paper = QueueState(weighs=True), Paper()
    lengths = [len(line) + 1 for line in publish(1, 3).splitlines()[1:]]
    for line in (
        records.hello_line(hello(P)) + records.hello_line(hello(C)) + records.barrier_line(S),
        publish(1, 3),
        records.assign_line(ids(1, 2), C, 1, S, 1),
    ):
        state.apply(paper.write(line))
    assert state.pending_bytes == sum(lengths)

    state.apply(paper.write(records.done_line(ids(1), 1, C, 1)))
    assert state.pending_bytes == sum(lengths[1:])
    state.apply(paper.write(records.failed_line(f"{P}-2", 1, C, 2, "ready", ERROR)))
    assert state.pending_bytes == sum(lengths[1:])


def test_the_next_attempt_after_a_failure_is_the_second(scene):
    scene.publish(1, 2)
    scene.assign(1, 2, no=1)
    assert scene.state.attempts_in(0, 2) is None

    scene.write(records.failed_line(f"{P}-1", 1, C, 1, "ready", ERROR))

    assert scene.state.attempts_in(0, 2) == [2, 1]
    assert scene.state.attempt_of(0) == 2


def test_returned_tasks_are_ready_in_their_place_and_uncharged(scene):
    scene.publish(1, 6)
    scene.assign(1, 4, no=1)
    assert scene.state.next_ready_run(None, limit=9) == (4, 6)

    scene.write(records.returned_line(ids(3, 4), 1, C, 1))

    assert scene.state.next_ready_run(None, limit=9) == (2, 6)
    assert scene.task(3).attempts == 0
    assert scene.task(3).started_at is None
    assert scene.consumer.assignments[1].held == [(0, 2)]


def test_an_outcome_of_a_superseded_assignment_is_ignored(scene):
    scene.write(records.hello_line(hello(D)))
    scene.publish(1, 4)
    scene.assign(1, 4, no=1)
    scene.write(records.returned_line(ids(2, 3), 1, C, 1))
    scene.assign(2, 3, no=1, to=D)

    scene.write(records.done_line(ids(1, 4), 1, C, 2), records.done_line(ids(2), 1, C, 3))

    assert scene.states() == ["running"] * 4
    assert scene.state.consumers[D].outstanding == 2
    assert scene.consumer.last_request == 3


@pytest.mark.parametrize("by", [D, S])
def test_an_outcome_from_nobody_is_ignored(scene, by):
    scene.publish(1, 1)
    scene.assign(1, 1, no=1)

    scene.write(records.done_line(ids(1), 1, by, 1))

    assert scene.states() == ["running"]


def test_tasks_of_a_dead_consumer_are_ready_in_their_place(scene):
    scene.publish(1, 6)
    scene.assign(1, 2, no=1)
    scene.assign(3, 4, no=2)
    scene.write(records.done_line(ids(1), 1, C, 1))

    scene.write(records.gone_line(C, "killed by SIGKILL", f"{P}-3"))

    assert scene.states() == ["done", "ready", "ready", "ready", "ready", "ready"]
    assert scene.state.consumers == {}
    assert scene.state.running_count == 0
    assert scene.state.next_ready_run(None, limit=9) == (1, 6)
    assert [scene.task(number).attempts for number in (2, 3, 4)] == [0, 1, 0]
    assert [(each.type, each.message) for each in scene.task(3).errors] == [(CRASH, "killed by SIGKILL")]


def test_a_task_that_kills_its_consumers_is_dead_in_the_end():
    scene = Scene(max_crashes=2)
    scene.publish(1, 1)

    for round_ in (1, 2):
        scene.assign(1, 1, no=1)
        scene.write(records.gone_line(C, f"crash {round_}", f"{P}-1"))
        scene.write(records.hello_line(hello(C, max_crashes=2)))

    task = scene.task(1)
    assert (task.state, task.attempts) == ("dead", 2)
    assert [each.message for each in task.errors] == ["crash 1", "crash 2"]
    assert task.finished_at == task.errors[-1].at
    assert scene.state.counts()["dead"] == 1


def test_only_a_task_in_hand_is_charged(scene):
    scene.publish(1, 2)
    scene.assign(1, 1, no=1)
    scene.write(records.done_line(ids(1), 1, C, 1))

    scene.write(records.gone_line(C, "killed", f"{P}-1"))

    assert scene.states() == ["done", "ready"]
    assert scene.task(1).errors == ()


def test_a_publisher_that_died_is_forgotten_and_its_tasks_are_not(scene):
    scene.publish(1, 2)

    scene.write(records.gone_line(P))

    assert scene.state.publishers == {}
    assert scene.state.last_request(P) is None
    assert scene.states() == ["ready", "ready"]
    assert scene.state.seq_of(f"{P}-2") == 1


def test_a_second_hello_changes_nothing(scene):
    scene.publish(1, 2)
    scene.assign(1, 2, no=1)

    scene.write(records.hello_line(hello(C)), records.hello_line(hello(P)))

    assert scene.consumer.outstanding == 2
    assert scene.state.last_request(P) == 2


def test_a_consumer_is_known_with_its_names_and_limits():
    scene = Scene(names=("mail", "work"), max_attempts=7, max_crashes=1)

    assert scene.consumer.names == {"mail", "work"}
    assert (scene.consumer.max_attempts, scene.consumer.max_crashes) == (7, 1)
    assert (scene.consumer.pid, scene.consumer.start, scene.consumer.boot) == (17, 4711, "boot")


def test_a_barrier_begins_the_requests_anew(scene):
    scene.publish(1, 1)
    scene.assign(1, 1, no=1)
    assert scene.state.last_request(S) == 1

    scene.write(records.barrier_line("scheduler333"))

    assert scene.state.scheduler == "scheduler333"
    assert scene.state.last_request("scheduler333") == 0
    assert scene.state.last_request(S) is None


def test_the_writers_own_records_say_nothing_about_tasks(scene):
    scene.publish(1, 1)
    before = view_of(scene.state, scene.paper.read)

    row = records.session_row(hello(D), 12)
    scene.write(records.sessions_line([row], S, 5), records.writer_line(3, "boot", 12))

    assert view_of(scene.state, scene.paper.read) == before


def test_times_are_those_of_the_commits(scene):
    scene.publish(1, 1)
    scene.assign(1, 1, no=1)
    scene.write(records.done_line(ids(1), 1, C, 1))

    task = scene.task(1)

    assert [at.second for at in (task.published_at, task.started_at, task.finished_at)] == [2, 3, 4]
    assert task.published_at.tzinfo is not None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b',{"unheard":1}\n', "unheard"),
        (b',{"id":"x","name":"work","data":1}\n', "id"),
        (b',{"publish":"publisher222-1..3","name":"work"}\n', "3 task lines"),
        (b',{"publish":"nonsense","name":"work"}\n', "nonsense"),
        (b',{"assign":"publisher222-1","to":"consumer2222"}\n', "by"),
        (b',{"hello":"publisher333","as":"king","pid":1,"start":1,"boot":"b"}\n', "king"),
        (b',{"done":"publisher222-1","no":1,"by":\n', ""),
        (b"]", "no end"),
        (b"\n\n", ""),
    ],
)
def test_a_record_that_cannot_be_followed_is_refused_by_its_offset(scene, line, reason):
    batch = scene.paper.write(records.barrier_line(S), line)

    with pytest.raises(FoldError) as error:
        scene.state.apply(batch)

    assert error.value.offset == batch.start + len(records.barrier_line(S))
    assert reason in str(error.value)


def test_a_task_is_published_once(scene):
    scene.publish(1, 3)

    with pytest.raises(FoldError, match="published before"):
        scene.publish(3, 3)


# ---------------------------------------------------------------------------------------------------------------
# Who may have what


def test_a_run_is_of_one_name_and_one_publish(scene):
    scene.publish(1, 2)
    scene.publish(3, 4)
    scene.publish(5, 6, name="mail")
    everything = scene.state.next_ready_run

    assert everything(None, limit=9) == (0, 2)
    assert everything(None, 1, limit=9) == (1, 2)
    assert everything(None, 2, limit=9) == (2, 4)
    assert everything(None, limit=1) == (0, 1)
    assert everything(frozenset({"mail"}), limit=9) == (4, 6)
    assert everything(frozenset({"mail", "work"}), limit=9) == (0, 2)
    assert everything(frozenset({"fax"}), limit=9) is None
    assert everything(frozenset(), limit=9) is None


def test_a_name_that_nobody_had_seen_is_found_once_it_comes(scene):
    names = frozenset({"fax", "mail"})
    scene.publish(1, 1, name="mail")
    assert scene.state.next_ready_run(names, limit=9) == (0, 1)
    scene.assign(1, 1, no=1)
    assert scene.state.next_ready_run(names, limit=9) is None

    scene.publish(2, 2, name="fax")

    assert scene.state.next_ready_run(names, limit=9) == (1, 2)


def test_many_names_share_a_lane_and_are_not_mixed_up(scene):
    for number in range(1, 400):
        scene.publish(number, number, name=f"name {number}")

    assert len(scene.state.waiting_names()) == 399
    for number in (1, 254, 255, 256, 399):
        assert scene.state.next_ready_run(frozenset({f"name {number}"}), limit=9) == (number - 1, number)
    scene.assign(300, 300, no=1)
    assert scene.state.next_ready_run(frozenset({"name 300"}), limit=9) is None
    assert scene.state.next_ready_run(frozenset({"name 301", "name 300"}), limit=9) == (300, 301)


def test_reserved_tasks_are_passed_over_until_the_log_answers(scene):
    scene.publish(1, 4)

    scene.state.reserve(0, 2)

    assert scene.state.next_ready_run(None, limit=9) == (2, 4)
    assert scene.state.ready_count == 4
    scene.assign(1, 1, no=7)  # void: a wrong number
    assert scene.state.next_ready_run(None, limit=9) == (0, 1)
    scene.assign(2, 2, no=1)
    assert scene.state.next_ready_run(None, 1, limit=9) == (2, 4)
    scene.write(records.returned_line(ids(2), 1, C, 1))
    assert scene.state.next_ready_run(None, limit=9) == (0, 4)


def test_what_an_idle_scheduler_asks_again_costs_nothing(scene):
    scene.publish(1, 5000)
    scene.assign(1, 5000, no=1)
    lanes = scene.state._ready
    assert scene.state.next_ready_run(None, limit=9) is None

    assert lanes._cursors[None] == 5000


# ---------------------------------------------------------------------------------------------------------------
# The whole, against the slow one

NAMES = ("work", "mail", "fax")
STEP = st.tuples(st.integers(0, 13), st.integers(0, 7), st.integers(0, 7), st.integers(0, 7))


class Story:
    """Makes steps of small numbers into batches that a queue might see, good ones mostly."""

    def __init__(self, paper):
        self.paper = paper
        self.next_number = {P: 1, Q: 1}
        self.next_task = {P: 1, Q: 1}
        self.group_end: dict[tuple[str, int], int] = {}
        self.next_no = {C: 1, D: 1}
        self.requests = 0
        self.assigned = []

    def begin(self):
        lines = [records.hello_line(hello(session)) for session in (P, Q, C)]
        lines.append(records.hello_line(hello(D, names=("mail",), max_crashes=1)))
        return self.paper.write(*lines, records.barrier_line(S))

    def step(self, kind, a, b, c):
        self.requests += 1
        session, consumer = (P, Q)[a % 2], (C, D)[c % 2]
        match kind:
            case 0 | 1:
                return self.publish(session, b + 1, NAMES[a % 3], gap=c == 7)
            case 2 | 3 | 4 | 5:
                return self.assign(session, consumer, behind=max(0, b - 4), count=a + 1, wrong=c == 7)
            case 6 if b < 2:
                return self.lose(consumer, limit=1 + a % 2)
            case 6 if b == 2:
                return records.gone_line(session) + records.hello_line(hello(session))
            case 12 | 13:
                return self.steer(a, session, first=b + 1, count=c)
            case _:
                return self.report(kind, which=a // 2, begin=b // 2, count=1 + c // 2, then=("ready", "dead")[a % 2])

    def publish(self, session, count, name, gap):
        first = self.next_number[session] + gap
        self.next_number[session] = first + count
        self.group_end.update({(session, number): first + count for number in range(first, first + count)})
        return publish(first, first + count - 1, name, session)

    def assign(self, session, consumer, behind, count, wrong):
        """Mostly the next ones of one publish; some that were handed out already, some that never were published."""
        first = max(1, self.next_task[session] - behind)
        end = min(first + count, self.group_end.get((session, first), first + 1))
        self.next_task[session] = min(end, self.next_number[session])
        span = ids(first, end - 1, session)
        no = self.next_no[consumer] + wrong
        self.next_no[consumer] = no + (not wrong)
        self.assigned.append((span, no, consumer))
        return records.assign_line(span, consumer, no, S, self.requests)

    def steer(self, which, session, first, count):
        """Of the tasks that there were so far, some; with some that never were, and some twice."""
        verb = list(Verb)[which % len(Verb)]
        numbers: dict[str, Any] = {"scheduler": S, "request": self.requests} if count % 2 else {}
        if verb in (Verb.PAUSE, Verb.RESUME):
            return records.steered_line(verb, (), (None, *NAMES)[first % 4], **numbers)
        first = max(1, self.next_number[session] - 3 * first)
        ranges = [ids(first, first + count, session), ids(first + count // 2, session=session)]
        return records.steered_line(verb, ranges, None, **numbers)

    def lose(self, consumer, limit):
        self.next_no[consumer] = 1
        victim = self.assigned[-1][0] if self.assigned else ids(1)
        gone = records.gone_line(consumer, "killed", f"{victim.session}-{victim.last}")
        return gone + records.hello_line(hello(consumer, max_crashes=limit))

    def report(self, kind, which, begin, count, then):
        if not self.assigned:
            return records.barrier_line(S)
        span, no, consumer = self.assigned[-1 - which % len(self.assigned)]
        first = min(span.first + begin, span.last)
        part = ids(first, min(first + count - 1, span.last), span.session)
        task_id = f"{span.session}-{first}"
        if kind <= 8:
            return records.done_line(part, no, consumer, self.requests)
        if kind == 9:
            return records.done_result_lines([(task_id, b'{"r":%d}' % count)], no, consumer, self.requests)
        if kind == 10:
            return records.failed_line(task_id, no, consumer, self.requests, then, error_json("E", str(count)))
        return records.returned_line(part, no, consumer, self.requests)


@given(st.lists(STEP, min_size=20, max_size=80))
@settings(deadline=None, max_examples=examples(60))
def test_the_fold_equals_the_naive_one(steps):
    paper, state, naive = Paper(), QueueState(), NaiveFold()
    story = Story(paper)
    for batch in (story.begin(), *(paper.write(story.step(*step)) for step in steps)):
        state.apply(batch)
        naive.apply(batch)

    assert view_of(state, paper.read) == naive.view()
    assert list(naive.tasks) == [state.id_of(seq) for seq in range(len(state))]


@given(st.lists(STEP, max_size=40), st.integers(1, 5))
@settings(deadline=None, max_examples=examples(40))
def test_one_batch_says_the_same_as_many(steps, size):
    one, many = Paper(), Paper()
    story = Story(Paper())
    lines = [story.begin().lines, *(story.step(*step) for step in steps)]
    states = QueueState(), QueueState()
    for at in range(0, len(lines), size):
        states[0].apply(one.write(*lines[at : at + size], at=moment(1)))
    for line in lines:
        states[1].apply(many.write(line, at=moment(1)))

    assert view_of(states[0], one.read) == view_of(states[1], many.read)


@given(st.lists(STEP, min_size=20, max_size=80), st.sets(st.sampled_from(NAMES)), st.integers(1, 5))
@settings(deadline=None, max_examples=examples(50))
def test_the_next_run_is_the_first_that_is_ready(steps, names, limit):
    paper, state = Paper(), QueueState()
    story = Story(paper)
    state.apply(story.begin())
    asked = frozenset(names)
    for step in steps:
        state.apply(paper.write(story.step(*step)))
        ready = [
            seq
            for seq in state.places_in(TaskState.READY)
            if state.name_of(seq) in names and not state.is_paused(state.name_of(seq))
        ]

        run = state.next_ready_run(asked, limit=limit)

        if run is None:
            assert not ready
            continue
        lo, hi = run
        assert lo == ready[0]
        assert 0 < hi - lo <= limit
        assert set(range(lo, hi)) <= set(ready)
        offset, length = state.span_of(lo, hi)
        assert GAP not in paper.read(offset, length)
        assert state.range_of(lo, hi).count == hi - lo
        assert len({state.name_of(seq) for seq in range(lo, hi)}) == 1

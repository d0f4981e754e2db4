"""Who gets what: the decisions of the scheduler, on a log in memory."""

from __future__ import annotations

import orjson
import pytest

from actorq.actors.packets import INLINE_BYTES
from actorq.brokers.consumer_broker import MAX_ASSIGNMENT_BYTES, RECALL_SECONDS, RETURN_SECONDS, Scheduler
from actorq.brokers.messages import Assign, Deliver, EventOwner, Push, encode
from actorq.store import records
from actorq.store.fold import QueueState
from actorq.store.format import Commit
from actorq.store.log_reader import Batch
from actorq.tasks.ids import IdRange

P = "p" * 12
S = "s" * 12


def consumer(letter):
    return letter * 12


class Scene:
    """A log that grows, a fold over it, and the scheduler under test; time stands still unless told."""

    def __init__(self):
        self.bytes = b""
        self.state = QueueState()
        self.scheduler = Scheduler(S, self.state)
        self.commits = 0
        self.write(records.barrier_line(S))

    def write(self, *lines):
        self.commits += 1
        text = b"".join(lines)
        start = len(self.bytes)
        self.bytes += text
        commit = Commit(self.commits, len(text), 1, 0, "2026-11-23T18:00:00.000Z", 0)
        self.state.apply(Batch(start, text, commit, len(self.bytes), piece=False))
        self.scheduler.catch_up(now=0.0)

    def publish(self, first, last, name="work", size=10):
        payloads = [b'"' + b"x" * size + b'"'] * (last - first + 1)
        self.write(records.publish_lines(IdRange(P, first, last), name, payloads))

    def join(self, letter, names=None):
        hello = records.Hello(consumer(letter), "consumer", 1, 1, "boot", names, 3, 3)
        self.write(records.hello_line(hello))

    def choose(self, now=0.0):
        """Let the scheduler choose; return consumer, number and range of each choice."""
        return [
            (choice.seat.session[0], choice.no, str(self.state.range_of(choice.lo, choice.hi)).removeprefix(f"{P}-"))
            for choice in self.scheduler.choose(now)
        ]

    def assign(self, chosen):
        """Write what was chosen, as the writer would."""
        for letter, no, span in chosen:
            self.write(records.assign_line(IdRange.parse(f"{P}-{span}"), consumer(letter), no, S, no))

    def done(self, letter, no, span, request=1):
        self.write(records.done_line(IdRange.parse(f"{P}-{span}"), no, consumer(letter), request))

    def gone(self, letter, task=None):
        self.write(records.gone_line(consumer(letter), "died", task))

    def set_credit(self, letter, tasks):
        self.scheduler._seats[consumer(letter)].credit.tasks = tasks


@pytest.fixture
def scene():
    return Scene()


def test_a_new_consumer_gets_one_task_until_it_has_shown_how_fast_it_is(scene):
    scene.publish(1, 10)
    scene.join("a")

    assert scene.choose() == [("a", 1, "1")]
    assert scene.choose() == []


def test_a_consumer_whose_credit_shrank_while_it_waited_gets_nothing(scene):
    scene.join("a")
    scene.set_credit("a", 10)
    scene.publish(1, 2)
    scene.assign(scene.choose())
    scene.publish(3, 5)
    scene.set_credit("a", 1)

    assert scene.choose() == []


def test_nothing_is_put_behind_a_task_that_already_runs_long_until_it_has_ended(scene):
    scene.join("a")
    scene.publish(1, 1)
    scene.assign(scene.choose())
    scene.set_credit("a", 10)
    scene.publish(2, 3)

    assert scene.choose(now=RECALL_SECONDS) == []

    scene.join("b")
    assert scene.choose(now=RECALL_SECONDS) == [("b", 1, "2")]
    scene.done("a", 1, "1")
    assert scene.choose(now=RECALL_SECONDS) == [("a", 2, "3")]


def test_tasks_go_out_in_publish_order_and_each_once(scene):
    scene.publish(1, 10)
    scene.join("a")
    scene.join("b")
    first = scene.choose()

    scene.assign(first)
    scene.done("a", 1, "1")
    scene.done("b", 1, "2")

    assert first == [("a", 1, "1"), ("b", 1, "2")]
    assert scene.choose() == [("a", 2, "3"), ("b", 2, "4")]


def test_a_fast_consumer_gets_many_at_once(scene):
    scene.publish(1, 100)
    scene.join("a")
    scene.set_credit("a", 50)
    scene.scheduler.catch_up(0.0)

    assert scene.choose() == [("a", 1, "1..50")]


def test_few_tasks_are_shared_evenly(scene):
    scene.join("a")
    scene.join("b")
    for letter in "ab":
        scene.set_credit(letter, 50)
    scene.publish(1, 10)

    assert scene.choose() == [("a", 1, "1..5"), ("b", 1, "6..10")]


def test_an_assignment_lies_within_one_publish(scene):
    scene.join("a")
    scene.set_credit("a", 50)
    scene.publish(1, 3)
    scene.publish(4, 6)

    assert scene.choose() == [("a", 1, "1..3"), ("a", 2, "4..6")]


def test_an_assignment_holds_a_bounded_number_of_bytes(scene):
    scene.join("a")
    scene.set_credit("a", 50)
    scene.publish(1, 10, size=20_000)

    chosen = scene.choose()

    assert chosen[0] == ("a", 1, "1..3")
    assert len(chosen) == 4


def test_the_largest_assignment_of_several_tasks_travels_as_one_packet_on_each_of_its_hops():
    lines = b"x" * MAX_ASSIGNMENT_BYTES
    tasks = str(IdRange("a" * 12, 10**14, 10**15 - 1))
    assign = Assign("a" * 12, 10**15, 10**12, [[tasks, "b" * 12, 10**15, 255, 255, len(lines)]], lines)
    push = encode(EventOwner.PUBLISHER_BROKER, Push([[tasks, 10**15, 255, 255, len(lines)]], lines))
    deliver = Deliver([["b" * 12, len(push)]], push)

    for message in (assign, deliver):
        assert len(encode(EventOwner.CONSUMER_BROKER, message)) < INLINE_BYTES


def test_a_task_larger_than_the_bound_goes_alone(scene):
    scene.join("a")
    scene.set_credit("a", 50)
    scene.publish(1, 2, size=100_000)

    assert scene.choose() == [("a", 1, "1"), ("a", 2, "2")]


def test_each_name_goes_only_to_consumers_that_handle_it(scene):
    scene.join("a", names=("mail",))
    scene.join("b", names=("work",))
    scene.publish(1, 1, name="work")
    scene.publish(2, 2, name="mail")

    assert sorted(scene.choose()) == [("a", 1, "2"), ("b", 1, "1")]


def test_a_name_that_nobody_handles_blocks_nobody_behind_it(scene):
    scene.join("a", names=("work",))
    scene.publish(1, 5, name="orphan")
    scene.publish(6, 6, name="work")

    assert scene.choose() == [("a", 1, "6")]


def test_names_are_stuck_only_when_nothing_else_is_left(scene):
    scene.join("a", names=("work",))
    scene.publish(1, 1, name="orphan")
    scene.publish(2, 2, name="work")
    assert scene.scheduler.stuck_names(0.0) == []

    scene.assign(scene.choose())
    assert scene.scheduler.stuck_names(0.0) == []

    scene.done("a", 1, "2")
    assert scene.scheduler.stuck_names(0.0) == ["orphan"]


def test_no_name_is_stuck_while_whoever_takes_it_may_be_about_to_come_back(scene):
    scene.join("a", ["mail"])
    scene.join("b", ["work"])
    scene.publish(1, 1)
    scene.gone("b")
    assert scene.scheduler.stuck_names(0.0) == []

    assert scene.scheduler.stuck_names(RETURN_SECONDS) == ["work"]


def test_no_name_is_stuck_while_consumers_are_still_on_their_way(scene):
    scene.publish(1, 1)

    assert scene.scheduler.stuck_names(0.0) == []


def test_tasks_of_a_dead_consumer_come_first_again_in_their_place(scene):
    scene.join("a")
    scene.publish(1, 5)
    scene.assign(scene.choose())
    scene.join("b")
    scene.assign(scene.choose())

    scene.gone("a", f"{P}-1")
    scene.done("b", 1, "2")

    assert scene.choose() == [("b", 2, "1")]


def test_tasks_asked_for_in_the_name_of_a_consumer_that_died_meanwhile_go_to_another(scene):
    scene.join("a")
    scene.publish(1, 1)
    chosen = scene.choose()

    scene.gone("a")
    scene.assign(chosen)
    scene.join("b")

    assert scene.choose() == [("b", 1, "1")]


def test_a_task_that_was_tried_before_goes_alone_with_its_counts(scene):
    scene.join("a")
    scene.set_credit("a", 10)
    scene.publish(1, 3)
    scene.assign(scene.choose())
    scene.gone("a", f"{P}-2")
    scene.join("b")
    scene.set_credit("b", 10)
    scene.scheduler.catch_up(0.0)

    choices = scene.scheduler.choose(now=0.0)

    entries = [scene.scheduler.entry_of(choice) for choice in choices]
    assert [(entry[0].removeprefix(f"{P}-"), entry[3], entry[4]) for entry in entries] == [
        ("1", 0, 0), ("2", 0, 1), ("3", 0, 0),
    ]  # fmt: skip


def test_everything_unfinished_can_be_pushed_again_under_the_same_numbers(scene):
    scene.join("a")
    scene.set_credit("a", 4)
    scene.publish(1, 4)
    scene.assign(scene.choose())
    scene.done("a", 1, "1..2")

    pushes = scene.scheduler.unfinished_pushes(
        consumer("a"), lambda offset, length: scene.bytes[offset : offset + length]
    )

    assert [push.entries[0][:2] for push in pushes] == [[f"{P}-1..4", 1]]
    assert pushes[0].body.count(b"\n") == 4


def test_nothing_is_pushed_to_whom_the_log_does_not_know(scene):
    assert scene.scheduler.unfinished_pushes(consumer("z"), lambda offset, length: b"") == []


def test_it_is_ready_only_behind_its_own_barrier():
    scheduler = Scheduler("t" * 12, QueueState())

    assert not scheduler.is_ready
    assert Scene().scheduler.is_ready


def test_idle_means_nothing_ready_and_nothing_running(scene):
    assert scene.scheduler.is_idle
    scene.join("a")
    scene.publish(1, 1)
    assert not scene.scheduler.is_idle
    scene.assign(scene.choose())
    assert not scene.scheduler.is_idle
    scene.done("a", 1, "1")
    assert scene.scheduler.is_idle


def let_one_hold_all(scene, number):
    """Publish so many tasks while `a` is alone; then comes `b`."""
    scene.join("a")
    scene.set_credit("a", number)
    scene.publish(1, number)
    scene.assign(scene.choose())
    scene.join("b")


def test_a_consumer_that_sits_on_tasks_while_another_idles_gives_them_back(scene):
    let_one_hold_all(scene, 5)
    scene.choose()

    assert scene.scheduler.recall(now=RECALL_SECONDS / 2) == []
    assert scene.scheduler.recall(now=RECALL_SECONDS) == [consumer("a")]
    assert scene.scheduler.recall(now=RECALL_SECONDS) == []  # once, then it gets its time again

    scene.write(records.returned_line(IdRange(P, 2, 5), 1, consumer("a"), 1))
    assert scene.choose() == [("b", 1, "2")]


def test_what_was_given_back_does_not_count_as_speed(scene):
    let_one_hold_all(scene, 5)
    scene.scheduler.recall(now=RECALL_SECONDS)

    scene.write(records.returned_line(IdRange(P, 2, 5), 1, consumer("a"), 1))

    assert scene.scheduler._seats[consumer("a")].credit.tasks == 1


def test_a_consumer_that_holds_more_than_it_would_get_now_gives_back_though_it_finishes_some(scene):
    let_one_hold_all(scene, 10)
    scene.done("a", 1, "1")
    scene.choose()
    assert scene.scheduler.recall(now=RECALL_SECONDS / 2) == []

    scene.set_credit("a", 1)  # each of them takes 30 ms

    assert scene.scheduler.recall(now=RECALL_SECONDS / 2) == [consumer("a")]
    assert scene.scheduler.recall(now=RECALL_SECONDS / 2) == []


def test_nothing_is_recalled_while_there_is_something_for_who_idles(scene):
    let_one_hold_all(scene, 10)
    scene.publish(11, 11)

    assert scene.scheduler.recall(now=100.0) == []


def test_nothing_is_recalled_while_everybody_has_work(scene):
    scene.join("a")
    scene.join("b")
    for letter in "ab":
        scene.set_credit(letter, 3)
    scene.publish(1, 6)
    scene.assign(scene.choose())

    assert scene.scheduler.recall(now=100.0) == []


def test_nothing_is_recalled_for_a_consumer_of_other_names(scene):
    scene.join("a", names=("work",))
    scene.join("b", names=("mail",))
    scene.set_credit("a", 3)
    scene.publish(1, 3)
    scene.assign(scene.choose())

    assert scene.scheduler.recall(now=100.0) == []


def lendable(scene):
    return [(seat.session[0], seat.next_no) for seat in scene.scheduler.lendable()]


def test_idle_consumers_for_whom_nothing_is_ready_may_be_lent(scene):
    assert lendable(scene) == []
    scene.join("a", ("work",))
    scene.join("b")
    assert lendable(scene) == [("a", 1), ("b", 1)]

    scene.publish(1, 1, name="other")

    assert lendable(scene) == [("a", 1)]  # b will be given that task


def test_nobody_is_lent_while_an_assignment_is_on_its_way_nor_who_has_one(scene):
    scene.join("a")
    scene.join("b")
    scene.publish(1, 1)

    chosen = scene.choose()
    assert lendable(scene) == []
    scene.assign(chosen)
    assert lendable(scene) == [("b", 1)]

    scene.done("a", 1, "1")
    assert lendable(scene) == [("b", 1), ("a", 2)]


def test_what_the_writer_has_handed_out_counts_as_work_in_hand(scene):
    scene.join("a")
    scene.join("b")

    task = IdRange(P, 1, 1)
    lines = records.publish_lines(task, "work", [b"1"])
    scene.write(lines, records.assign_line(task, consumer("a"), 1, S, 0))

    assert lendable(scene) == [("b", 1)]
    scene.publish(2, 3)
    assert scene.choose() == [("b", 1, "2")]  # the other one has as much as it may hold
    assert scene.scheduler.recall(now=RECALL_SECONDS) == []


def test_it_is_sated_while_nobody_could_take_one_more_task(scene):
    assert scene.scheduler.is_sated(0.0)  # there is nobody
    scene.join("a", ("work",))
    assert not scene.scheduler.is_sated(0.0)

    scene.publish(1, 1)
    scene.assign(scene.choose())
    assert scene.scheduler.is_sated(0.0)

    scene.join("b", ("other",))
    assert not scene.scheduler.is_sated(0.0)  # what comes next may be for him


def test_it_is_sated_too_while_what_runs_takes_so_long_that_nothing_is_put_behind_it(scene):
    scene.join("a")
    scene.scheduler._seats[consumer("a")].credit.tasks = 10
    scene.publish(1, 1)
    scene.assign(scene.choose())

    assert not scene.scheduler.is_sated(RECALL_SECONDS / 2)
    assert scene.scheduler.is_sated(RECALL_SECONDS)
    scene.done("a", 1, "1")
    assert not scene.scheduler.is_sated(RECALL_SECONDS)


def test_what_is_pushed_again_is_tasks_and_nothing_else_though_a_compaction_has_cut_their_group_in_two(scene):
    scene.publish(1, 2)
    scene.publish(3, 3)  # a file that was compacted has a record like this, and the end of a piece, in the middle
    scene.join("a")
    scene.assign([("a", 1, "1..3")])

    (push,) = scene.scheduler.unfinished_pushes(
        consumer("a"), lambda offset, length: bytes(scene.bytes[offset : offset + length])
    )

    ((tasks, no, _, _, length),) = push.entries
    assert (tasks, no, length) == (f"{P}-1..3", 1, len(push.body))
    assert [orjson.loads(line[1:])["id"] for line in push.body.splitlines()] == [
        f"{P}-{number}" for number in (1, 2, 3)
    ]

"""What the scheduler makes of wishes, and the writer of what it has decided: on a log in memory."""

from __future__ import annotations

import pytest

from actorq.brokers.consumer_broker import RECALL_SECONDS
from actorq.brokers.messages import Barrier, Change, Gap, Lend, MalformedEventError, Steer, Steered
from actorq.brokers.publisher_broker import RESERVE_BYTES, Writing
from actorq.brokers.wishes import MOST_ANSWERS, Wishes
from actorq.store import records
from actorq.store.fold import QueueState
from actorq.store.log_reader import Position
from actorq.store.records import error_json
from actorq.store.sessions import SessionTable
from actorq.tasks.ids import IdRange
from actorq.tasks.steering import Verb
from tests.brokers.test_scheduler import P, S, Scene, consumer, lendable
from tests.brokers.test_writing import C, give, hello, publish, records_of

CLIENT, OTHER = "client222222", "client333333"


@pytest.fixture
def scene():
    scene = Scene()
    scene.scheduler.requests.number = 0  # the barrier
    scene.join("a")
    return scene


def ask(scene, verb, *numbers, session=CLIENT, ticket=1, name="", died_by="9999"):
    return scene.scheduler.wishes.ask(
        Steer(session, ticket, verb, [f"{P}-{number}" for number in numbers], name, died_by)
    )


def decide(scene):
    """Let the scheduler decide; return verb and tasks of each, and the lines that the writer would write."""
    decided, lines = [], []
    for wish, tasks in scene.scheduler.decide():
        request = scene.scheduler.requests.add(b"")
        decided.append((wish.verb, [str(ids).removeprefix(f"{P}-") for ids in tasks]))
        lines.append(records.steered_line(wish.verb, tasks, wish.name, scheduler=S, request=request.last))
    return decided, lines


def answers(scene, acknowledged):
    return [
        (session, answer.ticket, [ids.removeprefix(f"{P}-") for ids in answer.tasks])
        for session, answer in scene.scheduler.wishes.answer(scene.state, acknowledged)
    ]


def test_a_wish_is_decided_by_what_the_log_says_and_answered_once_it_is_on_disk(scene):
    scene.publish(1, 3)
    ask(scene, "cancel", 1, 2, 3)

    decided, lines = decide(scene)
    assert decided == [("cancel", ["1..3"])]
    scene.write(*lines)
    assert answers(scene, acknowledged=0) == []
    assert answers(scene, acknowledged=1) == [(CLIENT, 1, ["1..3"])]
    assert answers(scene, acknowledged=1) == []


def test_nothing_is_decided_while_an_assignment_is_on_its_way_nor_assigned_until_what_was_decided_is_in_the_log(scene):
    scene.publish(1, 2)
    chosen = scene.choose()
    scene.scheduler.requests.add(b"")
    assert chosen == [("a", 1, "1")]
    scene.join("b")
    ask(scene, "cancel", 1, 2)

    assert decide(scene) == ([], [])
    assert scene.choose() == []
    scene.assign(chosen)
    decided, lines = decide(scene)
    assert decided == [("cancel", ["2"])]
    assert scene.choose() == []
    assert lendable(scene) == []
    scene.write(*lines)

    assert answers(scene, acknowledged=2) == [(CLIENT, 1, ["2"])]
    assert lendable(scene) == [("b", 1)]
    assert scene.choose() == []


def test_a_task_whose_assignment_was_void_is_cancelled(scene):
    scene.publish(1, 1)
    chosen = scene.choose()
    ask(scene, "cancel", 1)
    scene.gone("a")
    scene.assign(chosen)

    decided, _ = decide(scene)

    assert decided == [("cancel", ["1"])]


def test_a_question_that_comes_twice_is_decided_once_and_answered_again(scene):
    scene.publish(1, 1)
    for _ in range(2):
        assert ask(scene, "cancel", 1) is None
    _, lines = decide(scene)
    assert ask(scene, "cancel", 1) is None
    assert decide(scene) == ([], [])
    scene.write(*lines)
    answers(scene, acknowledged=1)

    assert ask(scene, "cancel", 1) == Steered(1, [f"{P}-1"])
    assert ask(scene, "cancel", 1, ticket=0) is None
    assert decide(scene) == ([], [])


def test_a_successor_that_is_asked_again_has_its_word_brought_to_disk_too(scene):
    scene.publish(1, 2)
    scene.write(records.steered_line(Verb.CANCEL, [IdRange(P, 1, 1)], None, scheduler="t" * 12, request=1))
    ask(scene, "cancel", 1)

    decided, lines = decide(scene)

    assert decided == [("cancel", [])]
    assert lines == [b',{"cancel":[],"by":"%b","req":1}\n' % S.encode()]
    scene.write(*lines)
    assert answers(scene, acknowledged=1) == [(CLIENT, 1, ["1"])]


def test_wishes_of_several_clients_are_decided_in_order_and_each_is_told_what_came_of_his(scene):
    scene.publish(1, 1)
    scene.assign(scene.choose())
    scene.write(records.failed_line(f"{P}-1", 1, consumer("a"), 1, "dead", error_json("E", "no")))
    scene.scheduler.requests.add(b"")  # that of the assignment
    ask(scene, "retry", 1)
    ask(scene, "purge", 1, session=OTHER)

    decided, lines = decide(scene)
    scene.write(*lines)

    assert decided == [("retry", ["1"]), ("purge", ["1"])]
    assert answers(scene, acknowledged=3) == [(CLIENT, 1, ["1"]), (OTHER, 1, [])]
    assert scene.choose() == [("a", 2, "1")]


def test_a_pause_keeps_back_its_tasks_from_its_record_on_and_nobody_is_lent_meanwhile(scene):
    assert lendable(scene) == [("a", 1)]
    ask(scene, "pause", name="mail")
    _, lines = decide(scene)
    scene.write(*lines)
    scene.publish(1, 1, name="mail")
    scene.publish(2, 2)

    assert scene.choose() == [("a", 1, "2")]
    scene.assign([("a", 1, "2")])
    scene.done("a", 1, "2")
    assert lendable(scene) == []
    assert scene.scheduler.keeping_back(0.0) == ["mail"]
    assert scene.scheduler.stuck_names(0.0) == []

    ask(scene, "resume", name="mail", ticket=2)
    _, lines = decide(scene)
    scene.write(*lines)
    assert scene.scheduler.keeping_back(0.0) == []
    assert scene.choose() == [("a", 2, "1")]


def test_few_tasks_beside_many_that_are_paused_are_shared_evenly(scene):
    scene.join("b")
    for letter in "ab":
        scene.set_credit(letter, 50)
    scene.publish(1, 1000, name="mail")
    scene.publish(1001, 1010)
    scene.write(records.steered_line(Verb.PAUSE, (), "mail"))

    assert scene.choose() == [("a", 1, "1001..1005"), ("b", 1, "1006..1010")]


def test_what_waits_behind_a_task_that_takes_long_is_recalled_when_it_is_paused(scene):
    scene.set_credit("a", 10)
    scene.publish(1, 5)
    scene.assign(scene.choose())
    assert scene.scheduler.recall(now=RECALL_SECONDS) == []

    scene.write(records.steered_line(Verb.PAUSE, (), "other"))
    assert scene.scheduler.recall(now=RECALL_SECONDS) == []
    scene.write(records.steered_line(Verb.PAUSE, (), "work"))
    assert scene.scheduler.recall(now=RECALL_SECONDS) == [consumer("a")]
    scene.write(records.returned_line(IdRange(P, 2, 5), 1, consumer("a"), 1))
    assert scene.scheduler.recall(now=9.0) == []
    assert scene.choose() == []


def test_a_paused_name_that_nobody_handles_is_reported_as_paused():
    scene = Scene()
    scene.join("a", names=("work",))
    scene.publish(1, 1, name="mail")
    scene.publish(2, 2, name="orphan")
    assert (scene.scheduler.keeping_back(0.0), scene.scheduler.stuck_names(0.0)) == ([], ["mail", "orphan"])

    scene.write(records.steered_line(Verb.PAUSE, (), "mail"))
    assert (scene.scheduler.keeping_back(0.0), scene.scheduler.stuck_names(0.0)) == (["mail"], ["orphan"])
    scene.write(records.steered_line(Verb.PAUSE, (), None))
    assert (scene.scheduler.keeping_back(0.0), scene.scheduler.stuck_names(0.0)) == ([""], [])


@pytest.mark.parametrize(
    "steer",
    [
        Steer(CLIENT, 1, "destroy", [], "", ""),
        Steer(CLIENT, 1, "cancel", ["nonsense"], "", ""),
        Steer(CLIENT, 1, "cancel", [f"{P}-1..1001"], "", ""),
        Steer(CLIENT, 1, "pause", [], "\n", ""),
        Steer('x"', 1, "pause", [], "", ""),
    ],
)
def test_what_cannot_be_understood_is_not_wished(steer):
    wishes = Wishes()

    with pytest.raises((ValueError, MalformedEventError)):
        wishes.ask(steer)

    assert wishes.decide(QueueState(), 1) == []


def test_as_many_answers_are_remembered_as_are_bounded():
    wishes, state = Wishes(), QueueState()
    for number in range(MOST_ANSWERS + 10):
        wishes.ask(Steer(f"{number:012}", 1, "pause", [], "", ""))
        wishes.decide(state, number)
        wishes.answer(state, number)

    assert wishes.ask(Steer(f"{0:012}", 1, "pause", [], "", "")) is None
    assert wishes.ask(Steer(f"{MOST_ANSWERS:012}", 1, "pause", [], "", "")) == Steered(1, [])


# ---------------------------------------------------------------------------------------------------------------
# The writer


@pytest.fixture
def writing():
    writing = Writing(SessionTable())
    requests = (hello("p" * 12), hello(C, "consumer"), Barrier(S, 1))
    give(writing, *requests)
    return writing


def test_what_was_decided_becomes_one_line_and_is_acknowledged_when_it_is_on_disk(writing):
    group = give(
        writing, Change(S, 1, 1, "cancel", [f"{P}-1..3", f"{C}-1"], ""), Change(S, 2, 1, "pause", [], 'a "name"')
    )

    assert records_of(group) == [
        {"cancel": [f"{P}-1..3", f"{C}-1"], "by": S, "req": 1},
        {"pause": 'a "name"', "by": S, "req": 2},
    ]
    assert group.must_sync
    assert group.acknowledged == {S: 2}
    assert group.keep == RESERVE_BYTES // 2
    table = SessionTable()
    table.set_scheduler(S)
    table.apply(b"".join(group.lines))
    assert table.scheduler_request == 2


def test_what_was_decided_is_taken_in_its_order_and_from_this_scheduler_in_view_of_this_file(writing):
    assert give(writing, Change(S, 2, 1, "resume", [], "")).answers == [(S, Gap(S, 1))]
    for strange in (Change("t" * 12, 1, 1, "resume", [], ""), Change(S, 1, 2, "resume", [], "")):
        group = give(writing, strange)
        assert (group.lines, group.acknowledged) == ([], {})
    give(writing, Change(S, 1, 1, "resume", [], ""))
    again = give(writing, Change(S, 1, 1, "resume", [], ""))
    assert (again.lines, again.acknowledged) == ([], {S: 1})


@pytest.mark.parametrize(
    "hostile",
    [
        Change(S, 1, 1, "cancel", ['x"]}\n,{"gone":"y'], ""),
        Change(S, 1, 1, "destroy", [], ""),
        Change(S, 1, 1, "pause", [], "\n"),
        Change(S, 1, 1, "purge", [7], ""),  # type: ignore[list-item]
    ],
)
def test_nothing_forged_gets_in(writing, hostile):
    with pytest.raises((ValueError, TypeError)):
        writing.accept(hostile)
    assert writing.take_group().lines == []
    assert writing.sessions.expected(S) == 1


def test_what_was_lent_is_taken_back_by_whatever_is_decided(writing):
    writing.position = Position(1, 500)
    give(writing, Lend(S, 1, 500, [[C, 1, None]]))

    group = give(writing, Change(S, 1, 1, "pause", [], ""), publish("p" * 12, 1, b"1"))

    assert [next(iter(record)) for record in records_of(group)] == ["pause", "publish", "id"]
    assert group.pushes == {}

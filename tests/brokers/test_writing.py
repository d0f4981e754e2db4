"""What the writer makes of requests: numbers, gaps, repetitions, and what it never lets into the log."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import orjson
import pytest

from actorq.actors.packets import INLINE_BYTES
from actorq.brokers.backlog import Backlog, Limits
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    Barrier,
    Committed,
    Confirm,
    Event,
    EventOwner,
    Forgotten,
    Gap,
    Gone,
    Hello,
    Lend,
    MalformedEventError,
    Pending,
    Publish,
    Refused,
    Report,
    Sated,
)
from actorq.brokers.publisher_broker import Writing, pushes_of
from actorq.store.log_reader import Position
from actorq.store.sessions import REFUSED, SessionTable

P, Q, C, S, T = (letter * 12 for letter in "pqcst")


def hello(session, role="publisher"):
    return Hello(session, role, 100, 200, "boot", None, 3, 3)


def publish(session, first, *payloads, name="work"):
    return Publish(session, first, len(payloads), name, b"\n".join(payloads))


@pytest.fixture
def writing():
    writing = Writing(SessionTable())
    for request in (hello(P), hello(C, "consumer"), Barrier(S, 1)):
        writing.accept(request)
    writing.take_group()
    return writing


def give(writing, *requests):
    """Let the writer take requests; return the group that it would commit."""
    for request in requests:
        writing.accept(request)
    return writing.take_group()


def records_of(group):
    return [orjson.loads(line[1:]) for line in b"".join(group.lines).splitlines()]


def test_a_publish_becomes_one_line_a_task_with_its_payload_byte_for_byte(writing):
    group = give(writing, publish(P, 1, b'{"a":1}', b'{"b":[1, 2]}'))

    assert b"".join(group.lines).splitlines()[1:] == [
        b',{"id":"%b-1","name":"work","data":{"a":1}}' % P.encode(),
        b',{"id":"%b-2","name":"work","data":{"b":[1, 2]}}' % P.encode(),
    ]
    assert group.acknowledged == {P: 2}
    assert group.must_sync


def test_the_next_number_only_is_taken(writing):
    group = give(writing, publish(P, 2, b"1"))

    assert group.lines == []
    assert group.answers == [(P, Gap(P, 1))]
    assert group.acknowledged == {}


def test_a_gap_is_told_once_and_again_after_it_was_filled(writing):
    first = give(writing, publish(P, 2, b"1"), publish(P, 3, b"1"))
    filled = give(writing, publish(P, 1, b"1"))
    second = give(writing, publish(P, 5, b"1"))

    assert len(first.answers) == 1
    assert filled.acknowledged == {P: 1}
    assert second.answers == [(P, Gap(P, 2))]


def test_a_repeated_request_is_answered_as_done_and_written_once(writing):
    give(writing, publish(P, 1, b"1", b"2"))

    again = give(writing, publish(P, 1, b"1", b"2"))

    assert again.lines == []
    assert again.acknowledged == {P: 2}


def test_who_asks_whether_the_log_has_its_last_request_hears_that_it_has_or_that_it_is_forgotten(writing):
    give(writing, Hello(T, "consumer", 101, 200, "boot", None, 3, 3))

    group = give(writing, Confirm(C, 0), Confirm(T, 1), Confirm(Q, 0))

    assert (group.lines, group.acknowledged) == ([], {C: 0})
    assert group.answers == [(T, Forgotten(T)), (Q, Forgotten(Q))]


def test_a_session_that_is_not_known_must_say_hello_first(writing):
    group = give(writing, publish(Q, 1, b"1"))

    assert group.answers == [(Q, Gap(Q, 0))]


def test_a_repeated_hello_is_written_once(writing):
    group = give(writing, hello(P))

    assert group.lines == []
    assert group.acknowledged == {P: 0}


@pytest.mark.parametrize(
    "payload",
    [b"", b" ", b"1],[2", b"[1", b'1},{"id":"x"', b'"abc', b"NaN", b"{'a':1}", b"1 2", b"\x00", b'"\x01"', b"\t1"],
)
def test_a_payload_that_is_not_one_json_value_is_refused_and_nothing_of_the_request_is_written(writing, payload):
    group = give(writing, publish(P, 1, b"1", payload))

    assert group.lines == []
    [(session, answer)] = group.answers
    assert (session, type(answer), answer.number, answer.kind) == (P, Refused, 1, "payload")
    assert give(writing, publish(P, 1, b"2")).acknowledged == {P: 1}


def test_a_count_that_does_not_fit_the_payloads_is_refused(writing):
    group = give(writing, Publish(P, 1, 3, "work", b"1\n2"))

    assert group.lines == []
    assert isinstance(group.answers[0][1], Refused)


@pytest.mark.parametrize(
    "hostile",
    [
        Report(C, 1, [["done", f'{P}-1","by":"x', 1, ""]]),
        Report(C, 1, [["done", "x", 1, ""]]),
        Report(C, 1, [["nonsense", f"{P}-1", 1, ""]]),
        Report(C, 1, [["failed", f"{P}-1", 1, 'ready"}\n,{"gone":"x']], b"{}"),
        Report(C, 1, [["failed", f"{P}-1", 1, "ready", ""]], b"{}"),
        Report(C, 1, [["failed", f"{P}-1", 1, "ready"]], b'{}},{"a":1'),
        Report(C, 1, [["result", f"{P}-1", 1, ""]], b"1\n2"),
        Report(C, 1, [["result", f"{P}-1", 1, ""]], b""),
        Report(C, 1, [["result", f"{P}-1..3", 1, ""]], b"1"),
        Report(C, 1, [["done", f"{P}-1", '1"', ""]]),
        Report(C, 1, [["done", f"{P}-1", -1, ""]]),
        Report(C, 1, []),
        Assign(S, 1, 1, [[f"{P}-1", 'c"', 1, 0, 0, 1]], b"x"),
        Assign(S, 1, 1, [[f"{P}-1", C, "1", 0, 0, 1]], b"x"),
        Assign(S, 1, 1, [["nonsense", C, 1, 0, 0, 1]], b"x"),
        Assign(S, 1, 1, [], b""),
        Barrier('x"', 1),
        hello('x"'),
        hello(Q, 'x"'),
        Publish(P, 1, 1, "", b"1"),
        Publish(P, 1, 0, "work", b""),
        Publish(P, 1, -1, "work", b""),
        Gone(C, "died", 'x"'),
        Committed(1, 100),
    ],
)
def test_nothing_that_arrives_can_forge_a_record(writing, hostile):
    with suppress(ValueError, TypeError, MalformedEventError):
        writing.accept(hostile)
    group = writing.take_group()

    assert all(next(iter(record)) == "gone" for record in records_of(group))
    assert writing.sessions.expected(C) in (0, 1)
    assert writing.sessions.expected(P) == 1
    assert writing.sessions.expected(S) == 1


def test_outcomes_are_written_with_results_and_errors_as_they_were_sent(writing):
    report = Report(
        C, 1,
        [["done", f"{P}-1..2", 1, ""], ["result", f"{P}-3", 1, ""], ["failed", f"{P}-4", 1, "dead"],
         ["returned", f"{P}-5", 1, ""]],
        b'{"r":1}\n{"type":"E","message":"m","traceback":""}',
    )  # fmt: skip

    records = records_of(give(writing, report))

    assert [next(iter(record.items())) for record in records] == [
        ("done", f"{P}-1..2"), ("done", f"{P}-3"), ("failed", f"{P}-4"), ("returned", f"{P}-5"),
    ]  # fmt: skip
    assert records[1]["result"] == {"r": 1}
    assert records[2]["then"] == "dead"
    assert all(record["by"] == C and record["req"] == 1 for record in records)


def test_an_assignment_is_written_and_pushed_with_its_lines_but_needs_no_sync(writing):
    lines = b',{"id":"x"}\n,{"id":"y"}\n'

    group = give(writing, Assign(S, 1, 1, [[f"{P}-1", C, 1, 0, 0, 12], [f"{P}-2", C, 2, 0, 1, 12]], lines))

    assert [record["assign"] for record in records_of(group)] == [f"{P}-1", f"{P}-2"]
    assert group.pushes == {C: ([[f"{P}-1", 1, 0, 0, 12], [f"{P}-2", 2, 0, 1, 12]], [lines[:12], lines[12:]])}
    assert not group.must_sync


@pytest.mark.parametrize("sizes", [[100], [40_000] * 5, [100] * 700, [30_000, 1_000_000, 30_000, 10], [1_000_000] * 2])
def test_assignments_to_one_consumer_are_pushed_in_packets_that_need_no_file_unless_one_alone_does(sizes):
    entries = [[f"k3v9x2m4q7ab-{no}", no, 0, 0, size] for no, size in enumerate(sizes, 1)]
    bodies = [b"%d" % (no % 10) * size for no, size in enumerate(sizes)]
    pushes = list(pushes_of(entries, bodies))
    assert [entry for push in pushes for entry in push.entries] == entries
    assert b"".join(push.body for push in pushes) == b"".join(bodies)
    for push in pushes:
        assert len(push.body) == sum(size for *_, size in push.entries)
        assert len(push.entries) == 1 or len(Event(EventOwner.PUBLISHER_BROKER, push).encode()) < INLINE_BYTES
    lengths = [len(push.body) for push in pushes]
    assert all(one + other > 20_000 for one, other in pairwise(lengths))  # none for nothing


def test_assignments_of_a_scheduler_before_the_barrier_are_dropped(writing):
    group = give(writing, Barrier(T, 1), Assign(S, 1, 1, [[f"{P}-1", C, 1, 0, 0, 1]], b"x"))

    assert [next(iter(record)) for record in records_of(group)] == ["barrier"]
    assert group.pushes == {}


def test_what_a_scheduler_has_asked_for_in_an_earlier_file_is_void(writing):
    """After a failed sync the new file may hold less; what was decided before still lies in the mailbox."""
    assign = Assign(S, 1, 1, [[f"{P}-1", C, 1, 0, 0, 1]], b"x")
    successor = Writing(writing.sessions, Position(2, 0))

    group = give(successor, assign, Barrier(T, 1), Assign(T, 1, 1, assign.entries, b"x"))
    assert (group.lines, group.pushes, group.answers, group.acknowledged) == ([], {}, [], {})

    group = give(successor, Barrier(T, 2), Assign(T, 1, 2, assign.entries, b"x"))
    assert [next(iter(record)) for record in records_of(group)] == ["barrier", "assign"]


def test_a_new_scheduler_numbers_anew(writing):
    give(writing, Assign(S, 1, 1, [[f"{P}-1", C, 1, 0, 0, 1]], b"x"), Barrier(T, 1))

    group = give(writing, Assign(T, 1, 1, [[f"{P}-2", C, 2, 0, 0, 1]], b"x"))

    assert group.acknowledged == {T: 1}


def test_a_death_is_written_once_and_its_session_forgotten(writing):
    group = give(writing, Gone(C, "killed\n,{", f"{P}-1"), Gone(C, "again", ""))

    assert records_of(group) == [{"gone": C, "cause": "killed\n,{", "task": f"{P}-1"}]
    assert writing.sessions.expected(C) == 0


def test_what_a_dead_consumer_still_says_is_a_gap(writing):
    group = give(writing, Gone(C, "died", ""), Report(C, 1, [["done", f"{P}-1", 1, ""]]))

    assert [next(iter(record)) for record in records_of(group)] == ["gone"]
    assert group.answers == [(C, Gap(C, 0))]


def test_the_table_of_a_new_writer_is_that_of_the_old_one(writing):
    group = give(writing, publish(P, 1, b"1", b"2"), Assign(S, 1, 1, [[f"{P}-1", C, 1, 0, 0, 1]], b"x"), hello(Q))
    before = [writing.sessions.expected(session) for session in (P, C, S, Q)]

    table = SessionTable()
    for request in (hello(P), hello(C, "consumer"), Barrier(S, 1)):
        fresh = Writing(SessionTable())
        fresh.accept(request)
        table.apply(b"".join(fresh.take_group().lines))
    table.apply(b"".join(group.lines))

    assert [table.expected(session) for session in (P, C, S, Q)] == before == [3, 1, 2, 1]


def test_one_acknowledgement_a_session_and_group(writing):
    group = give(writing, *[publish(P, n, b"1") for n in range(1, 50)])

    assert group.acknowledged == {P: 49}
    assert Acknowledged(P, 49).number == 49


@pytest.fixture
def limited():
    """Return a writing that may take ten tasks, of which two are there."""
    backlog = Backlog(Limits(max_pending=10))
    writing = Writing(SessionTable(), Position(1, 0), backlog, "/q/Queue.json")
    for request in (hello(P), hello(Q), Pending(1, 0, 2, 100)):
        writing.accept(request)
    writing.take_group()
    return writing


def test_of_a_publish_that_does_not_fit_as_a_whole_the_first_tasks_are_written_and_the_rest_refused(limited):
    group = give(limited, publish(P, 1, *[b"1"] * 9))

    assert [next(iter(record)) for record in records_of(group)] == ["publish", *["id"] * 8, "gone"]
    assert group.acknowledged == {P: 8}
    [(session, answer)] = group.answers
    assert (session, answer.number, answer.kind, answer.where) == (P, 9, "queue_full", "/q/Queue.json")


def test_what_was_refused_is_not_taken_later_though_there_is_room_again_and_though_the_writer_has_died(limited):
    first = give(limited, publish(P, 1, *[b"1"] * 9))
    again = give(limited, Pending(1, 0, 0, 0), publish(P, 1, *[b"1"] * 9))

    table = SessionTable()
    for lines in (give(Writing(SessionTable()), hello(P)).lines, first.lines):
        table.apply(b"".join(lines))
    successor = give(Writing(table), publish(P, 1, *[b"1"] * 9))

    for group in (again, successor):
        assert group.lines == []
        assert [(answer.number, answer.kind) for _, answer in group.answers] == [(9, "queue_full")]


def test_publishes_wait_until_it_is_known_how_many_there_may_be_and_nothing_else_does():
    writing = Writing(SessionTable(), Position(1, 0), Backlog(Limits(max_pending=1)))
    before = give(writing, hello(P), publish(P, 1, b"1"), hello(C, "consumer"))
    after = give(writing, Pending(1, 0, 0, 0))

    assert [next(iter(record)) for record in records_of(before)] == ["hello", "hello"]
    assert [next(iter(record)) for record in records_of(after)] == ["publish", "id"]
    assert after.acknowledged == {P: 1}


def test_nothing_of_a_publish_is_written_when_there_is_no_room_at_all(limited):
    give(limited, publish(P, 1, *[b"1"] * 8))

    group = give(limited, publish(Q, 1, b"1"))

    assert [next(iter(record)) for record in records_of(group)] == ["gone"]
    assert [(session, answer.number, answer.kind) for session, answer in group.answers] == [(Q, 1, "queue_full")]
    assert group.acknowledged == {}


def test_what_a_scheduler_told_an_earlier_writer_says_nothing_and_without_a_limit_nothing_does():
    limited = Writing(SessionTable(), Position(1, 0), Backlog(Limits(max_pending=1), start=1000))
    assert give(limited, hello(P), publish(P, 1, b"1"), Pending(1, 999, 0, 0)).acknowledged == {P: 0}
    assert give(limited, Pending(1, 1000, 0, 0)).acknowledged == {P: 1}

    free = Writing(SessionTable())
    assert give(free, Pending(1, 0, 10**9, 10**9), hello(P), publish(P, 1, b"1")).acknowledged == {P: 1}


def test_a_refusal_that_is_recorded_at_the_second_try_is_remembered_like_any_other(writing):
    group = give(writing, Gone(P, f"{REFUSED}disk_full", ""), publish(P, 1, b"1"))

    assert records_of(group) == [{"gone": P, "cause": f"{REFUSED}disk_full"}]
    assert [(session, answer.number, answer.kind) for session, answer in group.answers] == [(P, 1, "disk_full")]


# ---------------------------------------------------------------------------------------------------------------
# Consumers that were lent


def lend(*consumers, offset=0, generation=1, scheduler=S):
    return Lend(scheduler, generation, offset, [list(entry) for entry in consumers])


def assigned(group):
    return [
        (record["assign"], record["to"][0], record["no"]) for record in records_of(group) if "assign" in record
    ]  # fmt: skip


def test_a_task_goes_to_an_idle_consumer_in_the_commit_that_publishes_it(writing):
    give(writing, lend((C, 7, None)))

    group = give(writing, publish(P, 1, b'{"a":1}'))

    line = b',{"id":"%b-1","name":"work","data":{"a":1}}\n' % P.encode()
    assert [next(iter(record)) for record in records_of(group)] == ["publish", "id", "assign"]
    assert records_of(group)[-1] == {"assign": f"{P}-1", "to": C, "no": 7, "by": S, "req": 0}
    assert group.pushes == {C: ([[f"{P}-1", 7, 0, 0, len(line)]], [line])}
    assert give(writing, publish(P, 2, b"1")).pushes == {}  # it has one now


def test_each_of_a_few_tasks_goes_to_another_consumer_the_longest_waiting_first(writing):
    give(writing, lend((C, 1, None), (Q, 2, ["other"]), (T, 3, ["work"])))

    group = give(writing, publish(P, 1, b"1", b"2"))

    assert assigned(group) == [(f"{P}-1", "c", 1), (f"{P}-2", "t", 3)]
    assert assigned(give(writing, publish(P, 3, b"3", name="other"))) == [(f"{P}-3", "q", 2)]


@pytest.mark.parametrize(
    "first",
    [
        publish(P, 1, b"1", b"2", b"3"),
        publish(P, 1, b"1", name="other"),
        Report(C, 1, [["returned", f"{P}-1", 1, ""]]),
        Report(C, 1, [["failed", f"{P}-1", 1, "ready"]], b"{}"),
        Gone(T, "died", ""),
        Barrier(Q, 1),
        Assign(S, 1, 1, [[f"{P}-1", T, 1, 0, 0, 0]]),
    ],
    ids=["more than consumers", "of another name", "returned", "failed", "gone", "barrier", "assign"],
)
def test_once_a_task_may_be_ready_that_was_not_handed_out_or_the_scheduler_acts_nobody_is_lent_any_more(writing, first):
    give(writing, hello(T, "consumer"))
    give(writing, lend((C, 1, ["work"]), (T, 2, ["work"])))
    number = 1 + (first.count if isinstance(first, Publish) else 0)

    give(writing, first)

    assert assigned(give(writing, publish(P, number, b"1"))) == []


def test_what_changes_nothing_for_others_takes_nobody_back(writing):
    give(writing, lend((C, 1, None)))

    give(writing, Report(C, 1, [["done", f"{P}-1", 1, ""]]), hello(Q), Gone(Q, "closed", ""))

    assert assigned(give(writing, publish(P, 1, b"1"))) == [(f"{P}-1", "c", 1)]


@pytest.mark.parametrize(
    "late", [lend((C, 1, None), offset=1), lend((C, 1, None), generation=2), lend((C, 1, None), scheduler=T)]
)
def test_nobody_is_lent_by_a_scheduler_that_has_read_less_or_is_not_the_present_one(writing, late):
    give(writing, late)

    assert assigned(give(writing, publish(P, 1, b"1"))) == []


def test_nobody_is_lent_as_of_a_place_behind_which_something_is_about_to_be_written(writing):
    assert assigned(give(writing, publish(P, 1, b"1"), lend((C, 1, None)), publish(P, 2, b"2"))) == []


def test_whoever_is_lent_anew_takes_the_place_of_all_before(writing):
    give(writing, lend((C, 1, None), (T, 1, None)), lend((T, 1, None)))

    assert assigned(give(writing, publish(P, 1, b"1"))) == [(f"{P}-1", "t", 1)]


@pytest.mark.parametrize(
    "entry", [[C, 0, None], [C, True, None], ["../x", 1, None], [C, 1, [1]], [C, 1], [C, 1, "work"]]
)
def test_what_is_no_consumer_cannot_be_lent(writing, entry):
    with pytest.raises(ValueError if entry[0] != C else MalformedEventError):
        writing.accept(lend(entry))

    assert assigned(give(writing, publish(P, 1, b"1"))) == []


# ---------------------------------------------------------------------------------------------------------------
# What the scheduler is woken for


def sated(offset=0, generation=1, scheduler=S):
    return Sated(scheduler, generation, offset)


def test_the_scheduler_hears_of_a_task_unless_it_is_handed_out_already(writing):
    give(writing, lend((C, 1, None)))

    assert not give(writing, publish(P, 1, b"1")).is_news
    assert give(writing, publish(P, 2, b"2")).is_news


def test_while_nobody_could_take_one_more_it_hears_of_everything_else(writing):
    give(writing, hello(T, "consumer"))
    for number, news in enumerate([Report(C, 1, [["done", f"{P}-9", 1, ""]]), Gone(T, "died", "")]):
        give(writing, sated())
        assert not give(writing, publish(P, 2 * number + 1, b"1")).is_news
        assert give(writing, publish(P, 2 * number + 2, b"2"), news).is_news


def test_what_it_assigns_is_acknowledged_to_it_and_no_news_besides(writing):
    give(writing, sated())
    group = give(writing, Assign(S, 1, 1, [[f"{P}-9", C, 1, 0, 0, 0]]))

    assert (group.is_news, group.acknowledged) == (False, {S: 1})
    assert not give(writing, publish(P, 1, b"1")).is_news


def test_once_there_was_news_it_has_to_say_so_anew_with_all_of_it_read(writing):
    give(writing, sated())
    writing.reached(Position(1, 500), is_news=True)
    assert give(writing, publish(P, 1, b"1")).is_news

    give(writing, sated(offset=499))
    assert give(writing, publish(P, 2, b"1")).is_news

    writing.reached(Position(1, 900), is_news=False)  # tasks that it need not know of
    give(writing, sated(offset=500))
    assert not give(writing, publish(P, 3, b"1")).is_news


@pytest.mark.parametrize("late", [sated(scheduler=T), sated(generation=0)])
def test_what_an_earlier_scheduler_said_or_of_an_earlier_file_does_not_count(writing, late):
    give(writing, late)

    assert give(writing, publish(P, 1, b"1")).is_news


def test_what_it_said_before_it_has_seen_the_group_at_hand_does_not_count(writing):
    assert give(writing, Report(C, 1, [["done", f"{P}-9", 1, ""]]), sated(), publish(P, 1, b"1")).is_news
    assert give(writing, publish(P, 2, b"1")).is_news

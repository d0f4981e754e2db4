"""The writer's table: who is known, and which number comes next."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorq.store import records
from actorq.store.fold import QueueState
from actorq.store.records import Hello
from actorq.store.sessions import MAX_REFUSED, SessionTable
from actorq.store.snapshot import snapshot_pieces
from tests.store.log_on_paper import C, P, Paper, Q, S, hello, ids
from tests.store.test_fold import STEP, Story, publish


def shown(table):
    return {session: (entry.hello, entry.last_request) for session, entry in table.sessions.items()}, (
        table.scheduler,
        table.scheduler_request,
    )


def test_nobody_is_known_at_first():
    table = SessionTable()

    assert table.expected(P) == table.expected(S) == 0
    assert table.roll() == []


def test_a_greeting_is_noted_and_written():
    table = SessionTable()

    line = table.greet(hello(C, names=("mail",)))

    assert line == records.hello_line(hello(C, names=("mail",)))
    assert table.expected(C) == 1
    assert table.roll() == [[C, "consumer", 17, 4711, "boot"]]


@pytest.mark.parametrize(
    "bad",
    [
        Hello("UPPER", "publisher", 1, 1, "b"),
        Hello(P, "king", 1, 1, "b"),
        Hello(C, "consumer", 1, 1, "b", ("line\nfeed",)),
        Hello(C, "consumer", -1, 1, "b"),
        Hello(C, "consumer", 1, "1", "b"),  # type: ignore[arg-type]  # what a foreign process may send
        Hello(C, "consumer", 1, 1, None),  # type: ignore[arg-type]
        Hello(C, "consumer", 1, 1, "b", None, 0),
    ],
)
def test_what_is_no_greeting_is_refused_and_not_noted(bad):
    table = SessionTable()

    with pytest.raises(ValueError):
        table.greet(bad)

    assert table.sessions == {}


def test_numbers_only_rise():
    table = SessionTable()
    table.greet(hello(P))

    table.advance(P, 5)
    table.advance(P, 3)
    table.advance(Q, 9)

    assert table.expected(P) == 6
    assert table.expected(Q) == 0


def test_only_the_last_scheduler_is_known():
    table = SessionTable()
    table.set_scheduler("scheduler333")
    table.set_scheduler(S)
    table.advance(S, 4)
    table.advance("scheduler333", 9)

    assert table.expected(S) == 5
    assert table.expected("scheduler333") == 0


def test_the_dead_are_forgotten():
    table = SessionTable()
    table.greet(hello(P))

    table.forget(P)

    assert table.expected(P) == 0


def test_of_refused_sessions_the_last_are_known_so_many_of_them():
    table = SessionTable()
    sessions = [f"{number:012}" for number in range(MAX_REFUSED + 1)]
    for session in sessions:
        table.greet(hello(session))
        table.refuse(session, "disk_full")

    assert list(table.refused) == sessions[1:]
    assert set(table.refused.values()) == {(1, "disk_full")}
    assert repr(table) == "<SessionTable 0 sessions, scheduler None>"


def test_a_payload_that_looks_like_a_record_is_none():
    table = SessionTable()
    evil = b'[0,{"gone":"publisher222"},{"barrier":"scheduler333"}]'
    lines = records.publish_lines(ids(1, 2), "x", [evil, evil])

    table.apply(records.hello_line(hello(P)) + lines)
    table.apply(lines)

    assert table.expected(P) == 3
    assert table.scheduler is None


def test_a_result_that_looks_like_a_request_is_none():
    table = SessionTable()
    table.greet(hello(C))

    table.apply(records.done_result_lines([(f"{P}-1", b'{"by":"consumer2222","req":99}')], 1, C, 1))

    assert table.expected(C) == 2


@given(st.lists(STEP, max_size=60), st.integers(0, 60), st.integers(100, 900))
@settings(deadline=None, max_examples=80)
def test_the_table_knows_what_the_fold_knows_from_wherever_it_begins(steps, checkpoint, piece_bytes):
    paper, state = Paper(), QueueState()
    story = Story(paper)
    whole, late = SessionTable(), SessionTable()
    for at, lines in enumerate([story.begin().lines, *(story.step(*step) for step in steps)]):
        if at == checkpoint:
            late.apply(whole.checkpoint_line() + lines)
        elif at > checkpoint:
            late.apply(lines)
        whole.apply(lines)
        state.apply(paper.write(lines))

    assert set(whole.sessions) == {*state.publishers, *state.consumers}
    assert all(whole.expected(each) - 1 == state.last_request(each) for each in whole.sessions)
    assert (whole.scheduler, whole.scheduler_request) == (state.scheduler, state.scheduler_request)
    if checkpoint <= len(steps):
        assert shown(late) == shown(whole)
    compacted = SessionTable()
    for piece in snapshot_pieces(state, paper.read, 0, piece_bytes):
        compacted.apply(piece)
    assert shown(compacted) == shown(whole)


def test_the_boot_id_of_the_last_writer_is_kept():
    table = SessionTable()

    table.apply(records.writer_line(1, "one", 5) + publish(1, 1) + records.writer_line(2, "two", 6))

    assert table.boot == "two"

"""The snapshot: what compaction writes is the queue it was made from, and the log goes on behind it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorq.errors import FoldError
from actorq.store import records
from actorq.store.fold import QueueState
from actorq.store.records import error_json, parse_line
from actorq.store.snapshot import snapshot_pieces
from tests.helpers import examples
from tests.store.log_on_paper import C, P, Paper, S, hello, ids
from tests.store.naive_fold import view_of
from tests.store.test_fold import STEP, Story, publish


def rewritten(state, read, keep_done=None, piece_bytes=1 << 20):
    """Return the paper and the state of the next generation."""
    paper, new = Paper(generation=2), QueueState()
    for piece in snapshot_pieces(state, read, keep_done, piece_bytes):
        new.apply(paper.write(piece, piece=True, at="2030-01-01T00:00:00.000Z"))
    return paper, new


def follow(*batches):
    state = QueueState()
    for batch in batches:
        state.apply(batch)
    return state


def told(*lines):
    paper = Paper()
    head = [records.hello_line(hello(P)), records.hello_line(hello(C)), records.barrier_line(S)]
    state = follow(*[paper.write(line) for line in (b"".join(head), *lines)])
    return paper, state


def test_an_empty_queue_has_a_snapshot():
    _, new = rewritten(QueueState(), Paper().read)

    assert len(new) == 0
    assert new.scheduler is None


def test_lines_of_tasks_are_copied_byte_for_byte():
    lines = publish(1, 3).replace(b'{"n":2}', b'{ "n": 2.50, "n": 3}')
    paper, state = told(lines)

    pieces = b"".join(snapshot_pieces(state, paper.read, None))

    assert all(line in pieces for line in lines.splitlines()[1:])


def test_every_line_of_a_snapshot_is_a_record():
    error = error_json("E", "no")
    paper, state = told(
        publish(1, 9),
        records.assign_line(ids(1, 9), C, 1, S, 1),
        records.failed_line(f"{P}-1", 1, C, 1, "dead", error) + records.failed_line(f"{P}-2", 1, C, 2, "ready", error),
        records.done_line(ids(3, 4), 1, C, 3) + records.done_result_lines([(f"{P}-5", b'{"x":1}')], 1, C, 4),
    )

    pieces = list(snapshot_pieces(state, paper.read, 1))
    kinds = [next(iter(parse_line(line))) for piece in pieces for line in piece.splitlines(keepends=True)]

    assert kinds == ["hello", "hello", "publish", *["id"] * 2, "publish", *["id"] * 5] + ["kept"] * 3 + [
        "assign",
        "sessions",
        "counts",
    ]
    assert pieces[-1].startswith(b',{"sessions":')


def test_only_the_newest_done_tasks_stay_and_the_counts_survive():
    paper, state = told(
        publish(1, 6),
        records.assign_line(ids(1, 5), C, 1, S, 1),
        records.done_line(ids(4, 5), 1, C, 1),
        records.done_line(ids(1, 2), 1, C, 2),
    )

    paper, new = rewritten(state, paper.read, keep_done=1)

    assert [new.id_of(seq) for seq in range(len(new))] == [f"{P}-{number}" for number in (2, 3, 6)]
    assert new.counts() == state.counts()
    _, newer = rewritten(new, paper.read, keep_done=0)
    assert newer.counts() == state.counts()
    assert newer.removed == {"done": 4}
    assert newer.seq_of(f"{P}-2") is None


@pytest.mark.parametrize("word", [b"id", b"done", b"failed", b"gone"])
@pytest.mark.parametrize("what_is_there", ["nothing", "zeros", "half of it", "another record"])
def test_a_file_that_does_not_say_any_more_what_was_folded_of_it_is_told_from_a_broken_program(word, what_is_there):
    """So it is after a failed sync: the bytes were in the cache alone."""
    paper, state = told(
        publish(1, 3),
        records.assign_line(ids(1, 3), C, 1, S, 1),
        records.done_result_lines([(f"{P}-1", b'{"x":1}')], 1, C, 1)
        + records.failed_line(f"{P}-2", 1, C, 2, "dead", error_json("E", "no")),
        records.gone_line(C, "killed", f"{P}-3"),
    )
    at = paper.bytes.index(b',{"%b":' % word)
    end = paper.bytes.index(b"\n", at)
    line = paper.bytes[at:end]
    instead = {
        "nothing": b"",
        "zeros": bytes(len(line)),
        "half of it": line[:20].ljust(len(line), b"\0"),
        "another record": b',{"writer":1}'.ljust(len(line)),
    }[what_is_there]
    paper.bytes = paper.bytes[:at] + instead + (paper.bytes[end:] if instead else b"")

    with pytest.raises(FoldError, match="not there any more"):
        [state.task(seq, paper.read) for seq in range(3)]


def test_a_task_number_that_left_is_not_found_between_those_that_stay():
    paper, state = told(
        publish(1, 3), records.assign_line(ids(2), C, 1, S, 1), records.done_line(ids(2), 1, C, 1), publish(4, 4)
    )

    _, new = rewritten(state, paper.read, keep_done=0)

    assert [new.seq_of(f"{P}-{number}") for number in (1, 2, 3, 4, 5)] == [0, None, 1, 2, None]


def test_pieces_keep_to_their_size():
    paper, state = told(*[publish(1 + 50 * group, 50 + 50 * group) for group in range(8)])

    pieces = list(snapshot_pieces(state, paper.read, None, 1000))

    assert len(pieces) > 20
    assert max(map(len, pieces)) < 1200
    _, new = rewritten(state, paper.read, piece_bytes=1000)
    assert len(new) == 400


def test_a_line_longer_than_a_piece_is_a_piece():
    long = records.publish_lines(ids(1, 3), "work", [b'"%b"' % (b"x" * 5000)] * 3)
    paper, state = told(long)

    _, new = rewritten(state, paper.read, piece_bytes=1000)

    assert len(new) == 3


def test_an_outcome_for_a_whole_assignment_fits_after_its_group_was_cut():
    paper, state = told(publish(1, 60), records.assign_line(ids(1, 60), C, 1, S, 1))
    copy, new = rewritten(*_twice(state, paper))

    new.apply(copy.write(records.done_line(ids(1, 60), 1, C, 1)))

    assert new.counts()["done"] == 60
    assert new.consumers[C].outstanding == 0


def _twice(state, paper):
    for _ in range(2):
        paper, state = rewritten(state, paper.read, piece_bytes=500)
    return state, paper.read


@pytest.mark.parametrize("no", [3, 2])
def test_assignments_go_on_with_the_next_number(no):
    paper, state = told(publish(1, 3), records.assign_line(ids(1), C, 1, S, 1), records.assign_line(ids(2), C, 2, S, 2))

    paper, new = rewritten(state, paper.read)
    new.apply(paper.write(records.assign_line(ids(3), C, no, S, 3)))

    assert new.running_count == no
    assert new.scheduler_request == 3


@given(
    st.lists(STEP, min_size=10, max_size=60),
    st.lists(STEP, max_size=25),
    st.none() | st.integers(0, 3),
    st.integers(60, 900),
)
@settings(deadline=None, max_examples=examples(80))
def test_a_compacted_log_says_the_same_and_goes_on_the_same(steps, later, keep_done, piece_bytes):
    paper = Paper()
    story = Story(paper)
    old = follow(story.begin(), *[paper.write(story.step(*step)) for step in steps])
    copy, new = rewritten(old, paper.read, keep_done, piece_bytes)
    _expect_same(old, paper, new, copy)

    copy.commits = paper.commits
    for step in later:
        line = story.step(*step)
        old.apply(paper.write(line))
        new.apply(copy.write(line))
    _expect_same(old, paper, new, copy)

    newer_copy, newer = rewritten(new, copy.read, keep_done, piece_bytes)
    _expect_same(old, paper, newer, newer_copy)


def _expect_same(old, paper, new, copy):
    was, now = view_of(old, paper.read), view_of(new, copy.read)
    left = [task for task in was["tasks"] if task not in now["tasks"]]
    assert all(was["tasks"].pop(task)["state"] in ("done", "cancelled") for task in left)
    assert now == was
    assert list(now["tasks"]) == list(was["tasks"])
    assert new.counts() == old.counts()


@pytest.mark.parametrize("state", ["scheduled", "cancelled", "dead"])
def test_every_state_can_be_kept(state):
    at = b'"2026-11-23T18:00:09.009Z"'
    fields = {"failures": b"2", "crashes": b"1", "finished": at} if state != "scheduled" else {}
    paper, old = Paper(), QueueState()
    old.apply(paper.write(publish(1, 4), records.kept_line(ids(2, 3), state, fields), piece=True))

    _, new = rewritten(old, paper.read)

    assert [str(new.state_of(seq)) for seq in range(4)] == ["ready", state, state, "ready"]
    assert new.counts()[state] == 2
    assert new.failures_of(1) == len(fields) - 1 or not fields
    assert new.next_ready_run(None, limit=9) == (0, 1)
    assert new.next_ready_run(None, 1, limit=9) == (3, 4)


def test_a_task_is_kept_once():
    line = records.kept_line(ids(1), "dead", {})

    with pytest.raises(FoldError, match="kept once"):
        QueueState().apply(Paper().write(publish(1, 1), line, line, piece=True))

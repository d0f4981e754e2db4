"""The record lines: what is written is what is read, and nobody can forge one."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.errors import PayloadError
from actorq.store import records
from actorq.store.records import Hello, RecordError, error_json, head_of, parse_line, spliced_part
from actorq.tasks.ids import IdRange
from actorq.tasks.payload import check_payloads
from actorq.tasks.steering import Verb

P = "k3v9x2m4q7ab"
C = "c7c7c7c7c7c7"
S = "s3s3s3s3s3s3"
AT = "2026-11-23T18:05:01.123Z"
AWKWARD = 'quote " slash \\ line \n feed \u2028 \x7f'

LINES = {
    "writer": (records.writer_line(3, "b", 4711), {"writer": 3, "boot": "b", "pid": 4711}),
    "publisher": (
        records.hello_line(Hello(P, "publisher", 1, 2, "b")),
        {"hello": P, "as": "publisher", "pid": 1, "start": 2, "boot": "b"},
    ),
    "consumer": (
        records.hello_line(Hello(C, "consumer", 1, 2, "b", (AWKWARD,), 4, 5), last_request=6, last_no=7),
        {"hello": C, "as": "consumer", "pid": 1, "start": 2, "boot": "b"}
        | {"names": [AWKWARD], "max_attempts": 4, "max_crashes": 5, "n": 6, "no": 7},
    ),
    "any name": (
        records.hello_line(Hello(C, "consumer", 1, 2, "b")),
        {"hello": C, "as": "consumer", "pid": 1, "start": 2, "boot": "b"}
        | {"names": None, "max_attempts": 3, "max_crashes": 3},
    ),
    "publish": (records.publish_head(IdRange(P, 1, 9), AWKWARD), {"publish": f"{P}-1..9", "name": AWKWARD}),
    "publish at": (records.publish_head(IdRange(P, 1, 1), "x", AT), {"publish": f"{P}-1", "name": "x", "at": AT}),
    "barrier": (records.barrier_line(S), {"barrier": S}),
    "assign": (
        records.assign_line(IdRange(P, 1, 9), C, 3, S, 4),
        {"assign": f"{P}-1..9", "to": C, "no": 3, "by": S, "req": 4},
    ),
    "assign at": (
        records.assign_line(IdRange(P, 1, 1), C, 3, S, 4, at=AT),
        {"assign": f"{P}-1", "to": C, "no": 3, "by": S, "req": 4, "at": AT},
    ),
    "done": (records.done_line(IdRange(P, 1, 9), 3, C, 4), {"done": f"{P}-1..9", "no": 3, "by": C, "req": 4}),
    "result": (
        records.done_result_lines([(f"{P}-1", b'{"x":"}"}')], 3, C, 4),
        {"done": f"{P}-1", "no": 3, "by": C, "req": 4, "result": {"x": "}"}},
    ),
    "failed": (
        records.failed_line(f"{P}-1", 3, C, 4, "dead", error_json("E", AWKWARD, "t")),
        {"failed": f"{P}-1", "no": 3, "by": C, "req": 4, "then": "dead"}
        | {"error": {"type": "E", "message": AWKWARD, "traceback": "t"}},
    ),
    "returned": (
        records.returned_line(IdRange(P, 1, 9), 3, C, 4),
        {"returned": f"{P}-1..9", "no": 3, "by": C, "req": 4},
    ),
    "retry": (
        records.steered_line(Verb.RETRY, [IdRange(P, 1, 9), IdRange(C, 3, 3)], None, scheduler=S, request=4),
        {"retry": [f"{P}-1..9", f"{C}-3"], "by": S, "req": 4},
    ),
    "cancel": (records.steered_line(Verb.CANCEL, [], None), {"cancel": []}),
    "purge": (records.steered_line(Verb.PURGE, [IdRange(P, 1, 2)], None), {"purge": [f"{P}-1..2"]}),
    "pause": (
        records.steered_line(Verb.PAUSE, (), AWKWARD, scheduler=S, request=4),
        {"pause": AWKWARD, "by": S, "req": 4},
    ),
    "resume": (records.steered_line(Verb.RESUME, (), None), {"resume": None}),
    "gone": (records.gone_line(C), {"gone": C}),
    "gone with a task": (records.gone_line(C, AWKWARD, f"{P}-1"), {"gone": C, "cause": AWKWARD, "task": f"{P}-1"}),
    "sessions": (
        records.sessions_line([records.session_row(Hello(P, "publisher", 1, 2, "b"), 9)], None, 0),
        {"sessions": [{"session": P, "as": "publisher", "pid": 1, "start": 2, "boot": "b", "n": 9}]}
        | {"barrier": None, "barrier_req": 0},
    ),
    "kept": (
        records.kept_line(
            IdRange(P, 1, 1), "done", {"failures": b"2", "result": b"[1]", "finished": b'"%b"' % AT.encode()}
        ),
        {"kept": f"{P}-1", "state": "done", "failures": 2, "result": [1], "finished": AT},
    ),
    "counts": (records.counts_line({"done": 123}), {"counts": {"done": 123}}),
}


@pytest.mark.parametrize(("line", "fields"), LINES.values(), ids=LINES)
def test_a_line_says_what_it_was_told(line, fields):
    assert parse_line(line) == fields
    assert next(iter(parse_line(line))) == next(iter(fields))
    assert line.count(b"\n") == 1


@given(st.lists(st.text() | st.lists(st.integers(-9, 9)), min_size=1, max_size=9))
def test_published_lines_are_a_head_and_the_very_payloads(values):
    payloads = [json.dumps(value).encode() for value in values]  # with spaces, which must stay
    ids = IdRange(P, 98, 97 + len(payloads))

    lines = records.publish_lines(ids, AWKWARD, payloads, AT).splitlines(keepends=True)

    assert lines[0] == records.publish_head(ids, AWKWARD, AT)
    assert [parse_line(line)["id"] for line in lines[1:]] == ids.ids()
    assert [spliced_part(line, b"data") for line in lines[1:]] == payloads
    assert {parse_line(line)["name"] for line in lines[1:]} == {AWKWARD}


def test_payloads_must_fit_their_ids():
    with pytest.raises(ValueError, match="2 payloads do not fit"):
        records.publish_lines(IdRange(P, 1, 3), "x", [b"1", b"2"])


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"1", b'"x"', b"1],[2", b'1}\n,{"gone":"x"', b"{}", b"2]]"])))
def test_no_payload_can_forge_a_record(payloads):
    try:
        check_payloads(payloads)
    except PayloadError:
        return
    if payloads:
        lines = records.publish_lines(IdRange(P, 1, len(payloads)), "x", payloads).splitlines(keepends=True)
        kinds = [next(iter(parse_line(line))) for line in lines]
        assert kinds == ["publish"] + ["id"] * len(payloads)


def test_the_head_is_read_without_its_splice():
    line = records.failed_line(f"{P}-1", 3, C, 4, "dead", b'{"type":,,,broken').rstrip(b"\n")

    assert head_of(line, b"error") == {"failed": f"{P}-1", "no": 3, "by": C, "req": 4, "then": "dead"}


def test_a_splice_is_found_by_the_first_of_its_keys():
    result = b'{"a":1,"result":2}'
    line = records.done_result_lines([(f"{P}-1", result)], 3, C, 4)

    assert spliced_part(line, b"result") == result
    assert spliced_part(records.done_line(IdRange(P, 1, 1), 3, C, 4), b"result") is None


def test_an_error_that_is_no_text_is_told_as_well_as_can_be():
    assert orjson.loads(error_json("E", "a\ud800b")) == {"type": "E", "message": "a?b", "traceback": ""}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"gone":"c7c7c7c7c7c7"}\n', "one line"),
        (b',{"gone":"c7c7c7c7c7c7"}', "one line"),
        (b',{"gone":\n"c7c7c7c7c7c7"}\n', "one line"),
        (b',{"gone":"c7c7c7c7c7c7"]}\n', "not JSON"),
        (b",{}\n", "named ''"),
        (b',{"vanished":1}\n', "named 'vanished'"),
        (b',{"gone":7}\n', "gone is 7"),
        (b',{"gone":"C7"}\n', "gone is 'C7'"),
        (b',{"publish":"k3v9x2m4q7ab-2..1","name":"x"}\n', "publish is"),
        (b',{"publish":"k3v9x2m4q7ab-1"}\n', "name is missing"),
        (b',{"done":"k3v9x2m4q7ab-1","no":1,"by":"c7c7c7c7c7c7","req":-1}\n', "req is -1"),
        (b',{"done":"k3v9x2m4q7ab-1","no":true,"by":"c7c7c7c7c7c7","req":1}\n', "no is True"),
        (b',{"sessions":[{}],"barrier":null,"barrier_req":0}\n', "sessions is"),
        (b',{"cancel":"k3v9x2m4q7ab-1"}\n', "cancel is"),
        (b',{"purge":["k3v9x2m4q7ab"]}\n', "purge is"),
        (b',{"pause":7}\n', "pause is 7"),
        (b',{"publish":"k3v9x2m4q7ab-1","name":"x","at":"2026-13-01T00:00:00.000Z"}\n', "at is '2026-13"),
        (b',{"kept":"k3v9x2m4q7ab-1","state":"lost"}\n', "state is 'lost'"),
        (b',{"kept":"k3v9x2m4q7ab-1","state":"done"}\n', "finished is missing"),
        (b',{"kept":"k3v9x2m4q7ab-1","state":"ready","failures":256}\n', "failures is 256"),
        (b',{"kept":"k3v9x2m4q7ab-1","state":"ready","errors":[{"type":"E"}]}\n', "errors is"),
        (b',{"counts":{"lost":1}}\n', "counts is"),
        (b',{"hello":"c7c7c7c7c7c7","as":"king","pid":1,"start":1,"boot":"b"}\n', "as is 'king'"),
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(line, reason):
    with pytest.raises(RecordError, match=reason):
        parse_line(line)

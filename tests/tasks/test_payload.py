"""Payloads: plain JSON arrives as it was sent, everything else is refused where it stands."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import pathlib
import uuid

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from actorq.errors import PayloadError
from actorq.tasks.payload import MAX_BYTES, MAX_DEPTH, check_payloads, check_value, encode_at_once, encode_payload
from tests.helpers import examples


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Row(dict):  # type: ignore[type-arg]
    pass


class Rows(list):  # type: ignore[type-arg]
    pass


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


Point = collections.namedtuple("Point", "x y")  # noqa: PYI024  # what users have


@dataclasses.dataclass
class Record:
    n: int = 1


def nested(depth, leaf=1):
    value = leaf
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


PLAIN = [
    None,
    True,
    0,
    -(1 << 63),
    (1 << 64) - 1,
    0.1,
    -0.0,
    1e308,
    5e-324,
    "",
    "null",
    "g12345\xf0\x7f null",
    "a\x00b\n\u2028\U0001f600",
    [],
    {},
    [None, [], {"": [{}]}],
    {"a b": 1, 'q"': 2, "\\": '\\"'},
    nested(MAX_DEPTH),
    ["[" * 100, "]" * 100, '\\"[' * 100],
    [{"n": n} for n in range(200)],
    "x" * (MAX_BYTES - 2),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_json_arrives_as_it_was_sent(value):
    encoded = encode_payload(value)

    assert orjson.loads(encoded) == value == json.loads(encoded)
    assert b"\n" not in encoded
    check_payloads([encoded])


def test_a_tuple_arrives_as_a_list():
    assert orjson.loads(encode_payload((1, ("a",)))) == [1, ["a"]]


REFUSED = [
    (math.nan, "nan"),
    (math.inf, "inf"),
    (-math.inf, "inf"),
    (1 << 64, "2^64"),
    (-(1 << 63) - 1, "2^63"),
    ("\ud800", "surrogate"),
    (b"x", "base64"),
    (bytearray(b"x"), "base64"),
    (memoryview(b"x"), "base64"),
    ({1, 2}, "list"),
    (frozenset(), "list"),
    (1j, "complex"),
    (..., "ellipsis"),
    (StopIteration, "type"),
    (object(), "object"),
    (range(3), "range"),
    (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "isoformat"),
    (dt.date(2026, 1, 1), "isoformat"),
    (dt.time(1), "isoformat"),
    (dt.timedelta(1), "total_seconds"),
    (uuid.UUID(int=1), "str(value)"),
    (decimal.Decimal(1), "str(value)"),
    (pathlib.Path("a"), "str(value)"),
    (Text("x"), "subclass of str"),
    (Number(1), "subclass of int"),
    (Real(1), "subclass of float"),
    (Row(a=1), "subclass of dict"),
    (Rows([1]), "subclass of list"),
    (collections.OrderedDict(a=1), "subclass of dict"),
    (Point(1, 2), "named tuple"),
    (Record(), "dataclasses.asdict"),
    (Record, "type"),
    (Colour.RED, ".value"),
    (Level.LOW, ".value"),
    (Word.YES, ".value"),
    (orjson.Fragment(b"1],[2"), "Fragment"),
    ({1: 2}, "str keys"),
    ({None: 2}, "str keys"),
    ({Text("a"): 2}, "str keys"),
    ({Word.YES: 2}, "str keys"),
    ({"\udfff": 2}, "surrogate"),
    (nested(MAX_DEPTH + 1), "64 deep"),
    (nested(300), "64 deep"),
    (nested(5000), "64 deep"),
    ("x" * (MAX_BYTES - 1), "bytes are more"),
    (["\n" * (MAX_BYTES // 2)], "bytes are more"),
]


@pytest.mark.parametrize(("value", "hint"), REFUSED, ids=[hint for _, hint in REFUSED])
def test_everything_else_is_refused_with_a_hint(value, hint):
    with pytest.raises(PayloadError) as error:
        encode_payload(value)
    assert hint in error.value.reason

    with pytest.raises(PayloadError) as error:
        encode_payload(["first", None, {"key": value}])
    assert hint in error.value.reason


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (math.nan, "$"),
        ({"a": [1, 2, {3}]}, "$.a[2]"),
        ([None, {"a b": (0, math.inf)}], "$[1]['a b'][1]"),
        ({"x": {1: 2}}, "$.x"),
        ({"x": {"\ud800": 2}}, "$.x['\\ud800']"),
    ],
)
def test_the_place_is_named(value, where):
    with pytest.raises(PayloadError) as error:
        encode_payload(value)

    assert error.value.where == where


def test_a_value_that_contains_itself_is_refused():
    loop: list[object] = []
    loop.append({"again": loop})

    with pytest.raises(PayloadError, match="containing itself"):
        encode_payload(loop)


def test_a_refusal_is_never_longer_than_a_few_lines():
    with pytest.raises(PayloadError) as error:
        encode_payload({"k" * 500_000: {"x" * 500_000: {1, 2}}})

    assert len(str(error.value)) < 1000


NASTY = st.sampled_from([value for value, hint in REFUSED if hint not in ("64 deep", "bytes are more")])
SCALARS = st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text() | NASTY
KEYS = st.text(max_size=5) | st.sampled_from(["null", "\ud800", Text("k"), 7])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def passes(check, value):
    try:
        check(value)
    except PayloadError:
        return False
    return True


@given(VALUES)
@settings(max_examples=examples(150), deadline=None)
@example([None, "g\0\0\0\0\0\0\xf0\x7f"])
def test_the_fast_way_accepts_what_the_slow_walk_accepts(value):
    assert passes(encode_payload, value) == passes(check_value, value)


@given(st.lists(VALUES | st.sampled_from(PLAIN), max_size=4), st.sampled_from([list, tuple]))
@settings(max_examples=examples(150), deadline=None)
def test_many_at_once_become_what_each_becomes_alone_or_are_left_to_be_looked_at_alone(values, kind):
    if all(passes(encode_payload, value) for value in values):
        alone = [encode_payload(value) for value in values]
        assert encode_at_once(kind(values)) in (alone, None)
    else:
        assert encode_at_once(kind(values)) is None


def test_the_usual_is_not_left():
    values = [*PLAIN[:10], {"a": [1, None, "null"], "long": "x" * 1000, "deep": nested(MAX_DEPTH - 1)}, "null", None]

    assert encode_at_once(values) == [encode_payload(value) for value in values]


@pytest.mark.parametrize(("value", "hint"), REFUSED, ids=[hint for _, hint in REFUSED])
def test_one_that_is_refused_is_found_among_many(value, hint):
    assert encode_at_once(["first", None, {"key": value}]) is None
    assert encode_at_once(("first", value, "last")) is None


@given(st.integers(60, 70), st.integers(0, 3), st.text('[]{}"\\', max_size=30), st.booleans())
def test_depth_is_counted_exactly(depth, width, noise, as_tuple):
    value: object = [noise, (noise, {noise: [noise]})]
    for _ in range(depth - 4):
        value = (value, *([noise] * width)) if as_tuple else {noise: value, noise + "x": [[]] * width}

    assert passes(encode_payload, value) == (depth <= MAX_DEPTH) == passes(check_value, value)


# ---------------------------------------------------------------------------------------------------------------
# The writer's check

HOSTILE = [
    b"",
    b" ",
    b"1],[2",
    b"[1",
    b"2]",
    b"[[1",
    b"2]]",
    b"1,2",
    b'"open',
    b'"a\nb"',
    b"1\n",
    b"\t1",
    b"[1,\r2]",
    b"NaN",
    b"1e999",
    b"-",
    b"01",
    b"{}}",
    b'{"a":1,}',
    b"// no",
    b'"\xff"',
    b'"\\ud800"',
    b"\xef\xbb\xbf1",
    b"\x00",
    b"1\x00",
    b"[" * 65 + b"]" * 65,
    b'{"k":' * 65 + b"1" + b"}" * 65,
    b"[" * 500_000 + b"]" * 500_000,
    b'"' + b"x" * MAX_BYTES + b'"',
]
GOOD = [b"1", b" 1 ", b"{}", b'"],["', b"[" * 64 + b"]" * 64, b'"\\"' + b"[" * 200 + b'"', b'{ "a" : [ 1 ] }']


@pytest.mark.parametrize("bad", HOSTILE, ids=lambda value: repr(value)[:30])
def test_what_may_not_be_spliced_is_refused_by_its_index(bad):
    with pytest.raises(PayloadError) as error:
        check_payloads([*GOOD, bad, *GOOD])

    assert error.value.index == len(GOOD)
    assert error.value.reason


def test_what_may_be_spliced_is_accepted():
    check_payloads([])
    check_payloads(GOOD)


def test_neighbours_cannot_make_up_for_each_other():
    with pytest.raises(PayloadError) as error:
        check_payloads([b"1],[2", b"[[1", b"2]]"])

    assert error.value.index == 0


@given(
    st.lists(
        st.sampled_from(HOSTILE[:-2] + GOOD) | st.binary(max_size=8) | st.text('[]{},:"1\n', max_size=8).map(str.encode)
    )
)
def test_many_are_accepted_if_and_only_if_each_is(values):
    each = [passes(lambda value: check_payloads([value]), value) for value in values]

    assert passes(check_payloads, values) == all(each)


@given(st.binary(max_size=12) | st.text('[]{},:"\\1 \n\t', max_size=12).map(str.encode))
def test_one_is_accepted_if_python_agrees(value):
    if passes(lambda value: check_payloads([value]), value):
        json.loads(value)
        assert not any(byte < 0x20 for byte in value)

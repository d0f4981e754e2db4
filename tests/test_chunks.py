"""How what is published in bulk is cut into requests."""

from __future__ import annotations

import enum
import math
import statistics
import time

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.publisher import CHUNK_BYTES, CHUNK_SECONDS, CHUNK_TASKS, chunked
from actorq.tasks.payload import encode_payload


class Color(enum.Enum):
    RED = 1


SIZES = st.lists(st.sampled_from([0, 1, 90, 130, 3000, CHUNK_BYTES - 10, CHUNK_BYTES, 100_000]) | st.integers(0, 700))


def everything(values):
    """Return all payloads, the error that ended them, and the chunks."""
    chunks = list(chunked(values))
    for chunk in chunks:
        assert len(chunk.payloads) <= CHUNK_TASKS
        assert len(chunk.payloads) < 2 or len(b"\n".join(chunk.payloads)) <= CHUNK_BYTES
    assert all(chunk.payloads for chunk in chunks[:-1])
    assert all(chunk.error is None for chunk in chunks[:-1])
    return [payload for chunk in chunks for payload in chunk.payloads], chunks[-1].error if chunks else None, chunks


@given(SIZES, st.sampled_from([list, tuple]))
def test_a_list_is_cut_like_a_stream_of_the_same_into_no_more_and_no_larger_pieces(sizes, kind):
    values = ["x" * size for size in sizes]

    payloads, error, _ = everything(kind(values))

    assert error is None
    assert payloads == [encode_payload(value) for value in values]
    assert payloads == everything(iter(values))[0]


@pytest.mark.parametrize("count", [1, 61, 62, 63, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("size", [1, 100, 2000])
def test_as_many_travel_together_as_fit(count, size):
    values = ["x" * size] * count

    _, _, chunks = everything(values)

    full = min(CHUNK_TASKS, CHUNK_BYTES // (size + 3))
    assert len(chunks) <= -(-count // max(1, full - 62)) + 1


@pytest.mark.parametrize("kind", [list, tuple, iter])
@pytest.mark.parametrize("index", [0, 1, 61, 62, 1000, 1999])
def test_the_first_that_is_refused_ends_the_stream_by_its_index_and_all_before_it_go_out(kind, index):
    values: list[object] = [{"n": n, "none": None} for n in range(2000)]
    values[index] = {"worse": [1, math.nan]}
    values[-1] = {2}

    payloads, error, _ = everything(kind(values))

    assert error.index == index
    assert error.where == ("$.worse[1]" if index < 1999 else "$")
    assert payloads == [encode_payload(value) for value in values[:index]]


def test_of_a_stream_each_is_encoded_before_the_next_is_asked_for():
    def same_one():
        value = {"n": 0}
        for n in range(300):
            value["n"] = n
            yield value

    payloads, _, _ = everything(same_one())

    assert payloads == [b'{"n":%d}' % n for n in range(300)]


def test_what_a_stream_changes_behind_an_item_hides_nothing_of_it():
    def same_one():
        value: dict[str, object] = {"n": 0}
        for n in range(300):
            value["n"] = Color.RED if n == 200 else n
            yield value
            value["n"] = n

    payloads, error, _ = everything(same_one())

    assert (error.index, error.where, len(payloads)) == (200, "$.n", 200)


def test_what_is_not_finite_is_named_as_it_was():
    def same_one():
        value = {"n": None, "x": 0.0}
        for n in range(300):
            value["x"] = math.inf if n == 200 else 0.5
            yield value
            value["x"] = 0.5

    payloads, error, _ = everything(same_one())

    assert (error.index, error.where, len(payloads)) == (200, "$.x", 200)
    assert "inf is not JSON" in str(error)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 61, 62, 63, 2000])
@pytest.mark.parametrize("size", [1, 700, 100_000])
def test_a_stream_is_asked_once_for_what_is_behind_its_last(count, size):
    class Terminal:
        asked = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.asked += 1
            if self.asked > count:
                raise StopIteration
            return "x" * size

    stream = Terminal()
    assert len(everything(stream)[0]) == count
    assert stream.asked == count + 1


@pytest.mark.parametrize("after", [0, 500])
def test_a_slow_stream_keeps_back_nothing_for_long(after):
    def slow():
        for n in range(after + 40):
            if n > after:
                time.sleep(0.002)
            yield time.monotonic()

    ages = []
    for chunk in chunked(slow()):
        now = time.monotonic()
        ages += [now - orjson.loads(payload) for payload in chunk.payloads]

    assert statistics.median(ages[after:]) < 4 * CHUNK_SECONDS


@pytest.mark.parametrize("quick", [0, 1, 62, 500])
def test_of_a_stream_that_becomes_slow_and_then_breaks_all_but_the_last_have_gone_out(quick):
    def stream():
        yield from range(quick)
        for n in range(5):
            time.sleep(1.5 * CHUNK_SECONDS)
            yield quick + n
        time.sleep(1.5 * CHUNK_SECONDS)
        raise KeyError("mine")

    out: list[bytes] = []
    with pytest.raises(KeyError, match="mine"):
        out.extend(payload for chunk in chunked(stream()) for payload in chunk.payloads)

    assert out == [b"%d" % n for n in range(quick + 4)]


@pytest.mark.parametrize("kind", [list, iter])
def test_who_takes_the_chunks_may_take_his_time(kind):
    values = ["x" * 100] * 3000
    sizes = []

    for chunk in chunked(kind(values)):
        sizes.append(len(chunk.payloads))
        time.sleep(1.5 * CHUNK_SECONDS)

    assert len(sizes) <= len(list(chunked(kind(values)))) + 1


def test_an_error_of_the_stream_itself_is_passed_on():
    def broken():
        yield from range(100)
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine"):
        list(chunked(broken()))


def test_a_list_that_grows_meanwhile_is_followed_to_its_end():
    values = ["x" * 1000] * 100
    chunks = chunked(values)

    taken = next(chunks).payloads
    values.append("more")

    for chunk in chunks:
        taken += chunk.payloads
    assert taken == [encode_payload(value) for value in values]

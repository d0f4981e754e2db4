"""How what is published in bulk is cut into requests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actorq.publisher import CHUNK_BYTES, CHUNK_TASKS, chunked
from actorq.tasks.payload import encode_payload

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


def test_a_list_that_grows_meanwhile_is_followed_to_its_end():
    values = ["x" * 1000] * 100
    chunks = chunked(values)

    taken = next(chunks).payloads
    values.append("more")

    for chunk in chunks:
        taken += chunk.payloads
    assert taken == [encode_payload(value) for value in values]

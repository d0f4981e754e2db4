"""FORMAT.md is the format: its example is a queue, and what it says of lengths and chains holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

import actorq.store
from actorq.store.format import (
    HEAD_LENGTH,
    MAX_NUMBER,
    OPENING,
    RECORD_LENGTH,
    Commit,
    Header,
    HeaderError,
    parse_commit,
    parse_head,
    render_header,
    resembles_commit,
    seal,
)
from actorq.store.records import parse_line
from actorq.store.verify import Verdict, verify
from tests.store.scenes import PATH, disk_of, lines_in, open_log

PAGE = (Path(actorq.store.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
EXAMPLE, COMPACTED = (block.encode() for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize(
    ("example", "counts"), [(EXAMPLE, {"ready": 2, "done": 1}), (COMPACTED, {"ready": 2, "done": 1})]
)
def test_the_examples_of_the_page_are_queues(example, counts):
    disk = disk_of(example)
    report = verify(PATH, filesystem=disk)
    assert (report.verdict, report.reason) == (Verdict.INTACT, "")
    assert {state: number for state, number in report.counts.items() if number} == counts
    log = open_log(disk)
    assert log.recovered is None
    log.write(b',{"barrier":"s3t4u5v6w7x2"}\n')
    log.close()
    assert verify(PATH, filesystem=disk).commit == 4
    json.loads(disk.read_bytes(PATH))


def test_the_checksums_can_be_computed_from_the_page_alone():
    opening, header, *lines = EXAMPLE.splitlines(keepends=True)
    assert opening == b"[\n"
    assert crc32(header[: header.index(b'"crc":"') + 7]) == int(json.loads(header)["crc"], 16)
    chain, batch, commits = int(json.loads(header)["chain"], 16), b"", 0
    for line in lines[:-1]:
        record = json.loads(line[1:])
        if "commit" in record:
            assert record["bytes"] == len(batch)
            chain = crc32(batch + line[: line.index(b'"crc":"') + 7], chain)
            assert record["crc"] == f"{chain:08x}"
            commits, batch = commits + 1, b""
        else:
            batch += line
    assert (commits, batch, lines[-1]) == (3, b"", b"]\n")


def test_the_checksums_of_pieces_can_be_computed_from_the_page_alone():
    _, header, *lines = COMPACTED.splitlines(keepends=True)
    chain, batch, pieces = crc32(header[: header.index(b'"pieces":') + 9]), b"", 0
    for line in lines[:-1]:
        if line.startswith(b',{"piece"'):
            chain = crc32(batch + line[: line.index(b'"crc":"') + 7], chain)
            assert json.loads(line[1:])["crc"] == f"{chain:08x}"
            pieces, batch = pieces + 1, b""
        else:
            batch += line
    assert pieces == json.loads(header)["pieces"] == 2
    assert json.loads(header)["chain"] == json.loads(EXAMPLE)[-1]["crc"]


def test_the_page_tells_every_record_and_the_right_lengths():
    told = set(re.findall(r'`\{"([a-z]+)"', PAGE))
    from actorq.store import records

    assert told >= set(records._SHAPES) - {"id"}
    assert '{"id":ID' in PAGE
    assert f"the header is {HEAD_LENGTH} bytes long" in PAGE
    assert f"A commit record is {RECORD_LENGTH} bytes long" in PAGE


def test_every_line_of_the_examples_is_a_record():
    for example in (EXAMPLE, COMPACTED):
        for line in example.splitlines(keepends=True)[2:-1]:
            if not line.startswith((b',{"commit"', b',{"piece"')):
                parse_line(line)


def test_a_prefix_of_the_example_is_the_queue_before():
    assert len(lines_in(disk_of(EXAMPLE))) == 3
    second = EXAMPLE.index(b',{"done"')
    assert len(lines_in(disk_of(EXAMPLE[:second] + b"]\n"))) == 2


numbers = st.integers(0, MAX_NUMBER)
crcs = st.integers(0, 2**32 - 1)
times = st.datetimes().map(
    lambda moment: moment.replace(year=2000 + moment.year % 100).isoformat(timespec="milliseconds") + "Z"
)


@given(st.integers(0, 2**128 - 1), numbers, numbers, numbers, crcs, times)
def test_a_header_is_read_as_it_was_written(queue, generation, pieces, commit, chain, created):
    header = Header(f"{queue:032x}", generation, pieces, commit, chain, created)
    line = render_header(header)
    assert parse_head(OPENING + line) == header
    assert len(OPENING + line) == HEAD_LENGTH
    assert json.loads(line)["generation"] == generation


@given(st.binary(max_size=300), crcs, st.integers(1, MAX_NUMBER), numbers, numbers, times, st.booleans())
def test_a_commit_record_is_read_as_it_was_written(lines, chain, number, epoch, synced, at, piece):
    record, crc = seal(lines, chain, number=number, epoch=epoch, synced=synced, at=at, piece=piece)
    assert parse_commit(record, piece=piece) == Commit(number, len(lines), epoch, synced, at, crc)
    assert parse_commit(b"x" + record, 1, piece=piece) is not None
    assert parse_commit(record, piece=not piece) is None
    assert len(record) == RECORD_LENGTH
    assert json.loads(record[1:])["piece" if piece else "commit"] == number


def test_only_the_exact_text_is_a_commit_record():
    record, _ = seal(b"x", 1, number=7, epoch=1, synced=6, at="2026-11-23T18:00:00.000Z")
    for offset in range(len(record)):
        for bit in range(8):
            changed = bytearray(record)
            changed[offset] ^= 1 << bit
            commit = parse_commit(bytes(changed))
            # What still is one says something else, or its checksum does not fit any more.
            assert commit is None or commit != parse_commit(record)
            assert resembles_commit(bytes(changed))
        assert parse_commit(record[:offset]) is None
    for other in (
        record.replace(b"           7", b"000000000007"),
        record.replace(b"           7", b"          +7"),
        record.replace(b"           7", b"7           "),
        record.replace(b"           7", b"          7 "),
        record.replace(b'"crc":"', b'"crc": "'),
        record.upper(),
    ):
        assert parse_commit(other) is None


def test_no_line_of_the_example_resembles_a_commit_record_but_commit_records():
    for example in (EXAMPLE, COMPACTED):
        for line in example.splitlines(keepends=True):
            assert resembles_commit(line) == (b'{"commit":' in line or b'{"piece":' in line)


def test_a_number_that_does_not_fit_is_an_error_not_a_longer_record():
    with pytest.raises(OverflowError):
        seal(b"", 0, number=MAX_NUMBER + 1, epoch=1, synced=0, at="2026-11-23T18:00:00.000Z")


@given(st.binary(max_size=400))
def test_no_bytes_make_the_header_raise_anything_else(data):
    with pytest.raises(HeaderError):
        parse_head(data)

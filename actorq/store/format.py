"""The two fixed lines of Queue.json: its header and its commit record. FORMAT.md tells the whole format.

    [
    {"actorq":1,"queue":"<32 hex>","generation":           1, ... ,"crc":"9a3f01bc"}
    ,{...}                                                     lines of a batch
    ,{"commit":           1,"bytes":         334, ... ,"crc":"1b2c3d4e"}
    ]

Both have one length each, whatever they say: numbers are padded with spaces on the left. So the header can be patched
in place before its file gets its name, and the record before another one is found by subtraction.

What is parsed here is exact. A line is taken for a commit record only if rendering it again would give the very same
bytes; everything looser is for `resembles_commit`, which serves the decision whether damage may be cut (recovery.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple, override
from zlib import crc32

VERSION = 1
NUMBER_WIDTH = 12
# Twelve digits: at 5,000 commits a second they last for six years, ten would be used up after three weeks.
MAX_NUMBER = 10**NUMBER_WIDTH - 1

OPENING = b"[\n"
CLOSING = b"]"
FILLER = b"\n"
COMMIT_MARK = b',{"commit":'
PIECE_MARK = b',{"piece":'


class Header(NamedTuple):
    """The second line. ``commit`` and ``chain`` are the last commit before this file and its CRC."""

    queue: str
    generation: int
    pieces: int
    commit: int
    chain: int
    created: str


class Commit(NamedTuple):
    """What a commit record says: of a batch of changes, or of a piece of the snapshot that opens a compacted file."""

    number: int
    bytes: int
    epoch: int
    synced: int
    at: str
    crc: int


class HeaderError(ValueError):
    """The first two lines are not those of a queue of this version. ``is_damage``: they were, but a bit has changed."""

    def __init__(self, reason: str, *, is_damage: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_damage = is_damage

    @override
    def __str__(self) -> str:
        return self.reason


# ---------------------------------------------------------------------------------------------------------------
# Header


def render_header(header: Header) -> bytes:
    """Return the header's line."""
    unsigned = (
        f'{{"actorq":{VERSION},"queue":"{header.queue}","generation":{header.generation:>{NUMBER_WIDTH}}'
        f',"pieces":{header.pieces:>{NUMBER_WIDTH}},"commit":{header.commit:>{NUMBER_WIDTH}}'
        f',"chain":"{header.chain:08x}","created":"{header.created}","crc":"'
    ).encode("ascii")
    return b'%b%08x"}\n' % (unsigned, crc32(unsigned))


def parse_head(data: bytes) -> Header:
    """Return the header of a file that begins with these bytes, or raise HeaderError."""
    match = _HEAD.match(data)
    if match is None:
        later = re.match(rb'\[\n\{"actorq":([0-9]+),', data)
        if later is not None and int(later[1]) != VERSION:
            raise HeaderError(f"it has format version {int(later[1])}, this is version {VERSION}; use a later actorq")
        raise HeaderError(_what_instead(data), is_damage=_resembles_head(data))
    queue, generation, pieces, commit, chain, created, crc = match.groups()
    if crc32(data[len(OPENING) : match.start(7)]) != int(crc, 16):
        raise HeaderError("the header's checksum is wrong", is_damage=True)
    return Header(
        queue.decode("ascii"), int(generation), int(pieces), int(commit), int(chain, 16), created.decode("ascii")
    )


def snapshot_chain(header: Header) -> int:
    """Return the start value of the CRC of the first piece: of the header up to and with ``"pieces":``.

    The count itself stays out because it is known, and patched in, only after the last piece.
    """
    line = render_header(header)
    return crc32(line[: line.index(b'"pieces":') + len(b'"pieces":')])


# ---------------------------------------------------------------------------------------------------------------
# Commit record


# One letter less in the key, one space more: the record of a piece has the same length.
_UNSIGNED = b'"bytes":%%%dd,"epoch":%%%dd,"synced":%%%dd,"at":"%%b","crc":"' % ((NUMBER_WIDTH,) * 3)
_UNSIGNED_COMMIT = b',{"commit":%%%dd,' % NUMBER_WIDTH + _UNSIGNED
_UNSIGNED_PIECE = b',{"piece":%%%dd,' % (NUMBER_WIDTH + 1) + _UNSIGNED


def seal(
    lines: bytes, chain: int, *, number: int, epoch: int, synced: int, at: str, piece: bool = False
) -> tuple[bytes, int]:
    """Return the commit record behind these lines, and its CRC, which the next batch is chained to."""
    if not 0 < number <= MAX_NUMBER:
        raise OverflowError(f"commit number {number} does not fit into {NUMBER_WIDTH} digits")
    layout = _UNSIGNED_PIECE if piece else _UNSIGNED_COMMIT
    unsigned = layout % (number, len(lines), epoch, synced, at.encode("ascii"))
    crc = crc32(unsigned, crc32(lines, chain))
    return b'%b%08x"}\n' % (unsigned, crc), crc


def parse_commit(data: bytes, at: int = 0, *, piece: bool = False) -> Commit | None:
    """Return the commit record that stands at this place of the data, or None if none does, exactly."""
    match = (_PIECE if piece else _COMMIT).match(data, at)
    if match is None:
        return None
    number, length, epoch, synced, when, crc = match.groups()
    return Commit(int(number), int(length), int(epoch), int(synced), when.decode("ascii"), int(crc, 16))


def batch_crc(lines: bytes, record: bytes, chain: int) -> int:
    """Return the CRC that the record of these lines must carry."""
    return crc32(record[:CRC_AT], crc32(lines, chain))


def resembles_commit(line: bytes) -> bool:
    """Say whether this is a commit record in which some bytes have changed. Takes the line with its line feed."""
    if len(line) != RECORD_LENGTH:
        return False
    wrong = sum(line[at] != byte for at, byte in _LITERALS)
    return wrong * 4 <= len(_LITERALS)


# ---------------------------------------------------------------------------------------------------------------
# Shapes

# Right-aligned in its width, no leading zero: the one way in which `render` and `seal` write a number.
_NUMBER = rb"(?=[ 0-9]{%d},)( *(?:0|[1-9][0-9]*))" % NUMBER_WIDTH
_WIDE_NUMBER = rb"(?=[ 0-9]{%d},)( +(?:0|[1-9][0-9]*))" % (NUMBER_WIDTH + 1)
_TIME = rb'"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z)"'
_CRC = rb'"([0-9a-f]{8})"'
_HEAD = re.compile(
    rb'\[\n\{"actorq":%d,"queue":"([0-9a-f]{32})","generation":%b,"pieces":%b,"commit":%b,"chain":%b,"created":%b,"crc":%b\}\n'
    % (VERSION, _NUMBER, _NUMBER, _NUMBER, _CRC, _TIME, _CRC)
)
_REST = rb',"bytes":%b,"epoch":%b,"synced":%b,"at":%b,"crc":%b\}\n' % (_NUMBER, _NUMBER, _NUMBER, _TIME, _CRC)
_COMMIT = re.compile(rb',\{"commit":%b%b' % (_NUMBER, _REST))
_PIECE = re.compile(rb',\{"piece":%b%b' % (_WIDE_NUMBER, _REST))

_EPOCH_0 = "1970-01-01T00:00:00.000Z"
_SAMPLE_HEADER = render_header(Header("0" * 32, 1, 0, 0, 0, _EPOCH_0))
_SAMPLE = seal(b"", 0, number=1, epoch=1, synced=0, at=_EPOCH_0)[0]
_VARIABLE = re.compile(rb'( *[0-9]+(?=,))|("[^"]*"(?=[,}]))')

HEAD_LENGTH = len(OPENING) + len(_SAMPLE_HEADER)
RECORD_LENGTH = len(_SAMPLE)
CRC_AT = _SAMPLE.rindex(b'"crc":"') + len(b'"crc":"')


def _literals_of(sample: bytes) -> list[tuple[int, int]]:
    values = {at for match in _VARIABLE.finditer(sample) for at in range(*match.span())}
    return [(at, byte) for at, byte in enumerate(sample) if at not in values]


_LITERALS = _literals_of(_SAMPLE)
_HEAD_LITERALS = _literals_of(OPENING + _SAMPLE_HEADER)


def _resembles_head(data: bytes) -> bool:
    if len(data) < HEAD_LENGTH:
        return False
    wrong = sum(data[at] != byte for at, byte in _HEAD_LITERALS)
    return wrong * 8 <= len(_HEAD_LITERALS)


def _what_instead(data: bytes) -> str:
    if not data:
        return "it is empty (a queue is never created empty: something has truncated it)"
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "it begins with a byte order mark: an editor has saved it"
    if data.startswith(b"[\r\n"):
        return "its lines end in CR LF: an editor or a transfer has changed it"
    if data.lstrip()[:1] == b"[" and b'"actorq"' in data[: HEAD_LENGTH * 2]:
        if len(data) < HEAD_LENGTH:
            return "it ends inside its header"
        return "its header is not laid out as actorq writes it: it was reformatted or edited"
    return "it was not written by actorq"

"""Which single bit of a message has changed, told by its CRC-32.

The checksum is linear: of two messages that differ in one bit, the checksums differ by a pattern that depends on
nothing but how far that bit is from the end. There are 2^32 patterns, so in messages of a usual length all single bits
have different ones, and hardly any larger damage looks like one of them: one in 500 for a message of a megabyte.
"""

from __future__ import annotations

from zlib import crc32

MAX_BYTES = 8 << 20
"""Longer messages are not searched: it takes about a second for each MiB."""


def find_flipped_bit(message: bytes, chain: int, crc_text: bytes) -> tuple[int, int] | None:
    """Return offset and number of the bit that must be flipped to make the checksum right, or None if none does."""
    if len(message) > MAX_BYTES or len(crc_text) != 8 or crc_text.strip(b"0123456789abcdef"):
        return None
    difference = crc32(message, chain) ^ int(crc_text, 16)
    if not difference:
        return None
    # Step the difference back over zero bytes, from the end of the message to its start. Where one bit of a byte has
    # changed, what is left there is the pattern of that bit in a last byte.
    patterns = {_TABLE[1 << bit]: bit for bit in range(8)}
    for offset in range(len(message) - 1, -1, -1):
        bit = patterns.get(difference)
        if bit is not None:
            return offset, bit
        top = _BY_TOP[difference >> 24]
        difference = ((difference ^ _TABLE[top]) << 8 & 0xFFFFFFFF) | top
    return None


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value


# The table of CRC-32, and which of its entries has a given top byte: no two have the same.
_TABLE = [_entry(value) for value in range(256)]
_BY_TOP = {entry >> 24: value for value, entry in enumerate(_TABLE)}

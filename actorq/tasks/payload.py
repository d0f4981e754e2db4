"""What a payload may be, and the bytes it becomes.

dict with str keys, list, tuple (arrives as list), str, int from -2^63 to 2^64-1, finite float, bool, None; at most
1 MiB encoded and 64 levels deep. Everything else is refused with a hint. Nothing is changed in silence: orjson alone
would turn NaN into null and an Enum into its value.

The fast path never looks at the value in Python. Two encoders of the standard kind, both in C, refuse different
things, and what both accept is plain JSON but for NaN and infinity:

    orjson.dumps     refuses  bytes, set, complex, int out of range, lone surrogates, keys that are not str
    marshal.dumps    refuses  every subclass, Enum, UUID, dataclass; shows each float as b"g" and eight bytes

Only when something is refused, or could be wrong, a slow and exact walk looks for the place to name.

Bytes are searched by `find`: `in` tries first whether what it looks for is a number, 0.3 us instead of 0.06.
"""

from __future__ import annotations

import enum
import marshal
import math
import re
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING

import orjson

from actorq.errors import PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES = 1 << 20
MAX_DEPTH = 64

_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
# Version 2 writes floats in binary and no back-references: the pattern below sees each of them.
_MARSHAL_VERSION = 2
# A float in marshal's form whose exponent is all ones: NaN or infinity. Bytes of a string may look like one, too.
_find_non_finite = re.compile(rb"g.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL).search
# Shorter than this, no JSON text nests deeper than allowed.
_SHORTEST_TOO_DEEP = 2 * (MAX_DEPTH + 1)
_drop_escapes = re.compile(rb"\\.", re.DOTALL).sub
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_RAW_WHITE_SPACE = (b"\n", b"\r", b"\t")


def encode_payload(value: object) -> bytes:
    """Return the value as JSON, exactly. Raises PayloadError naming the place and what to do."""
    try:
        encoded = orjson.dumps(value, None, _OPTIONS)
        marshalled = marshal.dumps(value, _MARSHAL_VERSION)  # type: ignore[arg-type]  # its refusal is the point
    except (TypeError, ValueError) as error:
        check_value(value)
        raise PayloadError(f"cannot be encoded: {error}") from error
    # An Enum whose class also exports a buffer would pass marshal; nothing that people write is both.
    if encoded.find(b"null") >= 0 and _find_non_finite(marshalled):
        check_value(value)
    if len(encoded) >= _SHORTEST_TOO_DEEP:
        if len(encoded) > MAX_BYTES:
            raise PayloadError(_too_long(len(encoded)))
        if _is_too_deep(encoded):
            check_value(value)
    return encoded


def encode_at_once(values: list[object] | tuple[object, ...]) -> list[bytes] | None:
    """Do as `encode_payload` with each, in half of the time; None if something is, or could be, wrong with one."""
    try:
        encoded = list(map(orjson.dumps, values, repeat(None), repeat(_OPTIONS)))
        marshalled = marshal.dumps(values, _MARSHAL_VERSION)  # type: ignore[arg-type]  # as above
    except (TypeError, ValueError):
        return None
    if b"".join(encoded).find(b"null") >= 0 and _find_non_finite(marshalled):
        return None
    for text in encoded:
        if len(text) >= _SHORTEST_TOO_DEEP and (len(text) > MAX_BYTES or _is_too_deep(text)):
            return None
    return encoded


def check_payloads(encoded: Sequence[bytes]) -> None:
    """Check that each is one complete JSON value that may be spliced into a line of the queue.

    The writer's check: what reaches its mailbox comes from another process. Raises PayloadError with the index of the
    first that is not. One orjson pass each; parsing them joined into one text is no faster, and a value such as
    ``1],[2`` could be balanced by its neighbours.
    """
    try:
        deque(map(orjson.loads, encoded), 0)
    except ValueError:
        raise _first_complaint(encoded) from None
    if not encoded:
        return
    joined = b"".join(encoded)
    # Inside strings orjson has refused raw control bytes; outside, JSON allows these. A line feed ends a record.
    if joined.find(b"\n") >= 0 or joined.find(b"\r") >= 0 or joined.find(b"\t") >= 0:
        raise _first_complaint(encoded)
    longest = max(map(len, encoded))
    if longest > MAX_BYTES:
        raise _first_complaint(encoded)
    if longest >= _SHORTEST_TOO_DEEP and any(map(_is_too_deep, encoded)):
        raise _first_complaint(encoded)


def check_value(value: object) -> None:
    """Walk the value and raise PayloadError at the first place that is not plain JSON. Slow and exact."""
    _check(value, "$", 0)


def _is_too_deep(encoded: bytes) -> bool:
    """Tell whether a JSON text nests deeper than allowed, without a look at each of its values."""
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_DEPTH:
        return False
    if encoded.find(b"\\") >= 0:
        encoded = _drop_escapes(b"", encoded)
    # Now every quote begins or ends a string. Without its text a string is two quotes, unless it holds brackets: then
    # an odd number of quotes is left before each of those, and every second part lies inside of a string.
    brackets = encoded.translate(_SQUARE, _NO_STRUCTURE).replace(b'""', b"")
    if brackets.find(b'"') >= 0:
        brackets = b"".join(brackets.split(b'"')[::2])
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # takes away the innermost level, everywhere at once
        if not brackets:
            return False
    return True


def _first_complaint(encoded: Sequence[bytes]) -> PayloadError:
    """Return the error for the first that is refused; the caller knows that there is one."""
    for index, text in enumerate(encoded):
        reason = _complaint(text)
        if reason:
            return PayloadError(reason, index=index)
    raise AssertionError("every payload is valid on its own")


def _complaint(text: bytes) -> str:
    try:
        orjson.loads(text)
    except ValueError as error:
        return f"not one complete JSON value: {error}"
    if any(byte in text for byte in _RAW_WHITE_SPACE):
        return "holds a raw control byte; encode it again"
    if len(text) > MAX_BYTES:
        return _too_long(len(text))
    if _is_too_deep(text):
        return _TOO_DEEP
    return ""


def _too_long(size: int) -> str:
    return f"{size:,} bytes are more than {MAX_BYTES:,}; store the data elsewhere and send its path"


_TOO_DEEP = f"nested more than {MAX_DEPTH} deep, or containing itself"


def _check(value: object, where: str, depth: int) -> None:
    # `type(x) is`, never isinstance: a subclass carries a meaning that JSON would drop.
    kind = type(value)
    if value is None or kind is bool:
        return
    if kind is str:
        _check_text(value, where)  # type: ignore[arg-type]  # kind is str
    elif kind is int:
        if not -(1 << 63) <= value < 1 << 64:  # type: ignore[operator]  # kind is int
            raise _refusal("an int must be from -2^63 to 2^64-1; send it as str", where)
    elif kind is float:
        if not math.isfinite(value):  # type: ignore[arg-type]  # kind is float
            raise _refusal(f"{value} is not JSON; send None or a str", where)
    elif kind is dict or kind is list or kind is tuple:
        if depth == MAX_DEPTH:
            raise _refusal(_TOO_DEEP, where)
        _check_children(value, where, depth + 1)  # type: ignore[arg-type]  # kind is a container
    else:
        raise _refusal(_hint(value), where)


def _check_children(value: dict[object, object] | list[object] | tuple[object, ...], where: str, depth: int) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            if type(key) is not str:
                raise _refusal(f"key {key!r:.100} is {type(key).__name__}, not str; use str keys", where)
            step = f".{key}" if key.isidentifier() else f"[{key!r:.100}]"
            _check_text(key, where + step)
            _check(child, where + step, depth)
    else:
        for index, child in enumerate(value):
            _check(child, f"{where}[{index}]", depth)


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refusal(
            f"a lone surrogate (character {error.start}) is not text; decode with errors='replace'", where
        ) from None


def _refusal(reason: str, where: str) -> PayloadError:
    if len(where) > _LONGEST_PLACE:
        half = _LONGEST_PLACE // 2
        where = f"{where[:half]} ... {where[-half:]}"
    return PayloadError(reason, where)


_LONGEST_PLACE = 400

_HINTS = {
    "bytes": "send it as str: .decode() or base64",
    "bytearray": "send it as str: .decode() or base64",
    "memoryview": "send it as str: base64",
    "set": "send a list: sorted(value)",
    "frozenset": "send a list: sorted(value)",
    "datetime": "send text: .isoformat()",
    "date": "send text: .isoformat()",
    "time": "send text: .isoformat()",
    "timedelta": "send a number: .total_seconds()",
    "UUID": "send text: str(value)",
    "Decimal": "send text: str(value)",
    "PosixPath": "send text: str(value)",
    "complex": "send [value.real, value.imag]",
    "ndarray": "send a list: .tolist()",
}
_PLAIN = (str, int, float, dict, list, tuple)


def _hint(value: object) -> str:
    """Say what the value is and what to send in its place."""
    kind = type(value)
    if isinstance(value, enum.Enum):
        return f"{kind.__name__} is an Enum; send .value or .name"
    if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "item") and kind.__name__ != "ndarray":
        return f"{kind.__name__} is not JSON; send a plain number: .item()"
    if hasattr(kind, "__dataclass_fields__"):
        return f"{kind.__name__} is a dataclass; send dataclasses.asdict(value)"
    if hasattr(kind, "_asdict"):
        return f"{kind.__name__} is a named tuple; send ._asdict() or tuple(value)"
    for plain in _PLAIN:
        if isinstance(value, plain):
            return f"{kind.__name__} is a subclass of {plain.__name__}; send {plain.__name__}(value)"
    hint = _HINTS.get(kind.__name__, "send what JSON knows: dict, list, str, int, float, bool, None")
    return f"{kind.__name__} is not JSON; {hint}"

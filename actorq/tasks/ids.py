"""The name of a task: who published it, and as which one.

``k3v9x2m4q7ab-17`` is the 17th task of the session ``k3v9x2m4q7ab``. A session is one incarnation of a publisher or a
consumer; it numbers its requests 1, 2, 3 ... and an id is made of the two, so the publisher knows its ids before
anybody has answered, and finding a task is arithmetic instead of a look-up among a million ids.

A range, ``k3v9x2m4q7ab-1..200``, names tasks of one session that follow each other.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple, Self, override

SESSION_LENGTH = 12
# 15 digits: every number stays exact in a JSON reader that knows only doubles.
_NUMBER = "[1-9][0-9]{0,14}"
_SESSION = f"[a-z0-9]{{{SESSION_LENGTH}}}"
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"

_match_session = re.compile(_SESSION).fullmatch
_match_id = re.compile(f"({_SESSION})-({_NUMBER})").fullmatch
_match_range = re.compile(rf"{_SESSION}-{_NUMBER}(?:\.\.{_NUMBER})?").fullmatch


def new_session() -> str:
    """Return a session that no other process has: 60 random bits in base 32."""
    bits = int.from_bytes(os.urandom(8))
    return "".join([_ALPHABET[bits >> shift & 31] for shift in range(0, 5 * SESSION_LENGTH, 5)])


def check_session(text: str) -> str:
    """Return the text if it is a session. Raises ValueError when it is not."""
    if _match_session(text) is None:
        raise ValueError(f"{text!r:.100} is not a session; one looks like k3v9x2m4q7ab")
    return text


def task_id(session: str, number: int) -> str:
    """Return the id of the task that the session published under this number."""
    return f"{session}-{number}"


def parse_task_id(text: str) -> tuple[str, int]:
    """Return session and number of an id. Raises ValueError when the text is not one."""
    match = _match_id(text)
    if match is None:
        raise ValueError(f"{text!r:.100} is not a task id; one looks like k3v9x2m4q7ab-17")
    session, number = match.groups()
    return session, int(number)


def parse_range(text: str) -> tuple[str, int, int]:
    """Return session, first and last number of a range. Raises ValueError when the text is not one."""
    match = _match_range(text)
    if match is None:
        raise ValueError(f"{text!r:.100} is not a range of task ids; one looks like k3v9x2m4q7ab-1..17")
    return split_range(text)


def split_range(text: str) -> tuple[str, int, int]:
    """Do the same for a text that was checked before it was written down: half the cost, for the fold."""
    session, _, numbers = text.partition("-")
    first, dots, last = numbers.partition("..")
    try:
        low = int(first)
        if not dots:
            return session, low, low
        high = int(last)
    except ValueError:
        raise ValueError(f"{text!r:.100} is not a range of task ids") from None
    if high <= low:
        raise ValueError(f"{text!r:.100} is not a range of task ids: it ends before it begins")
    return session, low, high


class IdRange(NamedTuple):
    """Tasks of one session that follow each other: ``first`` to ``last``, both included."""

    session: str
    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the range that `str` wrote. Raises ValueError when the text is none."""
        return cls(*parse_range(text))

    @property
    def count(self) -> int:  # type: ignore[override]  # in place of the method of tuples
        """How many tasks it names."""
        return self.last - self.first + 1

    def covers(self, other: IdRange) -> bool:
        """Tell whether it names all that the other one names."""
        return self.session == other.session and self.first <= other.first and other.last <= self.last

    def ids(self) -> list[str]:
        """Return every id, in order."""
        head = f"{self.session}-"
        return [f"{head}{number}" for number in range(self.first, self.last + 1)]

    @override
    def __str__(self) -> str:
        if self.first == self.last:
            return f"{self.session}-{self.first}"
        return f"{self.session}-{self.first}..{self.last}"

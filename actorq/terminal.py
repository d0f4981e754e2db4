"""What people see: numbers and times in words, aligned tables, one live line, colours only where they are wanted.

On a terminal the last line may be live: `status` replaces it, and `line` writes above it. Into a pipe the same calls
write plain lines, a status at most once a second.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from enum import StrEnum
from itertools import zip_longest
from typing import TYPE_CHECKING, TextIO

import orjson

from actorq.clock import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actorq.clock import Clock

STATUS_SECONDS = 1.0
"""How often a status becomes a line of its own when nobody watches it live."""

CLEAR_LINE = "\r\x1b[K"


class Style(StrEnum):
    """How a word may stand out on a terminal."""

    BOLD = "\x1b[1m"
    DIM = "\x1b[2m"
    RED = "\x1b[31m"
    GREEN = "\x1b[32m"
    YELLOW = "\x1b[33m"


RESET = "\x1b[0m"


class Terminal:
    """A stream for people. Any thread may write to it."""

    def __init__(
        self,
        stream: TextIO,
        environ: Mapping[str, str] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        quiet: bool = False,
    ) -> None:
        """Write to the stream; a quiet terminal writes nothing (somebody else prints JSON there)."""
        environ = os.environ if environ is None else environ
        self._stream = stream
        self._clock = clock
        self._is_quiet = quiet
        self.is_live = not quiet and stream.isatty() and environ.get("TERM") != "dumb"
        self.is_coloured = self.is_live and not environ.get("NO_COLOR")
        self._lock = threading.Lock()
        self._status = ""
        self._next_status = clock.now() + STATUS_SECONDS
        self._page_size = shutil.get_terminal_size()
        self._page_lines = 0

    @property
    def width(self) -> int | None:
        """How many characters a line may have, or None where nobody watches and all of it is wanted."""
        return shutil.get_terminal_size().columns if self.is_live else None

    def line(self, text: str = "") -> None:
        """Write a line."""
        self._write(f"{text}\n")

    def json(self, value: object) -> None:
        """Write a value as one line of JSON, also when this terminal is quiet."""
        self.data(json_text(value) + "\n")

    def data(self, text: str) -> None:
        """Write what programs read as it is, also when this terminal is quiet."""
        with self._lock:
            self._put(text)

    def status(self, text: str) -> None:
        """Say how things stand; the next status takes its place."""
        if self.is_live:
            width = (self.width or 0) - 1
            with self._lock:
                self._status = text[:width]
            self._write("")
        elif self._clock.now() >= self._next_status:
            self._next_status = self._clock.now() + STATUS_SECONDS
            self._write(f"{text}\n")

    def end_status(self) -> None:
        """Take the live line away."""
        with self._lock:
            was_there, self._status = bool(self._status), ""
        if was_there:
            self._write("")

    def table(self, rows: Sequence[Sequence[str]], align: str, indent: str = "") -> None:
        """Write rows in columns; `align` has one of `<` and `>` for each column."""
        for row in aligned(rows, align):
            self.line(indent + row)

    def page(self, lines: Sequence[str]) -> None:
        """Write lines in the place of the last page, as many as there is room for; into a pipe, block after block."""
        if not self.is_live:
            self._write("".join(f"{line}\n" for line in [*lines, ""]))
            return
        size = shutil.get_terminal_size()
        shown = [cut_styled(line, size.columns) for line in lines[: size.lines - 1]]
        # After a change of size nobody knows where the last page begins.
        back = f"\x1b[{self._page_lines}F" if self._page_lines else ""
        begin = back if size == self._page_size else "\x1b[H\x1b[2J"
        self._page_size, self._page_lines = size, len(shown)
        self._write(begin + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")

    def styled(self, text: str, style: Style) -> str:
        """Return the text so that it stands out, if this terminal shows colours."""
        return f"{style}{text}{RESET}" if self.is_coloured else text

    def _write(self, text: str) -> None:
        if self._is_quiet:
            return
        with self._lock:
            self._put(f"{CLEAR_LINE}{text}{self._status}" if self.is_live else text)

    def _put(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # or it would look like a full disk of the queue
            raise OSError(error.errno, error.strerror, "what was to be said found no way out") from error


def aligned(rows: Sequence[Sequence[str]], align: str, *, least: Sequence[int] = ()) -> list[str]:
    """Return one string for each row, with the columns below each other and no narrower than the least widths."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(len(align))]
    widths = [max(pair) for pair in zip_longest(widths, least, fillvalue=0)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


def cut(text: str, width: int | None) -> str:
    """Return the text, or as much of it as fits."""
    if width is None or len(text) <= width:
        return text
    return f"{text[: max(0, width - 3)]}..."


def cut_styled(text: str, width: int) -> str:
    """Do as `cut` to a text with styles in it, which take no room."""
    parts = _styles.split(text)
    if sum(map(len, parts[::2])) <= width:
        return text
    room = max(0, width - 3)
    for at in range(0, len(parts), 2):
        parts[at] = parts[at][:room]
        room -= len(parts[at])
    return f"{''.join(parts)}..."


_styles = re.compile(r"(\x1b\[[0-9;]*m)")


def plain(text: str) -> str:
    """Return the text with everything escaped that would not simply print: it may come from a stranger's file."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def json_text(value: object) -> str:
    """Return the value as one line of JSON in which everything simply prints: the same to programs, safe to look at."""
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # the name of a file that is no UTF-8: its bytes are lone surrogates
        text = json.dumps(value, separators=(",", ":"))
    return printable_json(text)


def printable_json(text: str) -> str:
    """Return JSON on one line with everything escaped that would not simply print."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Return `1 task`, `2,000 tasks`, `no tasks`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + 's'}" if number else f"no {plural or noun + 's'}"


def bytes_in_words(size: float) -> str:
    """Return a size for people, in powers of ten: `999 B`, `1.5 kB`, `20 MB`."""
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 999.5:
            return f"{size:.1f} {unit}" if size < 9.95 else f"{size:.0f} {unit}"
    return f"{size / 1000:.1f} TB"


def seconds_in_words(seconds: float) -> str:
    """Return a duration for people: `0.4 ms`, `12 ms`, `3.2 s`, `4 minutes`, `5 hours`, `6 days`."""
    if seconds < 0.00995:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    for noun, length, limit in (("minute", 60, 90), ("hour", 3600, 36), ("day", 86400, 1 << 62)):
        number = round(seconds / length)
        if number < limit:
            return count_of(number, noun)
    raise AssertionError("days have no limit")


def ago(seconds: float) -> str:
    """Return how long ago something was; clocks may disagree by a little."""
    return "just now" if seconds < 1 else f"{seconds_in_words(seconds)} ago"


def counts_in_words(counts: dict[str, int]) -> str:
    """Return `3 done, 1 ready`; states that nobody is in are left out."""
    return ", ".join(f"{number:,} {state}" for state, number in counts.items() if number) or "no tasks"

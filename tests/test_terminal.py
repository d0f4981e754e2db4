"""Words for people, and where they are written."""

from __future__ import annotations

import io

import pytest

from actorq.terminal import Style, Terminal, ago, aligned, bytes_in_words, count_of, cut, plain, seconds_in_words


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class FakeClock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.time = 100.0

    def now(self):
        return self.time

    def wall(self):
        return self.time


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0004, "0.4 ms"),
        (0.0123, "12 ms"),
        (0.9994, "999 ms"),
        (0.9999, "1.0 s"),
        (3.21, "3.2 s"),
        (59.99, "1 minute"),
        (240, "4 minutes"),
        (89 * 60, "89 minutes"),
        (90 * 60, "2 hours"),
        (35 * 3600, "35 hours"),
        (6 * 86400, "6 days"),
    ],
)
def test_durations_are_told_in_one_fitting_unit(seconds, words):
    assert seconds_in_words(seconds) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9999, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (20_300_000, "20 MB"),
        (7e12, "7.0 TB"),
    ],
)
def test_sizes_are_told_in_powers_of_ten(size, words):
    assert bytes_in_words(size) == words


def test_counts_have_their_plural_and_their_thousands():
    assert [count_of(0, "task"), count_of(1, "task"), count_of(12_000, "task"), count_of(2, "crash", "crashes")] == [
        "no tasks",
        "1 task",
        "12,000 tasks",
        "2 crashes",
    ]


def test_a_clock_that_runs_ahead_is_just_now():
    assert ago(-5) == "just now"
    assert ago(7200) == "2 hours ago"


def test_columns_stand_below_each_other():
    assert aligned([("name", "ready"), ("thumbnail", "7")], "<>") == ["name       ready", "thumbnail      7"]


def test_what_does_not_fit_ends_in_dots():
    assert [cut("abcdef", width) for width in (None, 6, 5, 2)] == ["abcdef", "abcdef", "ab...", "..."]


def test_nothing_from_a_strangers_file_moves_the_cursor():
    assert plain("a\x1b[2Jb\n\udcff") == r"a\x1b[2Jb\n\udcff"
    assert plain("grün 漢字") == "grün 漢字"


def test_colours_are_for_terminals_only_and_never_with_no_color():
    assert Terminal(Screen(), {}).styled("x", Style.RED) == "\x1b[31mx\x1b[0m"
    assert Terminal(Screen(), {"NO_COLOR": "1"}).styled("x", Style.RED) == "x"
    assert Terminal(Screen(), {"TERM": "dumb"}).styled("x", Style.RED) == "x"
    assert Terminal(io.StringIO(), {}).styled("x", Style.RED) == "x"


def test_on_a_terminal_lines_go_above_the_status():
    screen = Screen()
    terminal = Terminal(screen, {})

    terminal.status("half")
    terminal.line("news")
    terminal.end_status()
    terminal.line("end")

    clear = "\r\x1b[K"
    assert screen.getvalue() == f"{clear}half{clear}news\nhalf{clear}{clear}end\n"


def test_in_a_pipe_the_status_is_a_plain_line_once_a_second():
    stream, clock = io.StringIO(), FakeClock()
    terminal = Terminal(stream, {}, clock)

    for tenth in range(25):
        clock.time = 100 + tenth / 10
        terminal.status(f"at {tenth}")
    terminal.end_status()

    assert stream.getvalue() == "at 10\nat 20\n"


def test_a_page_takes_the_place_of_the_last_one_and_is_no_larger_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "4")
    screen = Screen()
    terminal = Terminal(screen, {})

    terminal.page(["one", "\x1b[2m0123456789ab\x1b[0m", "three", "four"])
    terminal.page(["1"])
    terminal.page(["1", "2"])
    monkeypatch.setenv("COLUMNS", "20")
    terminal.page(["1"])

    clear, end = "\r\x1b[K", "\x1b[K\n"
    assert screen.getvalue().split("\x1b[J")[:-1] == [
        f"{clear}one{end}\x1b[2m0123456\x1b[0m...{end}three{end}",
        f"{clear}\x1b[3F1{end}",
        f"{clear}\x1b[1F1{end}2{end}",
        f"{clear}\x1b[H\x1b[2J1{end}",
    ]


def test_pages_in_a_pipe_follow_each_other():
    stream = io.StringIO()
    terminal = Terminal(stream, {})

    terminal.page(["a" * 200])
    terminal.page(["b"])

    assert stream.getvalue() == f"{'a' * 200}\n\nb\n\n"


def test_a_quiet_terminal_writes_nothing_but_json():
    screen = Screen()
    terminal = Terminal(screen, {}, quiet=True)

    terminal.status("half")
    terminal.line("news")
    terminal.end_status()
    terminal.json({"done": 1})

    assert screen.getvalue() == '{"done":1}\n'

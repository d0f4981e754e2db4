"""The table, and the same as data."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.catalogue import ACTORQ, FLOOR, JSON_FLOOR

if TYPE_CHECKING:
    from collections.abc import Iterator

type Results = dict[str, dict[str, dict[str, list[float]]]]
"""Row -> who -> figure -> one value for each round."""


class Line(NamedTuple):
    """One figure of one contestant."""

    row: str
    who: str
    figure: str
    median: float
    low: float
    high: float
    against_floor: float | None
    """For rates the share of the floor's rate; for everything else how many times the floor's."""
    against_actorq: float | None
    """How many times as good actorq is: above 1 it is ahead."""


def is_rate(figure: str) -> bool:
    """Tell whether more is better."""
    return figure.endswith("/s")


def lines_of(results: Results) -> Iterator[Line]:
    """Yield a line for each figure."""
    for row, contestants in results.items():
        medians = {
            who: {figure: statistics.median(values) for figure, values in figures.items()}
            for who, figures in contestants.items()
        }
        for who, figures in contestants.items():
            for figure, values in figures.items():
                median = medians[who][figure]
                floor = medians.get(FLOOR, {}).get(figure) if who != FLOOR else None
                ours = medians.get(ACTORQ, {}).get(figure) if is_peer(who) else None
                yield Line(
                    row, who, figure, median, min(values), max(values),
                    against_floor=median / floor if floor else None,
                    against_actorq=None if ours is None else ours / median if is_rate(figure) else median / ours,
                )  # fmt: skip


def is_peer(who: str) -> bool:
    """Tell whether it is neither actorq nor a floor of it."""
    return not who.startswith(ACTORQ) and who not in (FLOOR, JSON_FLOOR)


def table(results: Results) -> str:
    """Return the table for people."""
    rows = [("row", "who", "figure", "median", "min .. max", "floor", "actorq ahead")]
    last = ""
    for line in lines_of(results):
        rows.append((
            line.row if line.row != last else "",
            line.who,
            line.figure,
            number(line.median),
            f"{number(line.low)} .. {number(line.high)}",
            "" if line.against_floor is None else share(line),
            "" if line.against_actorq is None else f"{line.against_actorq:.1f} x",
        ))  # fmt: skip
        last = line.row
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (3, 4, 5, 6) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def share(line: Line) -> str:
    """Return how a figure compares with its floor."""
    assert line.against_floor is not None
    return f"{line.against_floor:.0%}" if is_rate(line.figure) else f"{line.against_floor:.2f} x"


def number(value: float) -> str:
    """Return three digits that count, at least."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"

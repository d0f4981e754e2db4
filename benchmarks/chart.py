"""A picture of the table: rates and waits, actorq, its floor, and the peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.catalogue import ACTORQ
from benchmarks.contest import BenchmarkError
from benchmarks.report import Line, is_peer, is_rate, lines_of, number

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.report import Results

PANELS = (
    ("publish_one", "p50 ms"),
    ("publish_many", "published/s"),
    ("drain", "tasks/s"),
    ("end_to_end", "tasks/s"),
    ("latency", "100/s p50 ms"),
)
OURS, FLOORS, THEIRS = "#1f6f8b", "#c9c9c9", "#d98e48"


def draw(results: Results, path: Path) -> None:
    """Draw the chart into a file, whose name ends in .svg or .png. Raises BenchmarkError without matplotlib."""
    try:
        from matplotlib import rc_context  # noqa: PLC0415  # in a group of its own
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise BenchmarkError("the chart needs matplotlib: uv sync --group bench") from None
    lines = list(lines_of(results))
    panels = [
        (row, figure) for row, figure in PANELS if any((line.row, line.figure) == (row, figure) for line in lines)
    ]
    if not panels:
        raise BenchmarkError("none of the rows that were measured is in the chart")
    drawing = Figure(figsize=(8, 0.6 + 1.9 * len(panels)), layout="constrained")
    for axes, (row, figure) in zip(drawing.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
        shown = [line for line in lines if (line.row, line.figure) == (row, figure)]
        shown.sort(key=lambda line: line.median, reverse=not is_rate(figure))
        bars = axes.barh([line.who for line in shown], [line.median for line in shown], color=list(map(color, shown)))
        axes.bar_label(bars, labels=[number(line.median) for line in shown], padding=3, fontsize=8)
        axes.set_title(f"{row}: {figure} ({'more' if is_rate(figure) else 'less'} is better)", fontsize=9, loc="left")
        if is_rate(figure):
            axes.set_xscale("log")  # they differ by four powers of ten
        axes.margins(x=0.12)  # room for the labels
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    with rc_context({"svg.fonttype": "none"}):  # as text, not as outlines: a fifth of the size
        drawing.savefig(path)


def color(line: Line) -> str:
    """Return the colour of a bar."""
    if line.who.startswith(ACTORQ):
        return OURS
    return THEIRS if is_peer(line.who) else FLOORS

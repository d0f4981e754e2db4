"""How much goes through a queue, counted on the way."""

from __future__ import annotations

from actorq.store import records
from actorq.store.gauge import MOST_RANGES, Gauge, percentile
from tests.store.log_on_paper import C, P, Paper, S, hello, ids
from tests.store.test_fold import ERROR, publish

BEGIN = records.hello_line(hello(P)) + records.hello_line(hello(C)) + records.barrier_line(S)


def test_what_went_through_since_the_last_look_and_how_long_it_took():
    paper, gauge = Paper(), Gauge()

    def write(lines, second, *, is_news=True):
        gauge.take_up(paper.write(lines, at=f"2026-11-23T18:00:{second:02}.000Z"), is_news=is_news)

    write(BEGIN + publish(1, 4), 1)
    write(records.assign_line(ids(1, 4), C, 1, S, 1), 3)
    first = gauge.take_flow()
    write(records.done_line(ids(1, 2), 1, C, 1), 8)
    write(records.failed_line(f"{P}-3", 1, C, 2, "ready", ERROR), 8)
    write(records.gone_line(C, "killed", f"{P}-4"), 9)
    second = gauge.take_flow()
    write(publish(5, 9), 10, is_news=False)

    assert (first.published, first.done, first.failed, first.waits) == (4, 0, 0, [])
    assert (second.published, second.done, second.failed) == (0, 2, 2)
    assert (second.waits, second.runs) == ([(2.0, 2)], [(5.0, 2)])
    assert gauge.take_flow() == (0, 0, 0, [], [])
    assert gauge.epochs == [(1, "2026-11-23T18:00:01.000Z")]


def test_of_very_many_only_some_are_measured_but_all_are_counted():
    paper, gauge = Paper(), Gauge()
    number = 3 * MOST_RANGES
    gauge.take_up(paper.write(BEGIN, publish(1, number), records.assign_line(ids(1, number), C, 1, S, 1)), is_news=True)
    lines = records.done_result_lines([(f"{P}-{n}", b"1") for n in range(1, number + 1)], 1, C, 1)
    gauge.take_up(paper.write(lines), is_news=True)

    flow = gauge.take_flow()

    assert flow.done == number
    assert MOST_RANGES // 4 < len(flow.runs) <= MOST_RANGES


def test_a_percentile_counts_each_task():
    assert percentile([(1.0, 98), (5.0, 1), (9.0, 1)], 0.5) == 1.0
    assert percentile([(9.0, 1), (5.0, 1), (1.0, 98)], 0.99) == 5.0
    assert percentile([], 0.5) is None

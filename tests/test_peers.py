"""The benchmarks' peers, without their packages: who only wants the figures of actorq has none of them."""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING

import pytest

from benchmarks import peers
from benchmarks.contest import QUICK, BenchmarkError, Contestant
from benchmarks.peers import PEERS, common

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS = {"publish_one", "publish_8", "publish_many", "drain", "end_to_end", "latency", "ask", "tell", "spawn"}


@pytest.fixture(params=PEERS, ids=lambda peer: peer.name)
def peer(request):
    return request.param


def test_a_peer_that_is_not_installed_says_in_one_line_what_to_do(peer: Contestant, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    monkeypatch.setattr(peers, "which", lambda program: None)

    missing = peer.missing()

    assert missing is not None
    assert missing.startswith("uv sync --group bench")
    assert "\n" not in missing


def test_a_server_that_is_not_on_the_path_is_named(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: True)
    monkeypatch.setattr(peers, "which", lambda program: None)

    assert {peer.missing() for peer in PEERS} == {None, "a redis-server on the PATH", "a beanstalkd on the PATH"}


def test_a_peer_has_rows_that_others_have_and_settings_in_one_line(peer: Contestant):
    assert peer.rows
    assert peer.rows.keys() <= ROWS
    assert "\n" not in peer.settings


def test_names_of_peers_differ():
    assert len({peer.name for peer in PEERS}) == len(PEERS)


def test_no_package_of_a_peer_is_imported_before_it_is_measured():
    packages = "persistqueue huey litequeue diskcache redis rq dramatiq greenstalk pykka thespian xoscar"
    program = f"import benchmarks.peers, sys; print(*sys.modules.keys() & set('{packages}'.split()))"

    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert found.split() == []


class OneTaskLess(common.TakingQueue):
    """Acknowledges every publish, and keeps all but the first."""

    def __init__(self, address: str = "") -> None:
        self.tasks: list[common.Task] = []
        self.lost: common.Task | None = None

    def publish(self, task: common.Task) -> None:
        if self.lost is None:
            self.lost = task
        else:
            self.tasks.append(task)

    def publish_many(self, tasks: Sequence[common.Task]) -> None:
        for task in tasks:
            self.publish(task)

    def take(self):
        return [(None, self.tasks.pop(0))] if self.tasks else ()

    def ack(self, receipts: Sequence[object]) -> None:
        pass

    def size(self) -> int:
        return len(self.tasks)


def test_who_loses_a_task_has_no_figure(tmp_path):
    with pytest.raises(BenchmarkError, match="201 tasks were acknowledged, and 200 are there"):
        deque(common.publish_one(OneTaskLess, tmp_path, QUICK))


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0, 1], "of 3 tasks 2 were run, 2 times in all"), ([0, 1, 2, 1], "of 3 tasks 3 were run, 4 times in all")],
)
def test_who_runs_a_task_never_or_twice_has_no_figure(numbers, text):
    report = common.Report([(number, 0.0) for number in numbers], 0.0)

    with pytest.raises(BenchmarkError, match=text):
        common._require_each_once(OneTaskLess(), [report], 3)

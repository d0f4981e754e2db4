from __future__ import annotations

import json

import pytest

from actorq.store.compaction import compact
from actorq.store.filesystem import REAL
from actorq.store.format import RECORD_LENGTH
from actorq.store.locks import WriterLock
from actorq.store.log_reader import LogReader
from actorq.store.verify import Verdict, verify
from tests.store.scenes import BOOT, PATH, end_of_commits, open_log
from tests.store.test_compaction import LATER, a_life


@pytest.fixture
def path(tmp_path):
    path = tmp_path / PATH
    a_life(REAL, path).close()
    return path


def edit(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_an_intact_queue(path):
    content = path.read_bytes()
    report = verify(path)
    assert report.is_ok
    assert (report.verdict, report.next_step, report.reason) == (Verdict.INTACT, "nothing to do", "")
    assert (report.generation, report.commit, report.pieces, report.size) == (1, 5, 0, len(content))
    assert report.records == sum(batch.lines.count(b"\n") for batch in LogReader(path).batches())
    assert report.counts == {"ready": 2, "scheduled": 0, "running": 1, "done": 3, "dead": 0, "cancelled": 0}
    assert path.read_bytes() == content


def test_a_compacted_queue(path):
    counts = verify(path).counts
    compact(path, boot_id=BOOT, pid=1, keep_done=1)
    report = verify(path)
    assert (report.verdict, report.generation, report.commit, report.pieces) == (Verdict.INTACT, 2, 5, 2)
    assert report.counts == counts


def test_a_torn_end_is_no_damage(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + LATER)
    report = verify(path, boot_id=BOOT)
    assert report.is_ok
    assert report.verdict is Verdict.TORN
    assert f"{len(LATER) - 1} bytes of commit 6 at byte {len(whole) - 2}" in report.reason
    assert "next start cuts" in report.next_step


def test_a_commit_under_way_is_no_tear(path):
    path.write_bytes(path.read_bytes()[:-2] + LATER)
    with WriterLock(path).acquire():
        report = verify(path)
    assert (report.verdict, report.reason) == (Verdict.INTACT, "a commit was under way while it was read")


def test_a_damaged_last_commit_is_damage_although_a_reader_does_not_see_it(path):
    edit(path, b'"epoch":           1,"synced":           4', b'"epoch":           1,"synced":           5')
    report = verify(path, boot_id=BOOT)
    assert report.verdict is Verdict.DAMAGED
    assert report.damages[0].commit == 5


def test_damage_says_where_how_much_is_behind_it_and_the_way_out(path):
    edit(path, b'"to":"%b"' % b"consumer2222", b'"to":"consumer2223"')
    report = verify(path)
    assert not report.is_ok
    assert (report.verdict, report.commit, report.offset) == (Verdict.DAMAGED, 1, report.good_bytes)
    assert report.damages[0].commit == 2
    # The batch right behind the damage cannot be told from the damaged one; those behind that can.
    assert report.commits_behind == 3
    assert report.reason.startswith(f"commit 2 at byte {report.offset}: ")
    assert "3 commits behind it are whole" in report.reason

    assert report.next_step.endswith(f": actorq repair {path}")


def test_several_damages_are_all_told(path):
    edit(path, b'"to":"%b"' % b"consumer2222", b'"to":"consumer2223"')
    log_end = end_of_commits(path.read_bytes())
    content = bytearray(path.read_bytes())
    content[log_end - RECORD_LENGTH - 5] ^= 1
    path.write_bytes(content)
    report = verify(path)
    assert [damage.commit for damage in report.damages] == [2]
    assert report.commits_behind == 2


def test_a_record_that_checks_but_says_nonsense_is_found(path):
    log = open_log(path=path)
    log.write(b',{"nonsense":1}\n')
    log.write(b',{"done":"publisher222-1","no":"one","by":"consumer2222","req":9}\n')
    log.close()
    report = verify(path)
    assert report.verdict is Verdict.DAMAGED
    assert report.damages[0].commit == 6
    assert "nonsense" in report.reason
    content = path.read_bytes()
    assert content[report.offset :].startswith(b',{"nonsense"')


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"{}", "not written by actorq"), (b"[1]\n", "not written by actorq")]
)
def test_what_is_no_queue(path, content, reason):
    path.write_bytes(content)
    report = verify(path)
    assert not report.is_ok
    assert report.verdict is Verdict.UNREADABLE
    assert reason in report.reason


def test_a_damaged_header(path):
    edit(path, b'"created":"2', b'"created":"3')
    report = verify(path)
    assert (report.verdict, report.offset) == (Verdict.DAMAGED, 0)
    assert "actorq repair" in report.next_step


def test_no_change_of_one_bit_makes_it_raise_or_say_intact(path):
    content = path.read_bytes()
    end = end_of_commits(content)
    for offset in range(0, end, 3):
        changed = bytearray(content)
        changed[offset] ^= 1 << offset % 7
        path.write_bytes(changed)
        report = verify(path, boot_id=BOOT)
        assert not report.is_ok, offset
        assert path.read_bytes() == changed


def test_a_report_is_plain_values(path):
    report = verify(path)
    assert json.loads(json.dumps(report.counts)) == report.counts

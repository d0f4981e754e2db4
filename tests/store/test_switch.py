"""A writer goes over to a compacted file in the middle of its work; readers of the old file read on in the new one."""

from __future__ import annotations

import errno
import itertools

import pytest

from actorq.errors import CompactionError, QueueReplacedError, SyncFailedError
from actorq.store import compaction, records, switch
from actorq.store.compaction import prepare
from actorq.store.filesystem import REAL
from actorq.store.fold import QueueState
from actorq.store.log_reader import LogReader
from actorq.store.spliced_log import Refolding, SplicedLog
from actorq.store.verify import verify
from actorq.testing import CrashingFilesystem, Stopped
from tests.store.log_on_paper import P, ids
from tests.store.naive_fold import view_of
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, killed_at, open_log
from tests.store.test_compaction import a_life, queue_on


def one_more(number):
    return records.publish_lines(ids(number), "later", [b"%d" % number])


def offered(disk, path=PATH, keep_done=None, meanwhile=lambda: None, generation=1):
    """Return the offer of a compacted file; `meanwhile` is called at each step."""
    steps = prepare(path, generation, keep_done, filesystem=disk)
    try:
        while True:
            next(steps)
            meanwhile()
    except StopIteration as end:
        return end.value


def test_the_new_file_has_the_same_queue_and_the_writer_goes_on_in_it():
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    log.write(one_more(7))
    before = queue_on(disk)

    new = switch.switch(log, offer)

    assert queue_on(disk) == before
    assert (new.header.generation, new.epoch, new.commit, new.synced) == (2, 1, 6, 6)
    new.write(one_more(8))
    new.sync()
    new.check_file()
    assert list(queue_on(disk)[0])[-2:] == [f"{P}-7", f"{P}-8"]
    new.close()
    assert disk.names() == [PATH]
    assert open_log(disk).epoch == 2


def test_finished_tasks_leave_and_the_reserve_stands_behind_the_bracket(tmp_path):
    path = tmp_path / PATH
    a_life(REAL, path).close()
    log = open_log(REAL, path)
    log._reserve = 5000
    log._largest_step = 3000
    log.write(one_more(7))

    new = switch.switch(log, offered(REAL, path, keep_done=0))

    assert queue_on(REAL, path)[1] == {"ready": 3, "scheduled": 0, "running": 1, "done": 3, "dead": 0, "cancelled": 0}
    assert path.stat().st_size == new.size >= new.position.offset + 1 + 5000
    assert path.stat().st_mode & 0o777 == 0o600
    new.close()
    assert str(verify(path, boot_id=BOOT).verdict) == "intact"


def test_commits_that_come_all_the_while_are_all_in_it():
    disk = CrashingFilesystem()
    log = a_life(disk)
    numbers = itertools.count(7)

    offer = offered(disk, meanwhile=lambda: log.write(one_more(next(numbers))))
    log.write(one_more(next(numbers)))
    before, last = queue_on(disk), log.commit
    new = switch.switch(log, offer)

    assert (queue_on(disk), new.commit) == (before, last)
    assert next(numbers) > 12


def test_the_next_writer_finds_out_at_the_end_of_the_file_who_wrote_it():
    disk = CrashingFilesystem()
    new = switch.switch(a_life(disk), offered(disk))
    assert [batch.lines[:13] for batch in new.tail()] == [b',{"sessions":']
    new.write(one_more(7))
    new.forget()
    torn = disk.read_bytes(PATH)[:-2] + b',{"publish":'
    disk.write_bytes(PATH, torn)

    next_log = open_log(disk)

    assert next_log.header.generation == 2  # mended in place: it knows that the machine has not restarted
    assert next_log.recovered is not None


def test_a_power_cut_or_kill_at_any_call_of_both_leaves_every_synced_commit_in_the_old_file_or_the_new_one():
    calls, generations = 0, set()
    while True:
        disk = CrashingFilesystem()
        log = a_life(disk)
        synced = [queue_on(disk)]
        disk.fail_call(len(disk.calls) + calls, Stopped(), taken=100)
        try:
            offer = offered(disk)
            for number in (7, 8):
                log.write(one_more(number))
                log.sync()
                synced.append(queue_on(disk))
                if number == 7:
                    log = switch.switch(log, offer)
            break
        except Stopped:
            pass
        found = [disk.after_kill(), *disk.crash_states(limit=20, seed=calls)]
        for left in found:
            open_log(left, boot_id=NEXT_BOOT).close()
            generations.add(LogReader(PATH, filesystem=left).generation)
            assert queue_on(left) in [synced[-1], *with_one_more(synced[-1])]
        calls += 1
    assert generations >= {1, 2}
    assert calls > 20


def with_one_more(queue):
    """Return the queues that may be there instead: with the task that was just being written."""
    tasks, _ = queue
    number = len(tasks) + 1
    disk = CrashingFilesystem()
    log = a_life(disk)
    for each in range(7, number + 1):
        log.write(one_more(each))
    more, counts_of_more = queue_on(disk)
    # Times differ from disk to disk: only which tasks there are, and how many.
    return [Like(more, counts_of_more)] if number <= 8 else []


class Like:
    """Equal to a queue with the same tasks and counts, whatever the times."""

    def __init__(self, tasks, counts):
        self.seen = list(tasks), counts

    def __eq__(self, other):
        return (list(other[0]), other[1]) == self.seen

    def __hash__(self):
        return hash(self.seen[0][-1])


PLACES = {
    "compaction.begun": 1, "compaction.piece": 1, "new_file.taken_over": 1, "switch.copied": 1, "new_file.syncing": 1,
    "new_file.synced": 1, "new_file.replacing": 1, "new_file.named": 2, "new_file.settled": 2,
}  # fmt: skip


@pytest.mark.parametrize(("place", "generation"), PLACES.items())
def test_whoever_is_killed_at_a_place_leaves_the_whole_queue_in_the_old_file_or_the_new(place, generation):
    disk = CrashingFilesystem()
    log = a_life(disk)
    log.write(one_more(7))
    log.sync()
    before = queue_on(disk)
    with killed_at(disk, place):
        switch.switch(log, offered(disk))

    left = disk.after_kill()
    open_log(left).close()
    assert LogReader(PATH, filesystem=left).generation == generation
    for state in [left, *disk.crash_states(limit=12)]:
        open_log(state, boot_id=NEXT_BOOT).close()
        assert queue_on(state) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_call_of_the_switch_leaves_the_old_log_at_work_or_a_mark(code):
    calls, errors, marks = 0, 0, 0
    while True:
        disk = CrashingFilesystem()
        log = a_life(disk)
        offer = offered(disk)
        log.write(one_more(7))
        log.sync()
        before = queue_on(disk)
        disk.fail_call(len(disk.calls) + calls, code, taken=10)
        try:
            switch.switch(log, offer)
            break
        except SyncFailedError:  # it has the name, and the disk may not know
            marks += 1
            with pytest.raises(SyncFailedError):
                log.write(one_more(8))
            open_log(disk).close()
        except OSError:
            errors += 1
            log.write(one_more(8))
            log.sync()
            log.close()
            before[0][f"{P}-8"] = queue_on(disk)[0][f"{P}-8"]
        assert list(queue_on(disk)[0]) == list(before[0])
        left = set(disk.names()) - {PATH}
        assert not left or all(name.endswith(".offer") for name in left)
        calls += 1
    assert errors > 6
    assert marks


def test_an_error_at_any_call_of_the_one_who_writes_it_leaves_the_queue_alone():
    calls = 0
    while True:
        disk = CrashingFilesystem()
        log = a_life(disk)
        before = disk.read_bytes(PATH)
        disk.fail_call(len(disk.calls) + calls, errno.ENOSPC, taken=10)
        try:
            offered(disk)
            break
        except OSError:
            assert (disk.names(), disk.read_bytes(PATH)) == ([PATH], before)
        calls += 1
    log.close()
    assert calls > 8


REFUSALS = {
    "was made of generation 2": lambda offer: offer._replace(generation=2),
    "should be 99999": lambda offer: offer._replace(size=99999),
    "behind the old file": lambda offer: offer._replace(end=99999),
    "commit 4 does not end there": lambda offer: offer._replace(commit=4, end=offer.end),
    "does not end there": lambda offer: offer._replace(end=offer.end - 1),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_an_offer_that_is_not_what_it_says_is_refused_and_removed(reason):
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    if "commit 4" in reason:
        log.write(one_more(7))
        offer = offered(disk)._replace(commit=7)
        reason = "commit 7 does not end there"
    else:
        offer = REFUSALS[reason](offer)

    with pytest.raises(CompactionError, match=reason):
        switch.switch(log, offer)

    assert [name for name in disk.names() if name != PATH] == []
    log.write(one_more(8))
    log.close()


def test_a_file_to_which_nothing_was_committed_since_it_was_compacted_can_be_compacted_again():
    disk = CrashingFilesystem()
    log = switch.switch(a_life(disk), offered(disk))
    before = queue_on(disk)
    log = switch.switch(log, offered(disk, generation=2))
    assert (log.header.generation, queue_on(disk)) == (3, before)
    log.write(one_more(7))
    log.close()


def test_a_file_that_does_not_end_as_the_log_does_is_refused():
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    content = bytearray(disk.read_bytes(offer.name))
    content[-3] ^= 1
    disk.write_bytes(offer.name, bytes(content))
    with pytest.raises(CompactionError, match="does not end with commit 5"):
        switch.switch(log, offer)
    log.close()


def test_an_offer_of_which_nothing_is_there_or_that_is_no_queue_is_refused():
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    disk.write_bytes(offer.name, b"[\n" + b"x" * 400)
    with pytest.raises(CompactionError):
        switch.switch(log, offer)
    with pytest.raises(FileNotFoundError):
        switch.switch(log, offer)
    with pytest.raises(ValueError, match="not the name"):
        switch.switch(log, offer._replace(name="../Queue.json"))
    log.close()


def test_what_would_take_long_to_copy_is_not_copied(monkeypatch):
    monkeypatch.setattr(switch, "MAX_REST", 100)
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    log.write(one_more(7))
    with pytest.raises(CompactionError, match="were committed since"):
        switch.switch(log, offer)
    log.close()


def test_a_queue_that_outruns_the_copying_is_not_compacted(monkeypatch):
    monkeypatch.setattr(compaction, "CLOSE_ENOUGH", 100)
    disk = CrashingFilesystem()
    log = a_life(disk)
    numbers = itertools.count(7)
    with pytest.raises(CompactionError, match="too busy"):
        offered(disk, meanwhile=lambda: log.write(one_more(next(numbers))))
    assert disk.names() == [PATH]
    log.close()


def test_a_queue_that_outruns_the_copying_within_one_round_is_not_compacted_either(monkeypatch):
    monkeypatch.setattr(compaction, "PIECE_BYTES", 1)
    monkeypatch.setattr(compaction, "MAX_ROUNDS", 1)
    disk = CrashingFilesystem()
    log = a_life(disk)
    numbers = itertools.count(7)
    with pytest.raises(CompactionError, match="too busy"):
        offered(disk, meanwhile=lambda: [log.write(one_more(next(numbers))) for _ in range(2)])
    assert disk.names() == [PATH]
    log.close()


@pytest.mark.parametrize("looks", range(1, 5))
def test_where_the_disk_fills_up_meanwhile_it_ends_before_others_find_no_room(monkeypatch, looks):
    monkeypatch.setattr(compaction, "PIECE_BYTES", 1)
    disk = CrashingFilesystem()
    log = a_life(disk)
    rooms = itertools.chain([1 << 30] * looks, itertools.repeat(10))
    monkeypatch.setattr(disk, "room", lambda path: next(rooms))
    numbers = iter(range(7, 100))
    with pytest.raises(CompactionError, match="no room"):
        offered(disk, meanwhile=lambda: log.write(one_more(next(numbers))))
    assert disk.names() == [PATH]
    log.close()


def test_without_room_on_the_disk_nothing_is_begun(monkeypatch):
    disk = CrashingFilesystem()
    log = a_life(disk)
    monkeypatch.setattr(disk, "room", lambda path: 100)
    with pytest.raises(CompactionError, match="no room"):
        offered(disk)
    log.close()


def test_a_file_that_has_been_replaced_meanwhile_is_not_replaced_once_more():
    disk = CrashingFilesystem()
    log = a_life(disk)
    offer = offered(disk)
    content = disk.read_bytes(PATH)
    disk.rename(PATH, "aside")
    disk.write_bytes(PATH, content)
    with pytest.raises(QueueReplacedError):
        switch.switch(log, offer)
    assert disk.read_bytes(PATH) == content


def test_what_one_who_was_killed_has_left_is_removed_by_the_next():
    disk = CrashingFilesystem()
    log = a_life(disk)
    with killed_at(disk, "compaction.piece"):
        offered(disk)
    left = disk.after_kill()
    (old,) = [name for name in left.names() if name != PATH]
    offer = offered(left)
    assert old != offer.name
    assert left.names() == sorted([offer.name, PATH])
    log.forget()


# ---------------------------------------------------------------------------------------------------------------
# Who reads


def followed(disk, keep_done):
    """Return a state folded of the old file, the log that goes on in the new one, and its writer."""
    log = a_life(disk)
    old, state = LogReader(PATH, filesystem=disk), QueueState()
    for batch in old.batches():
        state.apply(batch)
    offer = offered(disk, keep_done=keep_done)
    log.write(one_more(7))
    for batch in old.batches():
        state.apply(batch)
    new = switch.switch(log, offer)
    return state, SplicedLog(old, LogReader(PATH, filesystem=disk), new.position.offset), new


@pytest.mark.parametrize("keep_done", [None, 1, 0])
def test_a_reader_of_the_old_file_reads_on_in_the_new_one_and_finds_all_lines(keep_done):
    disk = CrashingFilesystem()
    state, spliced, log = followed(disk, keep_done)

    log.write(one_more(8))
    log.write(one_more(9))
    for batch in spliced.batches():
        state.apply(batch)

    assert state.counts()["ready"] == 5
    assert [state.task(state.seq_of(f"{P}-{number}"), spliced.read).data for number in (1, 6, 7, 8, 9)] == [
        {"n": 0}, {"n": 5}, 7, 8, 9,
    ]  # fmt: skip
    assert state.task(0, spliced.read).result == {"ok": [1, 2]}
    assert (spliced.commit, spliced.generation) == (log.commit, 2)
    assert spliced.position.offset == state.position
    assert not spliced.moved()
    spliced.close()


def test_the_new_file_folded_in_steps_beside_it_comes_to_the_same():
    disk = CrashingFilesystem()
    state, spliced, log = followed(disk, None)
    refolding = Refolding(spliced._new, weighs=False)
    steps = 0
    while refolding.step():
        steps += 1
        log.write(one_more(7 + steps)) if steps < 4 else None
    log.write(one_more(11))
    for batch in spliced.batches():
        state.apply(batch)
    refolding.reach(spliced.commit)

    assert refolding.log.commit == spliced.commit == log.commit
    assert view_of(refolding.state, refolding.log.read) == view_of(state, spliced.read)
    spliced.close_old()
    assert refolding.state.task(0, refolding.log.read).result == {"ok": [1, 2]}


@pytest.mark.parametrize("weighs", [True, False])
def test_what_a_compaction_would_keep_is_known_without_doing_it(weighs):
    disk = CrashingFilesystem()
    a_life(disk).close()
    state = QueueState(weighs=weighs)
    for batch in LogReader(PATH, filesystem=disk).batches():
        state.apply(batch)
    length = state.span_of(0, 1)[1]
    assert [state.needed_bytes(keep) for keep in (None, 2, 0)] == [6 * length, 5 * length, 3 * length]


def test_a_file_that_was_just_compacted_needs_all_of_its_length():
    disk = CrashingFilesystem()
    new = switch.switch(a_life(disk), offered(disk))
    state = QueueState(weighs=True)
    for batch in LogReader(PATH, filesystem=disk).batches():
        state.apply(batch)
    assert state.needed_bytes(None) == new.position.offset
    new.close()

"""A queue in use is compacted: writer, scheduler and Compactor on a real file, in one process and in turns."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from actorq.brokers import compactor, consumer_broker
from actorq.brokers.backlog import Limits
from actorq.brokers.compactor import Compactor, Leave
from actorq.brokers.messages import (
    Acknowledged,
    Assign,
    Compact,
    Compacted,
    Detach,
    Gap,
    Pending,
    Push,
    Released,
    Report,
    Switched,
    WriterStarted,
)
from actorq.brokers.upkeep import FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS, Patience, Upkeep
from actorq.store.log_reader import LogReader
from actorq.store.spliced_log import SplicedLog
from actorq.testing import armed_failpoints
from tests.brokers.stage import Stage, said
from tests.brokers.test_writer_and_scheduler import C, P, Scene, hello, publish

SMALL = Upkeep(keep_done=2, min_bytes=3000)


class Compacting(Scene):
    """The scene with a Compactor, and a consumer that finishes at once what it is given, if it is told to."""

    def __init__(self, path):
        super().__init__(path)
        self.has_compactor = False
        self.published = 0
        self.reports = 0

    def start_all(self, **options):
        self.start_writer(**options)
        self.start_scheduler(upkeep=SMALL, is_limited=bool(options))
        self.scheduler.actor._patience.came()  # it has begun a while ago
        self.start_compactor()
        self.writer.give(hello(P), hello(C, "consumer"))
        self.settle()
        self.scheduler.actor._scheduler._seats[C].credit.tasks = 8

    def start_scheduler(self, **options):
        super().start_scheduler(**options)
        # Time stands still: on a busy machine a consumer would else be taken for a slow one, and be given less.
        self.scheduler.actor._clock = SimpleNamespace(now=lambda: 100.0)

    def start_compactor(self):
        self.compactor = Stage(Compactor, self.path, self.boxes["writer"], keep_done=2, inbox=self.boxes["compactor"])

    def publish(self, count):
        first, self.published = self.published + 1, self.published + count
        self.writer.give(publish(P, first, *[b'"%b"' % (b"x" * 100)] * count))
        return self.settle()

    def finish_all(self):
        """Let the consumer report all that it was ever given as done, until there is no more."""
        done: set[tuple[str, int]] = set()
        while True:
            pushes = [message for session, message in self.heard if session == C and isinstance(message, Push)]
            entries = {(entry[0], entry[1]) for push in pushes for entry in push.entries} - done
            if not entries:
                return
            for tasks, no in sorted(entries, key=lambda entry: entry[1]):
                self.reports += 1
                self.writer.give(Report(C, self.reports, [["done", tasks, no, ""]]))
            done |= entries
            self.settle()

    def lend_nobody(self):
        """Have the next assignment asked for by the scheduler, not made by the writer."""
        self.writer.actor._writing._lent.clear()

    def step(self, stage):
        stage.loop._timers.fire_due()
        stage.turn()

    def compact(self):
        """Let the Compactor work until it has answered, and start the next one."""
        self.compactor.turn()
        while self.compactor.actor._old is None and not self.compactor.loop.is_stopping:
            self.step(self.compactor)

    def replace_compactor(self):
        self.compactor.actor.on_stop()
        self.start_compactor()

    def refold(self):
        while self.scheduler.actor._refolding is not None:
            self.step(self.scheduler)

    def offers(self):
        return [name for name in os.listdir(self.path.parent) if name.endswith((".offer", ".new"))]

    @property
    def generations(self):
        return self.writer.actor._log.header.generation, self.scheduler.actor._log.generation


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr(compactor, "lower_priority", lambda: None)
    monkeypatch.setattr(compactor, "REST_SHARE", 0)
    monkeypatch.setattr(consumer_broker, "REST_SECONDS", 0)
    scene = Compacting(tmp_path / "Queue.json")
    yield scene
    if scene.has_writer:
        scene.stop_writer()
    scene.scheduler.actor._log.close()


def grown(scene, **options):
    """Bring a queue to where it is worth compacting: much is done, little is left."""
    scene.start_all(**options)
    scene.publish(30)
    scene.finish_all()
    scene.publish(3)


class Asked(list[str]):
    """The tasks of a request, and its number."""

    number: int


def assigned_in(messages):
    """Return what the scheduler has asked for in these messages: for each request its tasks."""
    requests = []
    for message in messages:
        if isinstance(message, Assign):
            requests.append(Asked(entry[0] for entry in message.entries))
            requests[-1].number = message.number
    return requests


# ---------------------------------------------------------------------------------------------------------------
# When


@pytest.mark.parametrize(
    ("size", "needed", "is_due"),
    [
        (99, 0, False),  # too small to be worth it
        (100, 0, True),
        (100, 50, True),
        (100, 51, False),  # not half of it would be freed
    ],
)
def test_a_file_is_worth_compacting_when(size, needed, is_due):
    assert Upkeep(min_bytes=100).is_due(size, needed) is is_due


def test_what_does_not_come_is_asked_for_again_after_a_wait_that_doubles_up_to_a_limit():
    patience = Patience()
    assert patience.may_ask(0.0)
    assert [patience.asked(100.0) for _ in range(3)] == [FIRST_WAIT_SECONDS * 2**n for n in range(3)]
    assert not patience.may_ask(100.0 + 4 * FIRST_WAIT_SECONDS - 1)
    assert patience.may_ask(100.0 + 4 * FIRST_WAIT_SECONDS)
    assert max(patience.asked(0.0) for _ in range(20)) == LAST_WAIT_SECONDS
    assert repr(patience) == f"<Patience not before {LAST_WAIT_SECONDS:.3f}>"

    patience.came()
    assert patience.may_ask(0.0)
    assert patience.asked(0.0) == FIRST_WAIT_SECONDS


def test_nothing_is_asked_for_just_after_a_start():
    patience = Patience(7.0)
    assert patience.began(100.0) == 7.0
    assert not patience.may_ask(106.0)
    assert patience.may_ask(107.0)
    assert patience.asked(107.0) == 7.0


def test_a_queue_of_which_most_is_done_is_compacted_and_nobody_asks_twice(scene):
    scene.start_all()
    scene.publish(30)
    assert said(scene.boxes["compactor"]) == []

    scene.finish_all()
    scene.publish(1)

    assert said(scene.boxes["compactor"]) == [Compact(1)]


def test_what_has_not_come_is_asked_for_again(scene, monkeypatch):
    grown(scene)
    said(scene.boxes["compactor"])
    monkeypatch.setattr(scene.scheduler.actor._patience, "_not_before", 0.0)
    scene.scheduler.actor.on_timer(consumer_broker.LookAtSize())
    assert said(scene.boxes["compactor"]) == [Compact(1)]


def test_a_queue_whose_tasks_all_wait_is_left_as_it_is(scene):
    scene.start_all()
    scene.publish(200)
    assert said(scene.boxes["compactor"]) == []


# ---------------------------------------------------------------------------------------------------------------
# What happens


def test_after_a_compaction_the_file_is_small_and_everybody_goes_on(scene):
    grown(scene)
    before = scene.path.stat().st_size, scene.log().counts()

    scene.compact()
    assert scene.log().counts() == before[1]  # offered, and nothing more
    scene.settle()

    assert scene.generations == (2, 2)
    assert isinstance(scene.scheduler.actor._log, SplicedLog)
    scene.refold()
    assert isinstance(scene.scheduler.actor._log, LogReader)
    assert scene.log().counts() == before[1]
    assert len(scene.log()) == 5
    assert scene.offers() == []
    assert (P, Acknowledged(P, 34)) in scene.publish(1)
    scene.finish_all()
    assert scene.log().counts()["done"] == 34


def test_while_the_scheduler_folds_the_new_file_it_hands_out_of_both(scene):
    grown(scene)
    scene.compact()
    scene.settle()

    heard = scene.publish(2)
    scene.finish_all()
    assert scene.log().counts()["done"] == 35
    assert [message for _, message in heard if isinstance(message, Push)]
    assert isinstance(scene.scheduler.actor._log, SplicedLog)
    pushed = scene.scheduler.actor._scheduler.unfinished_pushes(C, scene.scheduler.actor._log.read)
    assert pushed == []

    scene.refold()
    assert scene.scheduler.actor._scheduler.state.counts() == scene.log().counts()
    scene.publish(1)
    scene.finish_all()
    assert scene.log().counts()["done"] == 36


def test_the_writer_borrows_consumers_before_and_after_the_scheduler_has_folded_the_new_file(scene):
    grown(scene)
    scene.finish_all()
    scene.compact()
    scene.settle()
    for number, fold in ((34, lambda: None), (35, scene.refold)):
        fold()
        scene.settle()
        before = len(scene.heard)
        scene.writer.give(publish(P, number, b"1"))
        scene.collect()
        pushes = [message for _, message in scene.heard[before:] if isinstance(message, Push)]
        assert [entry[0] for push in pushes for entry in push.entries] == [f"{P}-{number}"]
        scene.finish_all()
    assert scene.log().counts()["done"] == 35


def test_what_was_asked_for_and_is_not_in_the_log_when_the_scheduler_swaps_is_not_asked_for_again(scene):
    grown(scene)
    scene.finish_all()
    scene.compact()
    scene.settle()
    scene.lend_nobody()
    scene.writer.give(publish(P, 34, b"1"))
    scene.scheduler.turn()
    (asked,) = assigned_in(said(scene.boxes["writer"]))  # and so it is lost
    scene.refold()

    scene.lend_nobody()
    scene.writer.give(publish(P, 35, b"1"))
    scene.scheduler.turn()
    (then,) = assigned_in(said(scene.boxes["writer"]))
    assert (asked[:1], then[:1]) == ([f"{P}-34"], [f"{P}-35"])

    scene.scheduler.give(Gap(scene.scheduler.actor._scheduler.token, asked.number))
    scene.settle()
    scene.finish_all()
    assert scene.log().counts()["done"] == 35


def test_what_is_running_is_pushed_again_from_the_new_file_too(scene):
    grown(scene)
    scene.compact()
    scene.settle()
    for epoch, fold in ((100, lambda: None), (101, scene.refold)):
        fold()
        before = len(scene.heard)
        scene.scheduler.give(WriterStarted(epoch, []))
        scene.collect()
        again = [message for _, message in scene.heard[before:] if isinstance(message, Push)]
        assert [push.entries[0][0] for push in again] == [f"{P}-31..33"] or len(again) == 3
        assert all(b'"data":"xxx' in push.body for push in again)


def test_one_compaction_follows_another_only_when_the_file_has_grown_again(scene):
    grown(scene)
    for generation in (2, 3, 4):
        scene.compact()
        scene.settle()
        scene.refold()
        assert scene.generations == (generation, generation)
        scene.publish(1)
        assert said(scene.boxes["compactor"]) == [Released(generation)]
        scene.publish(40)
        scene.finish_all()
        scene.publish(1)
    assert scene.log().counts()["done"] == scene.published - 1
    assert scene.path.stat().st_size < 4 << 20


def test_requests_of_before_the_switch_are_taken_and_a_limit_is_kept_all_the_while(scene):
    scene.start_all(limits=Limits(max_pending=35))
    scene.publish(30)
    scene.finish_all()
    scene.publish(35)
    said(scene.boxes["compactor"])
    scene.boxes["compactor"].send(b'["compact","consumer_broker",1]\n')
    scene.compact()
    stale = Pending(1, scene.writer.actor._log.commit, 35, 10_000)
    scene.writer.turn()
    assert scene.writer.actor._log.header.generation == 2
    scene.writer.give(stale)
    heard = scene.publish(1)
    assert [type(message).__name__ for session, message in heard if session == P] == ["Refused"]
    assert scene.log().counts()["ready"] + scene.log().counts()["running"] == 35


def test_the_compactor_keeps_the_old_file_open_until_the_scheduler_needs_it_no_more_and_then_ends(scene):
    grown(scene)
    scene.compactor.turn()
    while scene.compactor.actor._old is None:
        scene.step(scene.compactor)
    assert scene.offers()
    scene.compactor.give(Released(2))  # of another one: the file is still in its place
    assert not scene.compactor.loop.is_stopping
    scene.settle()
    scene.refold()
    assert scene.offers() == []
    assert scene.compactor.actor._old.moved()

    scene.compactor.turn()

    assert scene.compactor.loop.is_stopping
    scene.replace_compactor()


def released(scene):
    """Bring the compactor to where it has the old file alone; return a second descriptor of that, taken before."""
    grown(scene)
    old = os.open(scene.path, os.O_RDONLY)
    scene.compact()
    scene.settle()
    scene.refold()
    return old


def test_the_space_of_the_old_file_is_freed_a_little_at_a_time(scene, monkeypatch):
    monkeypatch.setattr(compactor, "FREE_BYTES", 1000)
    monkeypatch.setattr(compactor, "FREE_SECONDS", 0)
    os.close(released(scene))
    scene.compactor.turn()
    assert not scene.compactor.actor._leave.is_pending  # a large file takes longer
    size = os.fstat(scene.compactor.actor._unnamed).st_size
    sizes = [size]
    while not scene.compactor.loop.is_stopping:
        scene.step(scene.compactor)
        sizes.append(os.fstat(scene.compactor.actor._unnamed).st_size)

    assert size > 3000
    assert sizes[:-1] == list(range(size, 0, -1000))
    scene.replace_compactor()


def test_an_old_file_that_somebody_still_reads_is_left_as_it_is(scene, monkeypatch):
    monkeypatch.setattr(compactor, "FREE_BYTES", 1000)
    old = released(scene)
    content = os.pread(old, 1 << 20, 0)

    scene.compactor.turn()

    assert scene.compactor.loop.is_stopping
    scene.replace_compactor()
    assert os.pread(old, 1 << 20, 0) == content
    os.close(old)


def test_a_compactor_that_frees_a_file_begins_anew_when_it_is_asked(scene, monkeypatch):
    monkeypatch.setattr(compactor, "FREE_BYTES", 1000)
    os.close(released(scene))
    scene.compactor.turn()
    assert scene.compactor.actor._unnamed >= 0

    scene.compactor.give(Compact(2))

    assert scene.compactor.actor._unnamed == -1
    scene.compactor.actor.on_timer(compactor.Free())
    assert not scene.compactor.loop.is_stopping
    while scene.compactor.actor._old is None:
        scene.step(scene.compactor)
    assert scene.offers()


def test_a_compactor_that_waits_for_that_begins_anew_when_it_is_asked_and_leaves_when_nobody_says_anything(scene):
    grown(scene)
    scene.compactor.turn()
    for _ in range(2):
        while scene.compactor.actor._old is None:
            scene.step(scene.compactor)
        (offer,) = scene.offers()
        scene.compactor.give(Compact(1))
        assert scene.compactor.actor._old is None
    while scene.compactor.actor._old is None:
        scene.step(scene.compactor)
    assert scene.offers() != [offer]
    scene.compactor.actor.on_timer(Leave())
    assert scene.compactor.loop.is_stopping
    scene.settle()
    scene.replace_compactor()
    assert scene.generations == (2, 2)
    assert scene.offers() == []


def test_what_one_that_was_killed_has_left_is_gone_when_the_next_one_starts_and_an_offer_of_his_does_no_harm(scene):
    grown(scene)
    scene.compact()
    assert scene.offers()
    scene.start_compactor()
    assert scene.offers() == []
    scene.settle()
    assert scene.generations == (1, 1)
    assert (P, Acknowledged(P, 34)) in scene.publish(1)


# ---------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_who_asks_of_a_file_that_is_not_there_any_more_gets_nothing(scene, caplog):
    grown(scene)
    said(scene.boxes["compactor"])
    scene.boxes["compactor"].send(b'["compact","consumer_broker",7]\n')
    scene.compact()
    assert "generation 7 is not there any more" in caplog.text
    assert scene.offers() == []
    scene.settle()
    assert scene.generations == (1, 1)


def test_a_compactor_that_is_stopped_at_its_work_leaves_nothing(scene, monkeypatch):
    monkeypatch.setattr(compactor, "STEP_SECONDS", 0.0)
    grown(scene)
    scene.compactor.turn()
    while not scene.offers():
        scene.step(scene.compactor)
    scene.compactor.give(Compact(1), Detach(P), b"no event\n")  # it is at it; and that is not for it
    assert scene.offers()
    scene.compactor.actor.on_stop()
    assert scene.offers() == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["new_file.writing", "new_file.syncing", "new_file.replacing"])
def test_when_the_disk_refuses_the_switch_the_old_file_goes_on_and_the_operator_hears_of_it(scene, caplog, place, code):
    grown(scene)
    scene.compact()
    with armed_failpoints(here=True) as points:
        points.lay(place, "raise", value=code)
        scene.settle()

    assert "file not compacted" in caplog.text
    assert scene.offers() == []
    assert scene.generations == (1, 1)
    assert (P, Acknowledged(P, 34)) in scene.publish(1)


def test_an_offer_that_nobody_could_have_made_is_dropped(scene, caplog):
    grown(scene)
    scene.writer.give(Compacted(1, "../Queue.json", 1, 1, 1), Compacted(1, f".Queue.json.{'0' * 16}.offer", 1, 1, 1))
    assert "request dropped" in caplog.text
    assert "file not compacted" in caplog.text
    assert (P, Acknowledged(P, 34)) in scene.publish(1)


def test_a_writer_that_starts_after_the_switch_takes_nothing_of_before_and_the_scheduler_begins_anew(scene):
    grown(scene)
    scene.finish_all()
    scene.compact()
    scene.writer.turn()
    # The scheduler does not know of the switch, asks for an assignment, and the writer dies before it gets to it.
    switched = [m for m in said(scene.boxes["scheduler"]) if isinstance(m, Switched)]
    scene.writer.give(publish(P, 34, b"1"))
    scene.scheduler.actor._read_on()
    token = scene.scheduler.actor._scheduler.token
    scene.stop_writer()
    scene.start_writer()
    assert switched
    scene.settle()

    assert scene.scheduler.actor._scheduler.token != token
    assert scene.generations == (2, 2)
    scene.finish_all()
    assert scene.log().counts()["done"] == 34


def test_what_was_asked_for_before_the_switch_and_is_refused_by_the_next_writer_is_not_waited_for(scene):
    grown(scene)
    scene.finish_all()
    scene.lend_nobody()
    scene.writer.give(publish(P, 34, b"1"))
    scene.scheduler.turn()
    (asked,) = assigned_in(said(scene.boxes["writer"]))  # lost, and named the file before
    scene.compact()
    scene.writer.turn()
    scene.scheduler.turn()
    assert scene.generations == (2, 2)

    scene.stop_writer()
    scene.start_writer()
    scene.settle()
    scene.finish_all()
    assert scene.log().counts()["done"] == 34
    assert asked[0] == f"{P}-34"


def test_a_switch_that_comes_while_the_last_one_is_still_folded_makes_the_scheduler_begin_anew(scene):
    grown(scene)
    scene.compact()
    scene.settle()
    token = scene.scheduler.actor._scheduler.token
    scene.boxes["compactor"].send(b'["compact","consumer_broker",2]\n')
    scene.compact()
    scene.settle()
    assert scene.generations == (3, 3)
    assert scene.scheduler.actor._scheduler.token != token
    scene.step(scene.scheduler)  # a timer of before
    scene.finish_all()
    assert scene.log().counts()["done"] == 33


def test_a_scheduler_that_has_begun_with_the_new_file_is_not_disturbed_by_news_of_it(scene):
    grown(scene)
    scene.compact()
    scene.writer.turn()
    scene.scheduler.actor._log.close()
    scene.start_scheduler(upkeep=SMALL)
    token = scene.scheduler.actor._scheduler.token
    scene.settle()
    assert scene.scheduler.actor._scheduler.token == token
    assert isinstance(scene.scheduler.actor._log, LogReader)
    scene.finish_all()
    assert scene.log().counts()["done"] == 33

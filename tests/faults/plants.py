"""Bugs planted by hand into the real code: each must be found, or the simulation proves nothing."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

from actorq.actors import linux
from actorq.brokers import publisher_broker, registry
from actorq.brokers.consumer_broker import Scheduler
from actorq.brokers.publisher_broker import PublisherBroker, Writing
from actorq.brokers.registry import Registry
from actorq.consumer import Consumer
from actorq.store import recovery, switch
from actorq.store.fold import QueueState
from actorq.store.log_writer import LogWriter


@contextmanager
def drop_the_sync_of_commits():
    """Acknowledge what is written and not synced."""
    with mock.patch.object(PublisherBroker, "_sync_now"):
        yield


@contextmanager
def drop_the_sync_of_open():
    """Believe that what the last writer wrote is on disk."""
    sync = LogWriter.sync

    def all_but_the_first(self):
        if hasattr(self, "is_open"):
            sync(self)
        self.is_open = True

    with mock.patch.object(LogWriter, "sync", all_but_the_first):
        yield


@contextmanager
def acknowledge_early():
    """Acknowledge after the write, before the sync."""
    commit, sync = PublisherBroker._commit, PublisherBroker._sync

    def noted(self, group):
        self.group_at_hand = group
        commit(self, group)

    def early(self):
        for session, frame in self._answers_to(self.group_at_hand):
            self._send(session, frame)
        self._router.flush()
        sync(self)

    with mock.patch.object(PublisherBroker, "_commit", noted), mock.patch.object(PublisherBroker, "_sync", early):
        yield


@contextmanager
def skip_the_barrier():
    """Assign before the log shows that nobody else does."""
    with mock.patch.object(Scheduler, "is_ready", property(lambda self: True)):
        yield


@contextmanager
def skip_the_gap_rule():
    """Take any request that is not older than the next one."""

    def is_next(self, session, first, last):
        if first >= self.sessions.expected(session) != 0:
            return True
        self._acknowledge(session, last)
        return False

    with mock.patch.object(Writing, "_is_next", is_next):
        yield


@contextmanager
def requeue_on_eof():
    """Take a consumer for dead that has closed its channel."""
    with mock.patch.object(
        Registry, "_hung_up", lambda self, client: self._end(client, "closed", is_charged=client.role == "consumer")
    ):
        yield


@contextmanager
def trust_the_tail_after_a_failed_sync():
    """Go on with a file of which a sync has failed."""
    with mock.patch.object(recovery, "read_mark", return_value=None):
        yield


@contextmanager
def spare_those_who_have_joined():
    """After a failed sync end the consumers of the own tree only."""
    with mock.patch.object(publisher_broker, "end_other_trees"):
        yield


@contextmanager
def forget_to_push_again():
    """Push each assignment once."""
    with mock.patch.object(Scheduler, "unfinished_pushes", return_value=[]):
        yield


@contextmanager
def forget_to_watch_the_logged():
    """Watch only who has connected."""
    with mock.patch.object(Registry, "_watch_logged"):
        yield


@contextmanager
def forget_what_came_since_the_offer():
    """Go over to a compacted file as it was offered."""
    go_over = switch.switch

    def go_over_at_once(log, offer):
        with mock.patch.object(switch, "_reason_to_refuse", return_value=None):
            return go_over(log, offer._replace(end=log.position.offset))

    with mock.patch.object(publisher_broker, "switch", go_over_at_once):
        yield


@contextmanager
def leave_decisions_unsynced():
    """Acknowledge what the scheduler has decided for others as one of its assignments: written, not synced."""
    change = Writing._change

    def unsynced(self, request):
        must_sync = self.group.must_sync
        change(self, request)
        self.group.must_sync = must_sync

    with mock.patch.object(Writing, "_change", unsynced):
        yield


@contextmanager
def lend_while_paused():
    """Let the writer hand out new tasks, who does not know what is paused."""
    lendable = Scheduler.lendable

    def lendable_nevertheless(self):
        paused, self.state.paused = self.state.paused, frozenset()
        try:
            return lendable(self)
        finally:
            self.state.paused = paused

    with mock.patch.object(Scheduler, "lendable", lendable_nevertheless):
        yield


@contextmanager
def forget_pauses_in_a_compacted_file():
    """Leave out of a snapshot what is paused."""
    with mock.patch.object(QueueState, "pauses", return_value=[]):
        yield


# -- bugs that the simulation has found, as they were


@contextmanager
def take_a_pid_for_a_process():
    """Believe the news of a death by its pid alone, though it may be another one's by now."""
    kill = linux.pidfd_kill

    def dead_or_killed(pidfd, number=9):
        return number != 0 and kill(pidfd, number)

    with mock.patch.object(registry, "pidfd_kill", dead_or_killed):
        yield


@contextmanager
def say_hello_once():
    """Repeat outcomes after silence, but not the hello for which there was no room."""
    repeat = Consumer._repeat_later

    def repeat_outcomes(self, number):
        if number:
            repeat(self, number)

    with mock.patch.object(Consumer, "_repeat_later", repeat_outcomes):
        yield


@contextmanager
def live_on_after_a_failed_sync():
    """Let consumers live that have seen what a new writer could not bring to disk."""
    with mock.patch.object(publisher_broker.PublisherBroker, "_leave_a_tree_that_has_read_too_much"):
        yield


PLANTS = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        drop_the_sync_of_commits,
        drop_the_sync_of_open,
        acknowledge_early,
        skip_the_barrier,
        skip_the_gap_rule,
        requeue_on_eof,
        trust_the_tail_after_a_failed_sync,
        spare_those_who_have_joined,
        forget_to_push_again,
        forget_to_watch_the_logged,
        forget_what_came_since_the_offer,
        leave_decisions_unsynced,
        lend_while_paused,
        forget_pauses_in_a_compacted_file,
        take_a_pid_for_a_process,
        say_hello_once,
        live_on_after_a_failed_sync,
    )
}

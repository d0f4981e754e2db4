"""Go-back-N, seen from the sender."""

from __future__ import annotations

from actorq.brokers.requests import Requests


def make():
    requests = Requests()
    requests.add(b"hello")
    requests.add(b"first three", 3)
    requests.add(b"fourth")
    return requests


def test_a_session_begins_with_request_0_and_counts_tasks_not_frames():
    assert [(request.first, request.last) for request in make().since()] == [(0, 0), (1, 3), (4, 4)]


def test_an_acknowledgement_forgets_everything_up_to_its_number():
    requests = make()

    requests.acknowledge(3)

    assert [request.frame for request in requests.since()] == [b"fourth"]


def test_an_acknowledgement_of_part_of_a_request_forgets_nothing_of_it():
    requests = make()

    requests.acknowledge(2)

    assert [request.first for request in requests.since()] == [1, 4]


def test_after_a_gap_everything_from_there_on_is_sent_again():
    assert [request.frame for request in make().since(4)] == [b"fourth"]
    assert [request.frame for request in make().since(1)] == [b"first three", b"fourth"]


def test_a_late_acknowledgement_changes_nothing():
    requests = make()
    requests.acknowledge(4)

    requests.acknowledge(0)

    assert not requests
    assert requests.number == 4

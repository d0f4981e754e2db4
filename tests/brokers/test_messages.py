"""Every message survives the wire, and nothing else is taken for one."""

from __future__ import annotations

from inspect import formatannotation
from itertools import combinations

import orjson
import pytest

from actorq.brokers import messages
from actorq.brokers.messages import MESSAGES, Event, EventOwner, EventType, MalformedEventError

VALUES = {
    "str": "k3v9x2m4q7ab",
    "int": 7,
    "bool": True,
    "bytes": b'{"a":1}\n{"b":2}',
    "list[list[typing.Any]]": [["done", "k3v9x2m4q7ab-1..2", 1, ""]],
    "list[str]": ["a"],
    "list[str] | None": None,
}


def example(cls):
    return cls(*[VALUES[formatannotation(hint)] for hint in cls.__annotations__.values()])


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.__name__)
def test_a_message_comes_out_of_its_frame_as_it_went_in(cls):
    message = example(cls)

    event = Event.decode(Event(EventOwner.ROUTER, message).encode())

    assert event == Event(EventOwner.ROUTER, message)
    assert MESSAGES[event.type] is cls


def test_every_event_type_has_one_message_class():
    assert set(MESSAGES) == set(EventType)


def test_every_message_class_is_frozen_and_registered():
    classes = [value for value in vars(messages).values() if hasattr(value, "_fields")]

    assert set(classes) == {*MESSAGES.values(), Event}
    for cls in MESSAGES.values():
        for name in (*cls._fields, "another"):
            with pytest.raises(AttributeError):
                setattr(example(cls), name, "another")


def test_two_kinds_of_message_are_never_the_same():
    alike = [
        (one(*range(len(one._fields))), other(*range(len(other._fields))))
        for one, other in combinations(MESSAGES.values(), 2)
        if len(one._fields) == len(other._fields)
    ]

    assert alike
    for one, other in alike:
        assert one != other
        assert not one == other  # noqa: SIM201  # another method
        assert len({one, other}) == 2
        assert one != tuple(one)


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.__name__)
def test_a_message_equals_one_that_says_the_same_and_is_true_even_without_a_value(cls):
    one, other = cls(*range(len(cls._fields))), cls(*range(len(cls._fields)))

    assert one == other
    assert not one != other  # noqa: SIM202  # another method
    assert len({one, other}) == 1
    assert one


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        b"null\n",
        b"[]\n",
        b'["publish"]\n',
        b'["no such type","router"]\n',
        b'["gap","nobody","k3v9x2m4q7ab",1]\n',
        b'["gap","router","k3v9x2m4q7ab"]\n',
        b'["gap","router","k3v9x2m4q7ab",1,2]\n',
        b'["gap","router","k3v9x2m4q7ab",1',
        b"\x80\x04\x95garbage",
        b'{"gap":1}\n',
    ],
)
def test_what_is_no_event_is_refused(frame):
    with pytest.raises(MalformedEventError):
        Event.decode(frame)


def test_a_body_is_passed_on_byte_for_byte_even_when_it_looks_like_events():
    body = b'["gap","router","x",1]\n\n\x00\xff'

    publish = messages.Publish("k3v9x2m4q7ab", 1, 2, "n", body)
    frame = Event(EventOwner.PUBLISHER, publish).encode()

    assert Event.decode(frame).message == publish
    assert orjson.loads(frame.split(b"\n")[0])[0] == "publish"

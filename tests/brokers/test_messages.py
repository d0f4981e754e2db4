"""Every message survives the wire, and nothing else is taken for one."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import orjson
import pytest

from actorq.brokers import messages
from actorq.brokers.messages import MESSAGES, Event, EventOwner, EventType, MalformedEventError

VALUES = {
    "str": "k3v9x2m4q7ab",
    "int": 7,
    "bool": True,
    "bytes": b'{"a":1}\n{"b":2}',
    "list[list[Any]]": [["done", "k3v9x2m4q7ab-1..2", 1, ""]],
    "list[str]": ["a"],
    "list[str] | None": None,
}


def example(cls):
    return cls(*[VALUES[str(field.type)] for field in fields(cls)])


@pytest.mark.parametrize("cls", MESSAGES.values(), ids=lambda cls: cls.__name__)
def test_a_message_comes_out_of_its_frame_as_it_went_in(cls):
    message = example(cls)

    event = Event.decode(Event(EventOwner.ROUTER, message).encode())

    assert event == Event(EventOwner.ROUTER, message)
    assert event.type is cls.type


def test_every_event_type_has_one_message_class():
    assert set(MESSAGES) == set(EventType)


def test_every_message_class_is_frozen_and_registered():
    classes: list[Any] = [value for value in vars(messages).values() if is_dataclass(value)]

    assert set(classes) == set(MESSAGES.values())
    assert all(cls.__dataclass_params__.frozen for cls in classes)


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

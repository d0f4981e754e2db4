"""What travels survives the trip."""

from __future__ import annotations

import inspect
import pickle

import pytest

from actorq import errors
from actorq.actors import ChildInfo, Down, ExitKind, ExitReason
from actorq.actors.messages import (
    AwaitDown,
    KillChild,
    ListChildren,
    StartChild,
    Started,
    StopChild,
    Stopped,
    WhereIs,
)
from actorq.actors.reply import decode_error, encode_error
from actorq.actors.spec import ChildSpec
from actorq.actors.wire import pack, unpack
from actorq.errors import ActorError, RemoteError
from tests.actors.cast import Counter, LocalTroubleError, StubbornError

REASON = ExitReason(ExitKind.CRASH, "exit status 1", "Fehler: ä")


@pytest.mark.parametrize(
    "message",
    [
        Started(1, 2),
        StopChild("a", 1.5),
        Stopped(),
        KillChild("a"),
        AwaitDown("a"),
        WhereIs("a"),
        ListChildren(),
        ChildInfo("a", 1, "running", 0, progress=True),
        Down("a", None, REASON),
    ],
)
def test_every_message_pickles(message):
    assert unpack(pack(message)[0]) == message


@pytest.mark.parametrize("pid", [None, 17])
def test_a_down_travels_as_json_too(pid):
    down = Down('na"me', pid, REASON)
    assert Down.decode(down.encode()) == down


def test_a_spec_travels_sealed_with_both_ends_of_its_mailbox():
    data, fds = pack(StartChild(ChildSpec("a", Counter, (5,)).seal()))
    assert len(fds) == 2
    assert b"tests.actors.cast" in data


ARGUMENTS = {str: "x", float: 1.5, int: 1}


@pytest.mark.parametrize(
    "cls", [cls for cls in vars(errors).values() if inspect.isclass(cls) and issubclass(cls, ActorError)]
)
def test_every_error_of_the_runtime_pickles_and_has_one_line(cls):
    parameters = [] if cls.__init__ is Exception.__init__ else list(inspect.signature(cls).parameters.values())
    arguments = [
        {"str": "x", "float": 1.5, "int": 1}[p.annotation] for p in parameters if p.kind is not p.VAR_POSITIONAL
    ]
    arguments = [a for a, p in zip(arguments, parameters, strict=False) if p.name not in ("args", "kwargs")]
    error = cls(*arguments)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def caught(error):
    try:
        raise error
    except Exception as caught_error:  # noqa: BLE001 -- any may come
        return caught_error


def test_an_error_arrives_as_itself_with_its_remote_traceback_as_cause():
    error = decode_error(encode_error(caught(LocalTroubleError("oh"))))
    assert isinstance(error, LocalTroubleError)
    assert error.args == ("oh",)
    assert isinstance(error.__cause__, RemoteError)
    assert "raise error" in error.__cause__.text


@pytest.mark.parametrize(
    "error", [StubbornError(1, 2), caught(LocalTroubleError(lambda: None))], ids=["init", "lambda"]
)
def test_an_error_that_does_not_survive_arrives_as_text(error):
    arrived = decode_error(encode_error(error))
    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == type(error).__qualname__
    assert type(error).__qualname__ in str(arrived)

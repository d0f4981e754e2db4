"""Publishing from a program that runs on an event loop, without ever making it wait.

    apublish ──▶ inbox ──▶ one thread: all that waits there, in one go ──▶ the same publishers as everybody's

A commit takes as long as the disk does, however many tasks are in it. So while one is under way, what is published
gathers in the inbox, and goes into the next one together: a thousand coroutines need no thousand commits.
"""

from __future__ import annotations

import copy
import os
import queue
import threading
from collections.abc import AsyncIterable
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

from actorq.errors import PayloadError, PublishError, PublishUnknownError
from actorq.publisher import CHUNK_BYTES, CHUNK_TASKS, Chunk, ids_of
from actorq.tasks.ids import parse_task_id, task_id
from actorq.tasks.payload import encode_payload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from actorq.publisher import PublishPort

IDLE_SECONDS = 5.0
"""After so long without work the thread ends; the next publish starts another one."""

MAX_AT_ONCE = 10_000
"""How many tasks go into one publish at most, so that the first of them hears soon."""


class Item(NamedTuple):
    """Tasks that one call publishes, and where it waits for their ids."""

    payloads: list[bytes]
    name: str
    timeout: float
    future: Future[list[str]]


class AsyncPublisher:
    """The inbox of one Queue, and the thread behind it."""

    def __init__(self, port: Callable[[], PublishPort], close_port: Callable[[], None]) -> None:
        """`port` returns the calling thread's way into the queue, and `close_port` closes it."""
        self._port = port
        self._close_port = close_port
        self._inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_running = False
        self._pid = os.getpid()

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a fork of the one that has the thread: then it needs an own publisher."""
        return self._pid != os.getpid()

    def submit(self, payloads: list[bytes], name: str, timeout: float) -> Future[list[str]]:
        """Have the tasks published; the future gets their ids, or the error. Until they are sent it is cancellable."""
        item = Item(payloads, name, timeout, Future())
        with self._lock:
            self._inbox.put(item)
            if not self._is_running:
                try:
                    threading.Thread(target=self._run, name="actorq-async-publisher", daemon=True).start()
                except BaseException:  # no thread to be had: the next call tries again, and this one is told
                    item.future.cancel()
                    raise
                self._is_running = True
        return item.future

    def _run(self) -> None:
        try:
            for items in iter(self._next, None):
                self._publish([item for item in items if item.future.set_running_or_notify_cancel()])
        finally:
            self._close_port()

    def _next(self) -> list[Item] | None:
        """Wait for work, and return all of it that is there; None when there was none for long."""
        try:
            items = [self._inbox.get(timeout=IDLE_SECONDS)]
        except queue.Empty:
            with self._lock:
                if self._inbox.empty():
                    self._is_running = False
                    return None
            return []
        size = len(items[0].payloads)
        while size < MAX_AT_ONCE and not self._inbox.empty():
            items.append(self._inbox.get())
            size += len(items[-1].payloads)
        return items

    def _publish(self, items: list[Item]) -> None:
        """Publish in order; neighbours that go together in one go."""
        begin = 0
        for end in range(1, len(items) + 1):
            if end == len(items) or _key(items[end]) != _key(items[begin]):
                publish_together(self._port, items[begin:end])
                begin = end


def _key(item: Item) -> tuple[str, float]:
    """Return what must be the same for all that go together: nobody is to give up because his neighbour does."""
    return item.name, item.timeout


def publish_together(port: Callable[[], PublishPort], items: list[Item]) -> None:
    """Publish the tasks of several calls at once, and tell each what became of its own."""
    payloads = [payload for item in items for payload in item.payloads]
    error: Exception | None = None
    try:
        ids = ids_of(port().publish(chunks_of(payloads), items[0].name, items[0].timeout))
    except Exception as caught:  # noqa: BLE001  # whatever it is, it is for those who wait, and not for this thread
        error = caught
        ids = caught.published if isinstance(caught, PublishError) else []
    at = 0
    for item in items:
        mine = ids[at : at + len(item.payloads)]
        if error is None or len(mine) == len(item.payloads):
            item.future.set_result(mine)
        else:
            item.future.set_exception(for_those_from(error, max(0, at - len(ids)), mine))
        at += len(item.payloads)


def for_those_from(error: Exception, behind: int, published: list[str]) -> Exception:
    """Return the error for tasks that are so many behind the first that is not in."""
    if isinstance(error, PublishUnknownError):
        session, number = parse_task_id(error.task_id)
        error = PublishUnknownError(task_id(session, number + behind), error.seconds)
    elif isinstance(error, PublishError):
        error = copy.copy(error)  # each call has its own, which says what is in of its own
    if isinstance(error, PublishError):
        error.published = published
    return error


def chunks_of(payloads: list[bytes]) -> list[Chunk]:
    """Return payloads as they travel: so many, and so large, together."""
    chunks: list[Chunk] = []
    together: list[bytes] = []
    size = 0
    for payload in payloads:
        if together and (len(together) >= CHUNK_TASKS or size + len(payload) > CHUNK_BYTES):
            chunks.append(Chunk(together))
            together, size = [], 0
        together.append(payload)
        size += len(payload) + 1
    return [*chunks, Chunk(together)]


async def in_time(future: Future[list[str]]) -> list[str]:
    """Wait for the ids on the loop that runs."""
    import asyncio  # noqa: PLC0415  # whoever is here has it; 30 ms for those who import us and are not

    return await asyncio.wrap_future(future)


async def encoded_in_pieces(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[Chunk]:
    """Yield the payloads of a stream in pieces; the last one has the error of the item that ended it, if one did."""
    payloads: list[bytes] = []
    size = 0
    index = 0
    async for value in each_of(items):
        try:
            payload = encode_payload(value)
        except PayloadError as error:
            yield Chunk(payloads, PayloadError(error.reason, error.where, index))
            return
        payloads.append(payload)
        size += len(payload)
        index += 1
        if len(payloads) >= CHUNK_TASKS or size >= CHUNK_BYTES:
            yield Chunk(payloads)
            payloads, size = [], 0
    if payloads:
        yield Chunk(payloads)


async def each_of(items: Iterable[object] | AsyncIterable[object]) -> AsyncIterator[object]:
    """Yield the items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for value in items:
            yield value
    else:
        for value in items:
            yield value

"""The scenes of the store's tests: small logs, on a disk in memory unless the claim is about the kernel."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from actorq import failpoints
from actorq.errors import StoreError
from actorq.store.filesystem import REAL, Filesystem, StrPath
from actorq.store.format import COMMIT_MARK, RECORD_LENGTH
from actorq.store.log_reader import LogReader
from actorq.store.log_writer import LogWriter
from actorq.testing import CrashingFilesystem, Stopped, armed_failpoints

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from actorq.testing.armed import Failpoints

PATH = "Queue.json"
BOOT = "11111111-1111-1111-1111-111111111111"
NEXT_BOOT = "22222222-2222-2222-2222-222222222222"


def line(number: int, size: int = 40) -> bytes:
    """Return one line of about this size."""
    head = b',{"n":%d,"x":"' % number
    return head + b"abcdefghij"[number % 10 :][:1] * max(0, size - len(head) - 3) + b'"}\n'


def open_log(
    filesystem: Filesystem = REAL, path: StrPath = PATH, boot_id: str = BOOT, filler_step: int = 0
) -> LogWriter:
    return LogWriter.open(path, filesystem=filesystem, boot_id=boot_id, pid=4711, filler_step=filler_step)


def disk_with(batches: Iterable[bytes], *, close: bool = True, filler_step: int = 0) -> CrashingFilesystem:
    """Return a disk on which a writer has committed these batches."""
    disk = CrashingFilesystem()
    log = open_log(disk, filler_step=filler_step)
    for batch in batches:
        log.write(batch)
        log.sync()
    if close:
        log.close()
    return disk


def disk_of(content: bytes) -> CrashingFilesystem:
    disk = CrashingFilesystem()
    disk.write_bytes(PATH, content)
    return disk


def lines_in(filesystem: Filesystem = REAL, path: StrPath = PATH) -> list[bytes]:
    """Return what was committed, batch by batch, without the lines in which writers say who they are."""
    reader = LogReader(path, filesystem=filesystem)
    try:
        return [without_writer(batch.lines) for batch in reader.batches()]
    finally:
        reader.close()


def without_writer(lines: bytes) -> bytes:
    return b"".join(each for each in lines.splitlines(keepends=True) if not each.startswith(b',{"writer"'))


def reopen(disk: CrashingFilesystem, boot_id: str = BOOT) -> list[bytes] | StoreError:
    """Return what a new writer makes of the disk: the batches that it then holds, or its refusal."""
    try:
        open_log(disk, boot_id=boot_id).close()
        return lines_in(disk)
    except StoreError as error:
        return error


def end_of_commits(content: bytes) -> int:
    """Return the offset behind the last commit record of an intact file."""
    return content.rindex(b"\n" + COMMIT_MARK) + 1 + RECORD_LENGTH


@contextmanager
def killed_at(disk: CrashingFilesystem, place: str, action: str = "kill") -> Iterator[Failpoints]:
    """Have whoever comes by the place in this block die there: nothing reaches the disk any more."""

    def stop() -> None:
        raise Stopped

    def kill(_pid: int, _signal: int) -> None:
        disk.before_call = stop
        stop()

    kernel = SimpleNamespace(**vars(os) | {"kill": kill})
    with armed_failpoints(here=True) as points, mock.patch.object(failpoints, "os", kernel):
        charge = points.lay(place, action)
        with pytest.raises(Stopped):
            yield points
        assert points.taken_by(charge) is not None

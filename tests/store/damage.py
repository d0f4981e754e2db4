"""One queue file, damaged in every way that can be enumerated, and what writers, readers and `verify` make of it.

    uv run python -m tests.store.damage --kib 64 [--json]

- every bit of the file is flipped,
- blocks of 512 bytes and of 4 KiB are zeroed, blanked, swapped, repeated, and put back to what they were before,
- the file is cut off at every byte,
- a batch is torn at every byte, for payloads from one byte to three pages,
- and it is saved by editors.

Each ends in the same queue, in the cut of a torn tail, or in a refusal that names the offset, and never in another
queue. A flip at or before the last commit record never ends in a cut. The file is a compacted one with commits behind
it, the last few of which nobody is known to have synced, and filler at its end.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from actorq.errors import CorruptQueueError, StoreError, UnsupportedFormatError
from actorq.store import records
from actorq.store.compaction import Compaction
from actorq.store.fold import QueueState
from actorq.store.format import CLOSING, FILLER, HEAD_LENGTH, RECORD_LENGTH, Header
from actorq.store.log_reader import Batch, BatchReader, Link, LogReader, link_behind
from actorq.store.verify import Verdict, verify
from actorq.tasks.ids import IdRange
from actorq.testing import CrashingFilesystem
from tests.long_run import Progress, conclude, spread
from tests.store.log_on_paper import P, hello
from tests.store.scenes import BOOT, NEXT_BOOT, PATH, disk_of, open_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

BOOTS = (BOOT, NEXT_BOOT)
UNWRITTEN = b"\n\0"
CHUNK = 64
"""Bytes whose bits one piece of work flips."""

PAYLOAD_SIZES = (1, 2, 64, 300, 511, 512, 513, 4096, 3 * 4096)


class WrongStateError(AssertionError):
    """Somebody took a damaged file for another queue than it was."""


@dataclass(frozen=True)
class Specimen:
    """A good file, taken apart. ``links[k]`` stands before batch k; ``history``: what the file was at earlier times."""

    content: bytes
    header: Header
    batches: list[Batch]
    links: list[Link]
    history: list[bytes]

    @property
    def end(self) -> int:
        """Behind the last commit record."""
        return self.links[-1].offset

    def batch_at(self, offset: int) -> int:
        """Return the number of the batch in which this byte lies, or how many there are if it lies behind them."""
        return sum(batch.end <= offset for batch in self.batches)

    @classmethod
    def of(cls, disk: CrashingFilesystem, history: list[bytes]) -> Specimen:
        """Take apart what is on this disk."""
        reader = LogReader(PATH, filesystem=disk)
        links = [reader.link]
        batches = []
        for batch in reader.batches():
            batches.append(batch)
            links.append(link_behind(batch, reader.header))
        return cls(disk.read_bytes(PATH), reader.header, batches, links, history)


@cache
def specimen_of(kib: int) -> Specimen:
    """Return a file of so many KiB: a snapshot in pieces, commits, some that nobody knows to be synced, filler."""
    size = kib << 10
    chance = random.Random(kib)
    disk = CrashingFilesystem()
    history = []
    log = open_log(disk)
    log.write(records.hello_line(hello(P)))
    number = 0

    def publish(payload_size: int) -> None:
        nonlocal number
        number += 1
        looks_like = chance.choice(["abc", "]\n", ',{"', "é", "}\n,{", '{"commit":'])
        payload = json.dumps("x" + looks_like * (payload_size // len(looks_like) // 2), ensure_ascii=False)
        log.write(records.publish_lines(IdRange(P, number, number), "task", [payload.encode()]))

    for _ in range(8):
        publish(size // 70)
        log.sync()
    log.close()
    history.append(disk.read_bytes(PATH))
    compact_in_pieces(disk, size // 20)
    log = open_log(disk)
    while log.position.offset + size // 16 + 1400 < size:
        publish(chance.choice([1, 30, size // 80]))
        log.sync()
        history.append(disk.read_bytes(PATH))
    for _ in range(3):  # three that share a sync which nobody knows of
        publish(size // 40)
        history.append(disk.read_bytes(PATH))
    content = disk.read_bytes(PATH)
    assert len(content) < size
    disk.write_bytes(PATH, content + FILLER * (size - len(content)))
    return Specimen.of(disk, history)


def compact_in_pieces(disk: CrashingFilesystem, piece_bytes: int) -> None:
    """Compact the file as `compact` does, but in smaller pieces."""
    reader = LogReader(PATH, filesystem=disk)
    state = QueueState()
    for batch in reader.batches():
        state.apply(batch)
    with Compaction(PATH, reader.header, reader.link, batch.commit.at, disk) as compaction:
        for lines in snapshot_in_pieces(state, reader, piece_bytes):
            compaction.write_piece(lines)
        compaction.replace()


def snapshot_in_pieces(state: QueueState, reader: LogReader, piece_bytes: int) -> Iterator[bytes]:
    from actorq.store.snapshot import snapshot_pieces

    return snapshot_pieces(state, reader.read, None, piece_bytes)


# ---------------------------------------------------------------------------------------------------------------
# Judging one damaged file


def judge(specimen: Specimen, changed: bytes, boot_id: str) -> str:
    """Return what became of it: same, cut or refused. Raises WrongStateError if it became another queue."""
    place = differences(specimen.content, changed)
    seen = read_all(specimen, changed, place)
    disk = disk_of(changed)
    try:
        log = open_log(disk, boot_id=boot_id)
    except (CorruptQueueError, UnsupportedFormatError) as error:
        require(disk.names() == [PATH] and disk.read_bytes(PATH) == changed, "a refused file was changed")
        name_the_place(error, place)
        verified(specimen, changed, boot_id, is_good=False)
        return "refused"
    log.forget()
    if seen is None and log.recovered is None:
        # The writer reads no further back than it must; whoever replays the log refuses.
        end = log.position.offset
        require(disk.read_bytes(PATH)[:end] == changed[:end], "changed what is not at its end")
        verified(specimen, changed, boot_id, is_good=False)
        return "refused"
    whole = len(specimen.batches)
    left = read_all(specimen, disk.read_bytes(PATH), place, is_mended=True)
    assert left is not None
    require(seen in {None, left}, f"readers saw {seen} batches, the writer left {left}")
    if left < whole:
        cut = specimen.links[left].offset
        require(cut <= place.start, "cut before the damage")
        for at in range(left, whole):
            require(not is_witness(specimen, changed, at, cut=left), f"cut although commit {at} says it was synced")
        if log.recovered is None:
            require(changed[cut:].strip(UNWRITTEN) in {b"", CLOSING}, "dropped without a copy")
        else:
            require(seen is not None or boot_id != BOOT, "cut in the middle, and no power was cut")
            require(disk.read_bytes(str(log.recovered.aside)) == changed[cut:].rstrip(UNWRITTEN), "another copy")
    verified(specimen, changed, boot_id, is_good=True)
    return "same" if left == whole else "cut"


def read_all(specimen: Specimen, changed: bytes, place: range, *, is_mended: bool = False) -> int | None:
    """Return how many batches a reader sees, each as it was; None if it refuses the file."""
    try:
        reader = LogReader(PATH, filesystem=disk_of(changed))
        # After a power cut a writer goes on in a file of the next generation: other pieces, but the same offsets.
        found = [(batch.start, batch.lines) for batch in reader.batches()]
    except (CorruptQueueError, UnsupportedFormatError) as error:
        require(not is_mended, f"not readable after recovery: {error}")
        name_the_place(error, place)
        return None
    wanted = [(batch.start, batch.lines) for batch in specimen.batches]
    require(found == wanted[: len(found)], "a reader sees another queue")
    for later in range(len(found) + 1, len(wanted)):
        is_passed_over = not is_mended and record_is_there(specimen, changed, later)
        require(not is_passed_over, "a reader passes over damage in silence")
    return len(found)


def name_the_place(error: CorruptQueueError | UnsupportedFormatError, place: range) -> None:
    """Require that a refusal names where the damage begins, or the beginning of the commit in which that is."""
    if isinstance(error, CorruptQueueError):
        require(error.offset < max(place.stop, 1), f"refused at byte {error.offset}, damaged at {place}")


def record_is_there(specimen: Specimen, changed: bytes, at: int) -> bool:
    """Say whether the commit record of that batch stands untouched in its place."""
    end = specimen.batches[at].end
    return changed[end - RECORD_LENGTH - 1 : end] == specimen.content[end - RECORD_LENGTH - 1 : end]


def is_witness(specimen: Specimen, changed: bytes, at: int, *, cut: int) -> bool:
    """Say whether that batch's record still stands there and says that the one which was cut first was on disk."""
    batch = specimen.batches[at]
    return record_is_there(specimen, changed, at) and batch.commit.synced >= specimen.batches[cut].commit.number


def verified(specimen: Specimen, changed: bytes, boot_id: str, *, is_good: bool) -> None:
    """Hold what `verify` says against what became of the file."""
    report = verify(PATH, boot_id=boot_id, filesystem=disk_of(changed))
    require(report.is_ok == is_good, f"verify says {report.verdict}: {report.reason}")
    require(report.verdict is not Verdict.DAMAGED or report.offset is not None, "verify names no offset")


def differences(one: bytes, other: bytes) -> range:
    """Return the range from the first byte in which they differ to the last."""
    shorter = min(len(one), len(other))
    begin = next((at for at in range(0, shorter, 256) if one[at : at + 256] != other[at : at + 256]), shorter)
    first = next((at for at in range(begin, shorter) if one[at] != other[at]), shorter)
    if len(one) != len(other):
        return range(first, max(len(one), len(other)))
    end = next((at for at in range(shorter, 0, -256) if one[at - 256 : at] != other[at - 256 : at]), 0)
    return range(first, next((at for at in range(end, 0, -1) if one[at - 1] != other[at - 1]), 0))


def require(fact: object, otherwise: str) -> None:
    if not fact:
        raise WrongStateError(otherwise)


# ---------------------------------------------------------------------------------------------------------------
# Flips, by the hundred thousand


def flip_all(kib: int, begin: int, step: int = 1) -> Counter[str]:
    """Flip each bit of CHUNK bytes, or of every ``step``-th of them, in turn and in place. The fast way.

    Both boots look, and a reader. A writer on one disk for all of them: whatever it does beyond a sync is noticed. A
    reader begins before the batch with the changed bit: what stands before is what it was, so that is where any reader
    would be by then. `verify` reads all of the file, so it looks at one bit of each byte.
    """
    specimen = specimen_of(kib)
    content = specimen.content
    disk = disk_of(content)
    (inode,) = disk._inodes.values()
    tally: Counter[str] = Counter()
    for offset in range(begin, min(begin + CHUNK, len(content)), step):
        for bit in range(8):
            changed = content[offset] ^ 1 << bit
            if offset >= specimen.end:
                tally[judge(specimen, content[:offset] + bytes([changed]) + content[offset + 1 :], BOOTS[bit % 2])] += 1
                continue
            inode.live[offset] = inode.durable[offset] = changed
            refusals = sum(writer_refuses(disk, content, boot_id) for boot_id in BOOTS)
            refusals += reader_refuses(disk, specimen, offset)
            require(refusals, f"bit {bit} of byte {offset} changed, and nobody noticed")
            if bit == offset % 8:
                verified(specimen, bytes(inode.live), BOOTS[offset // 8 % 2], is_good=False)
            inode.live[offset] = inode.durable[offset] = content[offset]
            tally["refused"] += 1
    return tally


def writer_refuses(disk: CrashingFilesystem, content: bytes, boot_id: str) -> bool:
    calls = len(disk.calls)
    try:
        log = open_log(disk, boot_id=boot_id)
    except (CorruptQueueError, UnsupportedFormatError):
        require(len(disk.calls) == calls, "a refused file was touched")
        return True
    log.forget()
    made = [name for name, _ in disk.calls[calls:]]
    require(log.recovered is None and made == ["fdatasync"], f"answered with a cut: {log.recovered} {made}")
    del disk.calls[calls:]
    return False


def reader_refuses(disk: CrashingFilesystem, specimen: Specimen, offset: int) -> bool:
    """Say whether a reader does, that has come as far as the batch with the changed byte."""
    at = specimen.batch_at(offset)
    try:
        reader: BatchReader = LogReader(PATH, filesystem=disk)
        require(offset >= HEAD_LENGTH, "the header was changed, and a reader took it")
        reader = reader.behind(specimen.links[at])
        found = list(reader.batches())
    except (CorruptQueueError, UnsupportedFormatError) as error:
        if isinstance(error, CorruptQueueError):
            wanted = 0 if offset < HEAD_LENGTH else specimen.links[at].offset
            require(error.offset == wanted, f"a reader names byte {error.offset}, not {wanted}")
        return True
    require(not found, "a reader took a damaged batch")
    require(at == len(specimen.batches) - 1, "a reader passed over damage in silence")
    return False


# ---------------------------------------------------------------------------------------------------------------
# Everything else


def blocks(specimen: Specimen, step: int) -> Iterator[tuple[str, bytes]]:
    """Yield the file with one block damaged, at every ``step``-th byte."""
    content = specimen.content
    for size in (512, 4096):
        for at in range(0, specimen.end, step):
            end = min(at + size, len(content))
            here, behind = content[at:end], content[end : end + size]
            before = content[max(0, at - size) : at]
            older = [version[at:end] for version in specimen.history[-1:0:-4] if len(version) > at]
            replacements = {
                "zeroed": bytes(len(here)),
                "blanked": FILLER * len(here),
                "repeated": (before or here)[-len(here) :].ljust(len(here), FILLER),
                **{f"stale {age}": old.ljust(len(here), FILLER) for age, old in enumerate(older)},
                "of the file before": specimen.history[0][at:end].ljust(len(here), FILLER),
            }
            for name, new in replacements.items():
                yield f"{size} bytes at {at} {name}", content[:at] + new + content[end:]
            yield f"{size} bytes at {at} swapped", content[:at] + behind + here + content[end + len(behind) :]


def truncations(specimen: Specimen, step: int) -> Iterator[tuple[str, bytes]]:
    """Yield the file cut off at every ``step``-th byte, at the end of every line, and one byte to either side."""
    content = specimen.content
    ends = {at + 1 + near for at in range(len(content)) if content[at] == 10 for near in (-1, 0, 1)}
    for length in sorted(ends.union(range(0, specimen.end + 3, step))):
        if length < len(content):
            yield f"cut off at {length}", content[:length]


def editors(specimen: Specimen) -> dict[str, bytes]:
    """Return what programs make of the file that open and save it."""
    content = specimen.content
    lines = content[: specimen.end + 1].splitlines(keepends=True)
    middle = len(lines) // 3
    reordered = b",%b\n" % json.dumps(dict(reversed(json.loads(lines[middle][1:]).items()))).encode()
    value = json.loads(content)
    return {
        "CR LF": content.replace(b"\n", b"\r\n"),
        "byte order mark": b"\xef\xbb\xbf" + content,
        "UTF-16": content.decode().encode("utf-16"),
        "compact": json.dumps(value, separators=(",", ":")).encode(),
        "one line": json.dumps(value).encode(),
        "pretty": json.dumps(value, indent=2).encode(),
        "pretty, tabs": json.dumps(value, indent="\t").encode(),
        "sorted keys": json.dumps(value, sort_keys=True).encode(),
        "sorted keys, a line each": b"[\n" + b"\n,".join(json.dumps(each, sort_keys=True).encode() for each in value),
        "a line each": b"[\n" + b"\n,".join(json.dumps(each, separators=(",", ":")).encode() for each in value) + b"]",
        "trailing blank on every line": content.replace(b"\n", b" \n"),
        "trailing blank on one line": b"".join([*lines[:middle], lines[middle][:-1] + b" \n", *lines[middle + 1 :]]),
        "keys of one line in another order": b"".join([*lines[:middle], reordered, *lines[middle + 1 :]]),
        "one blank line more": b"".join([*lines[:middle], b"\n", *lines[middle:]]),
        "one line twice": b"".join([*lines[:middle], lines[middle], *lines[middle:]]),
        "one line less": b"".join([*lines[:middle], *lines[middle + 1 :]]),
        "a blank line before the bracket": content[: specimen.end] + b"\n]\n",
        "a changed name": content.replace(b'"name":"task"', b'"name":"tusk"', 1),
    }


def harmless(specimen: Specimen) -> dict[str, bytes]:
    """Return what may stand at the end of the file without any harm."""
    whole = specimen.content[: specimen.end]
    ends = [b"", b"]", b"]\n", b"]\r\n", b"] ", b"]\n  \n", b"]\n\n\n"]
    return {repr(end): whole + end for end in ends}


def torn(payload_size: int, *, step: int = 1) -> Iterator[tuple[Specimen, str, bytes]]:
    """Yield a file whose last batch, with a payload of that size, is torn at every ``step``-th byte."""
    for filler_step in (0, 1 << 14):
        disk = CrashingFilesystem()
        log = open_log(disk, filler_step=filler_step)
        for number, size in ((1, 40), (2, payload_size)):
            payload = b'"%b"' % (b"a" * (size - 2)) if size > 1 else b"1"
            log.write(records.publish_lines(IdRange(P, number, number), "task", [payload]))
            log.sync()
            if number == 1:
                before = disk.read_bytes(PATH)
        specimen = Specimen.of(disk, [])
        start = specimen.links[1].offset
        for cut in range(start, specimen.end, step):
            # What a write did not get to is what was there: filler, or the end of the file.
            old = before[cut:] if cut > start else before[start:]
            yield specimen, f"{payload_size} bytes, filler {filler_step}, torn at {cut}", specimen.content[:cut] + old


def judge_all(cases: Iterable[tuple[Specimen, str, bytes]]) -> tuple[Counter[str], list[str]]:
    """Judge all of them, on both boots; return how they ended, and what is wrong."""
    tally: Counter[str] = Counter()
    violations = []
    for specimen, name, changed in cases:
        if changed != specimen.content:
            for boot_id in BOOTS:
                try:
                    tally[judge(specimen, changed, boot_id)] += 1
                except (WrongStateError, StoreError, AssertionError) as error:
                    violations.append(f"{name}, {'same' if boot_id is BOOT else 'another'} boot: {error}")
    return tally, violations


# ---------------------------------------------------------------------------------------------------------------


def flip_chunk(kib: int, begin: int) -> tuple[Counter[str], list[str]]:
    try:
        return flip_all(kib, begin), []
    except (WrongStateError, StoreError) as error:
        return Counter(), [f"flips from byte {begin}: {error}"]


def other_chunk(kib: int, part: int, step: int, number: int) -> tuple[Counter[str], list[str]]:
    """Return what became of one part in so many of everything that is not a flip."""
    specimen = specimen_of(kib)
    cases: list[Iterable[tuple[Specimen, str, bytes]]] = [
        ((specimen, *case) for case in made)
        for made in (
            blocks(specimen, step),
            truncations(specimen, max(1, step // 16)),
            editors(specimen).items(),
            harmless(specimen).items(),
        )
    ]
    cases += [torn(size) for size in PAYLOAD_SIZES]
    return judge_all(itertools.islice(itertools.chain(*cases), part, None, number))


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.store.damage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kib", type=int, default=64, help="size of the file")
    parser.add_argument("--step", type=int, default=32, help="bytes between two damaged blocks")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", action="store_true", help="write one object as the last line")
    asked = parser.parse_args(arguments)
    progress = Progress()
    flips, others = Counter[str](), Counter[str]()
    violations: list[str] = []
    chunks = range(0, asked.kib << 10, CHUNK)
    for done, (tally, wrong) in enumerate(spread(partial(flip_chunk, asked.kib), chunks, asked.workers), 1):
        flips += tally
        violations += wrong
        progress.say(f"{flips.total():,} flips, {done} of {len(chunks)} chunks")
    parts = 64
    work: Callable[[int], tuple[Counter[str], list[str]]] = partial(other_part, asked.kib, asked.step, parts)
    for done, (tally, wrong) in enumerate(spread(work, range(parts), asked.workers), 1):
        others += tally
        violations += wrong
        progress.say(f"{others.total():,} blocks, truncations and torn batches, {done} of {parts} parts")
    report = {
        "bytes": asked.kib << 10,
        "flips": flips.total(),
        "flips_refused": flips["refused"],
        "flips_harmless": flips["same"],
        "flips_cut": flips["cut"],
        "others": others.total(),
        "others_refused": others["refused"],
        "others_cut": others["cut"],
        "others_same": others["same"],
        "wrong": len(violations),
        "seconds": progress.seconds,
    }
    return conclude(report, violations[:20], as_json=asked.json)


def other_part(kib: int, step: int, parts: int, part: int) -> tuple[Counter[str], list[str]]:
    return other_chunk(kib, part, step, parts)


if __name__ == "__main__":
    sys.exit(main())

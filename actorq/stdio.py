"""The numbers 0, 1 and 2, which a program may have closed: no descriptor of ours is to stand in their place."""

from __future__ import annotations

import os

STDIO = (0, 1, 2)


def above_stdio(fd: int) -> int:
    """Return the fd, moved above 2: whatever writes to a standard stream that is none any more would write into ours.

    SQLite has lost databases to that; see "How To Corrupt An SQLite Database File", 2.5.
    """
    if fd not in STDIO:
        return fd
    import fcntl  # noqa: PLC0415  # hardly ever needed, and elsewhere than on Unix there is none

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(STDIO))
    finally:
        os.close(fd)

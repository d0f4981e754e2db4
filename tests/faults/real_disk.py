"""Small real file systems for tests that need root: an ext4 in a file, whose power can be cut, and a tmpfs."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FS_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
"""Nothing more reaches the disk, the journal included: what a power cut does."""

SYNC_FILE_RANGE_AND_WAIT = 7
UNMOUNT_SECONDS = 20.0


class MissingMeansError(Exception):
    """This machine cannot do it; the text names what is missing."""


class Ext4:
    """An ext4 file system in a file of its own, mounted at ``folder``."""

    def __init__(self, place: Path, size: int = 256 << 20) -> None:
        self.image = place / "disk.img"
        self.folder = place / "disk"
        self.folder.mkdir()
        with self.image.open("wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard", self.image)
        self.mount()

    def mount(self) -> None:
        """Mount it; the journal is replayed, as after a power cut."""
        run("mount", "-o", "loop", self.image, self.folder)

    def cut_power(self) -> None:
        """From here nothing reaches the image any more, and every sync fails."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        except OSError as error:
            raise MissingMeansError(f"ext4 cannot be shut down by ioctl here: {error}") from error
        finally:
            os.close(fd)

    def unmount(self) -> None:
        """Unmount it, as soon as the processes that were killed have let go."""
        deadline = time.monotonic() + UNMOUNT_SECONDS
        while True:
            done = subprocess.run(["umount", self.folder], capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                raise OSError(f"umount: {done.stderr}")
            time.sleep(0.01)

    def remount(self) -> None:
        """What a machine does when the power is back."""
        self.unmount()
        self.mount()


@contextmanager
def ext4(place: Path) -> Iterator[Ext4]:
    """Lend an ext4; afterwards no mount, loop device or image is left. Raises MissingMeansError."""
    require("mkfs.ext4", "mount")
    disk = None
    try:
        disk = Ext4(place)
        yield disk
    finally:
        # Lazily, whatever happened: the loop device goes with the last user.
        subprocess.run(["umount", "-l", place / "disk"], capture_output=True, check=False)
        (place / "disk.img").unlink(missing_ok=True)


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Path]:
    """Lend a folder on a file system of that size. Raises MissingMeansError."""
    require("mount")
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], capture_output=True, check=False)


def write_out(path: Path, offset: int, length: int) -> None:
    """Bring these dirty pages of a file to the disk, and no other, and not the file's size."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(path, os.O_RDWR)
    try:
        result = libc.sync_file_range(
            ctypes.c_int(fd), ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(SYNC_FILE_RANGE_AND_WAIT)
        )
        if result != 0:
            raise OSError(ctypes.get_errno(), "sync_file_range")
    finally:
        os.close(fd)


def require(*programs: str) -> None:
    """Raise MissingMeansError unless this is root and has these programs."""
    if os.geteuid() != 0:
        raise MissingMeansError("needs root to mount a file system")
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise MissingMeansError(f"needs {', '.join(missing)}")


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingMeansError(f"{command[0]} does not work here: {done.stderr.strip()}")

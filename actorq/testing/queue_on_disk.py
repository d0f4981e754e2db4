"""A Queue on a disk in memory, for stories of publishes and power cuts."""

from __future__ import annotations

from typing import TYPE_CHECKING, override

from actorq.direct_publisher import DirectPublisher
from actorq.queue import Queue
from actorq.steering import DirectSteering
from actorq.view import View

if TYPE_CHECKING:
    from actorq.brokers.session import Finder
    from actorq.store.filesystem import StrPath
    from actorq.testing.crashing_filesystem import CrashingFilesystem


class QueueOnDisk(Queue):
    """A Queue whose file lies on that disk. Its locks lie beside the path, on the kernel's, and so do its brokers.

    ``boot_id``: of the machine; after a power cut it is another one.
    """

    def __init__(self, path: StrPath, disk: CrashingFilesystem, boot_id: str) -> None:
        self.disk = disk
        self.boot_id = boot_id
        super().__init__(path)

    @override
    def _new_view(self) -> View:
        return View(self.path, self.disk)

    @override
    def _new_direct_publisher(self, way_in: Finder) -> DirectPublisher:
        return DirectPublisher(self.path, self._limits, self.disk, self.boot_id, way_in)

    @override
    def _new_direct_steering(self, way_in: Finder) -> DirectSteering:
        return DirectSteering(self.path, way_in, self.disk, self.boot_id)

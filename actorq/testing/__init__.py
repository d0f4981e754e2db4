"""What tests of a durable thing need.

crashing_filesystem.py   a disk that forgets what was not synced, and fails on demand
queue_on_disk.py         a Queue whose file lies there
armed.py                 processes that die, stop or stumble at the places that `actorq.failpoints` names
"""

from actorq.testing.armed import Failpoints, Laid, NotTakenError, Taken, armed_failpoints
from actorq.testing.crashing_filesystem import PAGE, SECTOR, CrashingFilesystem, Stopped
from actorq.testing.queue_on_disk import QueueOnDisk

__all__ = [
    "PAGE",
    "SECTOR",
    "CrashingFilesystem",
    "Failpoints",
    "Laid",
    "NotTakenError",
    "QueueOnDisk",
    "Stopped",
    "Taken",
    "armed_failpoints",
]

"""A run's presence in a ledger, which lasts as long as the process that drives the run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from typing import BinaryIO

from rambla_ray.ledger.segments import SUFFIX
from rambla_ray.storage import Folder


def new_segment() -> str:
    """A name for a segment that no other has, without its suffix."""
    return f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:12]}"


class Presence:
    """A segment's name, and on a disk its lock.

    The service that writes the segment holds the lock, too. So while it is being started again, after its death alone,
    other runs do not take what the run's actors still ask for theirs.

    Attributes:
        segment: the name, without its suffix.
    """

    def __init__(self, folder: Folder) -> None:
        self.segment = new_segment()
        self._path = folder.local_path(self.segment + SUFFIX)
        self._file: BinaryIO | None = None
        if folder.is_local:
            with contextlib.suppress(OSError):  # Then the service says what is wrong with the folder.
                folder.create()  # Another run that made it, and was refused, may have removed it while it was empty.
                self._file = folder.open_new(self.segment + SUFFIX)
                fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def __del__(self) -> None:
        if self._file is not None:
            with self._file, contextlib.suppress(OSError):
                if not os.path.getsize(self._path):
                    os.unlink(self._path)

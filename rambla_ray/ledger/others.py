"""What other processes write into a ledger's folder while this one uses it: their answers, and what they ask.

They meet in a register, a file that names the segments being written. Whoever claims holds the register's lock
meanwhile: it reads what the others have appended, decides, appends its own claims, and lets go. And each holds a lock
on its own segment for as long as it lives, shared with the process that drives its run (see `presence`). So a writer
that died is known at once, without a clock, as the kernel or the file server takes its lock away.

The locks are those of flock(2): they belong to an open file, not to a process, and a file server has them, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from rambla_ray.inputs import reason_of
from rambla_ray.ledger.clock import WakingClock
from rambla_ray.ledger.index import Index
from rambla_ray.ledger.record import Kind
from rambla_ray.ledger.segments import SUFFIX, Complete, Growing
from rambla_ray.storage import Folder

REGISTER = "writers.lock"  # In it, the name of each segment that has a writer, or lately had one, is a line.
REGISTER_BYTES = 1 << 20  # It is never as large.
MANY_DEAD = 64  # So many names of the dead are left in it.
SILENT_S = 30.0  # A living writer that has not stirred for so long is held to be stopped; each stirs every 2 s.


@dataclass(slots=True)
class Writer:
    """Another process that writes, as far as its segment has been read."""

    path: bytes
    segment: int  # its number in the index
    read_to: int = 0  # So many bytes were taken in, all of them whole lines.
    asking: set[str] = field(default_factory=set)  # request_ids that it has claimed, and that have not ended
    stamp: tuple[int, int] = (0, 0)  # of its segment: size, and when it was changed by the disk's clock
    stirred: float = 0.0  # when that was last found to be another, by this process's clock
    is_silent: bool = False


class Others:
    """The other writers of one folder. On a disk without locks, or in a bucket, there are none to be seen.

    Args:
        folder: the ledger's.
        own: the name of this process's segment.
        index: takes in their lines.
        clock: tells how long they have been silent.
    """

    def __init__(self, folder: Folder, own: str, index: Index, clock: WakingClock) -> None:
        self._folder, self._register_path = folder, folder.local_path(REGISTER)
        self._own_name, self._own_file = own, -1
        self._index, self._clock = index, clock
        self._is_on = folder.is_local
        self._writers: dict[str, Writer] = {}  # by the name of its segment; those that live
        self._seen: set[str] = set()  # names in the register that were looked at
        self._register = b""  # as it was last read
        self._locked = -1  # the open register, while this process has the lock
        self._freed: set[str] = set()  # what the others no longer ask, since the last look
        self.note = ""  # for the user: why the others cannot be seen

    @property
    def are_there(self) -> bool:
        """Whether any others write, as far as is known from the last look."""
        return bool(self._writers)

    def are_asking(self, request_id: str) -> bool:
        """Whether another process asks a request, as far as is known from the last look."""
        return any(request_id in writer.asking and not writer.is_silent for writer in self._writers.values())

    def meet(self) -> set[str]:
        """Find who writes already, before the folder is read; returns the names of their segments."""
        if self._is_on:
            with contextlib.suppress(OSError), open(self._register_path, "rb") as file:
                self._find_writers(file.read(REGISTER_BYTES))
        return set(self._writers)

    def enter(self, own: BinaryIO) -> None:
        """Lock this process's segment, and let the others know of it; those that do not claim need not know."""
        if not self._is_on:
            return
        with self._sharing():
            fcntl.flock(own, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._own_file = own.fileno()
            if self._locked >= 0:
                self._write_register()

    def lock(self) -> bool:
        """Let nobody else claim, until `unlock`; whether that could be done at once.

        It always can where there are no locks: then everybody is alone.
        """
        if not self._is_on:
            return True
        with self._sharing():
            self._locked = self._folder.open_descriptor(REGISTER)
            try:
                fcntl.flock(self._locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.unlock()
                return False
            self._read_register()
        return True

    def unlock(self) -> None:
        """Let the others claim, who see what this process has claimed."""
        if self._locked >= 0:
            if self._own_file >= 0:
                # To take a lock that one has does nothing on a local disk; NFS sends what was written to its server.
                with contextlib.suppress(OSError):
                    fcntl.flock(self._own_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.close(self._locked)
            self._locked = -1

    def look(self) -> set[str]:
        """Take in what they have written since; returns what none of them asks any more, though one did."""
        for name, writer in list(self._writers.items()):
            try:
                is_alive = self._read(writer)
            except OSError:  # Somebody deleted it.
                is_alive = False
            if not is_alive:
                del self._writers[name]
                self._end(writer)
        freed, self._freed = {request_id for request_id in self._freed if not self.are_asking(request_id)}, set()
        return freed

    def stir(self) -> None:
        """Show the others that this process is not stopped."""
        if self._own_file >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._own_file)

    def leave(self) -> None:
        """Be as dead to the others: nobody is to wait for claims whose end cannot be written."""
        if self._own_file >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._own_file, fcntl.LOCK_UN)
            self._own_file = -1

    @contextlib.contextmanager
    def _sharing(self) -> Iterator[None]:
        """While inside, an OSError means that from now on this process claims as if it were alone."""
        try:
            yield
        except OSError as error:
            self._is_on = False
            self.unlock()
            self.note = (
                f"the ledger '{self._folder.location}' cannot be locked ({reason_of(error)}): runs that use it at the "
                "same time may each ask what they have in common"
            )

    def _read_register(self) -> None:
        content = os.pread(self._locked, REGISTER_BYTES, 0)
        is_missing = self._own_file >= 0 and self._own_name.encode() not in content
        if content != self._register or is_missing:
            self._find_writers(content)
            self._register = content
            self._write_register()

    def _write_register(self) -> None:
        """Add who is missing, as this process at first, and leave out the dead when they have become many."""
        living = {*self._writers, *([self._own_name] if self._own_file >= 0 else [])}
        names = self._register.decode(errors="replace").split("\n")[:-1]
        missing = living.difference(names)
        is_torn = not self._register.endswith(b"\n") and bool(self._register)
        if is_torn or len(names) + len(missing) - len(living) > MANY_DEAD:
            os.ftruncate(self._locked, 0)
            self._register, missing = b"", living
        added = "".join(f"{name}\n" for name in sorted(missing)).encode()
        os.write(self._locked, added)
        self._register += added

    def _find_writers(self, register: bytes) -> None:
        """Begin to read the segments that a register names and that were not looked at before."""
        for name in register.decode(errors="replace").split("\n")[:-1]:
            if name not in self._seen and name != self._own_name and name.endswith(SUFFIX) and "/" not in name:
                path = self._folder.local_path(name)
                self._writers[name] = Writer(path, self._index.put(Growing(path)), stirred=self._clock.now())
            self._seen.add(name)

    def _read(self, writer: Writer) -> bool:
        """Take in a writer's new lines; whether it lives."""
        file = _opened(writer.path)
        try:
            is_alive = not _is_free(file)  # Before it is read: of one that is dead, all is there.
            status = os.fstat(file)
            self._listen(writer, (status.st_size, status.st_mtime_ns))
            if status.st_size < writer.read_to:  # It took back what it could not write as a whole.
                writer.read_to = status.st_size
            if status.st_size > writer.read_to:
                self._take_lines(writer, file, is_alive=is_alive)
        finally:
            os.close(file)
        return is_alive

    def _take_lines(self, writer: Writer, file: int, *, is_alive: bool) -> None:
        with open(file, "rb", closefd=False) as lines:
            lines.seek(writer.read_to)
            for line in lines:
                if is_alive and not line.endswith(b"\n"):
                    return  # It is being written: it will be whole at another look.
                head = self._index.take(writer.segment, writer.read_to, line)
                writer.read_to += len(line)
                if head is not None:
                    self._follow(writer, *head)

    def _follow(self, writer: Writer, kind: str, request_id: str) -> None:
        """Keep account of what a writer asks."""
        if kind == Kind.CLAIM:
            writer.asking.add(request_id)
        elif request_id in writer.asking:
            writer.asking.remove(request_id)
            self._freed.add(request_id)

    def _end(self, writer: Writer) -> None:
        """A writer is dead: nothing that it claimed is asked any more, and its segment stays as it is."""
        self._freed |= writer.asking
        with contextlib.suppress(OSError):
            self._index.replace(writer.segment, Complete.of(writer.path))

    def _listen(self, writer: Writer, stamp: tuple[int, int]) -> None:
        """Note whether a writer has stirred. Only a change counts, so that two machines' clocks may differ."""
        now = self._clock.now()
        if stamp != writer.stamp:
            writer.stamp, writer.stirred = stamp, now
        was_silent, writer.is_silent = writer.is_silent, now - writer.stirred > SILENT_S
        if writer.is_silent and not was_silent:
            self._freed |= writer.asking


def _opened(path: bytes) -> int:
    """A file, opened for writing if it may be, without which NFS does not lock it against all others."""
    try:
        return os.open(path, os.O_RDWR)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _is_free(file: int) -> bool:
    """Whether nobody has the lock of an open file, as on a disk that has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True

"""The lease of a run directory: while one invocation of a run goes on, no other begins.

Its holder writes `lease.json` anew every few seconds, and deletes it at the end. Who finds one decides whether its
holder lives. On the same machine the holder's process says so at once, also where it is only suspended. Elsewhere a
lease that does not change for a while, by the clock of who looks, is a dead one's: clocks of two machines are never
compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, Self

from rambla_ray.display import print_error
from rambla_ray.errors import NotWritten, UserError
from rambla_ray.inputs import reason_of
from rambla_ray.results.holder import LEASE_FORMAT, Holder, Process
from rambla_ray.storage import Folder

LEASE = "lease.json"
BEAT_S = 2.0  # A bucket may take a file of one name no more often than once a second.
DEAD_AFTER_S = 10.0  # A lease that nobody has renewed for so long is a dead one's.
LOOK_S = 0.25  # So often who waits looks again.
SETTLE_S = 1.0  # Where files cannot be locked, whoever writes at the same time has done so after this.
SETTLE_LOOKS = 8  # So often a lease is read anew that somebody is writing just then.
LONGEST_END_S = 10.0  # A heartbeat that is being written when the run ends is waited for so long.


class Clock(NamedTuple):
    """The time, in seconds, of who looks at a lease."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Verdict(Enum):
    """What somebody who looks at a lease makes of it."""

    FREE = auto()
    ALIVE = auto()
    DEAD = auto()
    UNCLEAR = auto()  # It has to be seen whether the lease changes.


class Observer:
    """Judges a lease by what it has seen of it so far.

    Args:
        here: the process that looks.
    """

    def __init__(self, here: Process) -> None:
        self._here = here
        self._first: bytes | None = None
        self._since = 0.0

    def judge(self, seen: bytes | None, now: float) -> Verdict:
        """What a lease is, which holds these bytes at a time; None where there is none."""
        if seen is None:
            return Verdict.FREE
        holder = Holder.parse(seen)
        if holder is not None and holder.process.is_of_machine(self._here):
            return Verdict.ALIVE if holder.process.is_running() else Verdict.DEAD
        if self._first is None:
            self._first, self._since = seen, now
        if seen != self._first:
            return Verdict.ALIVE
        return Verdict.DEAD if now - self._since >= DEAD_AFTER_S else Verdict.UNCLEAR


@dataclass(eq=False)
class Lease:
    """A lease that this process holds; it is renewed while entered, and given up on leaving.

    Args:
        folder: the run directory.
        holder: what the lease says.
    """

    folder: Folder
    holder: Holder
    lost: str = ""  # Why the run must stop: another invocation holds the lease by now. Empty while it does not.

    def __post_init__(self) -> None:
        self._may_be_there = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @classmethod
    def of(cls, folder: Folder, run_id: str) -> Self:
        """The lease of a run for the present process, which has not taken it yet."""
        return cls(folder, Holder.of(Process.present(), run_id))

    def take(self, clock: Clock = Clock()) -> Self:  # noqa: B008 - it is a constant
        """Take the lease, where need be after some seconds in which a holder might show that it lives.

        Args:
            clock: that of the present process.

        Raises:
            UserError: another invocation of the run goes on, or the lease cannot be read or written.
        """
        observer, looks = Observer(self.holder.process), 0
        while (unclear := self._try(observer, clock)) is not None:
            looks += 1
            if looks == 2:  # At the first look it may have been half written.
                print_error(_waiting_note(self.holder.run_id, unclear), "note")
            clock.sleep(LOOK_S)
        return self

    def _try(self, observer: Observer, clock: Clock) -> bytes | None:
        """Take the lease where nobody alive holds it; returns that of a holder of whom it is not clear yet."""
        with _alone(self.folder) as is_alone:
            seen = _read(self.folder)
            verdict = observer.judge(seen, clock.now())
            if verdict is Verdict.ALIVE:
                raise UserError(self._refusal(seen))
            if verdict is Verdict.UNCLEAR:
                return seen
            self._write_first()
        if not is_alone:
            self._settle(clock)
        return None

    def _write_first(self) -> None:
        self.holder = self.holder.alive_now()
        self._may_be_there = True
        try:
            self.folder.write(LEASE, self.holder.to_json())
            for draft in self.folder.names(".tmp"):  # of a holder that was killed in the middle of a heartbeat
                if draft.startswith(LEASE):
                    self.folder.filesystem.delete_file(self.folder.path(draft))
        except OSError as error:
            raise UserError(f"{self.folder.child(LEASE)} cannot be written: {reason_of(error)}") from None

    def _settle(self, clock: Clock) -> None:
        """Of those who took the lease at the same moment, the last one has it."""
        clock.sleep(SETTLE_S)
        seen = _read(self.folder)
        for _ in range(SETTLE_LOOKS):
            if seen is not None and Holder.parse(seen) is not None:
                break
            clock.sleep(LOOK_S)  # Somebody is writing it just now.
            seen = _read(self.folder)
        if seen != self.holder.to_json():
            raise UserError(self._refusal(seen))

    def _refusal(self, seen: bytes | None) -> str:
        where = f"run {self.holder.run_id} ({self.folder.location}) goes on already"
        other = Holder.parse(seen or b"")
        if other is None:
            return f"{where}: somebody renews its {LEASE}, which is not of format {LEASE_FORMAT}; wait for its end"
        return (
            f"{where}: {other}; wait for its end, or stop it there (kill -INT {other.process.pid}), and then run the "
            "same command again"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Renew it no more, and delete it if it was taken: the run is free."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(LONGEST_END_S)
        if self._thread.is_alive() or not self._may_be_there:
            return  # What it is writing must not come after the lease is deleted.
        with contextlib.suppress(OSError, UserError):
            if self._is_own(_read(self.folder)):
                self.folder.filesystem.delete_file(self.folder.path(LEASE))

    def _beat(self) -> None:
        while not self.lost and not self._over.wait(BEAT_S):
            self.renew()

    def renew(self) -> None:
        """Show that the holder lives, unless another has taken the lease meanwhile; `lost` then says so.

        Where that cannot be read or written, the run goes on: its answers are in the ledger, and if the disk is full,
        its own results say so.
        """
        with contextlib.suppress(OSError, UserError):
            seen = _read(self.folder)
            if seen is not None and not self._is_own(seen):
                self.lost = _lost(self.folder, seen)
                return
            self.holder = self.holder.alive_now()
            self.folder.write(LEASE, self.holder.to_json())

    def _is_own(self, seen: bytes | None) -> bool:
        """Whether a lease is this one; what nobody can read may be what is left of it."""
        holder = Holder.parse(seen or b"")
        return holder is None or holder.token == self.holder.token


class HeldFolder(Folder):
    """A folder of a run whose lease this process holds: where it has lost it, nothing more is written.

    Args:
        folder: the folder, which is the same but for that.
        lease: the run's.
    """

    def __init__(self, folder: Folder, lease: Lease) -> None:
        vars(self).update(vars(folder))
        self._lease = lease

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """As `Folder.writing`. Raises NotWritten, too, where another invocation has taken the run over."""
        if self._lease.lost:
            raise NotWritten(self._lease.lost)
        with super().writing():
            yield


@contextlib.contextmanager
def _alone(folder: Folder) -> Iterator[bool]:
    """While inside, no other process of this machine is, if this gives True: not in a bucket or on some network disks.

    What is locked is the folder itself, and for no longer than it takes to read and write a lease.
    """
    with contextlib.ExitStack() as stack:
        is_locked = False
        with contextlib.suppress(OSError):
            if folder.is_local:
                number = os.open(folder.local_path("."), os.O_RDONLY)
                stack.callback(os.close, number)
                fcntl.flock(number, fcntl.LOCK_EX)
                is_locked = True
        yield is_locked


def _read(folder: Folder) -> bytes | None:
    """The lease of a run as it stands there; None where there is none. Raises UserError."""
    try:
        return folder.read(LEASE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{folder.child(LEASE)} cannot be read: {reason_of(error)}; it says who runs this run now: if nobody "
            "does, delete it"
        ) from None


def _waiting_note(run_id: str, seen: bytes) -> str:
    holder = Holder.parse(seen)
    who = f"was begun by {holder}" if holder else f"has a {LEASE} that nobody can read"
    return f"run {run_id} {who}; it is waited {DEAD_AFTER_S:.0f} s for a sign of life from there"


def _lost(folder: Folder, seen: bytes) -> str:
    return f"run {folder.location} has been taken over by {Holder.parse(seen)}; this invocation writes nothing more"

"""Who holds the lease of a run: what its file says, and what the operating system says of that process."""

from __future__ import annotations

import os
import socket
import time
import uuid
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LEASE_FORMAT: Literal[1] = 1  # A change that an earlier reader would misread raises it; a new member does not.
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _Stored(BaseModel):
    """A part of a lease. What a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class Process(_Stored):
    """A process, as far as its own machine can tell whether it still runs."""

    host: str = Field(description="the machine's name, for people: two machines may have the same")
    machine: str = Field(description="this boot of this machine and the namespace of its pids; empty where unknown")
    pid: int = Field(gt=0, lt=2**31, description="in that namespace")
    since: str = Field(description="when it began, in the machine's ticks: pids are used again; empty where unknown")

    @classmethod
    def present(cls) -> Self:
        """The present process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), machine=_machine(), pid=pid, since=_began(pid) or "")

    def is_of_machine(self, other: Process) -> bool:
        """Whether another process can look at this one.

        Containers of one machine do not see each other's processes; machines that were cloned while they ran have all
        but their names in common.
        """
        return self.machine != "" and (self.machine, self.host) == (other.machine, other.host)

    def is_running(self) -> bool:
        """Whether it runs, or is suspended, on this machine."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # It is another user's.
            pass
        return _began(self.pid) in (self.since, None)


def _machine() -> str:
    """What tells machines, their boots and their containers apart; empty where the system does not say."""
    try:
        return f"{_BOOT.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """When a process of this machine began: "gone" where it only waits to be reaped, None where it is not shown."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return "gone" if state in (b"Z", b"X") else fields[18].decode()


class Holder(_Stored):
    """What a lease says. Times are Unix times, by the clock of the holder's machine."""

    format: Literal[1] = Field(description="LEASE_FORMAT")
    token: str = Field(min_length=1, description="of this invocation alone")
    run_id: str = Field(description="the run")
    process: Process
    started: float = Field(description="when the invocation began")
    heartbeat: float = Field(description="when it last showed that it lives")

    @classmethod
    def of(cls, process: Process, run_id: str) -> Self:
        """A process that begins to run a run now."""
        now = time.time()
        return cls(
            format=LEASE_FORMAT, token=uuid.uuid4().hex, run_id=run_id, process=process, started=now, heartbeat=now
        )

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """Who holds a lease; None where it is damaged, or of a newer format."""
        try:
            return cls.model_validate_json(data)
        except ValidationError:
            return None

    def alive_now(self) -> Self:
        """The same with another heartbeat."""
        return self.model_copy(update={"heartbeat": time.time()})

    def to_json(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"

    def __str__(self) -> str:
        began, beat = _shown(self.started), _shown(self.heartbeat)
        return f"pid {self.process.pid} on {self.process.host}, since {began}, last seen alive {beat} by its clock"


def _shown(at: float) -> str:
    """A Unix time for people."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    except (ValueError, OverflowError, OSError):
        return f"{at:g}"

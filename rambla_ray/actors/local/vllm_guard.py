"""A program that ends vLLM's processes once the process that started them is gone, however it ended.

    python vllm_guard.py FOLDER

Its standard input is a pipe whose other end that process holds. Those whose environment names the folder are asked to
end (they remove their shared memory then), are killed if they do not, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

MARK = "RAMBLA_RAY_ENGINE"
MEMORY = "/dev/shm/"  # noqa: S108
SHARED = (f"{MEMORY}psm_", f"{MEMORY}sem.mp-")  # What multiprocessing calls its shared memory.
LAST_WORDS_S = 15.0  # vLLM's processes have so long to end by themselves.


def marked(folder: str) -> dict[int, int]:
    """The processes whose environment names the folder, and their parents. Python's own tracker ends by itself."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # It has ended, or is another user's.
            is_ours = f"{MARK}={folder}".encode() in (process / "environ").read_bytes().split(b"\0")
            if is_ours and b"resource_tracker" not in (process / "cmdline").read_bytes():
                found[int(process.name)] = int(
                    (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1]
                )
    return found


def remaining(folder: str, until: float) -> Iterator[dict[int, int]]:
    """What is left of them, now and then, until nothing is or the time has come."""
    while (processes := marked(folder)) and time.monotonic() < until:
        yield processes
        time.sleep(0.1)


def end(folder: str) -> None:
    """End all of them: first those that started the others."""
    processes = marked(folder)
    _send(signal.SIGTERM, [process for process, parent in processes.items() if parent not in processes])
    for _ in remaining(folder, time.monotonic() + LAST_WORDS_S):
        pass
    kill(folder)


def kill(folder: str) -> None:
    """End all of them at once, and remove their shared memory."""
    left = shared_memory(folder)
    _send(signal.SIGKILL, list(marked(folder)))
    remove(left)


def shared_memory(folder: str) -> set[Path]:
    """The shared memory that they have, as files.

    It is known by its inode: a semaphore is mapped by the name that it had before its own.
    """
    mapped = set()
    for process in marked(folder):
        with contextlib.suppress(OSError):  # It has ended.
            for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines():
                inode, _, path = line.split(maxsplit=4)[4].partition(" ")
                if path.lstrip().startswith(MEMORY):
                    mapped.add(inode)
    return {file for file, inode in lying().items() if str(inode) in mapped}


def lying() -> dict[Path, int]:
    """All of this machine's shared memory that may be theirs, with the inode of each."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(MEMORY):
            if entry.path.startswith(SHARED):
                found[Path(entry.path)] = entry.inode()
    return found


def remove(files: set[Path]) -> None:
    """Remove what is still there of some files."""
    for file in files:
        file.unlink(missing_ok=True)


def _send(signum: int, processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signum)


def main(folder: str) -> None:
    """Wait for the end of the pipe, from which shared memory is read, and end what is left.

    It does so in a process that is no child of the one that holds the pipe: Ray kills those together.
    """
    if os.fork():
        os._exit(0)
    words = sys.stdin.read().split()
    end(folder)
    remove({Path(word) for word in words if word.startswith(SHARED)})
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])

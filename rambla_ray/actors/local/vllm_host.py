"""What vLLM's processes have of this machine: cores of their own, a log of why they failed, a guard that ends them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from rambla_ray.actors.local import vllm_guard
from rambla_ray.display import folded

RECORD = "\x1e"  # Each record of the log begins with it.
RAISED = re.compile(r"^((?:\w+\.)*\w*(?:Error|Exception|Exit)): (.+)", re.MULTILINE)
LOGGING = "VLLM_LOGGING_CONFIG_PATH"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
FAILED = "EngineCore failed to start"  # What vLLM logs of a start that fails.
GUARD_S = 30.0  # The guard has so long for what does not end by itself.
LOOK_S = 0.1  # The log and what is shared are looked at so often while an engine starts.
LAST_WORDS_S = 5.0  # A process that has failed to start has so long to end.


class Host:
    """The surroundings of one engine. They are given up by `close`, or when this process ends.

    Args:
        threads: as many threads compute, each on a core that no other engine of this user has; None where a GPU does.
        settings: more of the environment of vLLM's processes.
    """

    def __init__(self, threads: int | None, settings: Mapping[str, str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rambla_ray-vllm-"))
        self._log = self._folder / "log"
        self._cores = Cores(threads) if threads is not None and BINDING not in os.environ else None
        self._noted: set[Path] = set()  # The shared memory that the guard knows of.
        self._in_memory: dict[Path, int] = {}  # What lay in the machine's shared memory when that was last looked at.
        self._has_changed = False  # Whether it was other than before then.
        self._settings = {
            vllm_guard.MARK: str(self._folder),
            "SPT_NOENV": "1",  # The names that vLLM gives its processes leave their environment readable.
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_RPC_BASE_PATH": str(self._folder),  # Its sockets lie there, which it does not remove.
            **settings,
        }
        if LOGGING not in os.environ:
            self._settings[LOGGING] = str(self._log_to_file())
        if self._cores:
            self._settings |= self._cores.settings
        self._guard = self._start_guard()

    def _start_guard(self) -> subprocess.Popen[bytes]:
        """The guard: a process of its own session, which the signals for this one do not reach."""
        command = [sys.executable, "-I", "-S", str(Path(vllm_guard.__file__)), str(self._folder)]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, env={}, start_new_session=True)  # noqa: S603
        guard.wait()  # It has gone on in a process of its own.
        return guard

    def _log_to_file(self) -> Path:
        """A logging config by which vLLM writes its errors to a file beside what it writes already."""
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "line": {"format": "%(levelname)s %(asctime)s [%(name)s] %(message)s"},
                "record": {"format": f"{RECORD}%(message)s"},
            },
            "handlers": {
                "stream": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"},
                "file": {
                    "class": "logging.FileHandler",
                    "formatter": "record",
                    "level": "ERROR",
                    "filename": str(self._log),
                    "delay": True,
                },
            },
            "loggers": {"vllm": {"handlers": ["stream", "file"], "level": "INFO", "propagate": False}},
        }
        file = self._folder / "logging.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        return file

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """The environment in which the engine's processes are to be started."""
        before = {name: os.environ.get(name) for name in self._settings}
        os.environ.update(self._settings)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """A start of the engine in this environment, which ends when its processes have failed.

        A process of vLLM 0.29 that has failed can hang at its end (pyzmq's `Context.term`, where Ray is imported), and
        who started it then waits for ever. By then it has let go of its shared memory without removing it, so what the
        processes share is noted from the start on.
        """
        over = threading.Event()
        watch = threading.Thread(target=self._watch_start, args=(over,), daemon=True)
        watch.start()
        try:
            with self.environment():
                yield
        finally:
            over.set()
            watch.join()
            self._note_shared_memory()

    def _watch_start(self, over: threading.Event) -> None:
        until = math.inf  # When those that have failed are ended.
        while not over.wait(LOOK_S):
            self._note_shared_memory()
            if FAILED in self._logged():
                until = min(until, time.monotonic() + LAST_WORDS_S)
            if time.monotonic() >= until:
                vllm_guard.kill(str(self._folder))

    def _logged(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_text(encoding="utf-8", errors="replace")
        return ""

    def cause(self) -> str:
        """What vLLM's processes say of why they failed, in one line; empty where they say nothing."""
        return first_cause(self._logged())

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """The end of the engine: afterwards nothing of it is left."""
        try:
            yield
        finally:
            self.close()
            until = time.monotonic() + GUARD_S
            while self._folder.exists() and time.monotonic() < until:  # The guard removes it at its end.
                time.sleep(0.1)

    def _note_shared_memory(self) -> None:
        """Tell the guard what the engine's processes share that it does not know of."""
        before, self._in_memory = self._in_memory, vllm_guard.lying()
        changed, self._has_changed = self._has_changed, self._in_memory != before
        if not (changed or self._has_changed):  # What was made since the last look need not be mapped yet.
            return
        files = vllm_guard.shared_memory(str(self._folder)) - self._noted
        self._noted |= files
        if self._guard.stdin and files:
            with contextlib.suppress(BrokenPipeError):  # Somebody has ended the guard.
                self._guard.stdin.write("".join(f"{file}\n" for file in files).encode())
                self._guard.stdin.flush()

    def close(self) -> None:
        """Have the guard end what is left, and give the cores back."""
        if self._guard.stdin:
            self._guard.stdin.close()
        if self._cores:
            self._cores.close()


def first_cause(log: str) -> str:
    """The first error of a log: the exception that ended its traceback, or its own words."""
    first = log.removeprefix(RECORD).partition(RECORD)[0]
    raised = RAISED.findall(first)
    return folded(f"{raised[-1][0].rpartition('.')[2]}: {raised[-1][1]}" if raised else first.partition("\n")[0])


class Cores:
    """Cores of this machine, which no other engine of this user computes on for as long as this process holds them.

    Without so many free ones none is held, and the threads are bound to none.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: dict[int, IO[bytes]] = {}
        with contextlib.suppress(OSError):  # Without a folder for the locks no core is held.
            self._take()

    def _take(self) -> None:
        folder = Path(tempfile.gettempdir()) / f"rambla_ray-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / "all").open("ab") as everything:
            fcntl.flock(everything, fcntl.LOCK_EX)  # One engine chooses at a time.
            for core in sorted(os.sched_getaffinity(0)):
                if len(self._held) < self._count and (lock := _locked(folder / str(core))):
                    self._held[core] = lock
        if len(self._held) < self._count:
            self.close()

    @property
    def numbers(self) -> list[int]:
        """Those that are held."""
        return sorted(self._held)

    @property
    def settings(self) -> dict[str, str]:
        """The environment by which vLLM computes on them."""
        if self._held:
            return {BINDING: ",".join(map(str, self.numbers))}
        return {BINDING: "nobind", "OMP_NUM_THREADS": str(self._count)}

    def close(self) -> None:
        """Give them back."""
        for lock in self._held.values():
            lock.close()
        self._held.clear()


def _locked(path: Path) -> IO[bytes] | None:
    """A file with a lock on it, which lasts until it is closed; None where another process has that."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file

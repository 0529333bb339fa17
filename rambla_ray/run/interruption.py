"""SIGINT and SIGTERM before anything has been asked: the process, and what it has started, end at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from rambla_ray.run.status import ExitStatus

if TYPE_CHECKING:
    from psutil import Process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAG_S = 1.0  # The thread that ends the process may notice a signal so much later than the main thread.
END_S = 2.0  # The main thread stands still for so long, while the process ends; that takes a tenth of a second.
LAST_ACTS_S = 1.0  # What is done last has so long.


class Interruption:
    """While entered, SIGINT and SIGTERM end this process with one line, whatever it is doing.

    A handler that raises KeyboardInterrupt would not do: it waits for the end of a call into a library, which may be
    minutes for a connection to a cluster, gets lost in a callback, and turns an import into another error. So a thread
    ends the process, and the handler keeps the main thread from going on. There is nothing to lose: nothing has been
    asked, and what is in files is written whole or not at all.

    Args:
        line: what it says on stderr.

    Attributes:
        last_acts: what is to be given back before the process ends; they may be called while the main thread stands
            still anywhere.
    """

    def __init__(self, line: str) -> None:
        self.line = line
        self.last_acts = contextlib.ExitStack()
        self._handlers: dict[signal.Signals, Any] = {}
        self._listening = contextlib.ExitStack()
        self._is_ending = threading.Event()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other set a handler.
            self._listen()
            self._handlers = {number: signal.signal(number, self._stand_still) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SystemExit) and self._handlers:  # Ray's own handler of SIGTERM, while Ray starts.
            self._is_ending.wait(LAG_S)
        self._stop_listening()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def hand_over(self) -> None:
        """From here on, SIGINT and SIGTERM are a KeyboardInterrupt in the main thread, for it to end in order."""
        for number in self._handlers:
            signal.signal(number, signal.default_int_handler)
        self._stop_listening()

    def _listen(self) -> None:
        """Have a thread read the numbers of the signals that come, which Python writes also during a call into C."""
        self._stderr = os.dup(2)  # Number 2 is turned elsewhere while Ray starts.
        self._listening.callback(os.close, self._stderr)
        arrivals, sender = socket.socketpair()
        sender.setblocking(False)
        listener = threading.Thread(target=self._end_at_a_signal, args=(arrivals,), name="interruption", daemon=True)
        listener.start()
        self._listening.callback(listener.join)
        self._listening.callback(sender.close)
        earlier = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        self._listening.callback(signal.set_wakeup_fd, earlier)

    def _stop_listening(self) -> None:
        self._stand_still_if_ending()
        self._listening.close()

    def _stand_still(self, number: int, frame: FrameType | None) -> None:
        self._is_ending.wait(LAG_S)
        self._stand_still_if_ending()

    def _stand_still_if_ending(self) -> None:
        if self._is_ending.is_set():
            threading.Event().wait(END_S)

    def _end_at_a_signal(self, arrivals: socket.socket) -> None:
        """Runs in a thread of its own, until the other end is closed."""
        with arrivals:
            while number := arrivals.recv(1):
                if number[0] in SIGNALS:
                    self._is_ending.set()
                    self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._stderr, f"{self.line}\n".encode(errors="backslashreplace"))
        end_children()
        last = threading.Thread(target=self.last_acts.close, daemon=True)
        last.start()
        last.join(LAST_ACTS_S)
        os._exit(ExitStatus.INTERRUPTED)


def end_children() -> None:
    """End the processes that this one has started, and theirs: first none of them may start another."""
    import psutil  # Not before it is needed: what is imported before signals are listened to ends in a traceback.

    found: set[Process] = set()
    while new := set(psutil.Process().children(recursive=True)) - found:
        found |= new
        for process in new:
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()

"""When an endpoint lets nobody through, as one actor sees it: outages, long pauses, and when waiting is given up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from rambla_ray.actors.api.admission import Admission, Permit
from rambla_ray.actors.api.waits import LONGEST_WAIT_S
from rambla_ray.errors import CallError, ErrorKind

IN_A_ROW = 10  # So many calls in a row, of more than one request, that fail without an answer are an outage.
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 15.0  # The wait before the first probe; it doubles with each that fails.
LONG_PAUSE_S = 30.0  # A pause of this length or more is a note to the user.

TROUBLE = frozenset({ErrorKind.SERVER, ErrorKind.TIMEOUT, ErrorKind.CONNECTION})
# A call that ends in one of these was dealt with: the endpoint is there.
DEALT_WITH = frozenset({ErrorKind.TOO_LONG, ErrorKind.REFUSED, ErrorKind.BAD_REQUEST, ErrorKind.OVERSIZED})


class Patience:
    """Counts the time in which an endpoint holds everybody back, and gives up when it is too long without an answer.

    A wait for a rate limit of the user's own, or for a slot, does not count. Times are those of the event loop.

    Args:
        limit_s: how much is too long, in seconds.
        give_up: called then.
    """

    def __init__(self, limit_s: float, give_up: Callable[[], None]) -> None:
        self.limit_s = limit_s
        self._give_up = give_up
        self._before_s = 0.0  # The stretches before the present one, or the last, which is this:
        self._began = self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, until: float) -> None:
        """Nobody is let through from now until then."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._before_s += self._until - self._began
            self._began = now
        self._until = max(self._until, until)
        self._set_timer()

    def reset(self, until: float) -> None:
        """Somebody was answered; others may be held back until then all the same."""
        self._before_s = 0.0
        self._began = asyncio.get_running_loop().time()
        self._until = max(self._began, until)
        self._set_timer()

    @property
    def held_s(self) -> float:
        """How long nobody has been let through so far."""
        return self._before_s + min(self._until, asyncio.get_running_loop().time()) - self._began

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._began + self.limit_s - self._before_s
        self._timer = asyncio.get_running_loop().call_at(due, self._give_up) if due <= self._until else None


class EndpointWatch:
    """Recognises an outage by how calls end, lets one call at a time probe for its end, and gives up in time.

    An outage begins with a call that finds no connection, or with `IN_A_ROW` calls in a row that fail by connection,
    timeout or 5xx, which one request alone may do for reasons of its own. It ends with the first answer to anybody.

    Args:
        endpoint: its name, for messages.
        admission: what lets the actor's calls in.
        give_up_after_s: when all who wait are refused, in seconds without an answer.
    """

    def __init__(self, endpoint: str, admission: Admission, give_up_after_s: float) -> None:
        self.notify: Callable[[str], None] = print  # Takes a line that the user should see.
        self.answers = 0  # Calls that were answered, or at least dealt with.
        self.gave_up = False  # Since the last answer.
        self._endpoint = endpoint
        self._admission = admission
        self._patience = Patience(give_up_after_s, self._give_up)
        self._is_calm = True  # All calls have been answered lately, and no pause is asked for.
        self._in_a_row = 0
        self._first_in_row: object = None
        self._are_several = False  # The calls in the row are of more than one request.
        self._error = ""  # The message of the last call that failed, since the last answer.
        self._asked_s = 0.0  # The last wait that the endpoint asked for.
        self._began = 0.0  # When the present outage began.
        self._failed_probes = 0
        self._outages = 0  # How many there were, counted from the first probe that fails.
        self._noted_until = 0.0  # The last note explains until then why nothing goes on.
        admission.on_pause = self._on_pause

    def answered(self) -> None:
        """A call got its answer."""
        self.answers += 1
        if not self._is_calm:
            self._recover()

    def failed(self, error: CallError | None, request: object, permit: Permit, answers: int) -> None:
        """A call ended without an answer; the error learns whether that was for an outage.

        Args:
            error: why; None where it was cancelled, or ended by a bug.
            request: what stands for the call's request, the same object for all its calls.
            permit: the call's.
            answers: the number of `answers` when it began.
        """
        kind = error.kind if error is not None else None
        if kind in DEALT_WITH:
            self.answered()
            return
        self._is_calm = False
        if error is not None:
            self._error = error.message
        if kind in TROUBLE:
            self._in_a_row += 1
            self._first_in_row = self._first_in_row or request
            self._are_several |= request is not self._first_in_row
        no_connection = error is not None and error.unsent and answers == self.answers
        if self._admission.is_probing:
            if permit.is_probe:
                self._probe_failed()
        elif no_connection or (self._in_a_row >= IN_A_ROW and self._are_several):
            self._begin()
        if error is not None:
            error.in_outage = error.unsent and self._admission.is_probing

    def asked_to_wait(self, seconds: float) -> None:
        """The endpoint asks everybody to wait; each long pause is one note to the user."""
        now, wait_s = asyncio.get_running_loop().time(), min(seconds, LONGEST_WAIT_S)
        self._asked_s = seconds
        if wait_s >= LONG_PAUSE_S and now >= self._noted_until:
            self._noted_until = now + wait_s
            until = f"is asked again after {wait_s:.0f} s" if wait_s < seconds else "is not asked until then"
            self.notify(f"{self._endpoint} asks for a wait of {seconds:.0f} s, and {until}")

    @property
    def _reason(self) -> str:
        """Why nobody is let through."""
        return self._error or f"it asks for a wait of {self._asked_s:.0f} s"

    def check(self, *, again: bool) -> None:
        """Raise CallError (`unavailable`) where a call would wait for an endpoint that was given up.

        Without an outage, one that is `again` waits: its request ends as what its calls ended in, in its own time.
        """
        admission = self._admission
        if self.gave_up and admission.is_shut and not admission.is_closed and (admission.is_probing or not again):
            raise self.refusal()

    def refusal(self) -> CallError:
        """What those get who have waited too long."""
        waited = f"{self._patience.limit_s:g} s (rate.give_up_after_s)"
        message = f"{self._endpoint} has let nobody through for {waited}: {self._reason}"
        return CallError(ErrorKind.UNAVAILABLE, message)

    def _on_pause(self, until: float) -> None:
        self._is_calm = False
        self._patience.hold(until)
        held_s = self._patience.held_s
        if held_s >= LONG_PAUSE_S and asyncio.get_running_loop().time() >= self._noted_until:
            self._noted_until = math.inf
            self.notify(f"{self._endpoint} has let nobody through for {held_s:.0f} s: {self._reason}")

    def _begin(self) -> None:
        self._began, self._failed_probes = asyncio.get_running_loop().time(), 0
        self._patience.hold(math.inf)
        self._admission.probe_after(FIRST_PROBE_S)

    def _probe_failed(self) -> None:
        self._failed_probes += 1
        if self._failed_probes == 1:
            self._outages += 1
            again = f" again, outage {self._outages}" if self._outages > 1 else ""
            self.notify(
                f"{self._endpoint} lets nobody through{again} ({self._reason}); its calls wait, and one at a time "
                f"tries again, for {self._patience.limit_s:g} s at most (rate.give_up_after_s)"
            )
        self._patience.hold(math.inf)
        self._admission.probe_after(min(LONGEST_PROBE_S, FIRST_PROBE_S * 2**self._failed_probes))

    def _recover(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._admission.is_probing:
            self._admission.end_probing()
            if self._failed_probes:
                self.notify(f"{self._endpoint} answers again, after {now - self._began:.0f} s")
        self._in_a_row, self._first_in_row, self._are_several, self.gave_up = 0, None, False, False
        self._error = ""
        if self._noted_until == math.inf:
            self._noted_until = now
        self._patience.reset(self._admission.paused_until)
        self._is_calm = self._admission.paused_until <= now

    def _give_up(self) -> None:
        self.gave_up = True
        self._admission.refuse(self.refusal, first_calls_only=not self._admission.is_probing)

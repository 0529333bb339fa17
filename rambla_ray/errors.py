"""One error tree: what a user can fix, what a call can end in, and what stops a run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from enum import StrEnum

from rambla_ray.redaction import redacted
from rambla_ray.schema import ONE_CALL


class RamblaError(Exception):
    """Base of every error this package raises on purpose. No message of one holds a secret, whatever it quotes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if type(arg) is str else arg for arg in args))


class UserError(RamblaError):
    """Bad input: one line that says what, where and what to do. The command line exits with 1."""


class RunStopped(RamblaError):
    """A run that cannot go on (a rejected key, an unknown engine) but can be resumed. Exit code 4."""


class NotWritten(RunStopped):
    """Results that could not be written, as a disk is full. What was answered is in the ledger."""


class NotStored(RamblaError):
    """A record that could not be written to the ledger, and is lost."""


class Draining(RamblaError):
    """The run is being stopped: nothing new is asked. The sample stays as it is."""


class ErrorKind(StrEnum):
    """Why a call gave no answer. The kind alone decides whether it is tried again and how the sample ends."""

    RATE_LIMITED = "rate_limited"  # 429: wait and try again
    TIMEOUT = "timeout"  # no reply before the deadline
    CONNECTION = "connection"  # refused, reset or cut off
    SERVER = "server"  # 5xx, and the few 4xx that pass by themselves
    GARBAGE = "garbage"  # a reply that is not what the API promises
    OVERSIZED = "oversized"  # a reply too large to be read
    TOO_LONG = "too_long"  # the prompt does not fit the model
    REFUSED = "refused"  # a content filter, on the way in or out
    BAD_REQUEST = "bad_request"  # any other 4xx
    AUTH = "auth"  # 401; 403 for every prompt
    UNSUPPORTED = "unsupported"  # 4xx for every prompt: a parameter of the config that the engine does not take
    NOT_FOUND = "not_found"  # 404, 405: no such engine or path
    QUOTA = "quota"  # 402; 429 that waiting will not cure: the credit is used up
    UNAVAILABLE = "unavailable"  # the endpoint has let nobody through for too long
    LOAD = "load"  # the model itself cannot be loaded
    OUT_OF_MEMORY = "out_of_memory"  # one request alone is too much for the device
    DIED = "died"  # the process that asked it died, three times
    BAD_ITEM = "bad_item"  # the dataset item cannot be asked
    INTERNAL = "internal"  # a fault of this package or of a library, confined to its sample


LONGEST_LIST = 30  # A message that offers a nearest match lists no more names than this.
LISTED_CHARACTERS = 250  # A list of names is cut after so many characters.

RETRYABLE = frozenset(
    {ErrorKind.RATE_LIMITED, ErrorKind.TIMEOUT, ErrorKind.CONNECTION, ErrorKind.SERVER, ErrorKind.GARBAGE}
)
FATAL = frozenset(
    {
        *(ErrorKind.LOAD, ErrorKind.AUTH, ErrorKind.UNSUPPORTED, ErrorKind.NOT_FOUND, ErrorKind.QUOTA),
        ErrorKind.UNAVAILABLE,
    }
)


class CallError(RamblaError):
    """One call to a model that gave no answer.

    Args:
        kind: what happened.
        message: one line for a reader; never holds a key or a prompt.
        retry_after_s: how long the endpoint asked us to wait, in seconds.
        unsent: there was no connection to send the request on.
    """

    def __init__(
        self, kind: ErrorKind, message: str, *, retry_after_s: float | None = None, unsent: bool = False
    ) -> None:
        self.kind = kind
        self.message = " ".join(redacted(message).split())[:500]
        super().__init__(kind, self.message)
        self.retry_after_s = retry_after_s
        self.unsent = unsent
        self.in_outage = False  # Nobody's call gets through: this one does not count against its request.
        self.prompt_tokens = self.completion_tokens = 0  # What the reply says that it cost all the same.
        self.trace = ONE_CALL

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


def choose_from(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: the nearest match and the list of what exists, if it is short."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    if hint and len(names) > LONGEST_LIST:
        return hint.rstrip()
    return f"{hint}there {'are' if len(names) != 1 else 'is'}: {listed(names)}"


def listed(names: Sequence[str]) -> str:
    """Names with commas; of those that would take too many characters, the first ones and how many there are more."""
    if not names:
        return "none"
    shown, room = 1, LISTED_CHARACTERS - len(names[0])
    while shown < len(names) and (room := room - len(names[shown]) - 2) >= 0:
        shown += 1
    some, more = ", ".join(names[:shown])[:LISTED_CHARACTERS], len(names) - shown
    return f"{some} and {more} more" if more else some

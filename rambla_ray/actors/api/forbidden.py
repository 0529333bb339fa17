"""Whose fault a 403 is: the prompt's, which a filter on the way has turned down, or the key's.

The status does not say, and the words are those of whatever stands before the endpoint: a moderation's reasons, the
page of a firewall, nothing at all. What other requests get decides it: a key that gets answers is good.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from rambla_ray.actors.model import Answered, RunContext
from rambla_ray.errors import CallError, Draining, ErrorKind

# So many prompts that are forbidden one after the other, while none is answered, are not the prompts' fault.
MANY = 32


class About(Enum):
    """What the body of a 403 is about, as far as that can be seen."""

    PROMPT = "prompt"  # It gives reasons that lie in the prompt.
    PAGE = "page"  # It is a page for people, as a firewall sends.
    UNKNOWN = "unknown"


class Forbidden(CallError):
    """A 403. It counts as a rejected key, unless `KeyDoubt` finds that the prompt is meant."""

    def __init__(self, message: str, about: About) -> None:
        super().__init__(ErrorKind.AUTH, message)
        self.about = about

    def as_error(self, kind: ErrorKind) -> CallError:
        """The same as an error of one kind."""
        error = CallError(kind, self.message)
        error.prompt_tokens, error.completion_tokens = self.prompt_tokens, self.completion_tokens
        return error


class KeyDoubt:
    """What becomes of the requests of one actor that got a 403. They wait here, outside of any slot.

    As soon as another request is answered, they are the prompts' fault. Once every request that is left has got a
    403, or many have and no call is in flight, it is decided with what there is: what the run knows of other actors
    and of earlier invocations, what the bodies are about, and how many they are.

    Attributes:
        asking: requests that have no end yet, those that wait here among them.
        calling: calls in flight.
        context: of the run, which knows of other actors.
    """

    def __init__(self) -> None:
        self.asking = self.calling = 0
        self.context = RunContext()
        self._has_answered = False
        self._in_a_row = 0  # 403s since the last answer.
        self._open: dict[asyncio.Future[CallError], Forbidden] = {}
        self._inquiry: asyncio.Task[None] | None = None
        self._is_draining = False

    @property
    def _is_good(self) -> bool:
        """The key gets answers: it has got one, and not many 403s since then, as if it had been withdrawn."""
        return self._has_answered and self._in_a_row < MANY

    def answer_came(self) -> None:
        """A request has been answered."""
        self._has_answered, self._in_a_row = True, 0

    async def judge(self, error: Forbidden) -> CallError:
        """The error that a 403 comes to, once that is known. Raises Draining when the run is being stopped."""
        self._in_a_row += 1
        if self._is_good:
            return error.as_error(ErrorKind.REFUSED)
        if self._is_draining:
            raise Draining
        verdict: asyncio.Future[CallError] = asyncio.get_running_loop().create_future()
        self._open[verdict] = error
        self.settle()
        try:
            return await verdict
        finally:
            del self._open[verdict]

    def settle(self) -> None:
        """Look again at those that wait, after a request has ended."""
        if not self._open:
            return
        if self._is_good:
            self._decide(Answered.NOW)
        elif self._is_decisive() and (self._inquiry is None or self._inquiry.done()):
            self._inquiry = asyncio.create_task(self._inquire())
            self._inquiry.add_done_callback(self._inquiry_ended)

    def drain(self) -> None:
        """The run is being stopped: what is open stays so, and the next invocation asks again."""
        self._is_draining = True
        for verdict in self._open:
            if not verdict.done():
                verdict.set_exception(Draining())

    def _is_decisive(self) -> bool:
        return len(self._open) >= self.asking or (len(self._open) >= MANY and not self.calling)

    async def _inquire(self) -> None:
        answered = Answered.NOW if self._has_answered else await self.context.answered()
        if self._is_good or self._is_decisive():  # Others may have come meanwhile; then their ends settle it.
            self._decide(answered)

    def _inquiry_ended(self, inquiry: asyncio.Task[None]) -> None:
        if not inquiry.cancelled() and (error := inquiry.exception()) is not None:  # Nobody is to wait for ever.
            for verdict in self._open:
                if not verdict.done():
                    verdict.set_exception(error)

    def _decide(self, answered: Answered) -> None:
        """End the wait of all."""
        count = len(self._open)
        for verdict, error in self._open.items():
            if not verdict.done():
                is_of_prompt = self._is_good or self._blames_prompt(error, answered, count)
                verdict.set_result(error.as_error(ErrorKind.REFUSED if is_of_prompt else ErrorKind.AUTH))

    def _blames_prompt(self, error: Forbidden, answered: Answered, count: int) -> bool:
        """Whether a 403 is about its prompt, where `count` requests got one and this actor has no fresh answer."""
        match answered:
            case Answered.NOW:  # Before many 403s in a row, or by another actor.
                return not self._has_answered or count < MANY
            case Answered.BEFORE:
                return count == 1 or (count < MANY and error.about is not About.UNKNOWN)
        return count == 1 and error.about is About.PROMPT

"""One batch of a provider, from before it is sent for to what became of each of its requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from rambla_ray.actors.api.batch_provider import BatchLine, BatchProvider, BatchState
from rambla_ray.actors.api.http import HttpReply
from rambla_ray.actors.model import BatchBook
from rambla_ray.config.sections import Batch
from rambla_ray.display import counted
from rambla_ray.errors import RETRYABLE, CallError, ErrorKind
from rambla_ray.ledger.batches import BatchMark

FIRST_POLL_S = 1.0  # A batch is looked at no more often.
POLL_SHARE = 0.05  # It is looked at again after this share of the time that it has taken.
# A batch that is cancelled is waited for as long as before, within these bounds.
LEAST_CANCEL_S, CANCEL_S = 10.0, 900.0
SHORTEST_PAUSE_S = 0.01
CREATE_PAUSE_S = 1.0  # After a creation that may have worked, so long is waited before it is looked for.


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of one request of a batch. Times are seconds.

    Args:
        batch: the provider's name of the batch.
        reply: what a live call would have got; None where the batch did not ask it.
        why: where it did not, the reason in one line.
        began: when the batch was created, as Unix time.
        took_s: how long it took from its creation to its end.
    """

    batch: str
    reply: HttpReply | None
    why: str
    began: float
    took_s: float


class Stage(Enum):
    """What a batch waits for."""

    SENDING = "sending"
    WAITING = "waiting"
    OVER = "over"


class NotThere(Exception):
    """A batch that was written down is not at the provider, or of no use there."""


class BatchRun:
    """One batch.

    Args:
        provider: whose it is.
        book: where it is written down.
        mark: what is known of it.
        lines: what is in it, of a batch that is still to be sent; of one that was found in the ledger, none.
        terms: how long it is waited for.
        give_up_after_s: how long the creation is tried.
        notify: shows the user a line.
        on_change: called when its state has changed.
    """

    def __init__(
        self,
        provider: BatchProvider,
        book: BatchBook,
        mark: BatchMark,
        lines: Sequence[BatchLine],
        terms: Batch,
        give_up_after_s: float,
        notify: Callable[[str], None],
        on_change: Callable[[], None],
    ) -> None:
        self._provider, self._book, self._lines = provider, book, lines
        self._terms, self._give_up_after_s = terms, give_up_after_s
        self._notify, self._on_change = notify, on_change
        self._is_ours_for_sure = True  # Its name is what a creation returned, or stands in the ledger.
        self._asked_wait_s = 0.0  # Until the next look, as the last reply asked.
        self.mark = mark
        self.stage = Stage.SENDING
        self.state = BatchState("", is_over=False)

    async def begin(self) -> None:
        """Send for it, or find it at the provider.

        Raises:
            NotThere: it was found in the ledger, and not at the provider.
            CallError: the provider refuses it, or cannot be reached.
        """
        try:
            await (self._send() if self._lines else self._attach())
        except CallError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            reason = f"the endpoint has no batch API ({error.message}); leave batch out"
            raise CallError(ErrorKind.NOT_FOUND, reason) from None
        self.stage = Stage.WAITING

    async def results(self) -> Mapping[str, BatchResult]:
        """What became of its requests, by request_id, once it has ended. Raises as `begin` does."""
        await self._wait()
        replies: dict[str, HttpReply | None] = {}

        def take(request_id: str, reply: HttpReply | None) -> None:
            if replies.get(request_id) is None:
                replies[request_id] = reply

        await self._provider.read(self.state, take)
        ours = {request_id: replies.get(request_id) for request_id in self.mark.request_ids}
        if not self._is_ours_for_sure and not replies.keys() & ours.keys():
            # It is another's: nothing of it is deleted.
            self.mark, self.state = replace(self.mark, batch=""), BatchState("", is_over=False)
            raise NotThere
        self._note_the_end(sum(reply is not None for reply in ours.values()))
        return {request_id: self._result(reply, is_said=request_id in replies) for request_id, reply in ours.items()}

    async def close(self) -> None:
        """Once the ends of its requests are durable: nobody is to attach to it any more, and nothing of it is kept."""
        await self._book.stored(self.mark.request_ids)
        await self._end(self.state.word)

    async def give_up(self) -> None:
        """Nobody is to attach to it any more, since it is not there."""
        await self._end("not there")

    async def _end(self, word: str) -> None:
        self.mark = replace(self.mark, ended=word)
        await self._book.write(self.mark.line_of("ended"))
        with contextlib.suppress(CallError):  # What cannot be deleted is left.
            await self._provider.discard(self.mark, self.state)

    async def _send(self) -> None:
        """Write it down, and send for it. Each step is durable before the next."""
        await self._book.write(self.mark.first_line())
        self.mark = replace(self.mark, input_file=await self._provider.upload(self.mark, self._lines))
        await self._book.write(self.mark.line_of("input_file"))  # It fails where the run is dead, which sends nothing.
        batch = await self._create()
        self.mark = replace(self.mark, batch=batch, created=time.time())
        await self._book.write(self.mark.line_of("batch", "created"))
        self._lines = ()
        self._notify(f"batch {batch} of {counted(self.mark.count, 'request')} was sent")

    async def _create(self) -> str:
        """Create it, once: after an error that may have come too late, it is looked for first."""
        give_up_at = time.monotonic() + self._give_up_after_s
        while True:
            try:
                return await self._provider.create(self.mark, self._lines)
            except CallError as error:
                wait_s = max(CREATE_PAUSE_S, error.retry_after_s or 0.0)
                if error.kind not in RETRYABLE or time.monotonic() + wait_s > give_up_at:
                    raise
            await asyncio.sleep(wait_s)
            if found := await self._found():
                return found

    async def _found(self) -> str:
        """The provider's name of it, if it was created; empty too where the provider has no list of batches."""
        try:
            return await self._provider.find(self.mark)
        except CallError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
        self._notify("the provider lists no batches: one that was made, and whose name is not known, is not found")
        return ""

    async def _attach(self) -> None:
        """Find at the provider what was found in the ledger. Raises NotThere."""
        if not self.mark.batch:
            self._is_ours_for_sure = self._provider.keeps_tags
            batch = await self._found()
            if not batch:
                raise NotThere
            self.mark = replace(self.mark, batch=batch, created=self.mark.at)
            await self._book.write(self.mark.line_of("batch", "created"))
        try:
            self.state = await self._provider.state(self.mark.batch)
        except CallError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                raise NotThere from None
            if error.kind not in RETRYABLE:
                raise
        if self.state.refused:
            raise NotThere
        self._notify(
            f"batch {self.mark.batch} goes on, with {counted(len(self.mark.request_ids), 'request')} of this run"
        )

    async def _wait(self) -> None:
        """Look at it until it is over; when its time is, cancel it. Raises CallError."""
        most_s = self._terms.max_wait_s
        deadline, is_cancelled = self.mark.created + most_s, False
        # One that is found long after its deadline is cancelled, too, before it is given up: it may have answers.
        last = max(deadline, time.time()) + min(CANCEL_S, max(LEAST_CANCEL_S, most_s))
        while not await self._looked(last):
            if time.time() >= last:
                tried = ", though it was cancelled" if is_cancelled else ""
                self._notify(f"batch {self.mark.batch} does not end{tried}: its answers are lost")
                return
            if time.time() >= deadline and not is_cancelled and self._is_ours_for_sure:
                is_cancelled = await self._cancel()
            await asyncio.sleep(self._pause(deadline))
        if self.state.refused:
            raise CallError(ErrorKind.LOAD, f"the provider refuses batch {self.mark.batch}: {self.state.refused}")

    async def _looked(self, last: float) -> bool:
        """Look at it; whether it is over. Who cannot be reached is asked again, but for a last time."""
        self._asked_wait_s = 0.0
        try:
            self.state = await self._provider.state(self.mark.batch)
        except CallError as error:
            if error.kind is ErrorKind.NOT_FOUND:
                gone = f"the provider has batch {self.mark.batch} no more; the same command sends another"
                raise CallError(ErrorKind.LOAD, gone) from None
            if error.kind not in RETRYABLE or time.time() >= last:
                raise
            self._asked_wait_s = error.retry_after_s or 0.0
        self._on_change()
        return self.state.is_over

    async def _cancel(self) -> bool:
        """Whether that need not be tried again."""
        try:
            await self._provider.cancel(self.mark.batch)
        except CallError as error:
            return error.kind not in RETRYABLE  # It may have ended just now.
        waited = f"batch.max_wait_s={self._terms.max_wait_s:g}"
        self._notify(f"batch {self.mark.batch} has not ended within {waited}, and is cancelled: what it has is taken")
        return True

    def _pause(self, deadline: float) -> float:
        """How long to wait before the next look: up to the deadline and not beyond, and after it not for long."""
        now, most = time.time(), self._terms.poll_s
        pause = min(most, max(FIRST_POLL_S, POLL_SHARE * (now - self.mark.created)))
        if now >= deadline:
            return max(min(most, FIRST_POLL_S), self._asked_wait_s)
        return max(SHORTEST_PAUSE_S, min(max(pause, self._asked_wait_s), deadline - now))

    def _result(self, reply: HttpReply | None, *, is_said: bool) -> BatchResult:
        took_s = self.state.took_s or max(0.0, time.time() - self.mark.created)
        if reply is not None:
            return BatchResult(self.mark.batch, reply, "", self.mark.created, took_s)
        said = "it was not asked" if is_said else "there is no line for it"
        why = f"batch {self.mark.batch} ended as {self.state.word}, and {said}"
        return BatchResult(self.mark.batch, None, why, self.mark.created, took_s)

    def _note_the_end(self, answered: int) -> None:
        self.stage = Stage.OVER
        self._on_change()
        of = counted(len(self.mark.request_ids), "request")
        self._notify(f"batch {self.mark.batch} ended as {self.state.word}, with replies to {answered} of {of}")

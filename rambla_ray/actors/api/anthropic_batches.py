"""Anthropic's Message Batches: `/messages/batches`. A batch has no name of ours there: it is known by its lines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rambla_ray.actors.api.batch_http import BatchWire
from rambla_ray.actors.api.batch_provider import BatchLine, BatchState, Limits, Take
from rambla_ray.actors.api.http import HttpReply
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.ledger.batches import BatchMark

PATH = "messages/batches"
PAGES = 50  # So many pages of the list of batches are looked through.
SKEW_S = 5.0  # The provider's clock is not further behind this one.
# Statuses with which errors of these types come when they are not in a batch.
STATUS_OF = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


class AnthropicBatches:
    """The batches of one model. `wire`: the way to the endpoint, whose base ends in its version, as `/v1`."""

    limits = Limits(lines=100_000, size=256_000_000)
    keeps_tags = False

    def __init__(self, wire: BatchWire) -> None:
        self._wire = wire

    def _line(self, line: BatchLine) -> bytes:
        return b'{"custom_id":"' + line.request_id.encode() + b'","params":' + line.body + b"}"

    def size(self, line: BatchLine) -> int:
        return len(b'{"custom_id":"","params":},') + len(line.request_id) + len(line.body)

    async def upload(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        return ""

    async def create(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        content = b'{"requests":[' + b",".join(map(self._line, lines)) + b"]}"

        def make() -> dict[str, Any]:
            return {"data": io.BytesIO(content), "headers": {"content-type": "application/json"}}

        return str(_of(await self._wire.once("POST", self._wire.url(PATH), make))["id"])

    async def find(self, mark: BatchMark) -> str:
        """The latest of as many requests that was created since the mark was made, and, if it has ended, holds one."""
        after: dict[str, str] = {}
        for _ in range(PAGES):
            page = await self._wire.json("GET", self._wire.url(PATH, limit="100", **after))
            batches = [_of(batch) for batch in page.get("data") or ()] if isinstance(page, dict) else []
            for batch in batches:
                if _time(batch, "created_at") < mark.at - SKEW_S:
                    return ""
                if sum(_counts(batch).values()) == mark.count and await self._may_be(batch, mark):
                    return str(batch["id"])
            if not batches or not page.get("has_more"):
                return ""
            after = {"after_id": str(batches[-1]["id"])}
        return ""

    async def _may_be(self, batch: Mapping[str, Any], mark: BatchMark) -> bool:
        """Whether a batch may be the one of a mark. What one that has not ended holds cannot be seen."""
        state = _state(batch)
        if not state.is_over:
            return True
        wanted, found = set(mark.request_ids), set()
        await self.read(state, lambda request_id, reply: found.add(request_id))
        return bool(wanted & found)

    async def state(self, batch: str) -> BatchState:
        return _state(_of(await self._wire.once("GET", self._wire.url(f"{PATH}/{batch}"))))

    async def read(self, state: BatchState, take: Take) -> None:
        for batch in state.results:
            await self._wire.lines(self._wire.url(f"{PATH}/{batch}/results"), lambda line: _take(line, take))

    async def cancel(self, batch: str) -> None:
        await self._wire.once("POST", self._wire.url(f"{PATH}/{batch}/cancel"))

    async def discard(self, mark: BatchMark, state: BatchState) -> None:
        if mark.batch:
            await self._wire.once("DELETE", self._wire.url(f"{PATH}/{mark.batch}"))


def _of(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict) or not isinstance(body.get("id"), str) or not body["id"]:
        raise CallError(ErrorKind.GARBAGE, "the reply to a batch has no id")
    return body


def _state(body: Mapping[str, Any]) -> BatchState:
    counts, word = _counts(body), str(body.get("processing_status"))
    is_over = word == "ended"
    return BatchState(
        word,
        is_over=is_over,
        done=sum(counts.values()) - counts.get("processing", 0),
        requests=sum(counts.values()),
        took_s=max(0.0, _time(body, "ended_at") - _time(body, "created_at")) if is_over else 0.0,
        results=(str(body["id"]),) if is_over else (),
    )


def _counts(body: Mapping[str, Any]) -> dict[str, int]:
    counts = body.get("request_counts")
    return {key: n for key, n in counts.items() if isinstance(n, int)} if isinstance(counts, dict) else {}


def _time(body: Mapping[str, Any], key: str) -> float:
    """A time of RFC 3339 as Unix time; 0 where there is none."""
    try:
        return datetime.fromisoformat(str(body.get(key))).timestamp()
    except ValueError:
        return 0.0


def _take(line: bytes, take: Take) -> None:
    """Pass one line of a result on; one that is none is passed over, and its request counts as not answered."""
    try:
        parsed = json.loads(line)
        request_id, result = parsed["custom_id"], parsed["result"]
        if result["type"] == "succeeded":
            take(request_id, HttpReply(200, {}, json.dumps(result["message"]).encode()))
        elif result["type"] == "errored":
            error = result["error"]
            status = STATUS_OF.get(error.get("error", error).get("type"), 500)
            take(request_id, HttpReply(status, {}, json.dumps(error).encode()))
        else:
            take(request_id, None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return

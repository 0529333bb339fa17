"""OpenAI's batch API: `/files` and `/batches`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from rambla_ray.actors.api.batch_http import BatchWire
from rambla_ray.actors.api.batch_provider import BatchLine, BatchState, Limits, Take
from rambla_ray.actors.api.http import HttpReply
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.ledger.batches import BatchMark

NAME = "rambla"  # The key of a batch's metadata under which its tag stands.
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
UNASKED = frozenset({"batch_expired", "batch_cancelled"})  # Codes of lines that say that a request was not asked.
PAGES = 50  # So many pages of the list of batches are looked through.
SKEW_S = 3600.0  # The provider's clock is not further from this one.


class OpenAIBatches:
    """The batches of one model.

    Args:
        wire: the way to the endpoint.
        path: where its requests go, behind the endpoint's base, as `/chat/completions`.
    """

    limits = Limits(lines=50_000, size=200_000_000)
    keeps_tags = True

    def __init__(self, wire: BatchWire, path: str) -> None:
        self._wire = wire
        self._path = f"/v1{path}"
        self._middle = f'","method":"POST","url":{json.dumps(self._path)},"body":'.encode()

    def _line(self, line: BatchLine) -> bytes:
        return b'{"custom_id":"' + line.request_id.encode() + self._middle + line.body + b"}\n"

    def size(self, line: BatchLine) -> int:
        return len(b'{"custom_id":"}\n') + len(line.request_id) + len(self._middle) + len(line.body)

    async def upload(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        content = b"".join(map(self._line, lines))

        def form() -> Mapping[str, Any]:
            data = aiohttp.FormData()
            data.add_field("purpose", "batch")
            name = f"{NAME}-{mark.tag[:16]}.jsonl"
            data.add_field("file", io.BytesIO(content), filename=name, content_type="application/jsonl")
            return {"data": data}

        return _name(await self._wire.json("POST", self._wire.url("files"), form))

    async def create(self, mark: BatchMark, lines: Sequence[BatchLine]) -> str:
        asked = {
            "input_file_id": mark.input_file,
            "endpoint": self._path,
            "completion_window": "24h",
            "metadata": {NAME: mark.tag},
        }
        return _name(await self._wire.once("POST", self._wire.url("batches"), lambda: {"json": asked}))

    async def find(self, mark: BatchMark) -> str:
        after: dict[str, str] = {}
        for _ in range(PAGES):
            page = await self._wire.json("GET", self._wire.url("batches", limit="100", **after))
            batches = [batch for batch in _list(page) if isinstance(batch, dict)]
            for batch in batches:
                if _is_of(batch, mark):
                    return _name(batch)
            if not page.get("has_more") or not batches or _time(batches[-1], "created_at") < mark.at - SKEW_S:
                return ""
            after = {"after": _name(batches[-1])}
        return ""

    async def state(self, batch: str) -> BatchState:
        body = await self._wire.once("GET", self._wire.url(f"batches/{batch}"))
        if not isinstance(body, dict) or not isinstance(body.get("status"), str):
            raise CallError(ErrorKind.GARBAGE, f"what the endpoint says of batch {batch} has no status")
        word, counts = body["status"], body.get("request_counts")
        counts = counts if isinstance(counts, dict) else {}
        files = tuple(str(body[key]) for key in ("output_file_id", "error_file_id") if body.get(key))
        ended_at = max(_time(body, key) for key in ("completed_at", "expired_at", "cancelled_at"))
        return BatchState(
            word,
            is_over=word in OVER,
            refused=_refusal(body) if word == "failed" and not files else "",
            done=_count(counts, "completed") + _count(counts, "failed"),
            requests=_count(counts, "total"),
            took_s=max(0.0, ended_at - _time(body, "created_at")) if ended_at else 0.0,
            results=files,
        )

    async def read(self, state: BatchState, take: Take) -> None:
        for file in state.results:
            await self._wire.lines(self._wire.url(f"files/{file}/content"), lambda line: _take(line, take))

    async def cancel(self, batch: str) -> None:
        await self._wire.once("POST", self._wire.url(f"batches/{batch}/cancel"))

    async def discard(self, mark: BatchMark, state: BatchState) -> None:
        for file in filter(None, (mark.input_file, *state.results)):
            await self._wire.once("DELETE", self._wire.url(f"files/{file}"))


def _take(line: bytes, take: Take) -> None:
    """Pass one line of a result on; one that is none is passed over, and its request counts as not answered."""
    try:
        parsed = json.loads(line)
        response, error = parsed.get("response"), parsed.get("error")
        request_id = parsed["custom_id"]
        if isinstance(response, dict) and isinstance(response.get("status_code"), int):
            take(request_id, HttpReply(response["status_code"], {}, json.dumps(response.get("body")).encode()))
        elif isinstance(error, dict) and error.get("code") not in UNASKED:
            take(request_id, HttpReply(500, {}, json.dumps({"error": error}).encode()))
        else:
            take(request_id, None)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return


def _is_of(batch: Mapping[str, Any], mark: BatchMark) -> bool:
    metadata = batch.get("metadata")
    is_named = isinstance(metadata, dict) and metadata.get(NAME) == mark.tag
    return is_named or bool(mark.input_file and batch.get("input_file_id") == mark.input_file)


def _refusal(batch: Mapping[str, Any]) -> str:
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, dict) else None
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    where = f" (line {first['line']})" if isinstance(first.get("line"), int) else ""
    return f"{first.get('message') or first.get('code') or 'it gives no reason'}{where}"


def _name(body: Any) -> str:
    name = body.get("id") if isinstance(body, dict) else None
    if not isinstance(name, str) or not name:
        raise CallError(ErrorKind.GARBAGE, "the reply to a batch, or a file of one, has no id")
    return name


def _list(page: Any) -> list[Any]:
    data = page.get("data") if isinstance(page, dict) else None
    if not isinstance(data, list):
        raise CallError(ErrorKind.GARBAGE, "the endpoint's list of batches is no list")
    return data


def _count(counts: Mapping[str, Any], key: str) -> int:
    value = counts.get(key)
    return value if isinstance(value, int) else 0


def _time(body: Mapping[str, Any], key: str) -> float:
    value = body.get(key)
    return float(value) if isinstance(value, int | float) else 0.0

"""The fake endpoint with batches, as OpenAI's and Anthropic's APIs have them, and what can go wrong with those.

What is in a batch is answered by the server itself, as if each line were a call: a fault that is scripted for a prompt
strikes it there, too, and `per_prompt` counts it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp import web
from anthropic_server import AnthropicServer
from faults import APIError, Json, bad_request
from openai_server import OpenAIServer
from responses_server import ResponsesServer

IN_BATCH = "x-in-batch"  # A header of the calls that the server makes for the lines of a batch.


@dataclass
class FakeBatch:
    """A batch; `ends_at` is by time.time()."""

    name: str
    lines: list[Json]
    asked: Json
    created: float
    ends_at: float
    refusal: str
    is_cancelled: bool = False
    results: asyncio.Task[list[Json]] | None = None  # What came of each line, once that is needed.


@dataclass
class Script:
    """What is wrong with batches, and how long they take.

    Args:
        takes_s: how long a batch takes.
        expires: lines with one of these texts are not asked when the batch ends, which has then expired.
        missing: lines with one of these texts are in no file.
        is_messy: results come backwards and twice, with lines between them that are none.
        polls: statuses of the first replies to a look at a batch.
        creations: statuses of the first replies to a creation, which makes the batch all the same.
        refusal: why every batch fails as a whole.
        status: of every reply about batches.
    """

    takes_s: float = 0.0
    expires: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    is_messy: bool = False
    polls: list[int] = field(default_factory=list)
    creations: list[int] = field(default_factory=list)
    refusal: str = ""
    status: int = 0
    cannot_cancel: bool = False


class BatchServer(OpenAIServer):
    """The server. `on_request` is called with a method and path, such as `POST /v1/batches`, before it is served."""

    def __init__(self, script: Script | None = None, **options: Any) -> None:
        self.script = script or Script()
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.batches: dict[str, FakeBatch] = {}
        self.on_request: Callable[[str], None] = lambda what: None
        self.on_reply: Callable[[str], None] = lambda what: None
        self.seen: Counter[str] = Counter()
        self.middlewares = (self._look,)
        super().__init__(**options)

    @property
    def live_calls(self) -> int:
        """Calls that were made outside of a batch."""
        return self.seen["live"]

    def add_routes(self, router: web.UrlDispatcher) -> None:
        super().add_routes(router)
        router.add_post("/v1/files", self._upload)
        router.add_get("/v1/files/{name}/content", self._content)
        router.add_delete("/v1/files/{name}", self._delete)
        for base in ("/v1/batches", "/v1/messages/batches"):
            router.add_get(base, self._list)
            router.add_post(base, self._create)
            router.add_get(f"{base}/{{name}}", self._state)
            router.add_post(f"{base}/{{name}}/cancel", self._cancel)
        router.add_get("/v1/messages/batches/{name}/results", self._results)
        router.add_delete("/v1/messages/batches/{name}", self._delete)

    @web.middleware
    async def _look(self, request: web.Request, handler: Any) -> web.StreamResponse:
        is_live = (
            request.path.endswith(("completions", "embeddings", "responses", "messages"))
            and IN_BATCH not in request.headers
        )
        self.seen["live"] += is_live
        what = f"{request.method} {request.path}"
        self.seen[what] += 1
        self.on_request(what)
        if self.script.status and "batches" in request.path:
            raise bad_request("Not here.", self.script.status)
        response: web.StreamResponse = await handler(request)
        self.on_reply(what)
        return response

    # Files

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        return web.json_response({"id": self._keep(upload.file.read()), "object": "file"})

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])

    async def _delete(self, request: web.Request) -> web.Response:
        self.deleted.append(request.match_info["name"])
        return web.json_response({"deleted": True})

    # Batches

    async def _create(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if "requests" in asked:
            lines = asked.pop("requests")
        else:
            assert asked["completion_window"] == "24h"
            lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
            assert {line["url"] for line in lines} == {asked["endpoint"]}
        assert len({line["custom_id"] for line in lines}) == len(lines)
        now = time.time()
        name = f"batch_{len(self.batches)}"
        self.batches[name] = FakeBatch(name, lines, asked, now, now + self.script.takes_s, self.script.refusal)
        if self.script.creations and (status := self.script.creations.pop(0)) != 200:
            raise bad_request("Broken.", status)
        return web.json_response(await self._described(request, self.batches[name]))

    async def _list(self, request: web.Request) -> web.Response:
        newest_first = [await self._described(request, batch) for batch in reversed(self.batches.values())]
        names = [batch["id"] for batch in newest_first]
        after = request.query.get("after") or request.query.get("after_id")
        first = names.index(after) + 1 if after else 0
        page = newest_first[first : first + int(request.query.get("limit", "20"))]
        more = first + len(page) < len(newest_first)
        return web.json_response({"object": "list", "data": page, "has_more": more})

    async def _state(self, request: web.Request) -> web.Response:
        if self.script.polls and (status := self.script.polls.pop(0)) != 200:
            raise APIError(status, "server_error", None, "Broken.")
        return web.json_response(await self._described(request, self._named(request)))

    async def _cancel(self, request: web.Request) -> web.Response:
        batch = self._named(request)
        if self.script.cannot_cancel:
            raise bad_request("It cannot be cancelled.")
        batch.is_cancelled = True
        return web.json_response(await self._described(request, batch))

    def _named(self, request: web.Request) -> FakeBatch:
        if request.match_info["name"] not in self.batches:
            raise bad_request("No such batch.", 404)
        return self.batches[request.match_info["name"]]

    def _is_over(self, batch: FakeBatch) -> bool:
        return batch.is_cancelled or time.time() >= batch.ends_at

    def _is_asked(self, batch: FakeBatch, line: Json) -> bool:
        text = json.dumps(line)
        if any(word in text for word in self.script.expires):
            return False
        return not (batch.is_cancelled and time.time() < batch.ends_at and batch.lines.index(line) % 2)

    async def _described(self, request: web.Request, batch: FakeBatch) -> Json:
        is_over, total = self._is_over(batch), len(batch.lines)
        if request.path.startswith("/v1/messages"):
            asked = sum(self._is_asked(batch, line) for line in batch.lines) if is_over else 0
            counts = {"succeeded": asked, "expired": total - asked} if is_over else {"processing": total}
            return {
                "id": batch.name,
                "processing_status": "ended" if is_over else "in_progress",
                "request_counts": counts,
                "created_at": _written(batch.created),
                "ended_at": _written(batch.ends_at) if is_over else None,
            }
        body: Json = {
            "id": batch.name,
            "object": "batch",
            "status": "in_progress",
            "created_at": int(batch.created),
            "request_counts": {"total": total, "completed": 0, "failed": 0},
            **{key: batch.asked[key] for key in ("metadata", "input_file_id")},
        }
        if not is_over:
            return body
        if batch.refusal:
            return {**body, "status": "failed", "errors": {"data": [{"message": batch.refusal, "line": 1}]}}
        results = await self._outcomes(batch)
        good = [line for line in results if line["response"] and line["response"]["status_code"] == 200]
        bad = [line for line in results if line not in good]
        is_whole = all(self._is_asked(batch, line) for line in batch.lines)
        status = "completed" if is_whole else "cancelled" if batch.is_cancelled else "expired"
        files = {"output_file_id": self._file(good), "error_file_id": self._file(bad)}
        counts = {"total": total, "completed": len(good), "failed": len(bad)}
        return {**body, **files, "status": status, f"{status}_at": int(batch.ends_at), "request_counts": counts}

    def _file(self, lines: list[Json]) -> str | None:
        kept = [line for line in lines if not any(word in line["custom_id"] for word in self.script.missing)]
        if not lines:
            return None
        written = [json.dumps(line) for line in kept]
        if self.script.is_messy:
            written = [part for line in reversed(written) for part in (line, '{"custom_id": 3', "[]", "", line)]
        content = "\n".join(written).encode()
        name = next((name for name, known in self.files.items() if known == content), None)
        return name or self._keep(content)

    async def _outcomes(self, batch: FakeBatch) -> list[Json]:
        """What came of each line, asked once."""
        if batch.results is None:
            batch.results = asyncio.create_task(self._ask_all(batch))
        return await asyncio.shield(batch.results)

    async def _ask_all(self, batch: FakeBatch) -> list[Json]:
        async with aiohttp.ClientSession(self.azure_base, headers={**self.own_headers(), IN_BATCH: "1"}) as session:
            return await asyncio.gather(*(self._outcome(session, batch, line) for line in batch.lines))

    async def _outcome(self, session: aiohttp.ClientSession, batch: FakeBatch, line: Json) -> Json:
        if not self._is_asked(batch, line):
            error = {"code": "batch_expired", "message": "This request could not be executed in time."}
            return {"custom_id": line["custom_id"], "response": None, "error": error}
        body = line["body"] if "body" in line else line["params"]
        async with session.post(line.get("url", "/v1/messages"), json=body) as reply:
            response = {"status_code": reply.status, "body": await reply.json()}
        return {"custom_id": line["custom_id"], "response": response, "error": None}

    async def _results(self, request: web.Request) -> web.Response:
        """What came of each line, in Anthropic's words."""
        batch = self._named(request)
        unasked = {"type": "canceled" if batch.is_cancelled else "expired"}
        lines = [{"custom_id": it["custom_id"], "result": _result(it, unasked)} for it in await self._outcomes(batch)]
        return web.Response(text="\n".join(map(json.dumps, lines)))

    def own_headers(self) -> dict[str, str]:
        """Those of the calls that the server makes."""
        return {"Authorization": f"Bearer {self.key}"}


class ClaudeBatches(BatchServer, AnthropicServer):
    """Anthropic's API with batches."""

    def own_headers(self) -> dict[str, str]:
        return {"x-api-key": self.key, "anthropic-version": "2023-06-01"}


class ResponsesBatches(BatchServer, ResponsesServer):
    """OpenAI's Responses API with batches."""


def _result(answered: Json, unasked: Json) -> Json:
    response = answered["response"]
    if response is None:
        return unasked
    if response["status_code"] == 200:
        return {"type": "succeeded", "message": response["body"]}
    return {"type": "errored", "error": response["body"]}


def _written(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()

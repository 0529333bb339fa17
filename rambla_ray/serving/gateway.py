"""The HTTP side of serving: an ASGI app that speaks the OpenAI API for whatever answers the requests."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rambla_ray.errors import CallError, UserError
from rambla_ray.schema import Request, Response
from rambla_ray.serving import replies, requests
from rambla_ray.serving.requests import ApiError, Call, ChatCall, CompletionCall, EmbeddingsCall, Generation

LARGEST_BODY = 16 * 1024 * 1024  # The body of a request may have so many bytes.
RETRY_AFTER_S = 1.0  # A refused request may be tried again after this, where nobody says when.
BACKLOG = 2048  # So many connections may wait to be accepted.
LAST_CALLS_S = 10  # What is being answered when the server ends has so long.


class Served(Protocol):
    """A model, wherever it runs."""

    generates: bool  # It answers chat and completions.
    embeds: bool  # It answers embeddings.
    created: int  # It was loaded at this Unix time, in seconds.

    async def answer(self, requests: Sequence[Request]) -> list[Response]:
        """Answer some requests together. Raises CallError, also when one of them has no answer."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[str | Response, None]:
        """The answer's text piece by piece, then the response that they add up to. Raises CallError."""
        ...


class Gateway:
    """The endpoints.

    Args:
        served: the models by name.
        key: what clients must send as `Authorization: Bearer KEY`; None to let everyone in.
    """

    def __init__(self, served: Mapping[str, Served], key: str | None) -> None:
        self._served = served
        self.app: ASGIApp = Guard(
            Starlette(
                routes=[
                    Route("/v1/models", self._models),
                    Route("/v1/models/{name:path}", self._model),
                    Route(ChatCall.path, self._chat, methods=["POST"]),
                    Route(CompletionCall.path, self._completion, methods=["POST"]),
                    Route(EmbeddingsCall.path, self._embeddings, methods=["POST"]),
                ],
                exception_handlers=dict.fromkeys((ApiError, CallError, HTTPException, Exception), _error_reply),
            ),
            key,
        )

    async def _models(self, _: HttpRequest) -> HttpResponse:
        return JSONResponse(replies.models({name: model.created for name, model in self._served.items()}))

    async def _model(self, http: HttpRequest) -> HttpResponse:
        name = http.path_params["name"]
        return JSONResponse(replies.model(name, self._find(name).created))

    async def _chat(self, http: HttpRequest) -> HttpResponse:
        return await self._generate(requests.parse(ChatCall, await http.body()))

    async def _completion(self, http: HttpRequest) -> HttpResponse:
        return await self._generate(requests.parse(CompletionCall, await http.body()))

    async def _generate(self, call: Generation) -> HttpResponse:
        model = self._find(call.model)
        if not model.generates:
            raise _other_endpoint(call, EmbeddingsCall.path)
        requests, reply = call.requests(), replies.ReplyFrame(call)
        if not call.stream:
            return JSONResponse(reply.whole(await model.answer(requests)))
        pieces = model.stream(requests[0])
        first = await anext(pieces)  # What fails before the first piece is still shown by the status.
        return StreamingResponse(_events(reply, first, pieces), media_type="text/event-stream")

    async def _embeddings(self, http: HttpRequest) -> HttpResponse:
        call = requests.parse(EmbeddingsCall, await http.body())
        model = self._find(call.model)
        if not model.embeds:
            raise _other_endpoint(call, ChatCall.path)
        return JSONResponse(replies.embeddings(call, await model.answer(call.requests())))

    def _find(self, name: str) -> Served:
        if name not in self._served:
            raise ApiError(
                404,
                f"there is no model of that name here; there are: {', '.join(self._served)}",
                code="model_not_found",
                param="model",
            )
        return self._served[name]


def _other_endpoint(call: Call, path: str) -> ApiError:
    return ApiError(404, f"model {call.model} does not do {call.path}; it is for {path}", param="model")


async def _events(
    reply: replies.ReplyFrame, first: str | Response, rest: AsyncGenerator[str | Response, None]
) -> AsyncGenerator[bytes, None]:
    """A stream's server-sent events; an error on the way is one, too."""
    async with contextlib.aclosing(rest):
        yield reply.first()
        item = first
        try:
            while isinstance(item, str):
                yield reply.piece(item)
                item = await anext(rest)
            yield reply.last(item)
        except CallError as error:
            yield replies.sse(requests.api_error(error).body)


async def _error_reply(http: HttpRequest, error: Exception) -> HttpResponse:
    """The reply to a client whose request raised an error, whichever it is."""
    match error:
        case ApiError():
            return error_response(error)
        case CallError():
            return error_response(requests.api_error(error))
        case HTTPException():
            return error_response(ApiError(error.status_code, f"there is no {http.method} {http.url.path} here"))
    return error_response(ApiError(500, "an error of the server's own", kind="server_error"))


def error_response(error: ApiError) -> HttpResponse:
    """An error in the OpenAI API's shape."""
    headers = {}
    if error.status in (429, 503):
        headers["retry-after"] = str(math.ceil(error.retry_after_s or RETRY_AFTER_S))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body, error.status, headers)


class Guard:
    """What stands before the app: it checks the key and the body's size, and cancels the work for a client that left.

    Args:
        app: takes requests whose whole body has come.
        key: what clients must send; None to let everyone in.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._expected = None if key is None else f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = dict(scope["headers"])
            self._check_key(headers.get(b"authorization", b""))
            body = await _body(headers, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        if body is not None:
            await _while_connected(self._app, body, scope, receive, send)

    def _check_key(self, header: bytes) -> None:
        if self._expected is not None and not hmac.compare_digest(header, self._expected):
            raise ApiError(401, "this endpoint needs its key, as Authorization: Bearer KEY", code="invalid_api_key")


async def _body(headers: Mapping[bytes, bytes], receive: Receive) -> bytes | None:
    """The whole body; None when the client goes away first. Raises ApiError when it is too large."""
    content_length = headers.get(b"content-length", b"0")
    size = int(content_length) if content_length.isdigit() else 0
    parts: list[bytes] = []
    length = 0
    while True:
        if max(size, length) > LARGEST_BODY:
            raise ApiError(413, f"the body is larger than {LARGEST_BODY} bytes")
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if not message.get("more_body", False) and length <= LARGEST_BODY:
            return b"".join(parts)


async def _while_connected(app: ASGIApp, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app, and cancel it when the client goes away."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return messages.pop() if messages else await receive()

    work = asyncio.ensure_future(app(scope, receive_body, send))
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host of that name or number."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 for any that is free. Raises UserError when it cannot be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (socket.gaierror, ValueError):  # The second for what can be no name, such as a..b.
        raise UserError(f"host={host}: no host of this name is known here; give an address of this machine") from None
    except OSError as error:
        raise UserError(f"host={host} port={port}: {error.strerror}; choose another port") from None
    return bound


def server(app: ASGIApp, bound: socket.socket) -> uvicorn.Server:
    """What runs an app, with `serve([bound])`; it ends in order with SIGINT, SIGTERM, or its `should_exit`.

    Clients that come from now on wait until it runs.
    """
    bound.listen(BACKLOG)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=LAST_CALLS_S,
        )
    )

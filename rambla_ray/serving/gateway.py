"""The HTTP side of serving: an ASGI app that speaks the OpenAI API for whatever answers the requests."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import functools
import logging
import math
import resource
import socket
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol, cast

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.responses import Response as HttpResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from rambla_ray.display import one_line
from rambla_ray.errors import CallError, UserError
from rambla_ray.schema import Request, Response
from rambla_ray.serving import replies, requests
from rambla_ray.serving.connection import Connection
from rambla_ray.serving.guard import Guard, error_response
from rambla_ray.serving.limits import Limits
from rambla_ray.serving.requests import ApiError, Call, ChatCall, CompletionCall, EmbeddingsCall, Generation

BACKLOG = 2048  # So many connections may wait to be accepted.
LIMITS = Limits()


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
        key: what clients must send as `Authorization: Bearer KEY`; None to let this machine's programs in.
        limits: what a request may be.
    """

    def __init__(self, served: Mapping[str, Served], key: str | None, limits: Limits = LIMITS) -> None:
        self._served = served
        app = Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route(ChatCall.path, self._chat, methods=["POST"]),
                Route(CompletionCall.path, self._completion, methods=["POST"]),
                Route(EmbeddingsCall.path, self._embeddings, methods=["POST"]),
            ],
            exception_handlers=dict.fromkeys((ApiError, CallError, HTTPException, Exception), _error_reply),
        )
        app.router.redirect_slashes = False  # It would lead to wherever the Host header says.
        self.app: ASGIApp = Guard(app, key, limits)

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
            path = one_line(http.scope["path"])  # http.url is made with the Host header, which need not be one.
            reply = error_response(ApiError(error.status_code, f"there is no {http.method} {path} here"))
            reply.headers.update(error.headers or {})
            return reply
    return error_response(ApiError(500, "an error of the server's own", kind="server_error"))


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 for any that is free. Raises UserError when it cannot be had."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
    except (OSError, ValueError) as error:  # ValueError: it cannot be written as the name of a host.
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise UserError(f"host={one_line(host)}: {reason}; choose another host") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (socket.gaierror, ValueError):  # The second for what can be no name, such as a..b.
        raise UserError(f"host={host}: no host of this name is known here; give an address of this machine") from None
    except OSError as error:
        bound.close()
        other = "port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "host"
        raise UserError(f"host={host} port={port}: {error.strerror}; choose another {other}") from None
    return bound


def server(app: ASGIApp, bound: socket.socket, limits: Limits = LIMITS) -> uvicorn.Server:
    """What runs an app, with `serve([bound])`; it ends in order with SIGINT, SIGTERM, or its `should_exit`.

    Clients that come from now on wait until it runs.
    """
    bound.listen(BACKLOG)
    open_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if open_files != resource.RLIM_INFINITY:  # The other half is for the handles of the models, and for Ray.
        limits = dataclasses.replace(limits, connections=min(limits.connections, open_files // 2))
    connection = functools.partial(Connection, limits=limits, idle={})
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            proxy_headers=False,  # They would be believed, and nothing here reads them.
            http=cast(type[asyncio.Protocol], connection),
            ws="none",  # An upgrade would lead past the key.
            h11_max_incomplete_event_size=limits.header_bytes,
            timeout_keep_alive=math.ceil(limits.header_s),
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=math.ceil(limits.last_calls_s) + 1,
        )
    )
    logging.getLogger("uvicorn.error").addFilter(_is_fault)
    return server


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether something to be logged is more than the end of a request at the end of the server."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))

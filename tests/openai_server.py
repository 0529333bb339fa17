"""A real HTTP server that speaks the OpenAI API, for tests and benchmarks.

Clients reach it over TCP, so a test covers the whole path of a request: connections, JSON, headers, timeouts.
A reply is a pure function of its request, so that two runs can be compared byte for byte. What goes wrong is
scripted with `Fault`, so that a test can say which requests fail, how, and how often::

    with OpenAIServer(faults=[Fault("429", match="hello", times=2, retry_after=0.1)]) as server:
        client = AsyncOpenAI(base_url=server.base_url, api_key=server.key)

It is a process of its own with ``python openai_server.py --port 0 --latency 0.05``; GET /stats returns the
counters.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import json
import math
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler
from faults import ERRORS, APIError, Fault, Json, bad_request

ANSWERS = ("Yes", "No.", "yes", "no", "The answer is yes.", "The answer is no.", "Unknown")
HOST = "127.0.0.1"
CREATED = 1_700_000_000  # a constant, so that equal requests get equal replies


@dataclass
class Record:
    """What is remembered of one request; `status` stays 0 where no reply was made."""

    path: str
    time: float  # time.monotonic() at arrival
    model: str = ""
    prompt_sha: str = ""
    status: int = 0


RECORD = web.RequestKey("record", Record)


def prompt_sha(text: str) -> str:
    """SHA-256 in hex; a lone surrogate, which a JSON escape can spell, is hashed like any character."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def default_answer(prompt: str, model: str, temperature: float = 1.0) -> str:
    """Pick an answer by hash, of all three so that a client that mixes them up tends to show it."""
    chosen = int(prompt_sha(f"{model}\n{float(temperature)}\n{prompt}"), 16)
    return ANSWERS[chosen % len(ANSWERS)]


def embedding(text: str) -> bytes:
    """A unit vector of 16 little-endian float32 made of the text's hash."""
    raw = [number - 32767.5 for number in struct.unpack("<16H", bytes.fromhex(prompt_sha(text)))]
    norm = math.hypot(*raw)
    return struct.pack("<16f", *(number / norm for number in raw))


def chat_prompt(messages: object) -> str:
    """The contents of the messages, a line break between; a part that is not text counts as its JSON."""
    if not isinstance(messages, list) or not messages or not all(isinstance(item, dict) for item in messages):
        raise bad_request("'messages' must be a non-empty array of objects.")
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [content or ""]:
            text = part.get("text") if isinstance(part, dict) else part
            texts.append(text if isinstance(text, str) else json.dumps(part, sort_keys=True))
    return "\n".join(texts)


def input_texts(value: object) -> list[str]:
    """A `prompt` or `input` field as texts: one, several, or token numbers in place of each."""
    items: list[Any] = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, int) for item in items):
        items = [items]
    if items and all(isinstance(item, str | list) for item in items):
        return [item if isinstance(item, str) else " ".join(map(str, item)) for item in items]
    raise bad_request("The input must be a string, or a non-empty array of strings or tokens.")


class OpenAIServer:
    """The server, its script and its counters.

    `answer` replaces `default_answer`; `models` names the models that exist (None: any name does); `latency`
    is the seconds before a reply with status 200, errors being immediate. Beyond `at_once` requests in flight there
    is a 429. No reply with status 200 leaves before `together` requests were in flight at once. Setting `faults` arms
    all of them.
    """

    middlewares: tuple[Any, ...] = ()  # Of aiohttp, around what answers.

    def __init__(
        self,
        *,
        answer: Callable[[str], str] | None = None,
        faults: Sequence[Fault] = (),
        latency: float = 0.0,
        key: str = "sk-test",
        models: Collection[str] | None = None,
        at_once: int | None = None,
        together: int = 0,
    ) -> None:
        self.answer = answer
        self.faults = faults
        self.latency = latency
        self.key = key
        self.models = models
        self.at_once = at_once
        self.together = together
        self._were_together = asyncio.Event()
        self.in_flight = 0
        self.sent_bytes = 0  # of endless replies
        self.reset()

    @property
    def faults(self) -> Sequence[Fault]:
        return self._faults

    @faults.setter
    def faults(self, faults: Sequence[Fault]) -> None:
        self._faults = tuple(faults)
        self._strikes: Counter[tuple[int, str]] = Counter()  # by place in the script and prompt_sha

    def reset(self) -> None:
        """Clear every counter; those of the faults too, which arms them anew."""
        self.faults = self._faults
        self.requests: list[Record] = []
        self.answered = 0  # replies with status 200 that no fault spoilt
        self.max_in_flight = self.in_flight
        self.per_prompt: Counter[str] = Counter()  # requests by prompt_sha
        self._prompted = 0  # requests with a prompt, which is what Fault.every counts

    def snapshot(self) -> Json:
        """The counters as plain data, under their own names."""
        return {
            "requests": [dict(vars(record)) for record in list(self.requests)],
            "answered": self.answered,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "per_prompt": dict(self.per_prompt),
        }

    async def start(self, port: int = 0) -> None:
        """Listen, in the running event loop; port 0 takes a free one, to be found in the base URLs."""
        app = web.Application(client_max_size=64 * 1024**2, middlewares=[self._watch, *self.middlewares])
        app.router.add_get("/stats", self._stats)
        app.router.add_get("/v1/models", self._models)
        self.add_routes(app.router)
        # Cancelling the handler of a client that left is what ends a hang and keeps `in_flight` true.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, port, backlog=1024).start()
        self.azure_base = f"http://{HOST}:{self._runner.addresses[0][1]}"
        self.base_url = f"{self.azure_base}/v1"

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Where the API answers, which a server of another API has elsewhere."""
        for prefix in ("/v1", "/openai/deployments/{engine}"):
            router.add_post(f"{prefix}/chat/completions", self._complete)
            router.add_post(f"{prefix}/completions", self._complete)
            router.add_post(f"{prefix}/embeddings", self._embed)

    def error_reply(self, error: APIError) -> web.Response:
        """An error in the shape of the API."""
        return error.response()

    async def stop(self) -> None:
        await self._runner.cleanup()

    def __enter__(self) -> Self:
        """Serve from a thread with a loop of its own, so that a test may block its thread or run any loop."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="openai-server", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result()
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @web.middleware
    async def _watch(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Record the request, check its key, and give every error the shape of the API."""
        if request.path == "/stats":
            return await handler(request)
        record = request[RECORD] = Record(request.path, time.monotonic())
        self.requests.append(record)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if self.in_flight >= self.together:
            self._were_together.set()
        try:
            if not self.lets_in(request):
                raise APIError(*ERRORS["401"])
            response = await handler(request)
        except APIError as error:
            response = self.error_reply(error)
        except web.HTTPException as error:  # no such path, body too large
            response = self.error_reply(bad_request(error.reason, error.status))
        except Exception:  # `answer` failed: aiohttp logs it and replies 500
            record.status = 500
            raise
        finally:
            self.in_flight -= 1
        record.status = response.status
        return response

    def lets_in(self, request: web.Request) -> bool:
        """Whether a request has the key, as the plain API or Azure takes it."""
        return (
            request.headers.get("Authorization") == f"Bearer {self.key}" or request.headers.get("api-key") == self.key
        )

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.snapshot())

    async def _models(self, request: web.Request) -> web.Response:
        names = sorted(self.models or ())
        data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "tests"} for name in names]
        return web.json_response({"object": "list", "data": data})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        """A chat, or a completion, which has a choice per prompt."""
        chat = request.path.endswith("/chat/completions")
        body = await self._body(request)
        prompts = [chat_prompt(body.get("messages"))] if chat else input_texts(body.get("prompt"))
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit is not None and not (isinstance(limit, int) and limit > 0):
            raise bad_request("'max_tokens' must be a positive integer.")
        temperature = 1 if body.get("temperature") is None else body["temperature"]
        if not (isinstance(temperature, int | float) and 0 <= temperature <= 2):
            raise bad_request("'temperature' must be a number from 0 to 2.")
        if body.get("stream") or body.get("n") not in (None, 1):
            raise bad_request("This server neither streams nor gives several choices.")
        model, fault = self._admit(request, body, prompts)
        kind = fault.kind if fault else None
        choices: list[Json] = []
        written = 0
        for index, prompt in enumerate(prompts if kind != "no_choices" else ()):
            content: str | None
            if kind == "null_content":
                content, finish = None, "stop"
            elif kind == "filtered_finish":
                content, finish = "", "content_filter"
            else:
                answer = self.answer(prompt) if self.answer else default_answer(prompt, model, temperature)
                words = answer.split()
                over = limit is not None and len(words) > limit
                content, finish = (" ".join(words[:limit]), "length") if over else (answer, "stop")
            written += len((content or "").split())
            said = {"message": {"role": "assistant", "content": content}} if chat else {"text": content}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": finish})
        read = sum(len(prompt.split()) for prompt in prompts)
        payload = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{request[RECORD].prompt_sha[:24]}",
            "object": "chat.completion" if chat else "text_completion",
            "created": CREATED,
            "model": model,
            "choices": choices,
            "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
        }
        return await self._reply(request, fault, payload, "\n".join(prompts))

    async def _embed(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        texts = input_texts(body.get("input"))
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise bad_request("'encoding_format' must be 'float' or 'base64'.")
        model, fault = self._admit(request, body, texts)
        kind = fault.kind if fault else None
        data: list[Json] = []
        for index, text in enumerate(texts if kind != "no_choices" else ()):
            packed = embedding(text)
            vector: object = struct.unpack("<16f", packed)
            if kind in ("null_content", "filtered_finish"):
                vector = None if kind == "null_content" else []
            elif encoding == "base64":
                vector = base64.b64encode(packed).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        read = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": read, "total_tokens": read}
        payload = {"object": "list", "data": data, "model": model, "usage": usage}
        return await self._reply(request, fault, payload, "\n".join(texts))

    async def _body(self, request: web.Request) -> Json:
        if "engine" in request.match_info and "api-version" not in request.query:
            raise bad_request("Resource not found", 404, "404")  # what Azure says of a missing version
        try:
            body = json.loads(await request.read())
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise bad_request("The body of the request must be a JSON object.")
        return body

    def _admit(self, request: web.Request, body: Json, prompts: list[str]) -> tuple[str, Fault | None]:
        """Count the prompt; raise the error that is due, or return the model and the fault to act out."""
        model = request.match_info.get("engine") or body.get("model")
        if not isinstance(model, str):
            raise bad_request("You must provide a model parameter.")
        prompt = "\n".join(prompts)
        record = request[RECORD]
        record.model, record.prompt_sha = model, prompt_sha(prompt)
        self.per_prompt[record.prompt_sha] += 1
        self._prompted += 1
        if self.models is not None and model not in self.models:
            raise bad_request(f"The model '{model}' does not exist.", 404, "model_not_found")
        if self.at_once is not None and self.in_flight > self.at_once:
            raise APIError(*ERRORS["429"])
        fault = self._strike(prompt, record.prompt_sha)
        if fault is None or fault.kind not in ERRORS:
            return model, fault
        error = APIError(*ERRORS[fault.kind])
        if fault.kind == "content_filter":
            error.error |= {"param": "prompt", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
        error.headers |= dict(fault.headers)
        if fault.retry_after is not None:
            error.headers["Retry-After"] = f"{fault.retry_after:g}"
        raise error

    def _strike(self, prompt: str, sha: str) -> Fault | None:
        for place, fault in enumerate(self._faults):
            if fault.every > 0:
                due = self._prompted % fault.every == 0
            else:
                due = fault.times < 0 or self._strikes[place, sha] < fault.times
            if due and fault.match in prompt:
                self._strikes[place, sha] += 1
                return fault
        return None

    async def _reply(
        self, request: web.Request, fault: Fault | None, payload: Json, prompt: str
    ) -> web.StreamResponse:
        """Send the payload after the latency, unless the fault is about how a reply travels."""
        kind = fault.kind if fault else "none"
        headers = dict(fault.headers) if fault else {}
        if kind == "reset" and request.transport is not None:
            request.transport.abort()  # and wait below to be cancelled, which is what aiohttp then does
        if kind in ("reset", "hang"):
            await asyncio.Event().wait()
        await self._were_together.wait()
        await asyncio.sleep(self.latency)
        if kind == "endless":
            return await self._endless(request)
        if kind == "garbage":
            return web.Response(text=json.dumps(payload)[:20], content_type="application/json")
        if fault and kind == "reply":
            body = fault.body
            for name, value in (("{key}", self.key), ("{prompt}", prompt)):
                body = body.replace(name.encode(), json.dumps(value)[1:-1].encode())
            return web.Response(body=body, status=fault.status, headers=headers, content_type="application/json")
        self.answered += kind == "none"
        return web.json_response(payload, headers=headers)

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:  # until the client has gone, which cancels this or fails the write
            await response.write(b" " * 2**20)
            self.sent_bytes += 2**20


async def serve(port: int, latency: float) -> None:
    """Print the base URL and serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    server = OpenAIServer(latency=latency)
    await server.start(port)
    print(server.base_url, flush=True)
    await stopped.wait()
    await server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve the OpenAI API with made-up answers.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.latency))

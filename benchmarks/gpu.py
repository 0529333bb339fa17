"""How fast one GPU generates with each backend of rambla_ray, with a bare loop, and with vLLM itself, in one run.

    python benchmarks/gpu.py                                             # 1b and 7b, batches of 8, 64 and 256
    python benchmarks/gpu.py --shapes 1b --batches 64 --folder weights   # keeps the random weights there for next time
    python benchmarks/gpu.py --device cpu --shapes tiny --prompt 64 --new 8 --batches 2 4     # tries it out on a CPU

Models have random weights in bfloat16, in the shapes of TinyLlama (1b: 1.1 billion) and Mistral 7B (7b: 7.2 billion,
run by Llama's classes). Prompts are distinct random texts of one length, answers are greedy, and their end token
never comes, so every answer has exactly so many tokens: a row where that is not so fails. Every row is a fresh
process, which answers one batch to warm up and then all the requests:

  loop                      written by hand: static batches, transformers' generate
  transformers              ours, params.backend=transformers: static batches of this size
  transformers_continuous   ours, params.backend=transformers_continuous, with so many requests in flight
  vllm                      ours, params.backend=vllm, with so many requests in flight
  vllm_bare                 vllm.LLM(max_num_seqs=batch).generate

  generated/s   new tokens a second, from the first request to the last answer, tokenizing included
  all/s         the prompts' tokens counted, too
  GPU busy      part of that time in which the GPU ran anything, by the driver, asked every 0.2 s
  peak, GiB     the most of the card's memory in use, whoever uses it; on a CPU, of the process. Continuous batching
                and vLLM take most of what is free for their caches, needed or not
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import random
import re
import resource
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from command import REPOSITORY
from command import run as run_command
from rich import box
from rich.console import Console
from rich.table import Table

TIMEOUT_S = 3600.0  # A row that takes longer is ended.
SAMPLE_S = 0.2
CPUS = len(os.sched_getaffinity(0))
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
POSITIONS = 8192  # Prompt and answer together have at most this many tokens.
VOCABULARY = 32000
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES = {"tiny": (64, 128, 2, 4, 2), "1b": (2048, 5632, 22, 32, 4), "7b": (4096, 14336, 32, 32, 8)}
OUT_OF_MEMORY = re.compile(
    "CUDA out of memory|MemoryError|can't allocate memory|ALLOC_FAILED|No available memory|fills the device"
    "|its weights (take|do not fit)"
)
EXPECTED = ("not installed", "out of memory")  # Rows with these notes are no failures.
HEADS = ("shape", "backend", "batch", "requests", "generated/s", "all/s", "GPU busy", "peak, GiB", "× loop")

Counts = tuple[int, int]  # The tokens of all prompts, and those of all answers.
Answer = Callable[[Sequence[str]], Counts]  # It answers texts and returns the tokens.
Sample = tuple[float, float, float]  # The time, how busy the GPU is (0 to 1), and the bytes of its memory in use.


@dataclass(frozen=True)
class Row:
    """What one process is to do."""

    checkpoint: str  # The folder of the weights.
    shape: str
    device: str
    runner: str = "build"
    batch: int = 0  # The requests that are answered at once.
    requests: int = 0
    prompt: int = 0  # Each prompt has this many tokens.
    new: int = 0


@dataclass(frozen=True)
class Outcome:
    """What came of a row. Times are by time.monotonic(), which all processes of a machine share."""

    began: float = 0.0
    ended: float = 0.0
    peak_bytes: float | None = None
    busy: float | None = None  # How busy the GPU was, from 0 to 1.
    note: str = ""  # A remark; where there are no times, it says why.

    @property
    def seconds(self) -> float:
        """How long the requests took; 0 if they were not all answered."""
        return self.ended - self.began


# What the process of a row does.


def build(row: Row) -> Outcome:
    """Write a Llama checkpoint with random weights, made in bfloat16 on the device.

    A token is one byte, and a text starts with BOS. The score of EOS is always 0, which is less than the best of so
    many random ones, so that greedy decoding never chooses it, whoever decodes.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        **dict(zip(SIZES, SHAPES[row.shape], strict=True)),
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(row.device), torch.no_grad():
        model = LlamaForCausalLM(config)
        model.lm_head.weight[EOS_ID] = 0
    model.save_pretrained(row.checkpoint, max_shard_size="2GB")
    tokens = [BOS, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS).save_pretrained(row.checkpoint)
    return Outcome()


def loop(row: Row) -> Answer:
    """A loop written by hand."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(row.checkpoint)
    place = {"": row.device}
    model = AutoModelForCausalLM.from_pretrained(row.checkpoint, dtype=torch.bfloat16, device_map=place).eval()
    greedy = {"max_new_tokens": row.new, "do_sample": False, "pad_token_id": EOS_ID}

    def answer(texts: Sequence[str]) -> Counts:
        prompt_tokens = new_tokens = 0
        for first in range(0, len(texts), row.batch):
            some = tokenizer(list(texts[first : first + row.batch]))["input_ids"]
            with torch.inference_mode():
                ids = torch.tensor(some, device=row.device)
                out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **greedy)
            prompt_tokens += ids.numel()
            for made in out[:, ids.shape[1] :].tolist():
                new_tokens += made.index(EOS_ID) + 1 if EOS_ID in made else len(made)
        return prompt_tokens, new_tokens

    return answer


def ours(row: Row) -> Answer:
    """A model of rambla_ray in this process, without Ray."""
    from rambla_ray.actors.huggingface import HuggingFaceLLM
    from rambla_ray.actors.local.params import HuggingFaceParams
    from rambla_ray.config.sections import Pool
    from rambla_ray.schema import Request

    asked = {
        "model_name": row.checkpoint,
        "backend": row.runner,
        "loading_params": {"dtype": "bfloat16"},
        "generation_config": {"max_new_tokens": row.new},
    }
    params = HuggingFaceParams.model_validate(asked).resolved()
    pool = Pool(num_gpus=int(row.device == "cuda"), num_cpus=CPUS, batch_size=row.batch)
    model = HuggingFaceLLM(params, pool, None)
    model.open()

    async def ask(texts: Sequence[str]) -> Counts:
        # Static batches have a size; the engines take all that they are given.
        in_flight = asyncio.Semaphore(len(texts) if row.runner == "transformers" else row.batch)

        async def one(text: str) -> Counts:
            async with in_flight:
                response = await model.generate(Request(text))
            return response.prompt_tokens, response.completion_tokens

        prompt_tokens, new_tokens = zip(*await asyncio.gather(*map(one, texts)), strict=True)
        return sum(prompt_tokens), sum(new_tokens)

    runner = asyncio.Runner()  # An engine stays in one event loop.
    return lambda texts: runner.run(ask(texts))


def vllm_bare(row: Row) -> Answer:
    """vLLM's own class for work that is all there at once."""
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    tokenizer = AutoTokenizer.from_pretrained(row.checkpoint)
    same = {"dtype": "bfloat16", "gpu_memory_utilization": 0.9, "generation_config": "vllm"}  # Ours sets the same.
    engine = LLM(model=row.checkpoint, max_num_seqs=row.batch, **same)
    greedy = SamplingParams(temperature=0.0, max_tokens=row.new, detokenize=False)

    def answer(texts: Sequence[str]) -> Counts:
        asked = [TokensPrompt(prompt_token_ids=ids) for ids in tokenizer(list(texts))["input_ids"]]
        done = engine.generate(asked, greedy, use_tqdm=False)
        return sum(len(one.prompt_token_ids) for one in done), sum(len(one.outputs[0].token_ids) for one in done)

    return answer


OURS = dict.fromkeys(("transformers", "transformers_continuous", "vllm"), ours)
RUNNERS: dict[str, Callable[[Row], Answer]] = {"loop": loop, **OURS, "vllm_bare": vllm_bare}


def measure(row: Row) -> Outcome:
    """Load, warm up, and answer."""
    source = random.Random(0)
    letters = string.ascii_lowercase + " "
    texts = ["".join(source.choices(letters, k=row.prompt - 1)) for _ in range(row.batch + row.requests)]
    answer = RUNNERS[row.runner](row)
    answer(texts[: row.batch])
    began = time.monotonic()
    counts = answer(texts[row.batch :])
    ended = time.monotonic()
    wanted = (row.requests * row.prompt, row.requests * row.new)
    if counts != wanted:
        return Outcome(note=f"prompt and new tokens are {counts}, not {wanted}")
    return Outcome(began, ended, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


# What the process that starts them does.


def reader(card: str) -> Callable[[], tuple[float, float]]:
    """What reads how busy a GPU is (0 to 1) and how many bytes of its memory are in use."""
    if importlib.util.find_spec("pynvml"):
        import pynvml

        pynvml.nvmlInit()
        by = pynvml.nvmlDeviceGetHandleByIndex if card.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        gpu = by(int(card) if card.isdigit() else card)
        return lambda: (
            pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
        )
    query = f"nvidia-smi --id={card} --query-gpu=utilization.gpu,memory.used --format=csv,noheader,nounits".split()

    def read() -> tuple[float, float]:
        words = subprocess.check_output(query, encoding="utf-8")  # noqa: S603
        share, mebibytes = map(float, words.split(","))
        return share / 100, mebibytes * 1024**2

    return read


def watch(card: str, over: threading.Event, samples: list[Sample]) -> None:
    """Sample a GPU until it is over. Where the driver cannot tell, as of a part of a GPU, there are no samples."""
    with contextlib.suppress(Exception):  # The two libraries raise errors of their own.
        read = reader(card)
        while not over.wait(SAMPLE_S):
            samples.append((time.monotonic(), *read()))


def run(row: Row, log: Path, card: str) -> Outcome:
    """A row in a process of its own, whose words go to `log`.

    Args:
        card: the GPU, as the driver names it: a number or a UUID; empty for none.
    """
    if row.runner.startswith("vllm") and importlib.util.find_spec("vllm") is None:
        return Outcome(note="not installed")
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    samples: list[Sample] = []
    over = threading.Event()
    if card:
        threading.Thread(target=watch, args=(card, over, samples), daemon=True).start()
    command = [sys.executable, str(Path(__file__).resolve()), "--row", json.dumps(asdict(row)), str(result)]
    more = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = run_command(command, log, TIMEOUT_S, more)
    over.set()
    said = log.read_text(errors="replace", encoding="utf-8")
    if not result.exists():
        print("\n".join(said.splitlines()[-20:]), file=sys.stderr)
        return Outcome(note="out of memory" if OUT_OF_MEMORY.search(said) else done.fault)
    outcome = Outcome(**json.loads(result.read_text(encoding="utf-8")))
    busy = [share for at, share, _ in samples if outcome.began <= at <= outcome.ended]
    peak = max((used for *_, used in samples), default=None)
    smaller = re.findall(".*did not fit into memory.*", said)  # Ours says so and goes on.
    return replace(
        outcome,
        busy=sum(busy) / len(busy) if busy else None,
        peak_bytes=peak if card else outcome.peak_bytes,
        note=outcome.note or (smaller[-1] if smaller else ""),
    )


def gpu_name() -> str:
    """What the GPU is called, asked in another process, so that this one holds none of it; empty without a GPU."""
    code = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
    return subprocess.check_output([sys.executable, "-c", code], encoding="utf-8").strip()  # noqa: S603


def version(package: str) -> str:
    """A package and its version, or that it is not there."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {package}"


def cells(row: Row, outcomes: dict[Row, Outcome]) -> list[str]:
    """A line of the table."""
    outcome = outcomes[row]
    names = [row.shape, row.runner, str(row.batch), str(row.requests)]
    took = outcome.seconds
    if not took:
        return [*names, *["–"] * 6, outcome.note]
    peers = [outcomes.get(replace(row, runner=runner), Outcome()).seconds for runner in ("loop", "vllm_bare")]
    return [
        *names,
        f"{row.requests * row.new / took:,.0f}",
        f"{row.requests * (row.prompt + row.new) / took:,.0f}",
        "–" if outcome.busy is None else f"{outcome.busy:.0%}",
        "–" if outcome.peak_bytes is None else f"{outcome.peak_bytes / 1024**3:.1f}",
        *(f"{peer / took:.2f}" if peer else "–" for peer in peers),
        outcome.note,
    ]


def run_all(given: argparse.Namespace, folder: Path, card: str) -> dict[Row, Outcome]:
    """Every row that was asked for, and the weights before, where they are not there yet."""
    outcomes: dict[Row, Outcome] = {}
    for shape in given.shapes:
        checkpoint = folder / shape
        plain = Row(str(checkpoint), shape, given.device)
        built = (checkpoint / "tokenizer.json").is_file()  # It is written last.
        no_weights = "" if built else run(plain, folder / f"{shape}-build.log", card).note
        for batch in given.batches:
            requests = max(batch, given.requests or 2 * batch)
            for runner in given.only:
                row = replace(plain, runner=runner, batch=batch, requests=requests, prompt=given.prompt, new=given.new)
                log = folder / f"{shape}-{runner}-{batch}.log"
                outcomes[row] = Outcome(note=no_weights) if no_weights else run(row, log, card)
                print(" | ".join(cells(row, outcomes)), file=sys.stderr, flush=True)
    return outcomes


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b", "7b"], help="default: 1b 7b")
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 64, 256], help="default: 8 64 256")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of each prompt: %(default)s")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer: %(default)s")
    parser.add_argument("--requests", type=int, help="of each row, one batch at least; default: two batches")
    parser.add_argument("--only", nargs="+", choices=RUNNERS, default=list(RUNNERS), help="runners; default: all")
    parser.add_argument("--folder", type=Path, help="where weights and logs are kept; default: they are not")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)  # The process of a row is started with it.
    given = parser.parse_args(words)
    if given.row:
        row = Row(**json.loads(given.row[0]))
        outcome = build(row) if row.runner == "build" else measure(row)
        Path(given.row[1]).write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        return 0
    if min(given.prompt, given.new, *given.batches) < 1 or given.prompt + given.new > POSITIONS:
        parser.error(f"prompt, new and batches are 1 at least, prompt and new together {POSITIONS} at most")
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] if given.device == "cuda" else ""
    # The cards are numbered as the driver numbers them.
    os.environ |= {"CUDA_VISIBLE_DEVICES": card, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    name = gpu_name() if card else ""
    if given.device == "cuda" and not name:
        print("no GPU here; --device cpu --shapes tiny --prompt 64 --new 8 tries it out", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gpu-") as passing:
        folder = (given.folder or Path(passing)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        outcomes = run_all(given, folder, card)
    table = Table(*HEADS, "× vllm_bare", "note", box=box.MARKDOWN)
    for row in outcomes:
        table.add_row(*cells(row, outcomes))
    versions = ", ".join(map(version, ("torch", "transformers", "vllm")))
    print(f"{name or f'{CPUS} CPUs'}; {versions}; {date.today()}; {given.prompt} + {given.new} tokens", flush=True)
    Console(width=200).print(table)
    return int(any(not outcome.seconds and outcome.note not in EXPECTED for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())

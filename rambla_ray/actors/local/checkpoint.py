"""A HuggingFace checkpoint in an actor: loading it, what it is, and answering what waits in batches."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
import time
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from rambla_ray.actors.local import weights
from rambla_ray.actors.local.usage import LocalUsage, UsageClock
from rambla_ray.actors.model import Emit, Model
from rambla_ray.config.model import ModelParams
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.display import counted
from rambla_ray.errors import CallError, Draining, ErrorKind, UserError, choose_from
from rambla_ray.schema import CallTrace, Request, Response, Try

GATHER_S = 0.02  # how long the first request of a batch waits for company
BATCH_SIZE = {"cpu": 64, "cuda": 256}  # requests at most in a batch that fits itself
BATCH_TOKENS = {"cpu": 4096, "cuda": 131072}  # and their tokens, padding and answers included
RUN_CODE = ("weights_only", "allow_all_kernels", "use_kernels", "kernel_config")  # or unpickle it, when loading
DTYPES = ("auto", "float16", "bfloat16", "float32")
GIB = 1024**3
PLACED_BY_USER = ("max_memory", "offload_folder", "quantization_config", "load_in_4bit", "load_in_8bit")


class CheckpointParams(ModelParams):
    """Where a checkpoint is and how it is loaded: RAmBLA's parameters, with `revision` and `trust_remote_code`."""

    is_local = True

    model_name: str = Field(description="a hub id, or the path of a checkpoint's folder")
    tokenizer_name: str | None = Field(None, description="model_name when not given")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit")
    loading_params: dict[str, Any] = Field(
        default_factory=dict,
        description="for from_pretrained: torch_dtype (or dtype), gguf_file, attn_implementation",
    )
    device: str | None = Field(None, description="one device, for example cpu; excludes device_map")
    device_map: str | dict[str, Any] | None = Field("auto", description="accelerate's device_map")
    local_files_only: bool = Field(False, description="never ask the hub")
    trust_remote_code: bool = Field(False, description="run code that comes with the checkpoint")

    @model_validator(mode="before")
    @classmethod
    def _device_or_map(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("device") is not None:
            if value.get("device_map") is not None:
                raise ValueError("device and device_map exclude each other; drop one of them")
            return {**value, "device_map": None}
        return value

    @field_validator("model_name", "tokenizer_name")
    @classmethod
    def _home_folder(cls, value: str | None) -> str | None:
        return str(Path(value).expanduser()) if value and value.startswith("~") else value

    @field_validator("loading_params")
    @classmethod
    def _one_dtype(cls, value: dict[str, Any]) -> dict[str, Any]:
        value = dict(value)
        if "torch_dtype" in value and "dtype" in value:
            raise ValueError("torch_dtype and dtype are two names of one key; drop one of them")
        if "torch_dtype" in value:
            value["dtype"] = value.pop("torch_dtype")
        if value.get("dtype", "auto") not in DTYPES:
            raise ValueError(f"dtype '{value['dtype']}' is unknown; {choose_from(str(value['dtype']), DTYPES)}")
        if "trust_remote_code" in value:
            raise ValueError("trust_remote_code stands in params, not in loading_params")
        return value

    @model_validator(mode="after")
    def _no_code_unasked(self) -> Self:
        asked = [key for key in RUN_CODE if key in self.loading_params]
        if "/" in str(self.loading_params.get("attn_implementation", "")):  # a repository of kernels
            asked.append("attn_implementation")
        if asked and not self.trust_remote_code:
            raise ValueError(f"loading_params.{asked[0]} can run code of others; that needs trust_remote_code: true")
        return self

    @property
    def is_path(self) -> bool:
        """Whether model_name is a path, not a hub id."""
        name = self.model_name
        return name.startswith(("/", "./", "../")) or name.count("/") > 1 or Path(name).exists()

    def preflight(self, *, same_machine: bool) -> None:
        if not (same_machine and self.is_path):
            return
        folder, gguf = Path(self.model_name), self.loading_params.get("gguf_file")
        if not folder.is_dir():
            raise UserError(f"params.model_name: there is no folder {folder}")
        if gguf and not (folder / gguf).is_file():
            raise UserError(f"params.loading_params.gguf_file: there is no {gguf} in {folder}")
        if not weights.has_weights(folder):
            raise UserError(
                f"params.model_name: {folder} cannot be loaded: it holds no weights (*.safetensors, *.bin)"
            )
        if package := weights.missing_quantiser(weights.config_of(folder), self.loading_params):
            raise UserError(f"its quantised weights need a package that is not here: pip install {package}")


class BaseHuggingFaceModel(Model):
    """A checkpoint in this actor. A subclass loads it, and runs a batch of jobs in the model's thread.

    `load` is called at once, `load_weights` in the model's thread behind it: what the ledger holds already is told
    without waiting for weights.

    Requests that wait are answered together: the longest first, so that memory trouble shows at once, and those of
    one batch alike in how they begin and in length, so that little is computed twice and little is padding.
    """

    params: CheckpointParams
    _identity: dict[str, object]  # load() sets it
    unused_weights: ClassVar[tuple[str, ...]] = ()  # prefixes of what a checkpoint may lack, as nothing reads it

    def __init__(self, params: CheckpointParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        import torch

        began = time.monotonic()
        self.params = params
        on_gpu = bool(pool.num_gpus) and torch.cuda.is_available()
        self.device_type = params.device or ("cuda" if on_gpu else "cpu")
        self.chip = "cpu" if self.device_type == "cpu" else "cuda"
        self.memory_share = min(1.0, pool.num_gpus or 1.0)  # of a GPU's memory
        if self.chip == "cpu":
            torch.set_num_threads(max(1, int(pool.num_cpus or 1)))
        elif self.memory_share < 1.0:
            torch.cuda.set_per_process_memory_fraction(self.memory_share)
        self.batch_size = BATCH_SIZE[self.chip] if pool.batch_size == "auto" else pool.batch_size
        self.batch_tokens = BATCH_TOKENS[self.chip] if pool.batch_size == "auto" else None
        self.work = LocalUsage()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: list[Job] = []
        self._runner: asyncio.Task[None] | None = None
        self._draining = False
        self.load()
        self._loaded = self._thread.submit(self._finish_loading, began)

    @abstractmethod
    def load(self) -> None:
        """Settle what the model is: tokenizer, config, identity. Raises CallError (`load`) when it cannot."""

    def load_weights(self) -> None:
        """Load what is needed to answer, unless `load` has. Raises CallError (`load`)."""
        return None

    @abstractmethod
    def prepare(self, request: Request) -> Job:
        """A request as a job: its tokens and limits. Raises CallError (`too_long`, `bad_request`)."""

    @abstractmethod
    def run(self, jobs: list[Job]) -> None:
        """Answer the jobs together: set the `response` or the `error` of each. Called in the model's thread."""

    def open(self) -> None:
        self._loaded.result()

    def _finish_loading(self, began: float) -> None:
        with self.loading():
            self.load_weights()
        self.work.load_s = time.monotonic() - began
        self._clock = UsageClock(self.work)

    def cpu_dtype(self) -> str:
        """In what a CPU computes when the config does not say."""
        return "float32"

    def read_checkpoint(self) -> None:
        """Read the tokenizer and the config, and settle how the weights will be loaded.

        Raises:
            CallError: `load`: files are missing or broken.
        """
        from transformers import AutoConfig, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        params = self.params
        self._shared = {
            "revision": params.revision,
            "local_files_only": params.local_files_only,
            "trust_remote_code": params.trust_remote_code,
        }
        loading = dict(params.loading_params)
        gguf = {"gguf_file": loading["gguf_file"]} if "gguf_file" in loading else {}
        with self.loading():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                params.tokenizer_name or params.model_name,
                **self._shared,
                **(gguf if not params.tokenizer_name else {}),
            )
            self._config: Any = AutoConfig.from_pretrained(params.model_name, **self._shared, **gguf)
            dtype = loading.get("dtype") or ("auto" if self.chip == "cuda" else self.cpu_dtype())
            if dtype == "auto":
                own = weights.own_dtype(Path(params.model_name)) if Path(params.model_name).is_dir() else None
                dtype = self._config.dtype or own or "float32"
        self._dtype = str(dtype).removeprefix("torch.")
        self._loading = {**loading, "dtype": f"torch.{self._dtype}"}

    def load_checkpoint(self, kind: Any) -> None:
        """Load the weights with `kind`, one of transformers' Auto classes, by mapping the files.

        Raises:
            CallError: `load`: files are missing, broken, do not belong together, or do not fit into memory.
        """
        import torch

        params = self.params
        self.work.free_bytes = self._free_bytes()
        self._check_room()
        with self.loading():
            try:
                self._model: Any
                self._model, found = kind.from_pretrained(
                    params.model_name,
                    device_map=self._device_map(),
                    output_loading_info=True,
                    **self._shared,
                    **{**params.loading_params, "dtype": self._dtype},
                )
                if params.device:
                    self._model.to(params.device)
            except (torch.OutOfMemoryError, MemoryError):
                raise self._no_room() from None
        missing = [name for name in found["missing_keys"] if not name.startswith(self.unused_weights)]
        if missing:
            raise self.load_error(f"it lacks {len(missing)} weights, for example {min(missing)}")
        self._model.eval()
        self.work.weights_bytes = self._model.get_memory_footprint()

    def _free_bytes(self) -> int:
        """Memory that is free where the model goes: of this machine, or of the GPUs that this actor sees."""
        if self.chip == "cpu":
            import psutil

            limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
            free = int(psutil.virtual_memory().available)
            with contextlib.suppress(OSError, ValueError):  # no such limit: then it says "max"
                free = min(free, int(limit.read_text()) - int(used.read_text()))
            return free
        import torch

        total = 0
        for number in range(torch.cuda.device_count()):
            free, whole = torch.cuda.mem_get_info(number)
            total += min(free, int(self.memory_share * whole) - torch.cuda.memory_reserved(number))
        return total

    def _check_room(self) -> None:
        """Refuse weights that cannot fit, where they are in safetensors and nobody has placed them by hand."""
        params = self.params
        by_hand = isinstance(params.device_map, dict) or any(key in params.loading_params for key in PLACED_BY_USER)
        if by_hand or self._config.to_dict().get("quantization_config"):
            return
        needed = weights.loaded_bytes(Path(params.model_name), self._dtype)
        if needed is not None and needed > self.work.free_bytes:
            raise self._no_room(needed)

    def _no_room(self, needed: int | None = None) -> CallError:
        free = f"{self.work.free_bytes / GIB:.1f} GiB"
        takes = f"its weights take {needed / GIB:.1f} GiB in {self._dtype}" if needed else "its weights do not fit"
        if self.chip == "cpu":
            return self.load_error(f"{takes}, and this machine has {free} of memory free")
        return self.load_error(
            f"{takes}, and there are {free} free on the {counted(self.pool.num_gpus or 0.0, 'GPU')} of this actor; "
            "raise pool.num_gpus (with device_map: auto), or load it in fewer bits"
        )

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What goes wrong inside is a load error of one line."""
        try:
            yield
        except CallError:
            raise
        except Exception as error:  # noqa: BLE001 - four libraries read the files, each with errors of its own
            raise self.load_error(_in_a_line(error)) from None

    def load_error(self, reason: str) -> CallError:
        """That the checkpoint cannot be loaded."""
        return CallError(ErrorKind.LOAD, f"{self.params.model_name} cannot be loaded: {reason}")

    def _device_map(self) -> Any:
        if self.params.device:
            return None
        if self.chip == "cpu":
            return {"": "cpu"}
        return (
            {"": 0} if self.params.device_map == "auto" and (self.pool.num_gpus or 0) <= 1 else self.params.device_map
        )

    def identity(self) -> dict[str, object]:
        return self._identity

    def checkpoint_identity(self) -> dict[str, object]:
        """What was loaded: class, weights, tokenizer and how, without a path."""
        params = self.params
        if Path(params.model_name).is_dir():
            loaded = weights.fingerprint(Path(params.model_name), self._loading.get("gguf_file"))
        else:
            loaded = f"{params.model_name}@{self._commit() or 'main'}"
        return {
            "class": type(self).__name__,
            "weights": loaded,
            "tokenizer": _tokenizer_identity(params.tokenizer_name),
            "loading": json.loads(json.dumps(self._loading, default=str)),
        }

    def _commit(self) -> str | None:
        """Of a hub id: what was loaded, as exactly as is known."""
        commit: str | None = getattr(self._config, "_commit_hash", None)
        return commit or self.params.revision

    def drain(self) -> None:
        self._draining = True
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if job.done is not None and not job.done.done():
                job.done.set_exception(Draining())

    def measure(self) -> LocalUsage:
        return replace(self.work, peak_bytes=self._peak_bytes())

    def _peak_bytes(self) -> int:
        """The most memory that this actor has had: of its GPUs, or of the machine."""
        if self.chip == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        import torch

        return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        at, began = time.time(), time.monotonic()
        if self._draining:
            raise Draining
        if not self._loaded.done():
            await asyncio.shield(asyncio.wrap_future(self._loaded))
        self._loaded.result()
        if self._draining:
            raise Draining
        job = self.prepare(request)
        job.emit = emit
        job.done = asyncio.get_running_loop().create_future()
        self.take(job)
        response = await job.done
        took = time.monotonic() - began
        return replace(response, latency_s=took, trace=CallTrace(attempts=1, tries=(Try(at, took),)))

    def take(self, job: Job) -> None:
        """Answer a job: its `done` gets a response or an error. Cancelled, it is not needed any more."""
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_waiting())

    async def _run_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(GATHER_S)
        while batch := self._next_batch():
            self._clock.count(busy=False)
            await loop.run_in_executor(self._thread, self._run_halving, batch)
            self._clock.count(busy=True)
            self.work.requests += len(batch)
            for job in batch:
                job.tell(self.work)

    def _next_batch(self) -> list[Job]:
        """Of what waits: the longest, what begins like it, the next longest, and so on, as far as they fit."""
        self._waiting = [job for job in self._waiting if job.done is None or not job.done.done()]
        waiting = sorted(self._waiting, key=lambda job: len(job.tokens), reverse=True)
        batch: list[Job] = []
        width = new = 0
        while waiting:
            beginning = waiting[0].tokens[: max(1, len(waiting[0].tokens) // 2)]
            alike = [job for job in waiting if job.tokens[: len(beginning)] == beginning]
            for job in alike:
                wider, newer = max(width, len(job.tokens)), max(new, job.max_new_tokens)
                too_many = len(batch) >= self.batch_size or (
                    self.batch_tokens is not None and (len(batch) + 1) * (wider + newer) > self.batch_tokens
                )
                if batch and (too_many or any(one.room < newer for one in (*batch, job))):
                    break
                batch.append(job)
                width, new = wider, newer
            else:
                taken = set(alike)
                waiting = [job for job in waiting if job not in taken]
                continue
            break
        taken = set(batch)
        self._waiting = [job for job in self._waiting if job not in taken]
        return batch

    def _run_halving(self, jobs: list[Job]) -> None:
        """Run a batch; when memory does not suffice, run its halves, down to one."""
        import torch

        self.work.batches += 1
        try:
            self.run(jobs)
            return
        except (torch.OutOfMemoryError, MemoryError):
            pass  # go on below, where nothing holds the failed batch's tensors any more
        except Exception as error:  # noqa: BLE001 - the batch fails, the actor lives
            if not (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):  # of a CPU
                for job in jobs:
                    job.error = error
                return
        self.work.out_of_memory += 1
        if len(jobs) == 1:
            tokens = len(jobs[0].tokens)
            jobs[0].error = CallError(ErrorKind.OUT_OF_MEMORY, f"a prompt of {tokens} tokens alone fills the device")
            return
        if self.device_type != "cpu":
            torch.cuda.empty_cache()
        half = len(jobs) // 2
        if half < self.batch_size:
            self.context.notify(f"a batch of {len(jobs)} did not fit into memory; from now on at most {half} at once")
        self.batch_size = min(half, self.batch_size)
        if self.batch_tokens is not None:
            self.batch_tokens = min(
                self.batch_tokens, half * max(len(job.tokens) + job.max_new_tokens for job in jobs)
            )
        self._run_halving(jobs[:half])
        self._run_halving(jobs[half:])


Encoding = dict[str, list[int]]  # what a tokenizer makes of a text or a pair: input_ids, perhaps token_type_ids


@dataclass(eq=False)
class Job:
    """One request in the model's terms: the encodings to run, and the most it may generate."""

    encodings: list[Encoding]
    max_new_tokens: int = 0
    room: float = math.inf  # tokens that fit into the model's context behind the prompt
    emit: Emit | None = None
    done: asyncio.Future[Response] | None = None
    response: Response = field(init=False)
    error: Exception | None = None

    def tell(self, work: LocalUsage) -> None:
        """Give whoever waits the response or the error, and count a response's tokens; nothing if nobody waits."""
        if self.done is None or self.done.done():
            return
        if self.error is not None:
            self.done.set_exception(self.error)
            return
        work.prompt_tokens += self.response.prompt_tokens
        work.completion_tokens += self.response.completion_tokens
        self.done.set_result(self.response)

    @cached_property
    def tokens(self) -> list[int]:
        """The longest encoding's token numbers."""
        return max((encoding["input_ids"] for encoding in self.encodings), key=len)


def _in_a_line(error: Exception) -> str:
    """What went wrong when a library read a checkpoint, and what to do, where that is known."""
    if any(kind.__name__ == "GatedRepoError" for kind in type(error).__mro__):
        return "it is gated: accept its licence on its page of the hub, and set HF_TOKEN where Ray starts"
    words = " ".join(str(error).split())
    if "trust_remote_code" in words:
        return "it comes with code of its own; set params.trust_remote_code: true if you trust it"
    return f"{type(error).__name__}: {words[:300]}"


def _tokenizer_identity(name: str | None) -> str:
    """What a tokenizer of its own is: its files, or its hub id; empty when it is the model's."""
    folder = Path(name) if name else None
    return weights.fingerprint(folder) if folder and folder.is_dir() else name or ""

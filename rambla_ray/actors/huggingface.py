"""Local models from HuggingFace checkpoints, answering in batches of what waits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from rambla_ray import prompts
from rambla_ray.actors.base import Model, ModelParams
from rambla_ray.config import Pool, Rate
from rambla_ray.errors import CallError, ErrorKind, UserError, choose_from
from rambla_ray.schema import Request, Response

GATHER_S = 0.02  # how long the first request of a batch waits for company
BATCH_SIZE = {"cpu": 8, "cuda": 32}
DTYPES = ("auto", "float16", "bfloat16", "float32")
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")

# Generation options that a batch of independent answers cannot honour, and what to do instead.
REFUSED_OPTIONS = {
    "max_time": "set max_new_tokens",
    "stop_strings": "end tokens are eos_token_id",
    "num_return_sequences": "one prompt has one answer",
    "return_dict_in_generate": "only the text is kept",
    "prompt_lookup_num_tokens": "it works on one prompt at a time",
}


class HuggingFaceParams(ModelParams):
    """RAmBLA's parameters of a local model, unchanged; `revision` and `trust_remote_code` are new."""

    model_name: str = Field(description="a hub id, or the path of a checkpoint's folder")
    tokenizer_name: str | None = Field(None, description="model_name when not given")
    revision: str | None = Field(None, description="of a hub id: branch, tag or commit")
    loading_params: dict[str, Any] = Field(
        default_factory=dict,
        description="for from_pretrained: torch_dtype (or dtype), gguf_file, attn_implementation",
    )
    generation_config: dict[str, Any] = Field(
        default_factory=dict, description="for transformers.GenerationConfig; greedy unless do_sample is true"
    )
    device: str | None = Field(None, description="one device, for example cpu; excludes device_map")
    device_map: str | dict[str, Any] | None = Field("auto", description="accelerate's device_map")
    is_finetuned: bool = Field(False, description="apply the chat template (or message_formatting_template)")
    message_formatting_template: str | None = Field(None, description="used for the chat template; holds {message}")
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
    def _template_takes_the_message(self) -> Self:
        template = self.message_formatting_template
        if template is None:
            return self
        try:
            fields = prompts.placeholders(template)
        except ValueError as error:
            raise ValueError(f"message_formatting_template: {error}") from None
        if fields != {"message"}:
            raise ValueError("message_formatting_template needs exactly one placeholder, {message}")
        return self

    @property
    def is_path(self) -> bool:
        """Whether model_name is a path, not a hub id."""
        name = self.model_name
        return name.startswith(("/", "./", "../")) or name.count("/") > 1 or Path(name).exists()


class BaseHuggingFaceModel(Model):
    """A checkpoint loaded into this actor. A subclass loads it, and runs a batch of jobs in the model's thread.

    Requests that wait are answered together: the longest first, so that memory trouble shows at once, and those of
    one batch alike in length, so that little is padding.
    """

    is_local = True
    params: HuggingFaceParams

    def __init__(self, params: HuggingFaceParams, pool: Pool, rate: Rate | None) -> None:
        super().__init__(params, pool, rate)
        import torch

        self.params = params
        on_gpu = bool(pool.num_gpus) and torch.cuda.is_available()
        self.device_type = params.device or ("cuda" if on_gpu else "cpu")
        if self.device_type == "cpu":
            torch.set_num_threads(max(1, int(pool.num_cpus or 1)))
        self.batch_size = (
            BATCH_SIZE["cpu" if self.device_type == "cpu" else "cuda"]
            if pool.batch_size == "auto"
            else pool.batch_size
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting: list[Job] = []
        self._runner: asyncio.Task[None] | None = None
        self.load()

    def load(self) -> None:
        """Load tokenizer and weights; raises CallError (`load`) when that cannot be done."""
        raise NotImplementedError

    def prepare(self, request: Request) -> Job:
        """A request as a job: its tokens and limits. Raises CallError (`too_long`)."""
        raise NotImplementedError

    def run(self, jobs: list[Job]) -> None:
        """Answer the jobs together: set the `response` of each. Called in the model's thread."""
        raise NotImplementedError

    @classmethod
    def preflight(cls, params: HuggingFaceParams, *, same_machine: bool) -> None:
        if same_machine and params.is_path and not Path(params.model_name).is_dir():
            raise UserError(f"params.model_name: there is no folder {params.model_name}")
        gguf = params.loading_params.get("gguf_file")
        if same_machine and params.is_path and gguf and not (Path(params.model_name) / gguf).is_file():
            raise UserError(f"params.loading_params.gguf_file: there is no {gguf} in {params.model_name}")

    async def generate(self, request: Request) -> Response:
        began = time.monotonic()
        job = self.prepare(request)
        job.done = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_waiting())
        response = await job.done
        return replace(response, latency_s=time.monotonic() - began)

    async def _run_waiting(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(GATHER_S)
        while self._waiting:
            self._waiting.sort(key=lambda job: (job.max_new_tokens, len(job.tokens)), reverse=True)
            limit = self._waiting[0].max_new_tokens
            batch = [job for job in self._waiting if job.max_new_tokens == limit][: self.batch_size]
            self._waiting = [job for job in self._waiting if job not in batch]
            await loop.run_in_executor(self._thread, self._run_halving, batch)
            for job in batch:
                if job.done.done():  # whoever asked went away
                    continue
                if job.error is not None:
                    job.done.set_exception(job.error)
                else:
                    job.done.set_result(job.response)

    def _run_halving(self, jobs: list[Job]) -> None:
        """Run a batch; when memory does not suffice, run its halves, down to one."""
        import torch

        try:
            self.run(jobs)
            return
        except torch.OutOfMemoryError:
            pass  # go on below, where nothing holds the failed batch's tensors any more
        except Exception as error:  # noqa: BLE001 - the batch fails, the actor lives
            for job in jobs:
                job.error = error
            return
        if len(jobs) == 1:
            tokens = len(jobs[0].tokens)
            jobs[0].error = CallError(ErrorKind.OUT_OF_MEMORY, f"a prompt of {tokens} tokens alone fills the device")
            return
        torch.cuda.empty_cache()
        half = len(jobs) // 2
        self.batch_size = half
        self._run_halving(jobs[:half])
        self._run_halving(jobs[half:])


@dataclass(slots=True, eq=False)
class Job:
    """One request in the model's terms: prompt tokens and the most it may generate."""

    tokens: list[int]
    max_new_tokens: int
    done: asyncio.Future[Response] = field(init=False)
    response: Response = field(init=False)
    error: Exception | None = None


class HuggingFaceLLM(BaseHuggingFaceModel):
    """A causal language model, generating in left-padded static batches."""

    Params: ClassVar[type[ModelParams]] = HuggingFaceParams

    @classmethod
    def settle(cls, params: HuggingFaceParams) -> HuggingFaceParams:
        """Refuse generation options that transformers does not know."""
        if not params.generation_config:
            return params
        try:
            from transformers import GenerationConfig
        except ImportError:
            raise UserError(
                "a local model needs transformers and torch: pip install 'rambla_ray[hf]' -c constraints.txt"
            ) from None
        known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
        for key in params.generation_config:
            if key not in known:
                raise UserError(f"params.generation_config: no key '{key}'; {choose_from(key, known)}")
            if key in REFUSED_OPTIONS:
                raise UserError(f"params.generation_config.{key} cannot be used here: {REFUSED_OPTIONS[key]}")
        return params

    def load(self) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        params = self.params
        shared = {
            "revision": params.revision,
            "local_files_only": params.local_files_only,
            "trust_remote_code": params.trust_remote_code,
        }
        loading = dict(params.loading_params)
        loading["dtype"] = loading.get("dtype") or ("auto" if self.device_type != "cpu" else _fast_cpu_dtype())
        gguf = {"gguf_file": loading["gguf_file"]} if "gguf_file" in loading else {}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                params.tokenizer_name or params.model_name,
                **shared,
                **(gguf if not params.tokenizer_name else {}),
            )
            self._model: Any
            self._model, found = AutoModelForCausalLM.from_pretrained(
                params.model_name, device_map=self._device_map(), output_loading_info=True, **shared, **loading
            )
        except Exception as error:  # noqa: BLE001 - four libraries read the files, each with errors of its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise CallError(ErrorKind.LOAD, f"{params.model_name} cannot be loaded: {reason}") from None
        if found["missing_keys"]:
            raise CallError(
                ErrorKind.LOAD,
                f"{params.model_name} cannot be loaded: it lacks {len(found['missing_keys'])} weights, for example "
                f"{min(found['missing_keys'])}",
            )
        if params.device:
            self._model.to(params.device)
        self._model.eval()
        if params.is_finetuned and not params.message_formatting_template and not self._tokenizer.chat_template:
            raise CallError(
                ErrorKind.LOAD,
                f"the tokenizer of {params.model_name} has no chat template, which is_finetuned asks for; give "
                "message_formatting_template or set is_finetuned: false",
            )
        self._generation = self._resolved_generation()
        self._identity = self._make_identity(loading)

    def _device_map(self) -> Any:
        if self.params.device:
            return None
        if self.device_type == "cpu":
            return {"": "cpu"}
        return {"": 0} if self.params.device_map == "auto" and self.pool.num_gpus == 1 else self.params.device_map

    def _resolved_generation(self) -> Any:
        """What the model will really do. Nothing is left unset that generate() would fill in from elsewhere."""
        from transformers import GenerationConfig

        options = {"do_sample": False, **self.params.generation_config}
        if not options["do_sample"]:
            for key in ("temperature", "top_p", "top_k", "min_p", "typical_p"):
                options.pop(key, None)  # they do nothing in greedy decoding
        options.pop("max_length", None)  # part of each job's own limit
        own = self._model.generation_config
        eos = options.get("eos_token_id", own.eos_token_id if own else None)
        options["eos_token_id"] = self._tokenizer.eos_token_id if eos is None else eos
        pad = options.get("pad_token_id", self._tokenizer.pad_token_id)
        first_eos = options["eos_token_id"]
        first_eos = first_eos[0] if isinstance(first_eos, list) else first_eos
        options["pad_token_id"] = pad if pad is not None else (0 if first_eos is None else first_eos)
        generation = GenerationConfig(**options)
        self._model.generation_config = generation
        return generation

    def _context_length(self) -> int | None:
        """Tokens that prompt and answer may have together: the model's positions, or less where max_length says so."""
        positions = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        limits = [int(limit) for limit in (positions, self.params.generation_config.get("max_length")) if limit]
        return min(limits, default=None)

    def _make_identity(self, loading: dict[str, Any]) -> dict[str, object]:
        params = self.params
        if Path(params.model_name).is_dir():
            weights = fingerprint(Path(params.model_name), loading.get("gguf_file"))
        else:
            commit = getattr(self._model.config, "_commit_hash", None)
            weights = f"{params.model_name}@{commit or params.revision or 'main'}"
        template = params.message_formatting_template or self._tokenizer.chat_template
        generation = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        generation.pop("transformers_version", None)
        generation |= {
            key: params.generation_config[key] for key in ("max_length",) if key in params.generation_config
        }
        return {
            "class": type(self).__name__,
            "weights": weights,
            "tokenizer": _tokenizer_identity(params.tokenizer_name),
            "loading": json.loads(json.dumps({**loading, "dtype": str(self._model.dtype)}, default=str)),
            "generation": json.loads(json.dumps(generation, default=str)),
            "template": template if params.is_finetuned else None,
        }

    def identity(self) -> dict[str, object]:
        return self._identity

    def prepare(self, request: Request) -> Job:
        params = self.params
        if not params.is_finetuned:
            tokens = self._tokenizer(request.prompt)["input_ids"]
        elif params.message_formatting_template:
            text = params.message_formatting_template.format(message=request.prompt)
            tokens = self._tokenizer(text)["input_ids"]
        else:
            tokens = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": request.prompt.strip()}],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
        most = self._context_length()
        room = most - len(tokens) if most is not None else None
        if room is not None and room < 1:
            raise CallError(
                ErrorKind.TOO_LONG, f"prompt of {len(tokens)} tokens, the model takes {most} with its answer"
            )
        limits = [limit for limit in (self._generation.max_new_tokens, room) if limit is not None]
        if not limits:
            raise CallError(ErrorKind.BAD_REQUEST, "set generation_config.max_new_tokens: the model names no limit")
        return Job(tokens=list(tokens), max_new_tokens=min(limits))

    def run(self, jobs: list[Job]) -> None:
        import torch

        width = max(len(job.tokens) for job in jobs)
        pad = self._generation.pad_token_id
        ids = torch.tensor([[pad] * (width - len(job.tokens)) + job.tokens for job in jobs])
        mask = torch.tensor([[0] * (width - len(job.tokens)) + [1] * len(job.tokens) for job in jobs])
        device = self._model.device
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self._generation,
                max_new_tokens=jobs[0].max_new_tokens,
            )
        eos = self._generation.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        for job, row in zip(jobs, out[:, width:].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), None)
            made = row if end is None else row[:end]
            job.response = Response(
                text=self._tokenizer.decode(made, skip_special_tokens=True),
                finish_reason="length" if end is None else "stop",
                prompt_tokens=len(job.tokens),
                completion_tokens=len(made) + (end is not None),
            )


def fingerprint(folder: Path, gguf_file: str | None = None) -> str:
    """sha256 over the names and contents of a checkpoint's files, whatever folder it lies in, as 64 hex digits."""
    weights = [folder / gguf_file] if gguf_file else [p for p in folder.rglob("*") if p.suffix in WEIGHTS]
    texts = [path for path in folder.rglob("*") if path.suffix in TEXTS]
    whole = hashlib.sha256()
    for path in sorted({*weights, *texts}):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder)} {digest}\n".encode())
    return whole.hexdigest()


def _tokenizer_identity(name: str | None) -> str:
    """What a tokenizer of its own is: its files, or its hub id; empty when it is the model's."""
    folder = Path(name) if name else None
    return fingerprint(folder) if folder and folder.is_dir() else name or ""


def _fast_cpu_dtype() -> str:
    """bfloat16 where the CPU computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"

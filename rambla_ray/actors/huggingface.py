"""Local models from HuggingFace checkpoints, answering in batches of what waits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from rambla_ray import prompts, similarity
from rambla_ray.actors.base import Emit, Model, ModelParams
from rambla_ray.config import Pool, Rate
from rambla_ray.errors import CallError, Draining, ErrorKind, UserError, choose_from
from rambla_ray.schema import Request, Response, Try

GATHER_S = 0.02  # how long the first request of a batch waits for company
BATCH_SIZE = {"cpu": 8, "cuda": 32}
RUN_CODE = ("weights_only", "allow_all_kernels", "use_kernels", "kernel_config")  # or unpickle it, when loading
DTYPES = ("auto", "float16", "bfloat16", "float32")
WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
POOLING = {"mean_tokens": "mean", "mean": "mean", "cls_token": "cls", "cls": "cls"}  # sentence-transformers' names
GIVE_BOTH = "to leave sentence-transformers' files unread, give pooling and normalize"
UNLIMITED = 10**9  # tokenizers without a limit name a larger one
TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")

# Generation options that a batch of independent answers cannot honour, and what to do instead.
REFUSED_OPTIONS = {
    "max_time": "set max_new_tokens",
    "stop_strings": "end tokens are eos_token_id",
    "num_return_sequences": "one prompt has one answer",
    "return_dict_in_generate": "only the text is kept",
    "prompt_lookup_num_tokens": "it works on one prompt at a time",
}


class CheckpointParams(ModelParams):
    """Where a checkpoint is and how it is loaded: RAmBLA's parameters, with `revision` and `trust_remote_code`."""

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


class HuggingFaceParams(CheckpointParams):
    """RAmBLA's parameters of a local language model, unchanged."""

    generation_config: dict[str, Any] = Field(
        default_factory=dict, description="for transformers.GenerationConfig; greedy unless do_sample is true"
    )
    is_finetuned: bool = Field(False, description="apply the chat template (or message_formatting_template)")
    message_formatting_template: str | None = Field(None, description="used for the chat template; holds {message}")

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


class NLIParams(CheckpointParams):
    """A classifier of text pairs, and how its two directions become one result."""

    label_map: dict[int, str] | None = Field(
        None,
        description="number to name of the labels, one of them entailment; the checkpoint's id2label when not given",
    )
    strategy: similarity.Strategy = Field(
        "strict",
        description="strict: entailment both ways; relaxed: one way, and neutral at least the other; average, "
        "unidirectional: the probability of entailment both ways, or forward alone",
    )


class EmbeddingsParams(CheckpointParams):
    """An encoder, and how its token vectors become one."""

    pooling: Literal["mean", "cls"] | None = Field(
        None, description="as the checkpoint's sentence-transformers files say when not given, else mean"
    )
    normalize: bool | None = Field(
        None, description="vectors of length 1; as the checkpoint's sentence-transformers files say when not given"
    )


class BaseHuggingFaceModel(Model):
    """A checkpoint loaded into this actor. A subclass loads it, and runs a batch of jobs in the model's thread.

    Requests that wait are answered together: the longest first, so that memory trouble shows at once, and those of
    one batch alike in length, so that little is padding.
    """

    is_local = True
    params: CheckpointParams
    _identity: dict[str, object]  # load() sets it
    unused_weights: ClassVar[tuple[str, ...]] = ()  # prefixes of what a checkpoint may lack, as nothing reads it

    def __init__(self, params: CheckpointParams, pool: Pool, rate: Rate | None) -> None:
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
        self._draining = False
        self.load()

    @abstractmethod
    def load(self) -> None:
        """Load tokenizer and weights; raises CallError (`load`) when that cannot be done."""

    @abstractmethod
    def prepare(self, request: Request) -> Job:
        """A request as a job: its tokens and limits. Raises CallError (`too_long`, `bad_request`)."""

    @abstractmethod
    def run(self, jobs: list[Job]) -> None:
        """Answer the jobs together: set the `response` or the `error` of each. Called in the model's thread."""

    def cpu_dtype(self) -> str:
        """In what a CPU computes when the config does not say."""
        return "float32"

    def load_checkpoint(self, kind: Any) -> None:
        """Load the tokenizer and, with `kind`, one of transformers' Auto classes, the weights.

        Raises:
            CallError: `load`: files are missing, broken, or do not belong together.
        """
        from transformers import AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        params = self.params
        shared = {
            "revision": params.revision,
            "local_files_only": params.local_files_only,
            "trust_remote_code": params.trust_remote_code,
        }
        loading = dict(params.loading_params)
        loading["dtype"] = loading.get("dtype") or ("auto" if self.device_type != "cpu" else self.cpu_dtype())
        gguf = {"gguf_file": loading["gguf_file"]} if "gguf_file" in loading else {}
        with self.loading():
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                params.tokenizer_name or params.model_name,
                **shared,
                **(gguf if not params.tokenizer_name else {}),
            )
            self._model: Any
            self._model, found = kind.from_pretrained(
                params.model_name, device_map=self._device_map(), output_loading_info=True, **shared, **loading
            )
        missing = [name for name in found["missing_keys"] if not name.startswith(self.unused_weights)]
        if missing:
            raise self.load_error(f"it lacks {len(missing)} weights, for example {min(missing)}")
        if params.device:
            self._model.to(params.device)
        self._model.eval()
        self._loading = {**loading, "dtype": str(self._model.dtype)}

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What goes wrong inside is a load error of one line."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - four libraries read the files, each with errors of its own
            raise self.load_error(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None

    def load_error(self, reason: str) -> CallError:
        """That the checkpoint cannot be loaded."""
        return CallError(ErrorKind.LOAD, f"{self.params.model_name} cannot be loaded: {reason}")

    def _device_map(self) -> Any:
        if self.params.device:
            return None
        if self.device_type == "cpu":
            return {"": "cpu"}
        return {"": 0} if self.params.device_map == "auto" and self.pool.num_gpus == 1 else self.params.device_map

    def identity(self) -> dict[str, object]:
        return self._identity

    def checkpoint_identity(self) -> dict[str, object]:
        """What was loaded: class, weights, tokenizer and how, without a path."""
        params = self.params
        if Path(params.model_name).is_dir():
            weights = fingerprint(Path(params.model_name), self._loading.get("gguf_file"))
        else:
            weights = f"{params.model_name}@{self._commit() or 'main'}"
        return {
            "class": type(self).__name__,
            "weights": weights,
            "tokenizer": _tokenizer_identity(params.tokenizer_name),
            "loading": json.loads(json.dumps(self._loading, default=str)),
        }

    def _commit(self) -> str | None:
        """Of a hub id: what was loaded, as exactly as is known."""
        commit: str | None = getattr(self._model.config, "_commit_hash", None)
        return commit or self.params.revision

    @classmethod
    def preflight(cls, params: CheckpointParams, *, same_machine: bool) -> None:
        if same_machine and params.is_path and not Path(params.model_name).is_dir():
            raise UserError(f"params.model_name: there is no folder {params.model_name}")
        gguf = params.loading_params.get("gguf_file")
        if same_machine and params.is_path and gguf and not (Path(params.model_name) / gguf).is_file():
            raise UserError(f"params.loading_params.gguf_file: there is no {gguf} in {params.model_name}")

    def drain(self) -> None:
        self._draining = True
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if not job.done.done():
                job.done.set_exception(Draining())

    async def generate(self, request: Request, emit: Emit | None = None) -> Response:
        at, began = time.time(), time.monotonic()
        if self._draining:
            raise Draining
        job = self.prepare(request)
        job.done = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run_waiting())
        response = await job.done
        took = time.monotonic() - began
        return replace(response, latency_s=took, tries=(Try(at, took),))

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


Encoding = dict[str, list[int]]  # what a tokenizer makes of a text or a pair: input_ids, perhaps token_type_ids


@dataclass(slots=True, eq=False)
class Job:
    """One request in the model's terms: the encodings to run, and the most it may generate."""

    encodings: list[Encoding]
    max_new_tokens: int = 0
    done: asyncio.Future[Response] = field(init=False)
    response: Response = field(init=False)
    error: Exception | None = None

    @property
    def tokens(self) -> list[int]:
        """The longest encoding's token numbers."""
        return max((encoding["input_ids"] for encoding in self.encodings), key=len)


class HuggingFaceLLM(BaseHuggingFaceModel):
    """A causal language model, generating in left-padded static batches."""

    Params: ClassVar[type[ModelParams]] = HuggingFaceParams
    params: HuggingFaceParams

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

    def cpu_dtype(self) -> str:
        return _fast_cpu_dtype()

    def load(self) -> None:
        from transformers import AutoModelForCausalLM

        self.load_checkpoint(AutoModelForCausalLM)
        params = self.params
        if params.is_finetuned and not params.message_formatting_template and not self._tokenizer.chat_template:
            raise CallError(
                ErrorKind.LOAD,
                f"the tokenizer of {params.model_name} has no chat template, which is_finetuned asks for; give "
                "message_formatting_template or set is_finetuned: false",
            )
        self._generation = self._resolved_generation()
        self._identity = {**self.checkpoint_identity(), **self._generation_identity()}

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

    def _generation_identity(self) -> dict[str, object]:
        params = self.params
        template = params.message_formatting_template or self._tokenizer.chat_template
        generation = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        generation.pop("transformers_version", None)
        if "max_length" in params.generation_config:  # not left in `_generation`
            generation["max_length"] = params.generation_config["max_length"]
        return {
            "generation": json.loads(json.dumps(generation, default=str)),
            "template": template if params.is_finetuned else None,
        }

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
        return Job([{"input_ids": list(tokens)}], min(limits))

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


class HuggingFaceJudge(BaseHuggingFaceModel):
    """A model that compares a request's two texts: one forward pass over right-padded encodings, and no generation.

    All encodings of a request run in the same batch. A text that is too long is cut, as RAmBLA's is.
    """

    produces = "score"

    @abstractmethod
    def encode(self, text: str, pair: str) -> Iterable[Any]:
        """What the tokenizer makes of the two texts: the encodings to run."""

    @abstractmethod
    def forward(self, batch: Any) -> Any:
        """The values of a padded batch of encodings: a tensor (encodings, values)."""

    @abstractmethod
    def compare(self, values: list[list[float]]) -> str:
        """The response's text from the values of one request's encodings."""

    def load_checkpoint(self, kind: Any) -> None:
        super().load_checkpoint(kind)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if self._tokenizer.pad_token_id is None:
            raise self.load_error("its tokenizer has neither a pad nor an eos token")
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.padding_side = "right"
        self.max_tokens = self._longest_encoding()

    def _longest_encoding(self) -> int | None:
        """Tokens that one encoding may have: the model's positions, or less where the tokenizer says so."""
        limits = [getattr(self._model.config.get_text_config(), "max_position_embeddings", None)]
        for name, module in self._model.named_modules():
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                limits.append(module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from after the pad
        if self._tokenizer.model_max_length < UNLIMITED:
            limits.append(self._tokenizer.model_max_length)
        return min((limit for limit in limits if limit), default=None)

    def tokenize(self, *texts: str) -> Any:
        """The encoding of a text or of a pair, cut to what the model takes."""
        return self._tokenizer(*texts, truncation=self.max_tokens is not None, max_length=self.max_tokens)

    def prepare(self, request: Request) -> Job:
        if request.pair is None:
            raise CallError(ErrorKind.BAD_REQUEST, "this model compares two texts; the request has one")
        return Job([dict(encoding) for encoding in self.encode(request.prompt, request.pair)])

    def run(self, jobs: list[Job]) -> None:
        import torch

        encodings = [encoding for job in jobs for encoding in job.encodings]
        batch = self._tokenizer.pad(encodings, return_tensors="pt").to(self._model.device)
        with torch.inference_mode():
            rows = iter(self.forward(batch).tolist())
        for job in jobs:
            values = [next(rows) for _ in job.encodings]
            if not all(math.isfinite(value) for row in values for value in row):
                job.error = CallError(ErrorKind.INTERNAL, "the model computed NaN or infinity; try a wider dtype")
                continue
            tokens = sum(len(encoding["input_ids"]) for encoding in job.encodings)
            job.response = Response(text=self.compare(values), prompt_tokens=tokens)


class HuggingFaceNLI(HuggingFaceJudge):
    """Natural language inference: whether two texts entail each other. The prompt is the first premise."""

    Params: ClassVar[type[ModelParams]] = NLIParams
    params: NLIParams

    def load(self) -> None:
        from transformers import AutoModelForSequenceClassification

        self.load_checkpoint(AutoModelForSequenceClassification)
        self._labels = self._checked_labels()
        self._identity = {**self.checkpoint_identity(), "labels": self._labels, "strategy": self.params.strategy}

    def _checked_labels(self) -> list[str]:
        """The names of the logits, in lower case: the config's or else the checkpoint's own."""
        own = {int(number): name for number, name in self._model.config.id2label.items()}
        given = own if self.params.label_map is None else self.params.label_map
        labels = [given[number].strip().lower() for number in sorted(given)]
        named = f"the labels are {', '.join(f'{number}: {given[number]}' for number in sorted(given))}"
        if given.keys() != own.keys():
            raise self.load_error(
                f"label_map must name each of the labels {', '.join(map(str, sorted(own)))}; {named}"
            )
        if labels.count(similarity.ENTAILMENT) != 1 or len(set(labels)) < len(labels):
            raise self.load_error(
                f"exactly one label must be named entailment, and none twice; {named}: set label_map"
            )
        if self.params.strategy == "relaxed" and similarity.NEUTRAL not in labels:
            raise self.load_error(f"strategy relaxed needs a label named neutral; {named}: set label_map")
        said = [number for number, name in own.items() if name.strip().lower() == similarity.ENTAILMENT]
        if said and said != [labels.index(similarity.ENTAILMENT)]:
            raise self.load_error(
                f"label_map contradicts it: {named}, but entailment is {said[0]} in its config.json; drop label_map"
            )
        return labels

    def encode(self, text: str, pair: str) -> Iterable[Any]:
        yield self.tokenize(text, pair)
        if self.params.strategy != "unidirectional":
            yield self.tokenize(pair, text)

    def forward(self, batch: Any) -> Any:
        return self._model(**batch).logits.cpu().double()

    def compare(self, values: list[list[float]]) -> str:
        forward, *backward = (dict(zip(self._labels, row, strict=True)) for row in values)
        return similarity.combine_nli(forward, backward[0] if backward else None, self.params.strategy)


class HuggingFaceEmbeddings(HuggingFaceJudge):
    """The inner product of two texts' vectors. What the config leaves open is as sentence-transformers has it."""

    Params: ClassVar[type[ModelParams]] = EmbeddingsParams
    params: EmbeddingsParams
    unused_weights = ("pooler.",)

    def load(self) -> None:
        from transformers import AutoModel

        self.load_checkpoint(AutoModel)
        card: dict[str, Any] = {"pooling": self.params.pooling, "normalize": self.params.normalize}
        if None in card.values():
            said = self._sentence_transformers()
            card = {key: said[key] if value is None else value for key, value in card.items()}
            self.max_tokens = min(filter(None, (self.max_tokens, said["max_tokens"])), default=None)
        self._card = {**card, "max_tokens": self.max_tokens}
        self._identity = {**self.checkpoint_identity(), **self._card}

    def _sentence_transformers(self) -> dict[str, Any]:
        """What modules.json and the files beside it say; without them the mean, not normalised."""
        said: dict[str, Any] = {"pooling": "mean", "normalize": False, "max_tokens": None}
        for module in self._side_file("modules.json") or []:
            match str(module["type"]).rpartition(".")[2]:
                case "Transformer":
                    said["max_tokens"] = (self._side_file("sentence_bert_config.json") or {}).get("max_seq_length")
                case "Pooling":
                    said["pooling"] = self._pooling_of(self._side_file(f"{module['path']}/config.json") or {})
                case "Normalize":
                    said["normalize"] = True
                case other:
                    raise self.load_error(f"modules.json asks for {other}, which is not supported; {GIVE_BOTH}")
        return said

    def _pooling_of(self, config: dict[str, Any]) -> str:
        modes = [key.removeprefix("pooling_mode_") for key, on in config.items() if on and "pooling_mode_" in key]
        modes += [config["pooling_mode"]] if "pooling_mode" in config else []
        pooling = POOLING.get(str(modes[0])) if len(modes) == 1 else None
        if pooling is None:
            raise self.load_error(f"it pools by {' and '.join(map(str, modes)) or 'an unknown rule'}; {GIVE_BOTH}")
        return pooling

    def _side_file(self, name: str) -> Any:
        """A JSON file of the checkpoint, from its folder or the hub; None when it has none of that name."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self.loading():
            path = Path(self.params.model_name, name)
            if not Path(self.params.model_name).is_dir():
                try:
                    path = Path(
                        hf_hub_download(
                            self.params.model_name,
                            name,
                            revision=self._commit(),
                            local_files_only=self.params.local_files_only,
                        )
                    )
                except LocalEntryNotFoundError:
                    raise  # the hub cannot be asked: whether there is such a file is not known
                except EntryNotFoundError:
                    return None
            return json.loads(path.read_text()) if path.is_file() else None

    def encode(self, text: str, pair: str) -> Iterable[Any]:
        return self.tokenize(text), self.tokenize(pair)

    def forward(self, batch: Any) -> Any:
        import torch

        states = self._model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1).to(states.device)
        pooled = states[:, 0] if self._card["pooling"] == "cls" else (states * mask).sum(1) / mask.sum(1)
        vectors = pooled.cpu().double()
        return torch.nn.functional.normalize(vectors, dim=-1) if self._card["normalize"] else vectors

    def compare(self, values: list[list[float]]) -> str:
        return repr(similarity.inner_product(*values))


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

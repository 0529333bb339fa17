"""Local language models, generating from HuggingFace checkpoints."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from jinja2 import TemplateError
from pydantic import Field, model_validator

from rambla_ray.actors.local import weights
from rambla_ray.actors.local.checkpoint import BaseHuggingFaceModel, CheckpointParams, Job
from rambla_ray.actors.model import RunContext
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind, UserError, choose_from
from rambla_ray.schema import NO_OPTIONS, GenerationOptions, Request, Response, canonical_json
from rambla_ray.tasks import prompts

if TYPE_CHECKING:
    from rambla_ray.actors.local.decoding import Draw

PROMPT_TOKENS = {"cpu": 2048, "cuda": 16384}  # of prompts that run together: more fill no chip better
DECODED_TOKENS = {"cpu": 24576, "cuda": 1_000_000}  # of rows that are decoded together: more gain no more
CONTINUOUS_TOKENS = 16384  # in the cache of continuous batching on a CPU
CACHE_SHARE = 0.3  # of the free memory that those may take: prompts need room, too
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # at the end of a text: a character of which not all tokens are there

# Generation options that a batch of independent answers cannot honour, and what to do instead.
REFUSED_OPTIONS = {
    "max_time": "set max_new_tokens",
    "min_length": "set min_new_tokens: prompts differ in length",
    "stop_strings": "end tokens are eos_token_id",
    "num_return_sequences": "one prompt has one answer",
    "return_dict_in_generate": "only the text is kept",
    "prompt_lookup_num_tokens": "it works on one prompt at a time",
}
NO_EFFECT = {"num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True, "min_p": 0.0}
DRAWING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")  # need do_sample

# The ways to generate, and the generation options that each honours; None for all that are not refused.
Backend = Literal["transformers", "transformers_continuous", "vllm"]
_EVERYWHERE = frozenset(
    {"max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p", "eos_token_id", "pad_token_id"}
    | {"bos_token_id"}
)
OPTIONS: dict[Backend, Collection[str] | None] = {
    "transformers": None,
    "transformers_continuous": _EVERYWHERE,
    "vllm": _EVERYWHERE | {"repetition_penalty", "min_new_tokens"},
}
VLLM_LOADING = ("dtype", "quantization")  # what its engine takes of loading_params
NOT_CAUSAL = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$"
    r"|(?<!LMHead)(?<!DoubleHeads)Model$"
)


class HuggingFaceParams(CheckpointParams):
    """RAmBLA's parameters of a local language model, unchanged."""

    generation_config: dict[str, Any] = Field(
        default_factory=dict, description="for transformers.GenerationConfig; greedy unless do_sample is true"
    )
    is_finetuned: bool = Field(False, description="apply the chat template (or message_formatting_template)")
    message_formatting_template: str | None = Field(None, description="used for the chat template; holds {message}")
    backend: Literal["auto", Backend] = Field(
        "auto",
        description="transformers: static batches; transformers_continuous: continuous batching with paged attention; "
        "vllm: its engine (pip install vllm); auto: by device and options",
    )

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

    def resolved(self) -> Self:
        """Refuse generation options that transformers does not know, or the backend cannot honour."""
        if self.backend == "vllm":
            strange = [key for key in self.loading_params if key not in VLLM_LOADING]
            if strange:
                raise UserError(
                    f"params.loading_params.{strange[0]}: backend vllm does not take it; backend: transformers does"
                )
        if not self.generation_config:
            return self
        try:
            from transformers import GenerationConfig
        except ImportError:
            raise UserError(
                "a local model needs transformers and torch: pip install 'rambla_ray[hf]' -c constraints.txt"
            ) from None
        known = [name for name in vars(GenerationConfig()) if not name.startswith("_")]
        for key in self.generation_config:
            if key not in known:
                raise UserError(f"params.generation_config: no key '{key}'; {choose_from(key, known)}")
            if key in REFUSED_OPTIONS:
                raise UserError(f"params.generation_config.{key} cannot be used here: {REFUSED_OPTIONS[key]}")
        unheard = _unheard(self, self.backend) if self.backend != "auto" else None
        if unheard:
            able = [backend for backend in OPTIONS if not _unheard(self, backend)]
            raise UserError(
                f"params.generation_config.{unheard}: backend {self.backend} cannot honour it; {able[0]} can"
            )
        return self

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if not same_machine:
            return
        if self.backend == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UserError("params.backend: vllm is not installed; pip install 'rambla_ray[vllm]', or backend: auto")
        if not self.is_path or "gguf_file" in self.loading_params:
            return  # a hub's files, and GGUF, are looked into when they are loaded
        folder = Path(self.model_name)
        config = weights.config_of(folder)
        if wrong := [kind for kind in config.get("architectures") or [] if NOT_CAUSAL.search(kind)]:
            raise UserError(f"params.model_name: {folder} is a {wrong[0]}, which is not a causal language model")
        most, new = weights.context_length(config), self.generation_config.get("max_new_tokens")
        if most is not None and isinstance(new, int) and new >= most:
            raise UserError(f"params.generation_config.max_new_tokens={new} leaves no room in its context of {most}")
        tokenizer = Path(self.tokenizer_name or folder)
        templated = self.is_finetuned and not self.message_formatting_template
        if templated and tokenizer.is_dir() and not weights.has_chat_template(tokenizer):
            raise UserError(f"params.model_name: {_no_template(str(tokenizer))}")


class HuggingFaceLLM(BaseHuggingFaceModel):
    """A causal language model, generating with the backend that its params name."""

    Params: ClassVar[type[ModelParams]] = HuggingFaceParams
    params: HuggingFaceParams

    def cpu_dtype(self) -> str:
        return _fast_cpu_dtype()

    def load(self) -> None:
        self.read_checkpoint()
        params = self.params
        if params.is_finetuned and not params.message_formatting_template and not self._tokenizer.chat_template:
            raise CallError(ErrorKind.LOAD, _no_template(params.model_name))
        self._backend, self._why = choose_backend(params, self.chip)
        self._generation = self._resolved_generation()
        eos = self._generation.eos_token_id
        self._ends = set(eos if isinstance(eos, list) else [eos])
        options = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        self._samples = bool(options["do_sample"])
        self._draw_options = {name: options[name] for name in DRAWING if name in options}
        self._by_rows = (self._generation.num_beams or 1) == 1  # beams are not rows
        self._identity = {**self.checkpoint_identity(), **self._generation_identity()}

    def load_weights(self) -> None:
        self._engine: Engine | None = None
        if self._backend == "vllm":
            from rambla_ray.actors.local.vllm import VLLM

            self._engine = VLLM(self.params, self.pool, self._generation, self._dtype, self.work)
            return
        from transformers import AutoModelForCausalLM

        self.load_checkpoint(AutoModelForCausalLM)
        if self._backend == "transformers":
            self._settle_decoding()
            return
        from rambla_ray.actors.local.continuous import Continuous

        self._engine = Continuous(
            self._model,
            self._generation,
            self.work,
            lambda line: self.context.notify(line),
            cache_tokens=CONTINUOUS_TOKENS if self.chip == "cpu" else None,
            memory_share=self.memory_share,
            most=None if self.pool.batch_size == "auto" else self.pool.batch_size,
        )

    def attach(self, context: RunContext) -> None:
        super().attach(context)
        if self.params.backend == "auto":
            context.notify(f"backend {self._backend}: {self._why}")
        if self._samples and self._backend == "transformers_continuous":
            context.notify(
                "backend transformers_continuous draws all answers from one source, so that a draw depends on its "
                "neighbours; backend: transformers seeds each by its own text"
            )

    def _resolved_generation(self) -> Any:
        """What the model will really do. Nothing is left unset that generate() would fill in from elsewhere."""
        from transformers import GenerationConfig

        options = {"do_sample": False, **self.params.generation_config}
        if not options["do_sample"]:
            for key in DRAWING:
                options.pop(key, None)  # they do nothing in greedy decoding
        options.pop("max_length", None)  # part of each job's own limit
        eos = options.get("eos_token_id", self._own_generation().eos_token_id)
        options["eos_token_id"] = self._tokenizer.eos_token_id if eos is None else eos
        pad = options.get("pad_token_id", self._tokenizer.pad_token_id)
        first_eos = options["eos_token_id"]
        first_eos = first_eos[0] if isinstance(first_eos, list) else first_eos
        options["pad_token_id"] = pad if pad is not None else (0 if first_eos is None else first_eos)
        most, new = self._context_length(), options.get("max_new_tokens")
        if most is not None and new is not None and new >= most:
            raise self.load_error(f"generation_config.max_new_tokens={new} leaves no room in its context of {most}")
        return GenerationConfig(**options)

    def _own_generation(self) -> Any:
        """The checkpoint's generation config: a file of its own, or what stands in its config."""
        from transformers import GenerationConfig

        with self.loading():
            try:
                return GenerationConfig.from_pretrained(self.params.model_name, **self._shared)
            except OSError:  # it has none
                return GenerationConfig.from_model_config(self._config)

    def _settle_decoding(self) -> None:
        """How `generate` is called: a row's draw is made by `decoding.Draws`, so `generate` itself is greedy."""
        from transformers import GenerationConfig

        from rambla_ray.actors.local import decoding

        options = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        for name in ("do_sample", *DRAWING):
            options.pop(name, None)
        self._history = decoding.Histories(options if self._by_rows else {})
        self._greedy = GenerationConfig(**options, do_sample=False)
        self._model.generation_config = self._greedy
        self._shares = self._by_rows and decoding.can_share(self._model)
        if self.pool.batch_size == "auto":
            self.batch_tokens = (DECODED_TOKENS if self._shares else PROMPT_TOKENS)[self.chip]
            room = int(CACHE_SHARE * self._free_bytes() / self._bytes_per_token())
            self.batch_tokens = max(1, min(self.batch_tokens, room))
        decoding.use_grouped_attention(self._model)
        self._start = decoding.Start()

    def _bytes_per_token(self) -> int:
        """What the cache holds of one token: a key and a value in each layer."""
        config = self._config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self._model.dtype.itemsize)

    def take(self, job: Job) -> None:
        if self._engine is not None and isinstance(job, Prompt):
            self._engine.take(job)
        else:
            super().take(job)

    def _context_length(self) -> int | None:
        """Tokens that prompt and answer may have together: the model's positions, or less where max_length says so."""
        positions = getattr(self._config.get_text_config(), "max_position_embeddings", None)
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
            **({"backend": self._backend} if self._backend != "transformers" else {}),
        }

    def prepare(self, request: Request) -> Job:
        tokens = self._tokens_of(request)
        asked = request.options
        if not self._by_rows and asked != NO_OPTIONS:
            raise CallError(ErrorKind.BAD_REQUEST, "with num_beams, a request cannot have options of its own")
        own_draw = (asked.temperature, asked.top_p, asked.seed) != (None, None, None)
        if self._backend == "transformers_continuous" and own_draw and (self._samples or asked.temperature):
            reason = "backend transformers_continuous draws all answers alike: leave temperature, top_p and seed out"
            raise CallError(ErrorKind.BAD_REQUEST, reason)
        most = self._context_length()
        room = most - len(tokens) if most is not None else None
        if room is not None and room < 1:
            raise CallError(
                ErrorKind.TOO_LONG, f"prompt of {len(tokens)} tokens, the model takes {most} with its answer"
            )
        limits = [limit for limit in (asked.max_tokens or self._generation.max_new_tokens, room) if limit is not None]
        if not limits:
            raise CallError(ErrorKind.BAD_REQUEST, "set generation_config.max_new_tokens: the model names no limit")
        return Prompt(
            [{"input_ids": tokens}],
            max_new_tokens=min(limits),
            room=math.inf if room is None else room,
            stop=asked.stop,
            decode=self._decode,
            draw=self._draw(tokens, asked),
        )

    def _tokens_of(self, request: Request) -> list[int]:
        params = self.params
        messages = [message._asdict() for message in request.messages]
        alone = messages[0]["content"] if [message["role"] for message in messages] == ["user"] else None
        if request.verbatim or (not params.is_finetuned and not messages):
            text = request.prompt
        elif params.is_finetuned and not params.message_formatting_template:
            messages = messages or [{"role": "user", "content": request.prompt.strip()}]
            try:
                encoding = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            except TemplateError as error:  # some take no system message, some no two users in a row
                raise CallError(ErrorKind.BAD_REQUEST, f"the chat template refuses these messages: {error}") from None
            return list(encoding["input_ids"])
        elif messages and alone is None:
            raise CallError(ErrorKind.BAD_REQUEST, "this model has no chat template: send one user message")
        else:
            text = alone if alone is not None else request.prompt
            if params.message_formatting_template:
                text = params.message_formatting_template.format(message=text)
        return list(self._tokenizer(text)["input_ids"])

    def _draw(self, tokens: list[int], asked: GenerationOptions) -> Draw | None:
        """How this request's tokens are drawn; None for greedy decoding. The seed is of its own text."""
        from rambla_ray.actors.local.decoding import WARPERS, Draw

        sampled = self._samples if asked.temperature is None else asked.temperature > 0
        if not sampled:
            return None
        options = dict(self._draw_options)
        options |= {name: value for name in ("temperature", "top_p") if (value := getattr(asked, name)) is not None}
        ordered = tuple((name, options[name]) for name in WARPERS if name in options)
        text = canonical_json([tokens, asked.seed]).encode()
        return Draw(ordered, int.from_bytes(hashlib.sha256(text).digest()[:8]))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def run(self, jobs: list[Job]) -> None:
        import torch

        prompts = [job for job in jobs if isinstance(job, Prompt)]
        with torch.inference_mode():
            if self._by_rows:
                self._run_rows(prompts)
            else:
                for limit in {job.max_new_tokens for job in prompts}:
                    self._run_beams([job for job in prompts if job.max_new_tokens == limit], limit)

    def _run_rows(self, jobs: list[Prompt]) -> None:
        from transformers import LogitsProcessorList, StoppingCriteriaList

        from rambla_ray.actors.local.decoding import Beginning, Draws, RowEnds, begin, padded

        rows = [job.tokens for job in jobs]
        pad = self._generation.pad_token_id
        if self._shares:
            room = max(job.max_new_tokens for job in jobs)
            begun = begin(self._model, rows, self._start, pad, PROMPT_TOKENS[self.chip], room)
        else:
            ids, mask = (tensor.to(self._model.device) for tensor in padded(rows, pad))
            begun = Beginning(ids, mask, None, ids.numel(), int((mask == 0).sum()))
        width = begun.input_ids.shape[1]
        draws = [job.draw for job in jobs]
        processors = [*self._history.of(rows, width), *([Draws(draws)] if any(draws) else [])]
        out = self._model.generate(
            input_ids=begun.input_ids,
            attention_mask=begun.attention_mask,
            past_key_values=begun.cache,
            generation_config=self._greedy,
            max_new_tokens=max(job.max_new_tokens for job in jobs),
            stopping_criteria=StoppingCriteriaList([RowEnds(jobs, width)]),
            logits_processor=LogitsProcessorList(processors),
        )
        for job, row in zip(jobs, out[:, width:].tolist(), strict=True):
            job.answer(row, self._ends)
        self.work.computed_tokens += begun.computed
        self.work.padding_tokens += begun.padding

    def _run_beams(self, jobs: list[Prompt], limit: int) -> None:
        from rambla_ray.actors.local.decoding import padded

        ids, mask = padded([job.tokens for job in jobs], self._generation.pad_token_id)
        out = self._model.generate(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=self._generation,
            max_new_tokens=limit,
        )
        for job, row in zip(jobs, out[:, ids.shape[1] :].tolist(), strict=True):
            job.answer(row, self._ends)
        self.work.computed_tokens += ids.numel()
        self.work.padding_tokens += int((mask == 0).sum())


@dataclass(eq=False, kw_only=True)
class Prompt(Job):
    """A prompt as a row of a batch: it ends with a stop text or when nobody waits for it, and streams what it writes.

    Args:
        stop: texts before the first of which the answer ends.
        decode: tokens to text.
        draw: how tokens are drawn; None for greedy decoding.
    """

    stop: tuple[str, ...]
    decode: Callable[[list[int]], str]
    draw: Draw | None
    sent: int = 0  # characters that were handed on

    def wrote(self, tokens: Callable[[], list[int]]) -> bool:
        """After each token, in the model's thread: hand on what is settled. True when this row need not go on."""
        if self.done is not None and self.done.cancelled():
            return True
        if self.emit is None and not self.stop:
            return False
        text = self.decode(tokens())
        if any(stop in text for stop in self.stop):
            return True
        held = next((size for size in range(self._longest_stop, 0, -1) if self._may_stop(text[-size:])), 0)
        if not text.endswith(UNFINISHED):
            self._hand_on(text[: len(text) - held])
        return False

    def answer(self, tokens: list[int], ends: Collection[int]) -> None:
        """Set the response from the tokens that were made, up to the first end token among them."""
        tokens = tokens[: self.max_new_tokens]
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        text = self.decode(tokens[:end])
        cut = min((place for stop in self.stop if (place := text.find(stop)) >= 0), default=None)
        self._hand_on(text[:cut])
        self.response = Response(
            text=text[:cut],
            finish_reason="length" if cut is None and end is None else "stop",
            prompt_tokens=len(self.tokens),
            completion_tokens=len(tokens) if end is None else end + 1,
        )

    @property
    def _longest_stop(self) -> int:
        return max(map(len, self.stop), default=1) - 1

    def _may_stop(self, tail: str) -> bool:
        return any(stop.startswith(tail) for stop in self.stop)

    def _hand_on(self, text: str) -> None:
        piece = text[self.sent :]
        if self.emit is not None and self.done is not None and piece:
            self.sent = len(text)
            self.done.get_loop().call_soon_threadsafe(self.emit, piece)


class Engine(Protocol):
    """A backend that keeps its own order: it gets prompts one by one, and answers each when it is done."""

    def take(self, job: Prompt) -> None:
        """As `BaseHuggingFaceModel.take`."""


def choose_backend(params: HuggingFaceParams, chip: str) -> tuple[Backend, str]:
    """The backend that `params.backend` means where the model runs, and why.

    Args:
        params: the model's.
        chip: cpu or cuda.
    """
    if params.backend != "auto":
        return params.backend, "it was asked for"
    if chip == "cpu":
        return "transformers", "static batches, the fastest on a CPU"
    if key := _unheard(params, "transformers_continuous"):
        return "transformers", f"static batches, as continuous batching cannot honour {key}"
    if params.generation_config.get("do_sample"):
        return "transformers", "static batches, whose draws do not depend on their neighbours"
    return "transformers_continuous", "continuous batching, which keeps a GPU busy"


def _unheard(params: HuggingFaceParams, backend: Backend) -> str | None:
    """The first generation option that a backend cannot honour, if any."""
    able = OPTIONS[backend]
    if able is None:
        return None
    given = params.generation_config
    silent = set() if given.get("do_sample") else set(DRAWING)
    return next(
        (
            key
            for key, value in given.items()
            if key not in able and key not in silent and value is not None and value != NO_EFFECT.get(key)
        ),
        None,
    )


def _no_template(tokenizer: str) -> str:
    return (
        f"the tokenizer of {tokenizer} has no chat template, which is_finetuned asks for; give "
        "message_formatting_template or set is_finetuned: false"
    )


def _fast_cpu_dtype() -> str:
    """bfloat16 where the CPU computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"

"""Local language models, generating from HuggingFace checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jinja2 import TemplateError
from pydantic import Field, model_validator

from rambla_ray import prompts
from rambla_ray.actors.base import ModelParams
from rambla_ray.actors.checkpoint import BaseHuggingFaceModel, CheckpointParams, Job
from rambla_ray.errors import CallError, ErrorKind, UserError, choose_from
from rambla_ray.schema import NO_OPTIONS, Options, Request, Response, canonical_json

if TYPE_CHECKING:
    from rambla_ray.actors.decoding import Draw

PROMPT_TOKENS = {"cpu": 4096, "cuda": 16384}  # of prompts that run together: more fill no chip better
DECODED_TOKENS = {"cpu": 8192, "cuda": 1_000_000}  # of rows that are decoded together: some ten seconds of a CPU
CACHE_SHARE = 0.3  # of a GPU's free memory that those may take: what grows is copied, and prompts need room too
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # at the end of a text: a character of which not all tokens are there

# Generation options that a batch of independent answers cannot honour, and what to do instead.
REFUSED_OPTIONS = {
    "max_time": "set max_new_tokens",
    "stop_strings": "end tokens are eos_token_id",
    "num_return_sequences": "one prompt has one answer",
    "return_dict_in_generate": "only the text is kept",
    "prompt_lookup_num_tokens": "it works on one prompt at a time",
}


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


class HuggingFaceLLM(BaseHuggingFaceModel):
    """A causal language model, generating in static batches."""

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
        self._settle_decoding()
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
        most, new = self._context_length(), options.get("max_new_tokens")
        if most is not None and new is not None and new >= most:
            raise self.load_error(f"generation_config.max_new_tokens={new} leaves no room in its context of {most}")
        return GenerationConfig(**options)

    def _settle_decoding(self) -> None:
        """How `generate` is called: a row's draw is made by `decoding.Draws`, so `generate` itself is greedy."""
        import torch
        from transformers import GenerationConfig

        from rambla_ray.actors import decoding

        options = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        self._draw_options = {name: options.pop(name) for name in decoding.WARPERS if name in options}
        self._samples = options.pop("do_sample")
        self._greedy = GenerationConfig(**options, do_sample=False)
        self._model.generation_config = self._greedy
        eos = self._generation.eos_token_id
        self._ends = set(eos if isinstance(eos, list) else [eos])
        self._by_rows = (self._generation.num_beams or 1) == 1  # beams are not rows
        self._shares = self._by_rows and decoding.can_share(self._model)
        if self.pool.batch_size == "auto":
            self.batch_tokens = (DECODED_TOKENS if self._shares else PROMPT_TOKENS)[self.chip]
            if self.chip == "cuda":
                free, _ = torch.cuda.mem_get_info(self._model.device)
                self.batch_tokens = max(1, min(self.batch_tokens, int(CACHE_SHARE * free / self._bytes_per_token())))
        decoding.use_grouped_attention(self._model)
        self._start = decoding.Start()

    def _bytes_per_token(self) -> int:
        """What the cache holds of one token: a key and a value in each layer."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * self._model.dtype.itemsize)

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
        tokens = self._tokens_of(request)
        asked = request.options
        if not self._by_rows and asked != NO_OPTIONS:
            raise CallError(ErrorKind.BAD_REQUEST, "with num_beams, a request cannot have options of its own")
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

    def _draw(self, tokens: list[int], asked: Options) -> Draw | None:
        """How this request's tokens are drawn; None for greedy decoding. The seed is of its own text."""
        from rambla_ray.actors.decoding import WARPERS, Draw

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

        from rambla_ray.actors.decoding import Beginning, Draws, RowEnds, begin, padded

        rows = [job.tokens for job in jobs]
        pad = self._generation.pad_token_id
        if self._shares:
            begun = begin(self._model, rows, self._start, pad, PROMPT_TOKENS[self.chip])
        else:
            ids, mask = (tensor.to(self._model.device) for tensor in padded(rows, pad))
            begun = Beginning(ids, mask, None, ids.numel(), int((mask == 0).sum()))
        width = begun.input_ids.shape[1]
        draws = [job.draw for job in jobs]
        out = self._model.generate(
            input_ids=begun.input_ids,
            attention_mask=begun.attention_mask,
            past_key_values=begun.cache,
            generation_config=self._greedy,
            max_new_tokens=max(job.max_new_tokens for job in jobs),
            stopping_criteria=StoppingCriteriaList([RowEnds(jobs, width)]),
            logits_processor=LogitsProcessorList([Draws(draws)] if any(draws) else []),
        )
        self._answer(jobs, out[:, width:].tolist())
        self.work.computed_tokens += begun.computed
        self.work.padding_tokens += begun.padding

    def _run_beams(self, jobs: list[Prompt], limit: int) -> None:
        from rambla_ray.actors.decoding import padded

        ids, mask = padded([job.tokens for job in jobs], self._generation.pad_token_id)
        out = self._model.generate(
            input_ids=ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=self._generation,
            max_new_tokens=limit,
        )
        self._answer(jobs, out[:, ids.shape[1] :].tolist())
        self.work.computed_tokens += ids.numel()
        self.work.padding_tokens += int((mask == 0).sum())

    def _answer(self, jobs: list[Prompt], rows: list[list[int]]) -> None:
        """Set the response of each job from what its row holds, from its prompt on."""
        for job, row in zip(jobs, rows, strict=True):
            row = row[: job.max_new_tokens]
            end = next((place for place, token in enumerate(row) if token in self._ends), None)
            made = row if end is None else row[:end]
            text, stopped = job.finish(made)
            job.response = Response(
                text=text,
                finish_reason="stop" if stopped or end is not None else "length",
                prompt_tokens=len(job.tokens),
                completion_tokens=len(made) + (end is not None),
            )


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

    def finish(self, tokens: list[int]) -> tuple[str, bool]:
        """The answer's text, and whether a stop text ended it."""
        text = self.decode(tokens)
        end = min((place for stop in self.stop if (place := text.find(stop)) >= 0), default=None)
        self._hand_on(text[:end])
        return text[:end], end is not None

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


def _fast_cpu_dtype() -> str:
    """bfloat16 where the CPU computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"

"""Local language models, generating from HuggingFace checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar

from rambla_ray.actors.local import backend_choice, special_tokens, weights
from rambla_ray.actors.local.backends import DRAW_OPTIONS, Backend
from rambla_ray.actors.local.job import Draw, Engine, LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.actors.local.prompting import Prompting
from rambla_ray.actors.local.vllm_arguments import in_identity
from rambla_ray.actors.local.vllm_model import VLLMModel
from rambla_ray.actors.model import RunContext, Size, byte_count
from rambla_ray.config.model import ModelParams
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import NO_OPTIONS, GenerationOptions, Request, canonical_json

TEMPLATE_HEADROOM = 64  # Tokens that a chat template may add to a prompt with a system prompt, beside one without.


class HuggingFaceLLM(VLLMModel):
    """A causal language model, generating with the backend that its params name."""

    Params: ClassVar[type[ModelParams]] = HuggingFaceParams
    params: HuggingFaceParams

    def cpu_dtype(self) -> str:
        return _fast_cpu_dtype()

    def load(self) -> None:
        self.read_checkpoint()
        self._prompting = Prompting(self._tokenizer, self.params, self.tokenizer_place, self.load_error)
        self._backend, self._reason = self._choose_backend()
        self._generation = self._resolved_generation()
        options = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        self._samples = bool(options["do_sample"])
        self._draw_options = {name: options[name] for name in DRAW_OPTIONS if name in options}
        self._searches_beams = (self._generation.num_beams or 1) != 1
        self._identity = {**self.checkpoint_identity(), **self._generation_identity()}

    def _choose_backend(self) -> tuple[Backend, str]:
        """The backend, and why. Raises CallError (`load`) where the model cannot run on the one that was asked for."""
        from rambla_ray.actors.local import cache

        if self.params.backend == "vllm":
            return self.params.choose_backend(self.chip)
        if self.family:
            return "transformers", "static batches, one adapter after the other"
        pages = cache.only_attends(self._config)
        if self.params.backend == "transformers_continuous" and not pages:
            raise self.load_error(
                "backend transformers_continuous needs attention in every layer; backend: transformers takes it"
            )
        otherwise = self.params.choose_backend(self.chip, pages=pages)
        return backend_choice.choose(self.params, self.chip, self._config, pages=pages, otherwise=otherwise)

    def request_identity(self, request: Request) -> dict[str, object]:
        return {**super().request_identity(request), **self._prompting.request_identity(request)}

    def load_weights(self) -> None:
        if self._backend == "vllm":  # Its engine loads them.
            self.check_memory()
            return
        from transformers import AutoModelForCausalLM

        self.load_checkpoint(AutoModelForCausalLM)

    def make_engine(self) -> Engine[LanguageJob]:
        context, generation = self.engine_context(), self._usable_generation()
        if self._backend == "vllm":
            return self.make_vllm(generation, context, self._longest_planned())
        if self._backend == "transformers_continuous":
            from rambla_ray.actors.local.continuous import Continuous

            return Continuous(self._model, generation, context, self.memory_share)
        from rambla_ray.actors.local.static import Static

        return Static(self._model, generation, context, self.free_bytes())

    def _usable_generation(self) -> Any:
        """`_generation`, with tokens that the model knows. Raises CallError (`load`)."""
        if not self.known_tokens:
            return self._generation
        try:
            special_tokens.check_known(self._generation, self.known_tokens)
        except ValueError as error:
            raise self.load_error(str(error)) from None
        return special_tokens.usable(self._generation, self.known_tokens)

    def _longest_planned(self) -> int | None:
        """Tokens of the run's longest prompt and its answer at most; None where that is not known.

        A token has at least one byte; what the template adds is measured.
        """
        longest, new = self.params.longest_prompt, self._generation.max_new_tokens
        if longest is None or not new:
            return None
        template = len(self._prompting.tokens(Request("x"))) + TEMPLATE_HEADROOM
        whole: int = longest + template + new
        return min(whole, self._context_length() or whole)

    def attach(self, context: RunContext) -> None:
        super().attach(context)
        if self.params.backend == "auto":
            context.notify(f"backend {self._backend}: {self._reason}")
        if self._samples and self._backend == "transformers_continuous":
            context.notify(
                "backend transformers_continuous draws all answers from one source, so that a draw depends on its "
                "neighbours; backend: transformers seeds each by its own text"
            )

    def _resolved_generation(self) -> Any:
        """What the model will really do. Nothing is left unset that generate() would fill in from elsewhere."""
        from transformers import GenerationConfig

        options = {"do_sample": False, **self._given_options()}
        if options.get("temperature") == 0:
            options["do_sample"] = False  # So it is with APIs, and in a request's own options.
        if not options["do_sample"]:
            for key in DRAW_OPTIONS:
                options.pop(key, None)  # Greedy decoding ignores them.
        options.pop("max_length", None)  # It is part of each job's own limit.
        eos = options.get("eos_token_id", self._own_end_tokens())
        options["eos_token_id"] = self._tokenizer.eos_token_id if eos is None else eos
        pad = options.get("pad_token_id", self._tokenizer.pad_token_id)
        options["pad_token_id"] = next(iter(end_tokens(options["eos_token_id"])), 0) if pad is None else pad
        longest, new = self._context_length(), options.get("max_new_tokens")
        if longest is not None and new is not None and new >= longest:
            raise self.load_error(f"generation_config.max_new_tokens={new} leaves no room in its context of {longest}")
        return GenerationConfig(**options)

    def _given_options(self) -> dict[str, Any]:
        """The params' options of generation, with the numbers of all tokens. Raises CallError (`load`)."""
        try:
            return special_tokens.numbered_options(self.params.generation_config, self._tokenizer)
        except ValueError as error:
            raise self.load_error(str(error)) from None

    def _own_end_tokens(self) -> Any:
        """What the checkpoint says that ends an answer; None if it says nothing. Raises CallError (`load`)."""
        own = self._own_generation()
        ends = getattr(own, "eos_token", None) if own.eos_token_id is None else own.eos_token_id
        with self.loading("its end token: "):
            return special_tokens.numbered(ends, self._tokenizer)

    def _own_generation(self) -> Any:
        """The checkpoint's generation config: a file of its own, or what stands in its config."""
        from transformers import GenerationConfig

        if fault := weights.json_fault(Path(self.base) / weights.GENERATION_CONFIG):
            raise self.load_error(f"its {weights.GENERATION_CONFIG} is damaged: {fault}")
        with self.loading():
            try:
                return GenerationConfig.from_pretrained(self.base, **self._shared)
            except OSError:  # There is no such file.
                return GenerationConfig.from_model_config(self._config)

    def _context_length(self) -> int | None:
        """Tokens that prompt and answer may have together: the model's positions, or max_length where that is less."""
        positions = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        given = (self.params.engine_args or {}).get("max_model_len")
        engine = [limit for limit in (given, self.engine_length) if isinstance(limit, int) and limit > 0]
        own = self.params.generation_config.get("max_length")
        limits = [int(limit) for limit in (positions, own, *engine) if limit]
        return min(limits, default=None)

    def _generation_identity(self) -> dict[str, object]:
        params = self.params
        generation = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        generation.pop("transformers_version", None)
        if "max_length" in params.generation_config:  # `_generation` does not have it.
            generation["max_length"] = params.generation_config["max_length"]
        return {
            "generation": json.loads(json.dumps(generation, default=str)),
            **self._prompting.identity(),
            **({"backend": self._backend} if self._backend != "transformers" else {}),
            **({"engine_args": given} if (given := in_identity(params.engine_args or {})) else {}),
        }

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self._generation.max_new_tokens or self._context_length() or 0

    def size(self, request: Request) -> Size:
        prompt_bytes, answer = super().size(request)
        around = self.params.message_formatting_template or ("" if request.system else self.params.system_prompt)
        return prompt_bytes + byte_count(around), answer

    def prepare(self, request: Request) -> LanguageJob:
        if request.continuations:
            return self._prompting.context(request).choices(request.continuations, self._longest_scored())
        return self._prompt(request)

    def _longest_scored(self) -> int | None:
        """Tokens that may stand before the last one of a choice; vLLM takes no prompt without room for an answer."""
        longest = self._context_length()
        return longest - 1 if longest is not None and self._backend == "vllm" else longest

    def _prompt(self, request: Request) -> Prompt:
        tokens = self._prompting.tokens(request)
        options = request.options
        if self._searches_beams and options != NO_OPTIONS:
            raise CallError(ErrorKind.BAD_REQUEST, "with num_beams, a request cannot have options of its own")
        has_own_draw = (options.temperature, options.top_p, options.seed) != (None, None, None)
        if self._backend == "transformers_continuous" and has_own_draw and (self._samples or options.temperature):
            reason = "backend transformers_continuous draws all answers alike: leave temperature, top_p and seed out"
            raise CallError(ErrorKind.BAD_REQUEST, reason)
        longest = self._context_length()
        headroom = longest - len(tokens) if longest is not None else None
        if headroom is not None and headroom < 1:
            raise CallError(
                ErrorKind.TOO_LONG, f"prompt of {len(tokens)} tokens, the model takes {longest} with its answer"
            )
        own_limit = options.max_tokens or self._generation.max_new_tokens
        limits = [limit for limit in (own_limit, headroom) if limit is not None]
        if not limits:
            raise CallError(ErrorKind.BAD_REQUEST, "set generation_config.max_new_tokens: the model names no limit")
        return Prompt(
            [{"input_ids": tokens}],
            max_new_tokens=min(limits),
            headroom=math.inf if headroom is None else headroom,
            stop=options.stop,
            read=self._prompting.read(request, tokens),
            draw=self._draw(tokens, options, request.epoch),
        )

    def _draw(self, tokens: list[int], own: GenerationOptions, epoch: int) -> Draw | None:
        """How this request's tokens are drawn; None for greedy decoding. The seed is of its own text, and epoch."""
        samples = self._samples if own.temperature is None else own.temperature > 0
        if not samples:
            return None
        options = dict(self._draw_options)
        options |= {name: value for name in ("temperature", "top_p") if (value := getattr(own, name)) is not None}
        ordered = tuple((name, options[name]) for name in DRAW_OPTIONS if name in options)
        text = canonical_json([tokens, own.seed, *([epoch] if epoch else [])]).encode()
        return Draw(ordered, int.from_bytes(hashlib.sha256(text).digest()[:8]))


def _fast_cpu_dtype() -> str:
    """bfloat16 where the CPU computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"

"""Local language models, generating from HuggingFace checkpoints."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import TemplateError

from rambla_ray.actors.local import backend_choice, weights
from rambla_ray.actors.local.backends import DRAW_OPTIONS, Backend
from rambla_ray.actors.local.chat import ChatTemplate, begins_twice, today
from rambla_ray.actors.local.continuations import PLAIN_DELIMITER, Context
from rambla_ray.actors.local.job import Draw, Engine, LanguageJob, Prompt, end_tokens
from rambla_ray.actors.local.params import HuggingFaceParams, missing_chat_template
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
        params = self.params
        self._chat = self._load_chat_template() if params.needs_chat_template else None
        self._chats: dict[str, ChatTemplate] = {}  # By the system prompt of a task's stage.
        self._template_doubles_bos = self._formatted_prompt_begins_twice()
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

    def _load_chat_template(self) -> ChatTemplate:
        """The tokenizer's chat template, tried. Raises CallError (`load`)."""
        name = self.tokenizer_place
        if not self._tokenizer.chat_template:
            raise CallError(ErrorKind.LOAD, missing_chat_template(name))
        try:
            return ChatTemplate.of(self._tokenizer, today())
        except ValueError as error:
            file = weights.chat_template_file(Path(name))
            where = f"chat template ({file})" if file else "chat template"
            raise self.load_error(f"its {where} {error}; mend it, or give message_formatting_template") from None

    def _chat_for(self, system: str) -> ChatTemplate:
        """The chat template, tried with a system prompt. Raises CallError (`load`): others fare no better."""
        if self._chat is None:
            raise self.load_error("a prompt without chat template has no place for a system prompt")
        if system not in self._chats:
            try:
                self._chats[system] = self._chat.with_system(system)
            except ValueError as error:
                reason = f"its chat template {error}; put the system prompt of the task into its template"
                raise self.load_error(reason) from None
        return self._chats[system]

    def request_identity(self, request: Request) -> dict[str, object]:
        own = super().request_identity(request)
        return {**own, **self._chat_for(request.system).identity()} if request.system else own

    def _formatted_prompt_begins_twice(self) -> bool:
        """Whether `message_formatting_template` begins with the token that the tokenizer puts first as well."""
        template = self.params.message_formatting_template
        if template is None:
            return False
        return begins_twice(self._tokenizer, self._tokenizer(template.format(message="Yes?"))["input_ids"])

    def load_weights(self) -> None:
        if self._backend == "vllm":  # Its engine loads them.
            self.check_memory()
            return
        from transformers import AutoModelForCausalLM

        self.load_checkpoint(AutoModelForCausalLM)

    def make_engine(self) -> Engine[LanguageJob]:
        context = self.engine_context()
        if self._backend == "vllm":
            return self.make_vllm(self._generation, context, self._longest_planned())
        if self._backend == "transformers_continuous":
            from rambla_ray.actors.local.continuous import Continuous

            return Continuous(self._model, self._generation, context, self.memory_share)
        from rambla_ray.actors.local.static import Static

        return Static(self._model, self._generation, context, self.free_bytes())

    def _longest_planned(self) -> int | None:
        """Tokens of the run's longest prompt and its answer at most; None where that is not known.

        A token has at least one byte; what the template adds is measured.
        """
        longest, new = self.params.longest_prompt, self._generation.max_new_tokens
        if longest is None or not new:
            return None
        template = len(self._tokens_of(Request("x"))) + TEMPLATE_HEADROOM
        return min(filter(None, (self._context_length(), longest + template + new)))

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

        options = {"do_sample": False, **self.params.generation_config}
        if not options["do_sample"]:
            for key in DRAW_OPTIONS:
                options.pop(key, None)  # Greedy decoding ignores them.
        options.pop("max_length", None)  # It is part of each job's own limit.
        eos = options.get("eos_token_id", self._own_generation().eos_token_id)
        options["eos_token_id"] = self._tokenizer.eos_token_id if eos is None else eos
        pad = options.get("pad_token_id", self._tokenizer.pad_token_id)
        options["pad_token_id"] = next(iter(end_tokens(options["eos_token_id"])), 0) if pad is None else pad
        longest, new = self._context_length(), options.get("max_new_tokens")
        if longest is not None and new is not None and new >= longest:
            raise self.load_error(f"generation_config.max_new_tokens={new} leaves no room in its context of {longest}")
        return GenerationConfig(**options)

    def _own_generation(self) -> Any:
        """The checkpoint's generation config: a file of its own, or what stands in its config."""
        from transformers import GenerationConfig

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
        template = params.message_formatting_template or self._tokenizer.chat_template
        generation = {key: value for key, value in self._generation.to_dict().items() if value is not None}
        generation.pop("transformers_version", None)
        if "max_length" in params.generation_config:  # `_generation` does not have it.
            generation["max_length"] = params.generation_config["max_length"]
        return {
            "generation": json.loads(json.dumps(generation, default=str)),
            "template": template if params.is_finetuned else None,
            **(self._chat.identity() if self._chat else {}),
            **({"bos": "once"} if params.is_finetuned and self._template_doubles_bos else {}),
            **({"backend": self._backend} if self._backend != "transformers" else {}),
            **({"engine_args": given} if (given := in_identity(params.engine_args or {})) else {}),
        }

    def max_answer_tokens(self, request: Request) -> int:
        return request.options.max_tokens or self._generation.max_new_tokens or self._context_length() or 0

    def size(self, request: Request) -> Size:
        prompt_bytes, answer = super().size(request)
        return prompt_bytes + byte_count(self.params.message_formatting_template or ""), answer

    def prepare(self, request: Request) -> LanguageJob:
        if request.continuations:
            return self._context_of(request).choices(request.continuations, self._context_length())
        return self._prompt(request)

    def _prompt(self, request: Request) -> Prompt:
        tokens = self._tokens_of(request)
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
            decode=self._decode,
            draw=self._draw(tokens, options),
        )

    def _tokens_of(self, request: Request) -> list[int]:
        params = self.params
        messages = [message._asdict() for message in request.messages]
        if request.system:
            turns = [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.prompt.strip()},
            ]
            return self._chat_for(request.system).tokens(turns)
        alone = messages[0]["content"] if [message["role"] for message in messages] == ["user"] else None
        if request.verbatim or (not params.is_finetuned and not messages):
            text = request.prompt
        elif self._chat:
            messages = messages or [{"role": "user", "content": request.prompt.strip()}]
            try:
                return self._chat.tokens(messages)
            except TemplateError as error:  # Some take no system message, some no two messages of a user in a row.
                raise CallError(ErrorKind.BAD_REQUEST, f"the chat template refuses these messages: {error}") from None
        elif messages and alone is None:
            raise CallError(ErrorKind.BAD_REQUEST, "this model has no chat template: send one user message")
        else:
            text = alone if alone is not None else request.prompt
            if params.message_formatting_template:
                text = params.message_formatting_template.format(message=text)
                return list(self._tokenizer(text)["input_ids"])[int(self._template_doubles_bos) :]
        return list(self._tokenizer(text)["input_ids"])

    def _context_of(self, request: Request) -> Context:
        """The prompt of a request for continuations."""
        user = {"role": "user", "content": request.prompt.strip()}
        if request.system:
            chat, turns = self._chat_for(request.system), [{"role": "system", "content": request.system}, user]
            return Context(chat.render(turns), chat.encode)
        if self._chat:
            return Context(self._chat.render([user]), self._chat.encode)
        template = self.params.message_formatting_template if self.params.is_finetuned else None
        text = template.format(message=request.prompt) if template else request.prompt
        skipped = int(bool(template) and self._template_doubles_bos)
        begins_word = bool(template) and text[-1:].isspace()  # The template has said what stands before an answer.
        delimiter = "" if begins_word else PLAIN_DELIMITER
        return Context(text, lambda whole: list(self._tokenizer(whole)["input_ids"])[skipped:], delimiter)

    def _draw(self, tokens: list[int], own: GenerationOptions) -> Draw | None:
        """How this request's tokens are drawn; None for greedy decoding. The seed is of its own text."""
        samples = self._samples if own.temperature is None else own.temperature > 0
        if not samples:
            return None
        options = dict(self._draw_options)
        options |= {name: value for name in ("temperature", "top_p") if (value := getattr(own, name)) is not None}
        ordered = tuple((name, options[name]) for name in DRAW_OPTIONS if name in options)
        text = canonical_json([tokens, own.seed]).encode()
        return Draw(ordered, int.from_bytes(hashlib.sha256(text).digest()[:8]))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _fast_cpu_dtype() -> str:
    """bfloat16 where the CPU computes in it, else float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"

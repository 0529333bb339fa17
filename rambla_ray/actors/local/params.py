"""The params of local language models."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from rambla_ray.actors.local import adapters, vllm_arguments, weights
from rambla_ray.actors.local.adapters import Origin
from rambla_ray.actors.local.backends import (
    HONOURED_OPTIONS,
    REFUSED_OPTIONS,
    Backend,
    fault_of_option,
    unsupported_option,
)
from rambla_ray.actors.local.chat_params import ChatParams
from rambla_ray.actors.local.checkpoint_params import CheckpointParams, in_home, is_path
from rambla_ray.config.sections import NAME
from rambla_ray.config.workload import Workload
from rambla_ray.display import one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.tasks import prompts
from rambla_ray.tasks.closed import omitted

ANY_MESSAGE = "any message " * 1000  # It is long, so that a placeholder that cuts its text is found.
VLLM_LOADING_PARAMS = ("dtype", "quantization")  # The loading params that vLLM's engine takes.
NOT_CAUSAL = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$"
    r"|(?<!LMHead)(?<!DoubleHeads)Model$"
)
AdapterName = Annotated[str, Field(pattern=NAME, max_length=60)]  # It is a part of its target's name.
AdapterPlace = Annotated[str, Field(min_length=1)]


class HuggingFaceParams(ChatParams, CheckpointParams):
    """RAmBLA's parameters of a local language model, unchanged, and its adapters."""

    takes_adapter = True

    adapter: AdapterPlace | None = omitted(
        "a LoRA adapter on model_name: a folder or hub id. A model_name that holds an adapter alone needs none: its "
        "base is the one that it names"
    )
    adapters: dict[AdapterName, AdapterPlace] | None = omitted(
        "several adapters on model_name, by name, each of which is a target; an actor loads the base once",
        min_length=1,
    )
    generation_config: dict[str, Any] = Field(
        default_factory=dict, description="for transformers.GenerationConfig; greedy unless do_sample is true"
    )
    is_finetuned: bool = Field(False, description="apply the chat template (or message_formatting_template)")
    message_formatting_template: str | None = Field(None, description="used for the chat template; holds {message}")
    backend: Literal["auto", Backend] = Field(
        "auto",
        description="transformers: static batches; transformers_continuous: continuous batching with paged attention; "
        "vllm: its engine (pip install vllm); auto: by device and options, and vllm where it pays for its start",
    )
    engine_args: dict[str, Any] | None = omitted(
        "vLLM's own engine arguments, such as {max_model_len: 8192, enforce_eager: false}, for backend vllm"
    )
    _longest_prompt: int | None = PrivateAttr(None)
    _workload: Workload | None = PrivateAttr(None)

    @property
    def longest_prompt(self) -> int | None:
        """The bytes of the longest prompt of the run; None where that is not known."""
        return self._longest_prompt

    @property
    def workload(self) -> Workload | None:
        """What a run will ask in all; None where that is not known."""
        return self._workload

    def planned(self, longest_prompt: Callable[[], int | None], workload: Callable[[], Workload]) -> Self:
        if self.backend not in ("vllm", "auto"):
            return self
        params = self.model_copy()
        if self.backend == "auto":
            params._workload = workload()
        if "max_model_len" not in (self.engine_args or {}):
            params._longest_prompt = longest_prompt()
        return params

    @field_validator("adapter", "adapters")
    @classmethod
    def _home_folders(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: in_home(place) for name, place in value.items()}
        return in_home(value) if value else value

    @model_validator(mode="after")
    def _one_adapter_or_several(self) -> Self:
        if self.adapter is not None and self.adapters is not None:
            raise ValueError("adapter and adapters exclude each other; drop one of them")
        if self.adapters is not None and self.backend == "transformers_continuous":
            raise ValueError("backend transformers_continuous cannot answer for several adapters; transformers can")
        return self

    @property
    def variants(self) -> Mapping[str, Self]:
        adapters = self.adapters or {}
        return {name: self.model_copy(update={"adapter": it, "adapters": None}) for name, it in adapters.items()}

    @property
    def origin(self) -> Origin:
        return Origin.of(self.model_name, self.adapter)

    @field_validator("generation_config")
    @classmethod
    def _numbers_that_can_be(cls, value: dict[str, Any]) -> dict[str, Any]:
        for option, given in value.items():
            if fault := fault_of_option(option, given):
                raise ValueError(f"{option}: {fault} (got {one_line(repr(given), 60)})")
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
        if fields != {"message"} or template.format(message=ANY_MESSAGE).count(ANY_MESSAGE) != 1:
            raise ValueError(
                "message_formatting_template needs exactly one placeholder, {message}, for the whole text"
            )
        return self

    def for_likelihood(self) -> Self:
        if self.backend == "transformers_continuous":
            raise UserError("runs with backend transformers_continuous, which gives none; backend: transformers does")
        if self.generation_config.get("num_beams", 1) not in (None, 1):
            raise UserError("searches beams, which nothing is generated for; leave generation_config.num_beams out")
        return self.model_copy(update={"backend": "transformers"}) if self.backend == "auto" else self

    @property
    def needs_chat_template(self) -> bool:
        return self.is_finetuned and not self.message_formatting_template

    @property
    def is_greedy(self) -> bool:
        return not self.generation_config.get("do_sample")

    @property
    def takes_system_prompt(self) -> bool:
        return self.needs_chat_template

    def resolved(self) -> Self:
        """Refuse generation options that transformers does not know, or the backend cannot honour."""
        if self.engine_args and self.backend != "vllm":
            raise UserError(f"params.engine_args: backend {self.backend} takes none; backend: vllm does")
        if reason := vllm_arguments.fault(self.engine_args or {}, trusts=self.trust_remote_code):
            raise UserError(f"params.engine_args: {reason}")
        if self.backend == "vllm":
            refused = [key for key in self.loading_params if key not in VLLM_LOADING_PARAMS]
            if refused:
                raise UserError(
                    f"params.loading_params.{refused[0]}: backend vllm does not take it; backend: transformers does"
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
        option = unsupported_option(self.generation_config, self.backend) if self.backend != "auto" else None
        if option:
            able = [name for name in HONOURED_OPTIONS if not unsupported_option(self.generation_config, name)]
            raise UserError(
                f"params.generation_config.{option}: backend {self.backend} cannot honour it; {able[0]} can"
            )
        return self

    def preflight(self, *, same_machine: bool) -> None:
        super().preflight(same_machine=same_machine)
        if not same_machine:
            return
        if self.backend == "vllm" and importlib.util.find_spec("vllm") is None:
            raise UserError(
                "params.backend: vllm is not installed; pip install 'rambla_ray[vllm]' -c constraints-vllm.txt, or "
                "backend: auto"
            )
        adapter = self._checked_adapter()
        folder = Path(self.origin.base)
        if not is_path(str(folder)) or "gguf_file" in self.loading_params:
            return  # The files of a hub, and GGUF, are looked into when they are loaded.
        config = weights.config_of(folder)
        if wrong := [kind for kind in config.get("architectures") or [] if NOT_CAUSAL.search(kind)]:
            raise UserError(f"params.model_name: {folder} is a {wrong[0]}, which is not a causal language model")
        longest, new = weights.context_length(config), self.generation_config.get("max_new_tokens")
        if longest is not None and isinstance(new, int) and new >= longest:
            raise UserError(
                f"params.generation_config.max_new_tokens={new} leaves no room in its context of {longest}"
            )
        beside_adapter = adapter if adapter and adapters.has_tokenizer(adapter) else folder
        tokenizer = Path(self.tokenizer_name or beside_adapter)
        if self.needs_chat_template and os.path.isdir(tokenizer) and not weights.chat_template_file(tokenizer):
            raise UserError(f"params.model_name: {missing_chat_template(str(tokenizer))}")

    def _checked_adapter(self) -> Path | None:
        """The adapter's folder, if there is one here. Raises UserError where it cannot be used."""
        adapter = self.origin.adapter
        if not adapter:
            return None
        key = "params.model_name" if self.adapter is None else "params.adapter"
        if importlib.util.find_spec("peft") is None:
            raise UserError(f"{key}: an adapter needs peft: pip install 'rambla_ray[hf]' -c constraints.txt")
        if not is_path(adapter) and weights.HUB_ID.fullmatch(adapter):
            return None
        if reason := adapters.fault(Path(adapter)):
            raise UserError(f"{key}: {reason}")
        return Path(adapter)

    @property
    def remarks(self) -> tuple[str, ...]:
        if self.message_formatting_template is None or self.is_finetuned:
            return ()
        return ("message_formatting_template formats no prompt of a run, as is_finetuned is false",)

    @property
    def several_nodes_fault(self) -> str:
        if self.backend == "vllm":
            return ""
        return f"with backend {self.backend} runs on one node; set params.backend: vllm, or leave pool.nodes out"

    def choose_backend(self, chip: str, *, pages: bool = True) -> tuple[Backend, str]:
        """The backend that `backend` means where the model runs, and why.

        Args:
            chip: cpu or cuda.
            pages: whether all that the model keeps of a prompt can lie in pages: it has attention in every layer.
        """
        if self.backend != "auto":
            return self.backend, "it was asked for"
        if chip == "cpu":
            return "transformers", "static batches, the fastest on a CPU"
        if not pages:
            return "transformers", "static batches, as not all its layers have attention"
        if option := unsupported_option(self.generation_config, "transformers_continuous"):
            return "transformers", f"static batches, as continuous batching cannot honour {option}"
        if self.generation_config.get("do_sample"):
            return "transformers", "static batches, whose draws do not depend on their neighbours"
        return "transformers_continuous", "continuous batching, which keeps a GPU busy"


def missing_chat_template(tokenizer: str) -> str:
    """The message that a tokenizer has no chat template, though one is needed."""
    return (
        f"the tokenizer of {tokenizer} has no chat template, which is_finetuned asks for; give "
        "message_formatting_template or set is_finetuned: false"
    )

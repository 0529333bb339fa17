"""The params of models that are loaded from HuggingFace checkpoints."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rambla_ray.actors.local import weights
from rambla_ray.actors.local.backends import (
    HONOURED_OPTIONS,
    REFUSED_OPTIONS,
    Backend,
    fault_of_option,
    unsupported_option,
)
from rambla_ray.config.model import ModelParams
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.inputs import expanded
from rambla_ray.tasks import prompts

# Loading params that can run or unpickle code of others.
CODE_RUNNING_PARAMS = ("weights_only", "allow_all_kernels", "use_kernels", "kernel_config")
DTYPES = ("auto", "float16", "bfloat16", "float32")
ANY_MESSAGE = "any message " * 1000  # It is long, so that a placeholder that cuts its text is found.
VLLM_LOADING_PARAMS = ("dtype", "quantization")  # The loading params that vLLM's engine takes.
HUB_ID = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
NOT_CAUSAL = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|MaskedLM)$"
    r"|(?<!LMHead)(?<!DoubleHeads)Model$"
)


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
        return str(expanded(value)) if value and value.startswith("~") else value

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
        keys = [key for key in CODE_RUNNING_PARAMS if key in self.loading_params]
        if "/" in str(self.loading_params.get("attn_implementation", "")):  # It names a repository of kernels.
            keys.append("attn_implementation")
        if keys and not self.trust_remote_code:
            raise ValueError(f"loading_params.{keys[0]} can run code of others; that needs trust_remote_code: true")
        return self

    @property
    def is_path(self) -> bool:
        """Whether model_name is a path, not a hub id."""
        name = self.model_name
        return name.startswith(("/", "./", "../")) or name.count("/") > 1 or os.path.exists(name)

    @property
    def special_file(self) -> str:
        """The first of the files of checkpoint and tokenizer that is none, and what it is; empty without any."""
        folders = [Path(name) for name in (self.model_name, self.tokenizer_name) if name]
        return next(filter(None, (weights.special_file(folder) for folder in folders if folder.is_dir())), "")

    def preflight(self, *, same_machine: bool) -> None:
        if not same_machine:
            return
        if not self.is_path:
            if not HUB_ID.fullmatch(self.model_name):
                name = one_line(self.model_name, SHOWN_CHARACTERS)
                raise UserError(f"params.model_name: '{name}' is neither a folder here nor a hub id (owner/name)")
            return
        folder, gguf = Path(self.model_name), self.loading_params.get("gguf_file")
        if not os.path.isdir(folder):
            raise UserError(f"params.model_name: there is no folder {folder}")
        if reason := self.special_file:
            raise UserError(f"params.model_name: {folder} cannot be loaded: {reason}")
        if gguf and not (folder / gguf).is_file():
            raise UserError(f"params.loading_params.gguf_file: there is no {gguf} in {folder}")
        if (adapter := folder / weights.ADAPTER_CONFIG).is_file():
            raise UserError(f"params.model_name: {folder} cannot be loaded: {weights.adapter_reason(adapter)}")
        if not weights.has_weights(folder):
            raise UserError(
                f"params.model_name: {folder} cannot be loaded: it holds no weights (*.safetensors, *.bin)"
            )
        if fault := weights.config_fault(folder):
            raise UserError(f"params.model_name: {folder} cannot be loaded: its config.json is damaged: {fault}")
        if package := weights.missing_quantiser(weights.config_of(folder), self.loading_params):
            raise UserError(f"its quantised weights need a package that is not here: pip install {package}")


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

    @property
    def needs_chat_template(self) -> bool:
        """Whether prompts go through the chat template that the tokenizer brings."""
        return self.is_finetuned and not self.message_formatting_template

    @property
    def takes_system_prompt(self) -> bool:
        return self.needs_chat_template

    def resolved(self) -> Self:
        """Refuse generation options that transformers does not know, or the backend cannot honour."""
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
            raise UserError("params.backend: vllm is not installed; pip install 'rambla_ray[vllm]', or backend: auto")
        if not self.is_path or "gguf_file" in self.loading_params:
            return  # The files of a hub, and GGUF, are looked into when they are loaded.
        folder = Path(self.model_name)
        config = weights.config_of(folder)
        if wrong := [kind for kind in config.get("architectures") or [] if NOT_CAUSAL.search(kind)]:
            raise UserError(f"params.model_name: {folder} is a {wrong[0]}, which is not a causal language model")
        longest, new = weights.context_length(config), self.generation_config.get("max_new_tokens")
        if longest is not None and isinstance(new, int) and new >= longest:
            raise UserError(
                f"params.generation_config.max_new_tokens={new} leaves no room in its context of {longest}"
            )
        tokenizer = Path(self.tokenizer_name or folder)
        if self.needs_chat_template and tokenizer.is_dir() and not weights.chat_template_file(tokenizer):
            raise UserError(f"params.model_name: {missing_chat_template(str(tokenizer))}")

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

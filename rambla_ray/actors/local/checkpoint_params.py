"""The params of models that are loaded from HuggingFace checkpoints, whatever they do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from rambla_ray.actors.local import weights
from rambla_ray.actors.local.adapters import Origin, Unusable
from rambla_ray.config.model import ModelParams
from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from
from rambla_ray.inputs import expanded

# Loading params that can run or unpickle code of others.
CODE_RUNNING_PARAMS = ("weights_only", "allow_all_kernels", "use_kernels", "kernel_config")
DTYPES = ("auto", "float16", "bfloat16", "float32")


def is_path(name: str) -> bool:
    """Whether what a checkpoint is called is a path, not a hub id."""
    return name.startswith(("/", "./", "../")) or name.count("/") > 1 or os.path.exists(name)


class CheckpointParams(ModelParams):
    """Where a checkpoint is and how it is loaded: RAmBLA's parameters, with `revision` and `trust_remote_code`."""

    is_local = True
    takes_adapter: ClassVar[bool] = False  # Where it does, model_name may be an adapter's folder, too.

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
        return in_home(value) if value else value

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
    def origin(self) -> Origin:
        """Where the weights come from, and the adapter on them. Raises Unusable."""
        return Origin(self.model_name)

    @property
    def special_file(self) -> str:
        """The first of the files of checkpoint and tokenizer that is none, and what it is; empty without any."""
        origin = self.origin
        folders = [Path(name) for name in (origin.base, origin.adapter, self.tokenizer_name) if name]
        return next(filter(None, (weights.special_file(folder) for folder in folders if os.path.isdir(folder))), "")

    def preflight(self, *, same_machine: bool) -> None:
        if not same_machine:
            return
        try:
            base = self.origin.base
        except Unusable as error:
            raise UserError(f"params.model_name: {error}") from None
        if not is_path(base):
            if not weights.HUB_ID.fullmatch(base):
                name = one_line(base, SHOWN_CHARACTERS)
                raise UserError(f"params.model_name: '{name}' is neither a folder here nor a hub id (owner/name)")
            return
        folder, gguf = Path(base), self.loading_params.get("gguf_file")
        if not os.path.isdir(folder):
            raise UserError(f"params.model_name: there is no folder {folder}")
        if reason := self.special_file:
            raise UserError(f"params.model_name: {folder} cannot be loaded: {reason}")
        if gguf and not (folder / gguf).is_file():
            raise UserError(f"params.loading_params.gguf_file: there is no {gguf} in {folder}")
        if not self.takes_adapter and (adapter := folder / weights.ADAPTER_CONFIG).is_file():
            raise UserError(f"params.model_name: {folder} cannot be loaded: {weights.adapter_reason(adapter)}")
        if not weights.has_weights(folder):
            raise UserError(
                f"params.model_name: {folder} cannot be loaded: it holds no weights (*.safetensors, *.bin)"
            )
        if fault := weights.config_fault(folder):
            raise UserError(f"params.model_name: {folder} cannot be loaded: its config.json is damaged: {fault}")
        if package := weights.missing_quantiser(weights.config_of(folder), self.loading_params):
            raise UserError(f"its quantised weights need a package that is not here: pip install {package}")


def in_home(place: str) -> str:
    """A path or hub id, with the home folder in the place of `~`."""
    return str(expanded(place)) if place.startswith("~") else place

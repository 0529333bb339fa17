"""Where a model's base and adapter are, also on the hub: what that takes is downloaded here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rambla_ray.actors.local import adapters, weights
from rambla_ray.actors.local.adapters import Adapter, Origin, Unusable
from rambla_ray.actors.local.checkpoint_params import CheckpointParams, is_path

# The files of a repository that are an adapter's, or a tokenizer's beside it.
ADAPTER_FILES = ["adapter_*", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
# Names of the full weights that a repository on the hub may have beside an adapter.
HUB_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_origin(params: CheckpointParams) -> Origin:
    """What the params name, looked up on the hub where it is not on this machine.

    Raises:
        Unusable: it is an adapter that cannot be used, or may mean two models; a reason in one line.
        Exception: of the hub.
    """
    from transformers.utils import find_adapter_config_file

    origin = params.origin
    if origin.adapter and origin.adapter == params.model_name:
        return origin
    file = find_adapter_config_file(
        origin.base,
        revision=params.revision,
        local_files_only=params.local_files_only,
        subfolder=params.loading_params.get("subfolder") or "",
    )
    if not file or (origin.adapter and os.path.isdir(origin.base)):  # `Origin.of` has looked into a folder.
        return origin
    if not params.takes_adapter:
        raise Unusable(f"{params.model_name} cannot be loaded: {weights.adapter_reason(Path(file))}")
    if origin.adapter:
        raise Unusable(adapters.not_a_base(origin.base))
    if any(_is_on_hub(params, name) for name in HUB_WEIGHTS):
        raise Unusable(adapters.two_models(params.model_name))
    return Origin.named_by(Path(file).parent, params.model_name)


def fetch_adapter(origin: Origin, params: CheckpointParams) -> Adapter | None:
    """The adapter, on this machine; None without one.

    Raises:
        Unusable: it cannot be used; a reason in one line.
        Exception: of the hub.
    """
    name = origin.adapter
    if not name:
        return None
    if is_path(name) or not weights.HUB_ID.fullmatch(name):
        return Adapter.of(Path(name))
    from huggingface_hub import snapshot_download

    revision = params.revision if name == params.model_name else None
    only_here = params.local_files_only
    folder = snapshot_download(name, revision=revision, allow_patterns=ADAPTER_FILES, local_files_only=only_here)
    return Adapter.of(Path(folder), f"{name}@{Path(folder).name}")  # Its name is the commit.


def _is_on_hub(params: CheckpointParams, name: str) -> Any:
    from transformers.utils import has_file

    return has_file(params.model_name, name, revision=params.revision, local_files_only=params.local_files_only)

"""The models there are: `name` in a model YAML to the class that runs it.

Values are import paths, so that listing models imports neither torch nor openai.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from rambla_ray.errors import UserError, choose_from

MODEL_MAP: Mapping[str, str] = {
    "openai_chat": "rambla_ray.actors.openai:OpenAIChat",
    "openai_35_chat": "rambla_ray.actors.openai:OpenAIChat",
    "openai_completion": "rambla_ray.actors.openai:OpenAICompletion",
    "openai_embeddings": "rambla_ray.actors.openai:OpenAIEmbeddings",
    "huggingface_llm": "rambla_ray.actors.huggingface:HuggingFaceLLM",
    "huggingface_nli": "rambla_ray.actors.judges:HuggingFaceNLI",
    "huggingface_embeddings": "rambla_ray.actors.judges:HuggingFaceEmbeddings",
    "text_overlap": "rambla_ray.actors.overlap:OverlapModel",
    "mock": "rambla_ray.actors.mock:MockModel",
}


def model_class(name: str) -> type[Any]:
    """The class behind a `name`, a subclass of `rambla_ray.actors.base.Model`. Raises UserError when there is none."""
    if name not in MODEL_MAP:
        raise UserError(f"name {name!r} is not a kind of model; {choose_from(name, MODEL_MAP)}")
    module, _, attribute = MODEL_MAP[name].partition(":")
    loaded: type[Any] = getattr(importlib.import_module(module), attribute)
    return loaded

"""The models there are: `name` in a model YAML to the class that runs it.

A name is a key of MODEL_MAP, an entry point of the group `rambla_ray.models` in an installed package, or the class
itself as `package.module:Class`; the first that fits is taken.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from rambla_ray.display import SHOWN_CHARACTERS, one_line
from rambla_ray.errors import UserError, choose_from

MODEL_MAP: Mapping[str, str] = {
    "openai_chat": "rambla_ray.actors.openai:OpenAIChat",
    "openai_35_chat": "rambla_ray.actors.openai:OpenAIChat",
    "openai_completion": "rambla_ray.actors.openai:OpenAICompletion",
    "openai_embeddings": "rambla_ray.actors.openai:OpenAIEmbeddings",
    "openai_responses": "rambla_ray.actors.openai_responses:OpenAIResponses",
    "anthropic_messages": "rambla_ray.actors.anthropic:AnthropicMessages",
    "huggingface_llm": "rambla_ray.actors.huggingface:HuggingFaceLLM",
    "huggingface_nli": "rambla_ray.actors.judges:HuggingFaceNLI",
    "huggingface_embeddings": "rambla_ray.actors.judges:HuggingFaceEmbeddings",
    "text_overlap": "rambla_ray.actors.overlap:OverlapModel",
    "mock": "rambla_ray.actors.mock:MockModel",
}  # Values are import paths, so that listing models imports neither torch nor openai.

GROUP = "rambla_ray.models"  # Entry points of this group in installed packages name more models.
NEEDED = ("Params", "generate")  # A class on `rambla_ray.actors.base.Model` with params of its own has both.


def model_class(name: str) -> type[Any]:
    """The class behind a `name`, a subclass of `rambla_ray.actors.base.Model`.

    Raises:
        UserError: there is none, its module cannot be imported, or it is no such class.
    """
    if name in MODEL_MAP:
        return _load(MODEL_MAP[name], f"name {name!r}")
    plugins = {plugin.name: plugin for plugin in entry_points(group=GROUP)}
    if name in plugins:
        return _load(plugins[name].value, f"name {name!r} ({_distribution(plugins[name])})")
    if ":" in name:
        return _load(name, f"name '{one_line(name, SHOWN_CHARACTERS)}'")
    raise UserError(
        f"name '{one_line(name, SHOWN_CHARACTERS)}' is not a kind of model; "
        f"{choose_from(name, [*MODEL_MAP, *plugins])}, or a class as package.module:Class"
    )


def _distribution(plugin: EntryPoint) -> str:
    """Who declares an entry point, and as what, for a message."""
    package = plugin.dist.name if plugin.dist else "a package"
    return f"{package} declares {plugin.value}"


def _load(path: str, subject: str) -> type[Any]:
    """The model class at `package.module:Class`. Errors begin with the `subject`."""
    name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*name.split("."), attribute]):
        raise UserError(f"{subject} is not of the form package.module:Class")
    module = _import(name, subject)
    try:
        loaded = getattr(module, attribute)
    except AttributeError:
        classes = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == name]
        raise UserError(f"{subject}: module {name} has no {attribute}; {choose_from(attribute, classes)}") from None
    if not inspect.isclass(loaded):
        raise UserError(f"{subject}: {attribute} in module {name} is not a class")
    lacking = [part for part in NEEDED if not hasattr(loaded, part)]
    lacking += sorted(getattr(loaded, "__abstractmethods__", ()))
    if lacking:
        base = "rambla_ray.actors.base.Model, or one of its subclasses"
        raise UserError(f"{subject}: class {attribute} lacks {', '.join(lacking)}; a model extends {base}")
    return loaded


def _import(name: str, subject: str) -> Any:
    """The module of that name. What goes wrong in its code, or is missing, is one line."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{subject}: there is no module {error.name}; install it on every node, or put its folder on "
                "PYTHONPATH here and into the working directory that a job is submitted with"
            ) from None
        remedy = "; pip install 'rambla_ray[hf]' has what local models need" if name.startswith("rambla_ray.") else ""
        raise UserError(f"{subject}: module {name} needs {error.name}, which is not installed{remedy}") from None
    except Exception as error:  # noqa: BLE001 - a plugin's own code: whatever it raises is the user's to see in a line
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{subject}: module {name} cannot be imported: {reason}") from None

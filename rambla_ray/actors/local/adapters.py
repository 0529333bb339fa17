"""LoRA adapters as files: where one lies, which base it is for, and what it is known by. Nothing is loaded here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from rambla_ray.actors.local import weights
from rambla_ray.inputs import decoded, parse_json, read_whole
from rambla_ray.schema import canonical_json

CONFIG = weights.ADAPTER_CONFIG
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # In the order in which peft looks for them.
TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")  # One of these makes a tokenizer.
# What an adapter's config says of where its base was when it was trained. The base has a checksum of its own.
OF_THE_BASE = ("base_model_name_or_path", "revision")


class Unusable(ValueError):
    """A base or an adapter cannot be used; a reason in one line, which names it."""


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Args:
        base: folder or hub id of the full weights.
        adapter: folder or hub id of the adapter on them; empty without one.
        base_revision: of a hub id, where the adapter's config names one.
    """

    base: str
    adapter: str = ""
    base_revision: str | None = None

    @classmethod
    def of(cls, model_name: str, adapter: str | None) -> Self:
        """What two params name: a folder that holds an adapter alone names its base itself.

        Raises:
            Unusable: the base cannot be found, or the folder may mean two models; a reason in one line.
        """
        folder = Path(model_name)
        holds_adapter = os.path.exists(folder / CONFIG)
        if adapter is None:
            return cls.named_by(folder, model_name) if holds_adapter else cls(model_name)
        if holds_adapter and not (os.path.isdir(adapter) and Path(adapter).samefile(folder)):
            raise Unusable(not_a_base(model_name))
        return cls(model_name, adapter)

    @classmethod
    def named_by(cls, folder: Path, model_name: str) -> Self:
        """The base that an adapter's config names, and the adapter.

        Args:
            folder: with the adapter.
            model_name: what it is called in the params.

        Raises:
            Unusable: as `of`.
        """
        if weights.has_full_weights(folder):
            raise Unusable(two_models(model_name))
        config = read_config(folder)
        name = config.get("base_model_name_or_path")
        if not (isinstance(name, str) and name):
            raise Unusable(f"{folder} holds an adapter that names no base; {way_out(model_name)}")
        revision = config.get("revision")
        return cls(_found(name, folder, model_name), model_name, revision if isinstance(revision, str) else None)


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files are on this machine.

    Args:
        folder: where they lie.
        identity: what it is known by: a checksum, or hub id and commit.
    """

    folder: Path
    identity: str

    @classmethod
    def of(cls, folder: Path, identity: str = "") -> Self:
        """The adapter in a folder, known by its contents or as is given.

        Raises:
            Unusable: it cannot be.
        """
        if reason := fault(folder):
            raise Unusable(reason)
        return cls(folder, identity or fingerprint(folder))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its adapter_config.json."""
        return read_config(self.folder)

    @property
    def rank(self) -> int:
        """The highest rank of its matrices."""
        return max(int(self.config.get("r") or 0), *map(int, (self.config.get("rank_pattern") or {}).values()), 1)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer lies beside it, which fine-tuning has saved with its chat template and its tokens."""
        return has_tokenizer(self.folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json in a folder. Raises Unusable: a reason in one line."""
    try:
        value = parse_json(decoded(read_whole(folder / CONFIG, weights.LARGEST_JSON)))
    except (OSError, ValueError) as error:
        raise Unusable(f"{folder} cannot be loaded: its {CONFIG} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise Unusable(f"{folder} cannot be loaded: its {CONFIG} is damaged: it is not an object with keys")
    return value


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def fault(folder: Path) -> str:
    """Why the adapter in a folder cannot be put on a causal language model, in one line; empty where it can."""
    if not os.path.isdir(folder):  # Unlike `Path.is_dir`, it bears names that are too long.
        return f"there is no folder {folder}"
    if reason := weights.special_file(folder):
        return f"{folder} cannot be loaded: {reason}"
    if not os.path.exists(folder / CONFIG):
        return f"{folder} holds no adapter ({CONFIG})"
    try:
        config = read_config(folder)
    except Unusable as error:
        return str(error)
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind != "LORA":
        return (
            f"{folder} holds an adapter of kind {kind}; only LORA can be used here, or a checkpoint it is merged into"
        )
    if task not in (None, "CAUSAL_LM"):
        return f"{folder} holds an adapter for {task}, not for a causal language model (CAUSAL_LM)"
    if not any((folder / name).is_file() for name in WEIGHTS):
        return f"{folder} holds an adapter without weights: there is no {WEIGHTS[0]}"
    return ""


def fingerprint(folder: Path) -> str:
    """sha256 over an adapter's config and weights, whatever folder it and its base lie in, as 64 hex digits."""
    config = {key: value for key, value in read_config(folder).items() if key not in OF_THE_BASE}
    whole = hashlib.sha256(canonical_json(config).encode())
    name = next(name for name in WEIGHTS if (folder / name).is_file())
    with (folder / name).open("rb") as stream:
        whole.update(f" {name} {hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return whole.hexdigest()


def _found(base: str, folder: Path, model_name: str) -> str:
    """The base that an adapter names, where it is: a folder, seen from the root, the adapter or here, or a hub id."""
    places = [folder / base, Path(base)]  # The first is the second where that begins at the root.
    if place := next((place for place in places if os.path.isdir(place) and not place.samefile(folder)), None):
        if os.path.exists(place / CONFIG):
            raise Unusable(f"{model_name} is an adapter on {place}, which is an adapter itself; merge that one first")
        return str(place)
    if weights.HUB_ID.fullmatch(base) and not base.startswith("."):
        return base
    raise Unusable(f"{folder} holds an adapter of {base}, and there is no such folder; {way_out(model_name)}")


def not_a_base(name: str) -> str:
    """That a base holds another adapter than the one that is given for it."""
    return (
        f"{name} holds an adapter of its own ({CONFIG}); params.model_name is to be the base of params.adapter, full "
        "weights alone"
    )


def two_models(name: str) -> str:
    """That full weights and an adapter lie in one place, of which only the user knows whether they belong together."""
    return (
        f"{name} cannot be loaded: it holds full weights and an adapter ({CONFIG}); where the adapter is for these "
        f"weights, give params.adapter: {name}, too, else move it to a folder of its own"
    )


def way_out(model_name: str) -> str:
    """How to say what the base of an adapter is."""
    return f"give params.model_name: <its base> and params.adapter: {model_name}"

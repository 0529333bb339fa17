"""A checkpoint in GGUF, unpacked once: what transformers makes of its file is kept on disk for the next start.

Reading the file takes transformers long: of SmolLM2-135M, with 98 MB, 17 s on one core, and 0.5 s of what it was
unpacked to. What is kept has been read back, and found to be the same to the last bit.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rambla_ray.actors.local import memory
from rambla_ray.actors.local.disk_cache import DiskCache, NotKept, user_cache
from rambla_ray.actors.local.weights import file_digest
from rambla_ray.display import folded
from rambla_ray.schema import canonical_json

T = TypeVar("T")
LAYOUT = 1  # Of what is kept: another number finds nothing that was kept before.
# Libraries whose versions may change what comes out. With `kernels`, weights stay packed.
LIBRARIES = ("gguf", "kernels", "tokenizers", "torch", "transformers")
# Loading params that leave the weights as they are. With others, nothing is kept of them.
HARMLESS_PARAMS = frozenset({"gguf_file", "dtype", "attn_implementation"})
LONGEST_REASON = 200
FROM = "pretrained_model_name_or_path"  # The argument of `from_pretrained` that says from where.


@dataclass(frozen=True)
class Part(Generic[T]):
    """Something that transformers makes of a checkpoint, and how it is kept.

    Args:
        name: what it is, with what it depends on beside the file.
        load: loads it, by the arguments of `from_pretrained` that say from where.
        save: writes it into a folder.
        check: says what differs between it and what was saved in a folder; empty if nothing does.
        expected_bytes: about what it takes on disk.
    """

    name: Mapping[str, str]
    load: Callable[[Mapping[str, Any]], T]
    save: Callable[[T, Path], Any]
    check: Callable[[T, Path], str]
    expected_bytes: Callable[[T], int] = lambda made: 0


class UnpackedGguf:
    """What is kept of one GGUF file, and makes it where there is nothing yet.

    Args:
        model_name: a folder or hub id, as transformers takes it.
        gguf_file: the name of the file there.
        path: the file on this machine.
        cache: where to keep it; None: nowhere.
        notify: takes a line for the user.
    """

    def __init__(
        self, model_name: str, gguf_file: str, path: Path, cache: DiskCache | None, notify: Callable[[str], None]
    ) -> None:
        # transformers looks for a relative file in the working folder first.
        is_folder = os.path.isdir(model_name)
        self._packed = {
            FROM: model_name,
            "gguf_file": os.path.abspath(path) if is_folder else gguf_file,
        }
        self._path = path
        self._cache = cache
        self._notify = notify
        self._facts = _facts(path)
        self.sha256 = file_digest(path)

    def obtain(self, part: Part[T]) -> T:
        """A part of the checkpoint. Raises whatever transformers does where it cannot make it of the file."""
        if self._cache is None:
            return part.load(self._packed)
        entry = self._entry(part)
        if folder := self._cache.find(entry):
            try:
                return part.load({FROM: str(folder)})
            except Exception:  # noqa: BLE001 - whatever is wrong with what was kept, the file is still there
                self._cache.drop(entry)
        made = part.load(self._packed)
        try:
            self._keep(self._cache, entry, part, made)
        except NotKept as reason:
            self._notify(f"what {self._path.name} was unpacked to is not kept for the next start: {reason}")
        return made

    def _entry(self, part: Part[Any]) -> str:
        known = {"layout": LAYOUT, "file": self.sha256, **part.name, **_versions()}
        digest = hashlib.sha256(canonical_json(known).encode()).hexdigest()
        return f"{part.name['part']}-{digest[:40]}"

    def _keep(self, cache: DiskCache, entry: str, part: Part[T], made: T) -> None:
        def write(folder: Path) -> None:
            part.save(made, folder)
            if difference := part.check(made, folder):
                raise NotKept(f"its {part.name['part']} would be read back with another {difference}")
            if _facts(self._path) != self._facts:
                raise NotKept("the file has changed since")

        try:
            cache.keep(entry, write, part.expected_bytes(made))
        except NotKept:
            raise
        except Exception as error:  # noqa: BLE001 - what transformers cannot save, it makes anew at the next start
            raise NotKept(f"{type(error).__name__}: {folded(str(error), LONGEST_REASON)}") from None


def open_gguf(
    model_name: str, gguf_file: str, shared: Mapping[str, Any], notify: Callable[[str], None]
) -> UnpackedGguf:
    """The GGUF file of a folder, or of a hub id, which is downloaded where that has not been done.

    Args:
        model_name: the folder or hub id.
        gguf_file: the file's name there.
        shared: arguments of `from_pretrained`: revision, local_files_only.
        notify: takes a line for the user.
    """
    from transformers.utils import cached_file

    where = {key: shared[key] for key in ("revision", "local_files_only")}
    path = Path(cached_file(model_name, gguf_file, **where))
    return UnpackedGguf(model_name, gguf_file, path, user_cache("gguf"), notify)


def keeps_weights(loading_params: Mapping[str, Any]) -> bool:
    """Whether weights that are loaded so are those of the file, and nothing else."""
    return loading_params.keys() <= HARMLESS_PARAMS


def tokenizer_part(load: Callable[[Mapping[str, Any]], Any]) -> Part[Any]:
    """The tokenizer."""

    def check(made: Any, folder: Path) -> str:
        return _difference(_tokenizer_facts(made), _tokenizer_facts(load({FROM: str(folder)})))

    return Part({"part": "tokenizer"}, load, lambda made, folder: made.save_pretrained(folder), check)


def config_part(load: Callable[[Mapping[str, Any]], Any]) -> Part[Any]:
    """The config."""

    def check(made: Any, folder: Path) -> str:
        return _difference(_config_facts(made), _config_facts(load({FROM: str(folder)})))

    return Part({"part": "config"}, load, lambda made, folder: made.save_pretrained(folder), check)


def weights_part(kind: Any, dtype: str, chip: str, load: Callable[[Mapping[str, Any]], Any]) -> Part[Any]:
    """The weights, in the type in which they are computed with; `load` returns a model and a report.

    Args:
        kind: one of transformers' Auto classes.
        dtype: torch's name of the type.
        chip: on which they are unpacked: cpu or cuda.
        load: loads them.
    """

    def check(made: Any, folder: Path) -> str:
        if memory.free_bytes("cpu", 1.0) < _bytes_of(made):
            return "copy of it, for which there is no memory"
        other, _ = kind.from_pretrained(folder, dtype=dtype, device_map={"": "cpu"}, output_loading_info=True)
        return _difference(_model_facts(made[0]), _model_facts(other)) or _different_tensor(made[0], other)

    name = {"part": "weights", "class": kind.__name__, "dtype": dtype, "chip": chip}
    return Part(name, load, _save_weights, check, _bytes_of)


def _save_weights(made: Any, folder: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    model = made[0]
    elsewhere = (name for name, weight in model.named_parameters() if weight.is_meta or not weight.is_floating_point())
    if name := next(elsewhere, ""):
        raise NotKept(f"{name} stays packed, or lies on the disk")
    tied = list(model._tied_weights_keys or {})
    save_torch_state_dict(model.state_dict(), folder, shared_tensors_to_discard=tied)
    _plain_config(model.config).save_pretrained(folder)


def _bytes_of(made: Any) -> int:
    return int(made[0].get_memory_footprint())


def _plain_config(config: Any) -> Any:
    """A config that says nothing of GGUF, whose blocks have been unpacked."""
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _tokenizer_facts(tokenizer: Any) -> dict[str, Any]:
    """What makes texts into tokens, and tokens into texts."""
    names = ("padding_side", "truncation_side", "model_max_length", "model_input_names", "split_special_tokens")
    fast = getattr(tokenizer, "backend_tokenizer", None)
    return {
        "class": type(tokenizer).__name__,
        "vocabulary": fast.to_str() if fast else tokenizer.get_vocab(),
        "special tokens": (tokenizer.special_tokens_map, sorted(tokenizer.all_special_ids)),
        "chat template": tokenizer.chat_template,
        **{name: getattr(tokenizer, name, None) for name in (*names, "clean_up_tokenization_spaces")},
    }


def _config_facts(config: Any) -> dict[str, Any]:
    return {"class": type(config).__name__, **_plain_config(config).to_dict(), "_name_or_path": ""}


def _model_facts(model: Any) -> dict[str, Any]:
    return {"model class": type(model).__name__, **_config_facts(model.config)}


def _difference(made: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first key under which two mappings differ; empty without any."""
    return next((key for key in {**made, **other} if made.get(key) != other.get(key)), "")


def _different_tensor(model: Any, other: Any) -> str:
    """The first weight or buffer that two models do not have in common to the last bit; empty without any."""
    import torch

    ours, theirs = _tensors(model), _tensors(other)
    missing = ours.keys() ^ theirs.keys()
    unlike = (
        name
        for name, tensor in ours.items()
        if name in missing or tensor.dtype != theirs[name].dtype or not torch.equal(tensor.cpu(), theirs[name])
    )
    return next(unlike, "") or min(missing, default="")


def _tensors(model: Any) -> dict[str, Any]:
    return {**dict(model.named_buffers()), **model.state_dict()}


def _facts(path: Path) -> tuple[int, int, int]:
    """What is another once a file has been written anew."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _versions() -> dict[str, str]:
    """The versions of the libraries that unpack, as far as they are there."""
    found = {}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[library] = importlib.metadata.version(library)
    return found

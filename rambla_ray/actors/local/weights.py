"""The files of a checkpoint, read without loading it: what it is, how large, and what it lacks.

Headers of safetensors are parsed here, because safetensors' `safe_open` refuses a file that ends early before it says
how large the tensors are, and gives no sizes in bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rambla_ray.inputs import decoded, first_special, parse_json, read_whole

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}  # The names of safetensors and of torch.
# Names of what is not loaded to answer: the state of training, earlier checkpoints of it, and what tools hide.
LEFT_BY_TRAINING = re.compile(
    r"\..+|checkpoint-\d+|global_step\d+|(optimizer|scheduler|scaler|sampler)(_\d+)?\.(pt|bin)|trainer_state\.json"
)
LARGEST_JSON = 2**30  # Bytes of a file that is read here as JSON.
# Names of a model's own weights, which those of an adapter and the state of its training are not.
FULL_WEIGHTS = re.compile(r"(model|pytorch_model)([.-].*)?\.(safetensors|bin)|.+\.gguf")
HUB_ID = re.compile(r"[A-Za-z0-9_.-]{1,96}(/[A-Za-z0-9_.-]{1,96})?")
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

# By `quant_method`, the module that quantised weights need beside transformers, and what pip calls its package.
QUANTISERS = {
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "awq": ("gptqmodel", "gptqmodel"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "torchao": ("torchao", "torchao"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "aqlm": ("aqlm", "aqlm"),
    "eetq": ("eetq", "eetq"),
}


def fingerprint(
    folder: Path,
    gguf_file: str | None = None,
    subfolder: str = "",
    known_digests: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """sha256 over the names and contents of a checkpoint's files, whatever folder it lies in, as 64 hex digits.

    Args:
        folder: the checkpoint.
        gguf_file: the only weights that are loaded, if they are in GGUF.
        subfolder: of the weights, when they do not lie in the folder itself.
        known_digests: sha256 of files, by name, that have been read as a whole already.
    """
    files = list(_files(folder, kept=Path(subfolder).parts[:1]))
    weights = [folder / gguf_file] if gguf_file else [path for path in files if path.suffix in WEIGHTS]
    texts = [path for path in files if path.suffix in TEXTS]
    return _checksum(folder, {*weights, *texts}, known_digests)


def fingerprint_of_texts(folder: Path, left_out: Collection[str] = ()) -> str:
    """The same over the files in a folder that are no weights, such as a tokenizer's, but for some names."""
    return _checksum(folder, {path for path in _files(folder) if path.suffix in TEXTS and path.name not in left_out})


def _checksum(folder: Path, files: Collection[Path], known: Mapping[str, str] = MappingProxyType({})) -> str:
    whole = hashlib.sha256()
    for path in sorted(files):
        name = str(path.relative_to(folder))
        whole.update(f"{name} {known.get(name) or file_digest(path)}\n".encode())
    return whole.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tokenizer_identity(name: str | None) -> str:
    """What a tokenizer of its own is: its files, or its hub id; empty when it is the model's."""
    folder = Path(name) if name else None
    return fingerprint(folder) if folder and os.path.isdir(folder) else name or ""


def _files(folder: Path, kept: Collection[str] = ()) -> Iterator[Path]:
    """The files in a checkpoint's folder and in those within, but not what training and tools leave there.

    Args:
        folder: the checkpoint. Links in it are followed, as loading follows them.
        kept: names of folders that belong to the checkpoint whatever they are called.
    """
    entered = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        entered.add(os.path.realpath(place))
        folders[:] = [
            name
            for name in folders
            if (name in kept or not LEFT_BY_TRAINING.fullmatch(name))
            and os.path.realpath(Path(place, name)) not in entered  # A link may lead back.
        ]
        yield from (Path(place, name) for name in names if not LEFT_BY_TRAINING.fullmatch(name))


def special_file(folder: Path) -> str:
    """What is no regular file among those of a checkpoint; empty without any."""
    return first_special(_files(folder))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights that transformers would look for."""
    return any(path.suffix in WEIGHTS and not LEFT_BY_TRAINING.fullmatch(path.name) for path in folder.iterdir())


def has_full_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights by names that transformers loads, beside those of an adapter."""
    return any(FULL_WEIGHTS.fullmatch(path.name) for path in folder.iterdir())


def adapter_reason(config_file: Path) -> str:
    """Why a checkpoint that holds an adapter, of this config file, cannot be loaded: `it` is the checkpoint.

    transformers puts an adapter on its base where peft is installed. Where it is not, and weights lie beside the
    adapter, those are loaded alone: the same folder would be two models.
    """
    base = _json(config_file).get("base_model_name_or_path")
    of_base = f" of {base}" if base else ""
    return (
        f"it holds an adapter{of_base} ({config_file.name}), which a huggingface_llm alone can have: merge it into "
        "its base, or move it to a folder of its own"
    )


def own_dtype(folder: Path) -> str | None:
    """The type, by torch's name, of the first weights in safetensors that are floats; None without any."""
    return next((FLOATS[tensor["dtype"]] for tensor in _tensors(folder) if tensor["dtype"] in FLOATS), None)


def loaded_bytes(folder: Path, dtype: str) -> int | None:
    """The bytes that weights in safetensors take in memory as `dtype`; None without any, or if they are broken."""
    total = 0
    try:
        for tensor in _tensors(folder):
            begin, end = tensor["data_offsets"]
            is_float = tensor["dtype"] in FLOATS and dtype in ITEM_BYTES
            total += math.prod(tensor["shape"]) * ITEM_BYTES[dtype] if is_float else end - begin
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return total or None


def _loaded_safetensors(folder: Path) -> list[Path]:
    """The safetensors that transformers loads, where a folder holds the same weights in several forms."""
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    shards = _json(folder / "model.safetensors.index.json").get("weight_map")
    if isinstance(shards, dict):
        return sorted({folder / str(name) for name in shards.values()})
    return sorted(folder.glob("*.safetensors"))


def _tensors(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Type, shape and place of each tensor, from the headers of the safetensors that are loaded."""
    for path in _loaded_safetensors(folder):
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = parse_json(stream.read(min(size, path.stat().st_size)))
        yield from (tensor for name, tensor in header.items() if name != "__metadata__")


def config_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; empty without one, or if it is broken, which is an error of loading it."""
    return _json(folder / "config.json")


def config_fault(folder: Path) -> str:
    """What is wrong with a checkpoint's config.json, where it has one that nobody can read; else empty."""
    return json_fault(folder / "config.json")


def json_fault(path: Path) -> str:
    """What is wrong with a file that should hold an object in JSON, where it is there and does not; else empty."""
    try:
        value = parse_json(decoded(read_whole(path, LARGEST_JSON))) if path.is_file() else {}
    except (OSError, ValueError) as error:
        return str(error)
    return "" if isinstance(value, dict) else "it is not an object with keys and values"


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model of this config.json takes, as far as it says."""
    length = {**config, **(config.get("text_config") or {})}.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def chat_template_file(folder: Path) -> str:
    """The file, or folder, from which a folder's tokenizer takes its chat template; empty where there is none."""
    # chat_template.json is not among them: it belongs to a processor of images, and no tokenizer reads it.
    for name in ("chat_template.jinja", "chat_templates"):
        if (folder / name).exists():
            return name
    return "tokenizer_config.json" if _json(folder / "tokenizer_config.json").get("chat_template") else ""


def missing_quantiser(config: Mapping[str, Any], loading_params: Mapping[str, Any]) -> str | None:
    """What pip calls the package that quantised weights, or quantising them, needs; None if it is installed."""
    quantisation = loading_params.get("quantization_config") or config.get("quantization_config") or {}
    if not isinstance(quantisation, Mapping):
        return None
    method = quantisation.get("quant_method")
    if any(quantisation.get(key) or loading_params.get(key) for key in ("load_in_4bit", "load_in_8bit")):
        method = "bitsandbytes"
    module, package = QUANTISERS.get(str(method), ("", ""))
    return package if module and not importlib.util.find_spec(module.partition(".")[0]) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(decoded(read_whole(path, LARGEST_JSON)))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}

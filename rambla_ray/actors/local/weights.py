"""The files of a checkpoint, read without loading it: what it is, how large, and what it lacks.

Headers of safetensors are parsed here, because safetensors' `safe_open` refuses a file that ends early before it says
how large the tensors are, and gives no sizes in bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rambla_ray.storage import decoded

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")
TEXTS = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")
FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
}  # The names of safetensors and of torch.
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


def fingerprint(folder: Path, gguf_file: str | None = None) -> str:
    """sha256 over the names and contents of a checkpoint's files, whatever folder it lies in, as 64 hex digits."""
    weights = [folder / gguf_file] if gguf_file else [p for p in folder.rglob("*") if p.suffix in WEIGHTS]
    texts = [path for path in folder.rglob("*") if path.suffix in TEXTS]
    whole = hashlib.sha256()
    for path in sorted({*weights, *texts}):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{path.relative_to(folder)} {digest}\n".encode())
    return whole.hexdigest()


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights that transformers would look for."""
    return any(path.suffix in WEIGHTS for path in folder.iterdir())


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


def _tensors(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Type, shape and place of each tensor, from the headers of a folder's safetensors."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, path.stat().st_size)))
        yield from (tensor for name, tensor in header.items() if name != "__metadata__")


def config_of(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; empty without one, or if it is broken, which is an error of loading it."""
    return _json(folder / "config.json")


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model of this config.json takes, as far as it says."""
    length = {**config, **(config.get("text_config") or {})}.get("max_position_embeddings")
    return length if isinstance(length, int) else None


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in a folder brings one."""
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    return bool(_json(folder / "tokenizer_config.json").get("chat_template")) or (folder / "chat_templates").is_dir()


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
        value = json.loads(decoded(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

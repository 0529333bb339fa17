"""A checkpoint on its way into memory: its config and tokenizer, its weights and adapter, and what it is known by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from rambla_ray.actors.local import memory, weights
from rambla_ray.actors.local.adapters import Adapter, Origin, Unusable, way_out
from rambla_ray.actors.local.checkpoint_params import CheckpointParams
from rambla_ray.actors.local.family import Family
from rambla_ray.actors.local.origins import fetch_adapter, find_origin
from rambla_ray.actors.local.source import Source
from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.actors.model import Model
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.display import folded
from rambla_ray.errors import CallError, ErrorKind

# Loading params with which the user, and not device_map: auto, places the weights.
PLACING_PARAMS = ("max_memory", "offload_folder", "quantization_config", "load_in_4bit", "load_in_8bit")


class CheckpointModel(Model):
    """A model that is loaded from the files of a checkpoint into this process.

    Args:
        params: the model's.
        pool: as for `Model`.
        rate: as for `Model`.
        family: what this model shares with others of this actor; None for one that is alone.

    Attributes:
        chip: cpu or cuda.
        memory_share: the part of a GPU's memory that is this actor's.
        usage: where what is done is counted.
        base: folder or hub id of the full weights. It is set by `read_checkpoint`, as the next is.
        adapter: the adapter on them, whose files are on this machine; None without one.
    """

    params: CheckpointParams
    base: str
    adapter: Adapter | None
    # Prefixes of weights that a checkpoint may lack, since nothing reads them.
    unused_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: CheckpointParams, pool: Pool, rate: Rate | None, family: Family | None = None) -> None:
        super().__init__(params, pool, rate)
        import torch

        self.params = params
        self.family = family
        on_gpu = bool(pool.num_gpus) and torch.cuda.is_available()
        self.chip = "cpu" if (params.device or ("cuda" if on_gpu else "cpu")) == "cpu" else "cuda"
        self.memory_share = min(1.0, pool.num_gpus or 1.0)
        if self.chip == "cpu":
            torch.set_num_threads(max(1, int(pool.num_cpus or 1)))
        elif self.memory_share < 1.0:
            torch.cuda.set_per_process_memory_fraction(self.memory_share)
        self.usage = LocalUsage()

    def read_checkpoint(self) -> None:
        """Read the tokenizer and the config, and settle how the weights will be loaded.

        Raises:
            CallError: `load`: files are missing or broken.
        """
        from transformers import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        with self.loading():
            try:
                origin = find_origin(self.params)
                if reason := self.params.special_file:
                    raise self.load_error(reason)
                self.base, self.adapter = origin.base, fetch_adapter(origin, self.params)
            except Unusable as error:
                raise CallError(ErrorKind.LOAD, str(error)) from None
        self._read_base(origin)

    def _read_base(self, origin: Origin) -> None:
        """Read the config and the tokenizer of what was found. Raises CallError (`load`)."""
        from transformers import AutoConfig, AutoTokenizer

        params = self.params
        names_base = origin.adapter == params.model_name  # The adapter's own config does.
        self._revision = origin.base_revision if names_base else params.revision
        self._shared = {
            "revision": self._revision,
            "local_files_only": params.local_files_only,
            "trust_remote_code": params.trust_remote_code,
        }
        loading = dict(params.loading_params)
        with self.loading(f"its base {self.base}, {way_out(params.model_name)}: " if names_base else ""):
            self._source = Source(
                params, self.base, self.tokenizer_place, self._shared, lambda line: self.context.notify(line)
            )
            self._config: Any = self._source.config(AutoConfig, AutoTokenizer)
        with self.loading():
            self._tokenizer: Any = self._source.tokenizer(AutoTokenizer)
            dtype = loading.get("dtype") or ("auto" if self.chip == "cuda" else self.cpu_dtype())
            if dtype == "auto":
                own = weights.own_dtype(Path(self.base)) if Path(self.base).is_dir() else None
                dtype = self._config.dtype or own or "float32"
        self._dtype = str(dtype).removeprefix("torch.")
        self._loading = {**loading, "dtype": f"torch.{self._dtype}"}

    @property
    def tokenizer_place(self) -> str:
        """Where the tokenizer and its chat template are: of its own, beside the adapter, or with the base."""
        if self.params.tokenizer_name:
            return self.params.tokenizer_name
        return str(self.adapter.folder) if self.adapter and self.adapter.has_tokenizer else self.base

    def cpu_dtype(self) -> str:
        """The type in which a CPU computes when the config names none."""
        return "float32"

    def load_checkpoint(self, kind: Any) -> None:
        """Load the weights with `kind`, one of transformers' Auto classes, by mapping the files; merge the adapter.

        Raises:
            CallError: `load`: files are missing, broken, do not belong together, or do not fit into memory.
        """
        import torch

        self.usage.free_bytes = self.free_bytes()
        with self.loading():
            try:
                self._model: Any = self.family.model if self.family and self.family.model else self._load_base(kind)
                self._put_adapter_on()
            except (torch.OutOfMemoryError, MemoryError):
                raise self._memory_error() from None
        self._model.eval()
        self.usage.weights_bytes = self._model.get_memory_footprint()

    def _load_base(self, kind: Any) -> Any:
        """The full weights. Raises CallError, and what the libraries raise."""
        params = self.params
        self._check_memory()
        model, report = self._source.model(kind, self._dtype, self.chip, device_map=self._device_map())
        if params.device:
            model.to(params.device)
        missing = [name for name in report["missing_keys"] if not name.startswith(self.unused_weights)]
        if missing:
            raise self.load_error(f"it lacks {len(missing)} weights, for example {min(missing)}")
        if self.family:
            self.family.adopt(model)
        return model

    def _put_adapter_on(self) -> None:
        """Merge the adapter, if there is one, into the base. Raises CallError."""
        if self.adapter is None:
            return
        from rambla_ray.actors.local.merging import Misfit, merge

        tokens = len(self._tokenizer) if self.adapter.has_tokenizer and not self.params.tokenizer_name else None
        try:
            if self.family:
                self.family.put_on(self.adapter, tokens)
            else:
                merge(self._model, self.adapter.folder, tokens)
        except Misfit as error:
            raise CallError(ErrorKind.LOAD, f"the adapter {self.adapter.folder} {error}") from None

    def free_bytes(self) -> int:
        """Memory that is free where the model goes: of this machine, or of the GPUs that this actor sees."""
        return memory.free_bytes(self.chip, self.memory_share) * self.pool.node_count  # Its other nodes are alike.

    def _check_memory(self) -> None:
        """Refuse weights that cannot fit, where they are in safetensors and nobody has placed them by hand."""
        params = self.params
        by_hand = isinstance(params.device_map, dict) or any(key in params.loading_params for key in PLACING_PARAMS)
        if by_hand or self._config.to_dict().get("quantization_config"):
            return
        needed = weights.loaded_bytes(Path(self.base), self._dtype)
        if needed is not None and needed > self.usage.free_bytes:
            raise self._memory_error(needed)

    def _memory_error(self, needed: int | None = None) -> CallError:
        takes = f"its weights take {memory.in_gib(needed)} in {self._dtype}" if needed else "its weights do not fit"
        return self.load_error(f"{takes}, and {memory.shortage(self.chip, self.usage.free_bytes, self.pool)}")

    @contextmanager
    def loading(self, what: str = "") -> Iterator[None]:
        """Turns what goes wrong inside into a load error of one line, with `what` before its reason."""
        try:
            yield
        except CallError:
            raise
        except Exception as error:  # noqa: BLE001 - four libraries read the files, each with errors of its own
            raise self.load_error(f"{what}{_one_line_reason(error)}") from None

    def load_error(self, reason: str) -> CallError:
        """The error that the checkpoint cannot be loaded."""
        return CallError(ErrorKind.LOAD, f"{self.params.model_name} cannot be loaded: {reason}")

    def _device_map(self) -> Any:
        if self.params.device:
            return None
        if self.chip == "cpu":
            return {"": "cpu"}
        on_one_gpu = self.params.device_map == "auto" and (self.pool.num_gpus or 0) <= 1
        return {"": 0} if on_one_gpu else self.params.device_map

    def checkpoint_identity(self) -> dict[str, object]:
        """What was loaded: class, weights, tokenizer and how, without a path."""
        if Path(self.base).is_dir():
            loaded = weights.fingerprint(
                Path(self.base),
                self._loading.get("gguf_file"),
                self._loading.get("subfolder") or "",
                self._source.known_digests,
            )
        else:
            loaded = f"{self.base}@{self.commit() or 'main'}"
        return {
            "class": type(self).__name__,
            "weights": loaded,
            "tokenizer": self._tokenizer_identity(),
            "loading": json.loads(json.dumps(self._loading, default=str)),
            **({"adapter": self.adapter.identity} if self.adapter else {}),
        }

    def _tokenizer_identity(self) -> str:
        """What the tokenizer is, where it is not the base's; else empty."""
        if self.params.tokenizer_name or self.adapter is None or not self.adapter.has_tokenizer:
            return weights.tokenizer_identity(self.params.tokenizer_name)
        return weights.fingerprint_of_texts(self.adapter.folder, {weights.ADAPTER_CONFIG})

    def commit(self) -> str | None:
        """The commit that was loaded of a hub id, or else the revision that was asked for."""
        commit: str | None = getattr(self._config, "_commit_hash", None)
        return commit or self._revision


def _one_line_reason(error: Exception) -> str:
    """What went wrong when a library read a checkpoint, and what to do, where that is known."""
    if any(kind.__name__ == "GatedRepoError" for kind in type(error).__mro__):
        return "it is gated: accept its licence on its page of the hub, and set HF_TOKEN where Ray starts"
    words = folded(str(error))
    if "trust_remote_code" in words:
        return "it comes with code of its own; set params.trust_remote_code: true if you trust it"
    return f"{type(error).__name__}: {words[:300]}"

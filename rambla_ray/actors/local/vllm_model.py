"""A language model whose checkpoint may be loaded by vLLM's engine, in place of this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rambla_ray.actors.local import memory, weights
from rambla_ray.actors.local.batching import ModelContext
from rambla_ray.actors.local.checkpoint import BaseHuggingFaceModel
from rambla_ray.actors.local.job import LanguageJob
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.actors.local.several_nodes import check_bundles
from rambla_ray.actors.local.usage import LocalUsage
from rambla_ray.actors.local.vllm_arguments import Checkpoint, engine_arguments

if TYPE_CHECKING:
    from rambla_ray.actors.local.vllm import VLLM
    from rambla_ray.actors.local.vllm_engine import RunningEngine


class VLLMModel(BaseHuggingFaceModel[LanguageJob]):
    """What a language model on vLLM's engine does otherwise.

    Attributes:
        engine_length: tokens that the engine takes, of a prompt and its answer; None until it runs.
    """

    params: HuggingFaceParams
    engine_length: int | None = None
    _running: RunningEngine | None = None

    def make_vllm(self, generation: Any, context: ModelContext, longest: int | None) -> VLLM:
        """An engine that answers; the models of a family share the processes behind it.

        Args:
            generation: as `VLLM` takes it.
            context: of this model.
            longest: tokens of the run's longest prompt with its answer; None where that is not known.

        Raises:
            CallError: `load`: vLLM's own reason, in one line.
        """
        from rambla_ray.actors.local.vllm import VLLM

        running: RunningEngine = (
            self.family.engine(lambda: self._start(longest)) if self.family else self._start(longest)
        )
        self._running, self.engine_length = running, running.longest
        return VLLM(running, self.adapter, generation, context)

    def _start(self, longest: int | None) -> RunningEngine:
        from rambla_ray.actors.local.vllm_engine import RunningEngine

        check_bundles(self.pool)
        adapters = [adapter for adapter in (self.family.adapters if self.family else [self.adapter]) if adapter]
        checkpoint = Checkpoint(
            base=self.base,
            tokenizer=self.tokenizer_place,
            revision=str(revision) if (revision := self._shared["revision"]) else None,
            dtype=self._dtype,
            quantization=self.params.loading_params.get("quantization"),
            trusts_code=self.params.trust_remote_code,
            config=self._config,
            weights_bytes=self._weights_bytes(),
            ranks=[adapter.rank for adapter in adapters],
        )
        given = self.params.engine_args or {}
        if self.params.backend == "auto":  # It was chosen by the pace that it has when it is compiled.
            given = {"enforce_eager": False, **given}
        arguments = engine_arguments(checkpoint, given, self.pool, self.chip, longest, self.usage.free_bytes)
        threads = max(1, int(self.pool.num_cpus or 1)) if self.chip == "cpu" else None
        running = RunningEngine(arguments, adapters, threads, self.usage)
        self.usage.weights_bytes = self._weights_bytes()
        return running

    def _weights_bytes(self) -> int:
        """What the weights take, as their files say; 0 where these are not here yet, or of another kind."""
        folder = Path(self.base)
        if not folder.is_dir():
            from transformers.utils import cached_file

            folder = Path(str(cached_file(self.base, "config.json", revision=self._shared["revision"]))).parent
        return weights.loaded_bytes(folder, self._dtype) or 0

    def check_memory(self) -> None:
        """Note what memory is free, and refuse weights that cannot fit. Raises CallError (`load`)."""
        self.usage.free_bytes = self.free_bytes()
        self._check_memory()

    def check_health(self) -> None:
        if self._running is not None and self._running.is_dead:
            raise self._running.death()

    def close(self) -> None:
        if self._running is not None:
            self._running.close()

    def measure(self) -> LocalUsage:
        usage = super().measure()
        if self._running is None or self.chip != "cpu":
            return usage
        self.usage.peak_bytes = max(self.usage.peak_bytes, usage.peak_bytes + memory.of_children())
        return replace(usage, peak_bytes=self.usage.peak_bytes)

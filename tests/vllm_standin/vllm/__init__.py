"""Stands in for vLLM, which needs a GPU to be installed: the part of its interface that rambla_ray uses, as vLLM 0.29
has it (names, defaults, and what is refused), with transformers behind it on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from vllm.sampling_params import SamplingParams

__all__ = ["AsyncEngineArgs", "SamplingParams", "TokensPrompt"]


@dataclass
class AsyncEngineArgs:
    """What an engine is made of."""

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    quantization: str | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    distributed_executor_backend: str | None = None
    generation_config: str = "auto"
    disable_log_stats: bool = False
    max_num_seqs: int | None = None


class TokensPrompt(TypedDict):
    """A prompt as token numbers."""

    prompt_token_ids: list[int]

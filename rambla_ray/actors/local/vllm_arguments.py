"""The arguments of vLLM's engine: those that our own settings give, and those that `params.engine_args` adds.

vLLM is not imported here: that takes seconds, and starts its logging.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache as cached
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rambla_ray.actors.local.several_nodes import parallelism
from rambla_ray.config.sections import Pool
from rambla_ray.errors import choose_from

MEMORY_SHARE = 0.9  # The share of this actor's part of each GPU that weights and cache take.
CPU_MEMORY_SHARE = 0.6  # The share of this actor's part of the free memory that all of it takes on CPUs.
PROCESSES_BYTES = 2**30  # What vLLM's two processes take on CPUs beside weights and cache.
SMALLEST_CACHE = 2**26  # In bytes; where even this does not fit, vLLM says so.
MOST_SEQUENCES = 256  # As many prompts run together at most, where pool.batch_size does not say.
ASSUMED_LENGTH = 2048  # Tokens of a prompt with its answer, where the plan does not say.
BLOCK = 128  # Tokens; a prompt takes whole blocks of the cache.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # The highest ranks of adapters that vLLM can be started for.

# Arguments that a setting of ours gives, and which one.
OWNED: Mapping[str, str] = {
    "model": "params.model_name",
    "tokenizer": "params.tokenizer_name",
    "revision": "params.revision",
    "tokenizer_revision": "params.revision",
    "trust_remote_code": "params.trust_remote_code",
    "dtype": "params.loading_params.dtype",
    "quantization": "params.loading_params.quantization",
    "tensor_parallel_size": "pool.num_gpus",
    "pipeline_parallel_size": "pool.nodes",
    "distributed_executor_backend": "pool.nodes",
    "data_parallel_size": "pool.min_size",
    "max_num_seqs": "pool.batch_size",
    "generation_config": "params.generation_config",
    "override_generation_config": "params.generation_config",
    "enable_lora": "params.adapter",
    "max_lora_rank": "params.adapter",
    "max_loras": "params.adapters",
}

# Arguments that change how fast an answer comes, and where its memory is, but no answer. All others are part of a
# request's identity.
OPERATIONAL = frozenset(
    {
        *("aggregate_engine_logging", "block_size", "cpu_offload_gb", "disable_custom_all_reduce"),
        *("disable_log_stats", "download_dir", "enable_chunked_prefill", "enable_prefix_caching"),
        *("enable_logging_iteration_details", "gpu_memory_utilization", "kv_cache_memory_bytes"),
        *("kv_cache_metrics", "long_prefill_token_threshold", "max_cpu_loras", "max_num_batched_tokens"),
        *("max_num_scheduled_tokens", "max_parallel_loading_workers", "num_gpu_blocks_override", "numa_bind"),
        *("numa_bind_cpus", "numa_bind_nodes", "otlp_traces_endpoint", "prefix_caching_hash_algo"),
        *("safetensors_load_strategy", "safetensors_prefetch_block_size", "safetensors_prefetch_num_threads"),
        *("scheduling_policy", "show_hidden_metrics_for_version", "watermark"),
    }
)

# Arguments that can run code of others.
CODE_RUNNING = frozenset(
    {
        *("worker_cls", "worker_extension_cls", "scheduler_cls", "logits_processors", "io_processor_plugin"),
        *("reasoning_parser_plugin", "model_class_overrides", "kv_transfer_config", "ec_transfer_config"),
    }
)


def fault(arguments: Mapping[str, Any], *, trusts: bool) -> str:
    """Why these arguments of vLLM's engine cannot be given to it, with the first's name; empty where they can.

    Args:
        arguments: params.engine_args.
        trusts: whether code of others may run.
    """
    known = known_arguments()
    for name in arguments:
        if name in OWNED:
            return f"{name}: {OWNED[name]} gives it; drop it here"
        if name in CODE_RUNNING and not trusts:
            return f"{name} can run code of others; that needs trust_remote_code: true"
        if known and name not in known:
            return f"vLLM's engine has no argument '{name}'; {choose_from(name, known)}"
    return ""


def in_identity(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that may change an answer."""
    return {name: value for name, value in arguments.items() if name not in OPERATIONAL}


@cached
def known_arguments() -> frozenset[str]:
    """The arguments of the engine of the vLLM that is installed, read from its source; none where it is not."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    source = Path(spec.origin).parent / "engine/arg_utils.py"
    if not source.is_file():
        return frozenset()
    classes = (node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef))
    fields = (node for kind in classes if kind.name in ("EngineArgs", "AsyncEngineArgs") for node in kind.body)
    targets = (field.target for field in fields if isinstance(field, ast.AnnAssign))
    names = (target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(name for name in names if not name.startswith("_"))


@dataclass(frozen=True)
class Checkpoint:
    """What an engine loads.

    Args:
        base: folder or hub id.
        tokenizer: the same, of the tokenizer.
        revision: of both, where they are hub ids.
        dtype: of the weights, by torch's name.
        quantization: how they are quantised, where the checkpoint does not say.
        trusts_code: whether code that comes with it runs.
        config: transformers' own.
        weights_bytes: what the weights take, 0 where it is not known.
        ranks: of the adapters.
    """

    base: str
    tokenizer: str
    revision: str | None
    dtype: str
    quantization: str | None
    trusts_code: bool
    config: Any
    weights_bytes: int
    ranks: Sequence[int]


def engine_arguments(
    checkpoint: Checkpoint, given: Mapping[str, Any], pool: Pool, chip: str, longest: int | None, free_bytes: int
) -> dict[str, Any]:
    """All that the engine is started with.

    Args:
        checkpoint: what it loads.
        given: params.engine_args.
        pool: of this actor, its resources settled.
        chip: cpu or cuda.
        longest: tokens of the longest prompt with its answer; None where that is not known.
        free_bytes: memory that is free where the model goes.
    """
    gpus = pool.num_gpus or 0.0
    ranks = checkpoint.ranks
    lora = {"enable_lora": True, "max_lora_rank": _engine_rank(max(ranks)), "max_loras": len(ranks)} if ranks else {}
    defaults: dict[str, Any] = {
        "max_model_len": longest or -1,  # As many as the memory holds, up to the model's own.
        "disable_log_stats": True,
        **(_on_cpus(checkpoint, pool, longest, free_bytes) if chip == "cpu" else {}),
    }
    if chip != "cpu":
        defaults["gpu_memory_utilization"] = MEMORY_SHARE * min(1.0, gpus or 1.0)
    if "gpu_memory_utilization" in given:
        defaults.pop("kv_cache_memory_bytes", None)
    return {
        **defaults,
        **given,
        "model": checkpoint.base,
        "tokenizer": checkpoint.tokenizer,
        "revision": checkpoint.revision,
        "tokenizer_revision": checkpoint.revision,
        "trust_remote_code": checkpoint.trusts_code,
        "dtype": checkpoint.dtype,
        "quantization": checkpoint.quantization,
        **parallelism(pool),
        "generation_config": "vllm",  # Nothing is left for the engine to fill in.
        **({} if pool.batch_size == "auto" else {"max_num_seqs": pool.batch_size}),
        **lora,
    }


def _engine_rank(rank: int) -> int:
    """The rank to start for; one that no engine takes is left to vLLM to refuse."""
    return next((size for size in RANKS if size >= rank), rank)


def _on_cpus(checkpoint: Checkpoint, pool: Pool, longest: int | None, free_bytes: int) -> dict[str, Any]:
    """What vLLM does otherwise on CPUs: its own defaults are a minute of compiling, and 0.92 of all memory."""
    part = min(1.0, max(1.0, pool.num_cpus or 1.0) / (os.cpu_count() or 1))
    room = int(part * CPU_MEMORY_SHARE * free_bytes) - checkpoint.weights_bytes - PROCESSES_BYTES
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": max(SMALLEST_CACHE, min(room, _used(checkpoint, pool, longest))),
    }


def _used(checkpoint: Checkpoint, pool: Pool, longest: int | None) -> int:
    """About the bytes of cache that the prompts of one actor use at the same time; without end where nobody can say.

    vLLM fills all its cache with zeros when it starts, so that what is not used is taken all the same.
    """
    from rambla_ray.actors.local import cache

    context = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None)
    if not context or not cache.only_attends(checkpoint.config):
        return 2**62
    import torch

    model = SimpleNamespace(config=checkpoint.config, dtype=getattr(torch, checkpoint.dtype))
    prompts = min(pool.max_concurrency, MOST_SEQUENCES if pool.batch_size == "auto" else pool.batch_size)
    blocks = prompts * (math.ceil((longest or min(context, ASSUMED_LENGTH)) / BLOCK) + 1)
    return max(blocks, math.ceil((longest or context) / BLOCK) + 1) * BLOCK * cache.CacheBytes.of(model).token

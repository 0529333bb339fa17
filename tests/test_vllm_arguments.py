"""The arguments of vLLM's engine: our own settings, those that a user adds, and which change an answer. No vLLM is
needed for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
from huggingface_models import load, refused
from transformers import LlamaConfig

from rambla_ray.actors.local import vllm_arguments
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.actors.local.vllm_arguments import BLOCK, Checkpoint, engine_arguments, in_identity
from rambla_ray.config.sections import Pool
from rambla_ray.errors import UserError

tiny = huggingface_models.tiny

GIB = 2**30
LLAMA = LlamaConfig(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=128)
LLAMA.max_position_embeddings = 131_072
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4  # Key and value, layers, heads, their size, float32.


def arguments(
    pool: Pool, chip: str = "cpu", longest: int | None = None, free: int = 16 * GIB, ranks: Any = (), **given: Any
) -> dict[str, Any]:
    checkpoint = Checkpoint("base", "tokenizer", "main", "float32", None, False, LLAMA, 0, ranks)
    return engine_arguments(checkpoint, given, pool, chip, longest, free)


@pytest.mark.parametrize(("gpus", "share", "parallel"), [(1, 0.9, 1), (0.5, 0.45, 1), (4, 0.9, 4)])
def test_the_engine_takes_its_share_of_the_gpus(gpus: float, share: float, parallel: int) -> None:
    given = arguments(Pool(num_gpus=gpus), "cuda")
    assert given["gpu_memory_utilization"] == pytest.approx(share)
    assert given["tensor_parallel_size"] == parallel
    assert given["distributed_executor_backend"] == ("mp" if parallel > 1 else None)
    assert {"kv_cache_memory_bytes", "enforce_eager", "max_num_seqs"}.isdisjoint(given)


def test_on_cpus_the_cache_is_what_the_prompts_use_and_nothing_is_compiled() -> None:
    given = arguments(Pool(num_cpus=1, max_concurrency=4), longest=100)
    assert given["kv_cache_memory_bytes"] == max(2**26, 4 * 2 * BLOCK * TOKEN_BYTES)
    assert given["enforce_eager"] is True
    assert given["max_model_len"] == 100
    assert "gpu_memory_utilization" not in given


def test_on_cpus_the_cache_is_at_most_this_actors_part_of_the_memory_that_is_free() -> None:
    given = arguments(Pool(num_cpus=os.cpu_count()), longest=100_000, free=4 * GIB)
    assert given["kv_cache_memory_bytes"] == int(0.6 * 4 * GIB) - GIB
    half = arguments(Pool(num_cpus=os.cpu_count() / 2), longest=100_000, free=8 * GIB)
    assert half["kv_cache_memory_bytes"] == int(0.3 * 8 * GIB) - GIB


def test_a_context_that_nobody_knows_is_what_the_memory_holds() -> None:
    assert arguments(Pool())["max_model_len"] == -1


@pytest.mark.parametrize(("ranks", "rank"), [((4,), 8), ((16,), 16), ((8, 200), 256)])
def test_the_engine_is_started_for_the_highest_rank_of_the_adapters(ranks: tuple[int, ...], rank: int) -> None:
    given = arguments(Pool(), ranks=ranks)
    assert (given["enable_lora"], given["max_lora_rank"], given["max_loras"]) == (True, rank, len(ranks))
    assert "enable_lora" not in arguments(Pool())


def test_what_a_user_gives_goes_before_defaults_and_not_before_our_settings() -> None:
    given = arguments(Pool(batch_size=3), max_model_len=64, enforce_eager=False, gpu_memory_utilization=0.2)
    assert (given["max_model_len"], given["enforce_eager"], given["gpu_memory_utilization"]) == (64, False, 0.2)
    assert "kv_cache_memory_bytes" not in given  # It would go before the share.
    assert given["max_num_seqs"] == 3


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"model": "other"}, "model: params.model_name gives it; drop it here"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size: pool.num_gpus gives it; drop it here"),
        ({"worker_cls": "a.B"}, "worker_cls can run code of others; that needs trust_remote_code: true"),
    ],
)
def test_arguments_that_are_not_a_users_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=f"params.engine_args: {reason}"):
        HuggingFaceParams(model_name="x", backend="vllm", engine_args=given).resolved()


def test_other_backends_take_no_engine_arguments() -> None:
    with pytest.raises(UserError, match="engine_args: backend transformers takes none; backend: vllm does"):
        HuggingFaceParams(model_name="x", backend="transformers", engine_args={"seed": 1}).resolved()


def test_engine_arguments_are_known_without_importing_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "vllm/engine/arg_utils.py"
    source.parent.mkdir(parents=True)
    (tmp_path / "vllm/__init__.py").write_text("raise ImportError('it was imported')")
    source.write_text("class EngineArgs:\n    max_model_len: int = 1\n    _own: int = 2\n    def run(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    vllm_arguments.known_arguments.cache_clear()
    try:
        assert vllm_arguments.known_arguments() == {"max_model_len"}
        assert vllm_arguments.fault({"max_modellen": 1}, trusts=False) == (
            "vLLM's engine has no argument 'max_modellen'; did you mean 'max_model_len'? there is: max_model_len"
        )
    finally:
        vllm_arguments.known_arguments.cache_clear()


def test_only_arguments_that_may_change_an_answer_are_in_the_identity(tiny: Path) -> None:
    assert in_identity({"max_model_len": 9, "gpu_memory_utilization": 0.5, "kv_cache_dtype": "fp8"}) == {
        "max_model_len": 9,
        "kv_cache_dtype": "fp8",
    }
    assert "engine_args" not in load(tiny).identity()
    assert "engine_args" not in HuggingFaceParams(model_name="x").model_dump()


def test_loading_params_that_vllm_does_not_take_are_refused() -> None:
    params = HuggingFaceParams(model_name="x", backend="vllm", loading_params={"gguf_file": "x.gguf"})
    with pytest.raises(UserError, match="gguf_file: backend vllm does not take it"):
        params.resolved()


def test_vllm_that_is_not_installed_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "vllm" else object())
    assert "pip install 'rambla_ray[vllm]' -c constraints-vllm.txt" in refused(tiny, backend="vllm")

"""Faster ways to compute a model's modules on a CPU, and how its rows are shared out to threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import torch
from huggingface_models import load, texts
from transformers import LlamaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from rambla_ray.actors.local import static
from rambla_ray.actors.local.cpu_modules import speed_up
from rambla_ray.actors.local.prefill import even_shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_sped_up_is_as_exact_as_before(tmp_path: Path, dtype: Any):
    folder = tiny_llama.build(tmp_path / "llama")
    exact, plain, fast = (
        LlamaForCausalLM.from_pretrained(folder, dtype=kind).eval() for kind in (torch.float64, dtype, dtype)
    )
    assert speed_up(fast, 2**30) > 0
    layer = fast.model.layers[0]
    assert all("forward" in vars(module) for module in (layer.mlp, layer.input_layernorm, layer.self_attn.q_proj))
    ids = torch.arange(5, 245).view(12, 20)
    with torch.inference_mode():
        scores = exact(input_ids=ids).logits
        before, now = ((model(input_ids=ids).logits.double() - scores).square().mean() for model in (plain, fast))
    assert now <= 2 * before


def test_weights_are_not_held_twice_where_memory_is_short(tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(tiny_llama.build(tmp_path / "llama")).eval()
    assert speed_up(model, 1000) == 0
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("norm", [GemmaRMSNorm(32), torch.nn.LayerNorm(32)])
def test_another_norm_stays_as_it_is(tmp_path: Path, norm: torch.nn.Module):
    model = LlamaForCausalLM.from_pretrained(tiny_llama.build(tmp_path / "llama")).eval()
    model.model.norm = norm
    speed_up(model, 2**30)
    assert "forward" not in vars(norm)


def test_rows_are_shared_out_evenly_and_those_with_one_prefix_stay_together():
    alike = [[*range(100), number] for number in range(3)]
    rows = [[7] * 150, *alike, [8] * 150]
    shares = even_shares(rows, 2)
    assert sorted(number for share in shares for number in share) == [0, 1, 2, 3, 4]
    assert any(set(share) == {1, 2, 3} for share in shares)


def test_rows_computed_apart_give_what_they_give_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny_llama.build(tmp_path / "llama")
    prompts = [f"{'An abstract. ' * (number % 4)}Question {number}?" for number in range(8)]
    monkeypatch.setattr(static, "ROWS_ALONE", 2)
    assert texts(load(folder), *prompts) == tiny_llama.answers_alone(folder, prompts, 12)

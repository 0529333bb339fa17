"""Products on a CPU with weights in oneDNN's order, and how rows are shared out to threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import torch
from huggingface_models import load, texts
from transformers import LlamaForCausalLM

from rambla_ray.actors.local import static
from rambla_ray.actors.local.cpu_products import pack_weights
from rambla_ray.actors.local.prefill import even_shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_results_as_exact_as_before(tmp_path: Path, dtype: Any):
    folder = tiny_llama.build(tmp_path / "llama")
    exact, plain, fast = (
        LlamaForCausalLM.from_pretrained(folder, dtype=kind).eval() for kind in (torch.float64, dtype, dtype)
    )
    assert pack_weights(fast, 2**30) > 0
    assert all("forward" in vars(product) for product in fast.modules() if type(product) is torch.nn.Linear)
    ids = torch.arange(5, 245).view(12, 20)
    with torch.inference_mode():
        scores = exact(input_ids=ids).logits
        before, now = ((model(input_ids=ids).logits.double() - scores).square().mean() for model in (plain, fast))
    assert now <= 2 * before


def test_weights_are_not_held_twice_where_memory_is_short(tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(tiny_llama.build(tmp_path / "llama")).eval()
    assert pack_weights(model, 1000) == 0
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("rows", [(0,), (1,), (2, 3)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_takes_inputs_of_any_shape(rows: tuple[int, ...], biased: bool):
    product = torch.nn.Linear(32, 48, bias=biased)
    states = torch.randn(48, *rows, 32).transpose(0, -2) if len(rows) > 1 else torch.randn(*rows, 32)
    with torch.inference_mode():
        expected = product(states)
        assert pack_weights(product, 2**30) == product.weight.nbytes
        assert torch.allclose(product(states), expected, atol=1e-5)


def test_a_product_with_a_hook_or_of_another_kind_stays_as_it_is():
    hooked, double = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8, dtype=torch.float64)
    hooked.register_forward_pre_hook(lambda module, given: None)
    assert pack_weights(torch.nn.Sequential(hooked, double), 2**30) == 0
    assert not any("forward" in vars(product) for product in (hooked, double))


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

"""Models that keep a state of what they have read instead of, or beside, keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import torch
from huggingface_models import NEW, PROMPTS, answer, load, texts
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    JambaConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    RwkvConfig,
)

from rambla_ray.actors.local import cache
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request

SIZE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
CHOICES = ("yes", "no", "maybe so")
RECURRENT: dict[str, PreTrainedConfig] = {
    "mamba": MambaConfig(state_size=8, time_step_rank=4, **SIZE),
    "mamba2": Mamba2Config(state_size=8, num_heads=4, head_dim=16, n_groups=1, chunk_size=16, **SIZE),
    "rwkv": RwkvConfig(attention_hidden_size=32, intermediate_size=64, context_length=256, **SIZE),
    "jamba": JambaConfig(
        num_experts=2, attn_layer_period=2, attn_layer_offset=1, mamba_d_state=8, **ATTENTION, **SIZE
    ),
}


@pytest.fixture(scope="module", params=RECURRENT)
def recurrent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("recurrent") / request.param, RECURRENT[request.param])


def build(folder: Path, config: PreTrainedConfig) -> Path:
    """A tiny random model of this config, beside the tokenizer of the tiny Llama."""
    tiny_llama.build(folder)
    model_of(config).save_pretrained(folder)
    return folder


def model_of(config: PreTrainedConfig) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_each_prompt_gets_the_answer_it_gets_alone_whatever_the_batch_size(recurrent: Path, batch_size: Any) -> None:
    answers = texts(load(recurrent, batch_size=batch_size), *PROMPTS, *PROMPTS[:2])
    assert answers == tiny_llama.answers_alone(recurrent, [*PROMPTS, *PROMPTS[:2]], NEW)
    assert len(set(answers)) > 5


def test_continuous_batching_is_refused_when_loading_and_never_chosen(recurrent: Path) -> None:
    model = load(recurrent)
    assert model.params.choose_backend("cuda", pages=cache.only_attends(model._config))[0] == "transformers"
    with pytest.raises(CallError, match="needs attention in every layer; backend: transformers takes it") as caught:
        load(recurrent, backend="transformers_continuous")
    assert caught.value.kind == ErrorKind.LOAD


@pytest.mark.parametrize(
    ("config", "shares", "alone"),
    [
        pytest.param(LlamaConfig(**ATTENTION, **SIZE), True, False, id="llama"),
        pytest.param(RECURRENT["mamba"], False, False, id="mamba"),
        pytest.param(RECURRENT["jamba"], False, False, id="jamba"),
        pytest.param(RECURRENT["rwkv"], False, True, id="rwkv"),
    ],
)
def test_prompts_share_and_run_together_only_where_that_changes_no_answer(
    config: PreTrainedConfig, shares: bool, alone: bool
) -> None:
    model = model_of(config)
    assert (cache.keeps_all_positions(model), cache.sees_neighbours(model)) == (shares, alone)


# Bytes of two layers of float32. A Llama's have, per token, a key and a value of two groups of eight numbers. Mamba's
# have, for each of 64 channels, the last 4 inputs of the convolution and a state of 8.


@pytest.mark.parametrize(
    ("config", "row", "token"),
    [
        pytest.param(LlamaConfig(**ATTENTION, **SIZE), 0, 2 * 2 * 2 * 8 * 4, id="grouped heads"),
        pytest.param(
            LlamaConfig(**{**ATTENTION, "num_key_value_heads": None}, **SIZE), 0, 2 * 2 * 4 * 8 * 4, id="no groups"
        ),
        pytest.param(RECURRENT["mamba"], 2 * 64 * (4 + 8) * 4, 0, id="no heads"),
    ],
)
def test_what_a_prompt_takes_in_memory_is_known_with_and_without_heads(
    config: PreTrainedConfig, row: int, token: int
) -> None:
    assert cache.CacheBytes.of(model_of(config)) == cache.CacheBytes(row, token)


def test_what_is_measured_is_what_a_config_with_heads_says() -> None:
    model = model_of(LlamaConfig(**ATTENTION, **SIZE))
    told = cache.CacheBytes.of(model)
    del model.config.num_attention_heads
    assert cache.CacheBytes.of(model) == told


@pytest.fixture(scope="module", params=["mamba", "jamba", "mistral"])
def keyless(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that cannot go on from the keys and values of what another row begins with."""
    windowed = MistralConfig(sliding_window=8, **ATTENTION, **SIZE)
    return build(tmp_path_factory.mktemp("keyless") / request.param, {**RECURRENT, "mistral": windowed}[request.param])


@pytest.mark.parametrize("choices", [CHOICES, ("y", "n")])
def test_likelihoods_are_those_of_each_row_alone(keyless: Path, choices: tuple[str, ...]) -> None:
    found = answer(load(keyless), *(Request(prompt, continuations=choices) for prompt in PROMPTS[:4]))
    tokenizer = AutoTokenizer.from_pretrained(keyless)
    model = AutoModelForCausalLM.from_pretrained(keyless, dtype="float32")
    for prompt, response in zip(PROMPTS, found, strict=False):
        stem = len(tokenizer(prompt)["input_ids"])
        for choice, logprob in zip(choices, response.details.choice_logprobs, strict=True):
            row = torch.tensor(tokenizer(f"{prompt} {choice}")["input_ids"])
            with torch.inference_mode():
                table = model(row[None]).logits[0].log_softmax(-1)
            alone = sum(float(table[place - 1, row[place]]) for place in range(stem, len(row)))
            assert logprob == pytest.approx(alone, abs=1e-3)

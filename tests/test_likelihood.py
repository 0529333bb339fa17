"""How likely a local model finds continuations: equal to a plain run of each row, whatever shares its batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_models import CONTEXT, NEW, PROMPTS, answer, copy, load, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request

__all__ = ["copy", "tiny"]  # Fixtures.

WORDS = ("yes", "no", "maybe so", "y")
INSTRUCTION = "Read this and answer with one of the words. "


def plain_logprobs(folder: Path, prompt: str, ends: Sequence[str], *, special: bool = True) -> list[float]:
    """Computed for one row at a time, from all its logits: what stands behind `prompt` is `ends`."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    stem = tokenizer(prompt.rstrip(), add_special_tokens=special)["input_ids"]
    found = []
    for end in ends:
        row = torch.tensor(tokenizer(prompt + end, add_special_tokens=special)["input_ids"])
        with torch.inference_mode():
            table = model(row[None]).logits[0].log_softmax(-1)
        found.append(float(sum(table[place - 1, row[place]] for place in range(len(stem), len(row)))))
    return found


def likelihoods(model: Any, prompts: Sequence[str], choices: tuple[str, ...] = WORDS) -> list[Any]:
    return answer(model, *(Request(prompt, continuations=choices) for prompt in prompts))


@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
@pytest.mark.parametrize("beginning", ["", INSTRUCTION])
def test_log_probabilities_are_those_of_each_row_alone(tiny: Path, batch_size: Any, beginning: str) -> None:
    prompts = [beginning + prompt for prompt in PROMPTS]
    for prompt, response in zip(prompts, likelihoods(load(tiny, batch_size=batch_size), prompts), strict=True):
        expected = plain_logprobs(tiny, prompt, [f" {word}" for word in WORDS])
        assert response.details.choice_logprobs == pytest.approx(expected, abs=1e-3)
        assert response.text == WORDS[expected.index(max(expected))]


@pytest.mark.parametrize(
    ("params", "wraps", "space", "special"),
    [
        pytest.param({}, "{}", " ", True, id="a plain prompt"),
        pytest.param({"is_finetuned": True}, "<s>[user]{}[assistant]", "", False, id="a chat template"),
        pytest.param(
            {"is_finetuned": True, "message_formatting_template": "Q: {message} A:"}, "Q: {} A:", " ", True, id="words"
        ),
        pytest.param(
            {"is_finetuned": True, "message_formatting_template": "Q: {message}\nA:\n"},
            "Q: {}\nA:\n",
            "",
            True,
            id="line",
        ),
    ],
)
def test_a_choice_stands_where_an_answer_begins(
    tiny: Path, params: dict[str, Any], wraps: str, space: str, special: bool
) -> None:
    (response,) = likelihoods(load(tiny, **params), ["Is it?"])
    expected = plain_logprobs(tiny, wraps.format("Is it?"), [space + word for word in WORDS], special=special)
    assert response.details.choice_logprobs == pytest.approx(expected, abs=1e-3)


def test_white_space_at_the_end_of_a_prompt_belongs_to_what_stands_behind_it(tiny: Path) -> None:
    (response,) = likelihoods(load(tiny), ["Is it? \n"])
    expected = plain_logprobs(tiny, "Is it? \n", [f" {word}" for word in WORDS])
    assert response.details.choice_logprobs == pytest.approx(expected, abs=1e-3)


def test_prompts_that_are_answered_in_words_share_a_batch_with_them(tiny: Path) -> None:
    model = load(tiny)
    words, choice = answer(model, Request("Is it?"), Request("Is it?", continuations=WORDS))
    assert words.completion_tokens == NEW
    assert words.details.choice_logprobs == ()
    assert (choice.finish_reason, choice.completion_tokens) == ("stop", 0)
    assert choice.prompt_tokens == 1 + len("Is it?") + sum(1 + len(word) for word in WORDS)


def test_a_prompt_is_run_once_for_all_its_choices(tiny: Path) -> None:
    model = load(tiny)
    likelihoods(model, ["Is it?"], ("a", "b", "c", "d"))
    assert model.usage.computed_tokens == len("<Is it? ")  # A token is a byte; BOS is the first.


@pytest.mark.parametrize(("length", "fits"), [(CONTEXT - 1, True), (CONTEXT, False)])
def test_a_prompt_fits_without_the_last_token_of_the_longest_choice(tiny: Path, length: int, fits: bool) -> None:
    (found,) = likelihoods(load(tiny), ["a" * (length - len("<"))], ("y", "n"))
    assert fits or (isinstance(found, CallError) and found.kind is ErrorKind.TOO_LONG)
    assert not fits or len(found.details.choice_logprobs) == 2


def test_choices_that_are_the_same_tokens_end_the_run(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "z"}, "content": "s"}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    (error,) = likelihoods(load(copy), ["Is it?"], ("yes", "yez"))
    assert error.kind is ErrorKind.LOAD
    assert "choices 'yes' and 'yez' are the same tokens" in error.message


def test_an_infinite_weight_gives_no_likelihood(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][5] = math.inf
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    found = likelihoods(load(copy), ["Is it?", "Why?"])
    assert [error.kind for error in found] == [ErrorKind.INTERNAL] * 2
    assert "NaN or infinity" in found[0].message


def test_continuous_batching_names_what_gives_likelihoods(tiny: Path) -> None:
    (error,) = likelihoods(load(tiny, backend="transformers_continuous"), ["Is it?"])
    assert error.kind is ErrorKind.LOAD
    assert "backend: transformers does" in error.message

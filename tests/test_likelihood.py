"""How likely a local model finds continuations: equal to a plain run of each row, whatever shares its batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_models import PROMPTS, answer, load, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from rambla_ray.schema import Request

__all__ = ["tiny"]  # A fixture.

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

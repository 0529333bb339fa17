"""A tiny local model, prompts for it, and ways to ask it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.sections import Pool
from rambla_ray.errors import UserError
from rambla_ray.schema import Request

FLOAT32 = {"dtype": "float32"}
NEW = 12
ASK_S = 600  # a real model on a slow machine takes some minutes
CONTEXT = 256  # tokens of the tiny Llama; a token is a byte, and each prompt begins with BOS
PROMPTS = [
    "Is it?",
    "a" * 90,
    "b" * 17,
    "Why not, then?",
    "c",
    "Does aspirin help?",
    "é" * 30,
    "d" * 200,
    "no",
    "e" * 55,
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def alone(tiny: Path) -> dict[str, list[int]]:
    """What transformers itself generates for each prompt, one at a time and without padding: token numbers."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32")
    made = {}
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**given, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        made[prompt] = out[0, given["input_ids"].shape[1] :].tolist()
    return made


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The checkpoint in a folder of this test, to be changed."""
    return shutil.copytree(tiny, tmp_path / "copy")


def load(folder: Path | str, kind: type[HuggingFaceLLM] = HuggingFaceLLM, batch_size: Any = 8, **params: Any) -> Any:
    given = {"loading_params": FLOAT32, "generation_config": {"max_new_tokens": NEW}, **params}
    settled = HuggingFaceParams(model_name=str(folder), **given).resolved()
    model = kind(settled, Pool(batch_size=batch_size), None)
    model.open()
    return model


def ask(model: HuggingFaceLLM, *prompts: str) -> list[Any]:
    """What became of the prompts, asked together: responses and exceptions."""

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(model.generate(Request(prompt)) for prompt in prompts), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(all_at_once(), ASK_S))


def answer(model: Any, *requests: Request) -> list[Any]:
    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*map(model.generate, requests), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(all_at_once(), 60))


def texts(model: HuggingFaceLLM, *prompts: str) -> list[str]:
    return [response.text for response in ask(model, *prompts)]


def decoded(folder: Path, tokens: list[int]) -> str:
    return AutoTokenizer.from_pretrained(folder).decode(tokens, skip_special_tokens=True)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Refused before anything is asked


def refused(folder: Path, **params: Any) -> str:
    given = HuggingFaceParams(model_name=str(folder), **params)
    given.preflight(same_machine=False)  # what cannot be looked for there is not refused
    with pytest.raises(UserError) as caught:
        given.preflight(same_machine=True)
    return str(caught.value)

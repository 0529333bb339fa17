"""Checkpoints: which model they are, what is refused before and at loading, and the memory that weights take."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import tiny_llama
import tiny_nli
from huggingface_models import NEW, ask, edit, load, refused

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local import weights
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import canonical_json

copy = huggingface_models.copy
tiny = huggingface_models.tiny


def test_the_same_files_elsewhere_are_the_same_model_and_no_path_shows(tiny: Path, copy: Path) -> None:
    identity = canonical_json(load(tiny).identity())
    assert identity == canonical_json(load(copy).identity())
    assert str(tiny) not in identity


def test_the_same_tokenizer_elsewhere_is_the_same_model_and_no_path_shows(tiny: Path, copy: Path) -> None:
    identity = canonical_json(load(tiny, tokenizer_name=str(copy)).identity())
    moved = shutil.move(copy, copy.parent / "moved")
    assert identity == canonical_json(load(tiny, tokenizer_name=str(moved)).identity())
    assert str(copy) not in identity


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(content)


def add_a_line(file: Path) -> None:
    file.write_text(file.read_text() + "\n")


CHANGES: list[tuple[str, Callable[[Path], None]]] = [
    ("model.safetensors", flip_a_bit),
    ("tokenizer.json", add_a_line),
    ("tokenizer_config.json", add_a_line),
    ("chat_template.jinja", add_a_line),
    ("config.json", add_a_line),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_one_changed_file_makes_another_model(
    tiny: Path, copy: Path, name: str, change: Callable[[Path], None]
) -> None:
    change(copy / name)
    assert load(copy).identity()["weights"] != load(tiny).identity()["weights"]


def test_a_changed_tokenizer_in_a_folder_of_its_own_makes_another_model(tiny: Path, copy: Path) -> None:
    before = load(tiny, tokenizer_name=str(copy)).identity()
    add_a_line(copy / "tokenizer.json")
    assert load(tiny, tokenizer_name=str(copy)).identity() != before


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"generation_config": {"max_new_tokens": NEW + 1}}, True),
        ({"is_finetuned": True}, True),
        ({"is_finetuned": True, "message_formatting_template": "{message}"}, True),
        ({"loading_params": {"dtype": "bfloat16"}}, True),
        ({"batch_size": 3}, False),
        ({"device": "cpu"}, False),
        ({"local_files_only": True}, False),
    ],
)
def test_identity_changes_with_what_may_change_an_answer_only(
    tiny: Path, change: dict[str, Any], differs: bool
) -> None:
    assert (load(tiny, **change).identity() != load(tiny).identity()) == differs


# Loading that fails


def remove(file: Path) -> None:
    file.unlink()


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def want_a_third_layer(file: Path) -> None:
    edit(file, num_hidden_layers=3)


def widen(file: Path) -> None:
    edit(file, hidden_size=64)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.safetensors", remove),
        ("model.safetensors", cut_short),
        ("config.json", remove),
        ("config.json", cut_short),
        ("config.json", widen),
        ("config.json", want_a_third_layer),
        ("tokenizer.json", remove),
        ("tokenizer.json", cut_short),
        ("chat_template.jinja", remove),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_a_load_error_of_one_line(
    copy: Path, name: str, harm: Callable[[Path], None]
) -> None:
    harm(copy / name)
    with pytest.raises(CallError) as caught:
        load(copy, is_finetuned=True)
    assert caught.value.kind == ErrorKind.LOAD
    assert "\n" not in str(caught.value)


def test_a_chat_template_is_needed_only_when_it_is_used(copy: Path) -> None:
    remove(copy / "chat_template.jinja")
    assert load(copy).identity()["template"] is None
    assert (
        load(copy, is_finetuned=True, message_formatting_template="{message}!").identity()["template"] == "{message}!"
    )


# Refused before anything is asked


def test_a_checkpoint_that_is_no_causal_language_model_is_refused(tmp_path: Path) -> None:
    folder = tiny_nli.build(tmp_path / "nli")
    assert "is a BertForSequenceClassification, which is not a causal language model" in refused(folder)


def test_a_tokenizer_without_a_chat_template_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    HuggingFaceParams(model_name=str(folder), is_finetuned=True).preflight(same_machine=True)
    (folder / "chat_template.jinja").unlink()
    assert "give message_formatting_template" in refused(folder, is_finetuned=True)
    for fine in ({}, {"is_finetuned": True, "message_formatting_template": "{message}"}):
        HuggingFaceParams(model_name=str(folder), **fine).preflight(same_machine=True)


def test_an_answer_longer_than_the_context_is_refused(tiny: Path) -> None:
    message = refused(tiny, generation_config={"max_new_tokens": 256})
    assert message == "params.generation_config.max_new_tokens=256 leaves no room in its context of 256"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    (folder / "model.safetensors").unlink()
    assert "it holds no weights" in refused(folder)


@pytest.mark.parametrize(
    ("quantised", "loading", "package"),
    [
        ({"quant_method": "gptq", "bits": 4}, {}, "gptqmodel"),
        ({"quant_method": "compressed-tensors"}, {}, "compressed-tensors"),
        (None, {"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
    ],
)
def test_a_missing_package_for_quantised_weights_is_named(
    tmp_path: Path, quantised: Any, loading: dict[str, Any], package: str
) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    assert f"pip install {package}" in refused(folder, loading_params=loading)


def test_a_checkpoint_with_code_of_its_own_says_how_to_trust_it(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    (folder / "own.py").write_text("raise SystemExit('this must not run')\n")
    with pytest.raises(CallError, match="it comes with code of its own; set params"):
        load(folder)


def test_a_gated_model_says_what_to_do(tiny: Path) -> None:
    class GatedRepoError(OSError):
        """As huggingface_hub names it."""

    model = load(tiny)
    with pytest.raises(CallError, match="it is gated: accept its licence") as caught, model.loading():
        raise GatedRepoError("403 Client Error. Cannot access gated repo for url https://huggingface.co/x")
    assert caught.value.kind == ErrorKind.LOAD


# Memory


def huge(folder: Path) -> Path:
    """Weights of 4 TiB as safetensors describe them, of which the file has just the description."""
    shape = [2**20, 2**20]
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * 2**40]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder


def test_weights_that_cannot_fit_are_refused_with_the_numbers(tmp_path: Path) -> None:
    folder = huge(tiny_llama.build(tmp_path / "llama"))
    with pytest.raises(CallError, match=r"4096.0 GiB in float32, and this machine has \d+\.\d GiB") as caught:
        load(folder)
    assert caught.value.kind == ErrorKind.LOAD
    with pytest.raises(CallError, match=r"2048.0 GiB in bfloat16"):
        load(folder, loading_params={"dtype": "bfloat16"})


def test_the_memory_that_weights_take_is_known_before_they_are_loaded(tiny: Path) -> None:
    model = load(tiny)
    parameters = sum(weight.numel() for weight in model._model.parameters())
    assert weights.loaded_bytes(tiny, "float32") == 4 * parameters
    assert weights.loaded_bytes(tiny, "bfloat16") == 2 * parameters
    assert weights.own_dtype(tiny) == "float32"
    did = model.measure()
    assert did.weights_bytes >= 4 * parameters
    assert did.peak_bytes > did.weights_bytes
    assert did.free_bytes > did.weights_bytes
    assert did.load_s > 0


def test_what_a_model_is_needs_no_weights(tmp_path: Path) -> None:
    folder = tiny_llama.build(tmp_path / "llama")
    whole = load(folder).identity()
    (folder / "model.safetensors").rename(tmp_path / "away")
    params = (
        HuggingFaceParams(
            model_name=str(folder), loading_params={"dtype": "float32"}, generation_config={"max_new_tokens": NEW}
        )
    ).resolved()
    model = HuggingFaceLLM(params, Pool(), None)
    assert {**model.identity(), "weights": ""} == {**whole, "weights": ""}
    (failed,) = ask(model, "hello")
    assert failed.kind == ErrorKind.LOAD
    with pytest.raises(CallError, match="cannot be loaded"):
        model.open()

"""A checkpoint's fingerprint: it covers what may change an answer, and not what training or tools leave there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
from huggingface_models import load, refused

from rambla_ray.actors.local import weights
from rambla_ray.errors import CallError, ErrorKind

tiny = huggingface_models.tiny
copy = huggingface_models.copy

FILES = {
    "config.json": "{}",
    "model.safetensors": "w",
    "tokenizer.json": "t",
    "chat_template.jinja": "c",
    "1_Pooling/config.json": "p",
    "merges.txt": "m",
    "tokenizer.model": "s",
    "own.py": "x",
    "README.md": "r",
    "training_args.bin": "a",
}
# As versions before this test have stored it with answers.
RECORDED = "d2b871de762174f2c84c392882b6f03d989d9df9099fc10698027b3f3770400e"
RECORDED_WITH_GGUF = "16b61486d32145f6f66f429e4a795a3e6e7b97a4ad2f87fd55f3cbf4f199635f"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    for name, content in FILES.items():
        write(folder / name, content)
    return folder


def write(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)


def test_a_fingerprint_stays_what_it_was_so_that_stored_answers_serve(checkpoint: Path) -> None:
    assert weights.fingerprint(checkpoint) == RECORDED
    (checkpoint / "x.gguf").write_text("g")
    assert weights.fingerprint(checkpoint, "x.gguf") == RECORDED_WITH_GGUF


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
        *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model"),
        *("qwen.tiktoken", "own.py", "chat_templates/default.jinja", "1_Pooling/config.json", "modules.json"),
        *("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        *("model.fp16.safetensors", "pytorch_model.bin", "x.gguf", "2_Dense/model.safetensors", "training_args.bin"),
    ],
)
@pytest.mark.parametrize("content", ["another", None])
def test_what_may_change_an_answer_changes_it(checkpoint: Path, name: str, content: str | None) -> None:
    write(checkpoint / name, "one")
    before = weights.fingerprint(checkpoint)
    if content is None:
        (checkpoint / name).unlink()
    else:
        (checkpoint / name).write_text(content)
    assert weights.fingerprint(checkpoint) != before


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "LICENSE", "model.onnx", "logs/events.out.tfevents.1", "slurm-1.log", "loss.png"),
        *(".git/config", ".git/x.json", ".cache/huggingface/download/config.json", ".gitattributes"),
        *(".ipynb_checkpoints/own.py", "optimizer.pt", "optimizer.bin", "optimizer_1.bin", "scheduler.pt"),
        *("scaler.pt", "sampler.bin", "rng_state.pth", "random_states_0.pkl", "trainer_state.json"),
        *("checkpoint-500/model.safetensors", "checkpoint-500/config.json", "global_step500/mp_rank_00_states.pt"),
    ],
)
def test_what_changes_no_answer_does_not(checkpoint: Path, name: str) -> None:
    write(checkpoint / name, "left")
    assert weights.fingerprint(checkpoint) == RECORDED


def test_an_earlier_checkpoint_of_a_training_counts_when_it_is_the_one_that_is_loaded(checkpoint: Path) -> None:
    write(checkpoint / "checkpoint-500/model.safetensors", "w")
    write(checkpoint / "checkpoint-600/model.safetensors", "w")
    first, second = (weights.fingerprint(checkpoint, subfolder=f"checkpoint-{step}") for step in (500, 600))
    assert len({first, second, RECORDED}) == 3
    write(checkpoint / "checkpoint-600/model.safetensors", "other")
    assert weights.fingerprint(checkpoint, subfolder="checkpoint-500") == first
    assert weights.fingerprint(checkpoint, subfolder="checkpoint-600") != second


def behind_links(folder: Path) -> Path:
    """The same checkpoint as the hub's cache holds it: links to files, here also to a folder and back."""
    linked = folder.parent / "linked"
    linked.mkdir()
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path, target_is_directory=path.is_dir())
    (linked / "1_Pooling").unlink()
    (folder.parent / "pooling").mkdir()
    (folder / "1_Pooling/config.json").rename(folder.parent / "pooling/config.json")
    (linked / "1_Pooling").symlink_to(folder.parent / "pooling", target_is_directory=True)
    (linked / "back").symlink_to(linked, target_is_directory=True)
    return linked


def renamed(folder: Path) -> Path:
    return folder.rename(folder.parent / "elsewhere")


def link_to(folder: Path) -> Path:
    (folder.parent / "link").symlink_to(folder, target_is_directory=True)
    return folder.parent / "link"


@pytest.mark.parametrize("moved", [renamed, link_to, behind_links])
def test_where_a_checkpoint_lies_changes_nothing(checkpoint: Path, moved: Callable[[Path], Path]) -> None:
    assert weights.fingerprint(moved(checkpoint)) == RECORDED


# An adapter


def add_adapter(folder: Path, **config: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("config", ["[]", "{", "{}", '{"base_model_name_or_path": "org/base"}'])
def test_full_weights_beside_an_adapter_are_never_loaded_alone(copy: Path, config: str) -> None:
    add_adapter(copy)
    (copy / "adapter_config.json").write_text(config)
    reason = (
        f"{copy} cannot be loaded: it holds full weights and an adapter (adapter_config.json); where the adapter is "
        f"for these weights, give params.adapter: {copy}, too, else move it to a folder of its own"
    )
    assert refused(copy) == f"params.model_name: {reason}"
    with pytest.raises(CallError) as caught:
        load(copy)
    assert (caught.value.kind, caught.value.message) == (ErrorKind.LOAD, reason)


def test_an_adapter_in_a_folder_of_its_own_is_none_of_the_checkpoints(copy: Path, tiny: Path) -> None:
    (copy / "checkpoint-5").mkdir()
    add_adapter(copy / "checkpoint-5")
    assert load(copy).identity() == load(tiny).identity()


# The same weights in several forms


def tensor_file(file: Path, size: int) -> None:
    """A file of one tensor of so many numbers, of which it has just the description."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("files", "index", "loaded"),
    [
        ({"model.safetensors": 10}, [], 40),
        ({"model.safetensors": 10, "consolidated.safetensors": 10}, [], 40),
        ({"model.safetensors": 10, "model.fp16.safetensors": 10, "adapter.safetensors": 1}, [], 40),
        ({"m-1.safetensors": 6, "m-2.safetensors": 4, "consolidated.safetensors": 10}, ["m-1", "m-2"], 40),
        ({"model.safetensors": 10, "m-1.safetensors": 6, "m-2.safetensors": 4}, ["m-1", "m-2"], 40),
        ({"odd.safetensors": 10}, [], 40),
        ({}, [], None),
    ],
)
def test_memory_is_asked_for_the_weights_that_are_loaded_and_no_others(
    tmp_path: Path, files: dict[str, int], index: list[str], loaded: int | None
) -> None:
    for name, size in files.items():
        tensor_file(tmp_path / name, size)
    if index:
        shards = {f"w{number}": f"{name}.safetensors" for number, name in enumerate(index)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert weights.loaded_bytes(tmp_path, "float32") == loaded


@pytest.mark.parametrize(
    ("name", "holds"), [("pytorch_model.bin", True), ("model.gguf", True), ("optimizer.pt", False), ("x.txt", False)]
)
def test_the_state_of_a_training_is_no_weights(tmp_path: Path, name: str, holds: bool) -> None:
    (tmp_path / name).touch()
    assert weights.has_weights(tmp_path) == holds

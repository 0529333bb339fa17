"""A LoRA adapter on its base: the answers of the merged checkpoint, what it is known by, and what is refused."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_models
import lora
import pytest
import tiny_llama
from huggingface_models import NEW, PROMPTS, edit, load, refused, texts
from safetensors.torch import load_file, save_file

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request

tiny = huggingface_models.tiny

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "heads": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "ranks": {"rank_pattern": {"q_proj": 8}},
}


@pytest.fixture(scope="module")
def adapters(tiny: Path) -> dict[str, Path]:
    """Adapters by kind. Beside each lies what it is merged into its base: NAME-merged."""
    return {
        kind: lora.train(tiny, tiny.parent / kind, seed, tiny.parent / f"{kind}-merged", **config)
        for seed, (kind, config) in enumerate(KINDS.items())
    }


@pytest.fixture
def adapter(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter in a folder of this test, to be changed."""
    return shutil.copytree(adapters["plain"], tmp_path / "adapter")


def fault(folder: Path, **params: Any) -> tuple[ErrorKind, str]:
    with pytest.raises(CallError) as caught:
        load(folder, **params)
    return caught.value.kind, caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_answers_as_the_checkpoint_that_it_is_merged_into(
    adapters: dict[str, Path], tiny: Path, kind: str
) -> None:
    merged = texts(load(f"{adapters[kind]}-merged"), *PROMPTS)
    assert texts(load(adapters[kind]), *PROMPTS) == merged
    assert texts(load(tiny, adapter=str(adapters[kind])), *PROMPTS) == merged
    assert merged != texts(load(tiny), *PROMPTS)


def test_an_adapter_in_another_place_on_a_base_in_another_is_the_same_model(
    adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    known = load(adapter).identity()
    assert load(tiny, adapter=str(adapter)).identity() == known
    base, moved = shutil.copytree(tiny, tmp_path / "base"), adapter.rename(tmp_path / "moved")
    edit(moved / "adapter_config.json", base_model_name_or_path=str(base))
    assert load(moved).identity() == known
    assert {**known, "adapter": None} == {**load(tiny).identity(), "adapter": None}


def retrained(base: Path, adapter: Path) -> None:
    lora.train(base, adapter, seed=9)


def other_scale(base: Path, adapter: Path) -> None:
    edit(adapter / "adapter_config.json", lora_alpha=1)


def other_base(base: Path, adapter: Path) -> None:
    tiny_llama.build(base, initializer_range=0.4)


def other_template(base: Path, adapter: Path) -> None:
    shutil.copy(base / "tokenizer.json", adapter)
    shutil.copy(base / "tokenizer_config.json", adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[-1].content }}!")


@pytest.mark.parametrize("change", [retrained, other_scale, other_base, other_template])
def test_whatever_changes_an_answer_makes_another_model(
    adapter: Path, tiny: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    base = shutil.copytree(tiny, tmp_path / "base")
    before = load(base, adapter=str(adapter)).identity()
    change(base, adapter)
    assert load(base, adapter=str(adapter)).identity() != before


def test_the_tokenizer_beside_an_adapter_goes_before_that_of_the_base(adapter: Path, tiny: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[-1].content }} Really?")
    model = load(adapter, is_finetuned=True)
    (answer,) = huggingface_models.answer(model, Request("Is it?"))
    assert answer.prompt_tokens == len("Is it? Really?")


@pytest.mark.parametrize("written", ["base", "../base", "from here"])
def test_a_base_is_looked_for_from_the_adapter_on_and_from_here(
    adapter: Path, tiny: Path, tmp_path: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written == "from here":
        monkeypatch.chdir(tmp_path)
    place = adapter / written if written == "base" else tmp_path / Path(written).name
    shutil.copytree(tiny, place)
    edit(adapter / "adapter_config.json", base_model_name_or_path=written)
    assert HuggingFaceParams(model_name=str(adapter)).origin.base in (str(place), str(adapter / written), written)
    assert load(adapter).identity()["weights"] == load(tiny).identity()["weights"]


@pytest.mark.parametrize("base", ["/no/such/base", "a/b/c", None])
def test_a_base_that_is_not_there_is_named_with_the_way_out(adapter: Path, base: str | None) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    reason = f"an adapter of {base}, and there is no such folder" if base else "an adapter that names no base"
    message = f"{adapter} holds {reason}; give params.model_name: <its base> and params.adapter: {adapter}"
    assert refused(adapter) == f"params.model_name: {message}"
    assert fault(adapter) == (ErrorKind.LOAD, message)


def test_a_base_on_a_hub_that_does_not_answer_is_named_with_the_way_out(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    _, message = fault(adapter, local_files_only=True)
    assert f"its base org/base, give params.model_name: <its base> and params.adapter: {adapter}: " in message


def an_adapter_itself(adapter: Path, tiny: Path) -> None:
    shutil.copytree(adapter, adapter.parent / "other")
    edit(adapter / "adapter_config.json", base_model_name_or_path="../other")


def another_kind(adapter: Path, tiny: Path) -> None:
    edit(adapter / "adapter_config.json", peft_type="PROMPT_TUNING")


def classifying(adapter: Path, tiny: Path) -> None:
    edit(adapter / "adapter_config.json", task_type="SEQ_CLS")


def without_weights(adapter: Path, tiny: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def with_damaged_config(adapter: Path, tiny: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")


def with_a_pipe(adapter: Path, tiny: Path) -> None:
    without_weights(adapter, tiny)
    os.mkfifo(adapter / "adapter_model.safetensors")


def beside_full_weights(adapter: Path, tiny: Path) -> None:
    shutil.copytree(tiny, adapter, dirs_exist_ok=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (an_adapter_itself, "is an adapter itself; merge that one first"),
        (another_kind, "holds an adapter of kind PROMPT_TUNING; only LORA can be used here"),
        (classifying, "holds an adapter for SEQ_CLS, not for a causal language model"),
        (without_weights, "holds an adapter without weights: there is no adapter_model.safetensors"),
        (with_damaged_config, "its adapter_config.json is damaged: it is not an object"),
        (with_a_pipe, "adapter_model.safetensors is a pipe, not a file"),
        (beside_full_weights, "holds full weights and an adapter (adapter_config.json)"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused_before_a_call(
    adapter: Path, tiny: Path, change: Callable[[Path, Path], None], reason: str
) -> None:
    change(adapter, tiny)
    assert reason in refused(adapter)
    kind, message = fault(adapter)
    assert (kind, reason in message, "\n" in message) == (ErrorKind.LOAD, True, False)


def test_an_adapter_beside_its_base_is_used_where_both_are_given(
    adapters: dict[str, Path], adapter: Path, tiny: Path
) -> None:
    beside_full_weights(adapter, tiny)
    expected = texts(load(adapters["plain"]), *PROMPTS)
    assert texts(load(adapter, adapter=str(adapter)), *PROMPTS) == expected
    assert "holds an adapter of its own" in refused(adapter, adapter=str(adapters["dora"]))


def broken(adapter: Path) -> None:
    os.truncate(adapter / "adapter_model.safetensors", 99)


def of_another_shape(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: weight[:, :3].contiguous() for name, weight in load_file(file).items()}, file)


def incomplete(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file(dict(sorted(load_file(file).items())[1:]), file)


def of_deeper_base(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({**weights, **{name.replace("layers.1", "layers.7"): weights[name].clone() for name in weights}}, file)


def for_other_modules(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", target_modules=["c_attn"])


def not_a_number(adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (broken, "deserializing header"),
        (of_another_shape, "has shape"),
        (incomplete, "lacks 1 weights"),
        (of_deeper_base, "is for another base: it has"),
        (for_other_modules, "c_attn"),
        (not_a_number, "NaN"),
    ],
)
def test_weights_that_do_not_fit_are_an_error_of_loading_in_one_line(
    adapter: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(adapter)
    kind, message = fault(adapter)
    assert kind == ErrorKind.LOAD
    assert message.startswith(f"the adapter {adapter} ")
    assert reason in message
    assert "\n" not in message


def test_tokens_that_training_added_come_with_their_embeddings_or_are_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokenizer.add_tokens(["<new>", "<newer>"])
    wide = tmp_path / "wide"
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype="float32")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(wide)
    tokenizer.save_pretrained(wide)
    adapter = lora.train(
        wide, tmp_path / "adapter", 3, tmp_path / "merged", modules_to_save=["embed_tokens", "lm_head"]
    )
    tokenizer.save_pretrained(adapter)
    asked = [*PROMPTS, "Is <new> it?"]
    assert texts(load(tiny, adapter=str(adapter)), *asked) == texts(load(tmp_path / "merged"), *asked)
    plain = lora.train(tiny, tmp_path / "plain")
    tokenizer.save_pretrained(plain)
    assert "and the adapter brings none" in fault(plain)[1]


# Several on one base


def test_adapters_on_one_base_answer_as_each_alone(adapters: dict[str, Path], tiny: Path) -> None:
    given = {"loading_params": {"dtype": "float32"}, "generation_config": {"max_new_tokens": NEW}}
    params = HuggingFaceParams(model_name=str(tiny), adapters={k: str(v) for k, v in adapters.items()}, **given)
    models = HuggingFaceLLM.several(params.variants, Pool(batch_size=4), None)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(model.generate(Request(text)) for text in PROMPTS for model in models.values()))

    for _ in range(2):
        answers = [response.text for response in asyncio.run(asyncio.wait_for(all_at_once(), 60))]
        for number, (kind, model) in enumerate(models.items()):
            alone = load(tiny, adapter=str(adapters[kind]))
            assert answers[number :: len(models)] == texts(alone, *PROMPTS)
            assert model.identity() == alone.identity()


def test_params_name_one_adapter_or_several() -> None:
    with pytest.raises(ValueError, match="adapter and adapters exclude each other"):
        HuggingFaceParams(model_name="m", adapter="a", adapters={"b": "b"})
    with pytest.raises(ValueError, match="cannot answer for several adapters"):
        HuggingFaceParams(model_name="m", adapters={"b": "b"}, backend="transformers_continuous")
    stored = HuggingFaceParams(model_name="m").model_dump(mode="json")
    assert not {"adapter", "adapters"} & stored.keys()

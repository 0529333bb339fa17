"""Faults that real checkpoints have: special tokens beyond the embeddings or given as words, and broken weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
from huggingface_models import NEW, answer, ask, edit, load, texts
from safetensors.torch import load_file, save_file

from rambla_ray.actors.local.job import NOT_A_NUMBER
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Message, Request

copy = huggingface_models.copy
tiny = huggingface_models.tiny

PROMPTS = ("Is it?", "Why not, then, if it is not?", "b")
BEYOND = 9999
END, COMMA = "</s>", ","


def generation(**options: Any) -> dict[str, Any]:
    return {"generation_config": {"max_new_tokens": NEW, **options}}


def in_file(folder: Path, name: str, **changes: Any) -> None:
    (folder / name).touch()
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text() or "{}"), **changes}))


def without(folder: Path, name: str, *keys: str) -> None:
    members = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({key: value for key, value in members.items() if key not in keys}))


@pytest.mark.parametrize("pad", [BEYOND, 258, -1])
@pytest.mark.parametrize("place", ["config.json", "generation_config.json", "params"])
def test_a_pad_token_that_the_model_does_not_know_changes_no_answer(
    tiny: Path, copy: Path, pad: int, place: str
) -> None:
    if place != "params":
        in_file(copy, place, pad_token_id=pad)
    params = generation(pad_token_id=pad) if place == "params" else {}
    assert texts(load(copy, **params), *PROMPTS) == texts(load(tiny), *PROMPTS)


def test_a_pad_token_that_the_tokenizer_adds_changes_no_answer(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer_config.json", pad_token="<pad>")
    assert texts(load(copy), *PROMPTS) == texts(load(tiny), *PROMPTS)


def test_a_prompt_with_a_token_beyond_the_embeddings_fails_alone(tiny: Path, copy: Path) -> None:
    edit(copy / "tokenizer_config.json", extra_special_tokens=["<extra>"])
    first, odd, last = ask(load(copy), PROMPTS[0], "Is <extra> in?", PROMPTS[1])
    assert [first.text, last.text] == texts(load(tiny), *PROMPTS[:2])
    assert isinstance(odd, CallError)
    assert odd.kind == ErrorKind.BAD_REQUEST
    assert odd.message == "it holds token 258 ('<extra>') of its tokenizer, and the model knows only the first 258"


@pytest.mark.parametrize("temperature", [0, 0.0])
def test_sampling_at_temperature_0_is_greedy(tiny: Path, temperature: float) -> None:
    sampled = load(tiny, **generation(do_sample=True, temperature=temperature, top_k=3))
    greedy = load(tiny)
    assert texts(sampled, *PROMPTS) == texts(greedy, *PROMPTS)
    assert sampled.identity() == greedy.identity()


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "temperature": -1.0, "top_p": 7.0, "top_k": -3},
    ],
)
def test_how_a_checkpoint_would_sample_by_itself_does_not_matter(tiny: Path, copy: Path, own: dict[str, Any]) -> None:
    in_file(copy, "generation_config.json", **own)
    assert texts(load(copy), *PROMPTS) == texts(load(tiny), *PROMPTS)


@pytest.mark.parametrize("request_", [Request("a \ud800 b"), Request("", messages=(Message("user", "a \ud800 b"),))])
def test_a_lone_surrogate_fails_its_own_request(tiny: Path, request_: Request) -> None:
    odd, even = answer(load(tiny, is_finetuned=True), request_, Request("Is it?"))
    assert str(odd) == "bad_request: lone surrogate at character 2 of the prompt"
    assert even.finish_reason in ("stop", "length")


@pytest.mark.parametrize("words", [COMMA, [COMMA, END], [END, 46]])
def test_end_tokens_of_params_may_be_words(tiny: Path, words: Any) -> None:
    vocabulary = load(tiny)._tokenizer.get_vocab()
    numbers = [vocabulary.get(word, word) for word in words] if isinstance(words, list) else vocabulary[words]
    by_words, by_numbers = (load(tiny, **generation(eos_token_id=ends)) for ends in (words, numbers))
    assert by_words.identity() == by_numbers.identity()
    assert texts(by_words, *PROMPTS) == texts(by_numbers, *PROMPTS)


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("generation_config.json", {"eos_token_id": COMMA}),
        ("generation_config.json", {"eos_token_id": [COMMA]}),
        ("generation_config.json", {"eos_token": COMMA}),
        ("config.json", {"eos_token_id": COMMA}),
        ("config.json", {"eos_token_id": [COMMA], "pad_token_id": BEYOND}),
        ("config.json", {"eos_token": COMMA}),
    ],
)
def test_end_tokens_of_a_checkpoint_may_be_words(copy: Path, name: str, members: dict[str, Any]) -> None:
    (copy / "generation_config.json").unlink(missing_ok=True)
    without(copy, "config.json", "eos_token_id")
    in_file(copy, name, **members)
    model = load(copy)
    ends = model._generation.eos_token_id
    assert model._tokenizer.convert_ids_to_tokens(ends) in (COMMA, [COMMA])


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"eos_token_id": "<|nope|>"}, "generation_config.eos_token_id: its tokenizer has no token '<|nope|>'"),
        ({"suppress_tokens": [1, "nope"]}, "generation_config.suppress_tokens: its tokenizer has no token 'nope'"),
        ({"forced_eos_token_id": BEYOND}, "generation_config.forced_eos_token_id: 9999 is none of its 258 tokens"),
        ({"bad_words_ids": [[1], [BEYOND]]}, "generation_config.bad_words_ids: 9999 is none of its 258 tokens"),
    ],
)
def test_a_token_that_cannot_be_is_one_line_at_load(tiny: Path, option: dict[str, Any], reason: str) -> None:
    with pytest.raises(CallError, match="load: ") as caught:
        load(tiny, **generation(**option))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [{"eos_token_id": [1, BEYOND]}, {"eos_token_id": BEYOND}, {"bos_token_id": BEYOND}, {"suppress_tokens": [BEYOND]}],
)
def test_a_token_that_never_comes_changes_no_answer(tiny: Path, option: dict[str, Any]) -> None:
    assert texts(load(tiny, **generation(**option)), *PROMPTS) == texts(load(tiny), *PROMPTS)


def test_a_checkpoint_without_pad_and_end_answers_up_to_the_limit(copy: Path) -> None:
    without(copy, "tokenizer_config.json", "eos_token", "pad_token", "bos_token")
    without(copy, "config.json", "eos_token_id", "pad_token_id", "bos_token_id")
    (copy / "generation_config.json").unlink(missing_ok=True)
    responses = ask(load(copy), *PROMPTS)
    assert {(response.finish_reason, response.completion_tokens) for response in responses} == {("length", NEW)}


def test_without_a_limit_of_new_tokens_the_context_is_the_limit(tiny: Path) -> None:
    (response,) = ask(load(tiny, generation_config={"max_new_tokens": None}), "Is it?")
    assert response.prompt_tokens + response.completion_tokens <= huggingface_models.CONTEXT


@pytest.mark.parametrize("content", ["{nope", "[1]"])
def test_a_damaged_generation_config_is_one_line_at_load(copy: Path, content: str) -> None:
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(CallError, match=r"its generation_config\.json is damaged: "):
        load(copy)


@pytest.fixture
def no_number(copy: Path) -> Path:
    """A checkpoint that computes no number for a prompt with a z."""
    weights = load_file(copy / "model.safetensors")
    weights["model.embed_tokens.weight"][load(copy)._tokenizer.get_vocab()["z"]] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("backend", ["transformers", "transformers_continuous"])
def test_a_prompt_of_which_no_number_comes_fails_alone(tiny: Path, no_number: Path, backend: str) -> None:
    model, prompts = load(no_number, backend=backend), PROMPTS[:5]
    first, odd, *others = ask(model, prompts[0], "A zebra?", *prompts[1:])
    assert str(odd) == f"internal: {NOT_A_NUMBER}"
    assert [response.text for response in (first, *others)] == texts(load(tiny), *prompts)
    assert texts(model, *prompts) == texts(load(tiny), *prompts)


def test_where_tokens_are_drawn_in_a_running_batch_it_fails_alone_as_well(no_number: Path) -> None:
    model = load(no_number, backend="transformers_continuous", **generation(do_sample=True))
    first, odd, last = ask(model, PROMPTS[0], "A zebra?", PROMPTS[1])
    assert str(odd) == f"internal: {NOT_A_NUMBER}"
    assert first.completion_tokens == last.completion_tokens == NEW


def test_a_running_batch_without_any_number_fails_prompt_by_prompt(no_number: Path) -> None:
    model = load(no_number, backend="transformers_continuous")
    assert {str(error) for error in ask(model, "zz", "A zebra?", "z")} == {f"internal: {NOT_A_NUMBER}"}
    assert model.usage.requests == 3

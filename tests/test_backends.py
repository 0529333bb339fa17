"""The ways to run a local model: what each honours, that they answer alike, and what they do in trouble."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import tiny_llama
import torch
from huggingface_models import NEW, PROMPTS, answer, ask, load, texts
from transformers import AutoTokenizer

from rambla_ray.actors.base import RunContext
from rambla_ray.actors.local.backends import HONOURED_OPTIONS
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.schema import GenerationOptions, Request

tiny = huggingface_models.tiny

CONTINUOUS = "transformers_continuous"


def alone(tiny: Path, *prompts: str, **options: Any) -> list[str]:
    return tiny_llama.answers_alone(tiny, prompts, NEW, **options)


# Which one


@pytest.mark.parametrize(
    ("chip", "params", "expected"),
    [
        ("cpu", {}, "transformers"),
        ("cuda", {}, "transformers_continuous"),
        ("cuda", {"generation_config": {"repetition_penalty": 1.2}}, "transformers"),
        ("cuda", {"generation_config": {"repetition_penalty": 1.0, "num_beams": 1}}, "transformers_continuous"),
        ("cuda", {"generation_config": {"do_sample": True, "temperature": 0.7}}, "transformers"),
        ("cuda", {"generation_config": {"do_sample": False, "typical_p": 0.9}}, "transformers_continuous"),
        ("cpu", {"backend": "transformers_continuous"}, "transformers_continuous"),
        ("cuda", {"backend": "vllm"}, "vllm"),
    ],
)
def test_auto_goes_by_device_and_options(chip: str, params: dict[str, Any], expected: str) -> None:
    assert HuggingFaceParams(model_name="x", **params).choose_backend(chip)[0] == expected


def test_what_auto_has_chosen_is_said_with_the_reason(tiny: Path) -> None:
    notes: list[str] = []
    load(tiny).attach(RunContext(notes.append))
    load(tiny, backend="transformers").attach(RunContext(notes.append))
    assert notes == ["backend transformers: static batches, the fastest on a CPU"]


def test_draws_that_depend_on_their_neighbours_are_told(tiny: Path) -> None:
    notes: list[str] = []
    given = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.9}
    load(tiny, backend="transformers_continuous", generation_config=given).attach(RunContext(notes.append))
    assert ["depends on its neighbours" in line for line in notes] == [True]


@pytest.mark.parametrize(
    ("backend", "option", "able"),
    [
        ("transformers_continuous", {"repetition_penalty": 1.3}, "transformers"),
        ("transformers_continuous", {"min_new_tokens": 3}, "transformers"),
        ("transformers_continuous", {"num_beams": 2}, "transformers"),
        ("transformers_continuous", {"do_sample": True, "min_p": 0.1}, "transformers"),
        ("vllm", {"no_repeat_ngram_size": 3}, "transformers"),
        ("vllm", {"num_beams": 4}, "transformers"),
        ("vllm", {"do_sample": True, "typical_p": 0.9}, "transformers"),
    ],
)
def test_an_option_that_a_backend_cannot_honour_is_refused_with_one_that_can(
    backend: Any, option: dict[str, Any], able: str
) -> None:
    params = HuggingFaceParams(model_name="x", backend=backend, generation_config={"max_new_tokens": 5, **option})
    name = list(option)[-1]
    with pytest.raises(UserError, match=rf"generation_config\.{name}: backend {backend} cannot honour it; {able} can"):
        params.resolved()
    params.model_copy(update={"backend": able}).resolved()


@pytest.mark.parametrize("option", [{"repetition_penalty": 1.3}, {"min_new_tokens": 3}, {"num_beams": 1}])
def test_what_a_backend_honours_is_not_refused(option: dict[str, Any]) -> None:
    HuggingFaceParams(model_name="x", backend="vllm", generation_config=option).resolved()


def test_loading_params_that_vllm_does_not_take_are_refused() -> None:
    params = HuggingFaceParams(model_name="x", backend="vllm", loading_params={"gguf_file": "x.gguf"})
    with pytest.raises(UserError, match="gguf_file: backend vllm does not take it"):
        params.resolved()


def test_the_backend_is_part_of_what_may_change_an_answer(tiny: Path) -> None:
    static, auto, continuous = (
        load(tiny, backend=backend).identity() for backend in ("transformers", "auto", "transformers_continuous")
    )
    assert static == auto
    assert continuous == {**static, "backend": "transformers_continuous"}


# The same answers


def test_each_prompt_gets_the_answer_it_gets_alone(tiny: Path) -> None:
    model = load(tiny, backend=CONTINUOUS)
    expected = alone(tiny, *PROMPTS)
    assert texts(model, *PROMPTS) == expected
    assert texts(model, *reversed(PROMPTS)) == expected[::-1]  # in another event loop
    assert model.usage.requests == 2 * len(PROMPTS)
    assert model.usage.completion_tokens == 2 * NEW * len(PROMPTS)
    assert model.usage.busy_s > 0


@pytest.mark.parametrize("option", [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}])
def test_what_looks_at_a_rows_past_does_not_see_its_padding(tiny: Path, option: dict[str, Any]) -> None:
    plain = alone(tiny, *PROMPTS)
    expected = alone(tiny, *PROMPTS, **option)
    assert expected != plain
    model = load(tiny, generation_config={"max_new_tokens": NEW, "pad_token_id": 100, **option})
    assert texts(model, *PROMPTS) == expected


def test_an_end_token_ends_an_answer(tiny: Path) -> None:
    (whole,) = ask(load(tiny), PROMPTS[0])
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    ends = tokenizer(whole.text[1], add_special_tokens=False).input_ids
    given = {"max_new_tokens": NEW, "eos_token_id": [1, *ends]}
    (static,) = ask(load(tiny, generation_config=given), PROMPTS[0])
    (response,) = ask(load(tiny, backend=CONTINUOUS, generation_config=given), PROMPTS[0])
    assert (response.text, response.finish_reason, response.completion_tokens) == (
        static.text,
        "stop",
        static.completion_tokens,
    )
    assert static.completion_tokens < NEW


@pytest.mark.parametrize("emits", [False, True])
def test_an_answer_ends_before_a_stop_text_and_comes_in_pieces(tiny: Path, emits: bool) -> None:
    whole, pieces = alone(tiny, PROMPTS[0])[0], []
    stop = whole[2:4]
    model = load(tiny, backend=CONTINUOUS)
    request = Request(PROMPTS[0], options=GenerationOptions(stop=("never there", stop)))
    response = asyncio.run(asyncio.wait_for(model.generate(request, pieces.append if emits else None), 30))
    assert response.text == whole[: whole.index(stop)]
    assert response.finish_reason == "stop"
    assert response.completion_tokens < NEW
    assert "".join(pieces) == (response.text if emits else "")
    assert texts(model, "c") == alone(tiny, "c")  # what was given up leaves no trace


def test_a_request_that_nobody_waits_for_is_given_up(tiny: Path) -> None:
    async def leave() -> tuple[Any, int]:
        model = load(tiny, backend=CONTINUOUS, generation_config={"max_new_tokens": 200, "eos_token_id": 0})
        begun = asyncio.Event()
        task = asyncio.create_task(model.generate(Request("hello"), lambda piece: begun.set()))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0)
        response = await model.generate(Request("c", options=GenerationOptions(max_tokens=3)))
        return response, model.usage.completion_tokens

    response, made = asyncio.run(asyncio.wait_for(leave(), 60))
    assert response.completion_tokens == made == 3


def test_continuous_batching_refuses_a_draw_of_a_requests_own(tiny: Path) -> None:
    model = load(tiny, backend="transformers_continuous")
    drawn, greedy = answer(
        model,
        Request("hello", options=GenerationOptions(temperature=0.7)),
        Request("hello", options=GenerationOptions(temperature=0.0, top_p=0.9)),
    )
    assert drawn.kind == ErrorKind.BAD_REQUEST
    assert greedy.text == alone(tiny, "hello")[0]


def test_a_batch_size_is_the_most_that_an_engine_runs_together(tiny: Path) -> None:
    one, many = (load(tiny, backend="transformers_continuous", batch_size=size) for size in (1, "auto"))
    assert texts(one, *PROMPTS) == texts(many, *PROMPTS) == alone(tiny, *PROMPTS)
    assert one.usage.batches >= NEW * len(PROMPTS) > many.usage.batches


# Trouble in continuous batching


def breaking(model: Any, *steps: int, error: Exception) -> None:
    """Let some of the model's forward passes break; without any named, all."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if not steps or count in steps:
            raise error

    model._model.register_forward_pre_hook(hook)


def test_a_running_batch_that_does_not_fit_is_asked_again_in_a_smaller_one(tiny: Path) -> None:
    model, notes = load(tiny, backend="transformers_continuous"), []
    model.attach(RunContext(notes.append))
    breaking(model, 3, 6, error=torch.OutOfMemoryError("CUDA out of memory."))
    assert texts(model, *PROMPTS) == alone(tiny, *PROMPTS)
    assert model.usage.out_of_memory == 2
    assert notes.count("the running batch did not fit into memory; from now on it has half as much") == 2


def test_a_prompt_that_never_fits_the_running_batch_is_out_of_memory(tiny: Path) -> None:
    model = load(tiny, backend="transformers_continuous")
    breaking(model, error=torch.OutOfMemoryError("CUDA out of memory."))
    assert {result.kind for result in ask(model, "hello", "c")} == {ErrorKind.OUT_OF_MEMORY}


def test_a_running_batch_that_breaks_fails_what_it_held_and_nothing_later(tiny: Path) -> None:
    model = load(tiny, backend="transformers_continuous")
    breaking(model, 2, error=RuntimeError("broken"))
    results = ask(model, "hello", "c")
    assert {result.kind for result in results} == {ErrorKind.INTERNAL}
    assert "broken" in str(results[0])
    assert texts(model, "hello", "c") == alone(tiny, "hello", "c")


def test_every_backend_has_a_line_of_its_own() -> None:
    assert set(HONOURED_OPTIONS) == {"transformers", CONTINUOUS, "vllm"}

"""Local models that think: thoughts are told from answers by tokens, and none is ever scored."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import thinking_families
import tiny_llama
from huggingface_models import answer, load
from thinking_families import FAMILIES, T

from rambla_ray.actors.local.job import Prompt
from rambla_ray.config.task import TaskConfig
from rambla_ray.schema import GenerationOptions, Request, Response, Sample, Step
from rambla_ray.scoring.outcomes import finish

tiny = huggingface_models.tiny
copy = huggingface_models.copy

TASK = TaskConfig.model_validate(
    {
        "dataset": "d",
        "stages": [{"generate": {"role": "target", "template": "{question}"}}],
        "answer": {"choices": ("yes", "no"), "target": "label"},
    }
)
END = 1  # The number of the end token.
OPENS, DISABLED = {"enable_thinking": True}, {"enable_thinking": False}
LONG = {"max_new_tokens": 300}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of a family, given variables for its chat template."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def folder(name: str) -> Path:
        return FAMILIES[name].build(root / name.replace(", ", "_"))

    @cache
    def loaded(name: str, thinking: bool | None = None) -> Any:
        given = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
        return load(folder(name), is_finetuned=True, generation_config=LONG, **given)

    return loaded


def tokens_of(model: Any, text: str) -> list[int]:
    return list(model._tokenizer(text, add_special_tokens=False)["input_ids"])


def said(model: Any, text: str, *, ends: bool = True, **options: Any) -> Response:
    """What becomes of a text that a model generates behind a prompt, with its end token or cut before it."""
    job = model.prepare(Request("Is it so?", options=GenerationOptions(**options)))
    job.set_response(tokens_of(model, text) + [END] * ends, [END])
    return job.response


def scored(response: Response) -> Sample:
    step = {"text": response.text, "finish_reason": response.finish_reason, "details": response.details}
    sample = Sample("m/t/-/1", "1", "m", "t", "", "yes", "yes", {})
    sample.steps.append(Step("generate:response", "target", "m", "", "prompt", **step))
    finish(sample, TASK)
    return sample


def cases(of_prompt: bool | None) -> list[Any]:
    found = []
    for name, family in FAMILIES.items():
        texts = family.texts_behind_open() if of_prompt else family.texts()
        found += [pytest.param(name, *texts[case], id=f"{name}: {case}") for case in texts]
    return found


def check(response: Response, thought: str, text: str, *, ends: bool) -> None:
    sample = scored(response)
    assert (response.text, response.details.reasoning) == (text, thought)
    assert (sample.outcome, sample.answer) == (("scored", "no") if text else ("truncated", ""))
    assert (response.finish_reason == "stop") == (ends and bool(text))
    assert sample.rambla_answer == sample.answer
    counted = response.details.reasoning_tokens
    assert len(thought.replace("\n", "")) <= counted <= response.completion_tokens
    assert bool(counted) == bool(thought)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(("name", "generated", "thought", "text"), cases(of_prompt=False))
def test_a_thought_that_the_model_opens_is_never_scored(
    models: Any, name: str, generated: str, thought: str, text: str, ends: bool
) -> None:
    check(said(models(name), generated, ends=ends), thought, text, ends=ends)
    check(said(models(name, thinking=False), generated, ends=ends), thought, text, ends=ends)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize(("name", "generated", "thought", "text"), cases(of_prompt=True))
def test_a_thought_that_the_chat_template_opens_is_never_scored(
    models: Any, name: str, generated: str, thought: str, text: str, ends: bool
) -> None:
    check(said(models(name, thinking=True), generated, ends=ends), thought, text, ends=ends)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_generated_tokens_are_counted_and_those_of_thoughts_among_them(models: Any, name: str) -> None:
    family = FAMILIES[name]
    response = said(models(name), f"{family.opens}{T}{family.closes}no")
    assert response.completion_tokens == len(tokens_of(models(name), f"{family.opens}{T}{family.closes}no")) + 1
    assert len(T) <= response.details.reasoning_tokens < response.completion_tokens
    cut = said(models(name, thinking=True), T, ends=False)
    assert cut.details.reasoning_tokens == cut.completion_tokens == len(T)


def test_a_thought_and_no_more_is_cut_off_even_if_it_ends_by_itself(models: Any) -> None:
    assert said(models("Qwen, DeepSeek"), f"<think>{T}</think>").finish_reason == "length"
    empty = said(models("Qwen, DeepSeek"), "<think>\n\n</think>\n\n")
    assert (empty.finish_reason, scored(empty).outcome) == ("stop", "empty")


@pytest.mark.parametrize(
    ("generated", "parts"),
    [
        (f"{T}</think>no", (T, "no")),
        (f"no<think>{T}</think>", (T, "no")),
        (f"<think>{T}</think>no<think>or yes", (f"{T}\nor yes", "no")),
        (f"<think>{T}</think>So:<think>Yes.</think>no", (f"{T}\nYes.", "So:\nno")),
        (f"<think>{T}<think>Yes.</think>no", (f"{T}<think>Yes.", "no")),
        (f"<thinking>{T}</thinking>no", (T, "no")),
        (f"<think>{T}</thinking>no", (T, "no")),
    ],
)
def test_marks_in_any_place_are_told_apart(models: Any, generated: str, parts: tuple[str, str]) -> None:
    response = said(models("Qwen, DeepSeek"), generated)
    assert (response.details.reasoning, response.text) == parts


HARMONY = {
    f"<|channel|>commentary<|message|>{T}<|end|><|start|>assistant<|channel|>final<|message|>no<|return|>": (T, "no"),
    f"<|channel|>analysis<|message|>{T}<|end|>": (T, ""),
    "<|message|>no": ("", "no"),
    "<|channel|>final <|constrain|>text<|message|>no": ("", "no"),
    "no": ("", "no"),
    "<|channel|>ana": ("", ""),
}


@pytest.mark.parametrize(("generated", "parts"), HARMONY.items())
def test_of_harmonys_messages_the_final_one_is_the_answer(models: Any, generated: str, parts: tuple[str, str]) -> None:
    response = said(models("gpt-oss"), generated)
    assert (response.details.reasoning, response.text) == parts


# Where a thought begins is seen in the prompt


def prompt_ends_inside(folder: Path, template: str, prompt: str = "Is it so?", **params: Any) -> bool:
    (folder / "chat_template.jinja").write_text(template)
    model = load(folder, is_finetuned=True, generation_config=LONG, **params)
    job = model.prepare(Request(prompt))
    job.set_response(tokens_of(model, "yes"), [])
    assert {job.response.text, job.response.details.reasoning} == {"yes", ""}
    assert model.identity().get("reasoning", {}).get("opened", False) == (not job.response.text)
    return not job.response.text


@pytest.mark.parametrize(
    ("ending", "inside"),
    [
        ("[assistant]<think>", True),
        ("[assistant]<think>\n", True),
        ("[assistant]<think>\nOkay, let me think. ", True),
        ("[assistant]<think>\n\n</think>\n\n", False),
        ("[assistant]<think>\nI have no budget.\n</think>", False),
        ("[assistant]</think>", False),
        ("[assistant]", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("name", ["Qwen, DeepSeek", "spelled"])
def test_only_what_the_template_leaves_open_is_open(tmp_path: Path, name: str, ending: str, inside: bool) -> None:
    folder = FAMILIES[name].build(tmp_path / "model")
    assert prompt_ends_inside(folder, thinking_families.TURNS + ending) == inside
    assert prompt_ends_inside(folder, thinking_families.TURNS + ending, system="Be brief.") == inside


def test_a_mark_in_a_question_opens_nothing(tmp_path: Path) -> None:
    folder = FAMILIES["Qwen, DeepSeek"].build(tmp_path / "model")
    template = f"{thinking_families.TURNS}[assistant]"
    assert not prompt_ends_inside(folder, template, "What does <think> mean?")
    assert not prompt_ends_inside(folder, template, "What is meant by <think>")


@pytest.mark.parametrize("params", [{}, {"is_finetuned": True, "message_formatting_template": "{message}<think>\n"}])
def test_a_prompt_without_chat_template_may_open_a_thought(tiny: Path, params: dict[str, Any]) -> None:
    model = load(tiny, **params)
    request = Request("Is it so?" if params else "Is it so? <think>\n")
    job = model.prepare(request)
    job.set_response(tokens_of(model, "yes"), [])
    assert (job.response.text, job.response.details.reasoning) == ("", "yes")
    assert model.request_identity(request)["reasoning"] == {"opened": True}


def test_what_is_continued_as_it_stands_is_left_as_it_is(models: Any) -> None:
    job = models("Qwen, DeepSeek").prepare(Request("Is it so? <think>", verbatim=True))
    job.set_response(tokens_of(models("Qwen, DeepSeek"), f"{T}</think>no"), [])
    assert (job.response.text, job.response.details.reasoning) == (f"{T}</think>no", "")


# Streams and stop texts


async def streamed(model: Any, text: str, stop: tuple[str, ...] = (), request: Request | None = None) -> Any:
    """The pieces of a text that is generated token by token, and the response."""
    pieces: list[str] = []
    job: Prompt = model.prepare(request or Request("Is it so?", options=GenerationOptions(stop=stop)))
    job.emit, job.done = pieces.append, asyncio.get_running_loop().create_future()
    tokens = tokens_of(model, text)
    made = next((n for n in range(1, len(tokens) + 1) if job.on_token(tokens[:n].copy)), len(tokens))
    job.set_response(tokens[:made] + [END] * (made == len(tokens)), [END])
    await asyncio.sleep(0)  # The pieces come through the loop.
    return pieces, job.response


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stream_has_the_answer_alone(models: Any, name: str) -> None:
    family = FAMILIES[name]
    for model, texts in (
        (models(name), family.texts()),
        (models(name, thinking=True), family.texts_behind_open()),
    ):
        for case, (generated, thought, text) in texts.items():
            pieces, response = asyncio.run(streamed(model, generated))
            assert "".join(pieces) == response.text == text, case
            assert response.details.reasoning == thought
    pieces, _ = asyncio.run(streamed(models(name), "No, p < 0.05 [1]: it is not so."))
    assert len(pieces) > 10


@pytest.mark.parametrize("name", FAMILIES)
def test_a_stop_text_in_a_thought_ends_nothing(models: Any, name: str) -> None:
    family = FAMILIES[name]
    generated = f"{family.opens}{T} Stop.{family.closes}no. Stop. Yes."
    pieces, response = asyncio.run(streamed(models(name), generated, stop=(" Stop.",)))
    assert "".join(pieces) == response.text == "no."
    assert (response.finish_reason, response.details.reasoning) == ("stop", f"{T} Stop.")


def test_what_was_streamed_stays_in_the_answer_where_a_later_mark_makes_a_thought_of_it(models: Any) -> None:
    pieces, response = asyncio.run(streamed(models("Qwen, DeepSeek"), "Well, yes.</think>no, not so"))
    assert "".join(pieces) == response.text == "Well, yes.\nno, not so"
    assert response.details.reasoning == "Well, yes."
    pieces, response = asyncio.run(streamed(models("Qwen, DeepSeek"), "Well, yes.</think>"))
    assert "".join(pieces) == response.text == "Well, yes."


# Identity


def test_a_model_that_marks_no_thoughts_is_known_as_before(tiny: Path) -> None:
    for params in ({}, {"is_finetuned": True}, {"is_finetuned": True, "message_formatting_template": "[u]{message}"}):
        model = load(tiny, **params)
        assert not {"reasoning", "chat_template_kwargs", "system"} & {
            *model.identity(),
            *model.request_identity(Request("Is it so?")),
        }


OLD = {name: f"{family.opens}{T}{family.closes}no" for name, family in FAMILIES.items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_an_older_answer_with_a_thought_in_its_text_is_asked_anew_or_read_without_it(models: Any, name: str) -> None:
    model = models(name)
    if "reasoning" in model.identity():  # The request_ids are others.
        return
    for ending, generated in (("stop", OLD[name]), ("length", f"{FAMILIES[name].opens}{T}")):
        text = model._tokenizer.decode(tokens_of(model, generated), skip_special_tokens=True)
        sample = scored(Response(text, finish_reason=ending))
        assert sample.answer == ("no" if ending == "stop" else "")
    assert models(name, thinking=True).identity()["reasoning"] == {"opened": True}


def test_only_marks_that_the_text_itself_shows_leave_the_identity_as_it_is(models: Any) -> None:
    known = {name: models(name).identity().get("reasoning") for name in FAMILIES}
    assert {name for name, marks in known.items() if marks is None} == {"MedGemma", "spelled"}
    assert known["Mistral"] == {"marks": ["[THINK]", "[/THINK]"]}


# The whole way through an engine: weights that say one text


SAYS = ["The", "answer", "is", "yes", ".", "</think>", "no"]
ENGINES = ["transformers", "transformers_continuous"]


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize(
    ("words", "new", "expected"),
    [
        (["<think>", *SAYS], 20, ("no", "stop", "The answer is yes .")),
        (["<think>", *SAYS], 5, ("", "length", "The answer is yes")),
        (["<think>", *SAYS[:5]], 20, ("", "length", "The answer is yes .")),
    ],
)
def test_an_engine_answers_without_the_thoughts(
    tmp_path: Path, backend: str, words: list[str], new: int, expected: tuple[str, str, str]
) -> None:
    template = "{{ messages[0].content }} [assistant]"
    folder = tiny_llama.build_one_text(tmp_path / "model", words, template, plain=["<think>", "</think>"])
    model = load(folder, is_finetuned=True, backend=backend, generation_config={"max_new_tokens": new})
    (response,) = answer(model, Request("Is it so?"))
    assert (response.text, response.finish_reason, response.details.reasoning) == expected
    assert response.completion_tokens == min(len(words) + 1, new)
    assert response.details.reasoning_tokens == min(5, new - 1)
    (stopped,) = answer(model, Request("Is it so?", options=GenerationOptions(stop=("answer",))))
    assert (stopped.text, stopped.details.reasoning) == (expected[0], expected[2])

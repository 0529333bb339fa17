"""Local models, against a tiny random Llama that is written for the test: float32 on the CPU."""

from __future__ import annotations

import asyncio
import weakref
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
import torch
from huggingface_models import CONTEXT, NEW, PROMPTS, ask, decoded, edit, load, texts
from pydantic import ValidationError
from transformers import AutoTokenizer

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local.job import Job
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.schema import Request, Response

alone = huggingface_models.alone
copy = huggingface_models.copy
tiny = huggingface_models.tiny


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_prompt_gets_the_answer_it_gets_alone_whatever_the_batch_size(
    tiny: Path, alone: dict[str, list[int]], batch_size: int
) -> None:
    responses = ask(load(tiny, batch_size=batch_size), *PROMPTS)
    assert [response.text for response in responses] == [decoded(tiny, alone[prompt]) for prompt in PROMPTS]
    assert len({response.text for response in responses}) == len(PROMPTS)


def test_tokens_are_counted_without_padding(tiny: Path) -> None:
    responses = ask(load(tiny), *PROMPTS)
    assert [response.prompt_tokens for response in responses] == [1 + len(prompt.encode()) for prompt in PROMPTS]
    assert {(response.completion_tokens, response.finish_reason) for response in responses} == {(NEW, "length")}


def test_a_model_answers_on_in_a_later_event_loop(tiny: Path) -> None:
    model = load(tiny)
    assert texts(model, *PROMPTS) == texts(model, *PROMPTS)


def test_is_finetuned_applies_the_chat_template_with_a_generation_prompt(tiny: Path) -> None:
    message = [{"role": "user", "content": "Is it so?"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    tokens = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert tokenizer.decode(tokens) == "<s>[user]Is it so?[assistant]"
    model = load(tiny, is_finetuned=True)
    assert model.prepare(Request("Is it so?\n")).tokens == tokens
    assert ask(model, "Is it so?\n")[0].prompt_tokens == len(tokens)


def test_message_formatting_template_goes_before_the_chat_template(tiny: Path) -> None:
    model = load(tiny, is_finetuned=True, message_formatting_template="Q: {message}\nA:")
    assert (
        model.prepare(Request("Is {it} so?")).tokens
        == AutoTokenizer.from_pretrained(tiny)("Q: Is {it} so?\nA:").input_ids
    )


@pytest.mark.parametrize(
    "template", ["Q:", "{question}", "{message} {context}", "{message", "{message} Again: {message}", "{message:.40}"]
)
def test_a_message_formatting_template_without_just_the_message_is_refused(template: str) -> None:
    with pytest.raises(ValidationError, match="message_formatting_template"):
        HuggingFaceParams(model_name="x", message_formatting_template=template)


# Lengths


@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT, 3 * CONTEXT])
def test_a_prompt_that_leaves_no_room_is_too_long_and_harms_no_other(tiny: Path, length: int) -> None:
    model = load(tiny)
    too_long, other = ask(model, "x" * length, "hello")
    assert (too_long.kind, other.completion_tokens) == (ErrorKind.TOO_LONG, NEW)


def test_a_prompt_that_leaves_little_room_is_answered_that_far(tiny: Path) -> None:
    full, other = ask(load(tiny), "x" * (CONTEXT - 4), "hello")
    assert (full.completion_tokens, full.finish_reason) == (3, "length")
    assert other.completion_tokens == NEW


def test_without_max_new_tokens_an_answer_may_fill_the_context(tiny: Path) -> None:
    (response,) = ask(load(tiny, generation_config={}), "x" * 200)
    assert (response.prompt_tokens, response.completion_tokens, response.finish_reason) == (201, 55, "length")


def test_max_length_counts_prompt_and_answer(tiny: Path) -> None:
    (response,) = ask(load(tiny, generation_config={"max_length": 20}), "x" * 9)
    assert (response.prompt_tokens, response.completion_tokens, response.finish_reason) == (10, 10, "length")


# What the checkpoint brings and what the config says


def test_decoding_is_greedy_though_the_checkpoint_says_to_sample(copy: Path, alone: dict[str, list[int]]) -> None:
    edit(copy / "generation_config.json", do_sample=True, temperature=9.0, top_k=0)
    model = load(copy)
    assert texts(model, *PROMPTS) == [decoded(copy, alone[prompt]) for prompt in PROMPTS]
    generation = model.identity()["generation"]
    assert generation["do_sample"] is False
    assert not generation.keys() & {"temperature", "top_k", "top_p"}


def test_sampling_takes_its_options_from_the_config_alone(copy: Path) -> None:
    edit(copy / "generation_config.json", do_sample=True, temperature=9.0, top_k=7, repetition_penalty=2.0)
    given = {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": NEW}
    assert load(copy, generation_config=given).identity()["generation"] == {
        **given,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def test_any_end_token_of_the_checkpoint_ends_an_answer(copy: Path, alone: dict[str, list[int]]) -> None:
    prompt, made = PROMPTS[0], alone[PROMPTS[0]]
    assert made[2] not in made[:2]
    edit(copy / "generation_config.json", eos_token_id=[1, made[2]])
    short, whole = ask(load(copy), prompt, "c")
    assert (short.text, short.finish_reason, short.completion_tokens) == (decoded(copy, made[:2]), "stop", 3)
    assert (whole.text, whole.finish_reason) == (decoded(copy, alone["c"]), "length")


def test_the_end_token_of_the_config_goes_before_the_checkpoints(copy: Path, alone: dict[str, list[int]]) -> None:
    edit(copy / "generation_config.json", eos_token_id=[1, alone[PROMPTS[0]][2]])
    model = load(copy, generation_config={"max_new_tokens": NEW, "eos_token_id": 1})
    assert texts(model, PROMPTS[0]) == [decoded(copy, alone[PROMPTS[0]])]


@pytest.mark.parametrize(
    "option",
    [{"stop_strings": ["e"]}, {"return_dict_in_generate": True}, {"do_sample": True, "num_return_sequences": 2}],
)
def test_a_generation_option_works_or_is_refused_before_any_request(tiny: Path, option: dict[str, Any]) -> None:
    try:
        model = load(tiny, generation_config={"max_new_tokens": NEW, **option})
    except UserError:
        return
    (response,) = ask(model, "hello")
    assert isinstance(response, Response), response


def test_an_unknown_generation_option_is_refused_with_the_nearest_match() -> None:
    params = HuggingFaceParams(model_name="x", generation_config={"max_new_token": 5})
    with pytest.raises(UserError, match=r"'max_new_token'; did you mean 'max_new_tokens'\?"):
        params.resolved()


# Parameters


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_given_under_either_name(tiny: Path, key: str, dtype: str) -> None:
    params = HuggingFaceParams(model_name="x", loading_params={key: dtype})
    assert params.loading_params == {"dtype": dtype}
    assert load(tiny, loading_params={key: dtype}).identity()["loading"] == {"dtype": f"torch.{dtype}"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "cpu", "device_map": "auto"}, "device and device_map exclude each other"),
        ({"loading_params": {"dtype": "auto", "torch_dtype": "auto"}}, "two names of one key"),
        ({"loading_params": {"torch_dtype": "bfloat61"}}, "did you mean 'bfloat16'"),
        ({"loading_params": {"trust_remote_code": True}}, "stands in params"),
        ({"max_new_tokens": 3}, "Extra inputs"),
    ],
)
def test_params_that_contradict_or_do_not_exist_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        HuggingFaceParams(model_name="x", **given)


@pytest.mark.parametrize(
    "given", [{}, {"device": "cpu"}, {"device_map": None}, {"loading_params": {"torch_dtype": "auto"}}]
)
def test_params_survive_the_way_to_an_actor(given: dict[str, Any]) -> None:
    params = HuggingFaceParams(model_name="x", **given)
    assert HuggingFaceParams.model_validate(params.model_dump(mode="json")) == params


def test_a_missing_folder_is_refused_only_where_the_model_runs(tmp_path: Path) -> None:
    params = HuggingFaceParams(model_name=str(tmp_path / "nowhere"))
    params.preflight(same_machine=False)
    with pytest.raises(UserError, match="nowhere"):
        params.preflight(same_machine=True)


def test_a_path_may_start_at_home(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(copy.parent))
    HuggingFaceParams(model_name="~/copy").preflight(same_machine=True)
    assert load("~/copy").identity() == load(copy).identity()


# Trouble while generating


class Buffer:
    """Stands for what a batch holds in the device's memory."""


class Watched(HuggingFaceLLM):
    """A model in static batches, whose `run` gets each batch first."""

    def make_engine(self) -> Any:
        engine: Any = super().make_engine()
        self.run_batch, engine.run = engine.run, self.run
        return engine


class Small(Watched):
    """Its memory holds two requests at most, and none for a prompt of 200 tokens and more."""

    def load(self) -> None:
        super().load()
        self.held: list[weakref.ref[Buffer]] = []
        self.leaked = 0

    def run(self, jobs: list[Job]) -> None:
        self.leaked += sum(buffer() is not None for buffer in self.held)
        buffer = Buffer()
        self.held.append(weakref.ref(buffer))
        if len(jobs) > 2 or len(jobs[0].tokens) >= 200:
            raise torch.OutOfMemoryError("a batch too many")
        self.run_batch(jobs)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny: Path) -> None:
    model, prompts = load(tiny, Small), [prompt for prompt in PROMPTS if len(prompt) < 190]
    assert texts(model, *prompts) == texts(load(tiny), *prompts)
    assert 1 <= model._engine.batch_size <= 2


def test_a_prompt_that_does_not_fit_alone_is_out_of_memory_and_the_others_are_answered(tiny: Path) -> None:
    responses = ask(load(tiny, Small), *PROMPTS)
    failed = [prompt for prompt, response in zip(PROMPTS, responses, strict=True) if isinstance(response, Exception)]
    assert failed == ["d" * 200]
    assert responses[PROMPTS.index("d" * 200)].kind == ErrorKind.OUT_OF_MEMORY


def test_what_a_batch_held_is_free_before_its_halves_run(tiny: Path) -> None:
    model = load(tiny, Small)
    ask(model, *PROMPTS)
    assert len(model.held) > 5
    assert model.leaked == 0


class Fragile(Watched):
    """Breaks on a batch that holds a prompt of 200 tokens and more."""

    def run(self, jobs: list[Job]) -> None:
        if len(jobs[0].tokens) >= 200:
            raise RuntimeError("broken")
        self.run_batch(jobs)


def test_a_batch_that_breaks_fails_its_requests_and_no_later_ones(tiny: Path) -> None:
    model, short = load(tiny, Fragile, batch_size=2), ["a", "b", "c"]
    results = ask(model, "d" * 200, "d" * 100, *short)
    assert [str(result) for result in results[:2]] == ["broken", "broken"]
    assert [result.text for result in results[2:]] == texts(load(tiny), *short) == texts(model, *short)


def test_a_request_whose_caller_has_gone_does_not_hold_up_the_others(tiny: Path) -> None:
    async def leave_and_stay() -> Response:
        leaves, stays = (asyncio.create_task(model.generate(Request(prompt))) for prompt in ("hello", "c"))
        await asyncio.sleep(0)  # both wait for their batch now
        leaves.cancel()
        return await asyncio.wait_for(stays, 5)

    model = load(tiny)
    assert asyncio.run(leave_and_stay()).text == texts(load(tiny), "c")[0]

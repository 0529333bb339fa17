"""Backend vllm on vLLM's own engine, on CPUs: what it answers, how answers end, and what it leaves behind."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_llama
import vllm_models
from huggingface_models import PROMPTS, load
from tiny_lora import add_lora
from vllm_models import CONTEXT, FLOAT32, NEW, Asked, engine_processes, own_names, shared_memory

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.actors.local.params import HuggingFaceParams
from rambla_ray.config.sections import Pool
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Request

__all__ = ["own_names"]  # A fixture.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vllm_models.build_tiny(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def asked(tiny: Path) -> Iterator[Asked]:
    """One engine for most tests; it leaves nothing behind."""
    before = shared_memory(), engine_processes()
    one = Asked(tiny, generation_config={"max_new_tokens": NEW, "min_new_tokens": 3, "top_k": 5})
    assert len(engine_processes()) == len(before[1]) + 2
    assert len(shared_memory()) > len(before[0])
    yield one
    one.close()
    assert (shared_memory(), engine_processes()) == before


def alone(tiny: Path, *prompts: str) -> list[str]:
    return tiny_llama.answers_alone(tiny, prompts, NEW)


def with_options(prompt: str = "hello", **options: Any) -> Request:
    return Request(prompt, options=GenerationOptions(**options))


def test_each_prompt_gets_the_answer_that_transformers_gives_it_alone(asked: Asked, tiny: Path) -> None:
    before = asked.model.measure()
    responses = asked.answers(*map(Request, PROMPTS))
    assert [response.text for response in responses] == alone(tiny, *PROMPTS)
    after = asked.model.measure()
    assert after.requests - before.requests == len(PROMPTS)
    assert after.completion_tokens - before.completion_tokens == NEW * len(PROMPTS)
    assert NEW <= after.batches - before.batches < NEW * len(PROMPTS)
    assert 0 < after.computed_tokens <= after.prompt_tokens
    assert (
        after.weights_bytes == (tiny / "model.safetensors").stat().st_size // 10**4 * 10**4 or after.weights_bytes > 0
    )
    assert after.peak_bytes > 2**28  # That of its own processes, not of this one alone.
    assert after.busy_s > 0


@pytest.mark.parametrize("emits", [False, True])
def test_an_answer_ends_before_a_stop_text_and_comes_in_pieces(asked: Asked, tiny: Path, emits: bool) -> None:
    whole, pieces = alone(tiny, PROMPTS[0])[0], []
    stop = whole[4:6]
    request = with_options(PROMPTS[0], stop=("never there", stop))
    response = asked.run(asked.model.generate(request, pieces.append if emits else None))
    assert response.text == whole[: whole.index(stop)]
    assert (response.finish_reason, response.completion_tokens < NEW) == ("stop", True)
    assert "".join(pieces) == (response.text if emits else "")


def test_a_draw_is_of_its_own_text_and_seed(asked: Asked) -> None:
    request = with_options(temperature=0.9, seed=1)
    one, same, other, neighbour = asked.answers(
        request, request, with_options(temperature=0.9, seed=2), with_options("hullo", temperature=0.9, seed=1)
    )
    (again,) = asked.answers(request)
    assert one.text == same.text == again.text
    assert len({one.text, other.text, neighbour.text}) == 3


def test_a_request_that_nobody_waits_for_leaves_the_engine(asked: Asked) -> None:
    async def leave() -> int:
        begun = asyncio.Event()
        request = with_options(max_tokens=CONTEXT - 20)
        task = asyncio.create_task(asked.model.generate(request, lambda piece: begun.set()))
        await begun.wait()
        running = unfinished(asked)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        while unfinished(asked):
            await asyncio.sleep(0.01)
        return running

    assert asked.run(leave()) == 1


def unfinished(asked: Asked) -> int:
    """How many requests the engine has."""
    return int(asked.model._engine.engine._engine.get_num_unfinished_requests())


@pytest.mark.parametrize("options", [{"temperature": 5.0}, {"temperature": 0.5, "top_p": 0.0}])
def test_a_value_that_vllm_does_not_take_is_a_bad_request(asked: Asked, options: dict[str, Any]) -> None:
    refused, fine = asked.answers(with_options(**options), with_options())
    assert refused.kind == ErrorKind.BAD_REQUEST
    assert next(iter(reversed(options))) in refused.message
    assert fine.completion_tokens == NEW


def test_an_answer_may_be_shorter_than_min_new_tokens_where_the_request_says_so(asked: Asked) -> None:
    (response,) = asked.answers(with_options(max_tokens=1))
    assert (response.completion_tokens, response.finish_reason) == (1, "length")


def test_a_prompt_beyond_the_context_is_too_long(asked: Asked) -> None:
    refused, fine = asked.answers(Request("x" * CONTEXT), Request("x" * (CONTEXT - NEW - 1)))
    assert refused.kind == ErrorKind.TOO_LONG
    assert fine.completion_tokens == NEW


def test_choices_are_as_likely_as_with_transformers(asked: Asked, tiny: Path) -> None:
    requests = [Request(prompt, continuations=("yes", "no", "not at all")) for prompt in PROMPTS]
    plain = load(tiny)
    expected = [asyncio.run(plain.generate(request)) for request in requests]
    for response, other in zip(asked.answers(*requests), expected, strict=True):
        assert response.text == other.text
        assert response.details.choice_logprobs == pytest.approx(other.details.choice_logprobs, abs=1e-3)
        assert (response.prompt_tokens, response.completion_tokens) == (other.prompt_tokens, other.completion_tokens)


def test_choices_that_leave_no_room_for_a_token_behind_them_are_too_long(asked: Asked) -> None:
    fits = "x" * (CONTEXT - len("< y"))  # A token is a byte; BOS is the first.
    fine, refused = asked.answers(*(Request(prompt, continuations=("y", "n")) for prompt in (fits, fits + "x")))
    assert len(fine.details.choice_logprobs) == 2
    assert refused.kind == ErrorKind.TOO_LONG


def test_adapters_answer_as_merged_checkpoints_do_and_the_base_is_loaded_once(tiny: Path, tmp_path: Path) -> None:
    adapters = {name: add_lora(tmp_path / name, tiny, seed=seed) for seed, name in enumerate(("a", "b"), 1)}
    before = engine_processes()
    params = {
        name: HuggingFaceParams(
            model_name=str(tiny),
            adapter=str(folder),
            backend="vllm",
            loading_params=FLOAT32,
            generation_config={"max_new_tokens": NEW},
        ).resolved()
        for name, folder in adapters.items()
    }
    members: Any = HuggingFaceLLM.several(params, Pool(num_cpus=2, num_gpus=0), None)
    try:
        for member in members.values():
            member.open()
        assert len(engine_processes()) == len(before) + 2

        async def all_at_once() -> dict[str, list[str]]:
            asked = {name: [member.generate(Request(each)) for each in PROMPTS] for name, member in members.items()}
            answers = {name: await asyncio.gather(*requests) for name, requests in asked.items()}
            return {name: [response.text for response in responses] for name, responses in answers.items()}

        found = asyncio.run(asyncio.wait_for(all_at_once(), 120))
        for name, folder in adapters.items():
            merged = load(tiny, adapter=str(folder))
            assert found[name] == [asyncio.run(merged.generate(Request(prompt))).text for prompt in PROMPTS]
        assert found["a"] != found["b"]
    finally:
        for member in members.values():
            member.close()
        gc.collect()  # It hung where ZeroMQ's context waited for sockets of the loop that has ended.


def failing(folder: Path, **params: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        Asked(folder, **params)
    assert caught.value.kind == ErrorKind.LOAD
    assert "\n" not in caught.value.message
    return caught.value


def test_an_engine_that_does_not_start_says_vllms_own_cause(tiny: Path) -> None:
    before = shared_memory(), engine_processes()
    error = failing(tiny, engine_args={"gpu_memory_utilization": 1e-6})
    assert "memory" in error.message.lower()
    assert "See root cause above" not in error.message
    assert (shared_memory(), engine_processes()) == before


def test_an_argument_with_a_value_that_vllm_does_not_take_is_one_line(tiny: Path) -> None:
    assert "max_model_len" in failing(tiny, engine_args={"max_model_len": 10**9}).message


def test_engine_arguments_are_those_of_the_vllm_that_is_installed(tiny: Path) -> None:
    params = {"model_name": str(tiny), "backend": "vllm"}
    HuggingFaceParams(**params, engine_args={"max_model_len": 64, "enforce_eager": False}).resolved()
    with pytest.raises(Exception, match="no argument 'max_modellen'; did you mean 'max_model_len'"):
        HuggingFaceParams(**params, engine_args={"max_modellen": 64}).resolved()


def test_a_dead_engine_is_found_without_a_request_and_ends_what_is_asked(tiny: Path, tmp_path: Path) -> None:
    import os
    import signal

    before = engine_processes()
    asked = Asked(tiny, engine_args={"max_model_len": 64})
    try:
        assert asked.model.engine_length == 64
        asked.model.check_health()
        (refused,) = asked.answers(Request("x" * 70))
        assert refused.kind == ErrorKind.TOO_LONG

        async def dies() -> Any:
            begun = asyncio.Event()
            task = asyncio.create_task(
                asked.model.generate(with_options("x", max_tokens=60), lambda piece: begun.set())
            )
            await begun.wait()
            os.kill(max(set(engine_processes()) - set(before)), signal.SIGKILL)
            return (await asyncio.gather(task, return_exceptions=True))[0]

        error = asked.run(dies())
        assert error.kind == ErrorKind.LOAD
        assert error.message.startswith("vllm's engine has died: ")
        with pytest.raises(CallError, match="has died"):
            asked.model.check_health()
    finally:
        asked.close()
    assert engine_processes() == before


def test_greedy_answers_of_a_real_model_beside_transformers(tmp_path: Path, test_data: Path) -> None:
    """In float32, on 40 prompts of PubMedQA; how many differ is printed."""
    folder = vllm_models.build_smollm2(tmp_path / "smollm2")
    items = json.loads((test_data / "pubmedqa/ori_pqal.json").read_text())
    prompts = [f"{item['CONTEXTS'][0][:400]}\n{item['QUESTION']} Answer yes or no." for item in items.values()][:40]
    given = {"generation_config": {"max_new_tokens": 16}, "is_finetuned": True}
    asked = Asked(folder, **given)
    try:
        found = [response.text for response in asked.answers(*map(Request, prompts))]
    finally:
        asked.close()
    plain = load(folder, **given)

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(plain.generate(Request(prompt)) for prompt in prompts))

    expected = [response.text for response in asyncio.run(all_at_once())]
    differing = sum(one != other for one, other in zip(found, expected, strict=True))
    print(f"{differing} of {len(prompts)} greedy answers in float32 differ from those of transformers")
    assert len(set(expected)) > 10
    assert differing <= 2

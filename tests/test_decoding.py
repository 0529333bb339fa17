"""Batches of a local language model: what rows share, draw and stream, against transformers itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import tiny_llama
import torch
from huggingface_models import NEW, answer, ask, load, texts
from transformers import AutoTokenizer, DynamicCache, LlamaForCausalLM

from rambla_ray.actors.local import cache, cpu_attention, prefill
from rambla_ray.actors.local.cache import GROWTH, GrowableLayer
from rambla_ray.actors.local.job import Draw
from rambla_ray.actors.local.prefill import Prefill, group_by_prefix
from rambla_ray.actors.local.sampling import Draws
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import GenerationOptions, Message, Request

CONTEXT = "Aspirin was given to 200 patients; 12 of them bled. "
PROMPTS = [
    *(f"{CONTEXT}{question}" for question in ("Did any bleed?", "Did all?", "Is it safe?", "D")),
    *(f"{'Another abstract. ' * 4}{question}" for question in ("Yes?", "No?")),
    *("short", "s", "x" * 150),
    CONTEXT,
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama.build(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def alone(tiny: Path) -> list[str]:
    return tiny_llama.answers_alone(tiny, PROMPTS, NEW)


def test_rows_that_begin_alike_share_a_prefix_and_every_row_keeps_a_token():
    long, other = list(range(100)), list(range(30)) + [7] * 60
    rows = [[5], other, long, [*long, 1], long, list(range(200, 230))]
    groups = group_by_prefix(rows)
    for row, number in zip(rows, groups.prefix_of, strict=True):
        prefix = groups.prefixes[number]
        assert row[: len(prefix)] == prefix
        assert len(prefix) < len(row)
    assert groups.prefix_of[2] == groups.prefix_of[3] == groups.prefix_of[4]
    assert len(groups.prefixes) == 4


@pytest.mark.parametrize("whole", [True, False])
def test_a_cache_with_room_holds_what_one_that_is_copied_holds(whole: bool):
    parts = [torch.randn(3, 2, tokens, 4) for tokens in (5, 2, 1, GROWTH, 1, 1)]
    prompt, *later = parts
    layer = GrowableLayer(prompt, rows=3, tokens=6, headroom=3, whole=whole)
    layer.put(torch.tensor([2, 0, 1]), prompt, -prompt)
    expected = torch.nn.functional.pad(prompt[[1, 2, 0]], (0, 0, 1, 0))
    for part in later:
        seen, offset = layer.get_mask_sizes(part.shape[2])
        keys, values = layer.update(part, -part)
        expected = torch.cat([expected, part], dim=2)
        held = expected.shape[2]
        assert (layer.get_seq_length(), keys.shape[2], offset) == (held, seen, 0)
        assert keys.shape[2] == held or (whole and not keys[:, :, held:].any())
        assert torch.equal(keys[:, :, :held], expected)
        assert torch.equal(values[:, :, :held], -expected)


@pytest.mark.parametrize("queries", [1, 5, 2 * cpu_attention.QUERIES + 3])
@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_in_parts_is_that_of_pytorch(queries: int, before: int, masked: bool):
    keys = before + queries
    query, key, value = (torch.randn(3, heads, tokens, 8) for heads, tokens in ((6, queries), (2, keys), (2, keys)))
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(before).repeat(3, 1, 1, 1)
    mask = None
    if masked:
        padding = torch.tensor([[0] * count + [1] * (keys - count) for count in (0, min(2, keys - 1), 0)])
        mask = cpu_attention.additive_mask(
            3, queries, keys, before, dtype=torch.float32, attention_mask=padding.bool()
        )
        seen &= padding.bool()[:, None, None]
    got, _ = cpu_attention.grouped_attention(None, query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    real = seen.any(-1)[:, 0]  # padding sees nothing
    assert torch.isfinite(got).all()
    assert torch.allclose(got[real], expected.transpose(1, 2)[real], atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_that_is_not_causal_sees_what_comes_later(masked: bool):
    query, key = torch.randn(1, 2, 70, 4), torch.randn(1, 2, 70, 4)
    mask = torch.zeros(1, 1, 70, 70).index_fill(3, torch.tensor([0, 1]), torch.finfo().min) if masked else None
    got, _ = cpu_attention.grouped_attention(None, query, key, key, mask, is_causal=False, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, key, attn_mask=mask, scale=0.3)
    assert torch.allclose(got, expected.transpose(1, 2), atol=1e-5)


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("prompts", "each"), [(1, 4), (3, 4), (4, 2), (9, 1)])
@pytest.mark.usefixtures("four_threads")
def test_parts_of_a_batch_share_out_the_threads(
    tiny: Path, alone: list[str], prompts: int, each: int, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    forward = prefill.forward
    monkeypatch.setattr(prefill, "forward", lambda *args: (seen.append(torch.get_num_threads()), forward(*args)))
    model = LlamaForCausalLM.from_pretrained(tiny).eval()
    rows = [list(range(10 * number, 10 * number + 9)) for number in range(prompts)]
    prefilled = Prefill(model, pad=0, part_tokens=18)(rows, headroom=1)
    assert set(seen) == {each}
    assert torch.get_num_threads() == 4
    whole = DynamicCache(config=model.config)
    forward(model, torch.tensor(rows)[:, :-1], torch.ones(prompts, 8, dtype=torch.long), whole)
    for layer, expected in zip(prefilled.past.layers, whole.layers, strict=True):
        assert torch.allclose(layer.keys[:, :, :8], expected.keys, atol=1e-5)


@pytest.mark.usefixtures("four_threads")
def test_a_part_that_does_not_fit_fails_its_batch_once_the_others_are_done(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    begun, done = Barrier(2), []

    def failing(model: Any, ids: torch.Tensor, *more: Any) -> None:
        begun.wait(10)
        if ids[0, 0] == 0:
            raise torch.OutOfMemoryError
        time.sleep(0.3)
        done.append(int(ids[0, 0]))

    monkeypatch.setattr(prefill, "forward", failing)
    model = LlamaForCausalLM.from_pretrained(tiny).eval()
    rows = [list(range(10 * number, 10 * number + 9)) for number in range(4)]
    with pytest.raises(torch.OutOfMemoryError):
        Prefill(model, pad=0, part_tokens=36)(rows, headroom=1)
    assert (done, torch.get_num_threads()) == ([20], 4)


@pytest.mark.usefixtures("four_threads")
def test_a_model_whose_positions_depend_on_the_longest_prompt_runs_one_part_at_a_time(tiny: Path):
    model = LlamaForCausalLM.from_pretrained(tiny)
    assert Prefill(model, 0, 1).parallel_parts(prompts=8) == 4
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = LlamaForCausalLM.from_pretrained(tiny, rope_parameters=rope)
    assert Prefill(dynamic, 0, 1).parallel_parts(prompts=8) == 1


@pytest.mark.parametrize("batch_size", [1, 8])
def test_answers_longer_than_the_room_for_them_are_as_they_are_alone(
    tiny: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "GROWTH", 3)
    model = load(tiny, batch_size=batch_size, generation_config={"max_new_tokens": 40})
    assert texts(model, *PROMPTS[:4]) == tiny_llama.answers_alone(tiny, PROMPTS[:4], 40)


@pytest.mark.parametrize("shares", [True, False])
def test_shared_beginnings_change_no_answer(tiny: Path, alone: list[str], shares: bool):
    model = load(tiny)
    assert model._engine._shares_prefixes
    model._engine._shares_prefixes = shares
    assert texts(model, *PROMPTS) == alone
    assert texts(model, *reversed(PROMPTS)) == alone[::-1]
    prompt_tokens = sum(1 + len(prompt.encode()) for prompt in PROMPTS)
    assert model.usage.prompt_tokens == 2 * prompt_tokens
    assert (model.usage.computed_tokens < 2 * prompt_tokens) == shares


def test_a_model_whose_cache_forgets_positions_shares_nothing(tmp_path: Path):
    from transformers import MistralConfig, MistralForCausalLM

    folder = tiny_llama.build(tmp_path / "mistral")
    config = MistralConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=32,
        bos_token_id=0,
        eos_token_id=1,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    model = load(folder)
    assert not model._engine._shares_prefixes
    assert texts(model, *PROMPTS[:4]) == [texts(model, prompt)[0] for prompt in PROMPTS[:4]]


def test_a_draw_does_not_depend_on_the_neighbours(tiny: Path):
    given = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.5, "top_k": 50}
    model = load(tiny, generation_config=given)
    together = texts(model, *PROMPTS)
    assert together == [texts(load(tiny, generation_config=given, batch_size=1), prompt)[0] for prompt in PROMPTS]
    assert together != texts(load(tiny), *PROMPTS)


def test_draws_follow_the_distribution():
    shares = torch.tensor([0.5, 0.3, 0.15, 0.05])
    rows = 4000
    draws = Draws([Draw((("top_p", 0.9),), seed) for seed in range(rows)])
    chosen = draws(torch.zeros(rows, 1, dtype=torch.long), shares.log().repeat(rows, 1)).argmax(-1)
    counts = Counter(chosen.tolist())
    assert 3 not in counts  # beyond top_p
    for token, share in enumerate((0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95)):
        assert abs(counts[token] / rows - share) < 4 * (share * (1 - share) / rows) ** 0.5


def test_rows_without_a_draw_are_left_as_they_are():
    scores = torch.tensor([[0.1, 0.9], [0.1, 0.9]])
    out = Draws([None, Draw((("temperature", 2.0),), 3)])(torch.zeros(2, 1, dtype=torch.long), scores)
    assert out[0].tolist() == scores[0].tolist()
    assert out[1].max() == float("inf")


def test_each_request_has_options_of_its_own(tiny: Path, alone: list[str]):
    prompt = PROMPTS[0]
    seeds = [Request(prompt, options=GenerationOptions(temperature=3.0, seed=seed)) for seed in (1, 1, 2)]
    plain, short, one, same, other = answer(
        load(tiny), Request(prompt), Request(prompt, options=GenerationOptions(max_tokens=3)), *seeds
    )
    assert plain.text == alone[0]
    assert (short.completion_tokens, short.finish_reason) == (3, "length")
    assert alone[0].startswith(short.text)
    assert one.text == same.text != other.text


def test_a_model_that_samples_draws_anew_in_each_epoch_and_a_greedy_one_does_not(tiny: Path):
    requests = [Request(PROMPTS[0], epoch=epoch) for epoch in (0, 1, 2, 1)]
    drawn = load(tiny, generation_config={"max_new_tokens": NEW, "do_sample": True, "temperature": 3.0})
    first, second, third, again = (response.text for response in answer(drawn, *requests))
    assert len({first, second, third}) == 3
    assert again == second
    assert len({drawn.request_identity(request)["epoch"] for request in requests[1:]}) == 2
    assert len({response.text for response in answer(load(tiny), *requests)}) == 1


def test_an_answer_ends_before_a_stop_text(tiny: Path, alone: list[str]):
    stop = alone[0][4:6]
    (response,) = answer(load(tiny), Request(PROMPTS[0], options=GenerationOptions(stop=("never there", stop))))
    assert response.text == alone[0][: alone[0].index(stop)]
    assert response.finish_reason == "stop"
    assert response.completion_tokens < NEW


@pytest.mark.parametrize("stop", [(), ("zz",), ("e", "never there")])
def test_the_pieces_of_an_answer_add_up_to_it(tiny: Path, stop: tuple[str, ...]):
    async def ask_both() -> None:
        pieces: dict[str, list[str]] = {prompt: [] for prompt in PROMPTS[:3]}
        model = load(tiny)
        responses = await asyncio.gather(
            *(
                model.generate(Request(prompt, options=GenerationOptions(stop=stop)), pieces[prompt].append)
                for prompt in pieces
            )
        )
        for response, parts in zip(responses, pieces.values(), strict=True):
            assert "".join(parts) == response.text
        assert max(map(len, pieces.values())) > 1 or stop

    asyncio.run(asyncio.wait_for(ask_both(), 60))


def test_a_row_that_nobody_waits_for_ends(tiny: Path):
    async def leave() -> int:
        model = load(tiny, generation_config={"max_new_tokens": 200})
        begun = asyncio.Event()
        task = asyncio.create_task(model.generate(Request("hello"), lambda piece: begun.set()))
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await model._engine._runner
        return model.usage.completion_tokens

    assert asyncio.run(asyncio.wait_for(leave(), 60)) == 0


def prompt_of(model: Any, request: Request) -> str:
    return str(model._tokenizer.decode(model.prepare(request).tokens, skip_special_tokens=True))


def test_a_conversation_goes_through_the_chat_template(tiny: Path):
    turns = (Message("system", "Be brief."), Message("user", "Is it?"))
    model = load(tiny, is_finetuned=True)
    assert prompt_of(model, Request("", messages=turns)) == "[system]Be brief.[user]Is it?[assistant]"
    assert prompt_of(model, Request("As it stands", verbatim=True)) == "As it stands"


def test_a_model_without_a_chat_template_takes_one_user_message(tiny: Path):
    model = load(tiny)
    assert prompt_of(model, Request("", messages=(Message("user", "Is it?"),))) == "Is it?"
    with pytest.raises(CallError, match="send one user message") as caught:
        model.prepare(Request("", messages=(Message("system", "Be brief."), Message("user", "Is it?"))))
    assert caught.value.kind == ErrorKind.BAD_REQUEST


def test_beams_are_searched_and_give_what_they_give_alone(tiny: Path):
    given = {"max_new_tokens": NEW, "num_beams": 2}
    model = load(tiny, generation_config=given)
    assert texts(model, *PROMPTS[:3]) == [texts(model, prompt)[0] for prompt in PROMPTS[:3]]
    (refused,) = answer(model, Request("x", options=GenerationOptions(max_tokens=2)))
    assert refused.kind == ErrorKind.BAD_REQUEST


def test_a_batch_fits_itself_to_a_budget_of_tokens(tiny: Path):
    model = load(tiny, batch_size="auto")
    model._engine.batch_tokens = 3 * (len(CONTEXT) + 20 + NEW)
    responses = ask(model, *PROMPTS)
    assert all(not isinstance(response, Exception) for response in responses)
    assert 3 <= model.usage.batches <= len(PROMPTS)
    assert model.usage.requests == len(PROMPTS)


def test_an_answer_that_cannot_fit_the_context_is_refused_when_the_model_loads(tiny: Path):
    with pytest.raises(CallError, match="max_new_tokens=256 leaves no room in its context of 256") as caught:
        load(tiny, generation_config={"max_new_tokens": 256})
    assert caught.value.kind == ErrorKind.LOAD

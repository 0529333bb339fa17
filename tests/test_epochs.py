"""Several draws of each item, before and where they are asked: config, plan, identities and seeds."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from rambla_ray.actors.mock import MockModel, MockParams
from rambla_ray.actors.openai import OpenAIChat, OpenAICompletion
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool, Rate
from rambla_ray.errors import UserError
from rambla_ray.run.blocks import blocks_of
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.schema import Request

WORDS = ["model=mock", "task=mcqabaseline", "limit=4"]
OPENAI = ["model=openai_chat", "model.params.api_type=openai", "model.params.base_url=http://localhost:1/v1"]


def own_task(place: Path, name: str, **keys: Any) -> list[str]:
    """The words that name a copy of the baseline with other keys."""
    task = yaml.safe_load(Path("conf/task/mcqabaseline.yaml").read_text(encoding="utf-8"))
    task["answer"] |= keys.pop("answer", {})
    (place / "task").mkdir(exist_ok=True)
    (place / "task" / f"{name}.yaml").write_text(yaml.safe_dump({**task, **keys}), encoding="utf-8")
    return [f"conf_dir={place}", "limit=4"]


def test_one_epoch_is_none_at_all() -> None:
    plain, once = load(WORDS), load([*WORDS, "epochs=1"])
    assert plain.run_id == once.run_id
    assert plain.stored() == once.stored()
    assert list(Plan(plain).samples("mock")) == list(Plan(once).samples("mock"))
    assert Plan(plain).describe() == Plan(once).describe()
    assert load([*WORDS, "epochs=2"]).run_id != plain.run_id


@pytest.mark.parametrize("epochs", ["0", "-1", "1001", "1.5", "many"])
@pytest.mark.parametrize("key", ["epochs", "task.epochs"])
def test_a_number_of_epochs_out_of_bounds_is_one_line(key: str, epochs: str) -> None:
    with pytest.raises(UserError) as refused:
        load([*WORDS, f"{key}={epochs}"])
    assert "epochs" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tasks_own_epochs_win_over_the_runs(tmp_path: Path) -> None:
    words = [*own_task(tmp_path, "twice", epochs=2), *own_task(tmp_path, "once", epochs=1)]
    config = load(["model=mock", "task=twice,once,mcqabaseline", "epochs=3", *words])
    assert {name: task.draws for name, task in config.tasks.items()} == {"twice": 2, "once": 1, "mcqabaseline": 3}
    assert Plan(config).expected == {("twice", ""): 8, ("once", ""): 4, ("mcqabaseline", ""): 12}
    assert config.run_id != load(["model=mock", "task=twice,once,mcqabaseline", *words]).run_id


def test_likelihoods_are_asked_once_and_the_plan_says_so(tmp_path: Path) -> None:
    words = own_task(tmp_path, "likely", answer={"by": "likelihood"})
    plan = Plan(load(["model=mock", "task=likely", "epochs=3", *words]))
    assert plan.expected == {("likely", ""): 4}
    assert plan.notes[1:] == ["task likely is answered by likelihoods, which are the same each time: it is asked once"]
    own_task(tmp_path, "likely", answer={"by": "likelihood"}, epochs=2)
    with pytest.raises(UserError, match="epochs: likelihoods are the same each time"):
        load(["model=mock", "task=likely", *words])


@pytest.mark.parametrize(("temperature", "greedy"), [("0.0", True), ("0.7", False), ("null", False)])
def test_a_greedy_model_says_that_its_draws_are_alike(temperature: str, greedy: bool) -> None:
    plan = Plan(load([*OPENAI, *WORDS[1:], "epochs=3", f"model.params.temperature={temperature}"]))
    assert any("answers greedily: its 3 draws are alike" in note for note in plan.notes) == greedy


@pytest.mark.parametrize(("words", "greedy"), [([], True), (["model.params.generation_config.do_sample=true"], False)])
def test_so_does_a_local_one(words: list[str], greedy: bool) -> None:
    assert load(["model=smollm2", *WORDS[1:], *words]).targets["smollm2"].params.is_greedy == greedy


def test_a_plan_counts_each_draw_of_the_target_and_one_paraphrase() -> None:
    words = ["model=mock", "task=mcqabaseline,paraphrase", "limit=4", "roles.rephraser=mock"]
    once, thrice = (Plan(load([*words, *more])).describe() for more in ([], ["epochs=3"]))
    assert (once["samples_per_target"], thrice["samples_per_target"]) == (8, 24)
    calls = [
        {stage["role"]: stage["calls"] for stage in described["tasks"]["paraphrase"]["stages"]}
        for described in (once, thrice)
    ]
    assert calls == [{"rephraser": 4, "target": 4}, {"rephraser": 4, "target": 12}]
    assert "mcqabaseline: 12 samples, 3 draws of each item" in list(plan_lines(thrice))


@pytest.mark.parametrize("in_batches", [False, True])
@pytest.mark.parametrize("model", ["mock", "smollm2"])
def test_all_items_of_an_epoch_come_before_those_of_the_next(model: str, in_batches: bool) -> None:
    config = load([f"model={model}", *WORDS[1:]]).targets[model]
    expected, items = {("a", ""): 90, ("b", ""): 10}, {("a", ""): 30, ("b", ""): 5}
    blocks = blocks_of(expected, config, items=items, in_batches=in_batches)
    epochs = [block["first"] // items[block["task"], ""] for block in blocks]
    assert epochs == sorted(epochs)
    asked = [(block["task"], n) for block in blocks for n in range(block["first"], block["first"] + block["count"])]
    assert Counter(asked) == {(task, n): 1 for (task, _), count in expected.items() for n in range(count)}


def test_samples_are_named_by_their_draw() -> None:
    samples = list(Plan(load([*WORDS, "epochs=2"])).samples("mock"))
    first, second = samples[0], samples[4]
    assert (first.root_id, first.epoch) == (second.root_id, second.epoch - 1)
    assert second.sample_id == f"{first.sample_id}#2"
    assert len({one.sample_id for one in samples}) == 8


def test_an_item_that_is_called_as_a_draw_is_refused(tmp_path: Path) -> None:
    rows = [{"id": name, "question": "Is it?", "context": "It is.", "final_decision": "yes"} for name in ("a", "a#2")]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "dataset").mkdir()
    table = {
        "path": str(path),
        "demo": "pubmedqa.json",
        "format": "table",
        "fields": ["question", "context", "final_decision"],
    }
    (tmp_path / "dataset" / "mine.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    words = ["model=mock", "task=t", "data=full", *own_task(tmp_path, "t", dataset="mine")[:1]]
    assert Plan(load(words)).samples_per_target == 2
    with pytest.raises(UserError, match="item a#2 is called as draw 2 of item a would be"):
        Plan(load([*words, "epochs=2"]))


def chat(**params: Any) -> OpenAIChat:
    given = {"engine": "e", "api_type": "openai", "base_url": "http://localhost:1/v1", "api_key_var": None, **params}
    return OpenAIChat(OpenAIChat.Params.model_validate(given).resolved(), Pool(), Rate())


@pytest.mark.parametrize("params", [{"seed": 7}, {"extra_body": {"seed": 7}}])
def test_an_endpoint_that_is_sent_a_seed_gets_another_for_each_draw(params: dict[str, Any]) -> None:
    model = chat(**params)
    bodies = [json.loads(model.body(Request("Is it?", epoch=epoch))) for epoch in range(3)]
    assert [body.pop("seed") for body in bodies] == [7, 8, 9]
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["messages"] == [{"role": "user", "content": "Is it?"}]


def test_the_largest_seed_is_followed_by_the_least() -> None:
    assert json.loads(chat(seed=2**63 - 1).body(Request("Is it?", epoch=1)))["seed"] == -(2**63)


def test_without_a_seed_the_same_is_sent_again_under_another_identity() -> None:
    model = chat()
    assert model.body(Request("Is it?", epoch=1)) == model.body(Request("Is it?"))
    assert model.request_identity(Request("Is it?")) == {"prompt": "Is it?"}
    assert model.request_identity(Request("Is it?", epoch=1)) == {"prompt": "Is it?", "epoch": 1}


def test_a_completion_has_its_seed_for_each_draw_too() -> None:
    given = {"api_type": "openai", "base_url": "http://localhost:1/v1", "api_key_var": None, "seed": 1}
    model = OpenAICompletion(OpenAICompletion.Params.model_validate(given).resolved(), Pool(), Rate())
    assert json.loads(model.body(Request("Is it?", epoch=2)))["seed"] == 3


def test_the_mock_draws_anew_in_each_epoch() -> None:
    model = MockModel(MockParams(behaviour="flip", flip=0.5), Pool(), None)
    asked = [Request("Is it?", sample_id="s", target="yes", choices=("yes", "no"), epoch=epoch) for epoch in range(60)]

    async def answers() -> list[str]:
        return [(await model.generate(request)).text for request in asked]

    assert 15 <= Counter(asyncio.run(answers()))["no"] <= 45

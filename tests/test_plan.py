"""The plan: which pools a stream passes, which samples it holds, and what a cluster can hold."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from rambla_ray.config.load import load
from rambla_ray.config.model import ModelConfig
from rambla_ray.config.sections import Batch, Pool
from rambla_ray.errors import UserError
from rambla_ray.results.directory import to_json
from rambla_ray.run.blocks import blocks_of
from rambla_ray.run.placement import (
    Cluster,
    Level,
    NodeResources,
    blocks_at_once,
    calls_per_actor,
    run_together,
    settle_pool,
    waiting_reason,
)
from rambla_ray.run.plan import Plan
from rambla_ray.schema import Role, Sample


@pytest.fixture(autouse=True)
def _no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_VERSION", "OPENAI_API_BASE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def plan(*words: str) -> Plan:
    return Plan(load(["model=mock", "task=mcqabaseline", *words]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param("", "mock: target", id="one stage"),
        pytest.param("task=paraphrase", "openai_chat: rephraser | mock: target", id="rephraser first"),
        pytest.param("task=conclusion_generation", "mock: target | openai_chat: judge", id="judge last"),
        pytest.param("task=all", "openai_chat: rephraser | mock: target | openai_chat: judge", id="all tasks"),
        pytest.param("task=all roles.rephraser=mock", "mock: rephraser target | openai_chat: judge", id="one pool"),
        pytest.param("task=all model=openai_chat", "openai_chat: rephraser target judge", id="one pool for all"),
        pytest.param(
            "task=all roles.rephraser=mock roles.judge=mock model.params.flip=0.9",
            "mock: rephraser | mock: target | mock: judge",
            id="same name, other params",
        ),
        pytest.param(
            "task=conclusion_generation,paraphrase",
            "openai_chat: rephraser | mock: target | openai_chat: judge",
            id="in this order whatever the tasks'",
        ),
    ],
)
def test_a_stream_passes_its_roles_in_order_and_shares_pools(words: str, expected: str) -> None:
    planned = plan(*words.split())
    (target,) = planned.config.targets
    assert " | ".join(f"{level.name}: {' '.join(level.roles)}" for level in planned.levels(target)) == expected


def test_every_item_of_every_task_is_a_sample_once() -> None:
    planned = plan("task=mcqabaseline,paraphrase,spelling_robustness")
    samples = list(planned.samples("mock"))
    variants = {"mcqabaseline": 1, "paraphrase": 1, "spelling_robustness": 6}
    assert len(samples) == planned.samples_per_target == 57 * 8
    assert len({sample.sample_id for sample in samples}) == 57 * 8
    assert {t: len([s for s in samples if s.task == t]) for t in variants} == {t: 57 * n for t, n in variants.items()}
    assert len({sample.root_id for sample in samples}) == 57


def test_a_sample_holds_its_right_answer_and_its_fields() -> None:
    by_task: dict[str, Sample] = {}
    for sample in plan("task=mcqabaseline,irrelevant_context").samples("mock"):
        by_task.setdefault(sample.task, sample)
    clean, shuffled = by_task["mcqabaseline"], by_task["irrelevant_context"]
    assert clean.sample_id == f"mock/mcqabaseline/-/{clean.root_id}"
    assert clean.target == clean.fields["final_decision"]
    assert shuffled.target == "unknown"
    assert shuffled.fields["original_context"] == clean.fields["context"] != shuffled.fields["context"]
    assert (clean.steps, clean.answer, clean.outcome) == ([], "", "")


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        pytest.param(["pool.max_concurrency=8"], [16, 16, 16, 9], id="16 at least"),
        pytest.param(["pool.max_concurrency=24"], [24, 24, 9], id="as many as are asked at the same time"),
        pytest.param(["limit=40", "pool.min_size=4"], [5] * 8, id="two for each actor"),
        pytest.param(["limit=3", "pool.min_size=8"], [1, 1, 1], id="more actors than samples"),
        pytest.param(["limit=16", "task=mcqabaseline,irrelevant_context"], [16, 16], id="two tasks"),
        pytest.param(["model=llama_ft", "model.params.model_name=x", "limit=40"], [16, 16, 8], id="a local model"),
    ],
)
def test_blocks_are_places_in_tables_that_hold_every_sample_once(words: list[str], sizes: list[int]) -> None:
    planned = plan(*words)
    (target,) = planned.config.targets
    blocks = planned.blocks(planned.levels(target))
    assert [block["count"] for block in blocks] == sizes
    tables = {key: table for keys, table in planned.tables() for key in keys}
    items = [
        (block["task"], block["variant"], root_id, json.loads(fields))
        for block in blocks
        for root_id, fields in zip(
            *tables[block["task"], block["variant"]]
            .slice(block["first"], block["count"])
            .select(["root_id", "fields"])
            .to_pydict()
            .values(),
            strict=True,
        )
    ]
    assert items == [(s.task, s.variant, s.root_id, s.fields) for s in planned.samples(target)]


def test_tasks_that_change_nothing_in_a_dataset_share_its_table() -> None:
    planned = plan("task=mcqabaseline,paraphrase,irrelevant_context")
    shared = [sorted(name for name, _ in keys) for keys, _ in planned.tables()]
    assert sorted(shared) == [["irrelevant_context"], ["mcqabaseline", "paraphrase"]]


def test_a_plan_is_strict_json_with_its_counts() -> None:
    described = plan("task=paraphrase", "limit=5").describe()
    assert to_json(described).startswith(b"{")
    assert (described["synthetic"], described["samples_per_target"]) == (True, 5)
    stages = described["tasks"]["paraphrase"]["stages"]
    assert [(stage["role"], stage["calls"], stage["distinct_prompts"]) for stage in stages] == [
        ("rephraser", 5, 5),
        ("target", 5, 5),
    ]
    assert sum(described["tasks"]["paraphrase"]["labels"].values()) == 5


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param("task.dataset=pubmedqa", "7 of 64 items have a final_decision that is not among", id="labels"),
        pytest.param("model=openai_embeddings", "task mcqabaseline asks its target for an answer", id="target embeds"),
        pytest.param(
            "task=conclusion_generation roles.judge=openai_embeddings",
            "task conclusion_generation asks its judge for an answer",
            id="judge embeds",
        ),
        pytest.param("task=distracting_context limit=3", "task distracting_context: stage add_dis", id="few items"),
        pytest.param("task.dataset.path=/does/not/exist.json", "No such file", id="no data"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        plan(*words.split())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("model=openai_chat", "model openai_chat: needs a key in the environment variable OPENAI_API_KEY"),
        ("model=openai_chat model.params.api_key_var=MY_KEY", "environment variable MY_KEY"),
        ("task=paraphrase", "it is the rephraser of task paraphrase, choose another with roles.rephraser=<model>"),
        (
            "task=all roles.rephraser=mock",
            "judge of task conclusion_generation, question_formation, ",
        ),
    ],
)
def test_a_missing_key_is_named_with_the_way_out(words: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    planned = plan(*words.split())
    with pytest.raises(UserError, match=reason) as refused:
        planned.preflight(same_machine=True)
    assert "\n" not in str(refused.value)
    planned.preflight(same_machine=False)  # the key may be set where the calls are made
    for name in ("OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.setenv(name, "set")
    planned.preflight(same_machine=True)


LAPTOP = Cluster((NodeResources(2, 0),), memory_gib=8.0)
ONE_NODE = Cluster((NodeResources(8, 2),), memory_gib=64.0)
THREE_NODES = Cluster((NodeResources(8, 4),) * 3)
EMPTY = Cluster((NodeResources(0, 0),), grows=True, memory_gib=1.0)


NEEDED = {"openai_chat": {"engine": "gpt-4", "temperature": 0}, "huggingface_llm": {"model_name": "m"}}


def level(kind: str, **pool: float) -> Level:
    return Level(
        "m", ModelConfig.model_validate({"name": kind, "params": NEEDED.get(kind, {}), "pool": pool}), (Role.TARGET,)
    )


@pytest.mark.parametrize(
    ("kind", "pool", "cluster", "expected"),
    [
        pytest.param("openai_chat", {}, LAPTOP, (0, 0), id="an API takes no CPU"),
        pytest.param("openai_chat", {}, THREE_NODES, (0, 0), id="nor a GPU"),
        pytest.param("openai_chat", {"num_cpus": 0.5}, LAPTOP, (0.5, 0), id="unless it is given one"),
        pytest.param("mock", {}, LAPTOP, (0, 0), id="the mock takes none"),
        pytest.param("huggingface_llm", {}, LAPTOP, (2, 0), id="a local model takes the CPUs"),
        pytest.param("huggingface_llm", {"min_size": 2}, LAPTOP, (1, 0), id="two share them"),
        pytest.param("huggingface_llm", {}, EMPTY, (0, 1), id="one GPU where one may come"),
        pytest.param("huggingface_llm", {"num_gpus": 0}, EMPTY, (1, 0), id="a CPU where one may come"),
        pytest.param("huggingface_llm", {"num_gpus": 8}, EMPTY, (0, 8), id="what may come is not known"),
        pytest.param("huggingface_llm", {"num_cpus": 1}, LAPTOP, (1, 0), id="as many as it is given"),
        pytest.param("huggingface_llm", {}, THREE_NODES, (0, 1), id="one GPU where there are any"),
        pytest.param("huggingface_llm", {"num_gpus": 4}, THREE_NODES, (0, 4), id="as many GPUs as it is given"),
        pytest.param("huggingface_llm", {"num_gpus": 0}, THREE_NODES, (8, 0), id="CPUs when GPUs are not wanted"),
        pytest.param("huggingface_llm", {"num_cpus": 2}, THREE_NODES, (2, 1), id="a GPU beside its CPUs"),
        pytest.param("huggingface_llm", {"num_gpus": 0.1, "min_size": 20}, ONE_NODE, (0, 0.1), id="tenths of GPUs"),
        pytest.param("openai_chat", {"min_size": 80}, LAPTOP, (0, 0), id="as many as there is memory for"),
        pytest.param("huggingface_llm", {"max_size": 10**6}, LAPTOP, (2, 0), id="at most as many as find a CPU"),
        pytest.param("huggingface_llm", {"min_size": 10**6}, EMPTY, (0, 1), id="as many as may come"),
    ],
)
def test_a_pool_settles_on(kind: str, pool: dict[str, float], cluster: Cluster, expected: tuple[float, float]) -> None:
    settled = settle_pool(level(kind, **pool), cluster)
    assert (settled.num_cpus, settled.num_gpus) == expected
    assert settled.min_size == pool.get("min_size", 1)


@pytest.mark.parametrize(
    ("kind", "pool", "cluster", "reason"),
    [
        ("huggingface_llm", {"num_cpus": 3}, LAPTOP, "asks for 3 CPUs, the largest node has 2; set pool.num_cpus=2"),
        ("huggingface_llm", {"num_gpus": 1}, LAPTOP, "asks for 1 GPUs, the largest node has 0; set pool.num_gpus=0"),
        ("huggingface_llm", {"num_gpus": 5}, THREE_NODES, "asks for 5 GPUs, the largest node has 4"),
        ("openai_chat", {"num_cpus": 9}, THREE_NODES, "asks for 9 CPUs, the largest node has 8"),
        ("huggingface_llm", {"min_size": 5}, LAPTOP, "5 actors of 1 CPU each .* room for 2; set pool.min_size=2"),
        ("huggingface_llm", {"min_size": 4, "num_gpus": 3}, THREE_NODES, "4 actors of 3 GPUs each .* room for 3"),
        (
            "huggingface_llm",
            {"num_cpus": 4, "num_gpus": 1},
            Cluster((NodeResources(8, 0), NodeResources(2, 1))),
            "asks for 4 CPUs and 1 GPU, and no node has both",
        ),
        ("huggingface_llm", {"num_gpus": 64}, LAPTOP, "asks for 64 GPUs, the largest node has 0"),
        ("huggingface_llm", {"num_cpus": 1000}, LAPTOP, "asks for 1000 CPUs, the largest node has 2"),
        ("huggingface_llm", {"num_gpus": 1.5}, THREE_NODES, "pool.num_gpus=1.5: .*; set 1 or 2"),
        ("huggingface_llm", {"num_gpus": 2.0001}, EMPTY, "a part of one GPU, or whole ones; set 2 or 3"),
        ("openai_chat", {"num_cpus": 1e-5}, LAPTOP, "pool.num_cpus=1e-05 is less than Ray gives to an actor"),
        ("huggingface_llm", {"num_gpus": 0.6, "min_size": 3}, ONE_NODE, "3 actors of 0.6 GPUs each .* room for 2"),
        ("huggingface_llm", {"min_size": 100_000}, LAPTOP, "100000 actors of 1 CPU each .* set pool.min_size=2"),
        ("huggingface_llm", {"min_size": 10**6, "num_cpus": 1}, THREE_NODES, "1000000 actors .* room for 12"),
        ("openai_chat", {"min_size": 100_000}, LAPTOP, "10000 GiB of memory .* has 8; set pool.min_size=80 or less"),
        ("openai_chat", {"max_size": 100_000}, LAPTOP, "10000 GiB of memory .* has 8; set pool.max_size=80 or less"),
        ("huggingface_llm", {"min_size": 200, "num_cpus": 0.01}, LAPTOP, "20 GiB .* set pool.min_size=80 or less"),
        ("openai_chat", {"min_size": 100_000}, EMPTY, "10000 GiB of memory .* has 1; set pool.min_size=10 or less"),
    ],
)
def test_a_pool_that_the_cluster_cannot_hold_is_refused(
    kind: str, pool: dict[str, float], cluster: Cluster, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        settle_pool(level(kind, **pool), cluster)


@pytest.mark.parametrize(
    ("pools", "cluster", "expected"),
    [
        pytest.param([], LAPTOP, True, id="none"),
        pytest.param([(1, 0, 0), (1, 0, 0)], LAPTOP, True, id="two APIs"),
        pytest.param([(1, 2, 0)], LAPTOP, True, id="all CPUs"),
        pytest.param([(1, 2, 0), (1, 1, 0)], LAPTOP, False, id="a CPU too many"),
        pytest.param([(2, 1, 0), (1, 0, 0)], LAPTOP, True, id="two actors"),
        pytest.param([(8, 0, 1), (1, 0, 4)], THREE_NODES, True, id="all GPUs"),
        pytest.param([(9, 0, 1), (1, 0, 4)], THREE_NODES, False, id="a GPU too many"),
        pytest.param([(3, 0, 3), (1, 0, 2)], THREE_NODES, False, id="enough GPUs, but on no one node"),
        pytest.param([(2, 0.5, 0), (1, 1, 0)], LAPTOP, True, id="parts of a CPU"),
        pytest.param([(10, 0.1, 0), (1, 1, 0)], LAPTOP, True, id="parts that add up to one"),
        pytest.param([(3, 0, 0.6), (1, 1, 0)], ONE_NODE, False, id="parts of GPUs that no one GPU has"),
        pytest.param([(4, 0, 0.5), (1, 1, 0)], ONE_NODE, True, id="halves of GPUs"),
        pytest.param([(10**6, 1, 0), (1, 0, 1)], EMPTY, False, id="a million that wait"),
        pytest.param([(1, 0, 0), (1, 0, 1)], EMPTY, True, id="only one waits for a node"),
        pytest.param([(1, 1, 0), (1, 0, 1)], EMPTY, False, id="two would wait for nodes"),
    ],
)
def test_pools_run_together_where_the_cluster_holds_them(
    pools: list[tuple[int, float, float]], cluster: Cluster, expected: bool
) -> None:
    levels = [level("mock", min_size=size, num_cpus=cpus, num_gpus=gpus) for size, cpus, gpus in pools]
    assert run_together(levels, cluster) == expected


def test_a_local_model_that_plays_first_and_last_is_not_loaded_twice() -> None:
    target, other = level("huggingface_llm", num_gpus=1), level("huggingface_llm", num_gpus=2)
    assert run_together([target, other], THREE_NODES)
    assert not run_together([target, other, target], THREE_NODES)
    judge = level("openai_chat")
    assert run_together([judge, target, judge], THREE_NODES)


def test_a_model_that_asks_in_batches_has_one_actor_which_has_all_blocks_at_once() -> None:
    live, batched = level("openai_chat", max_size=4), level("openai_chat", min_size=2, max_size=8)
    batched = replace(batched, config=batched.config.model_copy(update={"batch": Batch()}))
    settled = settle_pool(batched, LAPTOP)
    assert (settled.min_size, settled.max_size) == (1, 1)
    assert (blocks_at_once(batched, 16, 100), blocks_at_once(live, 16, 100)) == (100, 14)
    assert run_together([batched], LAPTOP)
    assert run_together([live, level("mock")], LAPTOP)
    assert not run_together([live, batched], LAPTOP)


@pytest.mark.parametrize(("samples", "blocks"), [(10, 2), (1000, 16), (100_000, 32)])
def test_samples_for_batches_are_in_few_blocks(samples: int, blocks: int) -> None:
    first = level("openai_chat").config
    made = blocks_of({("task", ""): samples}, first, in_batches=True)
    assert (len(made), sum(block["count"] for block in made)) == (blocks, samples)


def test_what_has_no_room_says_what_it_waits_for() -> None:
    wanted = level("huggingface_llm", num_gpus=1, min_size=2)
    assert waiting_reason(wanted, THREE_NODES) == ""
    line = "model m waits until there is room for 2 actors of 1 GPU: "
    assert waiting_reason(wanted, EMPTY) == line + "the cluster's autoscaler brings it"
    busy = Cluster((NodeResources(8, 4),), free=(NodeResources(8, 1),))
    assert waiting_reason(wanted, busy) == line + "others give it back"


@pytest.mark.parametrize(
    ("max_concurrency", "rows_per_block", "expected"),
    [(64, 16, 14), (64, 256, 3), (1, 16, 3), (17, 16, 6), (64, 1, 194), (64, 5, 41)],
)
def test_an_actor_works_on_so_many_blocks_that_its_concurrency_is_reached(
    max_concurrency: int, rows_per_block: int, expected: int
) -> None:
    assert calls_per_actor(Pool(max_concurrency=max_concurrency), rows_per_block) == expected

"""Targets side by side: which of them, on which pools, and that none waits behind another."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny_llama
from conftest import Bench
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_server import Fault, OpenAIServer

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.ledger.record import Kind, Record, peek
from rambla_ray.run.capacity import NodeResources
from rambla_ray.run.placement import PROCESS_GIB, Cluster
from rambla_ray.run.pool_resources import actor_resources
from rambla_ray.run.streams import Stream, streams_of
from rambla_ray.schema import Role

MOCK = "name: mock\nparams: {{behaviour: format, seed: {seed}, latency_s: {latency}}}\npool: {{max_concurrency: 4}}\n"
LOCAL = "name: huggingface_llm\nparams: {{model_name: {folder}, generation_config: {{max_new_tokens: {new}}}}}\n"
BATCHED = (
    "name: openai_chat\nparams: {engine: gpt, temperature: 0, api_type: openai, base_url: http://127.0.0.1:1/v1}\n"
    "price: {input_per_million: 1, output_per_million: 1}\nbatch: {max_wait_s: 60}\n"
)


def write(folder: Path, base: str = "m", latencies: Sequence[float] = (0.0, 0.0, 0.0)) -> str:
    """Models: the mocks a, b, c and a judge, the local x, y, z and r, and one that asks in batches; returns the word
    that names their folder.
    """
    (folder / "conf/model").mkdir(parents=True)
    models = {name: MOCK.format(seed=seed, latency=latencies[seed]) for seed, name in enumerate("abc")}
    models |= {name: LOCAL.format(folder=base, new=new) for new, name in enumerate("xyzr", start=1)}
    models |= {"batched": BATCHED, "judge": "name: mock\n"}
    for name, text in models.items():
        (folder / f"conf/model/{name}.yaml").write_text(text)
    return f"conf_dir={folder}/conf"


def loaded(folder: Path, words: str) -> RunConfig:
    return load(["task=mcqabaseline", "limit=4", *words.split(), write(folder)])


def drawn(stream: Stream) -> str:
    """A stream as `a:T+b:T>judge:J`: its branches, and the pools of all; with a bar where they do not run together."""

    def path(levels: Sequence) -> str:
        return ",".join(f"{level.name}:{''.join(str(role)[0].upper() for role in level.roles)}" for level in levels)

    branches = "+".join(path(branch.levels) or "-".join(branch.targets) for branch in stream.branches)
    head = f"{path([stream.head])}>" if stream.head else ""
    return f"{head}{branches}{f'>{path(stream.shared)}' if stream.shared else ''}{'' if stream.together else '|'}"


LAPTOP = Cluster((NodeResources(2, 0),), memory_gib=8.0)
GPUS = Cluster((NodeResources(8, 2),), memory_gib=64.0)
GROWING = Cluster((NodeResources(0, 0),), grows=True, memory_gib=1.0)
JUDGED, REPHRASED = "task=conclusion_generation", "task=paraphrase"


@pytest.mark.parametrize(
    ("words", "cluster", "expected"),
    [
        ("model=a", LAPTOP, "a:T"),
        ("model=a,b,c", LAPTOP, "a:T+b:T+c:T"),
        ("model=a,b,c", GROWING, "a:T+b:T+c:T"),
        ("model=a,b,c", Cluster((NodeResources(2, 0),), memory_gib=2 * PROCESS_GIB), "a:T+b:T  c:T"),
        ("model=a,batched,b", LAPTOP, "a:T+b:T  batched:T"),
        ("model=x,a,y,b", LAPTOP, "a:T+b:T+x:T  y:T"),
        ("model=x,a,y,z", GPUS, "a:T+x:T+y:T  z:T"),
        ("model=x,y,a,b", GROWING, "a:T+b:T  x:T  y:T"),
        (f"model=a,b {JUDGED} roles.judge=c", LAPTOP, "a:T+b:T>c:J"),
        (f"model=a,b {JUDGED} roles.judge=b,c", LAPTOP, "a:T+b>b:TJ,c:J"),
        (f"model=a,b {JUDGED} roles.judge=c,b", LAPTOP, "a:T+b:T>c:J,b:J"),
        (f"model=a,b {JUDGED} roles.judge=x", LAPTOP, "a:T+b:T>x:J"),
        (f"model=a,x {JUDGED} roles.judge=x", LAPTOP, "a:T+x>x:TJ"),
        (f"model=a,x,b {JUDGED} roles.judge=y", LAPTOP, "a:T+b:T>y:J  x:T,y:J|"),
        (f"model=a,x,b {JUDGED} roles.judge=y", GPUS, "a:T+b:T+x:T>y:J"),
        (f"model=a,b {JUDGED} roles.judge=x,y", LAPTOP, "a:T+b:T>x:J,y:J|"),
        (f"model=a,b {JUDGED} roles.judge=batched", LAPTOP, "a:T+b:T>batched:J|"),
        (f"model=a,b roles.reader=c {JUDGED} roles.judge=c", LAPTOP, "a:T+b:T>c:JR"),
        ("model=a,b roles.reader=b", LAPTOP, "a:T+b>b:TR"),
        (f"model=a,b {REPHRASED} roles.rephraser=c", LAPTOP, "c:R,a:T+c:R,b:T"),
        (f"model=a,b {REPHRASED} roles.rephraser=b", LAPTOP, "b:R,a:T+b:RT"),
        (f"model=a,b {REPHRASED} roles.rephraser=x", LAPTOP, "x:R>a:T+b:T"),
        (f"model=a,b {REPHRASED} roles.rephraser=batched", LAPTOP, "batched:R,a:T|  batched:R,b:T|"),
        (f"model=x,y {REPHRASED} roles.rephraser=z", GPUS, "z:R>x:T+y:T"),
        (f"model=x {REPHRASED} roles.rephraser=z", LAPTOP, "z:R,x:T|"),
    ],
)
def test_the_targets_of_a_stream_and_their_pools(tmp_path: Path, words: str, cluster: Cluster, expected: str) -> None:
    assert "  ".join(map(drawn, streams_of(loaded(tmp_path, words), cluster))) == expected


def test_the_pools_of_a_rephraser_together_ask_as_much_at_once_as_one(tmp_path: Path) -> None:
    (stream,) = streams_of(loaded(tmp_path, f"model=a,b {REPHRASED} roles.rephraser=c"), LAPTOP)
    pools = [level.pool.max_concurrency for branch in stream.branches for level in branch.levels]
    assert pools == [2, 4, 2, 4]


@settings(deadline=None)  # Each writes the configs anew.
@given(
    nodes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=1, max_size=3),
    targets=st.lists(st.sampled_from("abcxyz"), min_size=1, max_size=6, unique=True),
    judge=st.sampled_from("abcxyz"),
    cpus=st.sampled_from(["", "pool.num_cpus=1", "pool.num_gpus=0.5 pool.num_cpus=0"]),
)
def test_each_target_is_in_one_stream_and_pools_side_by_side_fit_the_cluster(
    tmp_path_factory: pytest.TempPathFactory, nodes: list[tuple[int, int]], targets: list[str], judge: str, cpus: str
) -> None:
    cluster = Cluster((NodeResources(4, 2), *(NodeResources(*node) for node in nodes)), memory_gib=8.0)
    words = f"model={','.join(targets)} {JUDGED} roles.judge={judge} {cpus}"
    config = loaded(tmp_path_factory.mktemp("models"), words)
    streams = streams_of(config, cluster)
    assert sorted(target for stream in streams for target in stream.targets) == sorted(targets)
    for stream in streams:
        taking = [level.pool for level in stream.levels if any(actor_resources(level.pool))]
        assert not stream.together or len(taking) < 2 or cluster.holds(taking)
        at_once = [level for branch in stream.branches for level in branch.levels]
        assert len(stream.branches) == 1 or cluster.holds([level.pool for level in at_once])
        for branch in stream.branches:
            roles = [role for level in stream.path(branch) for role in level.roles if level.name != judge]
            assert roles == [Role.TARGET] * (branch.targets != (judge,)), "only its own, before the judge"


def test_a_dry_run_says_who_is_asked_beside_whom(tmp_path: Path, bench: Callable[[Sequence[str]], Bench]) -> None:
    done = bench(["model=a,x,b,batched", "task=mcqabaseline", "limit=4", "dry_run=true", write(tmp_path)])
    assert "asked side by side: a, b\n" in done.out
    assert "asked beside others where the cluster holds all their pools at once: x\n" in done.out
    assert "asked in a stream of its own, in batches: batched\n" in done.out


def answered_at(done: Bench) -> dict[tuple[str, str], list[float]]:
    """By (model, role), when each answer came."""
    times: dict[tuple[str, str], list[float]] = {}
    for segment in (done.runs_dir / "ledger").glob("*.ledger"):
        for line in segment.read_bytes().splitlines(keepends=True):
            if peek(line)[0] == Kind.ANSWER:
                record = Record.from_line(line)
                times.setdefault((record.model, record.role), []).append(record.at)
    return {key: sorted(at) for key, at in times.items()}


@pytest.mark.usefixtures("ray_cluster")
def test_no_target_waits_behind_a_slower_one_and_each_is_judged_meanwhile(
    tmp_path: Path, bench: Callable[[Sequence[str]], Bench]
) -> None:
    conf = write(tmp_path, latencies=(0.02, 1.5, 0.02))
    done = bench([conf, "model=a,b,c", "task=mcqabaseline,conclusion_generation", "roles.judge=judge", "limit=10"])
    assert done.status == 0, done.err
    times = answered_at(done)
    targets = {name: times[name, "target"] for name in "abc"}
    assert {name: len(at) for name, at in targets.items()} == dict.fromkeys("abc", 20)
    assert max(targets["a"][-1], targets["c"][-1]) < targets["b"][-1], "before and behind a slower one"
    assert sum(at < targets["b"][-1] for at in times["judge", "judge"]) >= 20, "those of a and c are judged meanwhile"
    assert len(json.loads(done.read("env.json"))["models"]["judge"]["actors"]) == 1
    assert json.loads(done.read("plan.json"))["placement"]["b"]["beside"] == ["a", "c"]


@pytest.mark.usefixtures("ray_cluster")
def test_side_by_side_and_alone_a_target_has_the_same_numbers(
    tmp_path: Path, bench: Callable[[Sequence[str]], Bench]
) -> None:
    words = [write(tmp_path), "task=mcqabaseline,paraphrase,conclusion_generation", "limit=12"]
    words += ["roles.judge=b", "roles.rephraser=c"]
    metrics = {
        models: json.loads(bench([*words, f"model={models}", f"runs_dir={tmp_path}/{models}"]).read("metrics.json"))
        for models in ("a", "b", "a,b", "b,a")
    }
    assert metrics["a,b"]["cells"] == [*metrics["a"]["cells"], *metrics["b"]["cells"]]
    by_model = {model: [cell for cell in metrics["b,a"]["cells"] if cell["model"] == model] for model in "ab"}
    assert by_model == {"a": metrics["a"]["cells"], "b": metrics["b"]["cells"]}


@pytest.mark.usefixtures("ray_cluster")
def test_more_local_models_than_gpus_run_in_turn_and_a_local_rephraser_is_loaded_once_a_stream(
    tmp_path: Path, bench: Callable[[Sequence[str]], Bench]
) -> None:
    base = tiny_llama.build(tmp_path / "base", max_position_embeddings=4096)
    words = [write(tmp_path, str(base)), "model=x,a,y,z", "task=paraphrase,mcqabaseline", "limit=4"]
    done = bench([*words, "roles.rephraser=r"])
    assert done.status in (0, 2), done.err  # a random model need not answer yes or no
    placement = json.loads(done.read("plan.json"))["placement"]
    assert {name: placed["beside"] for name, placed in placement.items()} == {
        "a": ["x", "y"],
        "x": ["a", "y"],
        "y": ["a", "x"],
        "z": [],
    }
    assert sum(cell["n"] for cell in json.loads(done.read("metrics.json"))["cells"]) == 4 * 2 * 4
    actors = {name: len(model["actors"]) for name, model in json.loads(done.read("env.json"))["models"].items()}
    assert actors == {"a": 1, "x": 1, "y": 1, "z": 1, "r": 2}


@pytest.mark.usefixtures("ray_cluster")
def test_judges_that_do_not_fit_together_follow_one_another_behind_targets_side_by_side(
    tmp_path: Path, bench: Callable[[Sequence[str]], Bench]
) -> None:
    conf = write(tmp_path, str(tiny_llama.build(tmp_path / "base", max_position_embeddings=8192)))
    for name in "xy":
        with (tmp_path / f"conf/model/{name}.yaml").open("a") as file:
            file.write("pool: {num_gpus: 2}\n")  # All that the cluster has.
    done = bench([conf, "model=a,b", "task=conclusion_generation", "roles.judge=x,y", "limit=3"])
    assert done.status in (0, 2), done.err  # a random model need not answer yes or no
    placement = json.loads(done.read("plan.json"))["placement"]
    assert [placed["together"] for placed in placement.values()] == [False, False]
    assert "x (judge), then y (judge)" in done.err
    assert sum(cell["n"] for cell in json.loads(done.read("metrics.json"))["cells"]) == 2 * 3
    asked = {name: len(model["actors"]) for name, model in json.loads(done.read("env.json"))["models"].items()}
    assert asked == {"a": 1, "b": 1, "x": 1, "y": 1}


@pytest.mark.usefixtures("ray_cluster")
def test_a_rejected_key_of_one_target_stops_the_others(
    tmp_path: Path, bench: Callable[[Sequence[str]], Bench]
) -> None:
    conf = write(tmp_path, latencies=(3.0, 3.0, 3.0))
    with OpenAIServer(faults=[Fault("401", times=-1)]) as server:
        params = f"{{engine: gpt, temperature: 0, api_type: openai, base_url: {server.base_url}}}"
        (tmp_path / "conf/model/refused.yaml").write_text(f"name: openai_chat\nparams: {params}\n")
        done = bench([conf, "model=a,refused,b", "task=mcqabaseline"])
    assert done.status == 4
    assert "cannot go on" in done.err
    assert sum(map(len, answered_at(done).values())) < 2 * 57

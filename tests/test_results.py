"""The run directory: what goes into samples/ comes out of it, as samples, as numbers, and as the audit counts it."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_samples import blocks, many, sample, spec, store, task_spec

from rambla_ray.config.folder import SHIPPED_CONF
from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.errors import UserError
from rambla_ray.results.calls import invocation, throughput
from rambla_ray.results.directory import RunDirectory, scoring_spec, to_json
from rambla_ray.schema import SAMPLE_SCHEMA, Outcome, Sample, Step, from_table, to_table
from rambla_ray.storage import Folder

TASKS = {"clean": ("",), "spelling": ("n=0", "n=3", "n=10"), "wrong-way": ("",)}


def planned(items: int) -> dict[str, Any]:
    """The scoring of `TASKS`, each with so many items."""
    return spec(
        {
            "clean": task_spec({"": items}),
            "spelling": task_spec(dict.fromkeys(TASKS["spelling"], items), "spelling/n=0"),
            "wrong-way": task_spec({"": items}, "clean"),
        }
    )


# --- samples/ --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 5000])
def test_what_was_added_is_stored_by_task_and_counted(tmp_path: Path, block: int) -> None:
    samples = many(TASKS, 60)
    random.Random(1).shuffle(samples)
    judged = Step("generate:verdict", "judge", "j", "1", "?", "Yes")
    for one in samples[::3]:
        one.steps.append(judged)
    directory = RunDirectory(Folder(str(tmp_path)))
    writer = directory.sample_writer("m", planned(60))
    for some in blocks(samples, block):
        writer.add(to_table(some))
    writer.close()
    assert writer.outcomes == Counter(one.outcome for one in samples)
    assert writer.answered == Counter(
        (step.model, step.role) for one in samples for step in one.steps if not step.failed
    )
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {f"m--{task}.parquet" for task in TASKS}
    for task in TASKS:
        table = pq.read_table(tmp_path / f"samples/m--{task}.parquet")
        assert table.schema.equals(SAMPLE_SCHEMA)
        assert list(from_table(table)) == [one for one in samples if one.task == task]


def test_row_groups_are_short_and_shorter_where_texts_are_long(tmp_path: Path) -> None:
    how = spec({"long": task_spec({"": 80}), "short": task_spec({"": 5000})})
    long = (sample(str(number), task="long", text="Yes " * 2**18) for number in range(80))  # 1 MB each
    short = (sample(str(number), task="short") for number in range(5000))
    store(tmp_path, how, (one for group in (long, short) for one in group), block=10)
    file = pq.ParquetFile(tmp_path / "samples/m--long.parquet")
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [70, 10]
    file = pq.ParquetFile(tmp_path / "samples/m--short.parquet")
    groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
    assert max(group.num_rows for group in groups) <= 2048
    assert sum(group.num_rows for group in groups) == 5000


def test_nothing_is_in_place_until_the_writer_is_closed(tmp_path: Path) -> None:
    directory = RunDirectory(Folder(str(tmp_path)))
    writer = directory.sample_writer("m", planned(4000))
    writer.add(to_table(many(TASKS, 4000)))
    with pytest.raises(UserError, match="there are no samples"):
        directory.score()
    writer.close()
    assert sum(cell["n"] for cell in directory.score()["cells"]) == 20_000


def test_a_later_invocation_replaces_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    how = planned(10)
    store(tmp_path, how, [sample(str(number), task="clean", outcome="failed") for number in range(10)])
    (tmp_path / "samples/m--clean.parquet.draft").write_bytes(b"of a process that was killed")
    directory = store(tmp_path, how, [sample(str(number), task="clean") for number in range(10)])
    (cell,) = directory.score()["cells"]
    assert cell["outcomes"]["scored"] == cell["n"] == 10
    assert {path.suffix for path in (tmp_path / "samples").iterdir()} == {".parquet"}


def test_an_invocation_that_was_stopped_leaves_what_holds_more(tmp_path: Path) -> None:
    how = planned(10)
    whole = [sample(str(number), task="clean") for number in range(10)]
    store(tmp_path, how, whole)
    directory = store(tmp_path, how, [sample("0", task="wrong-way")])
    assert {cell["task"]: cell["n"] for cell in directory.score()["cells"]} == {"clean": 10, "wrong-way": 1}
    other = planned(11)
    directory = store(tmp_path, other, [sample("0", task="clean")])
    assert {cell["task"]: cell["n"] for cell in directory.score()["cells"]} == {"clean": 1}


# --- metrics.json ----------------------------------------------------------------------------------------------------


def naive(samples: list[Sample]) -> dict[str, Any]:
    """A cell's numbers, counted one by one."""
    scored = [one for one in samples if one.outcome == "scored"]
    right = [one for one in scored if one.answer == one.target]
    lengths = [step.completion_tokens for one in samples for step in one.steps if step.completion_tokens]
    counted = [one for one in samples if one.outcome not in ("failed", "judge_failed")]
    return {
        "n": len(samples),
        "outcomes": {outcome.value: sum(one.outcome == outcome for one in samples) for outcome in Outcome},
        "coverage": len(scored) / len(samples),
        "accuracy": len(right) / len(scored),
        "bounds": [len(right) / len(samples), (len(right) + len(samples) - len(scored)) / len(samples)],
        "prompt": sum(step.prompt_tokens for one in samples for step in one.steps),
        "lengths": {"mean": statistics.fmean(lengths), "median": statistics.median(lengths)},
        "std": statistics.pstdev(lengths),
        "bias_yes": sum((one.answer == "yes") - (one.target == "yes") for one in scored) / len(scored),
        "differ": sum(one.answer != one.rambla_answer for one in samples),
        "matrix": [
            [
                sum((one.label, one.rambla_answer or "null") == (label, answer) for one in counted)
                for answer in ("no", "null", "yes")
            ]
            for label in ("no", "null", "yes")
        ],
    }


def naive_pairs(samples: list[Sample], clean: list[Sample]) -> dict[str, Any]:
    """What changes from one cell to the other, item by item."""
    before = {one.root_id: one for one in clean if one.outcome == "scored"}
    pairs = [(before[one.root_id], one) for one in samples if one.outcome == "scored" and one.root_id in before]
    right = [(one.answer == one.target, other.answer == other.target) for one, other in pairs]
    return {
        "n": len(pairs),
        "right_to_wrong": right.count((True, False)),
        "wrong_to_right": right.count((False, True)),
        "consistency": sum(one.answer == other.answer for one, other in pairs) / len(pairs),
        "difference": sum(now - was for was, now in right) / len(pairs),
    }


@pytest.fixture(scope="module")
def twenty_thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], dict[str, Any]]:
    samples = many(TASKS, 4000)
    random.Random(5).shuffle(samples)
    scores = store(tmp_path_factory.mktemp("run"), planned(4000), samples, block=700).score()
    return samples, scores


def test_the_numbers_are_those_of_counting_one_by_one(
    twenty_thousand: tuple[list[Sample], dict[str, Any]],
) -> None:
    samples, scores = twenty_thousand
    by_cell: dict[tuple[str, str], list[Sample]] = {}
    for one in samples:
        by_cell.setdefault((one.task, one.variant), []).append(one)
    assert [(cell["task"], cell["variant"]) for cell in scores["cells"]] == [
        (task, variant) for task, variants in TASKS.items() for variant in variants
    ]
    for cell in scores["cells"]:
        expected = naive(by_cell[cell["task"], cell["variant"]])
        low, high = cell["accuracy"]["ci95"]
        width = 1.96 * math.sqrt(expected["accuracy"] * (1 - expected["accuracy"]) / cell["outcomes"]["scored"])
        assert (low, high) == pytest.approx((expected["accuracy"] - width, expected["accuracy"] + width), abs=1e-3)
        assert cell["lengths"].pop("std") == pytest.approx(expected.pop("std"))
        assert {
            "n": cell["n"],
            "outcomes": cell["outcomes"],
            "coverage": cell["coverage"],
            "accuracy": cell["accuracy"]["value"],
            "bounds": cell["accuracy"]["bounds"],
            "prompt": cell["tokens"]["prompt"],
            "lengths": cell["lengths"],
            "bias_yes": cell["label_bias"]["yes"]["value"],
            "differ": cell["readers"]["differ"],
            "matrix": cell["rambla"]["confusion_matrix"],
        } == expected
    pairs = {"spelling n=3": ("spelling", "n=0"), "spelling n=10": ("spelling", "n=0"), "wrong-way": ("clean", "")}
    compared = {f"{cell['task']} {cell['variant']}".rstrip(): cell for cell in scores["cells"] if cell["paired"]}
    assert set(compared) == set(pairs)
    for where, cell in compared.items():
        expected = naive_pairs(by_cell[cell["task"], cell["variant"]], by_cell[pairs[where]])
        found = {**cell["paired"], "difference": cell["paired"]["difference"]["value"]}
        assert {name: found[name] for name in expected} == pytest.approx(expected)
        low, high = cell["paired"]["difference"]["ci95"]
        width = 1.96 * math.sqrt(expected["right_to_wrong"] + expected["wrong_to_right"]) / expected["n"]
        assert (low, high) == pytest.approx(
            (expected["difference"] - width, expected["difference"] + width), abs=0.1 * width
        )
    (effect,) = scores["effects"]
    points = [
        (float(one.variant.removeprefix("n=")), float(one.answer == one.target))
        for one in samples
        if one.task == "spelling" and one.outcome == "scored"
    ]
    assert effect["slope"]["value"] == pytest.approx(np.polyfit(*zip(*points, strict=True), 1)[0], rel=1e-6)
    assert [row["pairs"] for row in effect["variants"][1:]] == [
        compared[f"spelling {variant}"]["paired"]["n"] for variant in ("n=3", "n=10")
    ]


def test_examples_of_differing_readers_have_the_samples_own_texts(
    twenty_thousand: tuple[list[Sample], dict[str, Any]],
) -> None:
    samples, scores = twenty_thousand
    for cell in scores["cells"]:
        of_cell = [one for one in samples if (one.task, one.variant) == (cell["task"], cell["variant"])]
        first = sorted((one for one in of_cell if one.answer != one.rambla_answer), key=lambda one: one.root_id)[:3]
        assert cell["readers"]["examples"] == [
            {
                "root_id": one.root_id,
                "text": one.steps[-1].text,
                "robust": one.answer,
                "rambla": one.rambla_answer,
            }
            for one in first
        ]


def test_tokens_are_those_of_the_model_under_test(tmp_path: Path) -> None:
    judged = sample("1", tokens=(10, 3))
    judged.steps.append(
        Step("generate:verdict", "judge", "m", "1", "?", "Yes", prompt_tokens=500, completion_tokens=70)
    )
    bare = sample("2", tokens=(1, 0))
    (cell,) = store(tmp_path, spec({"t": task_spec({"": 2})}), [bare, judged]).score()["cells"]
    assert cell["tokens"] == {"prompt": 11, "completion": 3}
    assert cell["lengths"] == {"mean": 3.0, "median": 3.0, "std": 0.0}


def test_metrics_are_the_same_bytes_in_whatever_order_samples_end(tmp_path: Path) -> None:
    samples = many(TASKS, 300)
    samples += [sample("item-1", "no", task="clean", tokens=(3, 9))]  # twice there, and not the same
    found = set()
    for seed, block in enumerate((1, 50, 10_000)):
        random.Random(seed).shuffle(samples)
        found.add(to_json(store(tmp_path / str(seed), planned(300), samples, block=block).score()))
    assert len(found) == 1


def test_a_model_that_gives_scores_is_measured_by_the_area(tmp_path: Path) -> None:
    scores = ["0.9", "0.8", "0.3", "0.1", "1", "0.2"]
    labels = ["1", "1", "1", "0", "0", "0"]
    samples = [sample(str(n), scores[n], labels[n], label=labels[n]) for n in range(6)] + [
        sample("7", "", "1", outcome="failed")
    ]
    directory = store(tmp_path, spec({"t": task_spec({"": 7}, labels=("1", "0"))}), samples)
    (cell,) = directory.score()["cells"]
    assert cell["score"]["roc_auc"]["value"] == pytest.approx(6 / 9)
    assert (cell["accuracy"]["value"], cell["coverage"]) == (None, 6 / 7)
    assert cell["null_reasons"]["accuracy.value"] == "the model gives scores, not answers"
    assert to_json(directory.write_metrics()) == (tmp_path / "metrics.json").read_bytes()


# --- runs that were stopped ------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_partial_and_does_not_remember_that_it_was(tmp_path: Path) -> None:
    samples, how = many(TASKS, 40), planned(40)
    whole = to_json(store(tmp_path / "whole", how, samples).score())
    assert json.loads(whole)["partial"] is None
    stopped = store(tmp_path / "stopped", how, samples[:37])
    assert stopped.score()["partial"] == {"samples": 37, "expected": 200}
    assert to_json(store(tmp_path / "stopped", how, samples).score()) == whole


def test_cells_without_samples_are_left_out_and_what_needs_them_says_why(tmp_path: Path) -> None:
    samples = [one for one in many(TASKS, 10) if one.task != "clean" and one.variant != "n=0"]
    scores = store(tmp_path, planned(10), samples).score()
    assert [(cell["task"], cell["variant"]) for cell in scores["cells"]] == [
        ("spelling", "n=3"),
        ("spelling", "n=10"),
        ("wrong-way", ""),
    ]
    assert scores["effects"] == []
    assert [cell["null_reasons"]["paired"] for cell in scores["cells"]] == [
        "task spelling/n=0 has no samples yet",
        "task spelling/n=0 has no samples yet",
        "task clean has no samples yet",
    ]
    assert scores["partial"] == {"samples": 30, "expected": 50}


def test_a_pair_that_was_never_asked_for_is_not_in_the_run(tmp_path: Path) -> None:
    how = spec({"t": task_spec({"": 1}, "elsewhere"), "u": task_spec({"": 1}, "t/n=7")})
    cells = store(tmp_path, how, [sample("1"), sample("1", task="u")]).score()["cells"]
    assert [cell["null_reasons"]["paired"] for cell in cells] == [
        "task elsewhere is not in this run",
        "task t/n=7 is not in this run",
    ]


def test_targets_that_were_not_begun_are_missing(tmp_path: Path) -> None:
    how = spec({"t": task_spec({"": 3})}, models=["m", "later"])
    directory = store(tmp_path, how, [sample(str(number)) for number in range(3)])
    scores = directory.score()
    assert [cell["model"] for cell in scores["cells"]] == ["m"]
    assert scores["partial"] == {"samples": 3, "expected": 6}


def test_a_run_without_a_sample_has_no_cells(tmp_path: Path) -> None:
    directory = store(tmp_path, planned(10), [])
    scores = directory.write_metrics()
    assert (scores["cells"], scores["effects"], scores["partial"]) == ([], [], {"samples": 0, "expected": 50})
    directory.write_errors()
    assert (tmp_path / "errors.jsonl").read_bytes() == b""


def test_a_run_may_be_kept_where_there_is_no_local_disk(tmp_path: Path) -> None:
    samples, how = many(TASKS, 40), planned(40)
    here = store(tmp_path / "here", how, samples)
    (tmp_path / "there").mkdir()
    there = store(f"file://{tmp_path}/there", how, samples)
    for directory in (here, there):
        directory.write_metrics()
        directory.write_errors()
    for name in ("metrics.json", "errors.jsonl"):
        assert there.folder.read(name) == here.folder.read(name)


# --- errors.jsonl ----------------------------------------------------------------------------------------------------


def test_every_sample_that_was_not_scored_has_a_line(tmp_path: Path) -> None:
    samples = many(TASKS, 3000)
    directory = store(tmp_path, planned(3000), samples, block=500)
    directory.write_errors()
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [(line["sample_id"], line["outcome"]) for line in lines] == [
        (one.sample_id, one.outcome) for one in samples if one.outcome != "scored"
    ]


def test_a_line_says_what_the_last_step_said(tmp_path: Path) -> None:
    samples = [
        sample("1", outcome="failed", error="the server said no"),
        sample("2", outcome="unparsed", text="Who knows?"),
    ]
    how = spec({"t": task_spec({"": 2})})
    store(tmp_path, how, samples).write_errors()
    first, second = map(json.loads, (tmp_path / "errors.jsonl").read_text().splitlines())
    assert first == {
        "sample_id": "m/t/-/1",
        "outcome": "failed",
        "stage": "generate:response",
        "role": "target",
        "error_kind": "server",
        "error": "the server said no",
    }
    assert second["error"] == "no answer read from: 'Who knows?'"


# --- a run's config, and calls.json ----------------------------------------------------------------------------------


@pytest.fixture
def loaded(tmp_path: Path) -> RunConfig:
    """A run of a model that costs a dollar per million tokens."""
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/paid.yaml").write_text(
        "name: mock\nprice: {input_per_million: 1.0, output_per_million: 2.0}\n"
    )
    words = ["model=paid", "task=paraphrase", "roles.rephraser=mock", f"conf_dir={tmp_path / 'conf'}"]
    return load([*words, f"runs_dir={tmp_path / 'runs'}"])


def spent(**counts: object) -> dict[str, object]:
    given = {"model": "paid", "role": "target", "calls": 0, "answered": 0, "failed": 0, "retried": 0, "hedged": 0}
    return {**given, "repeated": 0, "prompt_tokens": 0, "completion_tokens": 0, "calling_s": 0, "waited_s": 0} | counts


def test_calls_say_what_was_reused_and_what_it_cost_over_all_invocations(loaded: RunConfig) -> None:
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    paid = spent(calls=9, answered=5, failed=1, retried=2, hedged=1, prompt_tokens=500_000, completion_tokens=100_000)
    for number in range(2):
        now = {**invocation(0.0, 9 - 9 * number, {}, finished=True), "wall_s": 1.5}
        directory.write_calls(loaded, [paid], {("paid", "target"): 8, ("mock", "rephraser"): 4}, now)
        directory = RunDirectory.create(loaded)
        directory.begin(loaded, {}, [])
    calls = directory.read_calls()
    assert calls is not None
    rephraser, target = calls["models"]
    assert target == {**paid, "reused": 3, "cost_usd": pytest.approx(0.7)}
    assert (rephraser["calls"], rephraser["reused"], rephraser["cost_usd"]) == (0, 4, None)
    assert set(rephraser) == set(target)
    assert [one["calls"] for one in calls["invocations"]] == [9, 0]
    assert calls["wall_s"] == 3.0


def test_how_samples_are_scored_holds_how_many_are_expected(loaded: RunConfig) -> None:
    how = scoring_spec(loaded, {("paraphrase", ""): 57})
    assert how["tasks"]["paraphrase"] == {
        "labels": ["yes", "no"],
        "pair_with": "mcqabaseline",
        "variants": [""],
        "expected": {"": 57},
    }
    assert (how["models"], how["roles"], how["synthetic"]) == (["paid"], {"rephraser": "mock"}, True)


def test_names_that_come_to_one_file_are_refused(tmp_path: Path) -> None:
    for group, names in {"model": ("a", "a--b"), "task": ("c", "b--c")}.items():
        (tmp_path / group).mkdir()
        source = {"model": "mock.yaml", "task": "mcqabaseline.yaml"}[group]
        text = (SHIPPED_CONF / group / source).read_text()
        for name in names:
            (tmp_path / group / f"{name}.yaml").write_text(text)
    run = load(["model=a,a--b", "task=c,b--c", f"conf_dir={tmp_path}", f"runs_dir={tmp_path / 'runs'}"])
    with pytest.raises(UserError, match=r"share the file a--b--c\.parquet"):
        RunDirectory.create(run)


def test_what_actors_did_is_added_up():
    one = {"batches": 2, "requests": 6, "prompt_tokens": 60, "completion_tokens": 12, "computed_tokens": 50}
    one |= {"padding_tokens": 10, "out_of_memory": 1, "busy_s": 3.0, "idle_s": 1.0, "load_s": 2.0}
    one |= {"weights_bytes": 2**30, "free_bytes": 3 * 2**30, "peak_bytes": 2**31}
    other = {**dict.fromkeys(one, 0), "load_s": 5.0}
    assert throughput([one, other]) == {
        "actors": 2,
        "batches": 2,
        "requests": 6,
        "requests_per_batch": 3.0,
        "prompt_tokens_per_s": 20.0,
        "generated_tokens_per_s": 4.0,
        "padding_share": 0.2,
        "shared_share": 0.3333,
        "waiting_share": 0.25,
        "out_of_memory": 1,
        "busy_s": 3.0,
        "load_s": 5.0,
        "weights_gib": 1.0,
        "free_gib": 3.0,
        "peak_gib": 2.0,
    }
    assert throughput([other])["prompt_tokens_per_s"] is None

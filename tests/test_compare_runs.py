"""Models of several runs against each other, by the command line and from samples alone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import compare as job
import pytest
import report
from made_samples import sample, spec, task_spec

from rambla_ray.errors import UserError
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, to_json
from rambla_ray.results.documents import check_shape
from rambla_ray.results.gates import Gate
from rambla_ray.results.rivals import Contest, rivals_of
from rambla_ray.results.shapes import Metrics
from rambla_ray.schema import to_table
from rambla_ray.storage import Folder

Models = Mapping[str, float]  # By model, how often it is right.


def stored(
    folder: Path,
    models: Models,
    *,
    items: range = range(40),
    tasks: tuple[str, ...] = ("t",),
    labels: tuple[str, str] = ("yes", "no"),
    question: Callable[[int], str] = "Is {} so?".format,
) -> Path:
    """A run directory whose models are right so often, with items of such numbers."""
    how = spec({task: task_spec({"": len(items)}, labels=labels) for task in tasks}, list(models))
    directory = RunDirectory(Folder(str(folder)))
    for model, share in models.items():
        draw = random.Random(f"{folder.name} {model}")
        made = []
        for task in tasks:
            for item in items:
                one = sample(f"i{item}", labels[draw.random() >= share], labels[0], model=model, task=task)
                one.fields = {"question": question(item), "response": f"{draw.random()}"}
                made.append(one)
        writer = directory.sample_writer(model, how)
        writer.add(to_table(made))
        writer.close()
    return folder


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        status = job.main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def contest(*folders: Path, baseline: str | None = None) -> Contest:
    return Contest(rivals_of([RunDirectory(Folder(str(folder))) for folder in folders]), baseline)


def named(pairs: list[tuple[Any, Any]]) -> list[str]:
    return [f"{baseline.name} {model.name}" for baseline, model in pairs]


def test_a_model_meets_its_namesake_and_one_without_meets_all(tmp_path: Path) -> None:
    first = stored(tmp_path / "one", {"a": 0.5, "b": 0.6})
    second = stored(tmp_path / "two", {"a": 0.7, "c": 0.8})
    assert named(contest(first, second).pairs()) == ["one/a two/a", "one/a c", "b c"]
    assert named(contest(first, second, baseline="c").pairs()) == ["c one/a", "c b", "c two/a"]


def test_samples_meet_by_task_variant_and_item(tmp_path: Path, compared: Any) -> None:
    first = stored(tmp_path / "one", {"a": 1.0})
    second = stored(tmp_path / "two", {"b": 0.0}, items=range(30, 90))
    _, whole = contest(first, second).comparisons()
    assert (whole["a"], whole["b"], whole["n"], whole["difference"]["value"]) == ("b", "a", 10, -1)
    status, out, _ = compared(first, second)
    assert status == 0
    assert "a is better than b in t: b has -100.0 points" in out
    assert "30 samples of a are not in b: t/-/i0, t/-/i1, t/-/i10, …" in out
    assert "50 samples of b are not in a" in out


def test_runs_are_compared_as_the_models_of_one_run_are(tmp_path: Path) -> None:
    models = {"a": 0.5, "b": 0.8}
    whole = stored(tmp_path / "run", models, tasks=("t", "u"))
    inside = RunDirectory(Folder(str(whole))).score()["comparisons"]
    rivals = rivals_of([RunDirectory(Folder(str(whole)))])
    outside = Contest(rivals, baseline="b").comparisons()
    assert inside == outside


def test_the_ranking_is_over_what_all_have(tmp_path: Path) -> None:
    runs = [
        stored(tmp_path / "one", {"a": 0.0}),
        stored(tmp_path / "two", {"b": 1.0}, items=range(20, 60)),
        stored(tmp_path / "three", {"c": 0.5}, items=range(10, 60)),
    ]
    ranking = contest(*runs).ranking()
    assert [(row["model"], row["of"], row["n"]) for row in ranking] == [("b", 20, 20), ("c", 20, 20), ("a", 20, 20)]
    assert ranking[0]["accuracy"]["value"] == 1
    low, high = ranking[2]["accuracy"]["ci95"]
    assert low == 0
    assert high == pytest.approx(3.8414588 / (20 + 3.8414588)), "Wilson's interval of 0 of 20"


@pytest.mark.parametrize(
    ("gate", "status"),
    [
        ("accuracy>=-0.02", 3),
        ("accuracy>=-1", 0),
        ("t:accuracy<0", 0),
        ("all:accuracy<0", 0),
        ("u : accuracy.high < 0", 0),
        ("accuracy.low>0", 3),
        ("coverage>=0", 0),
        ("p<0.05", 0),
        ("p>5e-1", 3),
    ],
)
def test_a_gate(gate: str, status: int, tmp_path: Path, compared: Any) -> None:
    first = stored(tmp_path / "one", {"a": 1.0}, tasks=("t", "u"))
    second = stored(tmp_path / "two", {"b": 0.3}, tasks=("t", "u"))
    ended, _, err = compared(first, second, "--gate", gate)
    assert ended == status
    assert err.count("\n") == (status == 3)
    assert ("is not met" in err) == (status == 3)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["one"], "a comparison is of two runs or more, and not of 1"),
        (["one", "one"], "is named 2 times"),
        (["one", "nowhere"], "there are no samples"),
        (["one", "two", "--gate", "acuracy>=0"], "no metric 'acuracy'; did you mean 'accuracy'?"),
        (["one", "two", "--gate", "accuracy"], "is no gate"),
        (["one", "two", "--gate", "accuracy>1.2.3"], "is no number"),
        (["one", "two", "--gate", "v:accuracy>0"], "no task v was compared"),
        (["one", "two", "--gate"], "--gate needs a value"),
        (["one", "two", "--baseline=z"], "no model 'z' in these runs"),
        (["one", "two", "--bseline=z"], "no flag '--bseline'; did you mean '--baseline'?"),
        (["one", "others"], "no scored sample in common"),
        (["one", "labels"], "task t has the labels yes, no in a and right, wrong in d"),
        (["one", "data"], "40 of 40 samples of a and e have the same id and other items (t/-/i0, t/-/i1, t/-/i10)"),
    ],
)
def test_what_cannot_be_compared_is_one_line(words: list[str], complaint: str, tmp_path: Path, compared: Any) -> None:
    stored(tmp_path / "one", {"a": 0.5})
    stored(tmp_path / "two", {"b": 0.5})
    stored(tmp_path / "others", {"c": 0.5}, items=range(100, 110))
    stored(tmp_path / "labels", {"d": 0.5}, labels=("right", "wrong"))
    stored(tmp_path / "data", {"e": 0.5}, question="Is {} otherwise?".format)
    status, out, err = compared(
        *(word if word.startswith("-") or ">" in word or word == "accuracy" else tmp_path / word for word in words)
    )
    assert (status, out) == (1, "")
    assert complaint in err
    assert err.count("\n") == 1


def test_other_data_is_compared_when_told_to(tmp_path: Path, compared: Any) -> None:
    first = stored(tmp_path / "one", {"a": 0.5})
    other = stored(tmp_path / "data", {"e": 0.5}, question="Is {} otherwise?".format)
    assert compared(first, other, "--other-data")[0] == 0


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path, compared: Any) -> None:
    first, second = stored(tmp_path / "one", {"a": 0.5}), stored(tmp_path / "two", {"b": 0.5})
    (second / "config.yaml").write_text("format: 99\n")
    status, _, err = compared(first, second)
    assert status == 1
    assert "was written by a newer rambla_ray" in err


def test_an_undefined_number_meets_no_gate() -> None:
    names = {"a": "b", "b": "a", "task": "all", "variant": ""}
    scored = {"a": 0, "b": 0, "neither": 4}
    nothing = {**names, "n": 0, "difference": None, "holm_p": None, "scored_alone": scored}
    assert Gate.parse("accuracy>=-1").failures([nothing]) == [
        "gate accuracy>=-1 is not met: accuracy of b against a is undefined"
    ]


def test_runs_in_a_folder_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, finished, params in (
        ("one", True, {"engine": "gpt-x", "temperature": 0.5}),
        ("two", False, {"model_name": "llama", "generation_config": {"temperature": 0.7}}),
    ):
        question = {
            "targets": {"m": {"name": "kind", "params": params}},
            "tasks": {f"task{n}": {"stages": [], "answer": {}} for n in range(5)},
        }
        directory = RunDirectory(Folder(str(stored(tmp_path / name, {"m": 0.5}))))
        directory.write("config.yaml", json.dumps({"format": 1, "question": question, "options": {}}).encode())
        entry = invocation(1_000_000_000.0, 0, {}, finished=finished)
        directory.write("calls.json", to_json({"models": [], "invocations": [entry], "wall_s": 0.0}))
        directory.write("plan.json", b"{}")
    (tmp_path / "ledger").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("model: mock")
    broken = stored(tmp_path / "broken", {"m": 0.5})
    (broken / "config.yaml").write_text("format: 99\n")
    (broken / "plan.json").write_text("{}")
    assert report.main([str(tmp_path)]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    lines = {row[1].strip(): "".join(row) for row in rows if row[1].strip()}
    assert set(lines) == {"one", "two", "broken"}
    assert "2001-09-09 01:46" in lines["one"]
    assert "m (gpt-x, temperature 0.5)" in lines["one"]
    assert "task0, task1, task2, 2 more" in lines["one"]
    assert "finished" in lines["one"]
    assert "m (llama, temperature 0.7)" in lines["two"]
    assert "stopped" in lines["two"]
    assert "cannot be read" in lines["broken"]


def test_a_model_that_gives_scores_is_not_compared(tmp_path: Path) -> None:
    run = stored(tmp_path / "one", {"a": 0.5})
    how = spec({"t": task_spec({"": 3}, labels=("0", "1"))}, ["n", "m"])
    directory = RunDirectory(Folder(str(tmp_path / "scores")))
    for model in ("n", "m"):
        writer = directory.sample_writer(model, how)
        writer.add(to_table([sample(f"i{item}", "0.75", "01"[item % 2], model=model) for item in range(3)]))
        writer.close()
    scores = directory.score()
    for one in scores["comparisons"]:
        assert one["difference"] is one["scored_alone"] is None
        assert one["null_reasons"]["n"] == "a model gives scores, not answers"
    check_shape(scores, Metrics, "metrics.json")
    assert Gate.parse("t:coverage>=0").failures(scores["comparisons"]), "what is undefined holds no gate"
    with pytest.raises(UserError, match="no scored sample in common"):
        Contest(rivals_of([RunDirectory(Folder(str(run))), directory])).comparisons()

"""A judge that errs: how often it does, from a run or a table, and what a score is without its errors."""

from __future__ import annotations

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from config_files import loaded, no_endpoint  # noqa: F401 - a fixture
from made_samples import sample, spec, store, task_spec
from panel_models import judges
from scipy.optimize import minimize
from scipy.stats import binomtest

from rambla_ray.errors import UserError
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.results.judge_calibration import read_calibration
from rambla_ray.results.judged import judge_lines, judge_warnings
from rambla_ray.results.score import score
from rambla_ray.results.shapes import Metrics
from rambla_ray.run.plan import Plan
from rambla_ray.scoring.correction import Tally, from_stored, rogan_gladen, stored, tallies
from rambla_ray.scoring.undefined import Undefined

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "judge_correction.py"
Z2 = 1.959963984540054**2


def tally(hits: int, n: int) -> Tally:
    """Hits among n items with a row each."""
    return Tally.of(np.arange(n), np.arange(n) < hits)


# --- the number and its interval -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hits", "se", "sp", "value"),
    [
        (60, 90, 80, (0.6 + 0.8 - 1) / (0.9 + 0.8 - 1)),
        (60, 100, 100, 0.6),
        (15, 90, 80, 0.0),  # Fewer than the judge wrongly calls right: clipped.
        (95, 90, 80, 1.0),
    ],
)
def test_the_corrected_share_is_that_of_rogan_and_gladen(hits, se, sp, value):
    found = rogan_gladen(tally(hits, 100), tally(se, 100), tally(sp, 100))
    assert found["value"] == pytest.approx(value)
    low, high = found["ci95"]
    assert 0 <= low <= value <= high <= 1


def test_with_a_judge_that_is_known_to_be_right_it_is_wilsons_interval():
    perfect = from_stored({"1": [[1, 1, 10**9]]})["1"]
    found = rogan_gladen(tally(60, 100), perfect, perfect)
    wilson = binomtest(60, 100).proportion_ci(method="wilson")
    assert found["ci95"] == pytest.approx([wilson.low, wilson.high], abs=1e-6)


@pytest.mark.parametrize(("hits", "se", "sp"), [(60, 45, 40), (90, 49, 35), (20, 50, 50), (97, 50, 43)])
def test_its_ends_are_where_the_test_at_the_likeliest_judge_changes_its_mind(hits, se, sp):
    """The likeliest sensitivity and specificity are found here by maximising the likelihood itself."""
    found = rogan_gladen(tally(hits, 100), tally(se, 50), tally(sp, 50))
    for end in (end for end in found["ci95"] if 0 < end < 1):

        def surprise(judge: Sequence[float], end: float = end) -> float:
            p = end * judge[0] + (1 - end) * (1 - judge[1])
            counts = ((p, hits, 100), (judge[0], se, 50), (judge[1], sp, 50))
            return -sum(k * np.log(q) + (n - k) * np.log(1 - q) for q, k, n in counts)

        best = minimize(surprise, [0.8, 0.8], bounds=[(1e-9, 1 - 1e-9)] * 2, options={"ftol": 1e-15}).x
        p = end * best[0] + (1 - end) * (1 - best[1])
        r = hits / 100 - end * se / 50 - (1 - end) * (1 - sp / 50)
        spread = p * (1 - p) / 100
        spread += (end**2 * best[0] * (1 - best[0]) + (1 - end) ** 2 * best[1] * (1 - best[1])) / 50
        assert r**2 / spread == pytest.approx(Z2, rel=1e-2)


def test_rows_of_one_item_count_as_few_and_kinds_are_kept_as_counts():
    alike = Tally.of(np.repeat(np.arange(25), 4), np.repeat(np.arange(25) < 15, 4))
    once = tally(15, 25)
    assert (alike.n, alike.share, once.effective) == (100, 0.6, 25)
    assert alike.effective == pytest.approx(24, abs=0.1)  # 25 less the one for the mean.
    assert Tally.of(np.repeat(np.arange(25), 4), np.ones(100)).effective == 25
    mixed = tallies(["1", "1", "0", "1"], ["1", "0", "0", "1"], ["a", "a", "b", "c"])
    assert stored(mixed) == {"0": [[1, 1, 1]], "1": [[1, 1, 1], [2, 1, 1]]}
    assert stored(from_stored(stored(mixed))) == stored(mixed)


def test_a_judge_that_tells_nothing_corrects_nothing():
    found = rogan_gladen(tally(60, 100), tally(50, 100), tally(50, 100))
    assert isinstance(found, Undefined)
    assert "add up to no more than 1" in found.reason


def test_a_share_that_no_such_judge_can_find_has_no_interval():
    found = rogan_gladen(tally(995, 1000), tally(70, 100), tally(95, 100))
    assert found["value"] == 1
    assert isinstance(found["ci95"], Undefined)


@pytest.mark.parametrize(
    "setting", [(0.8, 0.9, 0.9, 100, 100, 1), (0.95, 0.8, 0.95, 50, 300, 1), (0.5, 0.9, 0.9, 100, 100, 4)]
)
def test_the_interval_holds_the_truth_as_often_as_it_promises(setting):
    benchmark = runpy.run_path(str(BENCHMARK))
    (ours, _), *_ = benchmark["coverage"](benchmark["Setting"](*setting), repetitions=300)
    assert 0.92 <= ours <= 0.985  # 95 % ± 2.5 of noise.


# --- where a calibration comes from ----------------------------------------------------------------------------------

ROWS = [("1", "1"), ("1", "1"), ("1", "0"), ("0", "0"), ("0", "0"), ("0", "0"), ("0", "1")]  # label, verdict
COUNTS = {"0": [[1, 0, 1], [1, 1, 3]], "1": [[1, 0, 1], [1, 1, 2]]}


def write_table(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        path.write_text("\n".join(lines))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def read(tmp_path: Path, path: Path, *words: str) -> dict[str, Any]:
    """What is read of a calibration for a run of question_formation by judge ja."""
    return read_calibration(loaded(judges(tmp_path), "task=question_formation", "roles.judge=ja", *words), str(path))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("words", [{"1": 1, "0": 0}, {"1": "Yes", "0": "no"}, {"1": True, "0": False}])
def test_a_table_may_hold_labels_choices_or_truth_values(tmp_path, ending, words):
    if ending == "csv" and words["1"] is True:
        words = {"1": "1", "0": " 0 "}
    rows = [{"label": words[label], "verdict": words[verdict]} for label, verdict in ROWS]
    found = read(tmp_path, write_table(tmp_path / f"cal.{ending}", rows))
    assert found["labels"] == COUNTS
    assert found["judge"] == "ja"
    assert found["source"].startswith(f"cal.{ending}, sha256 ")


def test_rows_of_a_table_without_a_verdict_are_passed_over_and_those_of_one_item_belong_together(tmp_path):
    rows = [
        {"label": label, "verdict": verdict, "root_id": "a" if label == "1" else f"b{place}"}
        for place, (label, verdict) in enumerate(ROWS)
    ]
    rows.append({"label": "1", "verdict": None, "root_id": "c"})
    found = read(tmp_path, write_table(tmp_path / "cal.csv", rows))
    assert found["labels"] == {"0": COUNTS["0"], "1": [[3, 2, 1]]}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"label": "1", "said": "1"}],
            r"row 1 has no column 'verdict'; it needs verdict .* and label .* it has label, said",
        ),
        ([{"verdict": "1"}], "row 1 has no column 'label'"),
        ([{"label": "1", "verdict": "perhaps"}], "row 1: verdict is 'perhaps', which is none of 1, 0"),
        ([{"label": None, "verdict": "1"}], "row 1: label is 'None', which is none of 1, 0"),
        ([{"label": "1", "verdict": "1"}] * 3, "it has 3 verdicts, and none on a text whose label is 0; both"),
        ([{"label": "1", "verdict": None}], "it has 0 verdicts, and none on a text whose label is 0 or 1"),
    ],
)
def test_a_table_that_does_not_say_it_is_refused_in_one_line(tmp_path, rows, message):
    path = write_table(tmp_path / "cal.jsonl", rows)
    with pytest.raises(UserError, match=message) as refused:
        Plan(loaded(judges(tmp_path), "task=question_formation", "roles.judge=ja", f"judge_calibration={path}"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["judge_calibration=nowhere"], r"judge_calibration \(nowhere\) is no run directory, and no table"),
        (["judge_calibration=nowhere.csv"], r"judge_calibration \(nowhere.csv\) cannot be read: "),
        (
            ["task=mcqabaseline", "judge_calibration=x.csv"],
            "no task of the run has a judge that answers with one of two",
        ),
        (
            ["task=conclusion_generation", "judge_calibration=x.csv"],
            "no task of the run has a judge that answers with",
        ),
    ],
)
def test_a_calibration_that_is_not_there_or_serves_nothing_is_refused_in_one_line(tmp_path, words, message):
    with pytest.raises(UserError, match=message) as refused:
        Plan(loaded(judges(tmp_path), "task=question_formation", "roles.judge=ja", *words))
    assert "\n" not in str(refused.value)


def calibrating_run(tmp_path: Path, *words: str, models: str = "ja,jb,jc") -> RunDirectory:
    """A run of the judges on a similarity task, in which jb is right, and ja wrong of every fourth."""
    config = loaded(
        judges(tmp_path), f"model={models}", "task=similarity_sick", f"runs_dir={tmp_path / 'runs'}", *words
    )
    directory = RunDirectory.create(config)
    directory.begin(config, {}, [])
    expected = {(task, ""): 16 for task in config.tasks}
    for model in config.targets:
        for task in config.tasks:
            samples = []
            for number in range(16):
                target = str(number % 2)
                is_right = model == "jb" or (model == "ja" and number % 8 > 1) or (model == "jc" and 2 <= number < 8)
                answer = target if is_right else str(1 - int(target))
                outcome = "unparsed" if model == "jc" and number >= 8 else "scored"
                samples.append(sample(str(number), answer, target, model=model, task=task, outcome=outcome))
            store(directory.folder.location, scoring_spec(config, expected), samples, model=model)
    return directory


def test_a_run_of_the_judge_says_how_often_it_is_right(tmp_path):
    run = calibrating_run(tmp_path)
    found = read(tmp_path, Path(run.folder.location))
    assert found["labels"] == {label: [[1, 0, 2], [1, 1, 6]] for label in "01"}
    assert found["source"] == f"task similarity_sick of run {run.folder.name}"
    assert found["other_prompt"] == ["question_formation"]
    majority = read(tmp_path, Path(run.folder.location), "roles.judge=ja,jb,jc")
    # Two of 8 samples each are wrong by ja and jc; where jc has none, ja and jb are tied on as many.
    assert majority["judge"] == "ja,jb,jc"
    assert majority["labels"] == {label: [[1, 0, 1], [1, 1, 6]] for label in "01"}


def test_the_same_prompt_under_other_names_is_the_same(tmp_path):
    task = loaded(judges(tmp_path), "task=question_formation", "roles.judge=ja").tasks["question_formation"]
    template = task.generates[-1].template.replace("{response}", "{text_1}").replace("{question}", "{text_2}")
    run = calibrating_run(tmp_path)
    stored_config = Path(run.folder.path("config.yaml"))
    document = yaml.safe_load(stored_config.read_text())
    document["question"]["tasks"]["similarity_sick"]["stages"][0]["compare"]["template"] = template
    stored_config.write_text(yaml.safe_dump(document))
    assert "other_prompt" not in read(tmp_path, Path(run.folder.location))


@pytest.mark.parametrize(
    ("of_run", "words", "message"),
    [
        (["model.params.flip=0.9"], [], "is not of the judge ja: there these keys of ja differ: params.flip"),
        ([], ["roles.judge=mock"], "is not of the judge mock: it tested ja, jb, jc"),
        ([], ["roles.judge=ja,mock,jb"], "is not of the judge mock: it tested ja, jb, jc"),
        (
            ["task=similarity_sick,similarity_mrpc"],
            [],
            "it needs one task in which the model compares two texts, such as",
        ),
        (["task=mcqabaseline"], [], "such as similarity_sick, and has none"),
    ],
)
def test_a_run_of_another_judge_or_task_is_refused_in_one_line(tmp_path, of_run, words, message):
    run = calibrating_run(tmp_path, *of_run)
    with pytest.raises(UserError, match=message) as refused:
        read(tmp_path, Path(run.folder.location), *words)
    assert "\n" not in str(refused.value)


# --- metrics.json ----------------------------------------------------------------------------------------------------


def scored_with(tmp_path: Path, targets: str, right: int, counts: dict[str, list[list[int]]]) -> dict[str, Any]:
    """What metrics.json holds of samples with these right answers, of which the judge found so many right."""
    samples = [
        sample(str(place), target if place < right else str(1 - int(target)), target)
        for place, target in enumerate(targets)
    ]
    calibration = {"source": "a table", "judge": "ja", "labels": counts, "other_prompt": ["t"], "synthetic": True}
    how = spec({"t": {**task_spec({"": len(samples)}, labels=("1", "0")), "judge": "compare"}})
    return score(store(tmp_path, {**how, "judge_calibration": calibration}, samples).samples)


GOOD = {"1": [[1, 1, 90], [1, 0, 10]], "0": [[1, 1, 80], [1, 0, 20]]}


def test_metrics_hold_the_corrected_score_beside_the_raw_one(tmp_path):
    metrics = scored_with(tmp_path, "1" * 50, 40, GOOD)
    Metrics.model_validate_json(json.dumps(metrics))
    (cell,) = metrics["cells"]
    assert cell["accuracy"]["value"] == 0.8
    assert cell["corrected"]["value"] == pytest.approx((0.8 + 0.8 - 1) / 0.7)
    assert cell["corrected"]["ci95"] == pytest.approx(
        rogan_gladen(tally(40, 50), tally(90, 100), tally(80, 100))["ci95"]
    )
    assert (cell["corrected"]["sensitivity"]["value"], cell["corrected"]["specificity"]["value"]) == (0.9, 0.8)
    assert metrics["judge_calibration"]["labels"]["0"]["n"] == 100
    (line,) = judge_lines(metrics)
    assert line.startswith("m t: corrected for the judge's errors 85.7 % (")
    assert "where it found 80.0 % (67.0 to 88.8) right (sensitivity 90.0 % (" in line
    prompt, synthetic = judge_warnings(metrics)
    assert prompt.startswith("the judge's errors were measured with another prompt than that of t (a table)")
    assert synthetic == "the judge's errors were measured on synthetic demo data (a table)"


@pytest.mark.parametrize(
    ("targets", "counts", "reason"),
    [
        ("1" * 9 + "0", GOOD, "the right answers differ"),
        ("1" * 10, {label: [[1, 1, 5], [1, 0, 5]] for label in "01"}, "add up to no more than 1"),
        ("1" * 10, {"a": GOOD["1"], "b": GOOD["0"]}, "judge_calibration has the labels a, b"),
    ],
)
def test_where_there_is_no_corrected_score_the_reason_is(tmp_path, targets, counts, reason):
    metrics = scored_with(tmp_path, targets, 8, counts)
    (cell,) = metrics["cells"]
    numbers = cell["corrected"] or {"value": None}
    assert numbers["value"] is None
    assert any(reason in found for place, found in cell["null_reasons"].items() if place.startswith("corrected"))
    assert list(judge_lines(metrics)) == []
    assert (
        sum("the score corrected for the judge's errors is not there: " in line for line in judge_warnings(metrics))
        == 1
    )

"""RAmBLA's own numbers: which samples they hold, recomputed here from what the original would have had."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_samples import sample, spec, store, task_spec
from scipy import stats
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support, roc_auc_score

from rambla_ray.config.load import load
from rambla_ray.config.task import TaskConfig
from rambla_ray.results.directory import scoring_spec
from rambla_ray.schema import Sample, Step
from rambla_ray.scoring.outcomes import finish

DROPPED = "dropped"  # a sample that the original's numbers do not hold

TARGET, JUDGE, REPHRASER = "target", "judge", "rephraser"
ANSWERED = (TARGET, "It is a letter.", "")


def step(role: str, text: str, error_kind: str = "", finish_reason: str = "stop") -> Step:
    return Step("generate:x", role, "m", "1", "?", text=text, error_kind=error_kind, finish_reason=finish_reason)


# What a task's steps got, and what the original reads then: a category, or that it has no such row. A call that it
# skips leaves "-1"; any other failure, and every one of a rephraser, ends its run.
CASES: dict[str, list[tuple[list[tuple[str, ...]], str]]] = {
    "mcqabaseline": [
        ([(TARGET, "Yes.")], "yes"),
        ([(TARGET, "There is no evidence, so yes")], "no"),
        ([(TARGET, "Either yes or no.")], "yes"),
        ([(TARGET, "Who knows?")], "null"),
        ([(TARGET, "")], "null"),
        ([(TARGET, "The trial", "", "length")], "null"),
        ([(TARGET, "I cannot answer medical questions.")], "null"),
        ([(TARGET, "", "", "content_filter")], "null"),
        ([(TARGET, "", "refused")], "null"),
        ([(TARGET, "", "too_long")], "null"),
        ([(TARGET, "", "server")], DROPPED),
        ([(TARGET, "", "timeout")], DROPPED),
        ([(TARGET, "", "bad_item")], DROPPED),
    ],
    "paraphrase": [
        ([(REPHRASER, "Is it?"), (TARGET, "No.")], "no"),
        ([(REPHRASER, "Is it?"), (TARGET, "", "too_long")], "null"),
        ([(REPHRASER, "", "too_long")], DROPPED),
        ([(REPHRASER, "", "server")], DROPPED),
        ([(REPHRASER, "")], DROPPED),
    ],
    "negation": [
        ([(REPHRASER, "It is not."), (TARGET, "No.")], "yes"),
        ([(REPHRASER, "It is not."), (TARGET, "null, yes")], "no"),
        ([(REPHRASER, "It is not."), (TARGET, "Who knows?")], "null"),
        ([(REPHRASER, "", "refused")], DROPPED),
    ],
    "conclusion_generation": [
        ([ANSWERED, (JUDGE, "Yes.")], "yes"),
        ([ANSWERED, (JUDGE, "Unknown")], "unknown"),
        ([ANSWERED, (JUDGE, "Either no or yes.")], "no"),
        ([ANSWERED, (JUDGE, "Who knows?")], "null"),
        ([ANSWERED, (JUDGE, "")], "null"),
        ([ANSWERED, (JUDGE, "", "too_long")], "null"),
        ([ANSWERED, (JUDGE, "", "refused")], "null"),
        ([ANSWERED, (JUDGE, "", "server")], DROPPED),
        ([ANSWERED, (JUDGE, "", "bad_item")], DROPPED),
        ([(TARGET, "")], "null"),
        ([(TARGET, "", "too_long")], "null"),
        ([(TARGET, "", "refused")], "null"),
        ([(TARGET, "", "connection")], DROPPED),
    ],
    "question_formation": [
        ([ANSWERED, (JUDGE, "Yes.")], "1"),
        ([ANSWERED, (JUDGE, "No.")], "0"),
        ([ANSWERED, (JUDGE, "The null hypothesis: yes")], "null"),
        ([ANSWERED, (JUDGE, "Either no or yes.")], "0"),
        ([ANSWERED, (JUDGE, "Who knows?")], "null"),
        ([ANSWERED, (JUDGE, "")], "null"),
        ([ANSWERED, (JUDGE, "", "too_long")], DROPPED),
        ([ANSWERED, (JUDGE, "", "refused")], DROPPED),
        ([ANSWERED, (JUDGE, "", "server")], DROPPED),
        ([(TARGET, "")], "null"),
        ([(TARGET, "", "too_long")], DROPPED),
        ([(TARGET, "", "refused")], DROPPED),
        ([(TARGET, "", "server")], DROPPED),
    ],
    "similarity_sick": [
        ([(TARGET, "Yes.")], "1"),
        ([(TARGET, "null; no")], "null"),
        ([(TARGET, "Who knows?")], "null"),
        ([(TARGET, "", "too_long")], "null"),
        ([(TARGET, "", "server")], DROPPED),
    ],
}


def shipped(task: str) -> tuple[TaskConfig, dict[str, Any]]:
    """A shipped task, and how a run of it is scored."""
    config = load(["model=mock", f"task={task}", "roles.judge=mock", "roles.rephraser=mock"])
    return config.tasks[task], scoring_spec(config, {})["tasks"][task]


def ended(number: int, config: TaskConfig, steps: Sequence[tuple[str, ...]], label: str) -> Sample:
    """A sample whose steps got these texts, as it ends."""
    one = replace(sample(str(number), label, label, model="mock"), answer="", rambla_answer="", outcome="")
    one.steps = [step(*each) for each in steps]
    finish(one, config)
    return one


def scored(location: Path, task_spec: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """What metrics.json holds of the only cell."""
    how = {**task_spec, "variants": [""], "expected": {"": len(samples)}, "pair_with": None}
    (cell,) = store(location, spec({"t": how}), samples).score()["cells"]
    return dict(cell)


@pytest.mark.parametrize(
    ("task", "steps", "read"),
    [(task, *case) for task, cases in CASES.items() for case in cases],
)
def test_a_sample_counts_as_it_does_in_the_original(
    task: str, steps: list[tuple[str, ...]], read: str, tmp_path: Path
) -> None:
    config, how = shipped(task)
    one = ended(1, config, steps, config.answer.label_names[0])
    rambla = scored(tmp_path, how, [one])["rambla"]
    counts = {key.removeprefix("class_counts/n_pred_"): n for key, n in rambla.items() if "n_pred_" in key and n}
    assert counts == ({} if read == DROPPED else {read: 1})


@pytest.mark.parametrize("task", CASES)
def test_numbers_of_mixed_outcomes_are_those_of_sklearn(task: str, tmp_path: Path) -> None:
    config, how = shipped(task)
    labels = config.answer.label_names[:2] if task != "question_formation" else ("1",)
    rows = [(label, *case) for label in labels for case in CASES[task]] + [(labels[0], *CASES[task][0])] * 3
    samples = [ended(number, config, steps, label) for number, (label, steps, _) in enumerate(rows)]
    rambla = scored(tmp_path, how, samples)["rambla"]
    kept = [(label, read) for label, _, read in rows if read != DROPPED]
    classes = sorted([*config.answer.label_names, "null"])
    targets, read = ([classes.index(value) for value in column] for column in zip(*kept, strict=True))
    precision, recall, f1, _ = precision_recall_fscore_support(targets, read, average="weighted", zero_division=0.0)
    assert rambla["confusion_matrix"] == confusion_matrix(targets, read, labels=range(len(classes))).tolist()
    assert {key: rambla[key] for key in ("precision", "recall", "f1")} == pytest.approx(
        {"precision": precision, "recall": recall, "f1": f1}, abs=1e-12
    )
    if task == "question_formation":
        share = sum(one == other for one, other in kept) / len(kept)
        assert rambla["accuracy"] == pytest.approx(share)
        assert (rambla["precision"], rambla["f1"]) == (1.0, pytest.approx(2 * share / (1 + share)))
    else:
        assert "accuracy" not in rambla


def test_the_judges_texts_alone_decide_whatever_the_robust_reader_makes_of_them(tmp_path: Path) -> None:
    """The reader below is the original's, in other words: no dots, lower case, the first choice anywhere."""
    config, how = shipped("conclusion_generation")
    texts = ["Yes", "No, or yes.", "unknown or no", "Y.e.s", "nothing", "no-one", "_yes_", "", "Maybe: No."] * 20
    samples = [ended(n, config, [ANSWERED, (JUDGE, text)], ("yes", "no")[n % 2]) for n, text in enumerate(texts)]
    assert {one.outcome for one in samples} == {"scored", "judge_failed"}
    found = [re.search(r"\b(yes|no|unknown)\b", text.replace(".", "").lower()) for text in texts]
    expected = [match[1] if match else "null" for match in found]
    rambla = scored(tmp_path, how, samples)["rambla"]
    counts = {name: rambla[f"class_counts/n_pred_{name}"] for name in ("yes", "no", "unknown", "null")}
    assert counts == {name: expected.count(name) for name in counts}
    right = sum(one.label == read for one, read in zip(samples, expected, strict=True))
    assert rambla["recall"] == pytest.approx(right / len(samples), abs=1e-12)


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcomes", "tokens", "expected"),
    [
        (["scored", "scored"], [4, 2], {"mean": 3.0, "median": 3.0, "std": 1.0}),
        (["scored", "empty", "empty"], [6, 0, 0], {"mean": 2.0, "median": 0.0, "std": math.sqrt(8)}),
        (["scored", "failed", "too_long"], [6, 0, 0], {"mean": 6.0, "median": 6.0, "std": 0.0}),
        (["scored", "scored"], [0, 0], {"mean": None, "median": None, "std": None}),
        (["failed"], [0], {"mean": None, "median": None, "std": None}),
    ],
    ids=["answers", "empty ones have 0", "failures have none", "a model without tokens", "no answer"],
)
def test_lengths_are_those_of_all_answers(
    outcomes: list[str], tokens: list[int], expected: dict[str, Any], tmp_path: Path
) -> None:
    samples = [
        sample(str(number), outcome=outcome, text="" if outcome == "empty" else "Yes", tokens=(9, count))
        for number, (outcome, count) in enumerate(zip(outcomes, tokens, strict=True))
    ]
    cell = scored(tmp_path, task_spec({"": 0}), samples)
    assert cell["lengths"] == pytest.approx(expected)
    assert {f"lengths.{key}" for key, value in expected.items() if value is None} <= set(cell["null_reasons"])


# --- spelling --------------------------------------------------------------------------------------------------------

# RAmBLA's reading of four items labelled yes, yes, no, no, per variant. The robust reader reads them all right.
READ = {
    "n=0": ["no", "no", "yes", "yes"],
    "n=1": ["yes", "yes", "no", "yes"],
    "n=3": ["yes", "no", "no", ""],
    "n=50": ["yes", "", "", ""],
}
LABELS = ["yes", "yes", "no", "no"]


def spelling(location: Path, read: dict[str, list[str]], planned: Sequence[str] = tuple(READ)) -> dict[str, Any]:
    """The effects of a spelling task whose answers RAmBLA reads so."""
    samples = [
        sample(str(item), label, label, variant=variant, rambla_answer=answer)
        for variant, answers in read.items()
        for item, (label, answer) in enumerate(zip(LABELS, answers, strict=True))
    ]
    how = spec({"t": task_spec(dict.fromkeys(planned, 4), f"t/{planned[0]}")})
    (effects,) = store(location, how, samples).score()["effects"]
    return dict(effects)


def test_relative_changes_are_of_ramblas_own_numbers_against_one_mutation(tmp_path: Path) -> None:
    effects = spelling(tmp_path, READ)
    changes = effects["rambla"]
    assert all(row["accuracy"] == 1.0 for row in effects["variants"])
    expected: dict[str, list[float]] = {}
    for variant in ("n=1", "n=3", "n=50"):
        read = [answer or "null" for answer in READ[variant]]
        precision, recall, f1, _ = precision_recall_fscore_support(LABELS, read, average="weighted", zero_division=0)
        numbers = {"precision": precision, "recall": recall, "f1": f1, "class_counts/n_pred_no": read.count("no")}
        numbers |= {"class_counts/prop_pred_yes": read.count("yes") / 4, "class_counts/n_target_yes": 2}
        for key, value in numbers.items():
            expected.setdefault(key, []).append(value)
    for key, (base, *later) in expected.items():
        assert changes[key] == pytest.approx([(value - base) / base for value in later], abs=1e-12), key
    assert changes["recall"] == pytest.approx([-1 / 3, -2 / 3])
    # No answer is null with one mutation: a change from 0 is no number.
    assert changes["class_counts/n_pred_null"] == [None, None]
    assert changes["class_counts/n_target_null"] == [None, None]
    assert {f"rambla.class_counts/n_pred_null[{place}]" for place in (0, 1)} <= set(effects["null_reasons"])
    assert {"excl/recall/macro", "excl/recall/micro", "excl/f1/macro", "excl/precision/micro"} <= set(changes)
    assert not any("confusion_matrix" in key or "per_class" in key or "encoder" in key for key in changes)
    assert all(len(values) == 2 for values in changes.values())


def test_a_number_that_one_variant_lacks_has_no_change(tmp_path: Path) -> None:
    read = {**READ, "n=3": ["no", "no", "yes", "yes"]}  # precision and recall are 0, so that f1 is 0/0
    changes = spelling(tmp_path, read)["rambla"]
    assert changes["excl/f1/micro"][0] is None
    assert changes["excl/f1/micro"][1] == pytest.approx((1.0 - 0.75) / 0.75)


@pytest.mark.parametrize("without", ["n=1", "n=3", "n=50"])
def test_relative_changes_wait_for_every_variant(without: str, tmp_path: Path) -> None:
    read = {variant: answers for variant, answers in READ.items() if variant != without}
    effects = spelling(tmp_path, read)
    assert effects["rambla"] == {}
    assert without in effects["null_reasons"]["rambla"]


def test_a_schedule_without_a_clean_variant_begins_with_its_first(tmp_path: Path) -> None:
    planned = ("n=1", "n=3", "n=50")
    changes = spelling(tmp_path, {variant: READ[variant] for variant in planned}, planned)["rambla"]
    assert changes["recall"] == pytest.approx([-1 / 3, -2 / 3])


# --- scores ----------------------------------------------------------------------------------------------------------


def sick_lines(test_data: Path) -> list[list[str]]:
    return [line.split("\t") for line in (test_data / "sick" / "SICK_trial.txt").read_text().splitlines()[1:]]


def overlap(one: str, other: str) -> float:
    """Some score of two sentences."""
    first, second = (set(text.lower().split()) for text in (one, other))
    return len(first & second) / len(first | second)


def sick_samples(test_data: Path) -> list[Sample]:
    """SICK's trial pairs as a model that gives scores answers them."""
    samples = []
    for pair_id, one, other, score, judgment in sick_lines(test_data):
        label = "1" if judgment == "ENTAILMENT" else "0"
        answered = sample(pair_id, repr(overlap(one, other)), label)
        samples.append(replace(answered, fields={"text_1": one, "text_2": other, "relatedness_score": score}))
    return samples


def test_scores_on_sick_are_measured_against_its_relatedness(test_data: Path, tmp_path: Path) -> None:
    _, how = shipped("similarity_sick")
    samples = sick_samples(test_data)
    cell = scored(tmp_path, how, samples)
    given = np.array([float(one.answer) for one in samples])
    relatedness = np.array([float(one.fields["relatedness_score"]) for one in samples])
    right = (relatedness - relatedness.min()) / (relatedness.max() - relatedness.min())
    given32, right32 = (column.astype(np.float32).astype(np.float64) for column in (given, right))
    assert cell["rambla"]["mse"] == pytest.approx(np.mean((given32 - right32) ** 2), abs=1e-12)
    assert cell["rambla"]["mae"] == pytest.approx(np.mean(abs(given32 - right32)), abs=1e-12)
    unexplained = np.sum((given32 - right32) ** 2) / np.sum((right32 - right32.mean()) ** 2)
    assert cell["rambla"]["r_squared"] == round(1 - unexplained, 3)
    for name, test in (("pearsonr", stats.pearsonr), ("spearmanr", stats.spearmanr)):
        expected = test(given, relatedness)
        assert cell["rambla"][f"stats_{name}_statistic"] == pytest.approx(expected.statistic, abs=1e-12)
        assert cell["rambla"][f"stats_{name}_pvalue"] == pytest.approx(expected.pvalue, rel=1e-9)
    labels = [int(one.label) for one in samples]
    assert cell["score"]["roc_auc"]["value"] == pytest.approx(roc_auc_score(labels, given), abs=1e-12)


def test_samples_that_were_not_scored_count_for_the_scale_and_nowhere_else(tmp_path: Path) -> None:
    how = {**task_spec({"": 4}, labels=("1", "0")), "scores_against": "relatedness_score"}
    numbers = {"0.5": "2", "0.75": "3", "0.25": "4"}
    samples = [
        replace(sample(score, score, "1"), fields={"relatedness_score": number}) for score, number in numbers.items()
    ]
    lowest, highest = (replace(sample(end, outcome="failed"), fields={"relatedness_score": end}) for end in "15")
    unknown = replace(sample("?", "0.9", "0"), fields={"relatedness_score": ""})
    rambla = scored(tmp_path, how, [*samples, lowest, highest, unknown])["rambla"]
    assert rambla["mae"] == pytest.approx((0.25 + 0.25 + 0.5) / 3)  # against 0.25, 0.5 and 0.75
    assert rambla["mse"] == pytest.approx((0.0625 + 0.0625 + 0.25) / 3)


@pytest.mark.parametrize("numbers", [["3", "3"], ["3"]], ids=["all alike", "a single one"])
def test_numbers_that_cannot_be_scaled_give_no_metrics(numbers: list[str], tmp_path: Path) -> None:
    how = {**task_spec({"": 2}, labels=("1", "0")), "scores_against": "relatedness_score"}
    samples = [
        replace(sample(str(row), f"0.{row}", str(row % 2)), fields={"relatedness_score": number})
        for row, number in enumerate(numbers)
    ]
    assert scored(tmp_path, how, samples)["rambla"] == {}


def test_scores_are_measured_against_the_label_where_the_task_names_nothing_else(tmp_path: Path) -> None:
    given = [("0.9", "1"), ("0.4", "1"), ("0.35", "0"), ("0.1", "0"), ("0.5", "0")]
    samples = [sample(str(number), score, label) for number, (score, label) in enumerate(given)]
    rambla = scored(tmp_path, task_spec({"": 5}, labels=("1", "0")), samples)["rambla"]
    assert rambla["roc_auc_score"] == pytest.approx(5 / 6)
    assert rambla["mae"] == pytest.approx(statistics.fmean([0.1, 0.6, 0.35, 0.1, 0.5]), abs=1e-7)
    alike = scored(tmp_path / "alike", task_spec({"": 2}, labels=("1", "0")), samples[:2])["rambla"]
    assert "roc_auc_score" not in alike
    assert alike["r_squared"] is None
    assert scored(tmp_path / "one", task_spec({"": 1}, labels=("1", "0")), samples[:1])["rambla"] == {}


def test_a_judge_of_labels_is_counted_against_sicks_labels(tmp_path: Path) -> None:
    _, how = shipped("similarity_sick")
    samples = [
        replace(sample(str(number), answer, label), fields={"relatedness_score": "3.5"})
        for number, (answer, label) in enumerate([("1", "1"), ("0", "1"), ("0", "0")])
    ]
    cell = scored(tmp_path, how, samples)
    assert cell["accuracy"]["value"] == pytest.approx(2 / 3)
    assert cell["rambla"]["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


# --- what stored runs and configs have -------------------------------------------------------------------------------


def test_samples_of_earlier_versions_have_the_specification_that_they_had() -> None:
    _, how = shipped("mcqabaseline")
    assert set(how) == {"labels", "pair_with", "variants", "expected"}
    assert shipped("similarity_sick")[1]["scores_against"] == "relatedness_score"
    assert shipped("conclusion_generation")[1]["judge"] == "generate"
    assert shipped("question_formation")[1]["judge"] == "compare"


def test_a_task_that_names_no_number_is_written_as_before() -> None:
    config, _ = shipped("mcqabaseline")
    written = config.model_dump(mode="json")["answer"]
    assert set(written) == {"choices", "target", "labels", "expect", "reads"}
    assert json.loads(config.answer.model_dump_json()) == written
    assert shipped("similarity_sick")[0].model_dump(mode="json")["answer"]["scores_against"] == "relatedness_score"


def test_the_number_that_scores_are_measured_against_must_exist() -> None:
    config, _ = shipped("similarity_sick")
    wrong = config.model_copy(update={"answer": config.answer.model_copy(update={"scores_against": "relatednes"})})
    with pytest.raises(
        ValueError, match=r"answer\.scores_against is 'relatednes', which nothing writes; did you mean"
    ):
        wrong.check(frozenset({"text_1", "text_2", "label", "relatedness_score"}))

"""Several judges: how a sample ends by their votes, how far they agree, and what is said of it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from config_files import loaded, no_endpoint, refusal  # noqa: F401 - a fixture
from made_samples import store
from panel_models import FLIPS, judged, judges, panelled, step

from rambla_ray.errors import UserError
from rambla_ray.results.audit import audit
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.results.failures import error_lines
from rambla_ray.results.judged import judge_lines, judge_warnings
from rambla_ray.results.report import warnings
from rambla_ray.results.score import score
from rambla_ray.results.shapes import Metrics
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.schema import SCORE, Sample, from_table, to_table
from rambla_ray.scoring.agreement import Ballots, krippendorff
from rambla_ray.scoring.outcomes import finish, has_passed, text_for_reader
from rambla_ray.scoring.undefined import Undefined

RUBBLE = "I like trains."


@pytest.mark.parametrize(
    ("texts", "votes", "answer", "outcome"),
    [
        (["Yes.", "The answer is yes.", "No"], ["yes", "yes", "no"], "yes", "scored"),
        (["No", "Unknown", "Unknown"], ["no", "unknown", "unknown"], "unknown", "scored"),
        (["Yes", None, None], ["yes", "", ""], "yes", "scored"),
        (["Yes", RUBBLE, "Yes"], ["yes", "", "yes"], "yes", "scored"),
        (["Yes", "No", None], ["yes", "no", ""], "", "judge_failed"),
        (["Yes", "No", "Unknown"], ["yes", "no", "unknown"], "", "judge_failed"),
        ([RUBBLE, "", None], ["", "", ""], "", "judge_failed"),
    ],
)
def test_most_votes_decide_whatever_the_order_of_the_judges(tmp_path, texts, votes, answer, outcome):
    task = panelled(tmp_path).tasks["conclusion_generation"]
    for order in itertools.permutations(range(3)):
        sample = judged("1", [texts[place] for place in order])
        assert has_passed(sample, task)
        finish(sample, task)
        assert (sample.answer, sample.outcome) == (answer, outcome)
        assert [one.vote for one in sample.steps[1:]] == [votes[place] for place in order]
        assert text_for_reader(sample, task) == ""


def test_what_rambla_reads_is_the_majority_of_what_its_rule_reads(tmp_path):
    task = panelled(tmp_path).tasks["conclusion_generation"]
    sample = judged("1", ["No. I mean yes.", "Not no, but yes.", "Yes"])
    finish(sample, task)
    assert (sample.answer, sample.rambla_answer) == ("yes", "no")


@pytest.mark.parametrize("text", [None, ""])
def test_judges_are_not_asked_about_nothing(tmp_path, text):
    task = panelled(tmp_path).tasks["conclusion_generation"]
    sample = judged("1", ["Yes", "Yes", "Yes"])
    sample.steps[:] = [step("target", "mock", text)]
    assert has_passed(sample, task)
    finish(sample, task)
    assert sample.outcome == ("failed" if text is None else "empty")


def test_labels_of_a_classifier_are_votes_and_its_numbers_are_none(tmp_path):
    task = panelled(tmp_path, task="question_formation").tasks["question_formation"]
    sample = judged("1", ["", "", ""], task="question_formation", target="1")
    sample.steps[1:] = [step("judge", name, text, SCORE) for name, text in zip(FLIPS, ("1", "0.9", "1"), strict=True)]
    finish(sample, task)
    assert ([one.vote for one in sample.steps[1:]], sample.answer) == (["1", "", "1"], "1")


# --- agreement -------------------------------------------------------------------------------------------------------


def ballots_of(*rows: str) -> Ballots:
    """The values of each observer, one for each unit, a dot for none."""
    values = [row.split() for row in rows]
    labels = sorted({value for row in values for value in row} - {"."})
    counts = [[sum(row[unit] == label for row in values) for label in labels] for unit in range(len(values[0]))]
    return Ballots(np.array(counts), np.arange(len(counts)).astype(object))


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [  # The worked examples of Krippendorff (2011), sections A, B and C.
        (["0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0"], 0.095),
        (["a a b b d c c c e d d a", "b a b b b c c c e d d d"], 0.692),
        (
            [
                "1 2 3 3 2 1 4 1 2 . . .",
                "1 2 3 3 2 2 4 1 2 5 . 3",
                ". 3 3 3 2 3 4 2 2 5 1 .",
                "1 2 3 3 2 4 4 1 2 5 1 .",
            ],
            0.743,
        ),
        # By hand: the units have the disagreements 2, 0, 2; of four values 0 and two 1, chance gives 16/5.
        (["0 0 1", "1 0 0"], 1 - 4 / (16 / 5)),
        (["0 1 0 1", "0 1 0 1"], 1.0),
    ],
)
def test_alpha_is_that_of_the_published_examples(rows, alpha):
    found = krippendorff([ballots_of(*rows)])
    assert found.value == pytest.approx(alpha, abs=5e-4)
    if alpha < 1:
        assert found.ci95[0] < found.value < found.ci95[1] <= 1
    else:
        assert isinstance(found.ci95, Undefined)


@pytest.mark.parametrize("rows", [["0 0 0", "0 0 0"], ["0 1 .", ". . 1"], ["0", "."]])
def test_alpha_is_undefined_where_nothing_is_left_to_chance(rows):
    found = krippendorff([ballots_of(*rows)])
    assert isinstance(found.value, Undefined)
    assert isinstance(found.ci95, Undefined)


def test_labels_of_another_cell_are_no_disagreement():
    one, other = ballots_of("0 1 0 1 0", "0 1 0 0 0"), ballots_of("a b b", "a b a")
    alone = krippendorff([one]).value
    assert krippendorff([one, one]).value == pytest.approx(alone)
    apart, mixed = krippendorff([one, other]), ballots_of("0 1 0 1 0 a b b", "0 1 0 0 0 a b a")
    assert apart.value < krippendorff([mixed]).value
    assert apart.n == 8


# --- metrics.json ----------------------------------------------------------------------------------------------------


BALLOTS: dict[str, list[str | None]] = {
    "1": ["Yes", "Yes", "Yes"],
    "2": ["Yes", "No", "Yes"],
    "3": ["No", "No", None],
    "4": ["Yes", "No", None],
    "5": [None, RUBBLE, None],
    "6": ["No", "No", "No"],
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose three judges voted as BALLOTS say, and whose target said nothing about item 7."""
    config = panelled(tmp_path, f"runs_dir={tmp_path / 'runs'}")
    task = config.tasks["conclusion_generation"]
    samples = [judged(root, texts, target="no" if root == "3" else "yes") for root, texts in BALLOTS.items()]
    samples.append(
        Sample("s", "7", "mock", "conclusion_generation", "", "yes", "yes", {}, [step("target", "mock", "")])
    )
    for sample in samples:
        finish(sample, task)
    directory = RunDirectory.create(config)
    directory.begin(config, {}, [])
    how = scoring_spec(config, {("conclusion_generation", ""): len(samples)})
    return store(directory.folder.location, how, samples, model="mock")


def test_metrics_hold_each_judges_votes_and_how_far_they_agree(run):
    metrics = score(run.samples)
    Metrics.model_validate_json(json.dumps(metrics))
    (cell,) = metrics["cells"]
    assert (cell["outcomes"]["scored"], cell["outcomes"]["judge_failed"], cell["outcomes"]["empty"]) == (4, 2, 1)
    assert cell["accuracy"]["value"] == 3 / 4
    panel = cell["panel"]
    assert (panel["n"], panel["ties"], panel["no_votes"], panel["fewer_votes"]) == (6, 1, 1, 1)
    found = [(one["judge"], one["votes"], one["missing"], one["agreement"]["value"]) for one in panel["judges"]]
    assert found == [("ja", 5, 1, 1.0), ("jb", 5, 1, 3 / 4), ("jc", 3, 3, 1.0)]
    assert panel["disagreed"] == {
        "count": 2,
        "samples": [{"sample": "2", "votes": ["yes", "no", "yes"]}, {"sample": "4", "votes": ["yes", "no", None]}],
    }
    # Votes by hand: 3 yes; 2 yes, 1 no; 2 no; 1 yes, 1 no; 3 no.
    expected = krippendorff([Ballots(np.array([[3, 0], [2, 1], [0, 2], [1, 1], [0, 3]]), np.arange(5).astype(object))])
    assert panel["alpha"] == {"n": 5, "value": pytest.approx(expected.value), "ci95": pytest.approx(expected.ci95)}
    assert metrics["panel"]["alpha"] == panel["alpha"]
    assert metrics["panel"]["judges"] == ["ja", "jb", "jc"]


def test_people_are_told_of_agreement_ties_and_missing_votes(run):
    metrics = score(run.samples)
    (line,) = judge_lines(metrics)
    assert line.startswith("mock conclusion_generation: Krippendorff's alpha ")
    assert line.endswith("agree ja 100.0 %, jb 75.0 %, jc 100.0 %; they differ on 2 of 6 samples")
    assert list(judge_warnings(metrics)) == [
        "mock conclusion_generation: of 6 judged by 3, 1 sample had fewer votes, 1 sample had a tie, 1 sample had no "
        "vote (missing votes: 1 of ja, 1 of jb, 3 of jc)"
    ]
    metrics["roles"]["judge"] = "ja,mock,jc"
    assert "the judge, mock, is also a model under test: it may judge itself kindly" in warnings(metrics)


def test_the_audit_reads_each_judge_again(run):
    assert [check.holds for check in audit(run)] == [True, True]
    samples = Path(run.samples.path("mock--conclusion_generation.parquet"))
    table = pq.read_table(samples)
    found = list(from_table(table))
    found[1].steps[2] = step("judge", "jb", "No", vote="yes")
    pq.write_table(to_table(found).replace_schema_metadata(table.schema.metadata), samples)
    _, answers = audit(run)
    assert (str(answers), answers.holds) == ("✗ answers: checked 7, of which 1 read otherwise", False)


def test_errors_name_what_each_judge_said(run):
    lines = [json.loads(line)["error"] for line in error_lines(run.samples)]
    assert lines == [
        "no majority: ja: yes; jb: no; jc: it broke",
        f"no majority: ja: it broke; jb: '{RUBBLE}'; jc: it broke",
        "no answer read from: ''",
    ]


# --- the plan and what is refused ------------------------------------------------------------------------------------


def test_the_plan_counts_the_calls_of_each_judge_and_asks_no_reader_about_them(tmp_path):
    config = panelled(tmp_path, "limit=10", "roles.reader=mock", task="conclusion_generation,mcqabaseline")
    described = Plan(config).describe()
    calls = {pool["model"]: (pool["roles"], pool["later_calls_at_most"]) for pool in described["streams"]["mock"]}
    assert {name: calls[name] for name in FLIPS} == {name: (["judge"], 10) for name in FLIPS}
    stages = {name: task["stages"] for name, task in described["tasks"].items()}
    assert [stage["role"] for stage in stages["conclusion_generation"]] == ["target", "judge"]
    assert [stage["role"] for stage in stages["mcqabaseline"]] == ["target", "reader"]
    lines = list(plan_lines(described))
    assert any(line.startswith("  each of 3 judges writes response: 10 requests") for line in lines)


def test_a_judge_alone_is_planned_stored_and_known_as_before(tmp_path):
    alone = loaded(judges(tmp_path), "task=conclusion_generation", "roles.judge=ja")
    assert "others" not in alone.stored()["roles"]["judge"]
    assert "judges" not in json.dumps(Plan(alone).describe())
    assert scoring_spec(alone, {})["roles"] == {"judge": "ja"}


TWICE = """
dataset: pubmedqa_yesno
stages:
  - generate: {role: target, template: "{question}"}
  - generate: {role: judge, writes: draft, template: "{response}"}
  - generate: {role: judge, template: "{draft}"}
answer: {choices: ["yes", "no"], target: final_decision}
"""
AVERAGE = "name: huggingface_nli\nparams: {model_name: some/nli, strategy: average}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["roles.judge=ja,jb,ja"], "roles.judge=ja,jb,ja on the command line: roles.judge: ja is named twice"),
        (["roles.rephraser=ja,jb"], "one model plays it, and not 2; several can be judges (roles.judge=a,b,c)"),
        (["roles.reader=ja,jb"], "one model plays it, and not 2"),
        (["roles.judge=ja,jx"], "no model 'jx'"),
        (["roles.judge=ja,,jb"], "roles.judge"),
        (["task=twice", "roles.judge=ja,jb"], "task twice: it asks the judge in 2 stages, and a panel answers one"),
        (["roles.judge=" + ",".join(f"j{n}" for n in range(26))], "a panel has at most 25 judges, and not 26"),
    ],
)
def test_panels_that_cannot_be_are_refused_in_one_line(tmp_path, words, message):
    conf = judges(tmp_path)
    (tmp_path / "panel/task").mkdir()
    (tmp_path / "panel/task/twice.yaml").write_text(TWICE)
    refused = refusal(conf, "task=conclusion_generation", *words)
    assert message.partition(": roles.judge: ")[2] in refused if "command line" in message else message in refused


@pytest.mark.parametrize("member", ["rouge1", "average", "nli_average", "minilm"])
def test_a_number_is_no_vote(tmp_path, member):
    conf = judges(tmp_path, average=AVERAGE)
    words = [conf, "task=question_formation", "model.params.flip=0.1"]
    with pytest.raises(
        UserError, match=f"model {member} gives a number .*, which is no vote, and task question_fo"
    ) as no:
        Plan(loaded(*words, f"roles.judge=ja,{member}"))
    assert "\n" not in str(no.value)
    assert Plan(loaded(*words, "roles.judge=ja,nli_strict")).samples_per_target == 30
    assert Plan(loaded(*words, f"roles.judge={member}")).samples_per_target == 30

"""Reading answers: as RAmBLA reads them, and each way in which a sample can end."""

from __future__ import annotations

from typing import Any

import pytest
from rambla_cases import recorded

from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import ErrorKind
from rambla_ray.schema import SCORE, Outcome, Sample, Step
from rambla_ray.scoring.outcomes import finish, has_ended
from rambla_ray.scoring.reading import read_rambla

YES_NO = ("yes", "no")


def test_answers_are_read_as_rambla_reads_them() -> None:
    cases = recorded("parse_cases")
    got = []
    for case in cases:
        categories = case["categories"]
        read = read_rambla(case["response"], list(categories))
        mapped = categories[read] if isinstance(categories, dict) and read else read
        got.append({**case, "category": mapped or "null"})
    assert len(cases) == 113
    assert got == cases


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        pytest.param("yes", YES_NO, "yes", id="bare"),
        pytest.param(" YES.\n", YES_NO, "yes", id="case, dot, white space"),
        pytest.param("Y.e.s", YES_NO, "yes", id="dots inside"),
        pytest.param("**No**, because yes", YES_NO, "no", id="first position wins"),
        pytest.param("There is no evidence, so yes", YES_NO, "no", id="a word that only looks like an answer"),
        pytest.param("no-one", YES_NO, "no", id="a hyphen ends a word"),
        pytest.param("yesterday, nope, know", YES_NO, None, id="parts of words"),
        pytest.param("_yes_ yes1 是yes", YES_NO, None, id="glued"),
        pytest.param("yes.no", YES_NO, None, id="a deleted dot merges"),
        pytest.param("", YES_NO, None, id="empty"),
        pytest.param("It is unknown whether yes", (*YES_NO, "unknown"), "unknown", id="third choice"),
        pytest.param("It is unknown whether yes", YES_NO, "yes", id="not a choice"),
        pytest.param("a b", ("a", "a b"), "a", id="listed first"),
        pytest.param("a b", ("a b", "a"), "a b", id="listed first, the longer"),
    ],
)
def test_the_first_whole_word_that_is_a_choice_is_the_answer(
    text: str, choices: tuple[str, ...], expected: str | None
) -> None:
    assert read_rambla(text, choices) == expected


TASK = TaskConfig.model_validate(
    {
        "dataset": "d",
        "stages": [
            {"generate": {"role": "rephraser", "writes": "question", "template": "{question}"}},
            {"generate": {"role": "target", "writes": "conclusion", "template": "{question}"}},
            {"generate": {"role": "judge", "template": "{conclusion}"}},
        ],
        "answer": {"choices": ["yes", "no"], "target": "final_decision"},
    }
)
ONE_STAGE = TASK.model_copy(update={"stages": TASK.stages[1:2]})


def step(role: str, text: str = "", finish_reason: str = "stop", error_kind: str = "") -> Step:
    return Step("generate", role, "m", "", "prompt", text=text, finish_reason=finish_reason, error_kind=error_kind)


def sample_of(*steps: Step) -> Sample:
    return Sample("m/t/-/1", "1", "m", "t", "", "yes", "yes", {}, list(steps))


REPHRASED, ANSWERED = step("rephraser", "q?"), step("target", "a conclusion")

# steps, task, outcome, answer
ENDS = {
    "answer": ([step("target", "Yes.")], ONE_STAGE, "scored", "yes"),
    "wrong answer": ([step("target", "no")], ONE_STAGE, "scored", "no"),
    "answer, then cut off": ([step("target", "Yes, bec", "length")], ONE_STAGE, "scored", "yes"),
    "no answer in the text": ([step("target", "perhaps")], ONE_STAGE, "unparsed", ""),
    "nothing": ([step("target", "")], ONE_STAGE, "empty", ""),
    "blank": ([step("target", " \n")], ONE_STAGE, "empty", ""),
    "cut off": ([step("target", "The study", "length")], ONE_STAGE, "truncated", ""),
    "cut off before a word": ([step("target", "", "length")], ONE_STAGE, "truncated", ""),
    "filtered": ([step("target", "I can", "content_filter")], ONE_STAGE, "refused", ""),
    "filtered to nothing": ([step("target", "", "content_filter")], ONE_STAGE, "refused", ""),
    "three steps": ([REPHRASED, ANSWERED, step("judge", "No")], TASK, "scored", "no"),
    "rephraser fails": ([step("rephraser", error_kind="timeout")], TASK, "failed", ""),
    "rephraser too long": ([step("rephraser", error_kind="too_long")], TASK, "failed", ""),
    "rephraser refuses": ([step("rephraser", error_kind="refused")], TASK, "failed", ""),
    "rephraser empty": ([step("rephraser", " ")], TASK, "failed", ""),
    "target fails, judge not asked": ([REPHRASED, step("target", error_kind="server")], TASK, "failed", ""),
    "target empty, judge not asked": ([REPHRASED, step("target", "")], TASK, "empty", ""),
    "target filtered, judge not asked": ([REPHRASED, step("target", "", "content_filter")], TASK, "refused", ""),
    "judge fails": ([REPHRASED, ANSWERED, step("judge", error_kind="timeout")], TASK, "judge_failed", ""),
    "judge too long": ([REPHRASED, ANSWERED, step("judge", error_kind="too_long")], TASK, "judge_failed", ""),
    "judge unparsed": ([REPHRASED, ANSWERED, step("judge", "perhaps")], TASK, "judge_failed", ""),
    "judge empty": ([REPHRASED, ANSWERED, step("judge", "")], TASK, "judge_failed", ""),
    "yes of a target that is not the last": ([REPHRASED, step("target", "yes")], TASK, "unparsed", ""),
    **{
        f"error {kind}": (
            [step("target", error_kind=kind)],
            ONE_STAGE,
            {"too_long": "too_long", "refused": "refused"}.get(kind, "failed"),
            "",
        )
        for kind in ErrorKind
    },
}


@pytest.mark.parametrize(("steps", "task", "outcome", "answer"), ENDS.values(), ids=ENDS.keys())
def test_a_sample_ends_in(steps: list[Step], task: TaskConfig, outcome: str, answer: str) -> None:
    sample = sample_of(*steps)
    finish(sample, task)
    assert (sample.outcome, sample.answer, sample.rambla_answer) == (outcome, answer, answer)


def test_an_answer_in_a_thought_that_was_cut_off_is_not_scored() -> None:
    cut, whole = (sample_of(step("target", "Let me see. The rate fell, so yes.", end)) for end in ("length", "stop"))
    finish(cut, ONE_STAGE)
    finish(whole, ONE_STAGE)
    assert (cut.outcome, cut.answer, cut.rambla_answer) == ("truncated", "", "yes")
    assert (whole.outcome, whole.answer) == ("scored", "yes")


def test_the_table_above_has_every_outcome() -> None:
    assert {outcome for _, _, outcome, _ in ENDS.values()} == set(Outcome)


@pytest.mark.parametrize(
    ("steps", "ended"),
    [
        pytest.param([], False, id="not begun"),
        pytest.param([REPHRASED], False, id="answered"),
        pytest.param([step("target", "cut of", "length")], False, id="cut off"),
        pytest.param([step("target", " \n")], True, id="blank"),
        pytest.param([step("target", error_kind="timeout")], True, id="failed"),
    ],
)
def test_nobody_is_asked_after_a_step_without_an_answer(steps: list[Step], ended: bool) -> None:
    assert has_ended(sample_of(*steps)) == ended


def finished(text: str, finish_reason: str, **answer: Any) -> Sample:
    config = {
        "dataset": "sick",
        "stages": [{"compare": {"role": "target", "left": "a", "right": "b", "template": "{a} {b}"}}],
        "answer": {"choices": ["yes", "no"], "target": "label", "labels": {"yes": "1", "no": "0"}, **answer},
    }
    step = Step("compare:response", "target", "m", "id", "p", text=text, finish_reason=finish_reason)
    sample = Sample("s", "r", "m", "t", "", "1", "1", {}, steps=[step])
    finish(sample, TaskConfig.model_validate(config))
    return sample


@pytest.mark.parametrize(
    ("text", "finish_reason", "answer", "outcome"),
    [
        pytest.param("Yes.", "stop", "1", "scored", id="a choice becomes its label"),
        pytest.param("0.8731", SCORE, "0.8731", "scored", id="a score stays a number"),
        pytest.param("1", SCORE, "1", "scored", id="a decision is a label"),
        pytest.param("nan", SCORE, "", "unparsed", id="no number"),
        pytest.param("0.8731", "stop", "", "unparsed", id="a text model that says a number"),
        pytest.param("I'm sorry, but I cannot help with that.", "stop", "", "refused", id="a refusal"),
    ],
)
def test_an_answer_is_stored_as_a_label(text: str, finish_reason: str, answer: str, outcome: str) -> None:
    sample = finished(text, finish_reason)
    assert (sample.answer, sample.outcome) == (answer, outcome)

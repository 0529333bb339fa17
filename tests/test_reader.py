"""The reader: a model that reads what the rules cannot. When it is asked, what it is shown, what its reply counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample, spec, store, task_spec

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.config.task import TaskConfig
from rambla_ray.errors import ErrorKind, UserError
from rambla_ray.results.calls import invocation
from rambla_ray.results.report import write_summary
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.schema import SCORE, Outcome, Sample, Step
from rambla_ray.scoring.outcomes import finish, text_for_reader
from rambla_ray.tasks import prompts
from rambla_ray.tasks.reader import possible_replies, shown_fields

OPEN = "The trial leans one way."  # The rules read nothing in it.
BOTH = "Both yes and no have their friends."  # RAmBLA's rule reads yes.


def task(*choices: str, judged: bool = False, **answer: Any) -> TaskConfig:
    stages = [{"generate": {"role": "target", "template": "{question}"}}]
    if judged:
        stages.append({"generate": {"role": "judge", "template": "{response}"}})
    return TaskConfig.model_validate(
        {
            "dataset": "d",
            "stages": stages,
            "answer": {"choices": choices or ("yes", "no"), "target": "label", **answer},
        }
    )


YES_NO, JUDGED = task(), task(judged=True)
LABELLED = task(labels={"yes": "1", "no": "0"})
WITH_NONE = task("none", "mild", "severe")


def step(role: str, text: str = "", finish_reason: str = "stop", error_kind: str = "") -> Step:
    return Step("generate", role, "m", "", "prompt", text=text, finish_reason=finish_reason, error_kind=error_kind)


def ended(task: TaskConfig, *steps: Step) -> Sample:
    found = Sample("m/t/-/1", "1", "m", "t", "", "yes", "yes", {}, list(steps))
    finish(found, task)
    return found


def replied(text: str, of: str = OPEN, finish_reason: str = "stop") -> list[Step]:
    return [step("target", of), step("reader", text, finish_reason)]


ANSWERED = step("target", "A conclusion.")

# task, steps, outcome, answer, RAmBLA's answer
ENDS = {
    "a choice": (YES_NO, replied("yes"), "scored", "yes", ""),
    "the other": (YES_NO, replied("No."), "scored", "no", ""),
    "in a sentence": (YES_NO, replied("The answer is no."), "scored", "no", ""),
    "after thinking": (YES_NO, replied("<think>no?</think>\nyes"), "scored", "yes", ""),
    "a label": (LABELLED, replied("no"), "scored", "0", ""),
    "none of these": (YES_NO, replied("none of these"), "unparsed", "", ""),
    "none": (YES_NO, replied("None."), "unparsed", "", ""),
    "none, at length": (YES_NO, replied("None of these: it says neither yes nor no."), "unparsed", "", ""),
    "another word": (YES_NO, replied("perhaps"), "unparsed", "", ""),
    "two choices": (YES_NO, replied("yes or no"), "unparsed", "", ""),
    "nothing": (YES_NO, replied(" "), "unparsed", "", ""),
    "a filtered reply": (YES_NO, replied("", finish_reason="content_filter"), "unparsed", "", ""),
    "no reply": (YES_NO, [step("target", OPEN), step("reader", error_kind="server")], "unparsed", "", ""),
    "RAmBLA's rule beside it": (YES_NO, replied("no", of=BOTH), "scored", "no", "yes"),
    "RAmBLA's rule without it": (YES_NO, replied("none of these", of=BOTH), "unparsed", "", "yes"),
    "what the rules read stays": (YES_NO, replied("no", of="Yes."), "scored", "yes", "yes"),
    "a judge": (JUDGED, [ANSWERED, step("judge", OPEN), step("reader", "no")], "scored", "no", ""),
    "a judge, none": (JUDGED, [ANSWERED, step("judge", OPEN), step("reader", "none")], "judge_failed", "", ""),
    "none as a choice": (WITH_NONE, replied("None."), "scored", "none", ""),
    "beside none as a choice": (WITH_NONE, replied("None of these."), "unparsed", "", ""),
}


@pytest.mark.parametrize(("task", "steps", "outcome", "answer", "rambla_answer"), ENDS.values(), ids=ENDS.keys())
def test_a_sample_that_the_reader_was_asked_about_ends_in(
    task: TaskConfig, steps: list[Step], outcome: str, answer: str, rambla_answer: str
) -> None:
    found = ended(task, *steps)
    assert (found.outcome, found.answer, found.rambla_answer) == (outcome, answer, rambla_answer)


# task, steps, whether the reader is shown the last text
ASKED = {
    "nothing is read": (YES_NO, [step("target", OPEN)], True),
    "two choices are asserted": (YES_NO, [step("target", BOTH)], True),
    "a judge's text": (JUDGED, [step("target", "Yes."), step("judge", OPEN)], True),
    "an answer is read": (YES_NO, [step("target", "Yes.")], False),
    "a judge's answer is read": (JUDGED, [step("target", OPEN), step("judge", "no")], False),
    "a text that was to be judged": (JUDGED, [step("target", OPEN)], False),
    "empty": (YES_NO, [step("target", " \n")], False),
    "cut off": (YES_NO, [step("target", OPEN, "length")], False),
    "filtered": (YES_NO, [step("target", "The", "content_filter")], False),
    "a refusal": (YES_NO, [step("target", "I'm sorry, but I cannot help with that.")], False),
    "a judge's refusal": (JUDGED, [ANSWERED, step("judge", "I'm sorry, but I cannot help.")], False),
    "a judge cut off": (JUDGED, [ANSWERED, step("judge", OPEN, "length")], False),
    "a score that is no number": (YES_NO, [step("target", "nan", SCORE)], False),
    **{f"error {kind}": (YES_NO, [step("target", error_kind=kind)], False) for kind in ErrorKind},
    "a judge's error": (JUDGED, [step("target", OPEN), step("judge", error_kind="server")], False),
}


@pytest.mark.parametrize(("task", "steps", "is_asked"), ASKED.values(), ids=ASKED.keys())
def test_the_reader_is_shown(task: TaskConfig, steps: list[Step], is_asked: bool) -> None:
    assert text_for_reader(ended(task, *steps), task) == (steps[-1].text if is_asked else "")


@pytest.mark.parametrize(
    ("choices", "replies"),
    [
        pytest.param(("yes", "no"), ("yes", "no", "none of these", "none"), id="two words for no choice"),
        pytest.param(("none", "mild"), ("none", "mild", "none of these"), id="one where the other is a choice"),
    ],
)
def test_a_reply_is_a_choice_or_says_that_it_is_none(choices: tuple[str, ...], replies: tuple[str, ...]) -> None:
    assert possible_replies(choices) == replies


def run(*words: str) -> RunConfig:
    return load(["model=mock", "task=mcqabaseline", *words])


def test_the_prompt_shows_the_choices_and_the_text_as_it_stands() -> None:
    reader = run("roles.reader=mock").reader
    assert reader is not None
    text = "{choices} are {braces}.\nSo <b>it</b> is."
    prompt = prompts.render(reader.template, shown_fields(("equivalent", "not equivalent"), text))
    assert f"\n{text}\n" in prompt
    assert prompt.count("equivalent, not equivalent") == 2
    assert "none of these" in prompt


def test_without_a_reader_a_run_asks_what_it_always_asked() -> None:
    plain = run()
    assert plain.reader is None
    assert "reader" not in json.dumps(plain.question())
    assert run("reader.template='{answer} {choices}'").run_id == plain.run_id


def test_the_reader_and_its_prompt_are_part_of_the_question() -> None:
    ids = [run(), run("roles.reader=mock"), run("roles.reader=mock", "reader.template='{answer} {choices}'")]
    assert len({config.run_id for config in ids}) == 3


def test_a_prompt_of_ones_own_stands_in_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("reader: {template: 'Which of {choices} is {answer}?'}\n")
    reader = run("roles.reader=mock", f"conf_dir={tmp_path}").reader
    assert reader is not None
    assert reader.template == "Which of {choices} is {answer}?"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        pytest.param(["roles.reader=bleu"], "model bleu compares two texts, so it cannot read", id="scores"),
        pytest.param(["roles.reader=mok"], "no model 'mok'; did you mean 'mock'?", id="no such model"),
        pytest.param(
            ["roles.reader=mock", "reader.template='{answer}'"], "placeholders {choices} and {answer}", id="no choices"
        ),
        pytest.param(
            ["roles.reader=mock", "reader.template='{answer} {choices} {question}'"], "and no others", id="a field"
        ),
        pytest.param(
            ["task.stages=[{generate: {role: reader, template: '{question}'}}]"],
            "no stage asks the reader, who reads what the rules cannot in a run with roles.reader=<model>",
            id="a stage",
        ),
    ],
)
def test_what_no_reader_can_be_is_refused_in_one_line(words: list[str], reason: str) -> None:
    with pytest.raises(UserError) as refused:
        Plan(run(*words))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_reader_without_its_key_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_VERSION", "OPENAI_API_BASE", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"it is the reader, choose another with roles\.reader=<model>, or leave"):
        Plan(run("roles.reader=openai_chat")).preflight(same_machine=True)


@pytest.mark.parametrize(
    ("words", "pools"),
    [
        pytest.param("roles.reader=openai_chat", "mock: target | openai_chat: reader", id="its pool is the last"),
        pytest.param("roles.reader=mock", "mock: target reader", id="the target reads itself"),
        pytest.param(
            "task=conclusion_generation roles.judge=openai_chat roles.reader=openai_chat",
            "mock: target | openai_chat: judge reader",
            id="the judge reads too",
        ),
    ],
)
def test_a_stream_passes_the_reader_last(words: str, pools: str) -> None:
    levels = Plan(run(*words.split())).levels("mock")
    assert " | ".join(f"{level.name}: {' '.join(level.roles)}" for level in levels) == pools


def test_a_plan_names_the_reader_with_at_most_a_call_a_sample() -> None:
    described = Plan(run("task=mcqabaseline,conclusion_generation", "roles.judge=mock", "roles.reader=openai_chat"))
    plan = described.describe()
    assert [stage["role"] for stage in plan["tasks"]["conclusion_generation"]["stages"]] == [
        "target",
        "judge",
        "reader",
    ]
    reader = plan["streams"]["mock"][-1]
    assert (reader["roles"], reader["unique_calls"]) == (["reader"], 0)
    assert reader["later_calls_at_most"] == plan["samples_per_target"]
    assert "  reader reads what the rules cannot: at most 57 requests" in list(plan_lines(plan))


def test_answers_that_are_scores_are_nothing_to_read() -> None:
    plan = Plan(load(["model=bleu", "task=similarity_sick", "roles.reader=mock"])).describe()
    assert plan["streams"]["bleu"][-1]["later_calls_at_most"] == 0


def read_by_reader(root_id: str, reply: str, **how: Any) -> Sample:
    """A sample with an answer that the rules cannot read, and what the reader replied to it."""
    asked = sample(root_id, text=OPEN, outcome="unparsed", **how)
    asked.steps.append(replace(asked.steps[0], stage="read:reading", role="reader", model="r", text=reply))
    finish(asked, YES_NO)
    return asked


SAMPLES = [
    sample("0"),
    sample("1", outcome="empty", text=""),
    read_by_reader("2", "yes"),
    read_by_reader("3", "no"),
    read_by_reader("4", "none of these"),
]


def scored(folder: Path, samples: list[Sample], **roles: str) -> dict[str, Any]:
    directory = store(folder, spec({"t": task_spec({"": len(samples)})}) | {"roles": roles}, samples)
    directory.write_errors()
    return directory.write_metrics()


def test_what_the_reader_read_is_counted_apart_in_every_place(tmp_path: Path) -> None:
    (cell,) = scored(tmp_path, SAMPLES, reader="r")["cells"]
    assert cell["read_by"] == {"rules": 1, "reader": 2}
    assert (cell["outcomes"]["scored"], cell["outcomes"]["unparsed"], cell["coverage"]) == (3, 1, 0.6)
    assert (cell["accuracy"]["value"], cell["tokens"]["prompt"]) == (2 / 3, 35)  # tokens of the target alone
    assert {example["text"] for example in cell["readers"]["examples"]} == {OPEN}


def test_without_a_reader_nothing_is_said_of_one(tmp_path: Path) -> None:
    (cell,) = scored(tmp_path, SAMPLES[:2], judge="j")["cells"]
    assert "read_by" not in cell


def test_a_table_and_a_summary_show_what_the_reader_read(tmp_path: Path) -> None:
    directory = store(tmp_path, spec({"t": task_spec({"": 5})}) | {"roles": {"reader": "r"}}, SAMPLES)
    directory.write_metrics()
    calls = {"models": [], "invocations": [invocation(0.0, 0, {}, finished=True)], "wall_s": 0.0}
    directory.folder.write("calls.json", json.dumps(calls).encode())
    write_summary(directory)
    assert "3 scored (2 read by the reader), 1 empty, 1 unparsed" in (tmp_path / "summary.md").read_text()


def test_an_error_line_holds_the_answer_and_what_the_reader_replied(tmp_path: Path) -> None:
    failed = read_by_reader("5", "")
    failed.steps[-1] = replace(failed.steps[-1], error_kind="server", error="it is down")
    scored(tmp_path, [*SAMPLES, failed], reader="r")
    lines = [json.loads(line) for line in (tmp_path / "errors.jsonl").read_text().splitlines()]
    assert [line.get("reader") for line in lines] == [None, "replied: 'none of these'", "it is down"]
    assert {line["error"] for line in lines[1:]} == {f"no answer read from: '{OPEN}'"}
    assert {(line["role"], line["outcome"]) for line in lines[1:]} == {("target", Outcome.UNPARSED)}


@pytest.mark.parametrize("reply", ["no", "none of these", ""], ids=["a choice", "no choice", "no reply"])
def test_what_the_reader_does_changes_none_of_ramblas_numbers(tmp_path: Path, reply: str) -> None:
    """Of a judge that the rules cannot read, and that RAmBLA's rule reads."""
    rambla = []
    for name in ("alone", "with a reader"):
        judged = [sample(str(number), text="A conclusion.") for number in range(4)]
        for one in judged:
            target = one.steps[0]
            one.steps.append(replace(target, role="judge", model="j", text=BOTH if one.root_id < "3" else "Yes."))
            finish(one, JUDGED)
            if name != "alone" and text_for_reader(one, JUDGED):
                error = {} if reply else {"error_kind": "server"}
                one.steps.append(replace(target, role="reader", model="r", text=reply, **error))
                finish(one, JUDGED)
        how = spec({"t": task_spec({"": 4}) | {"judge": "generate"}}) | {"roles": {"judge": "j", "reader": "r"}}
        (cell,) = store(tmp_path / name, how, judged).score()["cells"]
        rambla.append(cell["rambla"])
    assert rambla[0] == rambla[1]

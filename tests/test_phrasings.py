"""Several phrasings of a prompt: a variant each, which differ in the template alone, and what their numbers say."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import config_files
import numpy as np
import pytest
import yaml
from config_files import TASK, loaded, refusal
from made_samples import sample, spec, store, task_spec

from rambla_ray.results import verdicts
from rambla_ray.results.documents import check_shape
from rambla_ray.results.phrased import phrasing_lines
from rambla_ray.results.shapes import Metrics
from rambla_ray.run.estimate import plan_lines
from rambla_ray.run.plan import Plan
from rambla_ray.scoring.stats import mean
from rambla_ray.tasks.stages import Generate

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

TEMPLATE = 'template: "{question}"'
SEVERAL = 'templates: {plain: "Q: {question}", formal: "We ask: {question} See {context}"}'
NAMES = ("plain", "formal", "short")


def write(conf: Path, prompt: str, name: str = "a", more: str = "") -> str:
    """A task whose prompt is given so; returns the words that run it."""
    (conf / "task" / f"{name}.yaml").write_text(TASK.replace(TEMPLATE, prompt) + more)
    return f"conf_dir={conf}"


def plan(conf: Path, *words: str, prompt: str = SEVERAL) -> Plan:
    return Plan(loaded(write(conf, prompt), "task=a", "limit=5", *words))


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (f"{TEMPLATE}, {SEVERAL}", "generate: template and templates exclude each other"),
        ("system: x", "generate: it has no prompt: give it a template, or several phrasings as templates"),
        ('templates: {plain: "{question}"}', "phrasings are two at least"),
        ("templates: {}", "phrasings are two at least"),
        ("templates: [a, b]", "generate.templates: Input should be a valid dictionary"),
        ('templates: {a: "{question}", b: "why"}', "generate.templates.b: a template needs at least one"),
        ('templates: {a: "{question}", b: "{question"}', "generate.templates.b: "),
        ('templates: {a: "{question}", b: 3}', "generate.templates.b: Input should be a valid string"),
        ('templates: {a: "{question}", b: null}', "generate.templates.b: Input should be a valid string"),
        ('templates: {a: "{question}", b: "{qestion}"}', "reads 'qestion', which nothing before it writes"),
        ('templates: {a: "{question}", "b c": "{question}"}', "'b c' is no name of a phrasing"),
        ('templates: {a: "{question}", "n=1": "{question}"}', "'n=1' is no name of a phrasing"),
        ('templates: {a: "{question}", "-": "{question}"}', "'-' is no name of a phrasing"),
        ('templates: {a: "{question}", "": "{question}"}', "'' is no name of a phrasing"),
        ('templates: {a: "{question}", b/c: "{question}"}', "'b/c' is no name of a phrasing"),
        ('templates: {a: "{question}", 2: "{question}"}', "Input should be a valid string"),
        ("template_files: ask.txt", "template_files: Input should be a valid dictionary"),
        ("template_files: {a: ask.txt, b: 3}", "template_files.b: Input should be a valid string"),
        ("template_files: {a: ask.txt, b: none.txt}", "none.txt: No such file"),
        ("template_files: {a: ask.txt, b: ../../x.txt}", "template_files.b "),
        ("template_files: {a: ask.txt}", "phrasings are two at least"),
        (f"{TEMPLATE}, template_files: {{a: ask.txt, b: ask.txt}}", "template and template_files exclude each other"),
        (f"{SEVERAL}, template_files: {{a: ask.txt, b: ask.txt}}", "templates and template_files exclude each other"),
        (f"{SEVERAL}, template_file: ask.txt", "templates and template_file exclude each other"),
    ],
)
def test_phrasings_that_cannot_be_are_refused(prompt: str, reason: str, conf: Path) -> None:
    (conf / "task" / "ask.txt").write_text("{question}")
    assert reason in refusal(write(conf, prompt), "task=a")


@pytest.mark.parametrize(
    ("stages", "kinds"),
    [
        ([{"mutate": {"schedule": [0, 5]}}, "asked"], "mutate and generate"),
        ([{"mutate": {"schedule": [5]}}, "asked"], "mutate and generate"),
        (["rephrased", "asked"], "generate and generate"),
        (
            [{"mutate": {"schedule": [5]}}, {"add_distractors": {"positions": [1]}}, "once"],
            "mutate and add_distractors",
        ),
    ],
)
def test_one_stage_of_a_task_has_variants(stages: list[Any], kinds: str, conf: Path) -> None:
    templates = {"a": "{question}", "b": "{question}?"}
    kinds_of = {
        "asked": {"generate": {"role": "target", "templates": templates}},
        "rephrased": {"generate": {"role": "rephraser", "writes": "question", "templates": templates}},
        "once": {"generate": {"role": "target", "template": "{question}"}},
    }
    task = {**yaml.safe_load(TASK), "stages": [kinds_of[s] if isinstance(s, str) else s for s in stages]}
    (conf / "task" / "a.yaml").write_text(yaml.safe_dump(task))
    assert f"stages {kinds} both have variants" in refusal(f"conf_dir={conf}", "task=a", "roles.rephraser=mock")


def test_two_stages_of_the_same_single_variant_are_taken(conf: Path) -> None:
    same = "stages:\n  - mutate: {schedule: [3]}\n  - mutate: {field: question, schedule: [3]}\n"
    (conf / "task" / "a.yaml").write_text(TASK.replace("stages:\n", same))
    assert Plan(loaded(f"conf_dir={conf}", "task=a")).expected.keys() == {("a", "n=3")}


def test_a_word_puts_phrasings_in_the_place_of_a_prompt(conf: Path) -> None:
    words = ["task.stages.0.generate.template=null", "task.stages.0.generate.templates={x: '{question}', y: '{pmid}'}"]
    task = loaded(write(conf, TEMPLATE), "task=a", *words).tasks["a"]
    assert task.variants == ("x", "y")
    assert task.generates[0].reads() == {"question", "pmid"}


def test_phrasings_may_stand_in_files(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORMAL", "formal.txt")
    (conf / "task" / "plain.txt").write_text("{question}")
    (conf / "task" / "formal.txt").write_text("We ask: {question}")
    words = write(conf, "template: null, template_files: {plain: plain.txt, formal: '${oc.env:FORMAL}'}")
    (stage,) = loaded(words, "task=a").tasks["a"].generates
    assert stage.templates == {"plain": "{question}", "formal": "We ask: {question}"}


def test_a_stage_with_one_prompt_is_stored_as_it_ever_was() -> None:
    stage = Generate.model_validate({"role": "target", "template": "{question}"})
    assert stage.model_dump(mode="json", by_alias=True) == {
        "role": "target",
        "template": "{question}",
        "writes": "response",
    }
    assert stage.phrased("n=3") is stage
    assert stage.variants() == ("",)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [("a/plain", ""), ("a/rude", "names no variant of that task; there are: formal, plain"), ("a", "needs a variant")],
)
def test_a_task_may_be_compared_with_one_phrasing(pair: str, reason: str, conf: Path) -> None:
    write(conf, SEVERAL)
    words = write(conf, TEMPLATE, "b", f"pair_with: {pair}\n")
    if reason:
        assert reason in refusal(words, "task=b,a")
    else:
        assert loaded(words, "task=b,a").tasks["b"].pair_with == pair


# --- the plan --------------------------------------------------------------------------------------------------------


def test_a_plan_has_each_item_once_in_each_phrasing(conf: Path) -> None:
    planned = plan(conf)
    samples = list(planned.samples("mock"))
    assert [one.variant for one in samples] == ["plain"] * 5 + ["formal"] * 5
    assert len({one.sample_id for one in samples}) == 10
    ((keys, table),) = planned.tables()
    assert (keys, table.num_rows) == ([("a", "plain"), ("a", "formal")], 5), "phrasings share their items"


def test_a_plan_shows_and_counts_the_prompts_of_all_phrasings(conf: Path) -> None:
    same = 'templates: {plain: "Q: {question}", formal: "We ask: {question}", twin: "Q: {question}{question:.0}"}'
    described = plan(conf, "model.params.behaviour=constant", prompt=same).describe()
    (stage,), (pool,) = described["tasks"]["a"]["stages"], described["streams"]["mock"]
    assert (stage["calls"], stage["distinct_prompts"], pool["unique_calls"]) == (15, 10, 10)
    lines = list(plan_lines(described))
    assert "a: 5 samples" not in lines
    assert "a: 15 samples in 3 variants" in lines
    shown = [line for line in lines if " | " in line]
    assert [line.split(" | ")[0].strip() for line in shown] == ["plain", "formal", "twin"]
    assert shown[0].removeprefix("  plain | ") == shown[2].removeprefix("  twin | ")
    assert described["tasks"]["a"]["example_prompts"]["formal"] == shown[1].removeprefix("  formal | ")


def test_the_longest_prompt_is_that_of_the_longest_phrasing(conf: Path) -> None:
    planned = plan(conf)
    (level,) = planned.levels("mock")
    prompts = [
        planned.config.tasks["a"].generates[0].phrased(one.variant).render(one.fields)
        for one in planned.samples("mock")
    ]
    choice = len("yes") + 1
    assert planned.longest_prompt(level) == max(len(prompt.encode()) for prompt in prompts) + choice


# --- scoring ---------------------------------------------------------------------------------------------------------

Answers = Mapping[str, Sequence[str | None]]  # By phrasing, the answer to each item; None where there is none.


def phrased(folder: Path, answers: Answers, epochs: int = 1, labels: Sequence[str] = ("yes", "no")) -> dict[str, Any]:
    """metrics.json of a task whose right answers are all yes; with epochs, every item has so many answers."""
    how = {**task_spec({name: len(of) for name, of in answers.items()}, labels=labels), "phrasings": True}
    how |= {"epochs": epochs} if epochs > 1 else {}
    samples = [
        sample(
            f"i{place // epochs}",
            answer or "yes",
            labels[0],
            variant=name,
            outcome="scored" if answer else "failed",
            error="gone",
            epoch=place % epochs,
        )
        for name, of in answers.items()
        for place, answer in enumerate(of)
    ]
    random.Random(7).shuffle(samples)
    scores = store(folder, spec({"t": how}), samples).score()
    check_shape(scores, Metrics, "metrics.json")
    return scores


Y, N = "yes", "no"
BY_HAND: Mapping[str, tuple[Answers, dict[str, Any]]] = {
    "one is worse": (
        {"plain": [Y, Y, Y, N], "formal": [Y, N, N, N]},
        {"n": 4, "mean": 0.5, "lowest": ("formal", 0.25), "highest": ("plain", 0.75), "sd": 0.125**0.5, "same": 0.5},
    ),
    "alike in number, not in answers": (
        {"plain": [Y, N, Y, N], "formal": [N, Y, N, Y]},
        {"n": 4, "mean": 0.5, "lowest": ("plain", 0.5), "highest": ("plain", 0.5), "sd": 0, "same": 0},
    ),
    "what one did not answer is left out of all": (
        {"plain": [Y, Y, N, None], "formal": [N, None, N, Y], "short": [Y, N, N, Y]},
        {"n": 2, "mean": 1 / 3, "lowest": ("formal", 0), "highest": ("plain", 0.5), "sd": 1 / 12**0.5, "same": 0.5},
    ),
    "a phrasing called n is no number of mutations": (
        {"n": [Y, Y], "m": [Y, Y]},
        {"n": 2, "mean": 1, "lowest": ("n", 1), "highest": ("n", 1), "sd": 0, "same": 1},
    ),
}


@pytest.mark.parametrize(("answers", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_the_numbers_are_those_of_counting(answers: Answers, expected: dict[str, Any], tmp_path: Path) -> None:
    (effect,) = phrased(tmp_path, answers)["effects"]
    found = effect["phrasings"]
    assert (effect["by"], "slope" in effect) == ("phrasing", False)
    assert (found["of"], found["n"]) == (len(answers), expected["n"])
    assert found["accuracy"]["value"] == pytest.approx(expected["mean"])
    for end in ("lowest", "highest"):
        assert (found[end]["variant"], found[end]["value"]) == expected[end]
    assert found["sd"] == pytest.approx(expected["sd"])
    assert found["same_answer"]["value"] == pytest.approx(expected["same"])


def test_the_interval_is_over_items_and_not_over_their_phrasings_or_draws(tmp_path: Path) -> None:
    """Phrasings and draws that all say the same make nothing surer than one of them does."""
    answers = [Y if number % 3 else N for number in range(30)]
    once = phrased(tmp_path / "once", dict.fromkeys(("a", "b"), answers))["effects"][0]["phrasings"]
    twice = [answer for answer in answers for _ in range(2)]
    drawn = phrased(tmp_path / "drawn", dict.fromkeys(("a", "b", "c"), twice), epochs=2)["effects"][0]["phrasings"]
    alone = mean(np.array([answer == Y for answer in answers], float), range(30))
    assert alone is not None
    for found in (once, drawn):
        assert found["accuracy"] == {"value": pytest.approx(alone.value), "ci95": pytest.approx(alone.ci95)}
    assert (once["n"], drawn["n"]) == (30, 60)


def test_without_a_common_sample_there_is_no_mean_and_a_reason(tmp_path: Path) -> None:
    scores = phrased(tmp_path, {"plain": [Y, None], "formal": [None, Y]})
    (effect,) = scores["effects"]
    assert effect["phrasings"]["accuracy"] is effect["phrasings"]["sd"] is None
    assert effect["null_reasons"]["phrasings.accuracy"] == "no sample was scored under all phrasings"
    assert list(phrasing_lines(scores)) == []


def test_a_model_that_gives_scores_has_no_mean_over_phrasings(tmp_path: Path) -> None:
    scores = phrased(tmp_path, dict.fromkeys(("a", "b"), ("0.25", "0.75")), labels=("1", "0"))
    assert scores["effects"] == []


def test_people_read_the_mean_and_the_spread_in_a_line(tmp_path: Path) -> None:
    answers = {"plain": [Y] * 9 + [N], "formal": [Y] * 7 + [N] * 3, "short": [Y] * 8 + [N] * 2}
    assert list(phrasing_lines(phrased(tmp_path, answers))) == [
        "m t: 80.0 % (52.2 to 93.0) over 3 phrasings, 70.0 (formal) to 90.0 (plain), standard deviation 10.0; the "
        "same answer to 80.0 % of the 10 that were scored under all"
    ]


def test_models_are_compared_under_each_phrasing_and_over_all(tmp_path: Path) -> None:
    how = spec({"t": {**task_spec(dict.fromkeys(NAMES, 12)), "phrasings": True}}, ["a", "b"])
    for model, right in (("a", 12), ("b", 3)):
        made = [
            sample(f"i{number}", Y if number < right else N, model=model, variant=name)
            for name in NAMES
            for number in range(12)
        ]
        directory = store(tmp_path, how, made, model=model)
    scores = directory.score()
    found = {(one["task"], one["variant"]): one["n"] for one in scores["comparisons"]}
    assert found == {("t", "plain"): 12, ("t", "formal"): 12, ("t", "short"): 12, ("all", ""): 36}
    assert [row[2] for row in verdicts.rows(scores)] == ["t plain", "t formal", "t short", "all tasks"]

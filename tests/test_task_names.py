"""What a task or dataset names, once and not twice: pairs, variants, prompts, labels, values to keep."""

from __future__ import annotations

import hashlib
from pathlib import Path

import config_files
import pytest
from config_files import TASK, loaded, refusal
from pydantic import ValidationError

from rambla_ray.config.load import load
from rambla_ray.run.plan import Plan
from rambla_ray.schema import Item
from rambla_ray.tasks.stages import AddDistractors, FewShot, Mutate

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

MISSPELT = TASK.replace("stages:\n", "stages:\n  - mutate: {schedule: [0, 5]}\n")
OTHER_ITEMS = """
dataset: sick
stages:
  - generate: {role: target, template: "{text_1} {text_2}"}
answer: {choices: ["yes", "no"], target: label, labels: {"yes": "1", "no": "0"}}
"""


def write(conf: Path, name: str, text: str, pair_with: str | None = None) -> None:
    (conf / "task" / f"{name}.yaml").write_text(text + (f"pair_with: {pair_with}\n" if pair_with else ""))


# Pairs

PAIRS = {
    "nothing": ({"a": "mcqabasline"}, "names no task; did you mean 'mcqabaseline'?"),
    "itself": ({"a": "a"}, "is the task itself"),
    "a variant of a task without any": ({"a": "mcqabaseline/n=0"}, "and task mcqabaseline has none"),
    "a variant of itself without any": ({"a": "a/n=0"}, "and task a has none"),
    "a missing variant": ({"a": "spelling_robustness/n=7"}, "names no variant of that task; did you mean"),
    "a missing variant in the run": ({"a": "misspelt/n=3", "misspelt": None}, "there are: n=0, n=5"),
    "no variant where there are some": ({"a": "misspelt"}, "needs a variant of that task: misspelt/n=0, misspelt/n=5"),
    "each other": ({"a": "b", "b": "a"}, "goes round in a circle (a → b → a)"),
    "a circle of three": ({"a": "b", "b": "c", "c": "a"}, "goes round in a circle (a → b → c → a)"),
    "a circle behind a way": ({"a": "b", "b": "c", "c": "b"}, "goes round in a circle (b → c → b)"),
    "items of another kind": ({"a": "similarity", "similarity": None}, "is asked about other items"),
}


@pytest.mark.parametrize(("pairs", "reason"), PAIRS.values(), ids=PAIRS)
def test_a_pair_that_cannot_be_is_refused(pairs: dict[str, str | None], reason: str, conf: Path) -> None:
    write(conf, "misspelt", MISSPELT)
    write(conf, "similarity", OTHER_ITEMS)
    for name, pair_with in pairs.items():
        if pair_with:
            write(conf, name, TASK, pair_with)
    message = refusal(f"conf_dir={conf}", f"task={','.join(pairs)}")
    assert "pair_with" in message
    assert reason in message


@pytest.mark.parametrize(
    ("text", "pair_with"),
    [
        (TASK, "mcqabaseline"),
        (TASK, "paraphrase"),  # It is compared with mcqabaseline, and is not in the run.
        (TASK, "spelling_robustness/n=0"),
        (TASK, "parent_fewshot_examples_with_context/order=yes-no"),
        (MISSPELT, "a/n=0"),
        (MISSPELT, "mcqabaseline"),
    ],
)
def test_a_pair_with_a_task_that_is_not_in_the_run_is_no_fault(text: str, pair_with: str, conf: Path) -> None:
    write(conf, "a", text, pair_with)
    assert loaded(f"conf_dir={conf}", "task=a").tasks["a"].pair_with == pair_with


def test_the_shipped_tasks_fit_together() -> None:
    assert len(load(["model=mock", "task=all"]).tasks) > 10


def test_a_word_takes_a_pair_away() -> None:
    assert "is the task itself" in refusal("task.pair_with=mcqabaseline")
    assert loaded("task=paraphrase", "task.pair_with=null").tasks["paraphrase"].pair_with is None


def test_a_pair_without_an_item_in_common_is_remarked_on(conf: Path) -> None:
    (conf / "dataset" / "noes.yaml").write_text(
        "{format: pubmedqa, path: x, demo: pubmedqa.json, keep: {final_decision: ['no']}}"
    )
    (conf / "dataset" / "ayes.yaml").write_text(
        "{format: pubmedqa, path: x, demo: pubmedqa.json, keep: {final_decision: ['yes']}}"
    )
    write(conf, "a", TASK.replace("pubmedqa_yesno", "noes"), "b")
    write(conf, "b", TASK.replace("pubmedqa_yesno", "ayes"))
    notes = Plan(loaded(f"conf_dir={conf}", "task=a,b")).notes
    assert "task a is compared with b, and they have no item in common" in notes
    assert not any("in common" in note for note in Plan(loaded("task=all")).notes)


def test_no_task_has_the_name_of_all_tasks(conf: Path) -> None:
    write(conf, "all", TASK)
    for word in ("task=all", "task=mcqabaseline", "task.pair_with=all"):
        assert "task/all.yaml: 'all' means every task" in refusal(f"conf_dir={conf}", word)


# Variants


@pytest.mark.parametrize(
    ("stage", "twice"),
    [
        ("mutate: {schedule: [0, 1, 1]}", "variant n=1 is there twice"),
        ("add_distractors: {n_contexts: 3, positions: [2, 0, 2]}", "variant position=2 is there twice"),
        ("few_shot: {template: '{question}', orders: [['yes'], ['no'], ['yes']]}", "variant order=yes is there twice"),
        ("few_shot: {template: '{question}', orders: [['a-b'], ['a', 'b']]}", "variant order=a-b is there twice"),
        ("few_shot: {template: '{question}', orders: [[]]}", "at least 1 item"),
    ],
)
def test_a_variant_is_there_once(stage: str, twice: str, conf: Path) -> None:
    write(conf, "a", TASK.replace("stages:\n", f"stages:\n  - {stage}\n"))
    message = refusal(f"conf_dir={conf}", "task=a")
    assert twice in message
    assert "stage 1: " in message


@pytest.mark.parametrize(
    ("orders", "labels"),
    [
        ([("non-small", "small")], ["non-small", "small"]),
        ([("small", "non-small")], ["small", "non-small"]),
        ([("small-cell", "non-small-cell"), ("non-small-cell",)], ["small-cell", "non-small-cell"]),
        ([("-",)], ["-", "x"]),
    ],
)
def test_a_label_may_hold_hyphens(orders: list[tuple[str, ...]], labels: list[str]) -> None:
    items = [
        Item(str(row), {"question": f"Q{row}", "final_decision": labels[row % len(labels)], "context": ""})
        for row in range(12)
    ]
    stage = FewShot.model_validate({"orders": orders, "template": "{final_decision}", "separator": "|"})
    assert stage.variants() == tuple(f"order={'-'.join(order)}" for order in orders)
    for variant, order in zip(stage.variants(), orders, strict=True):
        for item in stage.apply(items, 1, variant):
            assert item.fields["examples"].split("|") == list(order)


def test_the_draws_of_labels_without_hyphens_are_those_of_earlier_versions() -> None:
    items = [Item(str(row), {"question": f"Q{row}", "final_decision": ("yes", "no")[row % 2]}) for row in range(40)]
    stage = FewShot.model_validate({"orders": [("yes", "no"), ("no", "yes")], "template": "{question}"})
    drawn = [item.fields["examples"] for variant in stage.variants() for item in stage.apply(items, 1234, variant)]
    assert hashlib.sha256("\n".join(drawn).encode()).hexdigest()[:16] == "a789533dc1741c37"


def test_variants_that_differ_are_taken() -> None:
    assert Mutate(schedule=(3, 1, 2)).variants() == ("n=3", "n=1", "n=2")
    assert AddDistractors(n_contexts=5, positions=(4, 0)).variants() == ("position=4", "position=0")


# Prompts


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("template: '{question}', template_file: ask.txt", "template and template_file exclude each other"),
        ("template_file: 3", "template_file: Input should be a valid string"),
        ("template_file: [ask.txt]", "template_file: Input should be a valid string"),
        ("template_file: null", "generate: it has no prompt"),
        ("template: ''", "a template needs at least one {placeholder}"),
        ("template: '{question:>1000000000}'", "{question:>1000000000} is wider than 1,000"),
        ("template: '{question:1001}'", "is wider than 1,000"),
        ("template: '{question:.99999999999999999999}'", "is wider than 1,000"),
        ("template: '{question!r:^1000000}'", "is wider than 1,000"),
        ("template: '{question:٩٩٩٩٩٩}'", "is wider than 1,000"),
        ("template: '{question:{context}}'", "nests another"),
        ("template: '{question.__class__}'", "is not a field name"),
        ("template: '{0}'", "is not a field name"),
    ],
)
def test_a_prompt_is_given_once_and_makes_no_more_of_a_field_than_a_prompt_needs(
    given: str, reason: str, conf: Path
) -> None:
    (conf / "task" / "ask.txt").write_text("{question}")
    write(conf, "a", TASK.replace('template: "{question}"', given))
    assert reason in refusal(f"conf_dir={conf}", "task=a")


@pytest.mark.parametrize("template", ["{question:>1000}", "{question:.500}", "{question!r}", "{question:^20}"])
def test_a_format_that_fits_a_page_is_taken(template: str, conf: Path) -> None:
    write(conf, "a", TASK.replace("{question}", template))
    assert loaded(f"conf_dir={conf}", "task=a").tasks["a"].generates[0].template == template


@pytest.mark.parametrize(
    "word",
    [
        "reader.template={answer:>1000000000} {choices}",
        "task.stages=[{few_shot: {orders: [['yes']], template: '{question:>9999}'}}]",
        "model.params.message_formatting_template={message:>1000000000}",
    ],
)
def test_every_template_is_bounded(word: str) -> None:
    model = "model=smollm2" if "params" in word else "model=mock"
    assert "is wider than 1,000" in refusal(model, word)


def test_a_template_has_no_end_of_characters(conf: Path) -> None:
    (conf / "task" / "ask.txt").write_text("{question}" + "x" * 10_000_000)
    write(conf, "a", TASK.replace('template: "{question}"', "template_file: ask.txt"))
    assert "it is larger than 10,000,000 bytes" in refusal(f"conf_dir={conf}", "task=a")


# Labels, and values to keep


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{choices: ["small cell", "small  cell"], target: final_decision}', "differ in case or blanks alone"),
        (
            '{choices: ["a", "b"], labels: {a: "Yes", b: "yes"}, target: final_decision}',
            "labels 'Yes' and 'yes' differ in case or blanks alone",
        ),
        ('{choices: ["a", "b"], labels: {a: "1", b: "1 "}, target: final_decision}', "differ in case or blanks alone"),
    ],
)
def test_labels_that_are_read_as_one_are_refused(answer: str, reason: str, conf: Path) -> None:
    write(conf, "a", TASK.replace('{choices: ["yes", "no"], target: final_decision}', answer))
    assert reason in refusal(f"conf_dir={conf}", "task=a")


@pytest.mark.parametrize(
    ("word", "reason"),
    [("task.dataset.keep.final_decision=[]", "keeps nothing")],
)
def test_values_to_keep_are_named(word: str, reason: str) -> None:
    assert reason in refusal(word)


def test_a_column_is_named_once() -> None:
    words = ["task.dataset.format=table", "task.dataset.fields=[question, final_decision, question]"]
    assert "`fields` names 'question' twice" in refusal(*words)


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["model=mock,mock"], ["model= names mock 2 times; it runs once"]),
        (["model=[mock, mock]", "task=negation,paraphrase,negation"], ["model= names mock", "task= names negation 2"]),
        (["task=all,paraphrase"], []),
    ],
)
def test_what_is_named_twice_runs_once_and_the_plan_says_so(words: list[str], notes: list[str]) -> None:
    config = loaded(*words)
    assert list(config.targets) == ["mock"]
    said = [note for note in Plan(config).notes if not note.startswith("dataset ")]
    assert len(said) == len(notes)
    assert all(note in line for note, line in zip(notes, said, strict=True))


@pytest.mark.parametrize("is_finetuned", ["true", "false"])
def test_a_template_that_formats_nothing_is_remarked_on(is_finetuned: str) -> None:
    words = ["model.params.message_formatting_template={message}!", f"model.params.is_finetuned={is_finetuned}"]
    remarks = loaded("model=smollm2", *words).targets["smollm2"].params.remarks
    assert bool(remarks) is (is_finetuned == "false")
    assert all("message_formatting_template formats no prompt" in remark for remark in remarks)


def test_a_stage_is_checked_outside_of_a_task_as_well() -> None:
    with pytest.raises(ValidationError, match="twice"):
        Mutate(schedule=(1, 1))

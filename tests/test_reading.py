"""Reading answers robustly: a corpus of answers as models write them, and what holds for any text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rambla_ray.scoring.reading import Reading, read_rambla, read_robust

CORPUS: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "data/answers.jsonl").read_text("utf-8").splitlines()
]
CLAUSES: list[dict[str, Any]] = [
    json.loads(line) for line in (Path(__file__).parent / "data/clauses.jsonl").read_text("utf-8").splitlines()
]
CHOICES = [("yes", "no"), ("yes", "no", "unknown"), ("entailment", "neutral", "contradiction"), ("a", "b", "c")]
CHOICES += [("0", "1"), ("equivalent", "not equivalent")]

# Answers that are read wrongly, and as what.
KNOWN_MISSES: dict[str, str | None] = {
    "No benefit, no harm, no cost: no.": None,
    "yes\n\nSource: PubMed\nNo.": None,  # a base model runs on
}

FRAGMENTS = [
    *"/,.:;?!()\"'_`\n#{",
    "**",
    "\\boxed{",
    "<think>",
    "</think>",
    "<answer>",
    "ｙｅｓ",
    "🙂",
    "\ue000",
    "\uf8ff",
]
FRAGMENTS += ["yes", "no", "unknown", "entailment", "a", "b", "A", "0", "1", "or", "and", "not", "if", "Answer:"]
FRAGMENTS += ["the answer is", "final", "so", "wait", "actually", "I cannot say", "I don't know", "Question:"]
TEXTS = st.text() | st.lists(st.sampled_from(FRAGMENTS)).map(" ".join)


def read(line: dict[str, Any]) -> Reading:
    return read_robust(line["text"], line["choices"], cut=line.get("cut", False))


def filled(clause: str, choice: str) -> str:
    """A clause with a choice in place of {x}, and of {X} where it begins with a capital letter."""
    return clause.replace("{x}", choice).replace("{X}", choice.capitalize())


def bare(draw_from: list[tuple[str, ...]]) -> st.SearchStrategy[tuple[str, tuple[str, ...]]]:
    """A choice and the choices it is one of."""
    return st.sampled_from([(choice, choices) for choices in draw_from for choice in choices])


@pytest.mark.parametrize(
    "line", [line for line in CORPUS if line["text"] not in KNOWN_MISSES], ids=lambda line: repr(line["text"][:60])
)
def test_an_answer_is_read_as_a_careful_human_reads_it(line: dict[str, Any]) -> None:
    reading = read(line)
    assert (reading.answer, reading.refused) == (line["answer"], line["refused"]), (reading.rule, line["note"])


def test_the_known_misses_are_few_and_still_missed() -> None:
    missed = {line["text"]: read(line).answer for line in CORPUS if read(line).answer != line["answer"]}
    assert missed == KNOWN_MISSES
    assert len(KNOWN_MISSES) <= 0.05 * len(CORPUS)
    assert set(KNOWN_MISSES.values()) == {None}, "missed is well; another choice is not"


def test_the_robust_reader_agrees_with_humans_more_often_than_rambla_does() -> None:
    robust = sum(read(line).answer == line["answer"] for line in CORPUS)
    rambla = sum(read_rambla(line["text"], line["choices"]) == line["answer"] for line in CORPUS)
    print(f"agreement with the labels: robust {robust}/{len(CORPUS)}, rambla {rambla}/{len(CORPUS)}")
    assert robust / len(CORPUS) >= 0.97
    assert rambla < robust


def test_the_corpus_is_large_balanced_and_has_each_line_once() -> None:
    assert len(CORPUS) >= 170
    assert len({(line["text"], *line["choices"]) for line in CORPUS}) == len(CORPUS)
    assert all(line["answer"] in (None, *line["choices"]) for line in CORPUS)
    assert all(line["answer"] is None for line in CORPUS if line["refused"])
    counts = [sum(line["answer"] == answer for line in CORPUS) for answer in ("yes", "no", None)]
    assert min(counts) > 0.2 * len(CORPUS)


def test_every_rule_reads_some_answer_of_the_corpus() -> None:
    asserting = {"leading", "set_off", "predicate", "statement", "correction", "cue", "conclusion", "final"}
    forms = {"json", "yaml", "box", "probabilities", "option", "short", "entails"}
    none = {"cannot_tell", "conflict", "cut", "refusal", "nothing"}
    assert {read(line).rule for line in CORPUS} == asserting | forms | none


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        pytest.param("Yes, it does.", Reading("yes", "leading"), id="leading"),
        pytest.param("It does, yes.", Reading("yes", "set_off"), id="set off by a comma"),
        pytest.param("No. The answer is yes.", Reading("yes", "cue"), id="a cue outranks a leading word"),
        pytest.param("The answer is yes. No.", Reading(None, "conflict"), id="and is not taken back by one"),
        pytest.param("Answer: yes. Final answer: no", Reading("no", "final"), id="the final answer outranks a cue"),
        pytest.param("Yes. No. Correction: yes.", Reading("yes", "correction"), id="a correction ends a conflict"),
        pytest.param("Yes. No. Therefore, yes.", Reading("yes", "conclusion"), id="and so does a conclusion"),
        pytest.param('{"answer": "no", "why": "Yes."}', Reading("no", "json"), id="json"),
        pytest.param("It is unknown.", Reading("unknown", "predicate"), id="predicate"),
        pytest.param("The abstract does not say.", Reading("unknown", "cannot_tell"), id="cannot tell"),
        pytest.param("I can't help with that.", Reading(None, "refusal", refused=True), id="refusal"),
        pytest.param("Absolutely not.", Reading("no", "short"), id="a short form"),
        pytest.param("[ ] yes\n[x] no", Reading("no", "box"), id="a ticked box"),
        pytest.param("yes: 0.1\nno: 0.7\nunknown: 0.2", Reading("no", "probabilities"), id="probabilities"),
        pytest.param("result:\n  label: no\n  n: 3", Reading("no", "yaml"), id="yaml, where a bare no is false"),
        pytest.param("A. yes\nB. no\nAnswer: B", Reading("no", "option"), id="the letter of a listed option"),
        pytest.param("The evidence lets me settle for a yes.", Reading("yes", "statement"), id="statement"),
        pytest.param("The study shows a benefit.", Reading(None, "nothing"), id="nothing"),
        pytest.param("<yes>", Reading("yes", "leading"), id="a choice in angle brackets is not a tag"),
        pytest.param("[/INST] Yes", Reading("yes", "leading"), id="a leaked mark of the turn"),
        pytest.param("Question: yes or no?\nAnswer: no", Reading("no", "cue"), id="after an echo of the prompt"),
        pytest.param(
            "Yes. " + "word " * 5000 + "Final answer: no", Reading("no", "final"), id="the end of a long text"
        ),
        pytest.param("x " * 1999 + "no " * 9 + "x " * 5000, Reading(None, "nothing"), id="no cut makes a sentence"),
    ],
)
def test_the_rule_that_reads(text: str, reading: Reading) -> None:
    assert read_robust(text, ("yes", "no", "unknown")) == reading


@pytest.mark.parametrize(
    "choices", [("yes", "no", "unknown"), ("entailment", "neutral", "contradiction")], ids="-".join
)
@pytest.mark.parametrize("line", CLAUSES, ids=lambda line: repr(line["clause"]))
def test_the_clause_around_a_choice_says_whether_it_is_asserted(
    line: dict[str, Any], choices: tuple[str, ...]
) -> None:
    readings = {choice: read_robust(filled(line["clause"], choice), choices).answer for choice in choices}
    if line["asserts"]:
        assert readings == {choice: choice for choice in choices}
    else:
        assert readings == dict.fromkeys(choices)


@pytest.mark.parametrize("line", CLAUSES, ids=lambda line: repr(line["clause"]))
def test_what_is_only_mentioned_leaves_the_answer_beside_it_alone(line: dict[str, Any]) -> None:
    for choice, other in (("yes", "no"), ("no", "yes")):
        text = filled(line["clause"], choice)
        if line["asserts"]:
            assert read_robust(f"{text}\n\nThe rate fell, with no deaths.", ("yes", "no")).answer == choice
        else:
            assert read_robust(f"{text} So the answer is {other}.", ("yes", "no")).answer == other


@pytest.mark.parametrize(
    ("text", "cut", "answer"),
    [
        pytest.param("Let me see. The rate fell, so yes.", False, "yes", id="a whole text"),
        pytest.param("Let me see. The rate fell, so yes.", True, None, id="the limit was reached"),
        pytest.param("Let me see. The rate fell, so yes. But the", False, None, id="the last word shows it"),
        pytest.param("Yes. The rate fell, and the", True, "yes", id="the answer came first"),
        pytest.param("The rate fell, so yes.\n\nQuestion: Is it", True, "yes", id="only a next question was cut off"),
    ],
)
def test_an_answer_in_mid_thought_is_none(text: str, cut: bool, answer: str | None) -> None:
    assert read_robust(text, ("yes", "no"), cut=cut).answer == answer


@settings(deadline=None)
@given(text=TEXTS, choices=st.sampled_from(CHOICES))
def test_any_text_gives_a_choice_or_none(text: str, choices: tuple[str, ...]) -> None:
    reading = read_robust(text, choices)
    assert reading.answer is None or reading.answer in choices
    assert not (reading.refused and reading.answer)


@settings(deadline=None)
@given(
    pair=bare(CHOICES),
    dress=st.sampled_from(
        ["{}", "**{}**", "*{}*", "__{}__", "`{}`", '"{}"', "“{}”", "'{}'", "<b>{}</b>", "# {}", "> {}"]
    ),
    before=st.text(" \n\t"),
    after=st.text(" \n\t"),
    period=st.sampled_from(["", ".", "!"]),
    data=st.data(),
)
def test_a_bare_choice_is_read_in_any_case_and_dress(
    pair: tuple[str, tuple[str, ...]], dress: str, before: str, after: str, period: str, data: st.DataObject
) -> None:
    choice, choices = pair
    upper = data.draw(st.lists(st.booleans(), min_size=len(choice), max_size=len(choice)))
    cased = "".join(c.upper() if up else c for c, up in zip(choice, upper, strict=True))
    assert read_robust(before + dress.format(cased) + period + after, choices).answer == choice
    assert read_robust(before + dress.format(cased + period) + after, choices).answer == choice


@settings(deadline=None)
@given(choices=st.sampled_from(CHOICES), data=st.data(), end=st.sampled_from(["", ".", "?"]))
def test_two_choices_joined_by_or_are_no_answer(choices: tuple[str, ...], data: st.DataObject, end: str) -> None:
    one, other = data.draw(st.permutations(choices))[:2]
    case = data.draw(st.sampled_from([str.lower, str.upper, str.capitalize]))
    assert read_robust(f"{case(one)} or {case(other)}{end}", choices).answer is None


HOSTILE = {
    "no": "no " * 350_000,
    "both": "yes no " * 150_000,
    "options": "yes or " * 150_000,
    "open blocks": "<think>" * 10_000,
    "closed blocks": "<think></think>" * 70_000,
    "brackets": "[" * 500_000 + "]" * 500_000,
    "braces": '{"answer": ' * 90_000,
    "boxes": "\\boxed{" * 150_000,
    "quotes": '"' * 1_000_000,
    "single quotes": "'" * 1_000_000,
    "quoted questions": "answer to 'is it " * 60_000,
    "numbered answers": "1. yes 2. no " * 75_000,
    "choices judged": "A: wrong, B: right, yes: wrong, " * 30_000,
    "judged without end": "as one and " * 90_000,
    "cues": "the answer is " * 75_000,
    "fillers": "answer is " + "the " * 250_000,
    "conditions": "if " * 350_000,
    "tags": "<a" * 500_000,
    "marks of reasoning": "assistantfinal <|channel|>analysis " * 30_000,
    "objects": '{"answer": "yes"} ' * 60_000,
    "nested lists": "[" * 4000 + "]" * 4000,
    "a mapping": "answer:\n  label: yes\n" * 50_000,
    "references": "{a: &a [no, no], b: " + "[*a, *a]" * 300 + "}",
    "ticked boxes": "[x] yes [ ] no " * 70_000,
    "lists of letters": "A. yes\nB. no\n" * 80_000,
    "shares": "yes: 0.1\n" * 100_000,
    "denials": "it is not that the answer is yes and no " * 25_000,
    "words before a choice": ("while the men " * 60 + "the answer is yes. ") * 1000,
    "lines of prompts": "question: yes\n" * 70_000,
    "arrows": "yes -> " * 150_000,
    "one line": "x" * 1_000_000,
    "characters that grow": "\ufdfa" * 1_000_000,
    "combining marks": "a" + "\u0301" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.timeout(30)  # well under a second each; hours, were a gap in a rule unbounded
@pytest.mark.parametrize("choices", [("yes", "no", "unknown"), ("a", "b", "c")], ids=",".join)
def test_a_megabyte_of_anything_is_read(text: str, choices: tuple[str, ...]) -> None:
    assert isinstance(read_robust(text, choices), Reading)

"""A thought is never read as an answer: thoughts in a text stand apart from it, and what is left is what is scored."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rambla_ray.actors.api.openai_replies import chat_answer, completion_answer
from rambla_ray.config.task import TaskConfig
from rambla_ray.schema import Sample, Step
from rambla_ray.scoring.answers.thoughts import split_thoughts
from rambla_ray.scoring.outcomes import finish
from rambla_ray.scoring.reading import read_robust

TASK = TaskConfig.model_validate(
    {
        "dataset": "d",
        "stages": [{"generate": {"role": "target", "template": "{question}"}}],
        "answer": {"choices": ("yes", "no"), "target": "label"},
    }
)
T = "The answer is yes."  # What a model thinks; what it answers is another choice, or nothing.
HARMONY = "<|channel|>analysis<|message|>The answer is yes.<|end|><|start|>assistant"

# By text: the thoughts and the answer in it.
CLOSED = {
    f"<think>{T}</think>no": (T, "no"),
    f"<think>\n{T}\n</think>\n\nNo.": (T, "No."),
    f" \n<think>{T}</think> no": (T, "no"),
    f"<THINK>{T}</THINK>no": (T, "no"),
    f"<Think>{T}</think>\nThe answer is **no**.\n": (T, "The answer is **no**.\n"),
    f"<thinking>{T}</thinking>no": (T, "no"),
    f"<reasoning>{T}</reasoning>no": (T, "no"),
    f"<thought>\n{T}\n</thought>\nno": (T, "no"),
    f"<thoughts>{T}</thoughts>no": (T, "no"),
    f"<internal_thoughts>{T}</internal_thoughts>no": (T, "no"),
    f"<seed:think>{T}</seed:think>no": (T, "no"),
    f"<longcat_think>{T}</longcat_think>no": (T, "no"),
    f"<reflection>{T}</reflection>no": (T, "no"),
    f"<analysis>{T}</analysis><answer>no</answer>": (T, "<answer>no</answer>"),
    f"[THINK]{T}[/THINK]no": (T, "no"),
    f"◁think▷{T}◁/think▷no": (T, "no"),
    f"<unused94>thought\n{T}<unused95>no": (T, "no"),
    f"<|START_THINKING|>{T}<|END_THINKING|><|START_RESPONSE|>no<|END_RESPONSE|>": (T, "no"),
    f"<|begin_of_thought|>{T}<|end_of_thought|>\n\n<|begin_of_solution|>\nno\n<|end_of_solution|>": (T, "no\n"),
    f"{HARMONY}<|channel|>final<|message|>no<|return|>": (T, "no"),
    f"<|start|>assistant{HARMONY}<|channel|>final <|constrain|>text<|message|>no": (T, "no"),
    f"analysis{T}assistantfinalno": (T, "no"),
    f"{T}\n</think>\n\nno": (T, "no"),
    f"{T}</reasoning>no": (T, "no"),
    f"{T}[/THINK]no": (T, "no"),
    f"{T}<|END_THINKING|>no": (T, "no"),
    f"{T}assistantfinalno": (T, "no"),
    f"<think>{T}</think><think>Yes, yes.</think>no": (f"{T}\nYes, yes.", "no"),
    f"<think>{T}</think>\n<thinking>Yes, yes.</thinking>\nno": (f"{T}\nYes, yes.", "no"),
    f"<think>{T}</think>So:<think>Yes.</think>no": (f"{T}\nYes.", "So:\nno"),
    f"<think>{T}</think>Yes, hmm.</think>no": (f"{T}\nYes, hmm.", "no"),
    f"<think>{T}</think>no<think>or yes": (f"{T}\nor yes", "no"),
    f"<think>I close with '</think>'. {T}</think>no": (f"I close with '</think>'. {T}", "no"),
    f"<thinking>{T}<reflection>Yes.</reflection></thinking>no": (f"{T}<reflection>Yes.", "no"),
    'The abstract says "yes"</think>"no"': ('The abstract says "yes"', '"no"'),
    "<think>\n\n</think>\n\nno": ("", "no"),
    "</think>\n\nno": ("", "no"),
    "<|channel|>final<|message|>no<|return|>": ("", "no"),
}
UNANSWERED = {
    f"<think>{T}": (T, ""),
    f"<think>\n{T} But wait, the": (f"{T} But wait, the", ""),
    f"<THINKING>{T}\n\nAnswer: yes": (f"{T}\n\nAnswer: yes", ""),
    f"<reasoning>{T}": (T, ""),
    f"<thought>{T}": (T, ""),
    f"[THINK]{T}": (T, ""),
    f"◁think▷{T}": (T, ""),
    f"<unused94>thought\n{T}": (T, ""),
    f"<|START_THINKING|>{T}": (T, ""),
    f"analysis{T}": (T, ""),
    f"{HARMONY}": (T, ""),
    f"<|channel|>analysis<|message|>{T}": (T, ""),
    f"<think>{T}</think>": (T, ""),
    f"<think>{T}</think>\n\n": (T, ""),
    f"{T}</think>": (T, ""),
    f"<think>{T}</think><think>Yes.": (f"{T}\nYes.", ""),
}
ORDINARY = [
    "no",
    "",
    " \n",
    "No. Models write <think> before they answer.",
    "No: it says <think>maybe</think> there.",
    "No. The tags are `<think>` and `</think>`.",
    "No. What closes it is '</think>', and nothing else.",
    "No [1], as p < 0.05 [2].",
    "No: the [analysis] says so.",
    "The assistant finally said no.",
    "[Analysis]\nThe rate did not fall.\n[Answer]\nno",
    "<rationale> The rate did not fall.\nAnswer: no",
    '"<think>" is a tag. The answer is no.',
]


def ends(text: str, reason: str) -> Sample:
    """How a sample ends whose answer came as the content of a message."""
    usage = {"prompt_tokens": 100, "completion_tokens": 800}
    choice = {"finish_reason": reason, "message": {"role": "assistant", "content": text}, "text": text}
    response = chat_answer({"choices": [choice], "usage": usage})
    assert response == completion_answer({"choices": [choice], "usage": usage})
    assert (response.prompt_tokens, response.completion_tokens) == (100, 800)
    said = {"text": response.text, "finish_reason": response.finish_reason, "details": response.details}
    found = Sample("m/t/-/1", "1", "m", "t", "", "yes", "yes", {})
    found.steps.append(Step("generate:response", "target", "m", "", "prompt", **said))
    finish(found, TASK)
    return found


@pytest.mark.parametrize(("text", "parts"), [*CLOSED.items(), *UNANSWERED.items()])
def test_thoughts_stand_apart_from_the_answer(text: str, parts: tuple[str, str]) -> None:
    assert split_thoughts(text) == parts


@pytest.mark.parametrize("text", ORDINARY)
def test_an_answer_that_speaks_of_thoughts_stays_whole(text: str) -> None:
    assert split_thoughts(text) == ("", text)


@pytest.mark.parametrize(("text", "parts"), CLOSED.items())
def test_the_answer_after_a_thought_is_scored_by_both_rules(text: str, parts: tuple[str, str]) -> None:
    sample = ends(text, "stop")
    assert (sample.outcome, sample.answer, sample.rambla_answer) == ("scored", "no", "no")
    assert (sample.steps[0].details.reasoning, sample.steps[0].text) == parts


@pytest.mark.parametrize("reason", ["length", "stop"])
@pytest.mark.parametrize(("text", "parts"), UNANSWERED.items())
def test_a_thought_alone_is_no_answer_but_one_that_was_cut(text: str, parts: tuple[str, str], reason: str) -> None:
    sample = ends(text, reason)
    assert (sample.outcome, sample.answer, sample.rambla_answer) == ("truncated", "", "")
    assert (sample.steps[0].details.reasoning, sample.steps[0].text) == parts


def test_an_empty_thought_without_an_answer_is_an_empty_answer() -> None:
    assert ends("<think>\n\n</think>\n\n", "stop").outcome == "empty"


QUOTED = [text for text in ORDINARY if any(f"{quote}<" in text for quote in "`'")]


@pytest.mark.parametrize("text", QUOTED)
def test_an_answer_that_quotes_the_marks_of_thoughts_is_scored(text: str) -> None:
    assert (ends(text, "stop").answer, ends(text, "stop").steps[0].text) == ("no", text)


CORPUS = [json.loads(line) for line in (Path(__file__).parent / "data" / "answers.jsonl").read_text().splitlines()]
THOUGHTFUL = [line for line in CORPUS if split_thoughts(line["text"])[1] != line["text"]]


@pytest.mark.parametrize("line", THOUGHTFUL, ids=lambda line: repr(line["text"][:60]))
def test_what_humans_read_in_an_answer_is_read_in_what_is_left_of_it(line: dict[str, str]) -> None:
    left = split_thoughts(line["text"])[1]
    assert read_robust(left, line["choices"], cut=bool(line.get("cut"))).answer == line["answer"]


def test_many_of_the_answers_that_humans_have_read_have_thoughts() -> None:
    assert len(THOUGHTFUL) >= 70


WORDS = st.lists(st.sampled_from(["yes", "no", " ", "\n", "<", ">", "[1]", "a/b", "<|end|>", "."]), max_size=12)
MARKS = ["<think>", "</think>", "[THINK]", "[/THINK]", "<b>", "yes ", "no ", "\n", "<|end|>", "`", "assistantfinal"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(MARKS), max_size=12).map("".join), st.sampled_from(["yes", "no"]))
def test_no_word_of_a_text_is_lost(text: str, word: str) -> None:
    assert sum(part.count(word) for part in split_thoughts(text)) == text.count(word)


@settings(deadline=None)
@given(WORDS.map("".join))
def test_nothing_before_a_mark_that_closes_a_thought_is_answer(text: str) -> None:
    assert split_thoughts(f"{text}</think>no")[1] == split_thoughts(f"<think>{text}</think>no")[1] == "no"
    assert split_thoughts(f"<think>{text}")[1] == ""


@pytest.mark.parametrize(
    "text",
    [
        "<" * 2_000_000,
        "[" * 2_000_000,
        "<|" * 1_000_000,
        "<think></think>" * 130_000,
        "<think " * 280_000,
        "</think>" + "<||> " * 390_000,
        "</think>a" + "<||> " * 390_000 + "x",
        "</think>" + (" " * 1000 + "<|x|>") * 1900,
        "a < b" * 10_000_000,
    ],
    ids=lambda text: text[:12],
)
def test_no_text_takes_long(text: str) -> None:
    began = time.process_time()
    split_thoughts(text)
    assert time.process_time() - began < 20  # As many as a second on a busy machine; quadratic would be hours.

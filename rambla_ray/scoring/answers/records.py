"""Answers in a form: JSON and YAML objects, probabilities of the choices, boxes that are ticked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from rambla_ray.scoring.answers.tokens import CHOICE, Vocabulary

Read = Callable[[str], str | None]
_WORD = (
    r"(?:answers?|verdict|label|prediction|predicted|choice|chosen|selected|selection|select|result|decision"
    r"|classification|class|category|output|response|reply|conclusion|judge?ment|determination"
    r"|final|relation|relationship|option|ans|respuesta|antwort|réponse|reponse|resposta|risposta|ответ|答案|回答|结论|정답)"
)
_KEYS = [  # A key of an earlier row outranks those of later ones.
    re.compile(rf"final {_WORD}|final"),
    re.compile(
        rf"(?:predicted |my |model |your |correct |the |chosen |selected |short |yes no "
        rf"|overall )?{_WORD}(?: (?:label|choice|value|class|text|letter|option|answer))?"
    ),
    re.compile(r"(?:similarity )?(?:score|rating)|value|yes no|yesno|yes or no"),
]
_SCORE = re.compile(r"score|probability|prob|confidence|p|likelihood|weight|logprob")
_DEEPEST, _TRIES, _LONGEST_YAML = 8, 12, 3000
_FENCE = re.compile(r"```[ \t]*(?:ya?ml|json)?[ \t]*\n(.{0,3000}?)```", re.DOTALL)
_YAML_LINE = re.compile(r"[ \t]*(?:-[ \t]|---$|[\w \"'-]{1,40}:(?:[ \t]|$))|\s*$")
_MOST_LINES = 80
_NESTED = re.compile(r":[ \t]*\n[ \t]+[\w\"'-]")
_ANSWER_KEY = re.compile(rf"""["'](?:final[ _])?{_WORD}["']\s?:\s?["']?({CHOICE})["']?\s?(?:,|$)""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Form:
    """What stands in a form, and the text around it; `answer` is None where it names no choice, or two."""

    answer: str | None
    rule: str
    rest: str


def read_form(text: str, words: Vocabulary, read: Read) -> Form | None:
    """The answer of a form in `text`, or None where there is no form, or one that speaks of no choice.

    `read` reads a value that is a sentence.
    """
    if "{" in text or "[" in text:
        objects = list(_objects(text))
        found = {answer for record, _, _ in objects for answer in _answers(record, words, read)}
        if found or any(isinstance(record, dict) for record, _, _ in objects):
            rest = text
            for _, start, end in reversed(objects):
                rest = f"{rest[:start]}\n{rest[end:]}"
            rule = "json" if len(found) == 1 else "conflict" if found else "nothing"
            return Form(found.pop() if len(found) == 1 else None, rule, rest.replace("```json", "").replace("```", ""))
    boxes = _ticked(text, words)
    if boxes:
        return boxes
    mapping = _mapping(text)
    found = _answers(mapping, words, read) if mapping else set()
    if found:
        return Form(found.pop(), "yaml", "") if len(found) == 1 else Form(None, "conflict", "")
    return _judged(text, words) or _likeliest(text, words)


def read_broken_json(tokenised: str, words: Vocabulary) -> str | None:
    """The one choice that stands behind an answer's key of JSON that does not parse, as when it was cut off."""
    found = {found.group(1) for found in _ANSWER_KEY.finditer(tokenised)}
    return words.choice(found.pop()) if len(found) == 1 else None


# Objects.


def _objects(text: str) -> Iterator[tuple[Any, int, int]]:
    """The JSON objects and lists of a text, with their places; and one in Python's notation, which YAML reads too."""
    decoder, at = json.JSONDecoder(), 0
    for _ in range(_TRIES):
        opening = re.compile(r"[{\[]").search(text, at)
        if not opening:
            return
        start = opening.start()
        try:
            record, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
            region = text[start : text.rfind("}") + 1]
            if opening.group() == "{" and ":" in region and (record := _load_yaml(region)):
                yield record, start, start + len(region)
                return
        else:
            yield record, start, at


def _mapping(text: str) -> Any:
    """The YAML mapping that a text, or the block of code in it, is as a whole."""
    fence = _FENCE.search(text)
    body = fence.group(1) if fence else text
    lines = body.split("\n")
    is_nested = len(lines) <= _MOST_LINES and _NESTED.search(body)  # flat lines are read as labels: "Answer: no"
    return _load_yaml(body) if is_nested and all(map(_YAML_LINE.match, lines)) else None


def _load_yaml(text: str) -> Any:
    """A YAML mapping with all scalars as strings (YAML's own "no" is false); None for all else, or with aliases."""
    if not text or len(text) > _LONGEST_YAML or text.count("{") + text.count("[") > 40 or re.search(r"[&*]\w", text):
        return None
    try:
        loaded = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506, the loader that makes strings alone
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def _answers(record: Any, words: Vocabulary, read: Read, depth: int = 0) -> set[str]:
    """The choices that an object gives as its answer."""
    if depth > _DEEPEST:
        return set()
    if isinstance(record, list):
        return _of_list(record, words, read, depth)
    if not isinstance(record, dict):
        return set()
    for keys in _KEYS:
        named = [value for key, value in record.items() if keys.fullmatch(_key(key))]
        if found := {choice for value in named for choice in _of_value(value, words, read, depth)}:
            return found
        if named and keys is not _KEYS[-1]:
            return set()
    if likeliest := _top({key: _number(value) for key, value in record.items()}, words):
        return likeliest
    return {
        choice
        for value in record.values()
        if isinstance(value, dict | list) and len(value) > 0
        for choice in _answers(value, words, read, depth + 1)
        if not _is_strings(value)
    }


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _of_list(record: list[Any], words: Vocabulary, read: Read, depth: int) -> set[str]:
    if len(record) == 1 and isinstance(record[0], str):
        return _of_value(record[0], words, read, depth)
    scored = [_scored(item, words) for item in record[:50]]
    if len(scored) > 1 and all(scored):
        return _top({label: score for label, score in scored if label}, words)  # type: ignore[misc]
    return {
        choice
        for item in record[:50]
        if isinstance(item, dict | list)
        for choice in _answers(item, words, read, depth + 1)
    }


def _scored(item: Any, words: Vocabulary) -> tuple[str, float | None] | None:
    """The (choice, score) of {"label": choice, "score": number}."""
    if not isinstance(item, dict):
        return None
    label = next((value for value in item.values() if isinstance(value, str) and words.named(value)), None)
    score = next((_number(value) for key, value in item.items() if _SCORE.fullmatch(_key(key))), None)
    return None if label is None or score is None else (label, score)


def _of_value(value: Any, words: Vocabulary, read: Read, depth: int) -> set[str]:
    if isinstance(value, dict | list):
        return _answers(value, words, read, depth + 1) if not isinstance(value, list) or len(value) == 1 else set()
    if isinstance(value, bool):
        value = next(
            (name for name in ("yes" if value else "no", "true" if value else "false") if name in words.names), ""
        )
    choice = words.named(str(value)) or (read(value) if isinstance(value, str) else None)
    return {choice} if choice else set()


def _top(scores: dict[str, float | None], words: Vocabulary) -> set[str]:
    """The choice with more than half of the weight, where each key is a choice of its own and has a number."""
    weights = {words.named(str(label)): score for label, score in scores.items()}
    if len(weights) != len(scores) or len(weights) < 2 or None in weights or None in weights.values():
        return set()
    total, (best, weight) = sum(filter(None, weights.values())), max(weights.items(), key=lambda item: item[1] or 0.0)
    return {best} if best and weight and weight > total / 2 else set()


def _key(key: Any) -> str:
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", str(key)).lower().split())


def _number(value: Any) -> float | None:
    if isinstance(value, int | float):
        return float(value)
    found = re.fullmatch(r"\s*(\d{1,3}(?:\.\d{1,20})?)\s?%?\s*", value) if isinstance(value, str) else None
    return float(found.group(1)) if found else None


# Boxes and lists of probabilities.

_TICKED = r"[☑✅✔☒🗹🔘●◉⦿◼■]|\[[xX✓✔*]\]|\([xX✓✔•*]\)"
_UNTICKED = r"[☐⬜□◻○◯❌❎✗✘]|\[[ _]?\]|\( ?\)"
_BOX = re.compile(rf"(?P<ticked>{_TICKED})|(?P<open>{_UNTICKED})")
_SHARE = re.compile(
    rf"^[ \t]*[-|*]?[ \t]*(?:p(?:rob(?:ability)?)?[ ]?(?:of )?)?[(\[\"']{{0,2}}({CHOICE})[\"')\]]{{0,2}}"
    r"[ ]?[:=→|][ ]?(\d{1,3}(?:\.\d{1,12})?)[ ]?%?[ \t,;|]*$",
    re.MULTILINE,
)


def _ticked(text: str, words: Vocabulary) -> Form | None:
    """The choice behind the only ticked box, where boxes stand before two choices or one is a "[x]"."""
    boxes = list(_BOX.finditer(text))[:12]
    if not boxes:
        return None
    crossed_out = "☑" in text or ("☐" not in text and "[ ]" not in text)
    marked: dict[str, bool] = {}
    for box, label in zip(boxes, _labels(text, boxes, words), strict=True):
        label = re.sub(r"^[\s*_\"'-]*(?:[A-Ea-e1-5][.):]\s+)?", "", label)
        choice = words.named(re.split(r"\s*(?:[,;|(/-]|\s-\s|:|\.\s)", label.strip(" *_-"), maxsplit=1)[0])
        if choice is None:
            continue
        marked[choice] = bool(box.group("ticked")) and not (box.group() == "☒" and crossed_out)
    if len(marked) < 2 and not re.search(r"\[[xX ✓]\]\s*[*_]*\w", text):
        return None
    ticked = [choice for choice, mark in marked.items() if mark]
    if not marked:
        return None
    if len(ticked) != 1:
        return Form(None, "conflict", "")
    return Form(ticked[0], "box", text[boxes[-1].end() + 40 :])


def _labels(text: str, boxes: list[re.Match[str]], words: Vocabulary) -> list[str]:
    """What stands behind each box; or before each, where a choice stands before the first and nothing behind it."""
    starts, ends = [box.start() for box in boxes], [box.end() for box in boxes]
    before = [text[start:end].rsplit("\n", 1)[-1] for start, end in zip([0, *ends], starts, strict=False)]
    after = [text[end:start].split("\n")[0] for end, start in zip(ends, [*starts[1:], ends[-1] + 40], strict=True)]
    return before if words.named(before[0].strip(" *_:-")) and not after[-1].strip() else after


_JUDGED = re.compile(
    rf"({CHOICE})[\"')\]*]{{0,3}}\s?[:=-]\s?"
    r"(?:(right|correct|true|yes|yep)|(?:wrong|incorrect|false|no|not(?: \w+){1,3}))\b[*]*(?=\s?(?:[.,;\n(-]|$))"
)


def _judged(text: str, words: Vocabulary) -> Form | None:
    """The one choice that is called right by a text that judges each: "A: wrong, B: right"."""
    if {"yes", "no"} & set(words.names) or {"true", "false"} & set(words.names):
        return None
    tokenised = words.tokenise(re.sub(r"[*`]", "", text))
    judged = {words.choice(choice): right for choice, right in _JUDGED.findall(tokenised)}
    right = [choice for choice, verdict in judged.items() if verdict]
    if len(judged) < 2 or len(judged) < len(words.names) - 1 or len(right) != 1:
        return None
    return Form(right[0], "box", _JUDGED.sub(" ", text))


def _likeliest(text: str, words: Vocabulary) -> Form | None:
    """The likeliest choice of a text that is only a list such as "Yes: 0.2", "P(no) = 80 %"."""
    if not any(digit in text for digit in "0123456789") or len(text) > 400:
        return None
    lines = re.sub(r"[,;]\s+(?=\D)", "\n", words.tokenise(re.sub(r"[*`]", "", text).strip()))
    shares = {words.choice(label): float(number) for label, number in _SHARE.findall(lines)}
    if len(shares) < 2 or _SHARE.sub("", lines).strip():
        return None
    top = _top(dict(shares), words)
    return Form(top.pop(), "probabilities", "") if top else Form(None, "conflict", "")

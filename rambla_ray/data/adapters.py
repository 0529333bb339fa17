"""Adapters: from a record of a public layout to an item, with the fields, joins and order that RAmBLA uses."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.errors import UserError, choose_from
from rambla_ray.schema import Item, well_formed

Record = Mapping[str, Any]
OTHER_FILE = "give another file with task.dataset.path=<file>"


def adapt(records: Sequence[Any], config: DatasetConfig, where: str) -> list[Item]:
    """One item per record. Raises UserError, naming the row (counted from 1), for one that is not of the layout."""
    adapter = _ADAPTERS.get(config.format) or partial(
        _table, id_column=config.id_column or "id", fields=config.fields, columns=_columns(records)
    )
    items = []
    for row, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise TypeError("it is not an object with keys and values")
            items.append(adapter(record, row))
        except KeyError as error:
            key = str(error.args[0])
            raise UserError(
                f"{where} lacks '{key}' in row {row + 1}, which format {config.format} needs; "
                f"{choose_from(key, map(str, record))}"
            ) from None
        except RecursionError:
            raise UserError(f"{where} row {row + 1}: its values are nested too deeply; {OTHER_FILE}") from None
        except (TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is not in the layout that format {config.format} reads: row {row + 1}: {error}"
            ) from None
        except ValueError as error:
            raise UserError(f"{where} row {row + 1}: {error}; correct the file, or leave the row out") from None
    return items


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _text(value: Any) -> str:
    """A cell as text: empty for a missing one (None, NaN), JSON for what is neither text nor number."""
    if isinstance(value, str):
        return value
    if _missing(value):
        return ""
    if isinstance(value, bool | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _texts(value: Any) -> list[str]:
    """A list of texts. Raises TypeError for anything else: a lone text would be read as a list of its characters."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise TypeError(f"expected a list of texts, not {str(value)[:60]!r}")
    return value


def _whole(value: Any) -> str:
    """A value as text. A whole number has no decimals, even where pandas made it a float as other rows lack it."""
    return _text(int(value) if isinstance(value, float) and value.is_integer() else value)


def _id(value: Any, column: str) -> str:
    text = well_formed(_whole(value))
    if not text.strip():
        raise ValueError(f"its id ('{column}') is missing")
    return text


def _one_of(value: Any, column: str, words: Mapping[str, str]) -> str:
    """The word that stands for a label, which may be its number, its name or the word."""
    try:
        return words[_whole(value).strip().lower()]
    except KeyError:
        known = ", ".join(words)
        raise ValueError(f"its {column} is {_whole(value)[:60]!r}, and not one of {known}") from None


def _first(record: Record, columns: Sequence[str]) -> tuple[str, Any]:
    """Of the names that a column has in different releases, the first that the record has, and its value."""
    column = next((column for column in columns if column in record), None)
    if column is None:
        raise KeyError("' or '".join(columns))
    return column, record[column]


def _pubmedqa(record: Record, row: int) -> Item:
    """PubMedQA, from the GitHub release (upper-case keys) or the hub (nested `context`).

    Source: Jin et al. 2019, https://github.com/pubmedqa/pubmedqa.
    """
    if "QUESTION" in record:
        question, answer = record["QUESTION"], record["LONG_ANSWER"]
        contexts, labels, meshes = record["CONTEXTS"], record["LABELS"], record["MESHES"]
    else:
        question, answer, nested = record["question"], record["long_answer"], record["context"]
        contexts, labels, meshes = nested["contexts"], nested["labels"], nested["meshes"]
    pmid = _id(record["pubid"], "pubid")
    return Item(
        root_id=pmid,
        fields={
            "question": _text(question),
            "long_answer": _text(answer),
            "final_decision": _text(record["final_decision"]),
            "context": "\n\n".join(_texts(contexts)),
            "labels": ", ".join(_texts(labels)),
            "meshes": ", ".join(_texts(meshes)),
            "pmid": pmid,
        },
    )


def _bioasq(record: Record, row: int) -> Item:
    """BioASQ task B, from the training files of any year, or the test files with their golden answers.

    The answer is the first ideal answer. The context is all snippets, with a blank line between two; RAmBLA joins
    them with nothing, so that the last word of one and the first of the next run together. A question without an
    ideal answer cannot be asked: its item has a fault. A question without an id gets one from its text.

    Source: Tsatsaronis et al. 2015, http://participants-area.bioasq.org/general_information/Task11b/.
    """
    question, ideal, snippets = _text(record["body"]), record.get("ideal_answer"), record.get("snippets")
    answers = [] if _missing(ideal) else [ideal] if isinstance(ideal, str) else _texts(ideal)
    if snippets is None:
        texts = []
    elif isinstance(snippets, Mapping):  # Some versions of the hub's library turn a list of objects into this.
        texts = _texts(snippets["text"])
    else:
        texts = [_text(snippet["text"]) for snippet in snippets]
    own_id = record.get("id")
    if not _missing(own_id):
        root_id = _id(own_id, "id")
    elif question.strip():
        root_id = hashlib.sha256(well_formed(question).encode()).hexdigest()[:24]
    else:
        raise ValueError("it has neither an id nor a body")
    answer = answers[0] if answers else ""
    return Item(
        root_id=root_id,
        fields={
            "question": question,
            "answer": answer,
            "context": "\n\n".join(text for text in texts if text),
            "label": "1",
            "id": root_id,
        },
        fault="" if answer.strip() else "ideal_answer: there is none to compare with",
    )


_ENTAILMENT = {word: word for word in ("entailment", "neutral", "contradiction")}
_ENTAILMENT |= dict(zip("012", tuple(_ENTAILMENT), strict=True))


def _sick(record: Record, row: int) -> Item:
    """SICK, from the release (SemEval's three files, or the whole in one) or the hub.

    The label is "1" for entailment, else "0". The score (1 to 5) is written with at most six digits, so that the hub's
    single precision gives what the release says.

    Source: Marelli et al. 2014, https://aclanthology.org/L14-1314/.
    """
    column, judged = _first(record, ("entailment_judgment", "entailment_label", "label"))
    entailment = _one_of(judged, column, _ENTAILMENT)
    score = _text(record["relatedness_score"])
    try:
        score = f"{float(score):.6g}" if score.strip() else ""
    except ValueError:
        raise ValueError(f"its relatedness_score is {score[:60]!r}, and not a number") from None
    column, pair_id = _first(record, ("pair_ID", "id"))
    return Item(
        root_id=_id(pair_id, column),
        fields={
            "text_1": _text(record["sentence_A"]),
            "text_2": _text(record["sentence_B"]),
            "label": "1" if entailment == "entailment" else "0",
            "relatedness_score": score,
            "entailment": entailment,
        },
    )


_PARAPHRASE = {"0": "0", "1": "1", "not_equivalent": "0", "equivalent": "1"}


def _mrpc(record: Record, row: int) -> Item:
    """MRPC, from the hub's GLUE, or the MSR release, where the row's number (from 0) is what GLUE calls idx.

    Source: Dolan and Brockett 2005, https://aclanthology.org/I05-5002/.
    """
    if "#1 String" in record:
        idx, text_1, text_2 = str(row), record["#1 String"], record["#2 String"]
        label = _one_of(record["Quality"], "Quality", _PARAPHRASE)
    else:
        idx, text_1, text_2 = _id(record["idx"], "idx"), record["sentence1"], record["sentence2"]
        label = _one_of(record["label"], "label", _PARAPHRASE)
    return Item(root_id=idx, fields={"text_1": _text(text_1), "text_2": _text(text_2), "label": label, "idx": idx})


def _columns(records: Sequence[Any]) -> frozenset[str]:
    return frozenset(column for record in records if isinstance(record, Mapping) for column in record)


def _table(record: Record, row: int, *, id_column: str, fields: Sequence[str], columns: frozenset[str]) -> Item:
    """Any table: the declared columns as they are; a cell that its row lacks is empty.

    Raises:
        KeyError: a column that no row has.
    """
    for column in (id_column, *fields):
        if column not in columns:
            raise KeyError(column)
    return Item(
        root_id=_id(record.get(id_column), id_column), fields={name: _text(record.get(name)) for name in fields}
    )


_ADAPTERS: Mapping[str, Callable[[Record, int], Item]] = {
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
    "sick": _sick,
    "mrpc": _mrpc,
}
ID_COLUMNS: Mapping[str, str] = {"pubmedqa": "pubid", "mrpc": "idx"}  # Where the column of ids is not `id`.
